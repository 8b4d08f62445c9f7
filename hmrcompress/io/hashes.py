"""SHA-256 of files and of values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 1 << 22


def sha256_file(path: Path | str, progress: Callable[[str, int, int], None] | None = None) -> str:
    """Hex digest of a file, read 4 MiB at a time; `progress(what, done, total)` is called with bytes after each."""
    digest, done = hashlib.sha256(), 0
    path = Path(path)
    total = path.stat().st_size
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(f"hashing {path.name}", done, total)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
