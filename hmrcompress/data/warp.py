"""From a box in a picture to the crop that the networks see, pixel for pixel as the field's evaluations make it.

A box is widened to the aspect of the crop (192:256 for HMR2.0 and its kin) and its larger side taken square; the square
is mapped onto 256x256 pixels by an affine transform (pixel 128 of the square is the box's centre), read bilinearly with
zeros outside of the picture, and the middle 192 columns are kept. Crops of H x W pixels likewise: a square of the
longer side, of which the middle is kept.

The published evaluations (4D-Humans, CameraHMR) warp with OpenCV, in whole numbers: places are summed in 1/1024 of a
pixel and used in 1/32. So does this, and gives its pixels. Where a picture becomes much smaller, the demonstrations
of the same code (not their evaluations) blur it before: `antialias`.
"""

from __future__ import annotations

import numpy as np

from hmrcompress.errors import ShapeError
from hmrcompress.records import CROP, CropSize

PLACE_BITS, STEP_BITS = 10, 5
WHOLE = 1 << STEP_BITS
LONGEST_ROW = 1 << 14
"""Pixels of a picture's row up to which rows are blurred first, which is faster."""
TRUNCATE = 4.0
"""Deviations after which the blur's kernel ends, as in scikit-image."""


def square_side(width: np.ndarray, height: np.ndarray, size: CropSize = CROP) -> np.ndarray:
    """Boxes (N,) wide and (N,) high in pixels -> the side (N,) float64 of the square around them: the larger side after
    widening to the aspect of crops of that size."""
    width, height = np.asarray(width, np.float64), np.asarray(height, np.float64)
    return np.maximum(height * size.side / size.height, width * size.side / size.width)


def blur_sigma(side: float, size: CropSize = CROP) -> float:
    """Deviation in pixels of the blur before a square of `side` pixels becomes one of the crop's longer side; 0 for
    none. After 4D-Humans."""
    factor = side / size.side / 2
    return (factor - 1) / 2 if factor > 1.1 else 0.0


def crop(
    picture: np.ndarray, center: np.ndarray, side: float, *, size: CropSize = CROP, antialias: bool = False
) -> np.ndarray:
    """picture (H,W,3) uint8 RGB, the centre (2,) = (x, y) and the side of a square in its pixels -> the crop
    (size.height,size.width,3) uint8.

    ShapeError for other pictures.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ShapeError(f"got {picture.dtype} of shape {picture.shape}, expected uint8 (H, W, 3)", "picture")
    x, y = _places(_inverse(_forward(center, side, size.side)), size)
    sigma = blur_sigma(side, size) if antialias else 0.0
    if not sigma:
        half = WHOLE * WHOLE // 2
        return ((_bilinear(picture, x, y) + half) >> (2 * STEP_BITS)).astype(np.uint8)
    return np.clip(np.rint(_bilinear_blurred(picture, sigma, x[0], y[:, 0])), 0, 255).astype(np.uint8)


def _forward(center: np.ndarray, side: float, pixels: int) -> list[float]:
    """The six numbers of the transform from the picture to the square of `pixels` that takes three points of the box
    (float32) to theirs, by elimination in the order in which OpenCV does it, so that ties are rounded as there."""
    x, y, half = np.float32(center[0]), np.float32(center[1]), np.float32(side * 0.5)
    source = [(x, y), (x, np.float32(y + half)), (np.float32(x + half), y)]
    middle = pixels / 2
    rows = [[float(u), float(v), 1.0, 0.0, 0.0, 0.0] for u, v in source]
    rows += [[0.0, 0.0, 0.0, float(u), float(v), 1.0] for u, v in source]
    goal = [middle, middle, float(pixels), middle, float(pixels), middle]
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


def _places(backward: list[float], size: CropSize) -> tuple[np.ndarray, np.ndarray]:
    """Where in the picture each pixel of the crop lies: x and y, both (H,W) int64, in 1/32 of a pixel."""
    left, top = (size.side - size.width) // 2, (size.side - size.height) // 2
    columns, rows = left + np.arange(size.width), top + np.arange(size.height)
    one, half = 1 << PLACE_BITS, 1 << (PLACE_BITS - STEP_BITS - 1)
    a, b, p, c, d, q = backward

    def summed(by_column: float, by_row: float, start: float) -> np.ndarray:
        from_rows = np.rint((by_row * rows + start) * one).astype(np.int64) + half
        from_columns = np.rint(by_column * columns * one).astype(np.int64)
        return (from_rows[:, None] + from_columns[None, :]) >> (PLACE_BITS - STEP_BITS)

    return summed(a, b, p), summed(c, d, q)


def _bilinear(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H,W,3) int32: sums of four neighbours with weights that add up to 1024; zeros outside of the picture. x and
    y as `_places` gives them."""
    height, width = picture.shape[:2]
    total = np.zeros((*x.shape, 3), np.int32)
    flat = picture.reshape(-1, 3)
    for down in (0, 1):
        row, y_weight = (y >> STEP_BITS) + down, y & (WHOLE - 1)
        for right in (0, 1):
            column, x_weight = (x >> STEP_BITS) + right, x & (WHOLE - 1)
            weight = (y_weight if down else WHOLE - y_weight) * (x_weight if right else WHOLE - x_weight)
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            values = flat.take(np.where(inside, row * width + column, 0), axis=0)
            total += values * np.where(inside, weight, 0).astype(np.int32)[:, :, None]
    return total


def _bilinear_blurred(picture: np.ndarray, sigma: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H,W,3) float64: bilinear readings of the blurred picture, zeros outside of it. x (W,) and y (H,) are the places
    of the columns and rows (the transform does not turn), as `_places` gives them.

    Only the rows and columns that are read are blurred, in the order that keeps what lies in between small, so that a
    large picture takes little memory and a large box no more time than the picture has pixels.
    """
    height, width = picture.shape[:2]
    (rows, by_row), (columns, by_column) = _readings(y, height), _readings(x, width)
    if not len(rows) or not len(columns):
        return np.zeros((len(y), len(x), 3))
    if width <= LONGEST_ROW:
        blurred = _blurred_at(_blurred_at(picture, rows, sigma).swapaxes(0, 1), columns, sigma).swapaxes(0, 1)
    else:
        blurred = _blurred_at(_blurred_at(picture.swapaxes(0, 1), columns, sigma).swapaxes(0, 1), rows, sigma)
    return np.einsum("yr,rcd,xc->yxd", by_row, blurred, by_column, optimize=True)


def _readings(places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (n,) along a side of `size` pixels, in 1/32 -> the pixels (k,) that are read there, and how much each
    counts, (n,k)."""
    after = places & (WHOLE - 1)
    pixels = np.stack([places >> STEP_BITS, (places >> STEP_BITS) + 1])
    shares = np.stack([WHOLE - after, after]) / WHOLE
    inside = (pixels >= 0) & (pixels < size)
    needed = np.unique(pixels[inside])
    weights = np.zeros((len(places), len(needed)))
    for pixel, share, there in zip(pixels, shares, inside, strict=True):
        weights[np.flatnonzero(there), np.searchsorted(needed, pixel[there])] += share[there]
    return needed, weights


def _blurred_at(values: np.ndarray, places: np.ndarray, sigma: float) -> np.ndarray:
    """values (n,m,3) -> (k,m,3) float64: blurred along the first side at the pixels (k,) of it. Beyond the edge its
    last pixels count, as in scikit-image."""
    size, others = len(values), values.shape[1]
    reach = int(TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    made = np.empty((len(places), others, 3))
    for row, place in enumerate(places):
        first, last = max(place - reach, 0), min(place + reach, size - 1)
        weights = kernel[first - place + reach : last - place + reach + 1].copy()
        weights[0] += kernel[: first - place + reach].sum()
        weights[-1] += kernel[last - place + reach + 1 :].sum()
        made[row] = np.tensordot(weights, values[first : last + 1], 1)
    return made
