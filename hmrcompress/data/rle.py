"""Run-length encoded masks as COCO writes them.

Runs alternate between background and person, background first, down the columns. They stand as a list of numbers, or
packed into text: five bits a character from `0` on, the lowest first, bit 5 for more to follow, the sign in bit 4 of
the last; from the fourth on, numbers are differences to the last but one.
Format: https://github.com/cocodataset/cocoapi (`common/maskApi.c`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hmrcompress.errors import UserError

FIRST, LAST = ord("0"), ord("0") + 63
LONGEST_NUMBER = 12
"""Characters of one number: far more than the sizes of pictures need."""


def decode_rle(segmentation: Any, size: tuple[int, int], where: object) -> np.ndarray:
    """`{"size": [H, W], "counts": …}` -> (H,W) bool.

    Raises UserError for another size than `size`, for polygons, and for counts that are damaged or do not fill it.
    """
    if isinstance(segmentation, list):
        raise UserError("the segmentation is a list of polygons, expected run lengths", where)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise UserError("no run lengths ({size, counts})", where)
    if segmentation.get("size") != list(size):
        raise UserError(f"the mask is {segmentation.get('size')!r}, expected {list(size)} (height, width)", where)
    counts = segmentation["counts"]
    runs = unpack_counts(counts, where) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(isinstance(run, int) and 0 <= run <= size[0] * size[1] for run in runs)
    if not whole or sum(runs) != size[0] * size[1]:
        raise UserError("the run lengths do not fill the mask", where)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size, order="F")


def unpack_counts(text: str, where: object = "counts") -> list[int]:
    """Packed run lengths -> numbers. Raises UserError where a character is not one of them, or a number breaks off."""
    runs: list[int] = []
    number, length = 0, 0
    for character in text:
        bits = ord(character) - FIRST
        if not 0 <= bits <= LAST - FIRST or length == LONGEST_NUMBER:
            raise UserError("the packed run lengths are damaged", where)
        number |= (bits & 31) << (5 * length)
        length += 1
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << (5 * length)
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number, length = 0, 0
    if length:
        raise UserError("the packed run lengths break off", where)
    return runs
