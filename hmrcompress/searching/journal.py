"""The journal of a search: one JSON line for every evaluation, on the disk before the next one starts.

The first line says what the evaluations depend on. A search that is killed and started again with the same settings
finds its evaluations here and repeats none. tau is not among the settings, since no evaluation depends on it; of a
candidate that was rejected early the line says `at_least`, and where that is not enough, a later line says more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError, tell
from hmrcompress.io.atomic import flush, free_name
from hmrcompress.io.figures import json_line
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.jsons import parse_json
from hmrcompress.io.keys import changed, listed
from hmrcompress.io.places import is_stream, pour, real
from hmrcompress.io.seals import JOURNAL_START as START
from hmrcompress.searching.eclm import Groups
from hmrcompress.searching.error import Measured

SCHEMA = 1
KIND = "journal"


class Journal:
    """Errors by grouping, kept in a file. Opening one reads it; the file appears with the first error written.

    A last line that was torn is dropped. A journal made for other settings is set aside under a new name, which is told
    and which `set_aside` then gives. To a pipe or device it is written and nothing is read. UserError where the file is
    damaged before its last line, and where it is no journal, which with `overwrite` makes room for one.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.stream = is_stream(path)
        self.path = path if self.stream else real(path)
        self.overwrite = overwrite
        self.settings = dict(settings)
        self.set_aside: Path | None = None
        self.frames_mm: list[float] | None = None
        """Errors of the untouched model, frame by frame, if they are in it."""
        self._errors: dict[Groups, Measured] = {}
        if not self.stream and self.path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._errors)

    def get(self, groups: Groups) -> Measured | None:
        """The error in mm of this grouping (NaN for one that was not finite), or None if it was not evaluated yet."""
        return self._errors.get(groups)

    def add(self, groups: Groups, measured: Measured, frames_mm: Sequence[float] | None = None) -> Measured:
        """Writes an error down and gives it back, as a reader will see it; it is on the disk when this returns.

        `frames_mm` are the errors of single frames, for the untouched model.
        """
        error_mm = measured.error_mm if math.isfinite(measured.error_mm) else math.nan
        line: dict[str, Any] = {"groups": groups, "error_mm": None if math.isnan(error_mm) else error_mm}
        if not measured.exact:
            line["at_least"] = True
        if frames_mm is not None:
            line["frames_mm"] = self.frames_mm = [float(value) for value in frames_mm]
        begun = bool(self._errors) if self.stream else self.path.exists()
        text = "".join(json_line(each) for each in ([line] if begun else [self._header(), line]))
        if self.stream:
            pour(text.encode(), self.path)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text)
            flush(self.path)
        self._errors[groups] = Measured(error_mm, measured.exact)
        return self._errors[groups]

    def _header(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "settings_sha256": sha256_json(self.settings), "settings": self.settings}

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        begun = data[: len(START)] == START[: len(data)]
        if (not whole and begun) or (not begun and self.overwrite):  # killed while writing the very first line
            self.path.unlink()
            return
        if not begun:
            raise UserError("this is not a journal of a search", self.path, "Give another name")
        header, *lines = whole.splitlines()
        first = self._parsed(header, 1)
        found, before = first.get("settings_sha256"), first.get("settings")
        if found is None:
            raise UserError("this is not a journal of a search", self.path, "Give another name")
        if found != sha256_json(self.settings):
            self.set_aside = free_name(self.path, "")
            os.rename(self.path, self.set_aside)
            other = listed(changed(self.settings, before if isinstance(before, dict) else {})) or "settings"
            tell(f"{other} changed since, so it is now {self.set_aside.name}, and all is measured anew", self.path)
            return
        for number, line in enumerate(lines, start=2):
            entry = self._parsed(line, number)
            groups = tuple(tuple(group) for group in entry["groups"])
            error_mm = math.nan if entry["error_mm"] is None else float(entry["error_mm"])
            self._errors[groups] = Measured(error_mm, not entry.get("at_least", False))
            self.frames_mm = entry.get("frames_mm", self.frames_mm)
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            parsed = parse_json(line, self.path)
        except UserError as error:
            raise UserError(f"line {number} is damaged ({error.what})", self.path, "Delete the journal") from error
        if not isinstance(parsed, dict) or (number > 1 and not _is_entry(parsed)):
            raise UserError(f"line {number} is not an entry of a journal", self.path, "Give another name")
        return parsed


def _is_entry(line: dict[str, Any]) -> bool:
    """Whether a line holds groups of layers, an error that is a number or null, and numbers of frames if any."""
    groups, error, frames = line.get("groups"), line.get("error_mm", ""), line.get("frames_mm", [])
    return (
        isinstance(groups, list)
        and all(isinstance(group, list) and all(isinstance(layer, int) for layer in group) for group in groups)
        and (error is None or _is_number(error))
        and isinstance(frames, list)
        and all(map(_is_number, frames))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
