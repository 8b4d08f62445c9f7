"""The .npz files: foreign ones are read with nothing executed and no more memory taken than there is in the file."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.io.zips import check_zip

UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
)
"""Everything that numpy and zipfile raise on torn or hostile archives. RuntimeError is zipfile's word for what is
encrypted or compressed in a way that it does not know; a flipped bit is enough to ask for that."""
Header = tuple[tuple[int, ...], np.dtype]
NPY_MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000
LONGEST_EMPTY = 1 << 20


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The file of `numpy.savez`, byte for byte, of arrays that hold no Python objects (else ValueError).

    numpy before 2.2 leaves the archive open where writing fails, and its end then complains below our own sentence.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def read_npz(
    path: Path | str, wanted: Collection[str] | None = None, *, remedy: str = "", skip_objects: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of a file by name: those `wanted` that are there, or all of them; with `skip_objects` all that hold
    no pickled objects.

    Raises UserError, with `remedy`, where the file is missing, torn, or no .npz, where an array holds pickled objects
    (which are never loaded), claims to be larger than it is, or unfolds to far more than the file holds.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path, remedy)
    if is_npy(path):
        raise UserError("one array, not an npz archive", path, remedy)
    try:
        members = {entry.filename.removesuffix(".npy"): entry for entry in check_zip(path)}
    except UserError as error:
        fault = "not a readable npz, perhaps truncated" if "truncated" in error.what else error.what
        raise UserError(fault, path, remedy) from error
    names = [name for name in members if wanted is None or name in wanted]
    try:
        with zipfile.ZipFile(path) as archive:
            if skip_objects:
                names = [name for name in names if not _header(archive, members[name])[1].hasobject]
            return {name: _array(archive, members[name], path, remedy) for name in names}
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"not a readable npz, perhaps truncated ({type(error).__name__})", path, remedy) from error


def read_headers(path: Path | str, wanted: Collection[str], *, remedy: str = "") -> dict[str, Header]:
    """Shape and dtype that those of the `wanted` arrays claim which are there; no number is read. Raises UserError as
    `read_npz`, but for claims."""
    try:
        members = {entry.filename.removesuffix(".npy"): entry for entry in check_zip(Path(path))}
        with zipfile.ZipFile(path) as archive:
            return {name: _header(archive, members[name]) for name in members if name in wanted}
    except UserError as error:
        fault = "not a readable npz, perhaps truncated" if "truncated" in error.what else error.what
        raise UserError(fault, path, remedy) from error
    except UNREADABLE as error:
        raise UserError(f"not a readable npz, perhaps truncated ({type(error).__name__})", path, remedy) from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, remedy: str) -> np.ndarray:
    where = f"{path}: {entry.filename.removesuffix('.npy')}"
    _check_claim(*_header(archive, entry), entry.file_size, where, remedy)
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False, max_header_size=LONGEST_HEADER)


def is_npy(path: Path | str) -> bool:
    """Whether a file begins as one array does. An OSError where there is none."""
    with open(path, "rb") as file:
        return file.read(len(NPY_MAGIC)) == NPY_MAGIC


def read_npy(path: Path | str, *, remedy: str = "") -> np.ndarray:
    """The array in an .npy file. Raises UserError as `read_npz`."""
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path, remedy)
    try:
        with open(path, "rb") as file:
            _check_claim(*read_header(file), path.stat().st_size, path, remedy)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False, max_header_size=LONGEST_HEADER)
    except UNREADABLE as error:
        raise UserError(f"not a readable npy, perhaps truncated ({type(error).__name__})", path, remedy) from error


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(entry) as file:
        return read_header(file)  # type: ignore[arg-type]


def _check_claim(shape: tuple[int, ...], dtype: np.dtype, held: int, where: object, remedy: str) -> None:
    """UserError for an array of objects, and for one that claims more than the `held` bytes, or is empty and yet long
    along some axis: a product with it would make what the file does not hold."""
    if dtype.hasobject:
        raise UserError("holds pickled objects, which are never executed", where, remedy)
    longest = math.prod(max(1, size) for size in shape)
    empty = 0 in shape and longest > LONGEST_EMPTY
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > held or empty:
        raise UserError(f"claims the shape {shape}, which the file has no bytes for", where, remedy)


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype that an .npy file claims; the file is left where its numbers begin. Raises one of UNREADABLE."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=LONGEST_HEADER)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=LONGEST_HEADER)
    else:
        raise ValueError(f"version {version} of the format is for records with names, not for arrays")
    return shape, dtype
