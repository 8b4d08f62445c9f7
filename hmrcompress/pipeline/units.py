"""Inputs of which each is done, failed with a reason, or not begun: the list of them, kept beside their results.

`manifest.json` says of every input where its result lies, what it was made of, and how it went. Whether an input is
done is not the manifest's word but that of the folder itself, which is written whole with all that it depends on; so
a process may be killed between the two.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hmrcompress.data.picture_folders import list_pictures
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_file, sha256_files
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import read_sealed
from hmrcompress.pipeline.predict import INPUTS, KIND, SUMMARY

MANIFEST, MANIFEST_KIND = "manifest.json", "predictions"
DONE, FAILED, NOT_BEGUN = "done", "failed", "not begun"
STATES = (DONE, FAILED, NOT_BEGUN)
SETTLED = 2.0
"""Seconds after which a file's times tell that it was changed: clocks of file systems are coarse."""
SECONDS_OF_TIME, SHARE_OF_TIME = 2.0, 0.05
"""Of a run that writing the manifest may take, so many and this share; at the end it is written in any case."""


@dataclass
class Unit:
    """An input and its result. place: of the input, absolute; input: as it was named; folder: of the result, below the
    output. contents: hash of what is in the input; stamp: tells that no file of it was touched since (empty where that
    is not known). begun: runs that began it and did not live to its end. figures: of the result."""

    place: str
    input: str
    folder: str
    state: str = NOT_BEGUN
    reason: str = ""
    contents: str = ""
    stamp: str = ""
    begun: int = 0
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is empty is left out."""
        return {name: value for name, value in asdict(self).items() if value or name in ("input", "folder", "state")}

    @classmethod
    def of(cls, value: Any) -> Unit | None:
        """What `to_json` gave; None for anything else."""
        kinds = {"place": str, "input": str, "folder": str, "reason": str, "contents": str, "stamp": str, "begun": int}
        if not isinstance(value, Mapping) or value.get("state") not in STATES:
            return None
        taken = {name: value[name] for name, kind in kinds.items() if isinstance(value.get(name), kind)}
        if not {"place", "input", "folder"} <= set(taken) or not _is_name(taken["folder"]):
            return None
        figures = value.get("figures")
        return cls(**taken, state=value["state"], figures=dict(figures) if isinstance(figures, Mapping) else {})


@dataclass
class Manifest:
    """The units of an output folder, of this run (`mine`) and of earlier ones. settings: what all results of the last
    run depended on beside their inputs."""

    out: Path
    units: list[Unit]
    mine: list[Unit]
    settings: dict[str, Any]
    rule: OutputRule
    _opened: float = field(default_factory=time.monotonic)
    _spent: float = 0.0

    @classmethod
    def open(cls, out: Path, paths: Sequence[Path], rule: OutputRule) -> Manifest:
        """That of the folder `out`, with these inputs in it. An input has the folder that it had before; one that was
        moved is known by its name and contents; a new one gets a folder of its name, or `NAME-2`, … where that is
        another's. Nothing is written. UserError where something else is called like the manifest, unless the rule says
        otherwise."""
        rule.check_file(out / MANIFEST, MANIFEST_KIND, "json")
        found = read_sealed(out / MANIFEST, MANIFEST_KIND) or {}
        listed = found.get("inputs")
        units = [unit for each in (listed if isinstance(listed, list) else ()) if (unit := Unit.of(each)) is not None]
        by_place = {unit.place: unit for unit in units}
        places = [os.path.realpath(path) for path in paths]
        free: dict[str, list[Unit]] = {}
        for unit in units:
            if unit.place not in places and unit.contents:
                free.setdefault(Path(unit.place).name, []).append(unit)
        taken = {unit.folder.casefold() for unit in units} | {MANIFEST}
        mine: list[Unit] = []
        for path, place in zip(paths, places, strict=True):
            unit = by_place.get(place) or _moved(path, free)
            if unit is None:
                unit = Unit(place, str(path), _free_name(Path(place), taken))
                taken.add(unit.folder.casefold())
                units.append(unit)
            unit.place, unit.input = place, str(path)
            mine.append(unit)
        settings = found.get("settings")
        return cls(out, units, mine, settings if isinstance(settings, dict) else {}, rule)

    def write(self, *, now: bool = False) -> None:
        """Writes it, whole or not at all; without `now` only as long as that takes little of the time of the run."""
        start = time.monotonic()
        if not now and self._spent > SECONDS_OF_TIME + SHARE_OF_TIME * (start - self._opened):
            return
        value: dict[str, Any] = {"schema": 1, "command": "predict", "settings": self.settings}
        value["inputs"] = [unit.to_json() for unit in self.units]
        self.rule.write_json(self.out / MANIFEST, value, MANIFEST_KIND)
        self._spent += time.monotonic() - start


def contents_of(path: Path) -> str:
    """Hash of what is in an input: of a file, or of a folder's pictures and their names. UserError, OSError."""
    return sha256_files(path, files_of(path)) if path.is_dir() else sha256_file(path)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that an input is read from. UserError for a folder without pictures."""
    return list_pictures(path).files if path.is_dir() else (path,)


def stamp_of(paths: Iterable[Path]) -> str:
    """What changes whenever one of these files does, told from their names, sizes and times alone; empty where one was
    touched so lately that its times do not tell. OSError where one is missing."""
    digest, newest = hashlib.sha256(), 0
    for path in paths:
        found = os.stat(path)
        newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
        numbers = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        digest.update(f"{path.name}\0{numbers}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest() if newest < time.time_ns() - SETTLED * 1e9 else ""


def result_in(folder: Path) -> dict[str, Any] | None:
    """The summary of a result whose files are all there, as long as they were; None where there is no such result."""
    found = read_sealed(folder / SUMMARY, KIND.name)
    files = None if found is None else found.get("files")
    if found is None or not isinstance(found.get(INPUTS), dict) or not isinstance(files, dict):
        return None
    for name, entry in files.items():
        try:
            if (folder / name).stat().st_size != entry["bytes"]:
                return None
        except (OSError, KeyError, TypeError):
            return None
    return found


def _moved(path: Path, free: dict[str, list[Unit]]) -> Unit | None:
    """A unit of this name and contents whose input lay elsewhere, no longer free then."""
    candidates = free.get(path.name, [])
    if not candidates:
        return None
    try:
        contents = contents_of(path)
    except (OSError, UserError):
        return None
    found = next((unit for unit in candidates if unit.contents == contents), None)
    if found is not None:
        candidates.remove(found)
        found.stamp = ""
    return found


def _free_name(place: Path, taken: set[str]) -> str:
    """A folder's name for an input, that no other has on any file system."""
    stem = (place.name if place.is_dir() else place.stem) or "input"
    number, name = 1, stem
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _is_name(text: str) -> bool:
    """Whether this is a plain name, which leads nowhere else."""
    return text not in ("", ".", "..") and Path(text).name == text and "\0" not in text
