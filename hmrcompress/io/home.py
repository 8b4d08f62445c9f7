"""Where hmrcompress keeps what it made and can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """$HMRCOMPRESS_HOME, by default ~/.cache/hmrcompress."""
    return Path(os.environ.get("HMRCOMPRESS_HOME") or Path.home() / ".cache" / "hmrcompress")
