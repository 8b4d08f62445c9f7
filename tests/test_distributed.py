"""Several processes train as one would: rows of a batch, averaged gradients, and two CPU processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hmrcompress.api import finetune
from hmrcompress.errors import UserError
from hmrcompress.io.together import own_device, process_of
from hmrcompress.training.distributed import Team, own_rows

STEPS = 6


def fit(body: Path, out: Path) -> None:
    """A few steps of a decoder on made-up clips, with every loss in the log."""
    from dataclasses import replace

    import numpy as np
    import tiny_decoder

    from hmrcompress.body.files import load_body
    from hmrcompress.decoder.model import TemporalDecoder
    from hmrcompress.decoder.pose import PoseCodec
    from hmrcompress.training import loop
    from hmrcompress.training.decoder_fit import DecoderFit, DecoderSettings
    from hmrcompress.training.features import ClipFeatures

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    def rows(*shape: int) -> np.ndarray:
        return rng.normal(size=(30, *shape)).astype(np.float32)

    clips = [
        ClipFeatures(
            clip, np.arange(30), rows(32).astype(np.float16), rows(24, 6), rows(10), rows(24, 6), rows(10), rows(3)
        )
        for clip in range(2)
    ]
    config = replace(tiny_decoder.CONFIG, denoiser_dropout=0.0)
    codec = PoseCodec(load_body(body))
    task = DecoderFit(TemporalDecoder(config), codec, clips, clips[:1], DecoderSettings(batch_size=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_STEPS", 1)
        loop.train(task, loop.LoopSettings(STEPS, rate=1e-2, validations=1), out)


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert process_of() == (0, 1) and own_rows(32) == slice(0, 32) and own_device("auto") == "auto"
    parameter = nn.Parameter(torch.ones(2))
    team = Team(torch.device("cpu"))
    team.average_gradients([parameter])
    assert team.leads and parameter.grad is None and team.agreed(0.3) == 0.3
    assert team.means([torch.tensor(2.0), torch.tensor(3.0)]) == [2.0, 3.0]


def test_gradients_and_figures_are_means_over_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process and another one, whose numbers are 3, 5 and 7; a gradient that is missing counts as zero."""
    other = torch.tensor([3.0, 5.0, 7.0])
    team = Team(torch.device("cpu"))
    team.count = 2
    monkeypatch.setattr("torch.distributed.all_reduce", lambda values: values.add_(other[: len(values)]))
    here, missing = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    here.grad = torch.tensor([1.0, -1.0])
    team.average_gradients([here, missing])
    assert here.grad.tolist() == [2.0, 2.0] and missing.grad is not None and missing.grad.tolist() == [3.5]
    values = [torch.tensor(1.0), torch.tensor(2.0)]
    assert team.means(values) == [2.0, 3.5] and [float(value) for value in values] == [1.0, 2.0]


def test_rows_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    rows = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        rows += list(range(32))[own_rows(32)]
    assert rows == list(range(32))
    with pytest.raises(UserError, match="a batch of 30 cannot be shared by 4 processes"):
        own_rows(30)


def losses(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["losses"] for record in records if "losses" in record]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tiny_body_file: Path, tmp_path: Path) -> None:
    """The same global batch of 8: one process with 8 rows, two with 4 each over gloo."""
    fit(tiny_body_file, tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(
        [*launch, str(tiny_body_file), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == STEPS
    for single, double in zip(one, two, strict=True):
        assert double == pytest.approx(single, rel=2e-4)
    assert abs(one[0]["loss"] - one[-1]["loss"]) > 1e-2, "something was learned meanwhile"
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["parameters"] for name in ("one", "two")]
    assert all(torch.allclose(states[0][name], states[1][name], atol=5e-3) for name in states[0])


if __name__ == "__main__":
    fit(*map(Path, sys.argv[1:]))


@pytest.mark.parametrize("stage", [finetune.heal, finetune.fit_probe])
def test_what_trains_in_one_process_is_refused_in_several(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would do all of the work, and write it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="trains in one process, and there are 2"):
        stage("starter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
