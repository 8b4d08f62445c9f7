"""Columns of a data set that are made when rows of them are asked for, so that no set has to be held in memory."""

from __future__ import annotations

from collections.abc import Callable
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
