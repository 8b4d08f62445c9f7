"""Wall-clock comparison of networks on the machine at hand: interleaved runs, medians, ratios taken round by round.

A machine's clock, caches and neighbours drift by more than the differences that matter. So the candidates take turns
(A B A B ...), the ratio is formed within each round, where both saw the same machine, and medians are reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from hmrcompress.errors import UserError
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, no_progress

Predict = Callable[[FrameBatch], object]


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
        return median(slow / fast for fast, slow in zip(self.seconds[name], self.seconds[over], strict=True))


def time_interleaved(
    candidates: Mapping[str, Predict],
    batch: FrameBatch,
    *,
    rounds: int = 7,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
) -> Timing:
    """Runs every candidate on the same batch in turn, `warmup` uncounted rounds first; no gradients.

    On CUDA the clock is read after the device has finished. Raises UserError when there is nothing to time.
    """
    if rounds < 1 or not candidates or not len(batch.images):
        raise UserError(f"{len(candidates)} networks, {rounds} rounds, {len(batch.images)} crops", "timing")
    cuda = batch.images.is_cuda
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.inference_mode():
        for number in range(warmup + rounds):
            for name, predict in candidates.items():
                if cuda:
                    torch.cuda.synchronize(batch.images.device)
                start = clock()
                predict(batch)
                if cuda:
                    torch.cuda.synchronize(batch.images.device)
                if number >= warmup:
                    taken[name].append(clock() - start)
            progress("timing", number + 1, warmup + rounds)
    return Timing({name: tuple(times) for name, times in taken.items()}, len(batch.images))
