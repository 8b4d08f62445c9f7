"""New motions from old ones. Every function returns a new Motion and leaves its inputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hmrcompress.body.joints import LEGS, MIRROR
from hmrcompress.errors import ShapeError
from hmrcompress.motion import rotvec, skeleton
from hmrcompress.motion.arrays import Array
from hmrcompress.motion.clip import NUM_JOINTS, Motion
from hmrcompress.motion.curves import wander
from hmrcompress.motion.resample import at_frames

_REFLECT_AXIS = np.array([1.0, -1.0, -1.0])
_REFLECT_POINT = np.array([-1.0, 1.0, 1.0])


def mirror(motion: Motion) -> Motion:
    """The motion seen in the mirror x = 0: left and right change places."""
    poses = motion.poses[:, list(MIRROR)] * _REFLECT_AXIS
    return replace(motion, poses=poses, trans=motion.trans * _REFLECT_POINT)


def swap_limbs(a: Motion, b: Motion, joints: Sequence[int]) -> Motion:
    """`a` with the rotations of `joints` (for example body.joints.ARMS) taken from `b`; as long as the shorter.

    Where a leg comes from b, the root is lifted or lowered so that the body's lowest point keeps a's height. Raises
    ShapeError for other frame rates, or joints outside 1..23 (the root belongs to one clip).
    """
    if a.fps != b.fps:
        raise ShapeError(f"got {b.fps} frames a second, expected {a.fps}", "swap_limbs")
    if any(not 0 < index < NUM_JOINTS for index in joints):
        raise ShapeError(f"got joints {tuple(joints)}, expected 1..{NUM_JOINTS - 1}", "swap_limbs")
    frames = min(len(a), len(b))
    poses, trans = a.poses[:frames].copy(), a.trans[:frames].copy()
    poses[:, list(joints)] = b.poses[:frames, list(joints)]
    if set(joints) & set(LEGS):
        trans[:, 1] += lowest(a.poses[:frames]) - lowest(poses)
    return replace(a, poses=poses, trans=trans)


def jitter(motion: Motion, rng: np.random.Generator, degrees: float) -> Motion:
    """All joints but the root turned a little, by a constant and by slow noise (below 1 Hz), about `degrees` rms."""
    t = np.arange(len(motion)) / motion.fps
    channels = (NUM_JOINTS - 1) * 3
    noise = (rng.standard_normal(channels) + wander(rng, t, channels, 0.1, 1.0)) * np.deg2rad(degrees) / np.sqrt(6.0)
    poses = motion.poses.copy()
    poses[:, 1:] = rotvec.compose(motion.poses[:, 1:], noise.reshape(len(motion), -1, 3))
    return replace(motion, poses=poses)


def turn(motion: Motion, yaw: float) -> Motion:
    """The whole motion turned about the vertical axis through the origin by `yaw` radians (from +z towards +x)."""
    about = np.array([0.0, yaw, 0.0])
    poses = motion.poses.copy()
    poses[:, 0] = rotvec.compose(about, motion.poses[:, 0])
    return replace(motion, poses=poses, trans=rotvec.rotate(about, motion.trans))


def change_speed(motion: Motion, factor: float) -> Motion:
    """The same movements at `factor` times the speed (2 halves the frames), at the same frame rate.

    Raises ShapeError for a factor that is not above 0.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise ShapeError(f"got a factor of {factor}, expected a number above 0", "change_speed")
    frames = np.arange(0.0, len(motion) - 1 + 1e-6, factor)
    poses, trans = at_frames(motion.poses, motion.trans, frames)
    return replace(motion, poses=poses, trans=trans)


def lowest(poses: Array) -> Array:
    """Height of the body's lowest point below the root joint (T,), metres, negative, on the canonical skeleton."""
    joints, turned = skeleton.forward(rotvec.to_matrix(poses))
    return (skeleton.contact_points(joints, turned)[..., 1] - skeleton.CONTACT_RADII).min(axis=1)
