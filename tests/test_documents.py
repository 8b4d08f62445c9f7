"""The documents say what is so: code in them runs, links lead somewhere, pictures and the notebook are of this program.

Every fenced block of README and docs that holds command lines of `hmrcompress`, or Python, is run: page by page, in
order, in an empty folder (the names of `STANDING` and video.mp4 are there, and the page's Python shares one namespace).
Lines of a transcript begin with `$ `; what it prints is not compared. A block that cannot be run says why in a comment
before it,

    <!--example: yours-->    it needs files of the reader's own, and names one of `OWN`
    <!--example: long-->     it takes more than a few minutes, or a GPU
    <!--example: part-->     Python that stands in code of the reader's own, or is run by another test

and is only parsed, by the options of the real commands, or compiled.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress_cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
BLOCK = re.compile(r"^(?:<!--example: (?P<mark>\w+)-->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
MARKS = ("yours", "long", "part")
LOOSE = {"plan", "records", "runtime", "errors"}
"""Files that stand at the top of the package by themselves."""
MOST_FLOORS = 14
OWN = re.compile(
    r"\.(ckpt|pkl|safetensors|tar|mp4)\b|(emdb|3dpw|4dhumans|camerahmr|images|crops|amass):|\b(hmr2|camerahmr)\b"
)
"""What files of the reader's look like: checkpoints, pickles, videos, data sets, the recipes that name them."""
STANDING = ("fast", "merged", "compressed")
"""Folders that pages take for granted: the starter network with two layers merged, and 90 tokens."""


@dataclass(frozen=True)
class Block:
    """A block of a page: its mark (or none), its language, its text, and the number of its first line."""

    mark: str | None
    language: str
    code: str
    line: int

    def commands(self) -> list[list[str]]:
        """The words of every command line of hmrcompress."""
        text = self.code.replace("\\\n", " ")
        transcript = any(line.startswith("$ ") for line in text.splitlines())
        lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ") or not transcript]
        words = [shlex.split(line, comments=True) for line in lines if line.startswith(("hmrcompress ", "python -m "))]
        return [line[3 if line[0] == "python" else 1 :] for line in words]

    @property
    def is_code(self) -> bool:
        return self.language == "python" or (self.language in ("", "sh", "console") and bool(self.commands()))


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = [
        Block(one["mark"], one["language"], one["code"], text.count("\n", 0, one.start("code")) + 1)
        for one in BLOCK.finditer(text)
    ]
    return [block for block in found if block.is_code]


def parsed(words: list[str]) -> dict[str, Any]:
    """Parameters of a command line as the real command reads it. Raises the usage error of a wrong one."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("hmrcompress", list(words))
    while hasattr(group, "commands"):
        name, group, words = group.resolve_command(context, context._protected_args + context.args)
        context = group.make_context(name, list(words), parent=context)
    return context.params


MARKED = [(page, block) for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize(
    ("page", "block"), MARKED, ids=[f"{page.relative_to(ROOT)}:{block.line}" for page, block in MARKED]
)
def test_code_in_the_documents_is_of_this_program(page: Path, block: Block) -> None:
    assert block.mark in (None, *MARKS)
    if block.language == "python":
        compile(block.code, str(page), "exec")
        return
    for words in block.commands():
        if "--help" not in words:
            parsed(words)
    if block.mark == "yours":
        assert OWN.search(block.code), "nothing keeps this from being run"


def test_the_makefile_and_the_recipes_name_commands_of_this_program() -> None:
    """What `make` runs, and what the comments of recipes tell people to run."""
    make = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    lines = re.findall(r"\$\(BIN\)/hmrcompress ([^\n]*)", make)
    for recipe in sorted((ROOT / "recipes").glob("*.yaml")):
        lines += re.findall(r"^#   (?:\w+=\w+ )?hmrcompress ([^\n]*)", recipe.read_text(), flags=re.MULTILINE)
    assert len(lines) > 12
    for line in lines:
        parsed(shlex.split(line))


def test_every_command_is_in_the_list() -> None:
    listed = (DOCS / "reference" / "commands" / "index.md").read_text()
    group: Any = typer.main.get_command(app)
    names = [name for name, command in group.commands.items() if not command.hidden]
    assert [name for name in names if f"[{name}]({name}.md)" not in listed] == []


def test_a_wrong_flag_is_seen() -> None:
    with pytest.raises(Exception, match="--plann"):
        parsed(["merge", "starter", "--plann", "plan.yaml", "-o", "out"])
    page = "<!--example: yours-->\n```sh\nhmrcompress inspect a.ckpt \\\n  --quiet\n```\n"
    page += "```\n$ hmrcompress run ci\nhm\n```\n"
    found = [Block(one["mark"], one["language"], one["code"], 1) for one in BLOCK.finditer(page)]
    assert [block.mark for block in found] == ["yours", None]
    assert [block.commands() for block in found] == [[["inspect", "a.ckpt", "--quiet"]], [["run", "ci"]]]


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hmrcompress.plan import CheckpointRef, Plan, TokenSettings

    checkpoint = hc.load("starter")
    depth = checkpoint.config.depth
    groups = ((0,), (1,), (2,), (3,), (4, 5), (6, 7), *((layer,) for layer in range(8, depth)))
    made = CheckpointRef(family=checkpoint.family, sha256=checkpoint.sha256, layers=depth)
    plan = Plan(checkpoint=made, groups=groups, merge_rule="eq4", tokens=TokenSettings.paper())
    folder = tmp_path_factory.mktemp("standing") / "compressed"
    hc.merge("starter", plan, folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people for a third of a second, which pages call video.mp4."""
    path = tmp_path_factory.mktemp("standing") / "video.mp4"
    line = ["starter", "video", "--data", "starter:val", "--clips", "3,11", "--frames", "10", "-o", str(path)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    return path


RUN = [page for page in PAGES if any(block.mark is None for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_in_the_documents_runs(
    page: Path, compressed: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, tmp_path)
    for name in STANDING:
        shutil.copytree(compressed, tmp_path / name)
    space = {
        "hc": hc,
        "torch": torch,
        "images": torch.zeros(2, 3, 256, 192),
        "person_mask": torch.ones(2, 16, 12, dtype=torch.bool),
    }
    for block in blocks(page):
        if block.mark is not None:
            continue
        if block.language == "python":
            exec(compile(block.code, f"{page}:{block.line}", "exec"), space)
            continue
        for words in block.commands():
            for number, word in enumerate(words):
                if word in ("-o", "--out") and words[number + 1] in STANDING:
                    shutil.rmtree(words[number + 1], ignore_errors=True)
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"line {block.line}: {' '.join(words)}\n{done.output[-2000:]}"


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_links_lead_somewhere(text: Path) -> None:
    words = re.sub(r"^```.*?^```$", "", text.read_text(), flags=re.M | re.S)
    made = ("reference/commands/", "reference/python.md")  # pages that `make docs` makes
    for target in re.findall(r"\]\(([^)\s]+)\)", words):
        name, _, anchor = target.partition("#")
        if "://" in target or any(place in name for place in made) or text.parent.name == "commands":
            continue
        there = (text.parent / name).resolve() if name else text
        assert there.exists(), f"{target} is not there"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there.read_text()), f"{name} has no heading #{anchor}"


@pytest.mark.parametrize("text", TEXTS[:-1], ids=lambda text: str(text.relative_to(ROOT)))
def test_files_that_are_named_are_there(text: Path) -> None:
    folders = "hmrcompress|cli|tests|tools|recipes|docs"
    named = re.findall(rf"(?<![\w/])(?:{folders})/[\w./*-]*\.(?:py|yaml|md|json|txt)\b", text.read_text())
    new = ("_mine.py", "_NAME.py")
    assert [name for name in named if not name.endswith(new) and not list(ROOT.glob(name))] == []


def anchors(text: str) -> set[str]:
    """What headings are called in links."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_rooms_are_those_of_the_table() -> None:
    from rooms import floors, rooms

    told = set(re.findall(r"`(\w+)(?:/|\.py)`", (DOCS / "design.md").read_text().split("## How to find")[0]))
    found = rooms()
    assert set(found) <= told
    assert {room for room in found if (ROOT / "hmrcompress" / f"{room}.py").exists()} <= LOOSE
    assert len(floors(found)) <= MOST_FLOORS


def test_floors_are_counted_and_circles_found(tmp_path: Path) -> None:
    from rooms import floors, rooms

    for name, text in {
        "hmrcompress/low.py": "import json\n",
        "hmrcompress/mid/a.py": "from hmrcompress import low, __version__\n",
        "hmrcompress/top/b.py": "def f():\n    import hmrcompress.mid.a\n",
        "cli/main.py": "from hmrcompress.top.b import f\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = rooms(tmp_path)
    assert graph == {"low": set(), "mid": {"low"}, "top": {"mid"}, "cli": {"top"}}
    assert floors(graph) == [["low"], ["mid"], ["top"], ["cli"]]
    with pytest.raises(ValueError, match="mid -> low -> mid"):
        floors(graph | {"low": {"mid"}})


def test_pictures_are_those_of_their_files() -> None:
    from line import PICTURE, SUMMARY, line

    assert PICTURE.read_text() == str(line(json.loads(SUMMARY.read_text()))), "`make pictures` draws it again"


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))]


def shown(notebook: dict[str, Any]) -> Iterator[str]:
    """What each cell shows as text, in order."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            yield "".join(output.get("text") or output["data"]["text/plain"])


@pytest.mark.slow
def test_the_notebook_shows_what_it_would_show_now() -> None:
    from notebook import executed

    stored = json.loads((DOCS / "quickstart.ipynb").read_text())
    for was, now in zip(shown(stored), shown(executed(stored)), strict=True):
        assert re.sub(r"[\d., ]+", "#", was) == re.sub(r"[\d., ]+", "#", now)
        assert numbers(now) == pytest.approx(numbers(was), rel=0.02, abs=1e-3), "`make pictures` runs it again"
