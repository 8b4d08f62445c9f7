"""Files and folders that are either there in full or not at all: made in a room beside their place, flushed, renamed.

A room is a hidden folder `.NAME-hmrcompress-….part`. A process holds a lock on it as long as it works there, so that
what a killed process left is told from what a running one still needs: `clear_leftovers` removes the former.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hmrcompress.errors import UserError

ROOM_NAME = re.compile(r"\.(?P<name>.+)-hmrcompress-[0-9a-f]{12}\.part", re.DOTALL)
LONGEST = 56
"""Characters of a name, of at most four bytes each, that are repeated in that of its room: names end at 255 bytes."""
LOCK, MADE, REPLACED, SWAPPING = "lock", "made", "replaced", "swapping"
SIGNATURE = b"hmrcompress"
EXCHANGE, NO_REPLACE = 2, 1
"""Flags of Linux' renameat2."""
AT_FDCWD = -100
CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV, errno.EBUSY)
"""What file systems say to flags, and to changes of place, that they do not know."""

Ours = Callable[[Path], bool]
"""Whether everything in a folder is known to be ours, so that it may go."""


def never(folder: Path) -> bool:
    """An `Ours` that knows of nothing."""
    return False


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path to write to, of the same name; it takes the place of `path` when the block ends well.

    For files inside of folders that are ours: what stood at `path` is not looked at (`io.outputs` does). If the block
    raises, nothing is left behind and what stood there is untouched. Parent folders are made.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError("is a folder, expected the name of a file", path)
    with room(path) as made:
        yield made / path.name
        if path.exists():
            shutil.copymode(path, made / path.name)
        flush(made / path.name)
        os.replace(made / path.name, path)
        flush(path.absolute().parent)


@contextmanager
def room(path: Path, ours: Ours = never) -> Iterator[Path]:
    """An empty folder on the file system of `path`, in which no other process of ours clears up; gone afterwards.

    `ours` says whether a folder that stood at `path` before (`swap`) may go with it.
    """
    parent = path.absolute().parent
    new = _make_parents(parent)
    while True:
        here = parent / f".{path.name[:LONGEST]}-hmrcompress-{uuid.uuid4().hex[:12]}.part"
        here.mkdir()
        try:
            lock = _locked(here)
        except FileNotFoundError:  # another process took the empty folder for a leftover
            continue
        except BaseException:  # no room for the signature, say
            (here / LOCK).unlink(missing_ok=True)
            _remove_all_empty(*new, here)
            raise
        break
    try:
        (here / MADE).mkdir()
        yield here / MADE
    finally:
        _remove(here, path, ours)
        if lock is not None:
            os.close(lock)
        _remove_all_empty(*new)


def clear_leftovers(path: Path, ours: Ours = never) -> None:
    """Removes the rooms for `path` that processes left which were killed."""
    parent, name = path.absolute().parent, path.name[:LONGEST]
    try:
        with os.scandir(parent) as entries:
            found = [
                Path(entry.path)
                for entry in entries
                if (about := ROOM_NAME.fullmatch(entry.name)) and about["name"] == name
            ]
    except OSError:
        return
    for here in found:
        if room_for(here) is None or _removed_if_empty(here):
            continue
        with suppress(OSError):  # held by a process that runs, or not ours to open
            lock = _lock(here, os.O_RDWR)
            try:
                _remove(here, path, ours)
            finally:
                if lock is not None:
                    os.close(lock)


def clear_leftovers_in(folder: Path, ours: Ours = never) -> None:
    """As `clear_leftovers`, for all that lies in a folder: also for what is there, stays, and is not written again."""
    for name in {room for path in folder.glob(".*") if (room := room_for(path)) is not None}:
        clear_leftovers(folder / name, ours)


def room_for(path: Path) -> str | None:
    """The name of what a room of ours is for (its beginning, if it is long); None for other folders and files."""
    found = ROOM_NAME.fullmatch(path.name)
    if found is None or path.is_symlink() or not path.is_dir():
        return None
    with suppress(OSError):
        return found["name"] if _signed(path) else None
    return None if any(path.iterdir()) else found["name"]


def swap(made: Path, path: Path, check: Callable[[Path], None]) -> None:
    """Puts the folder `made`, which lies in a room, where the folder `path` is; the old one goes with the room.

    In one step where the system can do that, else in two renamings. `check` looks at the old folder when nobody else
    finds it any more; where it raises, everything is as it was.
    """
    here = made.parent.parent
    (here / SWAPPING).touch()
    if exchange(made, path):
        old, back = made, lambda: exchange(made, path)
    else:
        old = here / REPLACED
        os.rename(path, old)
        try:
            os.rename(made, path)
        except BaseException:  # also for Ctrl-C: what stood there goes back
            os.rename(old, path)
            raise

        def back() -> bool:
            os.rename(path, made)
            os.rename(old, path)
            return True

    try:
        check(old)
    except BaseException:
        back()
        raise
    (here / SWAPPING).unlink()
    if old.name == REPLACED:
        shutil.rmtree(old)


def exchange(a: Path, b: Path) -> bool:
    """Two files or folders change places in one step; False where this system cannot do that."""
    return _renameat2(a, b, EXCHANGE)


def put_new(made: Path, path: Path) -> bool:
    """Renames to a name that is free; False, and nothing is done, where it is not."""
    try:
        if _renameat2(made, path, NO_REPLACE):
            return True
    except FileExistsError:
        return False
    if os.path.lexists(path):
        return False
    os.rename(made, path)
    return True


def free_name(path: Path, more: str) -> Path:
    """`NAME` + `more` (which may be nothing), or with a number behind it, that does not exist."""
    number, free = 1, path.with_name(f"{path.name}{more}")
    while os.path.lexists(free):
        free, number = path.with_name(f"{path.name}{more}.{number}"), number + 1
    return free


def flush(path: Path) -> None:
    """fsync of a file or folder, of a folder's files too; where folders cannot be opened (Windows) they are skipped."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """`flush` of everything in a folder, and of itself."""
    for path in sorted(folder.rglob("*")):
        flush(path)
    flush(folder)


def _make_parents(parent: Path) -> list[Path]:
    """The folders that had to be made, from the top."""
    new: list[Path] = []
    while not parent.exists() and parent != parent.parent:
        new.insert(0, parent)
        parent = parent.parent
    for folder in new:
        folder.mkdir(exist_ok=True)
    return new


def _locked(here: Path) -> int | None:
    """Locks a room that was just made. FileNotFoundError where another process removed it."""
    lock = _lock(here, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    if not (here / LOCK).exists():
        raise FileNotFoundError(here)
    (here / LOCK).write_bytes(SIGNATURE + f" {os.getpid()}\n".encode())
    return lock


def _lock(here: Path, flags: int) -> int | None:
    """Opens and locks the lock of a room; None where the system has no locks. OSError where another holds it."""
    if sys.platform == "win32":
        if not flags & os.O_CREAT:
            os.rename(here / LOCK, here / LOCK)  # fails while it is open elsewhere
        return os.open(here / LOCK, flags)
    import fcntl

    lock = os.open(here / LOCK, flags)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        if flags & os.O_CREAT:
            raise FileNotFoundError(here) from None
        raise
    except OSError:  # no locks on this file system: the room is used, but never cleared by others
        if not flags & os.O_CREAT:
            os.close(lock)
            raise
    return lock


def _signed(here: Path) -> bool:
    """Whether a room is ours: a folder that somebody else gave such a name has no such lock."""
    text = (here / LOCK).read_bytes()
    return text.startswith(SIGNATURE) or (not text and not (here / MADE).exists())


def _remove(here: Path, path: Path, ours: Ours) -> None:
    """Removes a room. A folder that was being replaced goes back where nothing is in its place, or goes if it is
    ours; otherwise it stays in the room."""
    replaced = here / REPLACED
    if replaced.is_dir() and not os.path.lexists(path):
        os.rename(replaced, path)
    if (here / SWAPPING).exists():
        for old in (replaced, here / MADE / path.name):
            if old.is_dir() and any(old.iterdir()) and not ours(old):
                return
    for part in (replaced, here / MADE):
        shutil.rmtree(part, ignore_errors=True)
    for name in (SWAPPING, LOCK):
        (here / name).unlink(missing_ok=True)
    _removed_if_empty(here)


def _remove_all_empty(*folders: Path) -> None:
    """The last of these folders first, as long as they are empty."""
    for folder in reversed(folders):
        if not _removed_if_empty(folder):
            return


def _removed_if_empty(folder: Path) -> bool:
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def _renameat2(a: Path, b: Path, flags: int) -> bool:
    """Linux' renameat2; False where there is none, or where the file system does not know the flag. OSError."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))
