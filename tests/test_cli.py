"""The command line: cheap to start, and every kind of bad input ends in one sentence, exit 2, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import hmrcompress as hc
from hmrcompress.data.crops import CropSet
from hmrcompress.errors import Notice, tell
from hmrcompress.models.files.convert import convert_checkpoint
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.plan import Plan
from hmrcompress_cli.common import Printer, SafeGroup, cell
from hmrcompress_cli.main import app

COMMANDS = (
    "inspect", "search", "cka", "merge", "eval", "export", "convert", "run", "bench", "finetune", "ablate", "report",
    "starter",
)  # fmt: skip
HEAVY = ("torch", "numpy", "numba", "pydantic", "onnx", "matplotlib")


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_imports_nothing_heavy() -> None:
    """The time itself depends on the machine (0.06 s where this was written); what costs time does not."""
    code = f"""
import sys
from hmrcompress_cli.main import app
try:
    app(["--help"])
except SystemExit as end:
    assert end.code == 0, end.code
print(*(name for name in {HEAVY} if name in sys.modules), "were imported")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "were imported"
    assert all(command in done.stdout for command in COMMANDS)


def test_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, hmrcompress; sys.exit(any(name in sys.modules for name in {HEAVY}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_functions_are_there() -> None:
    import hmrcompress as hc

    assert {"load", "search", "merge", "evaluate", "export_onnx", "compress", "pick"} <= set(dir(hc))
    assert all(getattr(hc, name).__name__ == name for name in hc.HOMES)
    assert hc.load is hc.load and hc.evaluate is hc.evaluate and hc.export_onnx is hc.export_onnx
    with pytest.raises(AttributeError, match="bake"):
        _ = hc.bake


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command: str) -> None:
    done = hmr(command, "--help")
    assert done.exit_code == 0 and "Usage" in done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "starter"])
def test_every_command_has_the_common_options(command: str) -> None:
    text = hmr(command, "--help").stdout
    for option in ("--json", "--seed", "--quiet", "--debug"):
        assert option in text, option


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (1.25, "1.2"), (7, "7"), ("x", "x")])
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text


def test_tables_are_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    columns = [f"a long heading {number}" for number in range(12)]
    Printer().table("title", columns, [[f"value {number}" for number in range(12)]])
    head, row = (line for line in capsys.readouterr().out.splitlines() if "value" in line or "heading" in line)
    assert all(name in head for name in columns) and "value 11" in row
    Printer(quiet=True).table("title", columns, [])
    assert capsys.readouterr().out == ""


def test_notices_are_lines_and_warnings() -> None:
    talks = typer.Typer(cls=SafeGroup)

    @talks.command()
    def again() -> None:
        for _ in range(2):
            tell("was made anew", "a file")
        warnings.warn("something else", DeprecationWarning, stacklevel=1)

    talks.command("other")(lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        done = CliRunner().invoke(talks, ["again"])
    assert done.exit_code == 0 and done.stderr == "hmrcompress: a file: was made anew\n" and not done.stdout
    with pytest.warns(Notice, match="^was made anew$") as caught:
        tell("was made anew")
    assert caught[0].filename == __file__


class Bomb:
    """Unpickling this would make the folder `exploded`."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("exploded",)


class World:
    """Good and bad files of every kind, and the command lines that meet them."""

    def __init__(self, folder: Path, model: Path, body: Path, crops: Path) -> None:
        self.folder, self.model, self.body, self.crops = folder, model, body, crops
        checkpoint = load_checkpoint(model)
        self.checkpoint = convert_checkpoint(checkpoint, folder / "tiny.safetensors").weights
        values: dict[str, Any] = {
            "schema": 1,
            "checkpoint": load_checkpoint(self.checkpoint).reference.model_dump(),
            "groups": [[0], [1, 2], [3]],
            "tokens": {"keep": 120, "per_layer": 40},
        }
        self.plan = folder / "plan.yaml"
        Plan.from_dict(values).write(self.plan)
        self.merged = folder / "merged"
        hc.merge(self.checkpoint, self.plan, self.merged)
        self._damage()
        self._plans(values)

    def _damage(self) -> None:
        data = self.checkpoint.read_bytes()
        self.truncated = self.folder / "truncated.safetensors"
        self.truncated.write_bytes(data[: len(data) // 2])
        self.torn = self.folder / "torn"
        self.torn.mkdir()
        for file in self.merged.iterdir():
            whole = file.read_bytes()
            (self.torn / file.name).write_bytes(whole[:-100] if file.suffix == ".safetensors" else whole)
        arrays: dict[str, Any] = tiny.crop_arrays()
        arrays["images"] = (arrays["images"] / 255).astype(np.float32)
        arrays["images"][4, 100, 50, 0] = np.nan
        self.nan = self.folder / "nan.npz"
        np.savez(self.nan, meta=json.dumps(tiny.crop_meta()), **arrays)
        self.masks = self.folder / "masks"
        self.masks.mkdir()
        crops = CropSet.open(self.crops)
        for clip, frame in zip(crops.clip, crops.frame, strict=True):
            Image.new("L", (64, 64)).save(self.masks / f"{clip:04d}_{frame:06d}.png")
        self.bomb = self.folder / "bomb.ckpt"
        with zipfile.ZipFile(self.bomb, "w") as archive:
            archive.writestr("bomb/data.pkl", pickle.dumps({"state_dict": Bomb()}, protocol=2))
            archive.writestr("bomb/version", "3")
            archive.writestr("bomb/byteorder", "little")
        self.old_bomb = self.folder / "old.ckpt"
        self.old_bomb.write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol=2))
        self.body_bomb = self.folder / "body.pkl"
        self.body_bomb.write_bytes(pickle.dumps({"v_template": Bomb()}, protocol=2))

    def _plans(self, values: dict[str, Any]) -> None:
        other = {**values, "checkpoint": {**values["checkpoint"], "sha256": "0" * 64}}
        Plan.from_dict(other).write(self.folder / "other.yaml")
        for name, changed in {
            "gap.yaml": {**values, "groups": [[0], [2, 3]]},
            "unknown.yaml": {**values, "colour": "blue"},
            "layers.yaml": {
                **values,
                "groups": [[0], [1]],
                "checkpoint": {**values["checkpoint"], "layers": 2},
            },
            "tokens.yaml": {**values, "tokens": {"keep": 1, "per_layer": 1}},
        }.items():
            (self.folder / name).write_text(json.dumps(changed))
        (self.folder / "notyaml.yaml").write_text("groups: [[0], [1")

    def command(self, name: str, **instead: object) -> list[object]:
        """A command line that works, with some of model, data, plan, masks replaced by others."""
        model = instead.get("model", self.merged if name in ("eval", "export") else self.checkpoint)
        data = [
            "--data", instead.get("data", self.crops),
            "--body", instead.get("body", self.body),
        ]  # fmt: skip
        masks = ["--masks", instead.get("masks", "data")]
        return {
            "inspect": ["inspect", model],
            "convert": ["convert", model, "-o", "out.safetensors"],
            "merge": ["merge", model, "--plan", instead.get("plan", self.plan), "-o", "out"],
            "search": ["search", model, *data, *masks, "--with-tokens", "--keep-tokens", 150, "-o", "plan.yaml"],
            "eval": ["eval", model, *data, *masks, "--json", "figures.json"],
            "cka": ["cka", model, *data, "-o", "cka.png"],
            "export": ["export", model, *data, *masks, "-o", "out.onnx"],
            "run": ["run", self._recipe(model, data, masks), "-o", "run"],
        }[name]

    def _recipe(self, model: object, data: list[object], masks: list[object]) -> Path:
        path = self.folder / "recipe.yaml"
        line = {"model": str(model), "body": str(data[3]), "masks": masks[1], "merge": {}, "eval": {}}
        search = {"frames_per_clip": 2, "with_tokens": True, "tokens": {"keep": 150, "per_layer": 42}}
        files = {"search": str(data[1]), "eval": str(data[1])}
        path.write_text(json.dumps({**line, "search": search, "data": files}))
        return path


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_body_file: Path, tiny_crops_file: Path
) -> World:
    return World(tmp_path_factory.mktemp("world"), tiny_model, tiny_body_file, tiny_crops_file)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(command: list[object], here: Path) -> str:
    """Runs a command that has to refuse its input; gives its one sentence."""
    done = hmr(*command)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == "" and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("hmrcompress: ") and not line.endswith(": ")
    assert list(here.rglob("*")) == [], "partial output was left behind"
    return line


MODEL_COMMANDS = ("inspect", "convert", "merge", "search", "eval", "cka", "export", "run")
DATA_COMMANDS = ("search", "eval", "cka", "export", "run")
TOKEN_COMMANDS = ("search", "eval", "export", "run")


@pytest.mark.parametrize("name", ["inspect", "convert", "merge", "search", "eval", "cka"])
def test_the_good_commands_work(world: World, here: Path, name: str) -> None:
    """Without this the refusals below could have another reason."""
    done = hmr(*world.command(name))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_missing_file(world: World, here: Path, name: str) -> None:
    assert "missing.ckpt: no such file" in refused(world.command(name, model="missing.ckpt"), here)


@pytest.mark.parametrize("name", DATA_COMMANDS)
def test_missing_data_and_body(world: World, here: Path, name: str) -> None:
    assert "nothing.npz: no such file" in refused(world.command(name, data="nothing.npz"), here)
    assert "nobody.npz: no such file" in refused(world.command(name, body="nobody.npz"), here)


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_truncated_safetensors(world: World, here: Path, name: str) -> None:
    line = refused(world.command(name, model=world.truncated), here)
    assert "truncated.safetensors: " in line and "truncated" in line.partition(": ")[2]
    line = refused(world.command(name, model=world.torn), here)
    assert "model.safetensors" in line and "truncated" in line


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("absent.yaml", "no such plan"),
        ("notyaml.yaml", "not valid YAML"),
        ("gap.yaml", "groups: layer 2 stands where layer 1 belongs"),
        ("unknown.yaml", "colour: there is no such field"),
        ("layers.yaml", "checkpoint.layers: the plan is for 2 layers, the model has 4"),
        ("other.yaml", "checkpoint.sha256: the plan was made for 000000000000"),
        ("tokens.yaml", "tokens.keep"),
    ],
)
def test_wrong_plan(world: World, here: Path, plan: str, says: str) -> None:
    assert says in refused(world.command("merge", plan=world.folder / plan), here)


@pytest.mark.parametrize("name", TOKEN_COMMANDS)
def test_mask_of_another_size(world: World, here: Path, name: str) -> None:
    line = refused(world.command(name, masks=f"files:{world.masks}"), here)
    assert "the mask is 64x64 pixels, expected 192x256" in line


@pytest.mark.parametrize("name", DATA_COMMANDS)
def test_nan_in_an_image(world: World, here: Path, name: str) -> None:
    line = refused(world.command(name, data=world.nan), here)
    assert "nan.npz: images of tiny, clip 0, frame 4 hold NaN" in line


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_a_pickle_with_code_is_not_executed(world: World, here: Path, name: str) -> None:
    for file in (world.bomb, world.old_bomb):
        line = refused(world.command(name, model=file), here)
        assert file.name in line and "mkdir" in line


def test_a_body_with_code_is_not_executed(world: World, here: Path) -> None:
    line = refused(["convert", world.body_bomb, "-o", "body.npz"], here)
    assert "body.pkl" in line and "mkdir" in line
    refused(world.command("eval", body=world.body_bomb), here)


def test_debug_shows_where(world: World, here: Path) -> None:
    done = hmr("inspect", "missing.ckpt", "--debug")
    assert done.exit_code == 1 and type(done.exception).__name__ == "UserError"


def test_an_interrupt_is_no_traceback(world: World, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hmrcompress.api.opening.load", interrupted)
    done = hmr(*world.command("merge"))
    assert done.exit_code == 130 and done.stderr == "hmrcompress: interrupted\n"


def test_the_installed_command(here: Path) -> None:
    """As a process of its own, through the console script."""
    script = Path(sys.executable).with_name("hmrcompress")
    done = subprocess.run([script, "eval", "missing.ckpt"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "hmrcompress: missing.ckpt: no such file\n"
