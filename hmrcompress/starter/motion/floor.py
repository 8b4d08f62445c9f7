"""Where the floor is: what carries the body, and from it the root's height and its path over the ground."""

from __future__ import annotations

import numpy as np

from hmrcompress.motion import rotvec, skeleton
from hmrcompress.motion.arrays import Array
from hmrcompress.motion.curves import blur
from hmrcompress.starter.motion.controls import INDEX, ROOT_COLUMNS

_SOFTNESS = 0.012
"""Metres over which several points share the ground contact."""


def root_rotation(track: Array) -> Array:
    """The root's rotation vectors (T,3) from yaw, pitch, roll and spin (degrees)."""
    yaw, pitch, roll, spin = np.deg2rad(track[:, ROOT_COLUMNS]).T
    zero = np.zeros_like(yaw)
    return rotvec.compose(
        np.stack([zero, yaw, zero], -1),
        np.stack([pitch, zero, zero], -1),
        np.stack([zero, zero, roll], -1),
        np.stack([zero, spin, zero], -1),
    )


def nearest_heading(start: Array, other: Array) -> float:
    """The yaw in radians by which `other` (3,) must be turned about the vertical to be nearest to `start` (3,)."""
    m = rotvec.to_matrix(other) @ rotvec.to_matrix(start).T
    return float(np.arctan2(m[2, 0] - m[0, 2], m[0, 0] + m[2, 2]))


def smoothed(rotvecs: Array, sigma: float) -> Array:
    """Rotation vectors (T,3) smoothed in time by a Gaussian of `sigma` frames, as quaternions kept on one side."""
    quaternions = rotvec.to_quaternion(rotvecs)
    turns = np.sign(np.sum(quaternions[1:] * quaternions[:-1], axis=-1))
    quaternions[1:] *= np.cumprod(np.where(turns == 0, 1.0, turns))[:, None]
    return rotvec.from_quaternion(blur(quaternions, sigma))


def carriers(points: Array, softness: float = _SOFTNESS) -> Array:
    """Contact points (T,P,3) -> (T,P) shares that sum to 1, nearly all on the lowest spheres."""
    bottom = points[..., 1] - skeleton.CONTACT_RADII
    share = np.exp(-(bottom - bottom.min(axis=1, keepdims=True)) / softness)
    return share / share.sum(axis=1, keepdims=True)


def root_path(track: Array, root: Array, points: Array, fps: float) -> Array:
    """Position of the root (T,3): lowest sphere on the floor plus `air`; on the ground, what carries does not slide."""
    height = track[:, INDEX["air"]] - (points[..., 1] - skeleton.CONTACT_RADII).min(axis=1)
    path = np.zeros((len(track), 3))
    path[:, 1] = blur(height, 0.02 * fps)
    if len(track) == 1:
        return path
    share = carriers(points)
    share = 0.5 * (share[1:] + share[:-1])
    velocity = -np.einsum("tp,tpc->tc", share, np.diff(points, axis=0))[:, [0, 2]] * fps
    turned = rotvec.to_matrix(root[1:])
    heading = np.arctan2(turned[:, 0, 2] - turned[:, 2, 0], turned[:, 0, 0] + turned[:, 2, 2])
    forward, left = track[1:, INDEX["forward"]], track[1:, INDEX["left"]]
    sine, cosine = np.sin(heading), np.cos(heading)
    flying = np.stack([forward * sine + left * cosine, forward * cosine - left * sine], -1)
    grounded = np.exp(-np.maximum(track[1:, INDEX["air"], None], 0.0) / 0.02)
    velocity = blur(grounded * velocity + (1 - grounded) * flying, 0.05 * fps)
    path[1:, [0, 2]] = np.cumsum(velocity, axis=0) / fps
    return path
