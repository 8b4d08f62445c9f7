"""What a box can be, before any picture is opened and against its picture: the same for every file of boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hmrcompress.errors import UserError
from hmrcompress.records import CROP, CropSize

Array = NDArray[np.float64]
LARGEST = 1e6
"""Pixels: no picture is as large, and no place in one as far off."""
LEAST_SIDE = 2.0
"""Pixels of the smallest square that is cut out. Shares of a picture are smaller than that."""
MOST_OF_PICTURE = 10
"""A square may have so many times the side of its picture: of 256 pixels, 26 are the picture's then."""
OTHER_PICTURE = "Were they made for a picture of another size?"


def check_squares(centre: Array, side: Array, where: object) -> None:
    """UserError for squares (N,2), (N,) with sizes or places that no picture has, with the numbers of the first."""
    far = ~(np.abs(centre) <= LARGEST).all(1) | ~(side <= LARGEST)
    if far.any():
        what = f"{_numbers(centre, side, far)}, which no picture has pixels for"
        raise UserError(what, where, f"At most {LARGEST:,.0f} are expected")
    small = side < LEAST_SIDE
    if small.any():
        shares = bool((np.abs(centre[small]) <= 2).all())
        hint = "Are these shares of the picture? Multiply by its width and height" if shares else "Leave it out"
        raise UserError(f"{_numbers(centre, side, small)}, less than {LEAST_SIDE:g} pixels", where, hint)


def _numbers(centre: Array, side: Array, which: NDArray[np.bool_]) -> str:
    first = int(which.argmax())
    x, y = centre[first]
    return (
        f"box {first} ({int(which.sum())} of {len(side)} are so) is around {x:g}, {y:g} with a side of {side[first]:g}"
    )


def reach(crop: CropSize) -> Array:
    """(2,): how far a crop goes to the right and down from the middle of its square, in sides of that."""
    return np.array([crop.width / crop.side, crop.height / crop.side]) / 2


def beside(centre: Array, side: Array, size: Array, crop: CropSize = CROP) -> NDArray[np.bool_]:
    """(N,) bool: the crop of the square (its middle columns) shows nothing of its picture, whose (W, H) are size (N,2)
    or (2,)."""
    half = side[:, None] * reach(crop)
    return np.any((centre + half <= 0) | (centre - half >= size), axis=1)


def off_centre(centre: Array, size: Array) -> NDArray[np.bool_]:
    """(N,) bool: the middle of the square lies outside of its picture."""
    return np.any((centre < 0) | (centre > size), axis=1)


def too_large(side: Array, size: Array) -> NDArray[np.bool_]:
    """(N,) bool: next to the square its picture is but a speck."""
    return np.asarray(side > MOST_OF_PICTURE * np.broadcast_to(size, (len(side), 2)).max(1))
