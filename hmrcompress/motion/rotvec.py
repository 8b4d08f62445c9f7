"""Rotation vectors in numpy: axis times angle in radians, last axis 3, any leading shape.

Quaternions are (w, x, y, z), unit length. Matrices act on column vectors. Used where torch would only be in the way:
motion clips are prepared frame by frame on the CPU.
"""

from __future__ import annotations

import numpy as np

from hmrcompress.motion.arrays import Array


def to_quaternion(rotvec: Array) -> Array:
    """(...,3) -> (...,4). Exact at zero."""
    rotvec = np.asarray(rotvec, dtype=np.float64)
    angle = np.linalg.norm(rotvec, axis=-1, keepdims=True)
    # sin(angle/2)/angle; numpy's sinc is sin(pi x)/(pi x), so it needs no special case at zero.
    vector = 0.5 * np.sinc(angle / (2 * np.pi)) * rotvec
    return np.concatenate([np.cos(0.5 * angle), vector], axis=-1)


def from_quaternion(quaternion: Array) -> Array:
    """(...,4) of any non-zero length -> (...,3) with angle in [0, pi]."""
    quaternion = np.asarray(quaternion, dtype=np.float64)
    quaternion = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., :1])
    scale = np.where(sine > 1e-12, angle / np.maximum(sine, 1e-300), 2.0)
    return scale * quaternion[..., 1:]


def multiply(a: Array, b: Array) -> Array:
    """Hamilton product of quaternions (...,4): rotate by b, then by a."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def compose(*rotvecs: Array) -> Array:
    """Product of rotations from left to right, (...,3) each -> (...,3): the last one acts first."""
    total = to_quaternion(rotvecs[0])
    for rotvec in rotvecs[1:]:
        total = multiply(total, to_quaternion(rotvec))
    return from_quaternion(total)


def to_matrix(rotvec: Array) -> Array:
    """(...,3) -> (...,3,3)."""
    w, x, y, z = np.moveaxis(to_quaternion(rotvec), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def from_matrix(matrix: Array) -> Array:
    """(...,3,3) rotation -> (...,3), accurate up to half a turn.

    Each of the four rows below is the quaternion times one of its own components; the longest is the safest.
    """
    m = np.asarray(matrix, dtype=np.float64)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy, xz],
        [wy, xy, 1 - xx + yy - zz, yz],
        [wz, xz, yz, 1 - xx - yy + zz],
    ]
    scaled = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    best = np.argmax(np.stack([scaled[..., i, i] for i in range(4)], axis=-1), axis=-1)
    return from_quaternion(np.take_along_axis(scaled, best[..., None, None], axis=-2)[..., 0, :])


def slerp(a: Array, b: Array, fraction: Array) -> Array:
    """The rotation `fraction` of the shorter way from a to b: (...,3), (...,3), (...) -> (...,3)."""
    start = to_quaternion(a)
    inverse = start * np.array([1.0, -1.0, -1.0, -1.0])
    way = from_quaternion(multiply(inverse, to_quaternion(b)))
    return from_quaternion(multiply(start, to_quaternion(np.asarray(fraction)[..., None] * way)))


def continuous(rotvecs: Array) -> Array:
    """The same rotations (T,3) written without jumps, whole turns added so that each is nearest to the one before."""
    out = np.array(rotvecs, dtype=np.float64)
    for i in range(1, len(out)):
        angle = np.linalg.norm(out[i])
        if angle > 1e-9:
            axis = out[i] / angle
            out[i] = axis * (angle + 2 * np.pi * np.round((out[i - 1] @ axis - angle) / (2 * np.pi)))
    return out


def rotate(rotvec: Array, points: Array) -> Array:
    """(...,3) rotations applied to (...,3) points, leading shapes broadcast."""
    return (to_matrix(rotvec) @ np.asarray(points, dtype=np.float64)[..., None])[..., 0]


def angle_between(a: Array, b: Array) -> Array:
    """Geodesic distance in radians, (...,3), (...,3) -> (...)."""
    return np.linalg.norm(compose(-np.asarray(a), b), axis=-1)
