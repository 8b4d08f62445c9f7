"""From joint angles to a body that stands: level soles, both feet on the floor, balance, and coming to rest when lying.

All arrays run over the frames of a clip, angles in degrees as in limits.py, root as rotation vectors.
"""

from __future__ import annotations

import numpy as np

from hmrcompress.body.joints import joint
from hmrcompress.motion import rotvec, skeleton
from hmrcompress.motion.arrays import Array
from hmrcompress.motion.curves import blur
from hmrcompress.starter.motion import floor, limits
from hmrcompress.starter.motion.controls import INDEX, limited

_SIDES = (("l", "left_"), ("r", "right_"))
_THIGH, _SHANK = (float(np.linalg.norm(skeleton.BONES[joint(n)])) for n in ("left_knee", "left_ankle"))
_SOLES = {
    side: np.isin(skeleton.CONTACT_JOINTS, [joint(word + "ankle"), joint(word + "foot")]) for side, word in _SIDES
}


def settle(track: Array, angles: Array, root: Array, fps: float) -> tuple[Array, Array]:
    """Angles (T,24,3) and root (T,3) after balancing and planting the feet as the track asks for."""
    for _ in range(2):
        joints, turned = posed(angles, root)
        root = rotvec.compose(_balance(track, joints, skeleton.contact_points(joints, turned), fps), root)
        angles = _planted(track, angles, root)
    return angles, _tipped(track, angles, root, fps) if track[:, INDEX["tip"]].max() > 0.01 else root


def posed(angles: Array, root: Array) -> tuple[Array, Array]:
    """Joint positions relative to the root (T,24,3) and global rotations (T,24,3,3) on the canonical skeleton."""
    poses = limits.to_poses(angles)
    poses[:, 0] = root
    return skeleton.forward(rotvec.to_matrix(poses))


def _weight(track: Array, name: str) -> Array:
    return np.clip(track[:, INDEX[name]], 0.0, 1.0)


def _tilt(offset: Array, height: Array) -> Array:
    """Rotation vectors (T,3) that move what is `height` (T,) up by minus the horizontal part of `offset` (T,3)."""
    tilt = np.zeros_like(offset)
    tilt[:, 0], tilt[:, 2] = -np.arctan2(offset[:, 2], height), np.arctan2(offset[:, 0], height)
    return tilt


def _balance(track: Array, joints: Array, points: Array, fps: float) -> Array:
    """The turn of the root (T,3) that brings the centre of mass over the standing feet, or between the two."""
    mass = np.einsum("tjc,j->tc", joints, skeleton.MASSES)
    left, right = (points[:, _SOLES[side]].mean(axis=1) for side, _ in _SIDES)
    flat = np.array([1.0, 0.0, 1.0])
    way = (right - left) * flat
    along = np.einsum("tc,tc->t", (mass - left) * flat, way) / np.maximum(np.einsum("tc,tc->t", way, way), 1e-4)
    l_touch, r_touch = _weight(track, "l_touch"), _weight(track, "r_touch")
    low, high = 0.25 + 0.6 * (1 - l_touch), 0.75 - 0.6 * (1 - r_touch)
    along = np.clip(along, np.minimum(low, high), np.maximum(low, high))
    support = left + along[:, None] * (right - left)
    height = np.maximum(mass[:, 1] - support[:, 1], 0.4)
    tilt = _tilt(mass - support, height)
    size = np.linalg.norm(tilt, axis=-1, keepdims=True)
    tilt = tilt * np.minimum(1.0, np.deg2rad(25.0) / np.maximum(size, 1e-9))
    return blur(_weight(track, "balance")[:, None] * tilt, 0.12 * fps)


def _planted(track: Array, angles: Array, root: Array) -> Array:
    """Angles with the planted soles level, and both feet that should touch the floor at one height."""
    both = _weight(track, "l_touch") * _weight(track, "r_touch")
    angles = angles.copy()
    _, turned = posed(angles, root)
    _level_soles(track, angles, turned)
    for _ in range(2):
        joints, turned = posed(angles, root)
        points = skeleton.contact_points(joints, turned)
        bottoms = {
            side: (points[:, _SOLES[side], 1] - skeleton.CONTACT_RADII[_SOLES[side]]).min(axis=1) for side, _ in _SIDES
        }
        gap = both * (bottoms["l"] - bottoms["r"])
        for (_, word), rise in zip(_SIDES, (-0.5 * gap, 0.5 * gap), strict=True):
            _move_ankle(angles, joints, turned, word, rise)
        _, turned = posed(angles, root)
        _level_soles(track, angles, turned)
    return limited(angles)


def _level_soles(track: Array, angles: Array, turned: Array) -> None:
    """Turn planted ankles, in place, so that the soles are level as far as ankles go. turned: global rotations."""
    for side, word in _SIDES:
        shin = turned[:, joint(word + "knee")]
        across = shin[:, :, 0] * np.array([1.0, 0.0, 1.0])
        length = np.linalg.norm(across, axis=-1, keepdims=True)
        across = across / np.maximum(length, 1e-6)
        up = np.broadcast_to([0.0, 1.0, 0.0], across.shape)
        level = np.stack([across, up, np.cross(across, up)], axis=-1)
        row = np.zeros((len(track), 24, 3))
        row[:, joint(word + "ankle")] = rotvec.from_matrix(np.swapaxes(shin, -1, -2) @ level)
        wanted = np.clip(limits.from_poses(row)[:, joint(word + "ankle")], (-35, -25, -25), (50, 25, 25))
        weight = _weight(track, side + "_plant")[:, None] * np.clip((length - 0.3) / 0.4, 0, 1)
        angles[:, joint(word + "ankle")] += weight * (wanted - angles[:, joint(word + "ankle")])


def _move_ankle(angles: Array, joints: Array, turned: Array, word: str, rise: Array) -> None:
    """Bend or stretch a leg, in place, so that its ankle moves up by `rise` (T,) metres as far as the leg reaches."""
    hip, knee, ankle = (joint(word + n) for n in ("hip", "knee", "ankle"))
    leg = joints[:, ankle] - joints[:, hip]
    wanted = leg + rise[:, None] * np.array([0.0, 1.0, 0.0])
    reach = np.linalg.norm(wanted, axis=-1)
    angles[:, knee, 0] += np.rad2deg(_bend(reach) - _bend(np.linalg.norm(leg, axis=-1)))
    angles[:, knee, 0] = np.clip(angles[:, knee, 0], 0.0, 150.0)
    bones = rotvec.to_matrix(limits.to_poses(angles)[:, knee]) @ skeleton.BONES[ankle] + skeleton.BONES[knee]
    now = np.einsum("tij,tj->ti", turned[:, hip], bones)
    turn = _between(now, wanted)
    row = np.zeros((len(angles), 24, 3))
    row[:, hip] = rotvec.from_matrix(np.swapaxes(turned[:, 0], -1, -2) @ rotvec.to_matrix(turn) @ turned[:, hip])
    angles[:, hip] = limits.from_poses(row)[:, hip]


def _bend(reach: Array) -> Array:
    """Knee flexion in radians at a distance (T,) between hip and ankle."""
    cosine = (_THIGH**2 + _SHANK**2 - np.clip(reach, 0.2, 0.999 * (_THIGH + _SHANK)) ** 2) / (2 * _THIGH * _SHANK)
    return np.pi - np.arccos(np.clip(cosine, -1.0, 1.0))


def _between(a: Array, b: Array) -> Array:
    """The smallest rotation vectors (T,3) from directions a to b."""
    axis = np.cross(a, b)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, np.sum(a * b, axis=-1, keepdims=True))
    return np.where(sine > 1e-9, axis / np.maximum(sine, 1e-12), 0.0) * angle


def _tipped(track: Array, angles: Array, root: Array, fps: float) -> Array:
    """The root after the body has tipped over what carries it until its weight is shared out: hands and knees both
    reach the floor, a back lies flat. Followed from every frame's own attitude, then smoothed in time."""
    weight = _weight(track, "tip")[:, None]
    for _ in range(8):
        joints, turned = posed(angles, root)
        points = skeleton.contact_points(joints, turned)
        centre = np.einsum("tp,tpc->tc", floor.carriers(points, 0.02), points)
        offset = np.einsum("tjc,j->tc", joints, skeleton.MASSES) - centre
        tilt = -_tilt(offset, np.full(len(offset), 0.6))
        size = np.linalg.norm(tilt, axis=-1, keepdims=True)
        step = 0.35 * tilt * np.minimum(1.0, 0.25 / np.maximum(size, 1e-9))
        root = rotvec.compose(blur(weight * step, 0.1 * fps), root)
    return root
