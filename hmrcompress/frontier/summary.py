"""What `frontier.json` says of its points, and of the choice the errors by kind of motion and by occlusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.depth import Sized
from hmrcompress.frontier.errors import Errors
from hmrcompress.frontier.joint import Point, front_of, increase_of
from hmrcompress.plan import Plan

FRONTIER, PAGE = "frontier.json", "report.html"
"""Names of the two files that stand beside the model."""


def listed(
    points: Sequence[Point], sizes: Mapping[float, Sized], search: Errors, seconds: Callable[[Candidate], float]
) -> list[tuple[Point, bool]]:
    """All that was raced and the best set of layers of every size, fastest first, and whether each is on the front.
    What breaks the network, so that its error is not finite, is no point."""
    measured = {each.candidate: each for each in points}
    for sized in sizes.values():
        one = sized.candidate
        if one not in measured:
            measured[one] = Point(one, seconds(one), increase_of(search, one))
    ordered = sorted(measured.values(), key=lambda each: (each.seconds, each.candidate))
    finite = [(each, known.mean) for each in ordered if (known := each.best_known) and math.isfinite(known.mean)]
    front = {each for each, _, _ in front_of([(each.candidate, each.seconds, mean) for each, mean in finite])}
    return [(each, each.candidate in front) for each, _ in finite]


def told(point: Point, plan: Plan, depth: int, batch: int, on_front: bool) -> dict[str, Any]:
    """A point: its name, words, plan, predicted seconds of a batch and frames a second, and what it costs."""
    candidate = point.candidate
    return {
        "name": candidate.key,
        "words": candidate.words(depth),
        "candidate": candidate.to_json(),
        "layers": candidate.layers(depth),
        "seconds": point.seconds,
        "fps": batch / point.seconds,
        "search": None if point.search is None else point.search.to_json(),
        "confirmed": None if point.confirmed is None else point.confirmed.to_json(),
        "on_front": on_front,
        "plan": plan.to_dict(),
    }


def breakdown(confirm: Errors, candidate: Candidate) -> dict[str, Any]:
    """{by_kind, by_occlusion}: mean errors in mm before and after, where the data say of what kind frames are."""
    before, after = (confirm(each).errors for each in (Candidate(), candidate))
    found: dict[str, Any] = {}
    crops, indices = confirm.crops, confirm.indices
    kinds, names = crops.column("kind"), crops.meta.get("kinds") or []
    if kinds is not None:
        labels = np.array([str(names[int(each)]) if int(each) < len(names) else str(each) for each in kinds[indices]])
        found["by_kind"] = _by(labels, before, after)
    occluded = crops.column("occluded")
    if occluded is not None:
        share = np.asarray(occluded[indices], dtype=np.float64)
        labels = np.where(share <= 0, "none", np.where(share < 0.25, "under a quarter", "a quarter or more"))
        found["by_occlusion"] = _by(labels, before, after)
    return found


def _by(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        str(label): {"before": float(before[labels == label].mean()), "after": float(after[labels == label].mean())}
        for label in sorted(set(labels.tolist()))
    }
