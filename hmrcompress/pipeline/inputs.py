"""What the inputs on a command line stand for: files, folders and patterns become paths that are read one by one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmrcompress.data.picture_folders import list_pictures, natural
from hmrcompress.data.pictures import SUFFIXES
from hmrcompress.errors import UserError, some, tell
from hmrcompress.io.manifests import manifest
from hmrcompress.pipeline.camera_device import camera_number
from hmrcompress.pipeline.predict import KIND, OVERLAY, PICTURES

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".flv", ".wmv",
    ".asf", ".ogv", ".ogg", ".mxf", ".3gp",
)  # fmt: skip
"""How files are called that are taken for videos where nobody named them; a file that is named may be called
anything."""


@dataclass(frozen=True)
class Inputs:
    """paths: files, and folders of pictures, each once, in the order in which they are read. single: one was named, by
    its own name, so that its result is the whole of the output."""

    paths: tuple[Path, ...]
    single: bool


def find_inputs(words: Sequence[str | Path]) -> Inputs:
    """Words -> inputs. A name that is there is meant as it is, whatever letters it has; otherwise `*`, `?`, `[…]` and
    `**` (any folders) are patterns. A folder is its pictures; one without pictures, each of its videos. What a pattern
    or a folder holds is told from its name's end, and what `predict` wrote itself is left out.

    Raises UserError for a word that nothing is called, and where there is no word.
    """
    if not words:
        raise UserError("got no input, expected pictures, folders or videos", "INPUT")
    found: list[Path] = []
    for word in map(str, words):
        camera = camera_number(word) is not None
        found += _named(Path(word)) if camera or os.path.lexists(word) else _matching(word)
    unique = {os.path.realpath(path): path for path in reversed(found)}
    paths = tuple(path for path in found if unique[os.path.realpath(path)] is path)
    if len(paths) < len(found):
        twice = len(found) - len(paths)
        tell(f"{twice} of the inputs {'is' if twice == 1 else 'are'} there twice, and read once", "INPUT")
    return Inputs(paths, len(words) == 1 and list(paths) == [Path(str(words[0]))])


def _named(path: Path) -> list[Path]:
    """A file or folder by its own name. UserError for a folder of neither pictures nor videos."""
    if not path.is_dir():
        return [path]
    try:
        list_pictures(path)
    except UserError:
        videos = _without_ours(each for each in _in_order(path.iterdir()) if _is_video(each))
        if not videos:
            raise
        return videos
    return [path]


def _matching(pattern: str) -> list[Path]:
    """What a pattern matches. UserError where that is nothing."""
    if not glob.has_magic(pattern):
        raise UserError("no such file or folder", pattern)
    matched = _in_order(map(Path, glob.glob(pattern, recursive=True)))
    last = Path(pattern).name
    by_suffix = last == "**" or any(letter in Path(last).suffix for letter in "*?[") or not Path(last).suffix
    found: list[Path] = []
    others: list[Path] = []
    for path in matched:
        if path.is_dir():
            if last != "**":  # whose files are matched themselves
                try:
                    found += _named(path)
                except UserError:
                    others.append(path)
        elif by_suffix and not (_is_video(path) or path.suffix.lower() in SUFFIXES):
            others.append(path)
        else:
            found.append(path)
    found = _without_ours(found)
    if others:
        count = f"{len(others)} {'name' if len(others) == 1 else 'names'}"
        tell(f"left out {count} of neither pictures nor videos: {some(others)}", pattern)
    if not found:
        raise UserError("no picture, video or folder of pictures is called so", pattern)
    return found


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _without_ours(paths: Iterable[Path]) -> list[Path]:
    """Without overlays that an earlier run drew, known by the manifest beside them."""
    return [path for path in paths if not _is_ours(path)]


def _is_ours(path: Path) -> bool:
    home = path.parent if path.name == OVERLAY else path.parent.parent if path.parent.name == PICTURES else None
    home = path.parent if path.name == PICTURES else home
    known = None if home is None else manifest(home, KIND)
    return (
        known is not None
        and home is not None
        and any(
            name == path.relative_to(home).as_posix() or name.startswith(f"{path.relative_to(home).as_posix()}/")
            for name in known
        )
    )


def _in_order(paths: Iterable[Path]) -> Iterator[Path]:
    """By name, numbers in their order, folder by folder."""
    yield from sorted(paths, key=lambda path: ([natural(part) for part in path.parts], str(path)))
