"""One family of errors. The command line prints them in one sentence and exits with `exit_code`.

What is no error and still has to be said is a `Notice`, told by `tell`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LONGEST_QUOTE = 80


class HMRCompressError(Exception):
    """Base of everything that hmrcompress raises on purpose."""

    exit_code = 2


class UserError(HMRCompressError):
    """Bad input, in one sentence: what is wrong, where (file and field), and what to do about it.

    `what` is the fault ("got shape (3,), expected (2,)"), `where` the file, field or flag, `remedy` the next step.
    """

    def __init__(self, what: str, where: object = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, str(where), remedy
        text = f"{self.where}: {what}" if self.where else what
        super().__init__(f"{text}. {remedy}" if remedy else text)


class Notice(UserWarning):
    """What a function did otherwise than might be expected, in one sentence: something was left out, or made anew. The
    command line prints each sentence once, on stderr; from Python it is a warning like others."""


_HEARERS: list[list[str]] = []


def tell(what: str, where: object = "") -> None:
    """Says so: `what` happened, `where` the file, field or flag."""
    sentence = f"{where}: {what}" if str(where) else what
    for heard in _HEARERS:
        if sentence not in heard:
            heard.append(sentence)
    warnings.warn(sentence, Notice, stacklevel=2)


@contextmanager
def hearing() -> Iterator[list[str]]:
    """The sentences told so far while the block runs, by any thread, each once: for the records of what was done."""
    heard: list[str] = []
    _HEARERS.append(heard)
    try:
        yield heard
    finally:
        _HEARERS[:] = [each for each in _HEARERS if each is not heard]


MOST_LISTED = 5


def some(items: Sequence[object], count: int | None = None) -> str:
    """The first of some items (of `count`, if these are not all), and how many more there are, for a sentence."""
    more = (len(items) if count is None else count) - MOST_LISTED
    return ", ".join(map(str, items[:MOST_LISTED])) + (f" and {more} more" if more > 0 else "")


def first_line(error: BaseException) -> str:
    """What somebody else's exception says, for a sentence of ours: its first line without the full stop, or its
    kind."""
    lines = (line.strip().rstrip(".:") for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def shown(value: object) -> str:
    """A value of somebody else's, as a sentence can quote it: its `repr`, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


class ShapeError(UserError, ValueError):
    """A tensor of the wrong shape or dtype was handed to a library function."""


class MissingExtra(UserError):
    """An optional dependency is not installed. `package` is what was imported, `extra` the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"the package {package} is not installed", "", f"Try: pip install 'hmrcompress[{extra}]'")


class GateFailed(HMRCompressError):
    """A recipe ran to its end and a figure broke its bound."""

    exit_code = 3


class InputsFailed(HMRCompressError):
    """A run over many inputs came to its end, and some of them failed."""

    exit_code = 3
