"""Pixels of every mode that pictures are stored in -> RGB of 8 bits.

Greys of 16 bits (and of 12) are divided by their type's range; those that stand in 32 bits are taken as 16, which is
what such files hold. Floats go from 0 to 1: what a filter or a resize left a little beyond is clipped, what lies
further out is refused, as NaN and infinity are. So is a picture whose every grey would be black. Transparency, a
palette's too, is laid on white, as viewers show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hmrcompress.errors import UserError

WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")
MOST_16 = 0xFFFF
WHITE = {(False, (12,)): 0x0FFF, (True, (16,)): 0x7FFF}
"""The greatest grey of types that are not of 16 bits, by sign and bits."""
OVERSHOOT = 0.1
"""How far floats may lie beyond 0 and 1."""
BACKGROUND = 255
"""Grey that shows through transparent pixels."""
STRIP_PIXELS = 1 << 20
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""
WHITE_IS_ZERO, SIGNED = 0, 2


def rgb(image: Any, where: object) -> np.ndarray:
    """A PIL image -> (H,W,3) uint8. UserError for values that mean no picture; whatever PIL raises while it decodes is
    let through."""
    image.load()
    tags = getattr(image, "tag_v2", {})
    depth, signed = tuple(tags.get(BITS_PER_SAMPLE, (16,))), SIGNED in tuple(tags.get(SAMPLE_FORMAT, ()))
    if signed and depth == (8,):
        raise UserError("holds numbers from -128 to 127, which mean no grey", where, "Save it with 8 bits, from 0")
    out = np.empty((image.height, image.width, 3), np.uint8)
    if image.mode in WIDE or image.mode == "F":
        white = 1.0 if image.mode == "F" else WHITE.get((signed, depth), MOST_16)
        _check_range(image, white, where)
        inverted = tags.get(PHOTOMETRIC, 1) == WHITE_IS_ZERO
        key = image.info.get("transparency")
        for rows, strip in _strips(image):
            out[rows] = _grey(np.asarray(strip), white, inverted, key)[..., None]
        return out
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        seen = False
        for rows, strip in _strips(image):
            pixels = np.asarray(_rgba(strip)).astype(np.uint16)
            alpha = pixels[..., 3:]
            seen = seen or bool(alpha.any())
            out[rows] = (pixels[..., :3] * alpha + BACKGROUND * (255 - alpha) + 127) // 255
        if not seen:
            raise UserError("every pixel is transparent", where, "Save it without transparency")
        return out
    for rows, strip in _strips(image):
        out[rows] = np.asarray(strip.convert("RGB"))
    return out


def _strips(image: Any) -> Iterator[tuple[slice, Any]]:
    """Rows by rows, so that no second copy of a large picture is made."""
    step = max(STRIP_PIXELS // max(image.width, 1), 1)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _rgba(strip: Any) -> Any:
    """The strip with colours that are not multiplied by alpha."""
    if strip.mode == "La":  # is converted to this mode alone
        strip = strip.convert("LA")
    return strip if strip.mode == "RGBA" else strip.convert("RGBA")


def _check_range(image: Any, white: float, where: object) -> None:
    """UserError for values far outside of 0 to `white`, and for such that all would be black."""
    least, most = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise UserError("holds NaN or infinity", where, "Replace them by numbers from 0 to 1")
        least, most = min(least, float(values.min())), max(most, float(values.max()))
    spare = OVERSHOOT if image.mode == "F" else 0
    remedy = "Scale them, or save it with 8 or 16 bits"
    if least < -spare or most > white + spare:
        raise UserError(f"holds greys from {least:g} to {most:g}, expected 0 to {white:g}", where, remedy)
    if 0 < most <= white / 256:
        raise UserError(f"all but black: its greatest grey is {most:g} of {white:g}", where, remedy)


def _grey(values: np.ndarray, white: float, inverted: bool, key: Any) -> np.ndarray:
    """(H,W) of any type in 0..white -> uint8; the value `key` is transparent."""
    if values.dtype.kind == "f":
        scaled = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    else:
        scaled = ((values.astype(np.int64) * 510 + int(white)) // (2 * int(white))).astype(np.uint8)
    if inverted:
        scaled = 255 - scaled
    return np.where(values == key, np.uint8(BACKGROUND), scaled) if isinstance(key, int) else scaled
