"""Tables in files of others, checked column by column; pickles inside are read without executing anything."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import read_values
from hmrcompress.io.npz import UNREADABLE, read_header, read_npz
from hmrcompress.io.zips import check_zip

GENDER_NAMES = {"n": 0, "neutral": 0, "m": 1, "male": 1, "f": 2, "female": 2}


class Columns:
    """Named arrays of N rows from a file or a part of one. `where` names it in messages."""

    def __init__(self, values: Mapping[str, Any], where: object, count: int | None = None) -> None:
        self.values, self.where, self.count = values, str(where), count

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def texts(self, name: str) -> list[str]:
        """A column of text (bytes and pickled text too). UserError where it is missing or no text."""
        found = self._found(name)
        items = np.asarray(found, dtype=object).reshape(-1).tolist() if len(found) else []
        made = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items]
        if not all(isinstance(item, str) for item in made):
            raise UserError("expected text", self._at(name))
        return self._counted(name, made)

    def numbers(self, name: str, *shape: int) -> np.ndarray:
        """(N, *shape) float64, finite or not; rows with more numbers than that in the first axis of `shape` are cut.
        UserError where it is missing, not numbers, or of another shape."""
        found = self._array(name)
        if found.dtype.kind not in "fiub":
            raise UserError(f"got {found.dtype}, expected numbers", self._at(name))
        wanted = int(np.prod(shape, dtype=np.int64))
        flat = found.reshape(len(found), -1) if found.ndim and len(found) else found.reshape(0, wanted)
        enough = flat.shape[1] >= wanted if len(shape) == 1 else found.shape[1:] == shape
        if not enough:
            expected = ", ".join(map(str, ("N", *shape)))
            raise UserError(f"got shape {found.shape}, expected ({expected})", self._at(name))
        return self._counted(name, flat[:, :wanted].reshape(len(flat), *shape).astype(np.float64))

    def width(self, name: str) -> int:
        """How many values a row of a column has. UserError where it is missing, or rows differ."""
        return int(np.prod(self._array(name).shape[1:], dtype=np.int64))

    def flags(self, name: str) -> np.ndarray:
        """(N,) bool: numbers above 0."""
        return self.numbers(name, 1)[:, 0] > 0

    def genders(self, name: str) -> np.ndarray:
        """(N,) int8, 0 neutral, 1 male, 2 female. UserError for other words."""
        found = [GENDER_NAMES.get(word.strip().lower()) for word in self.texts(name)]
        if None in found:
            word = self.texts(name)[found.index(None)]
            raise UserError(f"got {word!r}, expected m, f, n, male, female or neutral", self._at(name))
        return np.array(found, np.int8)

    def _array(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self._found(name))
        except ValueError as error:
            raise UserError("its rows differ in length", self._at(name)) from error

    def _found(self, name: str) -> Any:
        found = self.values.get(name)
        if found is None:
            raise UserError(f"there is no {name} in it", self.where)
        column = found.ndim > 0 if isinstance(found, np.ndarray) else isinstance(found, (list, tuple))
        if not column:
            raise UserError("expected a column of values", self._at(name))
        return found

    def _counted(self, name: str, column: Any) -> Any:
        if self.count is None:
            self.count = len(column)
        if len(column) != self.count:
            raise UserError(f"has {len(column)} rows, the others {self.count}", self._at(name))
        return column

    def _at(self, name: str) -> str:
        return f"{self.where}: {name}"


def read_columns(path: Path, wanted: Sequence[str]) -> Columns:
    """Those of the `wanted` arrays of an .npz file that are there; arrays of objects as lists. UserError."""
    check_zip(path)
    names, pickled = npz_names(path), {}
    for name in names:
        if name in wanted and (content := _pickle_in(path, name)) is not None:
            pickled[name] = values_of(content, f"{path}: {name}")
    return Columns(read_npz(path, [name for name in wanted if name not in pickled]) | pickled, path)


def npz_names(path: Path) -> list[str]:
    """The names of the arrays of an .npz file. UserError where it is none."""
    return [entry.filename.removesuffix(".npy") for entry in check_zip(path)]


def _pickle_in(path: Path, name: str) -> bytes | None:
    """The pickle that an array of objects is stored as; None for an array of anything else."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            _, dtype = read_header(file)  # type: ignore[arg-type]
            return file.read() if dtype.hasobject else None
    except UNREADABLE as error:
        raise UserError(f"not a readable npz, perhaps truncated ({type(error).__name__})", path) from error


def values_of(content: bytes, where: object) -> Any:
    """What is in a pickle, as `io.array_pickles.read_values`. UserError naming `where`."""
    with tempfile.NamedTemporaryFile(suffix=".pkl") as file:
        file.write(content)
        file.flush()
        try:
            return read_values(file.name)
        except UserError as error:
            raise UserError(error.what, where, error.remedy) from error
