"""HEIC pictures, as telephones write them, through the package pillow-heif (the extra `heic`).

It puts the tiles of a grid together and turns and mirrors the picture as the file says. Exif's orientation must not be
used on top of that: the standard (ISO 23008-12) has it for information only.
"""

from __future__ import annotations

from typing import IO, Any

from hmrcompress.errors import UserError


def open_heic(file: IO[bytes], where: object) -> Any:
    """The main picture of an open file as a PIL image, turned as it is shown, its size known and its pixels not yet
    decoded; `is_animated` and `n_frames` say how many there are. UserError where the package is missing; whatever it
    raises on damaged files is let through."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        fault = "HEIC pictures are read with the package pillow-heif, which is not installed"
        raise UserError(fault, where, "Try: pip install 'hmrcompress[heic]', or save it as JPEG") from error
    return HeifImageFile(file)
