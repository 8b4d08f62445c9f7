"""Columns of a data set that are made when rows of them are asked for, so that no set has to be held in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class OnDemand:
    """Looks like an array (N, …) to whoever takes its shape, its dtype or some of its rows.

    `make(rows)` gives the rows (n, …) of the numbers (n,) asked for, in that order; `made_of(rows)` a hash of all that
    they are made of, where that takes less than making them.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        make: Callable[[np.ndarray], np.ndarray],
        made_of: Callable[[np.ndarray], str] | None = None,
    ) -> None:
        self.shape, self.dtype, self._make, self.made_of = shape, np.dtype(dtype), make, made_of

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> np.ndarray:
        """One row for a number, several for a slice or an array of numbers or truth values."""
        rows = np.arange(len(self))[wanted]
        made = self._make(np.atleast_1d(rows))
        return made if np.ndim(rows) else made[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, held in memory at once."""
        made = self._make(np.arange(len(self)))
        return made if dtype is None else made.astype(dtype)


def npy_rows(path: Path) -> np.ndarray | OnDemand:
    """The array of an .npy file: rows of bytes are read when they are asked for, and then forgotten; anything else is
    memory-mapped. What is read of a mapped file counts as the process's own memory, which gigabytes of pictures need
    not. The file stays open. Raises what `np.load` does."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if mapped.dtype != np.uint8 or mapped.ndim < 2 or not mapped.flags.c_contiguous or not mapped.size:
        return mapped
    start, shape = mapped.offset, mapped.shape
    size, file, turn = int(np.prod(shape[1:])), path.open("rb", buffering=0), threading.Lock()

    def make(rows: np.ndarray) -> np.ndarray:
        made = np.empty((len(rows), *shape[1:]), np.uint8)
        if not len(rows):
            return made
        edges = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, end in zip((0, *edges), (*edges, len(rows)), strict=True):
            part = made[first:end].reshape(-1)
            with turn:
                file.seek(start + int(rows[first]) * size)
                done = 0
                while done < len(part):
                    if not (count := file.readinto(part[done:].data)):
                        raise OSError(f"{path} has become shorter since it was opened")
                    done += count
        return made

    return OnDemand(shape, np.uint8, make)
