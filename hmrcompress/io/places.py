"""Where an output goes: links followed, pipes and devices told from files, and what can't be written known ahead."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError

STDOUT = "-"
DESCRIPTOR = re.compile(r"/dev/(?P<name>stdout|stderr)|/(dev|proc/self)/fd/(?P<number>\d+)")
SEPARATORS = re.compile(r"[,=]")

Signature = tuple[int, ...] | None
"""What tells whether a file was touched; None where there is none."""


def real(path: Path | str) -> Path:
    """The absolute path without links. UserError for links that go round in a circle, and for the root."""
    path = Path(path)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"cannot be written to ({error.strerror})", path, "Choose another name") from error
    target = Path(os.path.realpath(path))
    if not target.name:
        raise UserError("is the root of the file system", path, "Choose another name")
    return target


def is_stream(path: Path | str) -> bool:
    """Whether this is `-`, a pipe, or a device that takes what is written to it. UserError for disks and sockets."""
    text = os.fspath(path)
    if text == STDOUT or DESCRIPTOR.fullmatch(text):
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise UserError(f"is a {'disk' if stat.S_ISBLK(mode) else 'socket'}", path, "Choose the name of a file")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def stream_of(path: Path | str) -> Path | None:
    """What tells whether two names are one stream; None for the null device, to which everything may go."""
    found = DESCRIPTOR.fullmatch(os.fspath(path))
    if os.fspath(path) == STDOUT or (found and "stdout" == found["name"]) or (found and found["number"] == "1"):
        return Path(STDOUT)
    return None if os.path.realpath(path) == os.devnull else Path(os.path.realpath(path))


def pour(content: Path | bytes, path: Path | str) -> None:
    """Writes bytes, or what is in a file, to a stream. UserError where nobody reads it to the end."""
    try:
        with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as source:
            if os.fspath(path) == STDOUT:
                sys.stdout.flush()
                shutil.copyfileobj(source, sys.stdout.buffer)
                sys.stdout.buffer.flush()
                return
            sys.stdout.flush(), sys.stderr.flush()
            found = DESCRIPTOR.fullmatch(os.fspath(path))
            number = found and int(found["number"] or {"stdout": 1, "stderr": 2}[found["name"]])
            # Opened anew by its name, a file that a shell wrote to would be written over from its beginning.
            with open(path, "ab") if number is None else os.fdopen(os.dup(number), "wb") as sink:
                shutil.copyfileobj(source, sink)
    except BrokenPipeError as error:
        raise UserError("nobody reads it to the end", path) from error


def signature(path: Path) -> Signature:
    """Number, size and time of a file or folder; None where there is none."""
    try:
        state = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (state.st_ino, state.st_size, state.st_mtime_ns)


def check_writable(target: Path, path: Path) -> None:
    """UserError where nothing can be written to this place: `target` is the real one of `path`."""
    if target.exists() and not os.access(target, os.W_OK):
        raise UserError("is write-protected", path, "Choose another name, or give yourself the right to change it")
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"cannot be written, for {parent} is a file", path, "Choose another name")
    if not os.access(parent, os.W_OK | os.X_OK) and not target.is_dir():
        raise UserError(f"cannot be written, for nothing can be made in {parent}", path, "Choose another folder")


def must_stay(folder: Path) -> bool:
    """Whether a folder can't be renamed, or would leave somebody in a folder that is gone: a mount, one in which
    nothing can be made beside it, and the current folder with those above."""
    try:
        here = Path.cwd().resolve()
    except OSError:  # it was removed
        here = folder.parent
    return os.path.ismount(folder) or not os.access(folder.parent, os.W_OK) or here == folder or folder in here.parents


def same(a: Path, b: Path) -> bool:
    """Whether both are one file or folder, through links of any sort."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def below(path: Path, folder: Path) -> str | None:
    """The name of a path inside a folder, with slashes, links followed; None where it lies elsewhere."""
    found = Path(os.path.realpath(path))
    return found.relative_to(folder).as_posix() if folder in found.parents else None


def paths_in(values: Any) -> Iterator[Path]:
    """What there is on the disk of paths, names such as `FORMAT:PATH,option=value`, objects with a `path` or a `name`
    and a `tokenizer` (`ModelFile`), and collections of them."""
    if isinstance(values, Path):
        values = str(values)
    if isinstance(values, str):
        parts = {values, *SEPARATORS.split(values)}
        named = {each.partition(":")[2] for each in parts if not each.startswith("starter:")}
        for part in sorted(parts | named):
            if part and "\0" not in part and os.path.lexists(part):
                yield Path(part)
    elif isinstance(values, dict):
        yield from paths_in(list(values.values()))
    elif isinstance(values, Iterable):
        for each in values:
            yield from paths_in(each)
    elif hasattr(values, "path"):
        yield from paths_in(values.path if isinstance(values.path, (str, Path)) else ())
    elif hasattr(values, "tokenizer"):
        yield from paths_in([values.name, values.tokenizer])
