"""The one rule for everything that a command writes.

What stands in the place of an output is replaced only if it is known to be of the same kind and ours: a file by its
seal (`io.seals`), a folder by its manifest (`io.manifests`). A file of ours that was edited since is kept beside, as
`NAME.bak`. Everything else is left alone, and the command ends before its work begins; with `overwrite` it replaces the
files that it writes, and still leaves all others. An output that is one of the inputs is refused in any case. Links are
followed; to pipes and devices it is written.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from hmrcompress.errors import UserError, tell
from hmrcompress.io import atomic, manifests
from hmrcompress.io.figures import json_text
from hmrcompress.io.manifests import FolderKind
from hmrcompress.io.places import (
    below,
    check_writable,
    is_stream,
    must_stay,
    paths_in,
    pour,
    real,
    same,
    signature,
    stream_of,
)
from hmrcompress.io.seals import read_seal, seal
from hmrcompress.io.standing import EDITED, FREE, OTHER, OURS, Claim, Claims, folder_of, is_ours, standing

BAK, NEW = ".bak", ".new"
FILE_ELSEWHERE = "Choose another name, or give --overwrite to replace it"
FOLDER_ELSEWHERE = "Choose another name, or give --overwrite, which replaces the files it writes and leaves all others"
NAME_ANOTHER = "Choose another name"
STAYS = (errno.EXDEV, errno.EBUSY, errno.EACCES, errno.EPERM, errno.ENOTEMPTY, errno.EEXIST)
"""Why a folder may not change its place though files can be put into it: a lower layer, a mount, …"""


class _Touched(Exception):
    """Somebody wrote into a folder just now."""


class OutputRule:
    """The rule for the outputs of one command. overwrite: replace what others wrote, too. inputs: paths, names of data
    and models, or objects with a `path`; what is none of these does not count. What is kept beside is told (`tell`)."""

    def __init__(self, *, overwrite: bool = False, inputs: Iterable[Any] = ()) -> None:
        self.overwrite = overwrite
        self.inputs: list[Path] = []
        self._claims = Claims()
        self.reads(*inputs)

    @classmethod
    def of(cls, overwrite: bool | OutputRule = False, *inputs: Any) -> OutputRule:
        """The rule that a library function follows: that of the command which calls it, or one of its own."""
        outputs = overwrite if isinstance(overwrite, OutputRule) else cls(overwrite=overwrite)
        outputs.reads(*inputs)
        return outputs

    def fresh(self) -> OutputRule:
        """The same rule for a part of the command whose inputs are not those of the others."""
        return OutputRule(overwrite=self.overwrite, inputs=self.inputs)

    def reads(self, *inputs: Any) -> None:
        """More inputs, which nothing may be written over."""
        known = set(self.inputs)
        self.inputs += [path for path in dict.fromkeys(paths_in(inputs)) if path not in known]

    def check_file(self, path: Path | str, kind: str, form: str = "") -> None:
        """UserError where a file of this kind must not, or cannot, be written to `path`. Removes what a killed command
        left there. form: see `io.seals.form_of`."""
        path = Path(path)
        if is_stream(path):
            atomic.clear_leftovers(_stream_room(path))
            if (stream := stream_of(path)) is not None:
                self._claims.check_once(stream, path, kind)
                self._claims[stream] = Claim(kind, OTHER, None)
            return
        target = real(path)
        if target.is_dir():
            raise UserError("is a folder, expected the name of a file", path)
        self._check_place(target, path, kind)
        claim = self._claims.look(target, kind, form)
        if claim.standing == OTHER and not self.overwrite:
            raise UserError(f"is there already, and no {kind} that hmrcompress wrote", path, FILE_ELSEWHERE)

    @contextmanager
    def file(self, path: Path | str, kind: str, form: str = "", *, hashed: bool = True) -> Iterator[Path]:
        """Gives a temporary path, of the same name, to write to; when the block ends well it is sealed and takes the
        place of `path`, or goes to the pipe or device that this is. Otherwise nothing is left behind. Parent folders
        are made. Raises UserError as `check_file`, which what was checked before is not again, and as `put`."""
        path = Path(path)
        stream = is_stream(path)
        target = _stream_room(path) if stream else real(path)
        if target not in self._claims:
            self.check_file(path, kind, form)
        self._claims.check_once(target, path, kind)
        with atomic.room(target) as made:
            yield made / target.name
            seal(made / target.name, kind, form, hashed=hashed)
            if stream:
                pour(made / target.name, path)
            else:
                self.put(made / target.name, path, kind, form)

    def put(self, made: Path, path: Path | str, kind: str, form: str = "") -> None:
        """Puts a sealed file, which lies in a room beside `path`, in its place. Raises UserError where somebody wrote
        there since it was checked; what was made is then kept under another name."""
        path, target = Path(path), real(path)
        if target not in self._claims:
            self.check_file(path, kind, form)
        if target.parent.is_dir() and made.stat().st_dev != target.parent.stat().st_dev:  # at the end of a link
            with atomic.room(target) as nearer:
                shutil.copy2(made, nearer / made.name)
                self.put(nearer / made.name, path, kind, form)
            return
        atomic.flush(made)
        claim = self._claims.look(target, kind, form)
        if claim.standing == OTHER and not self.overwrite:
            self._too_late(made, target, path)
        if claim.standing == FREE:
            if not atomic.put_new(made, target):
                self._too_late(made, target, path)
        else:
            if claim.standing == EDITED:
                self._keep(target, path)
            shutil.copymode(target, made)
            os.replace(made, target)
        atomic.flush(target.parent)
        self._claims[target] = Claim(kind, OURS, signature(target))

    def write_text(self, path: Path | str, text: str, kind: str, form: str = "") -> None:
        """Writes a UTF-8 text file, with unix line ends. Raises as `file`."""
        with self.file(path, kind, form) as temporary:
            temporary.write_bytes(text.encode())

    def write_json(self, path: Path | str, value: Mapping[str, Any], kind: str) -> None:
        """Writes a JSON object, indented and sealed; the same value gives the same bytes. Raises as `file`."""
        self.write_text(path, json_text(value), kind, "json")

    def check_folder(self, path: Path | str, kind: FolderKind) -> None:
        """UserError where a folder of this kind must not, or cannot, be written to `path`. Removes what a killed
        command left there."""
        path = Path(path)
        if is_stream(path):
            raise UserError("is no name for a folder, and a folder is to be written", path, "Give it a name")
        target = real(path)
        if target.exists() and not target.is_dir():
            raise UserError("is a file, expected the name of a folder", path)
        self._check_place(target, path, folder_of(kind), partial(is_ours, kind))
        claim = self._claims.look_into(target, kind)
        others = self._claims.others(claim, target)
        if others and not self.overwrite:
            raise UserError(_loss(target, kind, others), path, FOLDER_ELSEWHERE)
        for each in self.inputs:
            inside = below(each, target)
            if inside is not None and (not others or kind.may_write(inside)):
                raise UserError(f"is an input, and lies in the folder {path} that is to be written", each, NAME_ANOTHER)
        for pattern in (*kind.writes, *filter(None, (kind.main,))):
            for part in (PurePosixPath(pattern), *PurePosixPath(pattern).parents[:-1]):
                if (target / part).is_dir() == (str(part) == pattern) and (target / part).exists():
                    what = "folder" if (target / part).is_dir() else "file"
                    raise UserError(f"is a {what}, which is in the way", path / part, NAME_ANOTHER)

    @contextmanager
    def folder(self, path: Path | str, kind: FolderKind) -> Iterator[Path]:
        """Gives a temporary folder, of the same name, to fill, the JSON of its manifest included; when the block ends
        well the manifest is completed, and it takes the place of `path`. Otherwise nothing is left behind. Parent
        folders are made. Raises UserError as `check_folder`, which what was checked before is not again, and where
        somebody wrote there since; what was made is then kept under another name."""
        path, target = Path(path), real(path)
        if target not in self._claims:
            self.check_folder(path, kind)
        self._claims.check_once(target, path, folder_of(kind))
        inside = target.is_dir() and must_stay(target)
        with atomic.room(target / target.name if inside else target, partial(is_ours, kind)) as made:
            staged = made / target.name
            staged.mkdir()
            yield staged
            manifests.describe(staged, kind)
            atomic.flush_tree(staged)
            self._install(staged, target, path, kind, movable=not inside)
        atomic.clear_leftovers(target / target.name)
        atomic.flush(target.parent)
        self._claims[target] = Claim(folder_of(kind), OTHER, None)

    @contextmanager
    def additions(self, path: Path | str, kind: FolderKind) -> Iterator[Path]:
        """Gives a temporary folder; what is put into it is added to the folder of ours at `path`, and to its manifest.
        UserError where that is not ours as it was written."""
        path, target = Path(path), real(path)
        known = manifests.manifest(target, kind)
        if known is None or kind.main is None:
            raise UserError(f"is no {kind.name} that hmrcompress wrote, or it was edited", path)
        with atomic.room(target / target.name) as made:
            staged = made / target.name
            staged.mkdir()
            yield staged
            shutil.copy2(target / kind.main, staged)
            manifests.describe(staged, kind, also=known)
            atomic.flush_tree(staged)
            self._fill(staged, target, path, kind, before={})
        atomic.flush(target)

    def remove_file(self, path: Path, kind: str, form: str = "") -> bool:
        """Removes a file of this kind that nobody changed; False, and it stays, where it is another."""
        found = read_seal(path, form) if path.is_file() and not path.is_symlink() else None
        if found is None or found.kind != kind or not found.intact:
            return False
        path.unlink()
        self._claims.pop(real(path), None)
        return True

    def remove_folder(self, path: Path, kind: FolderKind) -> bool:
        """Removes a folder of this kind that nobody changed; False, and it stays, where there is anything else."""
        if not path.is_dir() or path.is_symlink() or not is_ours(kind, path) or manifests.rooms(path):
            return False
        with atomic.room(path, partial(is_ours, kind)) as made:
            os.rename(path, made / path.name)
        self._claims.pop(real(path), None)
        return True

    def _check_place(self, target: Path, path: Path, kind: str, ours: atomic.Ours = atomic.never) -> None:
        self._claims.check_once(target, path, kind)
        for each in self.inputs:
            if same(each, target):
                raise UserError("is an input, and would be written over", path, NAME_ANOTHER)
        check_writable(target, path)
        atomic.clear_leftovers(target, ours)

    def _install(self, staged: Path, target: Path, path: Path, kind: FolderKind, *, movable: bool) -> None:
        if not target.exists() and atomic.put_new(staged, target):
            return
        claim = self._claims.look_into(target, kind)
        if self._claims.others(claim, target) and not self.overwrite:
            self._too_late(staged, target, path)
        if movable and not claim.strangers and not manifests.rooms(target):
            try:
                shutil.copymode(target, staged)
                if manifests.is_empty(target):
                    os.rename(staged, target)
                else:
                    atomic.swap(staged, target, partial(_untouched, claim.state))
                return
            except _Touched:
                self._too_late(staged, target, path)
            except OSError as error:
                if error.errno not in STAYS:
                    raise
        self._fill(staged, target, path, kind, before=manifests.manifest(target, kind) or {})

    def _fill(self, staged: Path, target: Path, path: Path, kind: FolderKind, *, before: Mapping[str, Any]) -> None:
        """File by file into a folder that stays, the manifest last. What there was before of ours, and is not written
        again, goes."""
        names = sorted(manifests.names(staged), key=lambda name: (name == kind.main, name))
        for name in names:
            place = real(target / name)
            if place.is_dir() or any(same(each, place) for each in self.inputs):
                raise UserError("is in the way of what is to be written", path / name, NAME_ANOTHER)
        for name in names:
            place = real(target / name)
            if place.suffix == ".yaml" and standing(place, "plan", "plan") == EDITED:
                self._keep(place, path / name)
            place.parent.mkdir(parents=True, exist_ok=True)
            _move(staged / name, place)
        for name in before.keys() - set(names):
            if manifests.unchanged(target / name, before[name]):
                (target / name).unlink()
                _remove_empty((target / name).parent, target)

    def _keep(self, target: Path, path: Path) -> None:
        """An edited file under another name, without a moment in which it has none."""
        kept = atomic.free_name(target, BAK)
        try:
            os.link(target, kept)
        except OSError:  # a file system without links
            shutil.copy2(target, kept)
        tell(f"was edited, or is of an earlier version; it is kept as {kept.name}", path)

    def _too_late(self, made: Path, target: Path, path: Path) -> NoReturn:
        while not atomic.put_new(made, kept := atomic.free_name(target, NEW)):
            pass
        raise UserError("somebody wrote there while the command ran", path, f"What it made is {kept.name}, beside it")


def _loss(target: Path, kind: FolderKind, others: list[str]) -> str:
    """What a refusal says of a folder."""
    named = manifests.sentence(others)
    if kind.main is None or manifests.manifest(target, kind) is not None:
        return f"holds {named}, which this command did not write, or which was changed since"
    return f"is no {kind.name} that this command wrote, and holds {named}"


def _stream_room(path: Path) -> Path:
    """Where what goes to a stream is made."""
    return Path(tempfile.gettempdir(), f"stream{path.suffix}")


def _untouched(state: Any, folder: Path) -> None:
    if manifests.snapshot(folder) != state:
        raise _Touched


def _move(made: Path, place: Path) -> None:
    """Renames, or copies where `place` is the other end of a link to another file system."""
    try:
        os.replace(made, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic.whole_file(place) as temporary:
            shutil.copy2(made, temporary)


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top:
        try:
            os.rmdir(folder)
        except OSError:
            return
        folder = folder.parent
