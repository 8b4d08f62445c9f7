"""What the records of a pickle stand for: arrays, matrices, numbers, text, paths and settings, put together here.

numpy arrays and scalars, scipy's sparse matrices (written out), chumpy arrays (by their values, operations on them
carried out), namespaces, omegaconf nodes and paths are understood; what is not becomes None. Nothing is imported or
called for it. What is put together stays in proportion to the length of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.io.chumpy_values import ITEM, checked, chumpy_value, numbers
from hmrcompress.io.known_globals import ARRAY, ARRAY_IN_ONE, CHUMPY_OPERATIONS, SCALAR, SPARSE
from hmrcompress.io.pickle_machine import Inert
from hmrcompress.io.unpickler import read_pickle

KINDS = re.compile(r"[biuf](?:1|2|4|8|16)|\?|[SU]\d{1,6}")
OTHER_KINDS = re.compile(r"[OVcMm]\d{0,6}")
"""Types of arrays that are read, numbers and text; and those that numpy has beside them, which become None."""
SPARE_BYTES = 1 << 26
LARGEST_TENSOR = 1 << 20
BYTES_IN_A_LIST = 48
MOST_BITS = 4096
DEEPEST = 200
DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError)
Array = np.ndarray


class Decoder:
    """Turns records into values. `limit` is how many bytes may be put together, all in all.

    Values that are shared in the file are put together once. Raises one of `DAMAGED` for records that contradict
    themselves, go deeper than 200, contain themselves, or stand for more than the limit.
    """

    def __init__(self, limit: int = SPARE_BYTES) -> None:
        self.left = limit
        self._made: dict[int, tuple[Any, Any]] = {}
        self._open: set[int] = set()

    def value(self, given: Any) -> Any:
        """Arrays, numbers, text, None, lists and dictionaries (keys as text) of these."""
        if given is None or isinstance(given, (bool, float, str)):
            return given
        if isinstance(given, int):
            if given.bit_length() > MOST_BITS:
                raise ValueError("a whole number of more digits than are read")
            return given
        if isinstance(given, bytes):
            self.spend(len(given))
            return given.decode("latin1")
        if id(given) in self._made:
            return self._made[id(given)][1]
        if id(given) in self._open or len(self._open) > DEEPEST:
            raise ValueError("contains itself, or goes too deep")
        self._open.add(id(given))
        made = self._put_together(given)
        self._open.discard(id(given))
        self._made[id(given)] = (given, made)
        return made

    def spend(self, count: int) -> None:
        """Takes bytes off what is left. Raises MemoryError."""
        self.left -= count
        if self.left < 0:
            raise MemoryError("stands for more than there is in the file")

    def _put_together(self, given: Any) -> Any:
        if isinstance(given, (list, tuple)):
            return [self.value(item) for item in given]
        if isinstance(given, Mapping):
            return {self._key(key): self.value(item) for key, item in given.items()}
        if not isinstance(given, Inert):
            return self._tensor(given) if hasattr(given, "detach") else None
        name = given.stands_for
        for names, make in MAKERS:
            if name in names:
                return make(self, given)
        return self._settings(given)

    def _key(self, key: Any) -> Any:
        """As text. It may be one long text that stands in many dictionaries, so it spends what it takes."""
        text = _text(key)
        if text is not key:
            self.spend(len(text))
        return text

    def _tensor(self, tensor: Any) -> Any:
        """A small tensor as an array. The storage of many may be one, so each spends what it takes, as a list too."""
        if tensor.numel() * ITEM > LARGEST_TENSOR:
            return None
        self.spend(BYTES_IN_A_LIST * tensor.numel())
        return np.asarray(tensor.detach().to("cpu").tolist())

    def _settings(self, record: Inert) -> Any:
        """Namespaces become their fields, omegaconf nodes their content, paths text."""
        state = record.state[0] if isinstance(record.state, tuple) and record.state else record.state
        if isinstance(state, Mapping):
            return self.value(state["_content"] if "_content" in state else state.get("_val", state))
        if record.stands_for.startswith("pathlib.") and all(isinstance(part, str) for part in record.args):
            return "/".join(record.args).replace("//", "/") or "."
        return None


def _array(decoder: Decoder, record: Inert) -> Any:
    """The array of numbers or text; of objects, the list of them."""
    shape, kind, fortran, raw = record.state[-4:]
    if isinstance(raw, list):
        return [decoder.value(item) for item in raw]
    return _shaped(decoder, raw, kind, shape, "F" if fortran else "C")


def _array_in_one(decoder: Decoder, record: Inert) -> Any:
    """How protocol 5 holds an array."""
    raw, kind, shape, order = record.args
    return _shaped(decoder, raw, kind, shape, "F" if order == "F" else "C")


def _shaped(decoder: Decoder, raw: Any, kind: Inert, shape: Any, order: Any) -> Array | None:
    dtype = _dtype(kind)
    if dtype is None:
        return None
    # As bytes, as an array, and decoded: four bytes for each letter of text.
    decoder.spend((8 if dtype.kind == "S" else 2) * len(raw))
    data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    flat = np.frombuffer(data, dtype) if data else np.zeros(0, dtype)
    array = checked(flat.reshape(shape, order=order)).astype(dtype.newbyteorder("="))
    return np.char.decode(array, "latin1") if array.dtype.kind == "S" else array


def _dtype(kind: Inert) -> np.dtype | None:
    """The type of numbers or text, None for objects and fields."""
    code = str(_text(kind.args[0]))
    if not KINDS.fullmatch(code):
        if OTHER_KINDS.fullmatch(code):
            return None
        raise ValueError(f"of the type {code[:40]!r}")
    big = bool(kind.state) and _text(kind.state[1]) == ">"
    little = bool(kind.state) and _text(kind.state[1]) == "<"
    return np.dtype(code).newbyteorder(">" if big else "<" if little else "=")


def _scalar(decoder: Decoder, record: Inert) -> Any:
    array = _shaped(decoder, record.args[1], record.args[0], (), "C")
    return None if array is None else array.item()


def _sparse(decoder: Decoder, record: Inert) -> Array:
    """A matrix in compressed columns, compressed rows, or coordinates, written out."""
    state = {_text(key): value for key, value in record.state.items()}
    rows, columns = (int(decoder.value(size)) for size in state["_shape" if "_shape" in state else "shape"])
    if rows < 0 or columns < 0:
        raise ValueError("a negative shape")
    data = numbers(decoder.value(state["data"]), decoder.spend)
    decoder.spend(ITEM * (rows * columns + rows + columns))
    if "coo" in record.stands_for:
        places = state["coords"] if "coords" in state else (state["row"], state["col"])
        row, column = (numbers(decoder.value(place), decoder.spend) for place in places)
    else:
        indices, starts = (numbers(decoder.value(state[name]), decoder.spend) for name in ("indices", "indptr"))
        by_column = "csc" in record.stands_for
        counts = np.diff(starts)
        if len(counts) != (columns if by_column else rows) or counts.min(initial=0) < 0 or counts.sum() != len(indices):
            raise ValueError("starts that do not fit")
        decoder.spend(2 * ITEM * len(indices))
        place = np.repeat(np.arange(len(counts)), counts)
        row, column = (indices, place) if by_column else (place, indices)
    if len(data) != len(row) or min(row.min(initial=0), column.min(initial=0)) < 0:
        raise ValueError("places that do not fit")
    dense = np.zeros((rows, columns), data.dtype)
    np.add.at(dense, (row, column), data)
    return dense


def _chumpy(decoder: Decoder, record: Inert) -> Array | None:
    state = {_text(key): value for key, value in record.state.items()}
    return chumpy_value(record.stands_for.rpartition(".")[2], state, decoder.value, decoder.spend)


MAKERS: tuple[tuple[tuple[str, ...], Callable[[Decoder, Inert], Any]], ...] = (
    (ARRAY, _array),
    (ARRAY_IN_ONE, _array_in_one),
    (SCALAR, _scalar),
    (SPARSE, _sparse),
    (CHUMPY_OPERATIONS, _chumpy),
)


def read_values(path: Path | str) -> Any:
    """What is in a pickle, such as those of 3DPW and EMDB: dictionaries and lists of arrays, numbers and text.

    Arrays come in native byte order; text and bytes of python 2 as text. Nothing in the file is executed. Raises
    UserError for a global that is not on the list of `known_globals`, and where the file is missing or damaged.
    """
    path = Path(path)
    content = read_pickle(path)
    try:
        return Decoder(8 * path.stat().st_size + SPARE_BYTES).value(content)
    except DAMAGED as error:
        raise UserError(f"holds an array that is damaged or of an unknown layout ({error})", path) from error


def read_arrays(path: Path | str) -> dict[str, Any]:
    """The dictionary in a pickle such as SMPL's: arrays (sparse ones dense, chumpy ones by their values), numbers and
    text by key.

    What is none of these is left out. Raises UserError as `read_values`, and where it is no dictionary.
    """
    values = read_values(path)
    if not isinstance(values, dict):
        raise UserError(f"holds a {type(values).__name__}, expected a dictionary of arrays", path)
    return {key: value for key, value in values.items() if isinstance(value, (np.ndarray, int, float, str))}


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value if isinstance(value, str) else str(value)
