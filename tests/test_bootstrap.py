"""Bootstrap intervals over clips against scipy's, a slow loop, and the normal interval of many clips."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hmrcompress.errors import ShapeError
from hmrcompress.metrics.bootstrap import by_clip, clip_interval, paired_interval


def world(clips: int, frames: int | None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values that differ more between clips than within, and the clips, in no order."""
    rng = np.random.default_rng(seed)
    lengths = [frames or int(rng.integers(1, 9)) for _ in range(clips)]
    clip = np.repeat(7 * np.arange(clips), lengths)
    values = 50 + 10 * rng.normal(size=clips)[clip // 7] + rng.normal(size=len(clip))
    order = rng.permutation(len(clip))
    return values[order], clip[order]


def test_the_interval_is_scipys() -> None:
    values, clip = world(20, 6)
    means = np.array([values[clip == one].mean() for one in np.unique(clip)])
    theirs = stats.bootstrap((means,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    ours = clip_interval(values, clip, resamples=20_000, seed=2)
    assert ours is not None
    low, high = theirs.confidence_interval
    assert np.allclose(ours, (low, high), atol=0.05 * (high - low))


def test_clips_of_different_lengths_against_a_slow_loop() -> None:
    values, clip = world(9, None)
    rng, means = np.random.default_rng(5), []
    names = np.unique(clip)
    for draw in rng.integers(len(names), size=(300, len(names))):
        pooled = [value for number in draw for value in values[clip == names[number]]]
        means.append(sum(pooled) / len(pooled))
    found = clip_interval(values, clip, resamples=300, seed=5, level=0.9)
    assert found == pytest.approx(tuple(np.percentile(means, (5, 95))))


def test_many_clips_give_the_normal_interval() -> None:
    values, clip = world(400, 3)
    means = np.array([values[clip == one].mean() for one in np.unique(clip)])
    half = 1.96 * means.std(ddof=1) / np.sqrt(len(means))
    assert clip_interval(values, clip) == pytest.approx((means.mean() - half, means.mean() + half), abs=0.15 * half)


def test_pairing_takes_the_clips_differences_out() -> None:
    values, clip = world(24, 5)
    worse = values + 2 + 0.01 * np.sin(np.arange(len(values)))
    low, high = clip_interval(worse - values, clip)  # type: ignore[misc]
    assert 1.98 < low <= high < 2.02
    alone = clip_interval(values, clip)
    assert alone is not None and alone[1] - alone[0] > 1


def test_what_has_no_interval() -> None:
    assert clip_interval(np.ones(4), np.zeros(4)) is None
    assert clip_interval(np.array([]), np.array([])) is None
    assert clip_interval(np.array([1.0, np.nan]), np.array([0, 1])) is None
    values, clip = world(5, 4)
    assert clip_interval(values, clip, seed=3) == clip_interval(values, clip, seed=3)
    with pytest.raises(ShapeError):
        clip_interval(np.ones(4), np.zeros(3))


def test_means_of_clips_are_enough_for_paired_intervals() -> None:
    """The same as of the differences frame by frame, clips of different lengths among them."""
    first, clip = world(12, None)
    second = first + np.random.default_rng(3).normal(0.5, 1, len(first))
    mean, interval = paired_interval(by_clip(first, clip), by_clip(second, clip), seed=4)
    wanted = clip_interval(second - first, clip, seed=4)
    assert interval is not None and wanted is not None
    assert mean == pytest.approx((second - first).mean(), abs=2e-4) and interval == pytest.approx(wanted, abs=2e-4)
    with pytest.raises(ShapeError):
        paired_interval(by_clip(first, clip), by_clip(second[1:], clip[1:]))
