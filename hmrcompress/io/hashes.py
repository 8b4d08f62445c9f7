"""SHA-256 of files, of folders, of arrays and of values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

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


def sha256_files(root: Path, files: Iterable[Path]) -> str:
    """Hex digest of files' names below `root` and of their contents, whatever their order."""
    names = {path.relative_to(root).as_posix(): path for path in files}
    return sha256_json([[name, sha256_file(names[name])] for name in sorted(names)])


def sha256_arrays(arrays: Mapping[str, np.ndarray | torch.Tensor]) -> str:
    """Hex digest of arrays and tensors by name: dtypes, shapes and numbers, whatever their order and device."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}\n".encode())
        if not isinstance(array, np.ndarray):
            import torch  # plans and recipes, whose files are hashed, need none

            array = array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
