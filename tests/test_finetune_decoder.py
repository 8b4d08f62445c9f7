"""`finetune --stage vae|decoder|all` from end to end: interrupted, killed, from the library, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_decoder
import torch
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress.api import finetune_decoder as decoder_tuning
from hmrcompress.data.crops import write_crops
from hmrcompress.decoder.config import PRESETS
from hmrcompress.decoder.files import build_decoder
from hmrcompress.errors import UserError
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.training import loop
from hmrcompress.training.book import steps_done
from hmrcompress.training.finetune import work_folder
from hmrcompress.training.finetune_decoder import Fitted
from hmrcompress.training.loop import LoopSettings
from hmrcompress_cli.main import app


@pytest.fixture(scope="module")
def long_crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "crops.npz"
    write_crops(path, tiny.crop_arrays(clips=3, frames=8), tiny.crop_meta())
    return path


def fitted(
    model: Path, out: Path, crops: Path, body: Path, home: Path, stage: str = "all", steps: int = 12, **more: Any
) -> Fitted:
    given: dict[str, Any] = {"config": tiny_decoder.CONFIG, "batch_size": 4, "workers": 0, "device": "cpu"} | more
    return hc.fit_decoder(model, out, crops, stage=stage, steps=steps, body=body, home=home, **given)


def test_stages_and_resumption(
    tiny_model: Path, long_crops: Path, tiny_body_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VAE, then decoder, each interrupted twice, end with the bytes of `all` in one go."""
    home = tmp_path / "home"
    tiny_decoder.fill_bank(home, monkeypatch)
    world = long_crops, tiny_body_file, home
    done = fitted(tiny_model, tmp_path / "all", *world)
    assert done.folder is not None and set(done.runs) == {"vae", "decoder"} and not (tmp_path / "all.training").exists()
    whole = load_checkpoint(tmp_path / "all")
    assert whole.decoder is not None and whole.source["decoder"]["clips"] == 2
    assert whole.source["vae"]["mpjpe_mm"] == done.runs["vae"].validations[-1]["mpjpe_mm"]
    build_decoder(whole.decoder.config, whole.decoder.tensors)

    with pytest.raises(UserError, match="holds no motion VAE"):
        fitted(tiny_model, tmp_path / "x", *world, stage="decoder")
    stops = iter([3, 7, None, 5, 9, None])
    for stage, model, out in (("vae", tiny_model, "vae"), ("decoder", tmp_path / "vae", "parts")):
        while (stop := next(stops)) is not None:
            monkeypatch.setattr(loop._Loop, "_out_of_time", lambda self, stop=stop: self.step == stop)
            cut = fitted(model, tmp_path / out, *world, stage=stage)
            assert cut.folder is None and cut.runs[stage].steps == stop
        monkeypatch.setattr(loop._Loop, "_out_of_time", lambda self: False)
        assert fitted(model, tmp_path / out, *world, stage=stage).folder is not None
    alone = load_checkpoint(tmp_path / "vae")
    assert alone.decoder is None and alone.motion_vae is not None and alone.sha256 == whole.sha256
    parts = load_checkpoint(tmp_path / "parts")
    assert parts.decoder is not None and set(parts.decoder.tensors) == set(whole.decoder.tensors)
    for name, tensor in whole.decoder.tensors.items():
        assert torch.equal(tensor, parts.decoder.tensors[name]), name
    with pytest.raises(UserError, match="--vae: the stage all trains one of its own"):
        fitted(tiny_model, tmp_path / "x", *world, vae=tmp_path / "vae")
    given: dict[str, Any] = {"stage": "decoder", "vae": tmp_path / "vae", "objective": "regress", "readout": True}
    other = fitted(tiny_model, tmp_path / "reg", *world, **given)
    made = load_checkpoint(tmp_path / "reg")
    for name in ("vae.pieces", "vae.pose_in.weight", "pose_std"):
        assert torch.equal(made.motion_vae.tensors[name], alone.motion_vae.tensors[name]), name
    assert (
        made.decoder is not None and made.decoder.config["readout"] and "denoiser.blend.mixture" in made.decoder.tensors
    )
    lowest = min(figure["mpjpe_mm"] for figure in other.runs["decoder"].validations)
    assert made.source["decoder"]["mpjpe_mm"] == lowest, "the best validation is kept"
    resumed = tmp_path / "again"
    monkeypatch.setattr(loop._Loop, "_out_of_time", lambda self: self.step == 5)
    assert fitted(tiny_model, resumed, *world, **given).folder is None
    monkeypatch.setattr(loop._Loop, "_out_of_time", lambda self: False)
    fitted(tiny_model, resumed, *world, **given)
    assert (resumed / "decoder.safetensors").read_bytes() == (tmp_path / "reg" / "decoder.safetensors").read_bytes()
    assert other.folder is not None and made.decoder is not None and made.decoder.config["objective"] == "regress"


def test_command(
    tiny_model: Path, long_crops: Path, tiny_body_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_decoder.fill_bank(tmp_path / "home", monkeypatch)
    monkeypatch.setenv("HMRCOMPRESS_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(PRESETS, "starter", tiny_decoder.CONFIG)
    record = tmp_path / "f.json"
    arguments = ["finetune", tiny_model, "--data", f"crops:{long_crops}", "--val", f"crops:{long_crops}", "--body"]
    arguments += [
        tiny_body_file,
        "-o",
        tmp_path / "out",
        "--stage",
        "all",
        "--batch-size",
        4,
        "--set",
        "finetune.steps=3",
    ]
    arguments += ["--set", "finetune.clips=2", "--set", "finetune.decoder=regress", "--json", record, "--device", "cpu"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    lines = done.output.strip().splitlines()
    assert lines[-1] == str(tmp_path / "out") and "reconstructs held-out motions" in lines[-3]
    assert lines[-2].startswith("decoder: MPJPE") and "after 3 steps" in lines[-2]
    figures = json.loads(record.read_text())
    assert figures["decoder"]["after"]["mpjpe_mm"] > 0 and figures["vae"]["steps"] == 3
    assert load_checkpoint(tmp_path / "out").source["decoder"]["validation"] == f"crops:{long_crops}"
    for wrong, message in (
        (["--set", "finetune.preset=huge"], "should be 'starter' or 'paper'"),
        (["--motions", "cmu"], "expected starter or amass:DIR"),
        (["--set", "finetune.decoder=magic"], "should be 'both'"),
    ):
        done = CliRunner().invoke(
            app, ["finetune", str(tiny_model), "--stage", "all", "-o", str(tmp_path / "y"), *wrong]
        )
        assert done.exit_code == 2 and message in done.output and not (tmp_path / "y").exists()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import tiny_decoder, hmrcompress as hc
from hmrcompress.training import finetune_decoder, loop
wrapped = loop.LoopSettings
loop._Loop._step = (lambda step: lambda self, f: (__import__("time").sleep(0.05), step(self, f)))(loop._Loop._step)
import hmrcompress.api.finetune_decoder as d
d.LoopSettings = lambda *a, **k: wrapped(*a, **k, save_seconds=0.1)
model, out, crops, body, home = map(Path, sys.argv[1:])
hc.fit_decoder(model, out, crops, body=body, home=home, steps=28, config=tiny_decoder.CONFIG, batch_size=4, workers=0)
"""


@pytest.mark.slow
def test_sigkill(
    tiny_model: Path, long_crops: Path, tiny_body_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_decoder.fill_bank(tmp_path / "home", monkeypatch)
    paths = [tiny_model, tmp_path / "cut", long_crops, tiny_body_file, tmp_path / "home"]
    command = [sys.executable, "-c", KILLED, *map(str, paths)]
    state = work_folder(tmp_path / "cut") / "decoder" / "state.pt"
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < steps_done(state.parent) < 28
    monkeypatch.setattr(
        decoder_tuning, "LoopSettings", lambda *args, **more: LoopSettings(*args, **more, save_seconds=0.1)
    )
    for out in ("cut", "whole"):
        fitted(tiny_model, tmp_path / out, long_crops, tiny_body_file, tmp_path / "home", steps=28)
    made = [(tmp_path / out / "decoder.safetensors").read_bytes() for out in ("cut", "whole")]
    assert made[0] == made[1]
