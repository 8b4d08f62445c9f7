"""What `frontier.json` says of a choice beside its points: the errors by kind of motion and by occlusion."""

from __future__ import annotations

from typing import Any

import numpy as np

from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.errors import Errors

FRONTIER, PAGE = "frontier.json", "report.html"
"""Names of the two files that stand beside the model."""


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
