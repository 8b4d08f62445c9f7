"""Interleaved timing against a clock that the tests turn themselves."""

from __future__ import annotations

import pytest
import torch

from hmrcompress.errors import UserError
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.timing.rounds import Timing, time_interleaved


def batch_of(frames: int) -> FrameBatch:
    eye = torch.eye(3).expand(frames, 24, 3, 3)
    params = BodyParams(eye[:, :1], eye[:, 1:], torch.zeros(frames, 10))
    order = torch.arange(frames)
    return FrameBatch(torch.zeros(frames, 3, 256, 192), None, params, order * 0, order)


class Machine:
    """A machine that gets slower with every call, and remembers who ran."""

    def __init__(self, drift: float) -> None:
        self.now, self.speed, self.drift = 0.0, 1.0, drift
        self.calls: list[str] = []

    def network(self, name: str, seconds: float):  # noqa: ANN202
        def predict(batch: FrameBatch) -> None:
            assert torch.is_inference_mode_enabled()
            self.calls.append(name)
            self.now += seconds * self.speed

        return predict

    def clock(self) -> float:
        return self.now

    def round_ended(self, what: str, done: int, total: int) -> None:
        self.speed *= self.drift


def test_turns_are_taken_and_warmup_is_not_counted() -> None:
    machine = Machine(drift=1.0)
    candidates = {"slow": machine.network("slow", 0.5), "fast": machine.network("fast", 0.2)}
    timing = time_interleaved(candidates, batch_of(4), rounds=3, warmup=2, clock=machine.clock)
    assert machine.calls == ["slow", "fast"] * 5
    assert timing.seconds["slow"] == pytest.approx((0.5,) * 3) and timing.frames == 4
    assert timing.fps("fast") == pytest.approx(20.0)
    assert timing.speedup("fast", over="slow") == pytest.approx(2.5)
    assert timing.speedup("slow", over="fast") == pytest.approx(0.4)


def test_drift_of_the_machine_leaves_the_ratio_alone() -> None:
    machine = Machine(drift=1.7)
    candidates = {"slow": machine.network("slow", 0.5), "fast": machine.network("fast", 0.2)}
    timing = time_interleaved(
        candidates, batch_of(1), rounds=6, warmup=1, clock=machine.clock, progress=machine.round_ended
    )
    assert timing.seconds["fast"][-1] > 10 * timing.seconds["fast"][0]
    assert timing.speedup("fast", over="slow") == pytest.approx(2.5)


def test_medians_shrug_off_an_outlier() -> None:
    timing = Timing({"a": (1.0, 1.0, 90.0), "b": (0.5, 0.5, 0.5)}, frames=2)
    assert timing.fps("a") == 2.0 and timing.speedup("b", over="a") == 2.0


def test_quartiles_by_hand() -> None:
    timing = Timing({"a": (1.0, 2.0, 3.0, 4.0, 5.0), "b": (0.5, 0.5, 1.0, 1.0, 1.0)}, frames=6)
    assert timing.fps_quartiles("a") == (6 / 4, 6 / 2)
    assert timing.speedup_quartiles("b", over="a") == (3.0, 4.0)  # of 2, 4, 3, 4, 5
    assert timing.speedup("b", over="a") == 4.0


@pytest.mark.parametrize(("limit", "rounds"), [(0.0, 3), (30.0, 3), (36.0, 4), (1e9, 9), (None, 9)])
def test_no_round_begins_after_the_time_limit_but_three_are_run(limit: float | None, rounds: int) -> None:
    machine = Machine(drift=1.0)
    candidates = {"a": machine.network("a", 4.0), "b": machine.network("b", 3.0)}
    timing = time_interleaved(
        candidates, batch_of(2), rounds=9, warmup=2, max_seconds=limit, clock=machine.clock, what="batch 2"
    )
    assert len(timing.seconds["a"]) == len(timing.seconds["b"]) == rounds
    assert machine.calls == ["a", "b"] * (2 + rounds)


@pytest.mark.parametrize(("names", "rounds", "frames"), [((), 3, 1), (("a",), 0, 1), (("a",), 3, 0)])
def test_nothing_to_time(names: tuple[str, ...], rounds: int, frames: int) -> None:
    machine = Machine(1.0)
    with pytest.raises(UserError):
        time_interleaved({name: machine.network(name, 1.0) for name in names}, batch_of(frames), rounds=rounds)
