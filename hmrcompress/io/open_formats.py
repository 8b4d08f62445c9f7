"""Files that hold pickles, as files that do not: arrays to npz, weights to safetensors, all else to JSON beside it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import SPARE_BYTES, read_values
from hmrcompress.io.checkpoints import StateFile
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.npz import write_npz
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.safetensors_file import write_safetensors

KIND = "conversion"
BYTES_OF_A_VALUE = 64
UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Converted:
    """The files that were written, and what the JSON says."""

    path: Path
    record_path: Path
    record: dict[str, Any]


def target_of(path: Path | str, out: Path | str, suffix: str, outputs: OutputRule) -> Path:
    """`out` with `suffix`. UserError where it has another, and where it or the JSON beside must not be written."""
    out = Path(out)
    if out.suffix not in ("", suffix):
        raise UserError(f"got a name ending in {out.suffix!r}, expected {suffix}", out)
    target = out.with_suffix(suffix)
    outputs.reads(path)
    outputs.check_file(target, KIND)
    outputs.check_file(target.with_suffix(".json"), KIND, "json")
    return target


def convert_values(path: Path | str, out: Path | str, *, overwrite: bool | OutputRule = False) -> Converted:
    """A pickle of arrays in dictionaries and lists, such as those of 3DPW and EMDB, to OUT.npz and OUT.json.

    The npz has one array for each of the pickle, named by its keys (`smpl/poses_root`, `poses/0`); the JSON has the
    whole structure, numbers and text in it, and in the place of an array {array, shape, dtype}. Raises UserError as
    `read_values`, where there is no array in it, and as `io.outputs`.
    """
    path, outputs = Path(path), OutputRule.of(overwrite)
    target = target_of(path, out, ".npz", outputs)
    tree = _Tree(8 * path.stat().st_size + SPARE_BYTES if path.is_file() else 0)
    try:
        content = tree.plain(read_values(path), "")
    except MemoryError as error:
        raise UserError("stands for more than there is in the file", path) from error
    arrays = tree.arrays
    if not arrays:
        raise UserError("holds no arrays", path)
    with outputs.file(target, KIND) as temporary:
        write_npz(temporary, arrays)
    return described(path, target, {"content": content}, outputs)


def convert_weights(file: StateFile, out: Path | str, *, overwrite: bool | OutputRule = False) -> Converted:
    """The tensors of a checkpoint of any network to OUT.safetensors, and to OUT.json what they are and the
    configuration pickled beside them. Raises UserError as `write_safetensors` and `io.outputs`."""
    outputs = OutputRule.of(overwrite)
    target = target_of(file.path, out, ".safetensors", outputs)
    with outputs.file(target, KIND) as temporary:
        write_safetensors(temporary, file.tensors, seal=KIND)
    tensors = {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in sorted(file.tensors.items())
    }
    about = {"weights": file.taken.to_dict(), "hyper_parameters": file.hyper_parameters, "tensors": tensors}
    return described(file.path, target, {"family": None, **about}, outputs)


def described(path: Path, target: Path, about: dict[str, Any], outputs: OutputRule) -> Converted:
    """Writes the JSON beside what `path` was converted to: hashes of both, and `about`."""
    source = {"name": path.name, "sha256": sha256_file(path)}
    record = {"schema": 1, "source": source, "sha256": sha256_file(target), **about}
    record_path = target.with_suffix(".json")
    outputs.write_json(record_path, record, KIND)
    return Converted(target, record_path, record)


class _Tree:
    """Takes values apart into `arrays` and what JSON can hold. What is named often is written as often: `limit` bytes
    in all, then MemoryError."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.arrays: dict[str, np.ndarray] = {}

    def plain(self, value: Any, name: str) -> Any:
        """The value with its arrays moved to `arrays`; NaN and infinity as text."""
        text = len(name) + (len(value) if isinstance(value, str) else 0)
        self.left -= value.nbytes if isinstance(value, np.ndarray) else BYTES_OF_A_VALUE + text
        if self.left < 0:
            raise MemoryError
        if isinstance(value, np.ndarray):
            unique, number = name or "array", 2
            while unique in self.arrays:
                unique, number = f"{name}~{number}", number + 1
            self.arrays[unique] = value
            return {"array": unique, "shape": list(value.shape), "dtype": str(value.dtype)}
        if isinstance(value, dict):
            return {key: self.plain(item, _joined(name, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, _joined(name, str(index))) for index, item in enumerate(value)]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _joined(name: str, key: str) -> str:
    """Names of arrays are names of files in an archive: nothing in them leads out of it."""
    plain = UNSAFE.sub("_", key).lstrip(".") or "_"
    return f"{name}/{plain}" if name else plain
