"""Rows of figures that come piece by piece and in any order, kept on disk, and written as one .npz by frame and track.

Memory stays bounded however long the video is: pieces are appended to raw files, sorted and packed in parts.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

ROWS_AT_ONCE = 4096


class RowStore:
    """Columns of N rows in `folder`, which has to exist and stays the caller's. `frame` and `track` sort them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.files: dict[str, BinaryIO] = {}
        self.kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """More rows: arrays (n,...) of the same names, dtypes and shapes every time."""
        for name, values in columns.items():
            if name not in self.files:
                self.files[name] = open(self.folder / f"{name}.raw", "wb")
                self.kinds[name] = (values.dtype, values.shape[1:])
            self.files[name].write(np.ascontiguousarray(values).tobytes())
        self.count += len(columns["frame"])

    def close(self) -> None:
        """Nothing more comes; the columns can be read."""
        for file in self.files.values():
            file.close()

    def column(self, name: str) -> np.ndarray:
        """A column (N,...) as it was appended, memory-mapped."""
        dtype, shape = self.kinds[name]
        return np.memmap(self.folder / f"{name}.raw", dtype, "r", shape=(self.count, *shape))

    def order(self) -> np.ndarray:
        """(N,) int64: the rows by frame, then track."""
        return np.lexsort((self.column("track"), self.column("frame")))

    def write_npz(self, path: Path, extra: Mapping[str, np.ndarray]) -> None:
        """All columns in order, and other arrays, as an uncompressed .npz that `numpy.load` reads."""
        order = self.order() if self.count else np.zeros(0, np.int64)
        with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
            for name in self.files:
                dtype, shape = self.kinds[name]
                column = self.column(name)
                header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (self.count, *shape)}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    npy.write_array_header_2_0(file, header)
                    for start in range(0, self.count, ROWS_AT_ONCE):
                        file.write(column[order[start : start + ROWS_AT_ONCE]].tobytes())
            for name, values in extra.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    npy.write_array(file, np.asarray(values), allow_pickle=False)
