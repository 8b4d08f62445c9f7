"""Folders that are written whole: a JSON file in each is its manifest, `files` with size and hash of all the others.

The manifest is sealed (`io.seals`), so it can't be edited without notice either. What is in such a folder and not in
its manifest, or is not as the manifest says, is not ours.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.io.atomic import room_for
from hmrcompress.io.figures import json_text
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.jsons import parse_json
from hmrcompress.io.seals import LARGEST_TEXT, json_seal, read_seal, sealed_json

FILES = "files"
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave in folders. It stays, and is no reason to refuse anything."""
LOOKED_AT = 1000
"""Strangers after which a folder is known to be somebody else's."""


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder: its name as seals have it, the file that is its manifest (None: each file is sealed by itself),
    and the names of all that may be written into it, as patterns of `PurePosixPath.match`."""

    name: str
    main: str | None
    writes: tuple[str, ...]

    def may_write(self, name: str) -> bool:
        """Whether a file of this name (relative, with slashes) is one that the command writes."""
        return any(PurePosixPath(name).match(pattern) for pattern in (*self.writes, *filter(None, (self.main,))))


def describe(folder: Path, kind: FolderKind, *, also: Mapping[str, Any] | None = None) -> None:
    """Adds to the manifest of a folder that was just filled what is in it, and seals it. also: of files elsewhere."""
    if kind.main is None:
        return
    main = folder / kind.main
    value = json.loads(main.read_text(encoding="utf-8"))
    found = {name: reference(folder / name) for name in sorted(names(folder)) if name != kind.main}
    text = json_text(sealed_json({**value, FILES: {**(also or {}), **found}}, kind.name))
    main.write_bytes(text.encode())


def reference(file: Path) -> dict[str, Any]:
    """{bytes, sha256} of a file, as manifests have it."""
    return {"bytes": file.stat().st_size, "sha256": sha256_file(file)}


def manifest(folder: Path, kind: FolderKind) -> dict[str, Any] | None:
    """name -> {bytes, sha256} of the files of a folder of this kind; None where its manifest is missing or edited."""
    if kind.main is None:
        return None
    try:
        if (folder / kind.main).stat().st_size > LARGEST_TEXT:
            return None
        value = parse_json((folder / kind.main).read_bytes(), folder / kind.main)
    except (OSError, UserError):
        return None
    found = json_seal(value) if isinstance(value, dict) else None
    if found is None or found.kind != kind.name or not found.intact or not isinstance(value.get(FILES), dict):
        return None
    return {str(name): entry for name, entry in value[FILES].items() if isinstance(entry, dict)}


def strangers(folder: Path, kind: FolderKind, *, more: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """Names of what is in a folder and not known to be ours as it was written; folders end in a slash.

    more: manifests beside that of the folder, which may be right instead.
    """
    own = manifest(folder, kind)
    known: dict[str, list[Any]] = {}
    for each in (*more, own or {}):
        for name, entry in each.items():
            known.setdefault(name, []).append(entry)
    parents = {str(parent) for name in known for parent in PurePosixPath(name).parents}
    found: list[str] = []
    plausible: list[str] = []
    for name, entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            if name not in parents and not _has_files(folder / name):
                found.append(f"{name}/")
        elif not entry.is_file(follow_symlinks=False):
            found.append(name)
        elif kind.main is None:
            sealed = read_seal(folder / name)
            if sealed is None or sealed.kind != kind.name or not sealed.intact:
                found.append(name)
        elif name != kind.main or own is None:
            size = entry.stat(follow_symlinks=False).st_size
            (plausible if any(each.get("bytes") == size for each in known.get(name, ())) else found).append(name)
        if len(found) >= LOOKED_AT:
            return found
    return found + [name for name in plausible if not any(unchanged(folder / name, each) for each in known[name])]


def unchanged(file: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is there, no link, and as a manifest says."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size != entry.get("bytes"):
        return False
    return sha256_file(file) == entry.get("sha256")


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """What tells whether anything in a folder was touched since: name -> size, time and number of the file."""
    found: dict[str, tuple[int, ...]] = {}
    for name, entry in _entries(folder):
        state = entry.stat(follow_symlinks=False)
        if not stat.S_ISDIR(state.st_mode):
            found[name] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder but rooms."""
    return next(_entries(folder), None) is None


def rooms(folder: Path) -> list[Path]:
    """The rooms of ours in a folder and below: what processes of ours make, or made, there."""
    found: list[Path] = []
    for place, folders, _ in os.walk(folder):
        here = [Path(place, name) for name in folders if room_for(Path(place, name)) is not None]
        folders[:] = [name for name in folders if Path(place, name) not in here]
        found += here
    return found


def sentence(found: list[str]) -> str:
    """A few of the names: `a.txt, b/ and 3 more`."""
    few = ", ".join(found[:3])
    return f"{few} and {len(found) - 3} more" if len(found) > 3 else few


def names(folder: Path) -> list[str]:
    """Names of all files in a folder, with slashes."""
    return [name for name, entry in _entries(folder) if not entry.is_dir(follow_symlinks=False)]


def _has_files(folder: Path) -> bool:
    """Whether anything in a folder will be told of by itself; of an empty one, or a tree of such, only it can be."""
    return any(not entry.is_dir(follow_symlinks=False) for _, entry in _entries(folder))


def _entries(folder: Path, before: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a folder, by name with slashes, in order; no links are followed, and rooms are left out."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if room_for(Path(entry.path)) is not None:
            continue
        yield f"{before}{entry.name}", entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), f"{before}{entry.name}/")
