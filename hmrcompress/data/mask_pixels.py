"""What a picture of a mask says: which pixels are the person's. One reading, for PNG files and arrays alike.

A mask has two levels, of which one is background: 0, or the colour black. The other, whatever it is, is the person.
Where a PNG has transparent pixels (a cut-out), those that are not are the person. What does not say clearly which
pixels are meant is refused; a value, or a range of values, that is given as the person's decides for any picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.data.pictures import opened, require_kind
from hmrcompress.errors import UserError, some
from hmrcompress.records import CROP, CropSize

OPAQUE_FROM = 128
"""Of 255: from here on a pixel of a cut-out belongs to it."""
MOST_VALUE = 0xFFFF
REMEDY = "Save the person as one level on 0, or name the person's: --masks files:DIR,value=N, or N-M"
GREY, PALETTE, GREY_ALPHA = 0, 3, 4
"""Colour types of PNG."""

Value = tuple[int, int]
"""The least and the greatest grey, or index of a palette, that is the person's."""


def parse_value(text: str) -> Value:
    """`N` or `N-M` -> the range. UserError."""
    first, dash, last = text.partition("-")
    parts = (first, last if dash else first)
    if not all(part.isascii() and part.isdigit() and len(part) <= 5 for part in parts):
        raise UserError(f"got {text!r}, expected a whole number N, or a range N-M", "--masks files:DIR,value=…")
    value = int(parts[0]), int(parts[1])
    if not value[0] <= value[1] <= MOST_VALUE:
        raise UserError(
            f"got {text!r}, expected 0 to {MOST_VALUE}, the lesser number first", "--masks files:DIR,value=…"
        )
    return value


def person_of_levels(levels: np.ndarray, value: Value | None, where: object) -> np.ndarray:
    """Whole numbers (H,W) -> (H,W) bool: what is `value`, or without it what is not 0, of at most two levels. UserError
    for more levels, and for two that are both not 0."""
    if value is not None:
        return (levels >= value[0]) & (levels <= value[1])
    if levels.dtype == np.uint8:
        found = np.flatnonzero(np.bincount(levels.reshape(-1), minlength=256))
    else:
        found = np.unique(levels)
    if len(found) > 2:
        raise UserError(f"is no mask: it has {len(found)} levels ({some(found.tolist())})", where, REMEDY)
    if len(found) == 2 and 0 not in found:
        raise UserError(f"its two levels are {found[0]} and {found[1]}, of which none is 0", where, REMEDY)
    return levels != 0


def person_of_png(path: Path, value: Value | None, size: CropSize = CROP) -> np.ndarray:
    """(H,W) bool. UserError for a file that is missing, no PNG, damaged, of another size, or says no mask."""
    with open_png(path, size) as (image, depth, kind):
        image.load()
        if depth == 16 and kind != GREY:
            raise UserError("has colours of 16 bits, which no mask needs", path, REMEDY)
        if value is not None:
            return person_of_levels(_values(image, depth, kind, path), value, path)
        alpha = _alpha(image, kind)
        if alpha is None:
            return _person_of_colours(image, depth, kind, path)
        cut_out = alpha >= OPAQUE_FROM
        try:
            coloured = _person_of_colours(image, depth, kind, path)
        except UserError:
            return cut_out
        if coloured.any() and not coloured.all() and (coloured != cut_out).any():
            raise UserError("its colours say another mask than its transparent pixels", path, REMEDY)
        return cut_out


@contextmanager
def open_png(path: Path, size: CropSize = CROP) -> Iterator[tuple[Any, int, int]]:
    """The PIL image of a mask, header read and size checked, pixels not yet decoded; its bits a channel, and PNG's
    colour type. UserError as `person_of_png`, whatever is raised in the block too."""
    if not path.is_file():
        raise UserError("there is no such mask file", path, "One PNG a frame is needed")
    with open(path, "rb") as file:
        if require_kind(file, path) != "PNG":
            raise UserError("not a PNG, expected one", path)
        head = file.read(26)
        file.seek(0)
        if len(head) < 26:
            raise UserError("not a picture that can be read (its header is cut off)", path)
        depth, kind = head[24:]
        with opened(file, path, "PNG") as image:
            if image.size != (size.width, size.height):
                got = "x".join(map(str, image.size))
                expected = f"{size.width}x{size.height} (width x height)"
                raise UserError(f"the mask is {got} pixels, expected {expected}", path)
            if getattr(image, "is_animated", False):
                raise UserError("holds several pictures, a mask is one", path)
            yield image, depth, kind


def _alpha(image: Any, kind: int) -> np.ndarray | None:
    """(H,W) uint8, None where every pixel is opaque."""
    if "A" in image.mode:
        alpha = np.asarray(image)[..., -1]
    elif "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., -1] if kind != GREY else _opaque_greys(image)
    else:
        return None
    return None if (alpha == 255).all() else alpha


def _opaque_greys(image: Any) -> np.ndarray:
    """Of greys, of which one is transparent."""
    key = image.info["transparency"]
    return np.where(np.asarray(image).astype(np.int64) == key, 0, 255).astype(np.uint8)


def _values(image: Any, depth: int, kind: int, path: Path) -> np.ndarray:
    """(H,W) whole numbers as they stand in the file: greys, or indices of a palette."""
    pixels = np.asarray(image)
    if kind in (GREY, PALETTE):
        # Greys of 2 and 4 bits are spread over 8 as they are read.
        return pixels // (255 // (2**depth - 1)) if kind == GREY and depth in (2, 4) else pixels.astype(np.int64)
    greys = pixels[..., :1] if kind == GREY_ALPHA else pixels[..., :3]
    if (greys != greys[..., :1]).any():
        raise UserError("has colours, of which no number can be the person's", path, "Save it with greys or a palette")
    return greys[..., 0]


def _person_of_colours(image: Any, depth: int, kind: int, path: Path) -> np.ndarray:
    if kind == PALETTE:
        return _person_of_palette(image, path)
    if kind in (GREY, GREY_ALPHA):
        return person_of_levels(_values(image, depth, kind, path), None, path)
    pixels = np.asarray(image)[..., :3].astype(np.int64)
    numbers = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    found = np.unique(numbers)
    if len(found) > 2 or (len(found) == 2 and 0 not in found):
        colours = some([f"#{number:06x}" for number in found.tolist()])
        fault = f"is no mask: it has {len(found)} colours ({colours})"
        raise UserError(fault if len(found) > 2 else f"of its two colours ({colours}) none is black", path, REMEDY)
    return numbers != 0


def _person_of_palette(image: Any, path: Path) -> np.ndarray:
    """By colours, as anybody sees them: programs number them as they like."""
    indices = np.asarray(image)
    used = np.unique(indices)
    if len(used) > 2:
        raise UserError(f"is no mask: it has {len(used)} levels ({some(used.tolist())})", path, REMEDY)
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    if used[-1] >= len(colours):
        raise UserError(f"its index {used[-1]} is none of its palette", path)
    black = ~colours[used].any(1)
    if len(used) == 2 and black.sum() != 1:
        fault = "are both black" if black.all() else "are neither of them black"
        raise UserError(f"the colours of its two levels, {used[0]} and {used[1]}, {fault}", path, REMEDY)
    if not black.any() and used[0] == 0 and colours.any(1).all():
        raise UserError("it has one level, 0, and its palette has no black for the background", path, REMEDY)
    return np.isin(indices, used[~black])
