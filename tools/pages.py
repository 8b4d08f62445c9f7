"""Hooks of mkdocs (`mkdocs.yml`): pages that are made from the program, and links that leave the folder of documents.

- `reference/commands/NAME.md`: the help of every command, as tables.
- `reference/python.md`: a heading for each public function; mkdocstrings fills in what its docstring says.
- `quickstart.md`: the notebook, with the outputs that are stored in it.
- Files outside of `docs/` that a page links to, where `OUTSIDE` names a place for them.
- Patterns in `nav`, such as `networks/*.md`, stand for the pages that are there.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COMMANDS = "reference/commands"
NOTEBOOK = "quickstart.ipynb"
OUTSIDE = {
    "hmrcompress/assets/starter/README.md": "starter_card.md",
    "hmrcompress/assets/starter/cka.png": "cka.png",
    "hmrcompress/assets/starter/meshes.jpg": "meshes.jpg",
    "hmrcompress/assets/starter_body.md": "starter_body.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
} | {f"recipes/{path.name}": f"recipes/{path.name}" for path in sorted((ROOT / "recipes").glob("*.yaml"))}
"""Files of the repository, and where the site has them."""
GROUPS = {
    "From names and paths to results": (
        "load",
        "search",
        "merge",
        "compress",
        "evaluate",
        "bench",
        "export",
        "export_onnx",
    ),
    "Pictures and video": ("predict", "profile"),
    "Networks of other code": ("apply", "live", "person_mask", "unapply"),
    "Training": ("heal", "fit_probe", "fit_decoder", "extract_features"),
}
LINK = re.compile(r"(\]\()([^)\s#]+)")


def on_config(config: Any) -> Any:
    """Puts pages in the place of patterns of the navigation."""
    config.nav = list(_expanded(config.nav))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages and files that do not lie in `docs/`."""
    from mkdocs.structure.files import File

    made: dict[str, str | bytes] = {f"{COMMANDS}/{name}.md": text for name, text in command_pages().items()}
    made["reference/python.md"] = python_page()
    made |= notebook_page(DOCS / NOTEBOOK)
    for source, place in OUTSIDE.items():
        path = ROOT / source
        if path.exists():
            made[place] = path.read_text() if path.suffix == ".md" else path.read_bytes()
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Points links that leave `docs/` at the copies of the site."""
    return with_links(markdown, page.file.src_uri)


def with_links(markdown: str, page: str) -> str:
    """The text of a page (its place in the site) with links to files of `OUTSIDE` as the site has them."""
    home = {place: source for source, place in OUTSIDE.items()}.get(page, f"docs/{page}")

    def changed(found: re.Match[str]) -> str:
        target = found[2]
        if "://" in target or target.startswith(("mailto:", "/")):
            return found[0]
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
        place = "quickstart.md" if whole == f"docs/{NOTEBOOK}" else OUTSIDE.get(whole, whole.removeprefix("docs/"))
        return found[1] + posixpath.relpath(place, posixpath.dirname(page) or ".")

    return LINK.sub(changed, markdown)


def _expanded(entries: Iterable[Any]) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, dict):
            yield {
                title: list(_expanded(value)) if isinstance(value, list) else value for title, value in entry.items()
            }
        elif entry == f"{COMMANDS}/*.md":
            yield from ({name: f"{COMMANDS}/{name}.md"} for name in command_pages())
        elif "*" in entry:
            yield from sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob(entry))
        else:
            yield entry


def command_pages() -> dict[str, str]:
    """The page of every command, by its name; those of a group (`starter`) are on the page of the group."""
    import typer.main

    from hmrcompress_cli.main import app

    group: Any = typer.main.get_command(app)
    pages = {}
    for name, command in group.commands.items():
        if command.hidden:
            continue
        parts = [f"# {name}", *_command(f"hmrcompress {name}", command)]
        for below, part in getattr(command, "commands", {}).items():
            parts += [f"## {name} {below}", *_command(f"hmrcompress {name} {below}", part)]
        pages[name] = "\n\n".join(parts) + "\n"
    return pages


def _command(name: str, command: Any) -> Iterator[str]:
    """Usage, description, arguments and options of one command."""
    arguments = [one for one in command.params if one.opts and not one.opts[0].startswith("-")]
    options = [one for one in command.params if one not in arguments and not getattr(one, "hidden", False)]
    words = [f"{one.name.upper()}{'…' if one.nargs == -1 else ''}" for one in arguments]
    what = ["COMMAND …"] if hasattr(command, "commands") else ["[OPTIONS]"] if options else []
    yield f"```text\n{' '.join([name, *words, *what])}\n```"
    if command.help:
        yield _prose(command.help)
    if arguments:
        yield _table(("argument", ""), [(f"`{one.name.upper()}`", _told(one.help)) for one in arguments])
    panels: dict[str, list[Any]] = {}
    for one in options:
        panels.setdefault(getattr(one, "rich_help_panel", None) or "Options", []).append(one)
    for panel, those in panels.items():
        rows = [(_names(one), _told(one.help), _default(one)) for one in those]
        yield f"**{panel}**\n\n" + _table(("option", "", "default"), rows)
    if command.epilog:
        yield _prose(command.epilog)


def _names(option: Any) -> str:
    longest = sorted([*option.opts], key=len, reverse=True)
    return ", ".join(f"`{name}`" for name in [*longest, *option.secondary_opts])


def _default(option: Any) -> str:
    if option.required:
        return "**required**"
    if isinstance(option.show_default, str):
        return option.show_default
    if option.default is None or option.show_default is False or isinstance(option.default, bool):
        return "" if option.default is not True else "yes"
    value = option.default
    return f"`{','.join(map(str, value)) if isinstance(value, (list, tuple)) else getattr(value, 'value', value)}`"


def _told(text: str | None) -> str:
    """A help text in a cell of a table: markup of terminals gone, what reads as HTML or as a column escaped."""
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", " ".join(_plain(text or "").split()))


def _prose(text: str) -> str:
    """Paragraphs of a help text; what looks like a command line becomes code."""
    parts = []
    for part in re.split(r"\n\s*\n", _plain(text).strip()):
        lines = [line.strip() for line in part.splitlines()]
        is_code = all(line.startswith(("$", "hmrcompress ", "\\")) for line in lines if line)
        parts.append("```sh\n" + "\n".join(lines) + "\n```" if is_code else _told(" ".join(lines)))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    return re.sub(r"\[/?[a-z ]+\]|[\b\f]", "", text)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def python_page() -> str:
    """A section for every public name of the package, by group; names in no group come last."""
    sys.path.insert(0, str(ROOT))
    import hmrcompress

    names = [name for name in hmrcompress.__all__ if not name.startswith("__")]
    parts = ["# Python", "`import hmrcompress as hc`. Nothing heavy is imported before a function is first used."]
    groups = {title: [name for name in those if name in names] for title, those in GROUPS.items()}
    groups["More"] = [name for name in names if not any(name in those for those in groups.values())]
    for title, those in groups.items():
        if those:
            parts += [f"## {title}", *(f"::: hmrcompress.{name}" for name in those)]
    return "\n\n".join(parts) + "\n"


def notebook_page(path: Path) -> dict[str, str | bytes]:
    """A notebook as a page, `NAME.md`, and the pictures among its outputs. Empty where there is no notebook."""
    if not path.exists():
        return {}
    made: dict[str, str | bytes] = {}
    parts = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"pictures/{path.stem}_{number}.png"
                made[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell above shows]({name})")
            else:
                parts.append("```text\n" + "".join(output.get("text") or data["text/plain"]).rstrip() + "\n```")
    made[f"{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return made
