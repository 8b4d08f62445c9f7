"""Wall-clock comparison of networks on the machine at hand: interleaved runs, medians, ratios taken round by round.

A machine's clock, caches and neighbours drift by more than the differences that matter. So the candidates take turns
(A B A B ...), the ratio is formed within each round, where both saw the same machine, and medians are reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from hmrcompress.errors import UserError
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, no_progress

Predict = Callable[[FrameBatch], object]

FEWEST_ROUNDS = 3
"""Rounds that are run whatever the time limit: a median of fewer says nothing."""


@dataclass(frozen=True)
class Timing:
    """Seconds of every round by name, for `frames` crops a call."""

    seconds: dict[str, tuple[float, ...]]
    frames: int

    def fps(self, name: str) -> float:
        """Crops per second: frames over the median time."""
        return self.frames / median(self.seconds[name])

    def speedup(self, name: str, over: str) -> float:
        """How many times faster `name` is than `over`: the median of the ratios within each round."""
        return median(self._ratios(name, over))

    def fps_quartiles(self, name: str) -> tuple[float, float]:
        """Between which frames per second the middle half of the rounds lies, slow and fast end."""
        slow, fast = np.percentile(self.seconds[name], (75, 25))
        return self.frames / float(slow), self.frames / float(fast)

    def speedup_quartiles(self, name: str, over: str) -> tuple[float, float]:
        """Between which ratios the middle half of the rounds lies."""
        low, high = np.percentile(self._ratios(name, over), (25, 75))
        return float(low), float(high)

    def figures(self, name: str, over: str) -> dict[str, Any]:
        """{fps, fps_quartiles, speedup, speedup_quartiles}, for JSON."""
        return {
            "fps": self.fps(name),
            "fps_quartiles": list(self.fps_quartiles(name)),
            "speedup": self.speedup(name, over),
            "speedup_quartiles": list(self.speedup_quartiles(name, over)),
        }

    def _ratios(self, name: str, over: str) -> list[float]:
        return [slow / fast for fast, slow in zip(self.seconds[name], self.seconds[over], strict=True)]


def time_interleaved(
    candidates: Mapping[str, Predict],
    batch: FrameBatch,
    *,
    rounds: int = 7,
    warmup: int = 2,
    max_seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
    what: str = "timing",
) -> Timing:
    """`take_turns` of networks on the same batch."""
    calls = {name: partial(predict, batch) for name, predict in candidates.items()}
    return take_turns(
        calls, len(batch.images), batch.images.device,
        rounds=rounds, warmup=warmup, max_seconds=max_seconds, clock=clock, progress=progress, what=what,
    )  # fmt: skip


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    frames: int,
    device: torch.device,
    *,
    rounds: int = 7,
    warmup: int = 2,
    max_seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
    what: str = "timing",
) -> Timing:
    """Calls every candidate, which works on `frames` crops, in turn, `warmup` uncounted rounds first; no gradients.

    After `max_seconds` no further round begins, once there are three. On CUDA the clock is read after the device has
    finished. `progress` is told of rounds. Raises UserError when there is nothing to time.
    """
    if rounds < 1 or not candidates or not frames:
        raise UserError(f"{len(candidates)} networks, {rounds} rounds, {frames} crops", "timing")
    cuda = device.type == "cuda"
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    begun = clock()
    with torch.inference_mode():
        for number in range(warmup + rounds):
            for name, call in candidates.items():
                if cuda:
                    torch.cuda.synchronize(device)
                start = clock()
                call()
                if cuda:
                    torch.cuda.synchronize(device)
                if number >= warmup:
                    taken[name].append(clock() - start)
            progress(what, number + 1, warmup + rounds)
            over = max_seconds is not None and clock() - begun > max_seconds
            if over and number + 1 - warmup >= FEWEST_ROUNDS:
                break
    return Timing({name: tuple(times) for name, times in taken.items()}, frames)
