"""Every command over everything that may stand where it writes: the user's files stay, and it says so before it works.

The rule itself is tested in `test_outputs.py`, the cases of tests/cases/outputs.py here, kills in `test_soak.py`.
"""

from __future__ import annotations

import inspect
import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import output_world
import pytest
import torch
from cases.outputs import lost
from output_world import COMMANDS, FILE, FOLDER, JOURNAL, hashes
from typer.testing import CliRunner, Result

import hmrcompress as hc
from hmrcompress.api.opening import STARTER_MODEL
from hmrcompress.errors import UserError
from hmrcompress.exporting import onnx as exporting
from hmrcompress.io.figures import json_text
from hmrcompress.io.manifests import FILES, reference, strangers
from hmrcompress.io.seals import sealed_json
from hmrcompress.models.files.folder import KIND, read_model_folder
from hmrcompress.plan import Plan
from hmrcompress_cli import main, starter
from hmrcompress_cli.common import INPUT_OPTIONS, OUTPUT_OPTIONS
from hmrcompress_cli.main import app

MINE = "weeks of work\n"
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if COMMANDS[name].slow else []) for name in COMMANDS]
PLACES = [(name, place) for name, command in COMMANDS.items() for place in command.outputs("out")]


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(done: Result, *named: str) -> str:
    """The one sentence on stderr, which names what it is about."""
    assert done.exit_code == 2, done.output
    said = [line for line in done.stderr.splitlines() if not line.startswith("hmrcompress: warning")]
    assert len(said) == 1 and said[0].startswith("hmrcompress: "), done.stderr
    assert any(name in said[0] for name in named), said[0]
    return said[0]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return output_world.make(tmp_path_factory.mktemp("world") / "inputs")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of the user's in it."""
    (tmp_path / "diary.txt").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any network that runs fails the test: nothing may be refused after hours of work."""

    def working(*arguments: Any, **named: Any) -> None:
        raise AssertionError("the work had begun")

    monkeypatch.setattr(torch.nn.Module, "__call__", working)


@pytest.fixture(scope="module", autouse=True)
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tracing takes seconds; the same network's graph is written once."""
    made, write = tmp_path_factory.mktemp("graphs") / "a.onnx", exporting._write_graph

    def copy(network: Any, path: Path, batch: Any) -> None:
        if not made.exists():
            write(network, made, batch)
        shutil.copyfile(made, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_write_graph", copy)
        yield


def put_mine(place: Path, kind: str) -> None:
    """Something of the user's where an output is to go."""
    if kind == FOLDER:
        (place / "data").mkdir(parents=True)
        (place / "data" / "points.csv").write_text(MINE)
        (place / "summary.json").write_text('{"mine": 1}\n')
        (place / "config.json").write_text('{"format": "hmrcompress-model"}\n')
    else:
        place.parent.mkdir(exist_ok=True)
        place.write_text(MINE)


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_what_others_wrote_stays(name: str, place: str, inputs: Path, here: Path, idle: None) -> None:
    command = COMMANDS[name]
    put_mine(here / place, command.outputs("out")[place])
    before = hashes(here)
    refused(hmr(*command.line(inputs, "out")), place)
    assert hashes(here) == before


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.json])
def test_the_record_follows_the_same_rule(name: str, inputs: Path, here: Path, idle: None) -> None:
    command = COMMANDS[name]
    line = [part for part in command.line(inputs, "out") if part not in ("--json",)]
    line = line[:-1] if "--json" in command.line(inputs, "out") else line
    (here / "record.json").write_text('{"schema": 1, "command": "of mine"}')
    before = hashes(here)
    refused(hmr(*line, "--json", "record.json"), "record.json")
    for read in command.reads:
        for overwrite in ((), ("--overwrite",)):
            refused(hmr(*line, "--json", inputs / read, *overwrite), read)
    assert hashes(here) == before


def test_two_outputs_have_two_names(inputs: Path, here: Path, idle: None) -> None:
    for line in (
        ["search", *COMMANDS["search"].line(inputs, "out")[1:], "--journal", "out.yaml"],
        ["search", *COMMANDS["search"].line(inputs, "out")[1:], "--json", "out.yaml"],
        ["search", *COMMANDS["search"].line(inputs, "out")[1:], "--json", "out.journal.jsonl"],
        [*COMMANDS["convert"].line(inputs, "out"), "--json", "out.json"],
        [*COMMANDS["merge"].line(inputs, "out"), "--json", "./out"],
        [*COMMANDS["predict"].line(inputs, "out"), "--json", "../" + here.name + "/out"],
    ):
        refused(hmr(*line), "to be written twice")
    assert list(hashes(here)) == ["diary.txt"]


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_never_written_over(name: str, inputs: Path, here: Path, idle: None) -> None:
    """As outputs by their own name and through links, whatever is asked for: -o is the last of every line."""
    command = COMMANDS[name]
    *line, last = command.line(inputs, "out")
    before = hashes(inputs)
    for read in command.reads:
        (here / f"link{Path(last).suffix}").unlink(missing_ok=True)
        (here / f"link{Path(last).suffix}").symlink_to(inputs / read)
        for given in (inputs / read, f"link{Path(last).suffix}"):
            for overwrite in ((), ("--overwrite",)):
                done = hmr(*line, given, *overwrite)
                assert done.exit_code == 2, (given, done.output)
                refused(done, Path(read).name, "link", "--out")
    assert hashes(inputs) == before and {name.partition(".")[0] for name in hashes(here)} <= {"diary", "link"}


@pytest.mark.parametrize("name", EVERY)
def test_again_edited_and_overwritten(name: str, inputs: Path, here: Path) -> None:
    """Twice is once; an edited file is kept beside, an edited folder refused; --overwrite replaces what is written and
    nothing else."""
    command = COMMANDS[name]
    line, places = command.line(inputs, "out"), command.outputs("out")
    for _ in range(2):
        done = hmr(*line)
        assert done.exit_code == 0 and "bak" not in done.stderr, done.output
    made = hashes(here)
    assert set(places) < set(made) and not [each for each in made if each.endswith((".part", ".bak"))]
    for place, kind in places.items():
        if kind == FOLDER:
            (here / place / "notes.txt").write_text(MINE)
            if name != "run":  # whose folder is not replaced, but its files are
                refused(hmr(*line), "notes.txt")
            done = hmr(*line, "--overwrite")
            assert done.exit_code == 0 and (here / place / "notes.txt").read_text() == MINE, done.output
            (here / place / "notes.txt").unlink()
            (here / place / "empty").mkdir()
            if name != "run":
                refused(hmr(*line), "empty/")
            (here / place / "empty").rmdir()
        elif kind == FILE:
            (here / place).unlink()
            put_mine(here / place, kind)
            refused(hmr(*line), place)
            done = hmr(*line, "--overwrite")
            assert done.exit_code == 0 and (here / place).read_bytes() != MINE.encode(), done.output
        else:
            assert kind == JOURNAL
    assert (here / "diary.txt").read_text() == MINE and set(hashes(here)) == set(made)


def test_edited_files_are_kept(inputs: Path, here: Path) -> None:
    for name, place in (("search", "out.yaml"), ("convert values", "out.json"), ("report", "out.md")):
        line = COMMANDS[name].line(inputs, "out")
        assert hmr(*line).exit_code == 0
        edited = (here / place).read_text().replace("e", "E", 1) + ("# by hand\n" if place.endswith("yaml") else "")
        if place == "out.json":
            edited = (here / place).read_text().replace('"schema": 1', '"schema": 1, "note": "by hand"')
        (here / place).write_text(edited)
        done = hmr(*line)
        assert done.exit_code == 0 and f"{place}: was edited" in done.stderr, done.output
        assert f"kept as {place}.bak" in done.stderr and (here / f"{place}.bak").read_text() == edited


def test_a_comment_in_a_plan_is_an_edit(inputs: Path, here: Path) -> None:
    line = COMMANDS["search"].line(inputs, "out")
    assert hmr(*line).exit_code == 0
    text = (here / "out.yaml").read_text()
    Plan.read(here / "out.yaml")
    for edited in (f"# tau 0.1 was too careful\n{text}", text.replace("method: eclm", "method: eclm  # for now")):
        assert edited != text
        (here / "out.yaml").write_text(edited)
        Plan.read(here / "out.yaml")
        assert "was edited" in hmr(*line).stderr and (here / "out.yaml").read_text() == text
    assert {path.name for path in here.glob("*.bak*")} == {"out.yaml.bak", "out.yaml.bak.1"}


class TestLinksPipesAndDevices:
    def test_records(self, inputs: Path, here: Path) -> None:
        line = ["inspect", inputs / "model.safetensors", "--json"]
        (here / "link.json").symlink_to("target.json")
        for _ in range(2):
            assert hmr(*line, "link.json").exit_code == 0
            assert (here / "link.json").is_symlink() and json.loads((here / "target.json").read_text())["schema"] == 1
        (here / "target.json").write_text(MINE)
        refused(hmr(*line, "link.json"), "link.json")
        os.mkfifo(here / "pipe.json")
        got: list[str] = []
        reader = threading.Thread(target=lambda: got.append((here / "pipe.json").read_text()), daemon=True)
        reader.start()
        assert hmr(*line, "pipe.json").exit_code == 0
        reader.join(timeout=20)
        assert json.loads(got[0])["command"] == "inspect" and not (here / "pipe.json").is_file()
        for overwrite in ((), ("--overwrite",)):
            assert hmr(*line, "/dev/null", *overwrite).exit_code == 0 and Path("/dev/null").is_char_device()
        done = hmr(*line, "-")
        assert json.loads(done.stdout)["command"] == "inspect" and "family" in done.stderr and not (here / "-").exists()

    def test_plans_and_journals(self, inputs: Path, here: Path) -> None:
        line = COMMANDS["search"].line(inputs, "out")[:-1]
        refused(hmr(*line, "-"), "--journal")
        for one, other in (("-", "-"), ("-", "/dev/stdout"), ("/dev/fd/1", "-")):
            refused(hmr(*line, one, "--journal", "j.jsonl", "--json", other), "to be written twice")
            refused(hmr(*line, one, "--journal", other), "to be written twice")
        assert set(hashes(here)) == {"diary.txt"}
        for journal in ("/dev/null", "j.jsonl"):
            done = hmr(*line, "-", "--journal", journal)
            assert done.exit_code == 0, done.stderr
            assert Plan.from_yaml(done.stdout).checkpoint.layers == 4 and "evaluations" in done.stderr
        assert Path("/dev/null").is_char_device() and (here / "j.jsonl").is_file()
        assert set(hashes(here)) == {"diary.txt", "j.jsonl"}

    def test_what_is_no_file_alone_needs_a_name(self, inputs: Path, here: Path) -> None:
        for name in ("merge", "predict", "finetune", "export", "starter video"):
            *line, _ = COMMANDS[name].line(inputs, "out")
            for given in ("-", "/dev/null"):
                refused(hmr(*line, given, "--overwrite"), given, ".onnx")
        assert Path("/dev/null").is_char_device() and set(hashes(here)) == {"diary.txt"}


def test_the_current_folder_as_output(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for _ in range(2):
        assert hmr(*COMMANDS["merge"].line(inputs, ".")).exit_code == 0
        assert hc.load(tmp_path / "empty").plan is not None and Path.cwd() == tmp_path / "empty"
    assert "# empty" in Path("README.md").read_text()
    Path("mine").write_text(MINE)
    refused(hmr(*COMMANDS["merge"].line(inputs, ".")), "mine")
    assert hmr(*COMMANDS["merge"].line(inputs, "."), "--overwrite").exit_code == 0 and Path("mine").read_text() == MINE
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert hmr(*COMMANDS["predict"].line(inputs, ".")).exit_code == 0
    assert {path.name for path in Path().iterdir()} == {"params.npz", "summary.json"}


def test_a_record_in_the_folder_of_the_output(inputs: Path, here: Path) -> None:
    line = [*COMMANDS["merge"].line(inputs, "out"), "--json", "out/merge.json"]
    for _ in range(2):
        done = hmr(*line)
        assert done.exit_code == 0 and json.loads((here / "out" / "merge.json").read_text())["command"] == "merge"
    refused(hmr(*COMMANDS["merge"].line(inputs, "out")), "merge.json")


def test_every_command_that_writes_can_overwrite() -> None:
    """And names what it reads and what it writes by options that are known to be such."""
    words = {
        "attention_bias", "baseline", "batch_sizes", "cache_dtype", "clips", "device", "dtype", "filters", "format",
        "grid", "images", "mask_value", "merge_rule", "method", "note", "objective", "on", "only", "preset", "protocol",
        "runtime", "stage", "stride", "strides", "target", "token_metric", "token_schedule", "tokens", "weights",
    }  # fmt: skip
    parts = {
        f"starter {each.name or each.callback.__name__}": each.callback for each in starter.app.registered_commands
    }
    for name, command in {**main.COMMANDS, **parts}.items():
        options = inspect.signature(command, eval_str=True).parameters
        assert not set(options) & set(OUTPUT_OPTIONS) or "overwrite" in options, name
        for option, parameter in options.items():
            kind = next(iter(get_args(parameter.annotation)), parameter.annotation)  # of Annotated
            if {str, Path} & {kind, *get_args(kind), *(part for each in get_args(kind) for part in get_args(each))}:
                known = option in INPUT_OPTIONS or option in OUTPUT_OPTIONS or option in words
                assert known, f"{name}: is {option} an input, an output, or a word?"


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tokens": lambda c: c["tokens"].update(keep=130),
    "crop": lambda c: c["crop"].update(mean=[0.5, 0.5, 0.5]),
    "family": lambda c: c.update(family="camerahmr"),
    "groups": lambda c: c.update(groups=[[0, 1], [2], [3]]),
    "merge_rule": lambda c: c.update(merge_rule="mean"),
    "body": lambda c: c["body"].update(joints=22),
    "network": lambda c: c["network"].update(num_heads=4),
    "provenance": lambda c: c["provenance"].update(command="mine"),
    "seal": lambda c: c.pop("seal"),
    "files": lambda c: c["files"].pop("README.md"),
}


@pytest.mark.parametrize("field", EDITS)
def test_an_edited_config_is_refused(field: str, inputs: Path, here: Path, idle: None) -> None:
    shutil.copytree(inputs / "fast", here / "fast")
    config = json.loads((here / "fast" / "config.json").read_text())
    EDITS[field](config)
    (here / "fast" / "config.json").write_text(json_text(config))
    line = ["eval", "fast", "--data", inputs / "crops.npz", "--body", inputs / "body.npz", "--masks", "none"]
    assert "config.json" in refused(hmr(*line), "was edited", "seal: it is missing")
    if field in ("provenance", "seal", "files"):
        return
    # Not even where whoever edited it knew how to seal it: what it says is compared with what the files are.
    (here / "fast" / "config.json").write_text(json_text(sealed_json(config, "model")))
    assert field in ("network",) or "config.json" in refused(hmr(*line), field, "groups")


def test_a_plan_that_disagrees_is_refused(inputs: Path, here: Path) -> None:
    for change in ({"tokens": None}, {"groups": ((0, 1), (2,), (3,))}, {"merge_rule": "mean"}):
        shutil.rmtree(here / "fast", ignore_errors=True)
        shutil.copytree(inputs / "fast", here / "fast")
        (here / "fast" / "plan.yaml").unlink()
        Plan.read(inputs / "fast" / "plan.yaml").model_copy(update=change).write(here / "fast" / "plan.yaml")
        with pytest.raises(UserError, match="plan.yaml: the file was"):
            read_model_folder(here / "fast")
        config = json.loads((here / "fast" / "config.json").read_text())
        config[FILES]["plan.yaml"] = reference(here / "fast" / "plan.yaml")
        (here / "fast" / "config.json").write_text(json_text(sealed_json(config, "model")))
        with pytest.raises(UserError, match=f"config.json: {next(iter(change))}: is not what plan.yaml says"):
            read_model_folder(here / "fast")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/dev/zero", "a/b", "..", "c:\\x", ""])
def test_names_in_a_config_are_no_paths(name: str, inputs: Path, here: Path) -> None:
    for sealed in (True, False):
        shutil.rmtree(here / "fast", ignore_errors=True)
        shutil.copytree(inputs / "fast", here / "fast")
        config = json.loads((here / "fast" / "config.json").read_text())
        config[FILES][name] = {"bytes": 1, "sha256": "0" * 64}
        if sealed:
            config = sealed_json(config, "model")
        else:
            config = {**{key: value for key, value in config.items() if key != "seal"}, "schema": 1}
        (here / "fast" / "config.json").write_text(json_text(config))
        with pytest.raises(UserError, match="expected the name of a file in the folder, without a path"):
            read_model_folder(here / "fast")


def test_models_of_schema_1_are_read(inputs: Path, here: Path) -> None:
    shutil.copytree(inputs / "fast", here / "fast")
    config = json.loads((here / "fast" / "config.json").read_text())
    del config["seal"], config[FILES]["README.md"]
    (here / "fast" / "config.json").write_text(json_text({**config, "schema": 1}))
    assert read_model_folder(here / "fast").sha256 == read_model_folder(inputs / "fast").sha256
    (here / "fast" / "README.md").write_text("what I know of this model")
    read_model_folder(here / "fast")


class TestCases:
    """Those of tests/cases/README.md, as they were found."""

    @pytest.fixture
    def folder(self, cases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        shutil.copytree(cases("outputs"), tmp_path / "outputs", symlinks=True, ignore=lambda *_: ["pipe.json"])
        os.mkfifo(tmp_path / "outputs" / "pipe.json")
        monkeypatch.chdir(tmp_path / "outputs")
        starter = hc.load("starter").reference
        groups = [[layer] for layer in range(starter.layers - 2)] + [[starter.layers - 2, starter.layers - 1]]
        Plan.from_dict({"checkpoint": starter.model_dump(), "groups": groups}).write("plan.yaml")
        return tmp_path / "outputs"

    @pytest.mark.parametrize(
        ("line", "named"),
        [
            (("predict", "starter", "pictures/a.png", "-o", "thesis"), "thesis"),
            (("predict", "starter", "pictures/a.png", "-o", "earlier_run"), "earlier_run"),
            (("predict", "starter", "pictures", "-o", "pictures"), "is an input"),
            (("predict", "starter", "pictures", "-o", "pictures", "--overwrite"), "is an input"),
            (("predict", "starter", "pictures/a.png", "-o", "pictures"), "pictures"),
            (("run", "run_here/recipe.yaml", "-o", "run_here"), "recipe.yaml"),
            (("run", "run_here/recipe.yaml", "-o", "run_here", "--overwrite"), "recipe.yaml"),
            (("run", "ci", "-o", "run_here"), "run_here"),
            (("convert", "emdb.pkl", "-o", "emdb.npz"), "emdb.json"),
            (("convert", "emdb.pkl", "-o", "emdb.npz", "--json", "emdb.json", "--overwrite"), "written twice"),
        ],
    )  # fmt: skip
    def test_refused(self, folder: Path, line: tuple[str, ...], named: str, idle: None) -> None:
        before = hashes(folder)
        assert named in refused(hmr(*line), named)
        assert hashes(folder) == before and lost(folder) == []

    def test_a1_a8_and_a9(self, folder: Path) -> None:
        merge = ("merge", "starter", "--plan", "plan.yaml", "-o")
        assert hmr(*merge, "fast").exit_code == 0
        Path("notes.txt").rename("fast/notes.txt")
        Path("fast/exports").mkdir()
        before = hashes(folder)
        assert "notes.txt" in refused(hmr(*merge, "fast"), "exports/")
        assert hashes(folder) == before
        assert hmr(*merge, "fast", "--overwrite").exit_code == 0
        assert Path("fast/notes.txt").is_file() and Path("fast/exports").is_dir()
        assert hmr(*merge, "linked_folder").exit_code == 0
        assert Path("linked_folder").is_symlink() and Path("real_folder/config.json").is_file()
        assert hmr("convert", "starter", "-o", "w.safetensors").exit_code == 0
        Path("link.safetensors").symlink_to("w.safetensors")
        before = hashes(folder)
        for given in ("w.safetensors", "link.safetensors"):
            for overwrite in ((), ("--overwrite",)):
                search = ("search", "w.safetensors", "--data", "crops:crops.npz", "-o", given)
                refused(hmr(*search, *overwrite), "is an input")
                refused(hmr("inspect", "w.safetensors", "--json", given, *overwrite), "is an input")
        assert hashes(folder) == before
        refused(hmr("inspect", "starter", "--json", "linked.json"), "linked.json")
        Path("target.json").unlink()
        assert hmr("inspect", "starter", "--json", "linked.json").exit_code == 0
        assert Path("linked.json").is_symlink() and json.loads(Path("target.json").read_text())["command"] == "inspect"

    def test_a7(self, folder: Path) -> None:
        assert hmr("merge", "starter", "--plan", "plan.yaml", "-o", "FAST").exit_code == 0
        data = ["--data", "crops:crops.npz", "--val", "crops:crops.npz", "--images", "4", "--batch-size", "4"]
        done = hmr("finetune", "FAST", "--stage", "heal", *data, "-o", "healed")
        assert done.exit_code == 0, done.output
        assert lost(folder) == [] and Path("healed/config.json").is_file()
        assert [path.name for path in folder.glob("healed*")] and not list(folder.glob("*.hmrcompress-*"))


def test_what_is_in_the_way_of_a_training_is_told_before(inputs: Path, here: Path, idle: None) -> None:
    for name in ("state.pt", "log.jsonl"):
        work = here / "out.hmrcompress-training"
        work.mkdir()
        (work / name).write_text(MINE)
        for overwrite in ((), ("--overwrite",)):
            refused(hmr(*COMMANDS["finetune"].line(inputs, "out"), *overwrite), name)
        assert (work / name).read_text() == MINE
        shutil.rmtree(work)


def test_a_full_disk_ends_training_in_one_sentence(inputs: Path, here: Path) -> None:
    """As on a file system of 3 MB, where torch raises a RuntimeError: no file may be longer than 20 kB."""
    said, write = os.pipe()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # the threads of this process are not in the fork, which would wait for them
        sys.stderr = os.fdopen(write, "w", buffering=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            app([str(part) for part in COMMANDS["finetune"].line(inputs, "out")])
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        finally:
            os._exit(99)
    os.close(write)
    with os.fdopen(said) as file:
        text = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2, text
    assert text.count("\n") == 1 and "no room" in text
    assert not (here / "out").exists() and not list(here.rglob("*.part"))


def test_the_shipped_model_is_whole() -> None:
    """Its manifest holds: what a release changes has to be sealed anew."""
    assert set(strangers(STARTER_MODEL, KIND)) <= {"README.md"}
