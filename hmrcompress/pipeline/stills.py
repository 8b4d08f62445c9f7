"""Picture files one after the other: what can be read goes on, and the rest is told once, at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hmrcompress.data.pictures import decode_file
from hmrcompress.errors import UserError, some, tell


def read_pictures(where: Path, files: tuple[Path, ...], limit: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers and pictures (H,W,3) uint8 RGB, turned as Exif says, at most `limit`, decoded one at a time.

    Of several files (those of the folder `where`) one that cannot be read is left out and keeps its number; at the end
    it is told which and why, and which were read otherwise than all of their file. UserError for a single file, and
    where none of several can be read.
    """
    failed: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    done = 0
    try:
        for number, file in enumerate(files):
            if done == limit:
                break
            try:
                decoded = decode_file(file)
            except UserError as error:
                if len(files) == 1:
                    raise
                failed[file.name] = f"{error.what}. {error.remedy}" if error.remedy else error.what
                continue
            if decoded.note:
                notes.setdefault(decoded.note, []).append(file.name)
            done += 1
            yield number, decoded.image
    finally:
        for note, names in notes.items():
            tell(f"{some(names)}: {note}", where if len(files) > 1 else where.parent)
        if failed and done:
            reasons = some([f"{name} ({reason})" for name, reason in failed.items()])
            tried = done + len(failed)
            tell(f"read all but {len(failed)} of {tried} pictures; left out: {reasons}", where)
    if failed and not done:
        name, reason = next(iter(failed.items()))
        raise UserError(f"none of its {len(files)} pictures can be read; the first, {name}: {reason}", where)
