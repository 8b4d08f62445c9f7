"""Hash-based value noise for procedural textures (compiled; inlined into the kernels that call it)."""

from __future__ import annotations

import math

import numba as nb
import numpy as np


@nb.njit(inline="always", fastmath=True)
def lattice(x: int, y: int, seed: int) -> np.float32:
    """A reproducible uniform number in [0, 1) for an integer lattice point: a 32-bit avalanche of (x, y, seed)."""
    # numba widens mixed and shifted integers to 64 bits, so every step is narrowed again.
    h = np.uint32(np.uint32(x) * np.uint32(0x8DA6B343))
    h = np.uint32(h ^ np.uint32(np.uint32(y) * np.uint32(0xD8163841)))
    h = np.uint32(h ^ np.uint32(np.uint32(seed) * np.uint32(0xCB1AB31F)))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(15)))
    h = np.uint32(h * np.uint32(0x2C1B3C6D))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(12)))
    h = np.uint32(h * np.uint32(0x297A2D39))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(15)))
    return np.float32(np.uint32(h >> np.uint32(8))) * np.float32(1.0 / 16777216.0)


@nb.njit(inline="always", fastmath=True)
def smooth_noise(x: float, y: float, seed: int) -> np.float32:
    """Value noise in [0, 1): lattice values blended with a cubic ease between lattice points."""
    left = math.floor(x)
    top = math.floor(y)
    u = np.float32(x - left)
    v = np.float32(y - top)
    u = u * u * (np.float32(3) - np.float32(2) * u)
    v = v * v * (np.float32(3) - np.float32(2) * v)
    i = int(left)
    j = int(top)
    upper = lattice(i, j, seed) * (1 - u) + lattice(i + 1, j, seed) * u
    lower = lattice(i, j + 1, seed) * (1 - u) + lattice(i + 1, j + 1, seed) * u
    return upper * (1 - v) + lower * v
