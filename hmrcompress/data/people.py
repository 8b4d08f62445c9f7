"""People found in a crop, and which of them the crop is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hmrcompress.records import CROP, CropSize

BOX_SCALE = 1.2
"""How much larger than the person's box a crop's box is made, as 4D-Humans and those after it do."""
PERSON_ASPECT = 0.5
"""Width to height of the box that a crop is expected to hold; only its comparison among people matters."""
ASSETS = Path(__file__).parents[1] / "assets" / "people"
DETECTOR_FILE, SEGMENTER_FILE = ASSETS / "detector.onnx", ASSETS / "segmenter.onnx"
"""Networks that the package carries, of `--boxes auto` and `--masks auto`: assets/people/README.md."""
INSIDE, PART = 0.85, 0.3
"""A box of which at least the first share lies inside of another, and that is at least the second share of its size, is
part of that person: an upper body, legs. A smaller one may be a child."""
SAME_PERSON = 0.5
"""Intersection over union from which on a box is the person of the frame before."""


@dataclass(frozen=True)
class People:
    """K people of one image: boxes (K,4) x0 y0 x1 y1 in its pixels, scores (K,), masks (K,H,W) bool."""

    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray


def expected_box(size: CropSize = CROP) -> np.ndarray:
    """(4,) where the person of a crop is expected: in the middle, the crop's height over 1.2 high."""
    height = size.height / BOX_SCALE
    half = np.array([PERSON_ASPECT * height, height]) / 2
    middle = np.array([size.width, size.height]) / 2
    return np.concatenate([middle - half, middle + half])


def overlap(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (K,4) with one (4,) -> (K,); 0 for boxes without area."""
    low, high = np.maximum(boxes[:, :2], other[:2]), np.minimum(boxes[:, 2:], other[2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) + np.clip(other[2:] - other[:2], 0, None).prod()
    return shared / np.maximum(areas - shared, 1e-9)


def choose(boxes: np.ndarray, previous: np.ndarray | None, size: CropSize = CROP) -> int | None:
    """Which of the boxes (K,4) in a crop of that size is its person; None where there are none.

    It is the one that overlaps most with the person of the frame before (`previous` (4,)), if that is at least half;
    else the one that overlaps most with where a crop's person is expected.
    """
    if not len(boxes):
        return None
    if previous is not None:
        kept = overlap(boxes, previous)
        if kept.max() >= SAME_PERSON:
            return int(kept.argmax())
    return int(overlap(boxes, expected_box(size)).argmax())


def suppress(boxes: np.ndarray, scores: np.ndarray, most: float) -> np.ndarray:
    """Non-maximum suppression: indices of boxes (K,4), best score first, none overlapping a better one by more than
    `most`. Ties: the lowest index first."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        kept.append(order[0])
        order = order[1:][overlap(boxes[order[1:]], boxes[order[0]]) <= most]
    return np.array(kept, dtype=np.int64)


def parts_of_others(boxes: np.ndarray) -> np.ndarray:
    """(K,) bool: which boxes (K,4), best first, are part of the person in a better one (`INSIDE`, `PART`)."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    part = (shared >= INSIDE * areas[:, None]) & (areas[:, None] >= PART * areas)
    return np.tril(part, -1).any(1)
