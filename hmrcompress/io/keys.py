"""What a result that is kept for later depends on: contents and options, never names of files.

Whatever is kept (errors in a journal, features, stages of a run, rows of tables, rendered crops, training states) is
kept under such a key. tests/test_keys*.py change every input of every one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.errors import UserError, tell
from hmrcompress.io.atomic import clear_leftovers_in
from hmrcompress.io.code import code_sha256
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.jsons import read_json
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import without_seal

KEY_FILE, KIND = "key.json", "key"
CODE = ("code", "versions")
"""Inputs that tell which program makes a result, in keys and in the identities inside of them."""
MOST_NAMED = 5
"""Inputs that a sentence names."""


@dataclass(frozen=True)
class Key:
    """`step`: what is kept. `inputs`: plain values by name, hashes of contents and options."""

    step: str
    inputs: Mapping[str, Any]

    @classmethod
    def of(cls, step: str, code: Sequence[str], **inputs: Any) -> Key:
        """The key of a result that `code` (see `io.code.code_sha256`) makes of `inputs`; beside these it depends on
        that code and on the versions of torch and numpy.

        Inputs are plain values, dtypes, devices (of which the kind counts), dataclasses and pydantic models. Raises
        TypeError for anything else, and for paths: what lies there is meant, not where it lies.
        """
        versions = {"numpy": np.__version__, "torch": str(torch.__version__)}
        made = {name: plain(value) for name, value in inputs.items()}
        return cls(step, {**made, "code": code_sha256(*code), "versions": versions})

    @cached_property
    def sha256(self) -> str:
        """The hash of step and inputs."""
        return sha256_json([self.step, self.inputs])

    @property
    def short(self) -> str:
        """Its beginning, for the name of a file or folder."""
        return self.sha256[:16]

    def changed(self, before: Mapping[str, Any]) -> list[str]:
        """Names of the inputs that were others in an earlier key."""
        return changed(self.inputs, before)

    def changed_beside_code(self, before: Mapping[str, Any]) -> list[str]:
        """The same of the inputs that another program with the same settings and files would have, too."""
        return changed(_beside_code(self.inputs), _beside_code(before))


def _beside_code(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _beside_code(each) for name, each in value.items() if name not in CODE}
    return [_beside_code(each) for each in value] if isinstance(value, (list, tuple)) else value


def changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Names of the values that differ, or are in one of the two alone."""
    return [name for name in {**now, **before} if now.get(name, ...) != before.get(name, ...)]


def listed(names: Sequence[str]) -> str:
    """`masks`, `masks and body`, `masks, body and code`: names of inputs in a sentence, of many the first ones."""
    words = [name.replace("_", " ") for name in names]
    if len(words) > MOST_NAMED:
        words = [*words[: MOST_NAMED - 1], f"{len(words) - MOST_NAMED + 1} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def folder_of(home: Path, key: Key, named: Mapping[str, str], what: str) -> Path:
    """The folder below `home` for results under this key, made where it is not there. `named`: what the user calls the
    inputs. Where there is a folder of inputs of these names and other contents, it is told that `what` is made anew.
    UserError where the folder says that it is of another key.
    """
    folder, about = home / key.short, {"step": key.step, "inputs": dict(key.inputs)}
    path = folder / KEY_FILE
    if not path.is_file():
        if (fresh := earlier(sorted(home.glob(f"*/{KEY_FILE}")), key, named)) is not None:
            tell(f"made anew, as {listed(fresh)} changed since they were kept", what)
        folder.mkdir(parents=True, exist_ok=True)
        OutputRule().write_json(path, {**about, "named": dict(named)}, KIND)
        return folder
    found = read_json(path)
    if not isinstance(found, dict) or {**without_seal(found), "named": None} != {**about, "named": None}:
        raise UserError(
            "is kept under a name that is not its own", folder, "Remove the folder, so that it is made anew"
        )
    clear_leftovers_in(folder)
    return folder


def earlier(metas: Iterable[Path], key: Key, named: Mapping[str, str]) -> list[str] | None:
    """What has changed since the most alike of those results that were kept of inputs of the same names: each of the
    JSON files says `named` and `inputs`. None where there is none; files that say something else are passed over."""
    alike = []
    for path in metas:
        try:
            meta = read_json(path)
        except (UserError, OSError):
            continue
        if isinstance(meta, dict) and meta.get("named") == dict(named) and isinstance(meta.get("inputs"), dict):
            alike.append(key.changed(meta["inputs"]))
    return min(alike, key=len, default=None)


def plain(value: Any) -> Any:
    """A value as JSON gives it back; see `Key.of`."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return value.type
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(each) for name, each in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        raise TypeError(f"{value}: a key names contents, not where they lie")
    return json.loads(json.dumps(value, allow_nan=False))
