"""Joint angles in anatomical terms, their limits, and the way to SMPL's axis-angle and back.

Every joint has three angles whose names are in ANGLES; both sides of the body use the same words and signs. All
degrees of freedom at zero is a person standing with arms hanging, palms to the thighs, and not SMPL's T-pose. The
limits are those of healthy adults in daily and athletic movement, rounded to 5 degrees (after Norkin & White,
Measurement of Joint Motion), shared out over SMPL's joints where an anatomical joint is split (spine, neck, shoulder).
"""

from __future__ import annotations

import numpy as np

from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.motion import rotvec
from hmrcompress.motion.arrays import Array

AXIAL, HIP, KNEE, ANKLE, TOES, COLLAR, SHOULDER, ELBOW, WRIST = (
    "axial", "hip", "knee", "ankle", "toes", "collar", "shoulder", "elbow", "wrist",
)  # fmt: skip

ANGLES = {
    AXIAL: ("flex", "bend_left", "twist_left"),
    HIP: ("flex", "abduct", "turn_out"),
    KNEE: ("flex", "bow", "turn_out"),
    ANKLE: ("point", "invert", "turn_out"),
    TOES: ("curl", "tilt", "turn_out"),
    COLLAR: ("raise", "protract", "roll"),
    SHOULDER: ("flex", "abduct", "turn_in"),
    ELBOW: ("flex", "supinate", "carry"),
    WRIST: ("flex", "deviate_radial", "roll"),
}

# joint (without its side): kind, then (lowest, highest) degrees of its three angles. The pelvis is free.
_TABLE: dict[str, tuple[str, tuple[tuple[float, float], ...]]] = {
    "spine1": (AXIAL, ((-20, 45), (-20, 20), (-15, 15))),
    "spine2": (AXIAL, ((-20, 35), (-20, 20), (-20, 20))),
    "spine3": (AXIAL, ((-15, 30), (-15, 15), (-25, 25))),
    "neck": (AXIAL, ((-35, 40), (-25, 25), (-40, 40))),
    "head": (AXIAL, ((-40, 45), (-30, 30), (-45, 45))),
    "hip": (HIP, ((-40, 130), (-35, 75), (-45, 70))),
    "knee": (KNEE, ((-5, 155), (-5, 5), (-20, 20))),
    "ankle": (ANKLE, ((-40, 60), (-30, 30), (-30, 30))),
    "foot": (TOES, ((-55, 30), (-5, 5), (-5, 5))),
    "collar": (COLLAR, ((-15, 40), (-25, 30), (-15, 15))),
    "shoulder": (SHOULDER, ((-60, 170), (-45, 165), (-75, 95))),
    "elbow": (ELBOW, ((-3, 150), (-60, 60), (-15, 30))),
    "wrist": (WRIST, ((-70, 75), (-35, 25), (-45, 45))),
    "hand": (WRIST, ((-20, 60), (-10, 10), (-10, 10))),
}
_HABIT: dict[str, tuple[float, float, float]] = {
    AXIAL: (4, 3, 3), HIP: (2, 2, 3), KNEE: (2, 1, 3), ANKLE: (3, 3, 6), TOES: (5, 1, 0.5), COLLAR: (3, 3, 2),
    SHOULDER: (3, 3, 4), ELBOW: (3, 7, 4), WRIST: (8, 7, 8),
}  # fmt: skip
SWING_LIMIT = 172.0
"""Degrees the upper arm may leave the hanging position in any direction (straight behind overhead is ambiguous)."""

FREE = "free"
KINDS_OF_JOINT = tuple(_TABLE[n.split("_")[-1]][0] if n != "pelvis" else FREE for n in SMPL_JOINTS)
RIGHT = np.array([n.startswith("right_") for n in SMPL_JOINTS])
LIMITS = np.array(
    [_TABLE[n.split("_")[-1]][1] if n != "pelvis" else ((-np.inf, np.inf),) * 3 for n in SMPL_JOINTS], dtype=np.float64
)
"""(24,3,2) degrees: lowest and highest of the three angles of each joint."""

HABIT = np.array([_HABIT[kind] if kind != FREE else (0, 0, 0) for kind in KINDS_OF_JOINT], dtype=np.float64)
"""(24,3) degrees: how much the same posture differs from person to person in each angle (standard deviation)."""

_MIRROR = np.array([1.0, -1.0, -1.0])
_HANG = np.array([0.0, 0.0, -np.pi / 2])  # turns the left arm from the rest pose's +x to straight down
_PLAIN = {
    # rotation vector = angles @ matrix, for joints whose angles are small or about one axis
    AXIAL: np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    KNEE: np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]),
    ANKLE: np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    TOES: np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    COLLAR: np.array([[0, 0, 1.0], [0, -1, 0], [1, 0, 0]]),
    WRIST: np.array([[0, 0, -1.0], [0, -1, 0], [1, 0, 0]]),
}


def clamp(angles: Array) -> Array:
    """Angles (...,24,3) degrees, cut to LIMITS; the upper arm's swing is shortened to SWING_LIMIT as a whole."""
    cut = np.clip(angles, LIMITS[..., 0], LIMITS[..., 1])
    shoulders = [i for i, kind in enumerate(KINDS_OF_JOINT) if kind == SHOULDER]
    swing = cut[..., shoulders, :2]
    size = np.linalg.norm(swing, axis=-1, keepdims=True)
    cut[..., shoulders, :2] = swing * np.minimum(1.0, SWING_LIMIT / np.maximum(size, 1e-9))
    return cut


def to_poses(angles: Array) -> Array:
    """Angles (...,24,3) degrees -> rotation vectors (...,24,3) radians. The root's numbers pass unchanged."""
    angles = np.asarray(angles, dtype=np.float64)
    poses = np.zeros_like(angles)
    radians = np.deg2rad(angles)
    for index, kind in enumerate(KINDS_OF_JOINT):
        a = radians[..., index, :]
        if kind == FREE:
            poses[..., index, :] = angles[..., index, :]
            continue
        if kind in _PLAIN:
            left = a @ _PLAIN[kind]
        elif kind == HIP:
            left = rotvec.compose(_triple(-a[..., 0], 0, a[..., 1]), _triple(0, a[..., 2], 0))
        elif kind == SHOULDER:
            left = rotvec.compose(_triple(-a[..., 0], 0, a[..., 1]), _HANG, _triple(a[..., 2], 0, 0))
        else:
            left = rotvec.compose(_triple(0, -a[..., 0], 0), _triple(0, 0, a[..., 2]), _triple(-a[..., 1], 0, 0))
        poses[..., index, :] = left * _MIRROR if RIGHT[index] else left
    return poses


def from_poses(poses: Array) -> Array:
    """The inverse of `to_poses`: (...,24,3) radians -> (...,24,3) degrees."""
    poses = np.asarray(poses, dtype=np.float64)
    angles = np.zeros_like(poses)
    for index, kind in enumerate(KINDS_OF_JOINT):
        left = poses[..., index, :] * _MIRROR if RIGHT[index] else poses[..., index, :]
        if kind == FREE:
            angles[..., index, :] = left
            continue
        if kind in _PLAIN:
            a = left @ _PLAIN[kind].T
        elif kind == HIP:
            a = _swing_and_twist(rotvec.to_quaternion(left), 1.0)
        elif kind == SHOULDER:
            a = _swing_and_twist(rotvec.to_quaternion(rotvec.compose(left, -_HANG)), -1.0)
        else:
            a = _elbow(rotvec.to_matrix(left))
        angles[..., index, :] = np.rad2deg(a)
    return angles


def _triple(x: Array | float, y: Array | float, z: Array | float) -> Array:
    return np.stack(np.broadcast_arrays(x, y, z), axis=-1).astype(np.float64)


def _swing_and_twist(quaternion: Array, sign: float) -> Array:
    """Split into a swing about an axis in the horizontal plane after a twist about `sign` times y."""
    twist = quaternion * np.array([1.0, 0.0, 1.0, 0.0])
    size = np.linalg.norm(twist, axis=-1, keepdims=True)
    twist = np.where(size > 1e-9, twist / np.maximum(size, 1e-12), np.array([1.0, 0.0, 0.0, 0.0]))
    inverse = twist * np.array([1.0, -1.0, -1.0, -1.0])
    swing = rotvec.from_quaternion(rotvec.multiply(quaternion, inverse))
    return np.stack([-swing[..., 0], swing[..., 2], sign * rotvec.from_quaternion(twist)[..., 1]], axis=-1)


def _elbow(m: Array) -> Array:
    """Matrix = Ry(-flex) Rz(carry) Rx(-supinate) -> (flex, supinate, carry)."""
    flex = np.arctan2(m[..., 2, 0], m[..., 0, 0])
    supinate = np.arctan2(m[..., 1, 2], m[..., 1, 1])
    carry = np.arcsin(np.clip(m[..., 1, 0], -1.0, 1.0))
    return np.stack([flex, supinate, carry], axis=-1)
