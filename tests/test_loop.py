"""The training loop on a problem with a known answer: schedule, moving average, clipping, interruption, resumption."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmrcompress.errors import Notice, UserError
from hmrcompress.io import keys
from hmrcompress.training import loop
from hmrcompress.training.book import LOG_FILE, STATE_FILE, steps_done
from hmrcompress.training.loop import LoopSettings, train
from hmrcompress.training.optimisers import ParameterGroup, rate_share


class Line:
    """Least squares: y = 3 x - 1 with noise drawn by the step."""

    name = "line"

    def __init__(self, fault: str = "") -> None:
        self.weight, self.bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.groups = [ParameterGroup({"weight": self.weight}), ParameterGroup({"bias": self.bias}, rate_factor=0.5)]
        self.identity: dict[str, Any] = {"problem": "line"}
        self.fault = fault
        self.validated: list[float] = []

    def losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(32, generator=torch.Generator().manual_seed(step))
        error = (self.weight * x + self.bias - 3 * x + 1).square().mean()
        if self.fault == "stop" and step == 57:
            raise KeyboardInterrupt
        return (error * math.nan if self.fault == "nan" and step == 3 else error), {"error": error}

    def validate(self) -> dict[str, float]:
        self.validated.append(float(self.weight.detach()))
        return {"distance": float((self.weight.detach() - 3).abs())}


SETTINGS = LoopSettings(steps=200, rate=0.1, clip_norm=10.0, ema=0.9)


def test_it_finds_the_line(tmp_path: Path) -> None:
    task, told = Line(), []
    run = train(task, SETTINGS, tmp_path, report=told.append)
    with torch.no_grad():
        assert abs(float(task.weight) - 3) < 1e-2 and abs(float(task.bias) + 1) < 1e-2
    assert run.finished and run.steps == run.steps_now == 200
    assert run.validations[0] == {"step": 0, "distance": 3.0} and run.validations[-1]["step"] == 200
    assert len(run.validations) == SETTINGS.validations + 1 == len(told)
    assert float(task.weight.detach()) == task.validated[-1], "what is kept is what was measured last"
    records = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert sum("losses" in record for record in records) == 200 // loop.LOG_STEPS
    assert steps_done(tmp_path) == 200 and steps_done(tmp_path / "none") == 0


def test_rate_share() -> None:
    assert rate_share(0.05, 0.1, 0.01) == pytest.approx(0.5)
    assert rate_share(0.1, 0.1, 0.01) == pytest.approx(1.0)
    assert rate_share(0.55, 0.1, 0.01) == pytest.approx(0.505)
    assert rate_share(1.0, 0.1, 0.01) == pytest.approx(0.01)


def test_one_step_is_that_of_adam_and_the_average_follows(tmp_path: Path) -> None:
    """AdamW's first step moves every parameter by its rate, whatever the gradient; the average goes 9/10 of it."""
    task = Line()
    train(task, LoopSettings(steps=1, rate=0.1, warmup=1e-4, rate_end=1.0, ema=0.999), tmp_path)
    assert float(task.weight.detach()) == pytest.approx(0.9 * 0.1, rel=1e-4)
    assert float(task.bias.detach()) == pytest.approx(-0.9 * 0.05, rel=1e-4)


def test_clipping_bounds_the_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(float(torch.stack([g.norm() for g in grads]).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(Line(), LoopSettings(steps=5, rate=0.01, clip_norm=0.25), tmp_path)
    assert seen == pytest.approx([0.25] * 5, rel=1e-4)


def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = Line(), Line()
    undisturbed = train(whole, SETTINGS, tmp_path / "whole")
    monkeypatch.setattr(loop._Loop, "_out_of_time", lambda self: self.step == 83)
    paused = train(cut, SETTINGS, tmp_path / "cut")
    assert not paused.finished and paused.steps == 83
    monkeypatch.setattr(loop._Loop, "_out_of_time", lambda self: False)
    again = Line()
    rest = train(again, SETTINGS, tmp_path / "cut")
    assert rest.finished and rest.steps_now == 117
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)
    assert rest.validations == undisturbed.validations


def test_the_log_of_a_continued_run_keeps_its_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by six seconds whenever it is looked at: steps and minutes of both parts rise."""
    ticks = itertools.count(step=6.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(loop._Loop, "_out_of_time", lambda self: self.step == 83)
    train(Line(), SETTINGS, tmp_path)
    first = (tmp_path / LOG_FILE).read_text()
    monkeypatch.setattr(loop._Loop, "_out_of_time", lambda self: False)
    train(Line(), SETTINGS, tmp_path)
    log = (tmp_path / LOG_FILE).read_text()
    minutes = [json.loads(line)["minutes"] for line in log.splitlines()]
    assert log.startswith(first) and minutes == sorted(set(minutes)) and minutes[0] > 0


def test_a_run_stopped_between_saves_goes_back_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped, again = Line(), Line(fault="stop"), Line()
    train(whole, SETTINGS, tmp_path / "whole")
    saved = loop._Loop._save
    monkeypatch.setattr(loop._Loop, "_save", lambda self: saved(self) if self.step in (40, 200) else None)
    often = LoopSettings(**{**vars(SETTINGS), "save_seconds": 0.0})
    with pytest.raises(KeyboardInterrupt):
        train(stopped, often, tmp_path / "cut")
    assert steps_done(tmp_path / "cut") == 40
    run = train(again, often, tmp_path / "cut")
    assert run.steps_now == 160 and torch.equal(whole.weight, again.weight)
    records = [json.loads(line) for line in (tmp_path / "cut" / LOG_FILE).read_text().splitlines()]
    steps = [record["step"] for record in records]
    assert steps == sorted(steps) and len(run.validations) == 11, "what came after the save is not in the log twice"


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from test_loop import Line, SETTINGS, LoopSettings
from hmrcompress.training.loop import train
class Slow(Line):
    def losses(self, step):
        time.sleep(0.02)
        return super().losses(step)
train(Slow(), LoopSettings(**{**vars(SETTINGS), "save_seconds": 0.1}), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_sigkill(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "cut")], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut" / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < steps_done(tmp_path / "cut") < 200
    whole, again = Line(), Line()
    train(whole, SETTINGS, tmp_path / "whole")
    assert 0 < train(again, SETTINGS, tmp_path / "cut").steps_now < 200
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)


def test_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds it a tenth of a second later."""
    looks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(looks) / 10))
    run = train(Line(), LoopSettings(steps=None, max_minutes=0.5, rate=0.1), tmp_path)
    assert run.finished and 3 < run.steps <= 300
    assert 0.5 <= next(looks) / 600 < 1.0


def test_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="neither a number of steps nor of minutes"):
        train(Line(), LoopSettings(steps=None), tmp_path)
    with pytest.raises(UserError, match="the loss of step 3 or its gradient is not finite"):
        train(Line(fault="nan"), SETTINGS, tmp_path)
    train(Line(), SETTINGS, tmp_path / "done")
    with pytest.raises(UserError, match=r"unfinished run with other settings \(rate\)"):
        train(Line(), LoopSettings(**{**vars(SETTINGS), "rate": 0.2}), tmp_path / "done")
    other = Line()
    other.identity = {"problem": "parabola"}
    with pytest.raises(UserError, match=r"other settings \(problem\)"):
        train(other, SETTINGS, tmp_path / "done")


def test_a_state_that_other_code_wrote_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And told, also where the code is that of a part of the task; a state of an older make is not."""
    task = Line()
    task.identity |= {"stream": {"seed": 1, "code": "a"}}
    train(task, replace(SETTINGS, steps=40), tmp_path)
    task.identity |= {"stream": {"seed": 1, "code": "b"}}
    with pytest.warns(Notice, match="goes on under this one"):
        train(task, replace(SETTINGS, steps=40), tmp_path)
    monkeypatch.setattr(keys, "code_sha256", lambda *names: "another")
    with pytest.warns(Notice, match="goes on under this one"):
        train(task, replace(SETTINGS, steps=40), tmp_path)
    task.identity |= {"stream": {"seed": 2, "code": "b"}}
    with pytest.raises(UserError, match=r"other settings \(stream\)"):
        train(task, replace(SETTINGS, steps=40), tmp_path)
    monkeypatch.setattr(loop, "SCHEMA", 4)
    with pytest.raises(UserError, match="unfinished run of another version .* Finish it with that version"):
        train(task, replace(SETTINGS, steps=40), tmp_path)


def test_the_best_validation_is_kept(tmp_path: Path) -> None:
    """Where a named figure was lowest, also when the run was interrupted after that; not the last one."""

    class Overshoots(Line):
        def validate(self) -> dict[str, float]:
            self.validated.append(float(self.weight.detach()))
            return {"distance": float((self.weight.detach() - 1.5).abs())}

    settings = replace(SETTINGS, keep="distance")
    whole, cut = Overshoots(), Overshoots()
    run = train(whole, settings, tmp_path / "whole")
    distances = [record["distance"] for record in run.validations]
    assert run.kept["distance"] == min(distances) < distances[-1] and 0 < run.kept["step"] < 200
    assert abs(float(whole.weight.detach()) - 1.5) == pytest.approx(min(distances))
    best = run.kept["step"]
    cut.fault = "stop"
    with pytest.raises(KeyboardInterrupt):
        train(cut, replace(settings, save_seconds=0.0), tmp_path / "cut")
    assert best < 57 == steps_done(tmp_path / "cut"), "the interruption came after the best validation"
    cut = Overshoots()
    train(cut, settings, tmp_path / "cut")
    assert torch.equal(cut.weight, whole.weight) and torch.equal(cut.bias, whole.bias)
