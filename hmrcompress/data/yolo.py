"""What YOLO-seg networks (8, 11 and those with the same outputs) take and give, as their ONNX exports do.

Input: RGB in 0..1, the image scaled to fit and centred on grey (letterbox). Outputs: `(B, 4 + classes + M, N)` rows of
centre x, centre y, width, height in input pixels, class scores, M mask coefficients; or, exported with suppression
inside, `(B, N, 6 + M)` of x0 y0 x1 y1, score, class, coefficients; and prototypes `(B, M, h, w)`. A mask is where the
weighted sum of the prototypes is above 0 (a sigmoid above 0.5), within the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.people import People, suppress

GREY = 114 / 255
MOST_OVERLAP = 0.7
MOST_PEOPLE = 20


@dataclass(frozen=True)
class Letterbox:
    """How an image of height x width was put into an input: scaled to `inner` (height, width), then moved down by
    `top` and right by `left` pixels."""

    size: tuple[int, int]
    inner: tuple[int, int]
    top: int
    left: int

    @classmethod
    def fit(cls, size: tuple[int, int], target: tuple[int, int]) -> Letterbox:
        """The largest that fits, in the middle of `target` (height, width)."""
        scale = min(target[0] / size[0], target[1] / size[1])
        inner = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        return cls(size, inner, (target[0] - inner[0]) // 2, (target[1] - inner[1]) // 2)

    def apply(self, images: Tensor, target: tuple[int, int]) -> Tensor:
        """images (B,3,H,W) in 0..1 -> (B,3,*target), the rest grey."""
        padded = images.new_full((len(images), 3, *target), GREY)
        rows, columns = slice(self.top, self.top + self.inner[0]), slice(self.left, self.left + self.inner[1])
        padded[:, :, rows, columns] = resized(images, self.inner)
        return padded

    def boxes_back(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (K,4) in input pixels -> in pixels of the image, cut at its edges."""
        height, width = self.size
        scale = np.array([self.inner[1] / width, self.inner[0] / height] * 2)
        moved = (boxes - np.array([self.left, self.top] * 2)) / scale
        return np.clip(moved, 0, np.array([width, height] * 2))

    def masks_back(self, values: Tensor, target: tuple[int, int]) -> Tensor:
        """Values (K,h,w) over the whole input -> (K,H,W) over the image."""
        whole = resized(values[None], target)[0]
        inside = whole[:, self.top : self.top + self.inner[0], self.left : self.left + self.inner[1]]
        return resized(inside[None], self.size)[0]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,C,H,W) -> (B,C,*size), bilinear, pixel centres in place."""
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def candidates(rows: np.ndarray, coefficients: int, person: int, least: float) -> tuple[np.ndarray, ...]:
    """People in one image's output: boxes (K,4) x0 y0 x1 y1 in input pixels, scores (K,), coefficients (K,M).

    rows: (4 + classes + M, N), or (N, 6 + M) with suppression inside, told by its 6 + M columns. coefficients: M.
    person: the class. least: the score from which on a row counts. Best first, at most 20. Works for boxes alone, M=0.
    """
    if rows.shape[1] == 6 + coefficients:
        boxes, scores = rows[:, :4], np.where(rows[:, 5].round() == person, rows[:, 4], 0.0)
        weights = rows[:, 6:]
    else:
        table = rows.T
        half = table[:, 2:4] / 2
        boxes = np.concatenate([table[:, :2] - half, table[:, :2] + half], axis=1)
        classes = table[:, 4 : table.shape[1] - coefficients]
        scores = np.where(classes.argmax(1) == person, classes[:, person], 0.0)
        weights = table[:, table.shape[1] - coefficients :]
    good = (scores >= least) & np.isfinite(boxes).all(1) & np.isfinite(weights).all(1)
    boxes, scores, weights = boxes[good], scores[good], weights[good]
    kept = suppress(boxes, scores, MOST_OVERLAP)[:MOST_PEOPLE]
    return boxes[kept], scores[kept], weights[kept]


def people(rows: np.ndarray, prototypes: np.ndarray, frame: Letterbox, target: tuple[int, int], person: int,
           least: float) -> People:  # fmt: skip
    """The people in one image: rows as `candidates`, prototypes (M,h,w) over the input of size `target`."""
    count = len(prototypes)
    boxes, scores, weights = candidates(rows.astype(np.float64), count, person, least)
    values = torch.from_numpy(weights.astype(np.float32)) @ torch.from_numpy(prototypes.reshape(count, -1))
    masks = frame.masks_back(values.view(-1, *prototypes.shape[1:]), target).numpy() > 0 if len(boxes) else None
    back = frame.boxes_back(boxes)
    if masks is None:
        return People(back, scores, np.zeros((0, *frame.size), bool))
    return People(back, scores, masks & within(back, frame.size))


def within(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K,H,W) bool: whether the middle of a pixel lies in each box (K,4)."""
    y, x = (np.arange(count) + 0.5 for count in size)
    rows = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:4])
    columns = (x >= boxes[:, 0:1]) & (x < boxes[:, 2:3])
    return rows[:, :, None] & columns[:, None, :]
