"""Crops against a slow transcription of the conventions, written out number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hmrcompress.data.warp import crop, square_side
from hmrcompress.errors import ShapeError


def slowly(picture: np.ndarray, cx: float, cy: float, side: float, only: range, *, exact: bool = False) -> np.ndarray:
    """Rows `only` of the crop, float64, pixel by pixel. Unless `exact`, places are rounded as OpenCV's warpAffine does:
    sums of whole 1024ths of a pixel, down to 32nds."""
    height, width, _ = picture.shape
    made = np.zeros((len(only), 192, 3))
    for line, i in enumerate(only):
        for j in range(192):
            x = cx + (j + 32 - 128) * side / 256
            y = cy + (i - 128) * side / 256
            if not exact:
                step = side / 256
                whole_x = round(1024 * (cx - 128 * step)) + round(1024 * step * (j + 32))
                x, y = math.floor((whole_x + 16) / 32) / 32, math.floor((round(1024 * y) + 16) / 32) / 32
            left, top = math.floor(x), math.floor(y)
            for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
                for column, right in ((left, 1 - (x - left)), (left + 1, x - left)):
                    if 0 <= row < height and 0 <= column < width:
                        made[line, j] += down * right * picture[row, column]
    return made


@pytest.mark.parametrize(
    ("cx", "cy", "side"), [(70.3, 50.9, 33.7), (75, 60, 256), (12.5, 140.2, 97), (60.7, 61.1, 700)]
)
def test_crops_of_noise_are_within_a_grey_level(cx: float, cy: float, side: float) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)
    rows = range(3, 256, 21)
    expected = slowly(picture, float(np.float32(cx)), float(np.float32(cy)), side, rows)
    got = crop(picture, np.array([cx, cy]), side)[list(rows)].astype(float)
    far = np.abs(got - expected).max(-1)
    # The side is float32 there too, so that of a place in thousands one may be rounded the other way.
    assert (far > 1).mean() < 0.002
    assert np.quantile(far, 0.99) <= 0.5


@pytest.mark.parametrize(("cx", "cy", "side"), [(70.3, 50.9, 33.7), (75, 60, 256), (10.5, 100.2, 97)])
def test_crops_of_pictures_are_within_a_grey_level_everywhere(cx: float, cy: float, side: float) -> None:
    """Where neighbours differ as in a photograph, the rounding of places does not show: exact bilinear reading."""
    y, x = np.mgrid[0:120, 0:150]
    picture = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), (x + y) % 250], -1)
    picture[..., 2] = x + y / 2
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    rows = range(0, 256, 17)
    inside = slowly(np.full_like(picture, 255), cx, cy, side, rows, exact=True)[..., :1] == 255
    expected = slowly(picture, cx, cy, side, rows, exact=True)
    got = crop(picture, np.array([cx, cy]), side)[list(rows)]
    assert inside.any()
    assert (np.abs(got - expected) * inside).max() <= 1


def test_outside_of_the_picture_is_black() -> None:
    white = np.full((40, 30, 3), 255, np.uint8)
    made = crop(white, np.array([0.0, 0.0]), 64)
    assert (made[:124] == 0).all() and (made[:, :92] == 0).all()
    assert (made[132:280, 100:190] == 255).all()
    assert (crop(white, np.array([500.0, 500.0]), 20) == 0).all()


def test_boxes_become_squares() -> None:
    """192:256 means that a box is at least 4/3 as high as wide."""
    assert square_side(np.array([30.0, 90, 100]), np.array([100.0, 100, 50])).tolist() == [100, 120, 100 * 4 / 3]


def test_the_blur_is_that_of_the_whole_picture() -> None:
    """Only what is needed is blurred; the pixels are those of blurring everything, as a slow kernel does it."""
    picture = np.random.default_rng(1).integers(0, 256, (300, 40, 3), dtype=np.uint8)
    side = 1024.0
    sigma = (side / 256 / 2 - 1) / 2
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = picture.astype(float)
    for axis in (0, 1):
        pads = [(reach, reach) if axis == each else (0, 0) for each in range(3)]
        padded = np.pad(blurred, pads, mode="edge")
        size = picture.shape[axis]
        blurred = sum(w * np.take(padded, range(k, k + size), axis) for k, w in enumerate(kernel))
    rows = range(100, 160, 7)
    expected = slowly(blurred, 20, 150, side, rows)
    got = crop(picture, np.array([20.0, 150.0]), side, antialias=True)[list(rows)]
    assert np.abs(got - expected).max() <= 1
    assert np.abs(crop(picture, np.array([20.0, 150.0]), side).astype(int)[list(rows)] - expected).max() > 20


def test_other_pictures_are_refused() -> None:
    with pytest.raises(ShapeError, match="uint8"):
        crop(np.zeros((5, 5, 3)), np.array([2.0, 2.0]), 4)
