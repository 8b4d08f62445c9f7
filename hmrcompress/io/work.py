"""Folders in which a command keeps what it goes on from: they go when it is done, but for what it did not put there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hmrcompress.errors import tell
from hmrcompress.io.atomic import clear_leftovers, room_for
from hmrcompress.io.seals import read_seal

KINDS = ("training state", "log", "shard")
"""What a training keeps."""


def remove_work(folder: Path) -> None:
    """Removes what a training kept in a folder and below, known by its seals, and the folders that are then empty. What
    is left is told."""
    left = _remove(folder) if folder.is_dir() else 0
    if left:
        tell(f"is left, for there {'is a file' if left == 1 else f'are {left} files'} of somebody else in it", folder)


def _remove(folder: Path) -> int:
    """How many files are left."""
    left = 0
    for path in list(folder.iterdir()):
        if (about := room_for(path)) is not None:
            clear_leftovers(folder / about)
        elif path.is_dir() and not path.is_symlink():
            left += _remove(path)
        else:
            found = read_seal(path, verify=False) if path.is_file() and not path.is_symlink() else None
            if found is not None and found.kind in KINDS:
                path.unlink()
            else:
                left += 1
    with suppress(OSError):
        folder.rmdir()
    return left
