"""Rates of a table's rows against a clock that the tests turn themselves: one measurement, parts put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_timing import batch_of

from hmrcompress.metrics.pose import Predict
from hmrcompress.timing import row_bench
from hmrcompress.timing.pipeline_bench import Pipeline, PipelineSettings
from hmrcompress.timing.row_bench import TimedRow, time_rows


class Clock:
    """Every run takes its seconds, on a machine that gets slower from round to round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, drift: float = 1.0) -> None:
        self.now, self.speed, self.drift, self.ran, self.dtypes = 0.0, 1.0, drift, list[str](), set[torch.dtype]()
        monkeypatch.setattr(row_bench, "network_predict", self.network)
        monkeypatch.setattr(row_bench, "decoding", self.decoder)
        monkeypatch.setattr(row_bench, "posing", lambda pipeline, device: self.run("pose", 1.0))

    def run(self, name: str, seconds: float) -> Predict:
        def predict(batch: Any) -> Any:
            self.ran.append(name)
            self.now += seconds * self.speed

        return predict

    def network(self, module: Network, dtype: torch.dtype) -> Predict:
        self.dtypes.add(dtype)
        return self.run(module.name, module.seconds)

    def decoder(self, pipeline: Pipeline, stride: int, device: torch.device) -> Predict:
        clips = pipeline.settings
        seconds = 10.0 / stride * clips.steps * clips.clip_frames / 20
        return self.run(f"decoder {stride} {clips.steps} {clips.clip_frames}", seconds)

    def slower(self, what: str, done: int, total: int) -> None:
        self.speed *= self.drift


class Network(torch.nn.Module):
    """Takes so many seconds for a batch."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds


PARTS = Pipeline(decoder=object(), codec=object(), name="made up", settings=PipelineSettings(clip_frames=20))  # type: ignore[arg-type]


def rows() -> dict[str, TimedRow]:
    batch = batch_of(4)
    plain, fast = Network("plain", 8.0), Network("fast", 4.0)
    decoded = TimedRow(fast, batch, 2, PARTS)
    twice, longer = (replace(PARTS, settings=PipelineSettings(**each)) for each in (
        {"clip_frames": 20, "steps": 2}, {"clip_frames": 40},
    ))  # fmt: skip
    return {
        "before": TimedRow(plain, batch),
        "fast": TimedRow(fast, batch),
        "every third": TimedRow(fast, batch, 3),
        "decoded": decoded,
        "decoded, every third": replace(decoded, stride=3),
        "decoded in two steps": replace(decoded, pipeline=twice),
        "decoded, longer clips": replace(decoded, pipeline=longer),
    }


def test_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timing = time_rows(rows(), dtype=torch.bfloat16, rounds=3, warmup=1, clock=lambda: clock.now)
    assert clock.dtypes == {torch.bfloat16}
    # A crop takes 2 and 1 seconds. Of the 20 frames of a clip the network sees 10 or 7, of 243 every third: 81.
    assert timing.fps("before") == pytest.approx(1 / 2) and timing.fps("fast") == pytest.approx(1.0)
    assert timing.fps("every third") == pytest.approx(3.0)
    assert timing.fps("decoded") == pytest.approx(20 / (10 * 1 + 5.0 + 1))
    assert timing.fps("decoded, every third") == pytest.approx(20 / (7 * 1 + 10 / 3 + 1))
    assert timing.fps("decoded in two steps") == pytest.approx(20 / (10 * 1 + 2 * 5.0 + 1))
    assert timing.fps("decoded, longer clips") == pytest.approx(40 / (20 * 1 + 2 * 5.0 + 1))
    assert timing.speedup("decoded", over="before") == pytest.approx(2 * 20 / 16)


def test_all_rows_take_turns_and_what_they_share_runs_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    time_rows(rows(), rounds=3, warmup=1, clock=lambda: clock.now)
    assert clock.ran == [
        "plain", "fast", "decoder 2 1 20", "pose", "decoder 3 1 20", "decoder 2 2 20", "decoder 2 1 40", "pose",
    ] * 4  # fmt: skip


def test_ratios_are_formed_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, drift=1.7)
    timing = time_rows(rows(), rounds=5, warmup=1, clock=lambda: clock.now, progress=clock.slower)
    assert timing.speedup("decoded", over="before") == pytest.approx(2 * 20 / 16)
    assert timing.speedup_quartiles("fast", over="before") == pytest.approx((2.0, 2.0))
