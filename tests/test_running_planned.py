"""A model runs as its plan says, in predict, eval and bench, unless flags say otherwise; and the command says so."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import hmrcompress as hc
from hmrcompress.api import running as module
from hmrcompress.api.opening import load, open_masks
from hmrcompress.api.running import planned_buckets, running
from hmrcompress.errors import Notice, UserError
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.files.folder import read_model_folder
from hmrcompress.plan import Plan, RunSettings
from hmrcompress.timing import memory
from hmrcompress.timing.int8_kernels import Int8Kernels
from hmrcompress_cli.main import app

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def quick_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 bits are taken for fast, whatever this processor makes of them (`test_int8_kernels.py`)."""
    found = Int8Kernels({"plain": 2.0, "int8": 1.0}, {})
    monkeypatch.setattr(module, "int8_kernels", lambda *sizes: found)


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(done: Result) -> str:
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network without its layer 1, which is to run on the fast path in bfloat16, its layer 3 in int8."""
    folder = tmp_path_factory.mktemp("planned")
    run: dict[str, Any] = {"dtype": "bfloat16", "int8": [3], "stride": 2, "runtime": "fast", "buckets": [90, 150]}
    plan = Plan.from_dict({"schema": 2, "groups": [[0], [1], [2], [3]], "removed": [{"layer": 1}], "run": run})
    plan.write(folder / "plan.yaml")
    assert hmr("merge", tiny_model, "--plan", folder / "plan.yaml", "-o", folder / "m").exit_code == 0
    return folder / "m"


def test_the_folder_says_how_it_runs(made: Path) -> None:
    config = read_model_folder(made).config
    assert config.run == RunSettings(dtype="bfloat16", int8=(3,), stride=2, runtime="fast", buckets=(90, 150))
    assert (
        "| runs, if nobody says otherwise | runtime fast, bfloat16, layers 3 in int8"
        in (made / "README.md").read_text()
    )


def test_an_exported_network_has_no_tokens_to_choose_from(made: Path) -> None:
    model = load(made)
    with pytest.warns(Notice, match="90, 150 tokens to choose from"):
        assert planned_buckets(model) == (90, 150)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planned_buckets(replace(model, exported=nn.Identity())) is None


def test_what_is_not_asked_for_is_as_planned(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = load(made), open_masks("data")
    monkeypatch.setattr(module, "fast_dtype", lambda device: torch.bfloat16)
    with pytest.warns(
        Notice, match="on the fast path, 1 layers in int8, in bfloat16, with 90, 150 tokens to choose from"
    ):
        found = running(model, CPU, masks=masks)
    assert found.path == RunPath(fast=True, int8=(2,)), "layer 3 is the third that is left"
    assert (found.dtype, found.buckets, found.stride) == (torch.bfloat16, (90, 150), 2)
    with pytest.warns(Notice):
        other = running(model, CPU, dtype=torch.float32, buckets=(64,), stride=1, masks=masks)
    assert other.path == RunPath(fast=True, int8=()) and other.dtype == torch.float32
    assert (other.buckets, other.stride) == ((64,), 1)
    with pytest.warns(Notice):
        plain = running(model, CPU, path=RunPath(), masks=open_masks("none"), clips=False)
    assert (plain.path, plain.buckets, plain.stride) == (RunPath(), None, 1)
    with pytest.warns(Notice):
        assert running(model, CUDA, masks=masks).path.int8 == (), "8 bits are for CPUs"
    monkeypatch.setattr(module, "fast_dtype", lambda device: torch.float32)
    with pytest.warns(Notice, match="in float32, as bfloat16 is emulated here"):
        assert running(model, CPU).dtype == torch.float32


def test_nothing_is_said_where_all_was_asked_for_or_nothing_planned(
    made: Path, tiny_model: Path, recwarn: pytest.WarningsRecorder
) -> None:
    asked = running(load(made), CPU, dtype=torch.float16, path=RunPath(), buckets=(64,), stride=3)
    assert (asked.dtype, asked.path, asked.stride) == (torch.float16, RunPath(), 3)
    free = running(load(tiny_model), CPU)
    assert free == module.Running(torch.float32, RunPath(), None, 1) and not recwarn.list


def test_eval_runs_as_planned(made: Path, tiny_crops_file: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    line = ("eval", made, "--data", tiny_crops_file, "--body", tiny_body_file, "--json", tmp_path / "e.json")
    assert "runs as its plan says: on the fast path, 1 layers in int8, in float32" in said(hmr(*line))
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["sequence"]["strides"] == [2] and found["tokens"]["adaptive"]["buckets"]
    flags = ("--dtype", "float32", "--stride", 1, "--set", "eval.fast=false", "--set", "eval.buckets=[90]")
    assert "as its plan says" not in said(hmr(*line, *flags))
    found = json.loads((tmp_path / "e.json").read_text())
    assert "sequence" not in found or found["sequence"]["strides"] == [1]


def test_predict_runs_as_planned(made: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (64, 96), (90, 90 + number, 90)).save(tmp_path / "in" / f"{number}.png")
    line = (
        "predict",
        made,
        tmp_path / "in",
        "--body",
        tiny_body_file,
        "--no-overlay",
        "--no-glb",
        "-o",
        tmp_path / "o",
    )
    text, emulated = said(hmr(*line, "--fps", 30)), "in float32, as bfloat16 is emulated here"
    choice = "with 90, 150 tokens to choose from"  # masks come from the packaged segmenter
    assert f"on the fast path, 1 layers in int8, {emulated}, {choice}, with a stride of 2" in text
    assert choice not in said(hmr(*line, "--fps", 30, "--masks", "none"))
    assert "the network ran on 2 crops" in text
    assert "the network ran on 3 crops" in said(hmr(*line, "--fps", 30, "--stride", 1))
    assert "with a stride" not in said(hmr(*line)), "pictures have nothing in between"


def test_frame_by_frame_runs_as_planned(made: Path, tiny_body_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same rules as `predict`, but for the stride: nothing is looked at ahead."""
    with pytest.warns(Notice, match="on the fast path, 1 layers in int8.* with 90, 150 tokens to choose from$"):
        hc.Predictor(str(made), body=tiny_body_file, device="cpu")
    monkeypatch.setattr(module, "int8_kernels", lambda *sizes: Int8Kernels({"plain": 1.0, "int8": 2.0}, {}))
    with pytest.raises(UserError, match="in 8 bits take 2.0 times the time"):
        hc.Predictor(str(made), body=tiny_body_file, device="cpu", path=RunPath(fast=True, int8=True))


def test_bench_runs_as_planned(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first network's memory is measured in a process of its own, that of the others here: starting takes 3 s."""
    start, started = memory.subprocess.run, []

    def once(command: list[str], **given: Any) -> Any:
        if command[1:] == ["-m", memory.__name__]:
            started.append(command)
            if len(started) > 1:
                return SimpleNamespace(stdout=json.dumps(asdict(memory.measure(json.loads(given["input"])))))
        return start(command, **given)

    monkeypatch.setattr(memory.subprocess, "run", once)
    line = ("bench", made, "--batch-sizes", 1, "--rounds", 1, "--no-memory", "--json", tmp_path / "b.json")
    adaptive = [each for each in line if each != "--no-memory"]
    assert "with 90, 150 tokens to choose from" in said(hmr(*adaptive))
    assert set(json.loads((tmp_path / "b.json").read_text())["adaptive"]["batch_sizes"]) == {"1"}
    text = said(hmr(*line))
    assert "tokens to choose from" not in text, "memory is not measured of adaptive tokens"
    said(hmr(*adaptive, "--set", "bench.buckets=null"))
    assert "on the fast path, 1 layers in int8" in text
    assert json.loads((tmp_path / "b.json").read_text())["bench"]["fast"] is True
    said(hmr(*line, "--set", "bench.buckets=null", "--dtype", "float32", "--set", "bench.fast=false"))
    assert json.loads((tmp_path / "b.json").read_text())["bench"]["fast"] is False


def test_a_config_that_says_otherwise_is_refused(made: Path, tmp_path: Path) -> None:
    from hmrcompress.io.seals import sealed_json
    from hmrcompress.models.files.folder import KIND

    config = json.loads((made / "config.json").read_text())
    config["run"]["stride"] = 3
    copy = tmp_path / "copy"
    copy.mkdir()
    for each in made.iterdir():
        (copy / each.name).write_bytes(each.read_bytes())
    (copy / "config.json").write_text(json.dumps(sealed_json(config, KIND.name)))
    with pytest.raises(UserError, match=r"run: is not what plan\.yaml says"):
        read_model_folder(copy)
