"""Pictures that crops are cut from: files, or members of tar archives; opened when they are needed, one at a time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from hmrcompress.errors import UserError

MOST_PIXELS = 100_000_000
"""A picture with more is refused before it is decoded (it would take 300 MB)."""


class Pictures(Protocol):
    """A numbered set of pictures. `names` are what messages and the leak guard call them."""

    names: Sequence[str]

    def open(self, number: int) -> IO[bytes]:
        """The encoded picture. Raises OSError."""

    def place(self, number: int) -> str:
        """Where it lies, for messages."""


class FilePictures:
    """Files below `root`; names are their paths from there, with slashes."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names

    def open(self, number: int) -> IO[bytes]:
        """The file. Raises OSError."""
        return open(self.root / self.names[number], "rb")

    def place(self, number: int) -> str:
        """Its path."""
        return str(self.root / self.names[number])


class Member(NamedTuple):
    """Where a member's bytes lie in an archive."""

    archive: Path
    name: str
    offset: int
    size: int


class TarPictures:
    """Members of uncompressed tar archives, read in place: nothing is ever unpacked to the disk."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.names: Sequence[str] = [member.name for member in members]

    def open(self, number: int) -> IO[bytes]:
        """The member. Raises OSError."""
        return io.BytesIO(read_member(self.members[number]))

    def place(self, number: int) -> str:
        """The archive, and the member in it."""
        return f"{self.members[number].archive}: {self.names[number]}"


def read_member(member: Member) -> bytes:
    """The bytes of a member; fewer where the archive was truncated. Raises OSError."""
    with open(member.archive, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def picture(pictures: Pictures, number: int) -> np.ndarray:
    """(H,W,3) uint8 RGB, turned as the file holds it (Exif orientation is ignored, as the field's evaluations do).

    UserError where it is missing, too large, damaged or truncated.
    """
    with _opened(pictures, number) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, MemoryError) as error:
            raise UserError(f"not a readable picture ({error})", pictures.place(number)) from error


def picture_size(pictures: Pictures, number: int) -> tuple[int, int]:
    """(width, height) in pixels, from the picture's header. UserError as `picture`."""
    with _opened(pictures, number) as image:
        return image.size


def _opened(pictures: Pictures, number: int) -> Any:
    """The PIL image, header read and size checked, pixels not yet decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(pictures.open(number))
    except FileNotFoundError:
        raise UserError("there is no such picture", pictures.place(number), "Say where: ,images=DIR") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"not a readable picture ({error})", pictures.place(number)) from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        size = f"{image.width}x{image.height}"
        raise UserError(f"the picture has {size} pixels, more than {MOST_PIXELS:,}", pictures.place(number))
    return image
