"""From a box in a picture to the crop that the networks see, pixel for pixel as the field's evaluations make it.

A box is widened to the aspect 192:256 and its larger side taken square; the square is mapped onto 256x256 pixels by an
affine transform (pixel 128 of the crop is the box's centre), read bilinearly with zeros outside of the picture, and the
middle 192 columns are kept. The published evaluations (4D-Humans, CameraHMR) warp with OpenCV, in whole numbers: places
are summed in 1/1024 of a pixel and used in 1/32. So does this, and gives its pixels. Where a picture becomes much
smaller, the demonstrations of the same code (not their evaluations) blur it before: `antialias`.
"""

from __future__ import annotations

import numpy as np

from hmrcompress.errors import ShapeError
from hmrcompress.records import CROP_HEIGHT, CROP_WIDTH

SIDE = CROP_HEIGHT
MARGIN = (SIDE - CROP_WIDTH) // 2
"""Columns of the square that are cut off on either side."""
PLACE_BITS, STEP_BITS = 10, 5
WHOLE = 1 << STEP_BITS
TRUNCATE = 4.0
"""Deviations after which the blur's kernel ends, as in scikit-image."""


def square_side(width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Boxes (N,) wide and (N,) high in pixels -> the side (N,) float64 of the square around them: the larger side after
    widening to 192:256."""
    width, height = np.asarray(width, np.float64), np.asarray(height, np.float64)
    return np.maximum(height, width * CROP_HEIGHT / CROP_WIDTH)


def blur_sigma(side: float) -> float:
    """Deviation in pixels of the blur before a square of `side` pixels becomes 256; 0 for none. After 4D-Humans."""
    factor = side / SIDE / 2
    return (factor - 1) / 2 if factor > 1.1 else 0.0


def crop(picture: np.ndarray, center: np.ndarray, side: float, *, antialias: bool = False) -> np.ndarray:
    """picture (H,W,3) uint8 RGB, the centre (2,) = (x, y) and the side of a square in its pixels -> (256,192,3) uint8.

    ShapeError for other pictures.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ShapeError(f"got {picture.dtype} of shape {picture.shape}, expected uint8 (H, W, 3)", "picture")
    x, y = _places(_inverse(_forward(center, side)))
    sigma = blur_sigma(side) if antialias else 0.0
    if not sigma:
        half = WHOLE * WHOLE // 2
        return ((_bilinear(picture, x, y) + half) >> (2 * STEP_BITS)).astype(np.uint8)
    part, left, top = _blurred(picture, sigma, x, y)
    mixed = _bilinear(part, x - left * WHOLE, y - top * WHOLE) / (WHOLE * WHOLE)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _forward(center: np.ndarray, side: float) -> list[float]:
    """The six numbers of the transform from the picture to the square that takes three points of the box (float32) to
    theirs, by elimination in the order in which OpenCV does it, so that ties are rounded as there."""
    x, y, half = np.float32(center[0]), np.float32(center[1]), np.float32(side * 0.5)
    source = [(x, y), (x, np.float32(y + half)), (np.float32(x + half), y)]
    middle = SIDE / 2
    rows = [[float(u), float(v), 1.0, 0.0, 0.0, 0.0] for u, v in source]
    rows += [[0.0, 0.0, 0.0, float(u), float(v), 1.0] for u, v in source]
    goal = [middle, middle, float(SIDE), middle, float(SIDE), middle]
    for i in range(6):
        pivot = max(range(i, 6), key=lambda j: (abs(rows[j][i]), -j))
        rows[i], rows[pivot], goal[i], goal[pivot] = rows[pivot], rows[i], goal[pivot], goal[i]
        for j in range(i + 1, 6):
            share = rows[j][i] * (-1 / rows[i][i])
            rows[j] = rows[j][: i + 1] + [
                a + share * b for a, b in zip(rows[j][i + 1 :], rows[i][i + 1 :], strict=True)
            ]
            goal[j] += share * goal[i]
    for i in reversed(range(6)):
        for j in range(i + 1, 6):
            goal[i] -= rows[i][j] * goal[j]
        goal[i] /= rows[i][i]
    return goal


def _inverse(forward: list[float]) -> list[float]:
    """The six numbers of the transform back, by the determinant."""
    a, b, p, c, d, q = forward
    one = 1 / (a * d - b * c)
    a, d, b, c = d * one, a * one, b * -one, c * -one
    return [a, b, -a * p - b * q, c, d, -c * p - d * q]


def _places(backward: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Where in the picture each pixel of the crop lies: x and y, both (256,192) int64, in 1/32 of a pixel."""
    columns, rows = np.arange(MARGIN, MARGIN + CROP_WIDTH), np.arange(CROP_HEIGHT)
    one, half = 1 << PLACE_BITS, 1 << (PLACE_BITS - STEP_BITS - 1)
    a, b, p, c, d, q = backward

    def summed(by_column: float, by_row: float, start: float) -> np.ndarray:
        from_rows = np.rint((by_row * rows + start) * one).astype(np.int64) + half
        from_columns = np.rint(by_column * columns * one).astype(np.int64)
        return (from_rows[:, None] + from_columns[None, :]) >> (PLACE_BITS - STEP_BITS)

    return summed(a, b, p), summed(c, d, q)


def _bilinear(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(256,192,3) sums of four neighbours with weights that add up to 1024, whole numbers for a picture of such; zeros
    outside of the picture. x and y as `_places` gives them."""
    height, width = picture.shape[:2]
    whole_numbers = picture.dtype == np.uint8
    total = np.zeros((*x.shape, 3), np.int32 if whole_numbers else np.float64)
    flat = picture.reshape(-1, 3)
    for down in (0, 1):
        row, y_weight = (y >> STEP_BITS) + down, y & (WHOLE - 1)
        for right in (0, 1):
            column, x_weight = (x >> STEP_BITS) + right, x & (WHOLE - 1)
            weight = (y_weight if down else WHOLE - y_weight) * (x_weight if right else WHOLE - x_weight)
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            values = flat.take(np.where(inside, row * width + column, 0), axis=0)
            total += values * np.where(inside, weight, 0).astype(total.dtype)[:, :, None]
    return total


def _blurred(picture: np.ndarray, sigma: float, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int, int]:
    """What the crop needs of the blurred picture, float64, and the column and row where that begins. Beyond the edge of
    the picture its last pixels count, as in scikit-image."""
    from scipy.ndimage import gaussian_filter

    reach = int(TRUNCATE * sigma + 0.5) + 2
    spans = []
    for places, size in ((x, picture.shape[1]), (y, picture.shape[0])):
        first = min(max((int(places.min()) >> STEP_BITS) - reach, 0), size - 1)
        spans.append((first, min(max((int(places.max()) >> STEP_BITS) + reach, first + 1), size)))
    (left, right), (top, bottom) = spans
    part = picture[top:bottom, left:right].astype(np.float64)
    return gaussian_filter(part, (sigma, sigma, 0), mode="nearest", truncate=TRUNCATE), left, top
