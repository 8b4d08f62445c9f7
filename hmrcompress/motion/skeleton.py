"""A canonical skeleton for floor contact and balance: an adult of about 1.7 m, in SMPL's tree and rest pose.

The bone offsets are round figures of adult anthropometry; no body model is needed to make motion plausible. The
points are where skin touches the floor: joint, offset in that joint's frame, radius (metres).
"""

from __future__ import annotations

import numpy as np

from hmrcompress.body.joints import MIRROR, SMPL_JOINTS, SMPL_PARENTS, joint
from hmrcompress.motion.arrays import Array

_LEFT_AND_MIDDLE = {
    "pelvis": (0.0, 0.0, 0.0),
    "left_hip": (0.065, -0.085, -0.005),
    "spine1": (0.0, 0.115, -0.02),
    "left_knee": (0.035, -0.385, 0.0),
    "spine2": (0.0, 0.135, 0.005),
    "left_ankle": (-0.012, -0.405, -0.035),
    "spine3": (0.0, 0.055, 0.015),
    "left_foot": (0.03, -0.058, 0.125),
    "neck": (0.0, 0.215, -0.035),
    "left_collar": (0.08, 0.115, -0.02),
    "head": (0.0, 0.085, 0.045),
    "left_shoulder": (0.105, 0.035, -0.005),
    "left_elbow": (0.26, -0.005, -0.02),
    "left_wrist": (0.25, 0.005, 0.0),
    "left_hand": (0.085, -0.005, 0.0),
}


def _bones() -> Array:
    offsets = np.zeros((len(SMPL_JOINTS), 3))
    for name, offset in _LEFT_AND_MIDDLE.items():
        index = joint(name)
        offsets[MIRROR[index]] = np.array(offset) * (-1.0, 1.0, 1.0)
        offsets[index] = offset
    return offsets


BONES = _bones()
"""(24,3) metres: each joint relative to its parent in the rest pose."""

_CONTACTS = (
    ("left_ankle", (0.0, -0.035, -0.045), 0.03),
    ("left_foot", (0.025, 0.0, 0.0), 0.02),
    ("left_foot", (-0.03, 0.0, 0.0), 0.02),
    ("left_foot", (0.005, 0.0, 0.075), 0.015),
    ("left_knee", (0.0, 0.0, 0.015), 0.05),
    ("left_hip", (0.09, 0.0, 0.0), 0.07),
    ("left_hip", (0.01, -0.02, -0.05), 0.08),
    ("left_elbow", (0.0, 0.0, 0.0), 0.04),
    ("left_wrist", (0.0, 0.0, 0.0), 0.03),
    ("left_hand", (0.0, 0.0, 0.0), 0.02),
    ("left_hand", (0.09, 0.0, 0.0), 0.01),
    ("left_shoulder", (0.02, 0.0, 0.0), 0.06),
    ("pelvis", (0.0, 0.03, 0.05), 0.07),
    ("spine2", (0.0, 0.0, -0.02), 0.09),
    ("spine2", (0.0, 0.0, 0.04), 0.08),
    ("spine3", (0.0, 0.12, -0.02), 0.1),
    ("spine3", (0.0, 0.08, 0.05), 0.09),
    ("head", (0.0, 0.08, -0.03), 0.09),
    ("head", (0.0, 0.08, 0.03), 0.09),
)


def _mirrored_contacts() -> tuple[Array, Array, Array]:
    joints, offsets, radii = [], [], []
    for name, offset, radius in _CONTACTS:
        for side in (1.0, -1.0) if name.startswith("left_") else (1.0,):
            joints.append(joint(name) if side > 0 else MIRROR[joint(name)])
            offsets.append((side * offset[0], offset[1], offset[2]))
            radii.append(radius)
    return np.array(joints), np.array(offsets), np.array(radii)


CONTACT_JOINTS, CONTACT_OFFSETS, CONTACT_RADII = _mirrored_contacts()

_MASSES = {
    "pelvis": 0.14, "spine1": 0.06, "spine2": 0.08, "spine3": 0.16, "neck": 0.03, "head": 0.05,
    "left_hip": 0.05, "left_knee": 0.07, "left_ankle": 0.03, "left_foot": 0.01,
    "left_shoulder": 0.025, "left_elbow": 0.025, "left_wrist": 0.02, "left_hand": 0.005,
}  # fmt: skip


def _mass_of_joints() -> Array:
    masses = np.zeros(len(SMPL_JOINTS))
    for name, mass in _MASSES.items():
        masses[joint(name)] = masses[MIRROR[joint(name)]] = mass
    return masses / masses.sum()


MASSES = _mass_of_joints()
"""(24,) share of the body's mass lumped at each joint: coarse, enough to keep a figure from toppling."""


def forward(rotations: Array, bones: Array = BONES) -> tuple[Array, Array]:
    """Forward kinematics. rotations (T,24,3,3) relative to the parent, bones (24,3) metres.

    Returns joint positions (T,24,3) relative to the root joint and global rotations (T,24,3,3).
    """
    turned = [rotations[:, 0]]
    placed = [np.zeros((len(rotations), 3))]
    for index in range(1, len(SMPL_PARENTS)):
        parent = SMPL_PARENTS[index]
        turned.append(turned[parent] @ rotations[:, index])
        placed.append(placed[parent] + turned[parent] @ bones[index])
    return np.stack(placed, axis=1), np.stack(turned, axis=1)


def contact_points(joints: Array, rotations: Array) -> Array:
    """(T,24,3), (T,24,3,3) global -> (T,P,3): centres of the skin spheres of CONTACT_RADII."""
    offsets = np.einsum("tpij,pj->tpi", rotations[:, CONTACT_JOINTS], CONTACT_OFFSETS)
    return joints[:, CONTACT_JOINTS] + offsets
