"""The handful of rotations that T-posing needs, in numpy, one body a row. Matrices act on column vectors."""

from __future__ import annotations

from typing import Literal

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """(...,3) -> the same directions with length one."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def aligning(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Smallest rotations that turn `start` (N,3) into the direction `goal` (N,3) or (3,): (N,3,3).

    The product of two reflections; undefined only for exactly opposite directions.
    """
    first = unit(start)
    half = unit(first + unit(np.broadcast_to(goal, start.shape)))
    return _reflection(half) @ _reflection(first)


def _reflection(normal: np.ndarray) -> np.ndarray:
    return 2 * normal[..., :, None] * normal[..., None, :] - np.eye(3)


def axis_rotation(axis: Literal["x", "y", "z"], angle: np.ndarray) -> np.ndarray:
    """Right-handed rotations about a coordinate axis by `angle` (N,) radians: (N,3,3)."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    rotation = np.tile(np.eye(3), (len(angle), 1, 1))
    rotation[:, i, i] = rotation[:, j, j] = np.cos(angle)
    rotation[:, j, i] = np.sin(angle)
    rotation[:, i, j] = -np.sin(angle)
    return rotation


def frame(along: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Orthonormal frames whose first column is `along` (N,3) and whose second lies in its plane with `beside` (N,3)."""
    first = unit(along)
    third = unit(np.cross(first, beside))
    return np.stack([first, np.cross(third, first), third], axis=-1)


def twist_about_x(rotation: np.ndarray) -> np.ndarray:
    """Angle (N,) of the part of `rotation` (N,3,3) that turns about the x axis."""
    return np.arctan2(rotation[:, 2, 1] - rotation[:, 1, 2], rotation[:, 1, 1] + rotation[:, 2, 2])
