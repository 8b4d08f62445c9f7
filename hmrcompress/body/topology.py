"""What identifies a body's surface: the hash of its faces."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_faces(faces: np.ndarray) -> str:
    """sha256 (hex) of the faces (F,3) as little-endian int32, row by row. Vertex numbers and face order both count."""
    return hashlib.sha256(np.ascontiguousarray(faces, dtype="<i4").tobytes()).hexdigest()
