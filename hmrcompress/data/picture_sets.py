"""Pictures that crops are cut from: files, or members of tar archives; opened when they are needed, one at a time."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from hmrcompress.data.pictures import Decoded, decode, size
from hmrcompress.errors import UserError


class Pictures(Protocol):
    """A numbered set of pictures. `names` are what messages and the leak guard call them. turned: pictures are turned
    as their Exif data say; the field's data sets are annotated on pictures as the files hold them."""

    names: Sequence[str]
    turned: bool

    def open(self, number: int) -> IO[bytes]:
        """The encoded picture. Raises OSError."""

    def place(self, number: int) -> str:
        """Where it lies, for messages."""


class FilePictures:
    """Files below `root`; names are their paths from there, with slashes."""

    def __init__(self, root: Path, names: Sequence[str], *, turned: bool = False) -> None:
        self.root, self.names, self.turned = root, names, turned

    def open(self, number: int) -> IO[bytes]:
        """The file. Raises OSError."""
        path = self.root / self.names[number]
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        return open(path, "rb")

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

    turned = False

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


def picture(pictures: Pictures, number: int) -> Decoded:
    """The picture, turned as Exif says only where the set wants that. UserError where it is missing, too large, damaged
    or truncated."""
    with _open(pictures, number) as file:
        return decode(file, pictures.place(number), turned=pictures.turned)


def picture_size(pictures: Pictures, number: int) -> tuple[int, int]:
    """(width, height) in pixels, from the picture's header. UserError as `picture`."""
    with _open(pictures, number) as file:
        return size(file, pictures.place(number), turned=pictures.turned)


def picture_sha256(pictures: Pictures, number: int) -> str:
    """Hash of a picture's file, and of whether it is turned. UserError where it is missing."""
    with _open(pictures, number) as file:
        return hashlib.sha256(f"{pictures.turned}".encode() + file.read()).hexdigest()


def _open(pictures: Pictures, number: int) -> IO[bytes]:
    try:
        return pictures.open(number)
    except FileNotFoundError:
        raise UserError("there is no such picture", pictures.place(number), "Say where: ,images=DIR") from None
    except OSError as error:
        raise UserError(f"cannot be opened ({error.strerror})", pictures.place(number)) from error
