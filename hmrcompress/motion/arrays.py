"""The array type of the motion room: numpy arrays whose dtype and shape the docstrings tell."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
