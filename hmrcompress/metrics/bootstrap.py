"""How sure a mean over frames is: percentile intervals of a bootstrap over clips.

Frames of one clip are alike, so whole clips are drawn with replacement, as many as there are. The mean is over the
frames of the clips drawn (a ratio of sums, so clips of different lengths count as in the mean itself). After Efron and
Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals of resampled clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hmrcompress.errors import ShapeError

RESAMPLES = 2000
LEVEL = 0.95


def by_clip(values: np.ndarray, clip: np.ndarray) -> list[tuple[int, float]]:
    """(frames, mean to 0.0001) of `values` (N,) in each clip, by rising number: what `paired_interval` takes."""
    _, place = np.unique(np.asarray(clip), return_inverse=True)
    frames = np.bincount(place)
    means = np.bincount(place, weights=np.asarray(values, np.float64)) / frames
    return [(int(number), round(float(mean), 4)) for number, mean in zip(frames, means, strict=True)]


def paired_interval(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """How much more `second` is than `first`, both as `by_clip` gives them of the same frames: the mean over frames of
    the differences, and its interval over clips (`clip_interval`). ShapeError for other frames."""
    if [each[0] for each in first] != [each[0] for each in second]:
        raise ShapeError("got other clips or other numbers of frames", "bootstrap")
    frames = np.array([int(each[0]) for each in first])
    apart = np.array([b[1] - a[1] for a, b in zip(first, second, strict=True)])
    values = np.repeat(apart, frames)
    return float(values.mean()), clip_interval(values, np.repeat(np.arange(len(frames)), frames), seed=seed)


def clip_interval(
    values: np.ndarray,
    clip: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The interval of the mean of `values` (N,), one a frame, over clips: `clip` (N,) says which each is from.

    For a paired difference give the differences. The same seed gives the same numbers. None for fewer than two clips
    or values that are not finite. Raises ShapeError.
    """
    values, clip = np.asarray(values, dtype=np.float64), np.asarray(clip)
    if values.ndim != 1 or values.shape != clip.shape:
        raise ShapeError(f"got shapes {values.shape} and {clip.shape}, expected (N,) twice", "bootstrap")
    _, place = np.unique(clip, return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    if count < 2 or not np.isfinite(values).all():
        return None
    sums, frames = np.bincount(place, weights=values), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    means = sums[drawn].sum(1) / frames[drawn].sum(1)
    low, high = np.percentile(means, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)
