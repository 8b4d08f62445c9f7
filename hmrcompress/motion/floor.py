"""Feet on the floor: level soles, balance, height of the root and its path over the ground."""

from __future__ import annotations

import numpy as np

from hmrcompress.body.joints import joint
from hmrcompress.motion import limits, rotvec, skeleton
from hmrcompress.motion.arrays import Array
from hmrcompress.motion.controls import INDEX, ROOT_COLUMNS
from hmrcompress.motion.curves import blur

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


def level_feet(track: Array, angles: Array, turned: Array) -> None:
    """Turn planted ankles, in place, so that the soles are level. turned (T,24,3,3): global rotations before."""
    for side, knee, ankle in (("l", "left_knee", "left_ankle"), ("r", "right_knee", "right_ankle")):
        shin = turned[:, joint(knee)]
        across = shin[:, :, 0] * np.array([1.0, 0.0, 1.0])
        length = np.linalg.norm(across, axis=-1, keepdims=True)
        across = across / np.maximum(length, 1e-6)
        up = np.broadcast_to([0.0, 1.0, 0.0], across.shape)
        level = np.stack([across, up, np.cross(across, up)], axis=-1)
        relative = rotvec.from_matrix(np.swapaxes(shin, -1, -2) @ level)
        row = np.zeros((len(track), 24, 3))
        row[:, joint(ankle)] = relative
        wanted = limits.from_poses(row)[:, joint(ankle)]
        weight = np.clip(track[:, INDEX["plant_" + side], None], 0, 1) * np.clip((length - 0.3) / 0.4, 0, 1)
        angles[:, joint(ankle)] += weight * (np.clip(wanted, -38, 45) - angles[:, joint(ankle)])


def balance(track: Array, joints: Array, points: Array, fps: float) -> Array:
    """Pitch and roll in degrees, (T,2), that bring the centre of mass over the points that carry it, weighted by `balance`."""
    mass = np.einsum("tjc,j->tc", joints, skeleton.MASSES)
    carried = _carriers(points, 0.03)
    foot = np.einsum("tp,tpc->tc", carried, points)
    yaw = np.deg2rad(track[:, INDEX["yaw"]])
    offset, height = mass - foot, np.maximum(mass[:, 1] - foot[:, 1], 0.3)
    ahead = offset[:, 0] * np.sin(yaw) + offset[:, 2] * np.cos(yaw)
    to_left = offset[:, 0] * np.cos(yaw) - offset[:, 2] * np.sin(yaw)
    tilt = np.rad2deg(np.stack([-np.arctan2(ahead, height), np.arctan2(to_left, height)], -1))
    weight = np.clip(track[:, INDEX["balance"], None], 0, 1)
    return blur(weight * np.clip(tilt, -25, 25), 0.12 * fps)


def _carriers(points: Array, softness: float) -> Array:
    """(T,P,3) -> (T,P) weights that sum to 1, nearly all on the lowest spheres."""
    bottom = points[..., 1] - skeleton.CONTACT_RADII
    weight = np.exp(-(bottom - bottom.min(axis=1, keepdims=True)) / softness)
    return weight / weight.sum(axis=1, keepdims=True)


def root_path(track: Array, points: Array, fps: float) -> Array:
    """Position of the root (T,3): lowest sphere on the floor plus `air`; on the ground, what carries does not slide."""
    height = track[:, INDEX["air"]] - (points[..., 1] - skeleton.CONTACT_RADII).min(axis=1)
    path = np.zeros((len(track), 3))
    path[:, 1] = blur(height, 0.02 * fps)
    if len(track) > 1:
        carried = _carriers(points, _SOFTNESS)
        weight = 0.5 * (carried[1:] + carried[:-1])
        velocity = -np.einsum("tp,tpc->tc", weight, np.diff(points, axis=0))[:, [0, 2]] * fps
        yaw = np.deg2rad(track[1:, INDEX["yaw"]])
        forward, left = track[1:, INDEX["forward"]], track[1:, INDEX["left"]]
        own = np.stack([forward * np.sin(yaw) + left * np.cos(yaw), forward * np.cos(yaw) - left * np.sin(yaw)], -1)
        grounded = np.exp(-track[1:, INDEX["air"], None] / 0.02)
        velocity = blur(grounded * velocity + (1 - grounded) * own, 0.05 * fps)
        path[1:, [0, 2]] = np.cumsum(velocity, axis=0) / fps
    return path
