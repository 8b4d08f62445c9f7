"""Pickles of arrays, such as SMPL's body files, read without importing or calling anything that they name.

Such files were made by python 2 and hold numpy arrays, chumpy arrays and scipy matrices. Their classes are replaced by
inert records, from whose contents the arrays are put together here; any other global is refused by its name.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.io.pickles import Inert

ARRAY_MAKERS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
NEW_OBJECT = ("copy_reg._reconstructor", "copyreg._reconstructor")
SPARSE = ("scipy.sparse.csc.csc_matrix", "scipy.sparse._csc.csc_matrix", "scipy.sparse.csc_matrix")
RECORDS = (
    *SPARSE,
    "numpy.ndarray",
    "numpy.dtype",
    "chumpy.ch.Ch",
    "chumpy.ch.MatVecMult",
    "chumpy.reordering.Select",
    "builtins.object",
    "__builtin__.object",
)
NUMBERS = "biuf"


class _Array(Inert):
    """A numpy array: its state is (version, shape, dtype, fortran order, raw bytes)."""


class _Sparse(Inert):
    """A scipy matrix in compressed columns: its state holds shape, data, indices, indptr."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in ARRAY_MAKERS:
            return _Array
        if full in NEW_OBJECT:
            return _new_object
        if full == "_codecs.encode":
            return _encode
        if full in RECORDS:
            return _Sparse if full in SPARSE else Inert
        raise UserError(
            f"the pickle asks for {full}, which could run code and was not loaded", self.where, "Only arrays are read"
        )

    where: Path


def read_arrays(path: Path | str) -> dict[str, Any]:
    """The dictionary in a pickle: arrays (sparse ones dense, chumpy ones by their values), numbers and text by key.

    What is none of these is left out. Nothing in the file is executed. Raises UserError for a global that is not one
    of an array, a file that is not a pickle of a dictionary, or a truncated one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path)
    with open(path, "rb") as file:
        reader = _Reader(file, encoding="latin1")
        reader.where = path
        try:
            content = reader.load()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a broken pickle can raise anything
            raise UserError("the file is truncated or not a pickle of arrays", path) from error
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}, expected a dictionary of arrays", path)
    try:
        values = {_text(key): _value(value) for key, value in content.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError("holds an array that is damaged or of an unknown layout", path) from error
    return {key: value for key, value in values.items() if value is not None}


def _value(value: Any) -> Any:
    """The array, number or text that a record stands for; None for what is not understood."""
    if isinstance(value, _Array):
        return _array(value)
    if isinstance(value, _Sparse):
        return _dense(value.state)
    if isinstance(value, Inert):
        return _value(value.state["x"]) if isinstance(value.state, dict) and "x" in value.state else None
    return _text(value) if isinstance(value, (bytes, str)) else value if isinstance(value, (int, float)) else None


def _array(record: _Array) -> np.ndarray | None:
    """The array of numbers, or None for arrays of objects."""
    _, shape, kind, fortran, raw = record.state
    code, order = str(_text(kind.args[0])), _text(kind.state[1])
    dtype = np.dtype(code).newbyteorder(order if order in "<>" else "=") if code[0] in NUMBERS else None
    if dtype is None:
        return None
    data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _dense(state: dict[str, Any]) -> np.ndarray:
    """A matrix in compressed columns, written out."""
    data, indices, starts = (np.asarray(_value(state[name])) for name in ("data", "indices", "indptr"))
    rows, columns = state["_shape"] if "_shape" in state else state["shape"]
    dense = np.zeros((int(rows), int(columns)), data.dtype)
    place = np.repeat(np.arange(int(columns)), np.diff(starts))
    np.add.at(dense, (indices, place), data)
    return dense


def _new_object(cls: type, *rest: Any) -> Any:
    """How python 2 says `object.__new__(cls)`; the class is one of the records."""
    return cls()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How python 3 writes bytes at protocol 2."""
    return text.encode("latin1")


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value
