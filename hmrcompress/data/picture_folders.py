"""Which files of a folder are its pictures, in which order, and what else lies there."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmrcompress.data.pictures import SUFFIXES
from hmrcompress.errors import UserError, some

APPLE_DOUBLE = "._"
"""What the names of files begin with that a Mac leaves beside others on foreign disks."""
NUMBERS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class PictureFolder:
    """files: the pictures by name, numbers in their order. left_out: what of the rest somebody should be told of."""

    files: tuple[Path, ...]
    left_out: str


def list_pictures(folder: Path) -> PictureFolder:
    """The pictures of a folder, by their names' ends (`pictures.SUFFIXES`); its folders are not looked into. UserError
    where there are none."""
    files, side, odd, others, folders = list[Path](), list[str](), list[str](), Counter[str](), 0
    for each in sorted(folder.iterdir(), key=lambda path: (natural(path.name), path.name)):
        named = each.suffix.lower() in SUFFIXES
        if each.name.startswith(APPLE_DOUBLE):
            side.append(each.name)
        elif each.name.startswith(".") and not named:
            continue
        elif each.is_dir() and not named:
            folders += 1
        elif not named:
            others[each.suffix.lower() or "without a suffix"] += 1
        elif each.name.startswith(".") or not each.is_file():
            odd.append(each.name)
        else:
            files.append(each)
    parts = [
        f"{some(side)} (files that a Mac puts beside others)" if side else "",
        f"{some(odd)} (hidden, or not a regular file)" if odd else "",
        f"{others.total()} of other kinds ({', '.join(sorted(others))})" if others else "",
        f"{folders} {'folder' if folders == 1 else 'folders'} in it" if folders else "",
    ]
    left_out = ", ".join(part for part in parts if part)
    if not files:
        what = f"holds no pictures, but {left_out}" if left_out else "holds no pictures"
        raise UserError(what, folder, f"Expected files ending in {', '.join(SUFFIXES)}")
    return PictureFolder(tuple(files), left_out)


def natural(name: str) -> list[Any]:
    """So that 10 comes after 9: text and digits by turns."""
    return [int(part) if place % 2 else part for place, part in enumerate(NUMBERS.split(name))]
