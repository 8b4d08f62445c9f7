"""Foreign .npz files: the arrays in them, with nothing executed and no more memory taken than there is in the file."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
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
NPY_MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000


def read_npz(path: Path | str, wanted: Collection[str] | None = None, *, remedy: str = "") -> dict[str, np.ndarray]:
    """The arrays of a file by name: those `wanted` that are there, or all of them.

    Raises UserError, with `remedy`, where the file is missing, torn, or no .npz, where an array holds pickled objects
    (which are never loaded), claims to be larger than it is, or unfolds to far more than the file holds.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path, remedy)
    with open(path, "rb") as file:
        if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
            raise UserError("one array, not an npz archive", path, remedy)
    try:
        members = {entry.filename.removesuffix(".npy"): entry for entry in check_zip(path)}
    except UserError as error:
        fault = "not a readable npz, perhaps truncated" if "truncated" in error.what else error.what
        raise UserError(fault, path, remedy) from error
    names = [name for name in members if wanted is None or name in wanted]
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(archive, members[name], path, remedy) for name in names}
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"not a readable npz, perhaps truncated ({type(error).__name__})", path, remedy) from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, remedy: str) -> np.ndarray:
    where = f"{path}: {entry.filename.removesuffix('.npy')}"
    with archive.open(entry) as file:
        shape, dtype = read_header(file)  # type: ignore[arg-type]
        if dtype.hasobject:
            raise UserError("holds pickled objects, which are never executed", where, remedy)
        claimed = dtype.itemsize
        for size in shape:
            claimed *= size
        if claimed > entry.file_size or min(shape, default=0) < 0:
            raise UserError(f"claims the shape {shape}, which the file has no bytes for", where, remedy)
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False, max_header_size=LONGEST_HEADER)


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
