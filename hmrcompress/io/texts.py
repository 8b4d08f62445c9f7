"""Text from elsewhere, files and options: its bytes, and the bounds that JSON, YAML and the command line share."""

from __future__ import annotations

from pathlib import Path

from hmrcompress.errors import UserError

DEEPEST = 64
"""Levels of nesting; a plan has 4, COCO's annotations 5."""
MOST_DIGITS = 400
SMALLEST, LARGEST = -(1 << 63), (1 << 64) - 1
"""Whole numbers that fit 64 bits, with or without a sign."""

MOST, MOST_SEED = (1 << 31) - 1, (1 << 32) - 1
"""The largest count that somebody may give, and the largest seed: every generator in use takes it."""


def read_bytes(path: Path | str) -> bytes:
    """What is in a file. UserError where there is no such file; a folder, a pipe or a device is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError("is not a file" if path.exists() else "no such file", path)
    return path.read_bytes()


def decoded(text: str | bytes) -> str:
    """UTF-8 as text, without the mark that some editors put in front. ValueError for another encoding."""
    if isinstance(text, bytes):
        if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("UTF-16 text, save it as UTF-8")
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}") from error
    return text.removeprefix("\ufeff")


def integer(digits: str) -> int:
    """A whole number of decimal digits. ValueError for one beyond 64 bits."""
    return check_integer(int(digits) if len(digits) <= MOST_DIGITS else LARGEST + 1)


def check_integer(value: int) -> int:
    """The number itself. ValueError for one beyond 64 bits."""
    if not SMALLEST <= value <= LARGEST:
        raise ValueError("a whole number beyond 64 bits")
    return value


def check_text(text: str) -> str:
    """The text itself. ValueError where it holds NUL or half a surrogate pair, which no file name and no UTF-8 has."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"a text with characters that are none: {text[:40]!r}")
    return text
