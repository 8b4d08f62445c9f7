"""Rates of a table's rows against a clock that the tests turn themselves: one measurement, parts put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_timing import batch_of

from hmrcompress.metrics.pose import Predict
from hmrcompress.timing import row_bench
from hmrcompress.timing.row_bench import TimedRow, time_rows


class Clock:
    """Every run takes its seconds, on a machine that gets slower from round to round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, drift: float = 1.0) -> None:
        self.now, self.speed, self.drift, self.ran = 0.0, 1.0, drift, list[str]()
        network = lambda module, dtype: self.run(module.name, module.seconds)  # noqa: E731
        monkeypatch.setattr(row_bench, "network_predict", network)
        decode = lambda pipeline, stride, device: self.run(f"decoder {stride}", 10.0 / stride)  # noqa: E731
        monkeypatch.setattr(row_bench, "decoding", decode)
        monkeypatch.setattr(row_bench, "posing", lambda pipeline, device: self.run("pose", 1.0))

    def run(self, name: str, seconds: float) -> Predict:
        def predict(batch: Any) -> Any:
            self.ran.append(name)
            self.now += seconds * self.speed

        return predict

    def slower(self, what: str, done: int, total: int) -> None:
        self.speed *= self.drift


class Network(torch.nn.Module):
    """Takes so many seconds for a batch."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds


class Pipeline:
    """A decoder over clips of 20 frames."""

    decoder, codec = object(), object()

    class settings:
        clip_frames, steps = 20, 1


def rows() -> dict[str, TimedRow]:
    batch, pipeline = batch_of(4), Pipeline()
    plain, fast = Network("plain", 8.0), Network("fast", 4.0)
    decoded = TimedRow(fast, batch, 2, pipeline)  # type: ignore[arg-type]
    return {
        "before": TimedRow(plain, batch),
        "fast": TimedRow(fast, batch),
        "every third": TimedRow(fast, batch, 3),
        "decoded": decoded,
        "decoded, every fourth": replace(decoded, stride=4),
    }


def test_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timing = time_rows(rows(), rounds=3, warmup=1, clock=lambda: clock.now)
    # A crop takes 2 and 1 seconds. Of the 20 frames of a clip the network sees 10 or 5, of 243 every third: 81.
    assert timing.fps("before") == pytest.approx(1 / 2) and timing.fps("fast") == pytest.approx(1.0)
    assert timing.fps("every third") == pytest.approx(3.0)
    assert timing.fps("decoded") == pytest.approx(20 / (10 * 1 + 5.0 + 1))
    assert timing.fps("decoded, every fourth") == pytest.approx(20 / (5 * 1 + 2.5 + 1))
    assert timing.speedup("decoded", over="before") == pytest.approx(2 * 20 / 16)


def test_all_rows_take_turns_and_what_they_share_runs_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    time_rows(rows(), rounds=3, warmup=1, clock=lambda: clock.now)
    assert clock.ran == ["plain", "fast", "decoder 2", "pose", "decoder 4"] * 4


def test_ratios_are_formed_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, drift=1.7)
    timing = time_rows(rows(), rounds=5, warmup=1, clock=lambda: clock.now, progress=clock.slower)
    assert timing.speedup("decoded", over="before") == pytest.approx(2 * 20 / 16)
    assert timing.speedup_quartiles("fast", over="before") == pytest.approx((2.0, 2.0))
