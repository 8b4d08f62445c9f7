"""What stands where an output is to be written: nothing, something of ours, or somebody else's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.io import atomic, manifests
from hmrcompress.io.manifests import LITTER, FolderKind
from hmrcompress.io.places import signature
from hmrcompress.io.seals import form_of, of_an_earlier_version, read_seal

FREE, OURS, EDITED, OTHER = "free", "ours", "edited", "other"


@dataclass
class Claim:
    """An output that was looked at: its kind, what stood there, and what tells whether it was touched since."""

    kind: str
    standing: str
    state: Any
    strangers: tuple[str, ...] = ()


class Claims(dict[Path, Claim]):
    """The outputs of a command that were looked at, by their real places."""

    def check_once(self, target: Path, path: Path, kind: str) -> None:
        """UserError where another kind of output is to be written there, too."""
        known = self.get(target)
        if known is not None and known.kind != kind:
            raise UserError(f"is to be written twice, as {known.kind} and as {kind}", path, "Give two names")

    def look(self, target: Path, kind: str, form: str) -> Claim:
        """What stands in the place of a file; not looked at again unless it was touched."""
        known, state = self.get(target), signature(target)
        if known is None or known.state != state:
            known = self[target] = Claim(kind, standing(target, kind, form), state)
        return known

    def look_into(self, target: Path, kind: FolderKind) -> Claim:
        """What stands in the place of a folder, and what in it is not ours; not looked at again unless touched."""
        known, state = self.get(target), manifests.snapshot(target) if target.is_dir() else None
        if known is None or known.state != state:
            found: tuple[str, ...] = ()
            if state is not None and not manifests.is_empty(target):
                found = tuple(manifests.strangers(target, kind, more=_begun(target, kind)))
            there = FREE if state is None else OTHER if found else OURS
            known = self[target] = Claim(folder_of(kind), there, state, found)
        return known

    def others(self, claim: Claim, target: Path) -> list[str]:
        """Strangers that count: not what file managers leave, nor what this command is to write there itself."""
        return [
            name for name in claim.strangers if PurePosixPath(name).name not in LITTER and target / name not in self
        ]


def standing(target: Path, kind: str, form: str) -> str:
    """What stands in the place of a file: nothing, ours, ours but edited, or another."""
    if not os.path.lexists(target):
        return FREE
    if (form or form_of(target)) == "jsonl" and target.is_file() and not target.stat().st_size:
        return OURS  # of a process that was killed before its first line
    found = read_seal(target, form)
    if found is None:
        return EDITED if of_an_earlier_version(target, kind, form) else OTHER
    if found.kind != kind:
        return OTHER
    return OURS if found.intact else EDITED


def folder_of(kind: FolderKind) -> str:
    """The kind of the output that such a folder is."""
    return f"{kind.name} folder"


def is_ours(kind: FolderKind, folder: Path) -> bool:
    """Whether nothing in it is somebody else's."""
    return not manifests.strangers(folder, kind)


def _begun(target: Path, kind: FolderKind) -> list[dict[str, Any]]:
    """Manifests of what killed commands had begun to put into a folder."""
    if kind.main is None:
        return []
    rooms = (each for each in target.iterdir() if atomic.room_for(each) is not None)
    found = (manifests.manifest(each / atomic.MADE / target.name, kind) for each in rooms)
    return [each for each in found if each is not None]
