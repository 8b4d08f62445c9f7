"""Files and folders that are either there in full or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.io.figures import json_text


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    If the block raises, nothing is left behind and what stood at `path` is untouched. Parent folders are made.
    The temporary name keeps the suffix (`.npz`), which some writers insist on.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError("is a folder, expected the name of a file", path)
    temporary = _beside(path)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


@contextmanager
def atomic_folder(path: Path | str, *, replaceable: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Gives a temporary folder beside `path` to fill; it takes the place of `path` when the block ends well.

    An existing folder that is not empty is replaced only where `replaceable(path)` says so; otherwise UserError,
    raised before the block runs. If the block raises, nothing is left behind and the old folder stays.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError("is a file, expected the name of a folder", path)
    if path.is_dir() and any(path.iterdir()) and not (replaceable and replaceable(path)):
        raise UserError("the folder is not empty and was not written by this command", path, "Choose another name")
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _flush(file)
        _flush(temporary)
        if path.is_dir():
            old = _beside(path)
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:  # also for Ctrl-C: what stood there goes back
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(path.parent)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Writes a UTF-8 text file atomically, with unix line ends."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Writes indented JSON atomically (`io.figures.json_text`); the same value gives the same bytes."""
    write_text(path, json_text(value))


def _beside(path: Path) -> Path:
    """A fresh name in the same folder (which is made), so that renaming stays on one file system."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.stem}-{uuid.uuid4().hex[:12]}.part{path.suffix}"


def _flush(path: Path) -> None:
    """fsync of a file or folder; where folders cannot be opened (Windows) it is skipped."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
