"""What a search for the frontier has measured, one JSON line each, on the disk before the next measurement starts: a
search that is killed and started again repeats nothing and gives the same bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError, tell
from hmrcompress.io.atomic import flush, free_name
from hmrcompress.io.figures import json_line
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.jsons import parse_json
from hmrcompress.io.keys import changed, listed
from hmrcompress.io.seals import JOURNAL_START as START


class Ledger:
    """Values by name, kept in a file whose first line says what they depend on. A torn last line is dropped; a file
    made for other settings is set aside under a new name, which is told."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, read: bool = True) -> None:
        """Without `read` it is empty, and nothing may be put into it. UserError where the file is something else, or
        damaged before its last line."""
        self.path, self.settings = path, dict(settings)
        self._values: dict[str, Any] = {}
        if read and path.exists():
            self._read()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str) -> Any:
        """What was written under a name; None where nothing was."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> Any:
        """Writes a JSON value down and gives it back; it is on the disk when this returns."""
        text = json_line({"name": name, "value": value})
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            head = {"schema": 1, "settings_sha256": sha256_json(self.settings), "settings": self.settings}
            text = json_line(head) + text
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
        flush(self.path)
        self._values[name] = value
        return value

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        begun = data[: len(START)] == START[: len(data)]
        if not whole and begun:  # killed while writing the very first line
            self.path.unlink()
            return
        if not begun:
            raise UserError("this is not a journal of a search", self.path, "Give another name")
        header, *lines = (self._parsed(line, number) for number, line in enumerate(whole.splitlines(), 1))
        if header.get("settings_sha256") != sha256_json(self.settings):
            aside = free_name(self.path, "")
            os.rename(self.path, aside)
            before = header.get("settings")
            other = listed(changed(self.settings, before if isinstance(before, dict) else {})) or "settings"
            tell(f"{other} changed since, so it is now {aside.name}, and all is measured anew", self.path)
            return
        self._values = {str(line["name"]): line["value"] for line in lines if "name" in line and "value" in line}
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            parsed = parse_json(line, self.path)
        except UserError as error:
            raise UserError(f"line {number} is damaged ({error.what})", self.path, "Delete the journal") from error
        if not isinstance(parsed, dict):
            raise UserError(f"line {number} is not an entry of a journal", self.path, "Give another name")
        return parsed
