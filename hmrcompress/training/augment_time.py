"""Windows of time: played backwards, warped, cut short, and with frames left out. numpy in, index arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TimeSettings:
    """Chances and ranges of the augmentation of time.

    reverse, warp: chances (FastHMR: 0.5 each). speeds: mean speed of a warped window, log-uniform; wobble: how far its
    speed may swing around that, as a share. every: chance that all frames have features; else every k-th has, k uniform
    from 2 to `stride`, with any phase. holes: chance that further stretches, of up to `hole` frames, are missing.
    short: chance that a window is cut to a random length of at least `shortest`.
    """

    reverse: float = 0.5
    warp: float = 0.5
    speeds: tuple[float, float] = (0.75, 1.33)
    wobble: float = 0.4
    every: float = 0.4
    stride: int = 8
    holes: float = 0.15
    hole: int = 12
    short: float = 0.15
    shortest: int = 8


def draw_times(rng: np.random.Generator, total: int, frames: int, settings: TimeSettings) -> np.ndarray:
    """Times (n,) float64 of one window in a clip of `total` frames, n <= frames: fractional frame numbers in
    0..total-1, evenly spaced by one, or warped; falling where the window runs backwards."""
    length = frames
    if rng.random() < settings.short:
        length = int(rng.integers(min(settings.shortest, frames), frames + 1))
    warp = rng.random() < settings.warp
    offsets = warped(rng, length, settings) if warp else np.arange(length, dtype=np.float64)
    offsets = offsets[: np.searchsorted(offsets, total - 1, side="right")]
    room = total - 1 - offsets[-1]
    # Without a warp the window starts on a frame, so that nothing is interpolated.
    start = rng.uniform(0, room) if warp else float(rng.integers(int(room) + 1))
    times = np.minimum(start + offsets, total - 1)
    return times[::-1].copy() if rng.random() < settings.reverse else times


def warped(rng: np.random.Generator, length: int, settings: TimeSettings) -> np.ndarray:
    """Rising offsets (length,) from 0: a mean speed, and one slow swing of the speed around it."""
    speed = np.exp(rng.uniform(*np.log(settings.speeds)))
    swing, phase, cycles = settings.wobble * rng.random(), rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2.0)
    speeds = speed * (1 + swing * np.sin(phase + 2 * np.pi * cycles * np.arange(length) / max(length, 1)))
    return np.concatenate([[0.0], np.cumsum(speeds[1:])])


def draw_known(rng: np.random.Generator, length: int, settings: TimeSettings) -> np.ndarray:
    """Which frames of a window have features: (length,) bool, at least one."""
    known = np.ones(length, bool)
    if rng.random() >= settings.every:
        stride = int(rng.integers(2, settings.stride + 1))
        known = (np.arange(length) - int(rng.integers(stride))) % stride == 0
    if rng.random() < settings.holes:
        for _ in range(int(rng.integers(1, 4))):
            start = int(rng.integers(length))
            known[start : start + int(rng.integers(1, settings.hole + 1))] = False
    if not known.any():
        known[int(rng.integers(length))] = True
    return known


def read_at(values: Tensor, first: Tensor, times: Tensor) -> Tensor:
    """Rows between rows: values (N,C), first (...) int64 row of each clip's first frame, times (...) float64 fractional
    frame numbers in it -> (...,C) float32, linear between neighbouring frames."""
    before = times.floor().long()
    share = (times - before).to(torch.float32)[..., None]
    after = before + (share[..., 0] > 0).long()
    low, high = values[first + before].float(), values[first + after].float()
    return low + share * (high - low)
