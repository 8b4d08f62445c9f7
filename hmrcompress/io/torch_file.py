"""Writing with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

STATE = "training state"
"""The kind of file that a training goes on from."""


def save_torch(value: Any, path: Path) -> None:
    """Writes what `torch.save` writes. Raises OSError where there is no room, of which torch makes a RuntimeError."""
    try:
        with open(path, "wb") as file:
            torch.save(value, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
