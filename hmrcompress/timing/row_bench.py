"""Frames per second of all rows of a table, from one interleaved measurement.

A row is a network that runs on every k-th frame, perhaps with a temporal decoder after it. Networks, decoders and the
conversion of poses take their turns in every round, each once however many rows share it. A row's time for a frame is
put together from its parts in that round: a network costs the same for every frame, a decoder what a clip takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hmrcompress.metrics.pose import network_predict
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.timing.pipeline_bench import Pipeline, PipelineSettings, decoding, posing
from hmrcompress.timing.rounds import Predict, Timing, time_interleaved


@dataclass(frozen=True)
class TimedRow:
    """`network` and the `batch` it is timed on, both on the device; it runs on every `stride`-th frame. `pipeline`: the
    decoder that follows, None for none. What fills the frames between without a decoder is not counted."""

    network: nn.Module
    batch: FrameBatch
    stride: int = 1
    pipeline: Pipeline | None = None

    @property
    def clips(self) -> PipelineSettings:
        """Of what length the clip is that the row's times are put together for."""
        return PipelineSettings() if self.pipeline is None else self.pipeline.settings


def time_rows(
    rows: Mapping[str, TimedRow],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
    what: str = "timing",
) -> Timing:
    """Times all rows by turns, networks computing in `dtype` (decoders in float32) -> the times of one frame. Raises
    UserError where there is nothing to time."""
    device, runs = torch.device(device), dict[str, Predict]()
    for row in rows.values():
        runs.setdefault(_network(row), _on(row.batch, network_predict(row.network, dtype=dtype)))
        if row.pipeline is not None:
            runs.setdefault(_decoder(row), decoding(row.pipeline, row.stride, device))
            runs.setdefault(_pose(row), posing(row.pipeline, device))
    first = next(iter(rows.values())).batch
    timing = time_interleaved(runs, first, rounds=rounds, warmup=warmup, clock=clock, progress=progress, what=what)
    taken = {name: np.array(seconds) for name, seconds in timing.seconds.items()}
    return Timing({name: _seconds(row, taken) for name, row in rows.items()}, frames=1)


def _seconds(row: TimedRow, taken: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Of a frame, by round."""
    frames = row.clips.clip_frames
    seconds = taken[_network(row)] / len(row.batch.images) * (row.clips.frames(row.stride) / frames)
    if row.pipeline is not None:
        seconds = seconds + (taken[_decoder(row)] + taken[_pose(row)]) / frames
    return tuple(seconds.tolist())


def _on(batch: FrameBatch, predict: Predict) -> Predict:
    return lambda _: predict(batch)


def _network(row: TimedRow) -> str:
    return f"network {id(row.network)} {id(row.batch)}"


def _decoder(row: TimedRow) -> str:
    assert row.pipeline is not None
    return f"decoder {id(row.pipeline.decoder)} {row.stride} {row.clips.steps} {row.clips.clip_frames}"


def _pose(row: TimedRow) -> str:
    assert row.pipeline is not None
    return f"pose {id(row.pipeline.codec)} {row.clips.clip_frames}"
