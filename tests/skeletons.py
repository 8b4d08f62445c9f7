"""Forward kinematics written with scipy, on bones of the tests' own, as an independent reference for motions."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from hmrcompress.body.joints import SMPL_JOINTS, SMPL_PARENTS, joint

# Rest pose of a plain adult: metres, y up, facing +z, left is +x; left and middle joints, the right side is mirrored.
_BONES = {
    "pelvis": (0, 0, 0),
    "left_hip": (0.07, -0.09, 0),
    "spine1": (0, 0.11, -0.02),
    "left_knee": (0.04, -0.38, 0),
    "spine2": (0, 0.14, 0),
    "left_ankle": (-0.01, -0.40, -0.04),
    "spine3": (0, 0.06, 0),
    "left_foot": (0.03, -0.06, 0.12),
    "neck": (0, 0.21, -0.03),
    "left_collar": (0.08, 0.12, -0.02),
    "head": (0, 0.09, 0.05),
    "left_shoulder": (0.1, 0.03, 0),
    "left_elbow": (0.26, 0, -0.02),
    "left_wrist": (0.25, 0, 0),
    "left_hand": (0.08, 0, 0),
}
BONES = np.array(
    [_BONES[n] if n in _BONES else np.array(_BONES[n.replace("right", "left")]) * (-1, 1, 1) for n in SMPL_JOINTS],
    dtype=np.float64,
)


def frames(poses: np.ndarray, trans: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Axis-angle (T,24,3), the root's place (T,3) -> joints (T,24,3) metres and global rotations (T,24,3,3)."""
    turned: list[Rotation] = []
    placed: list[np.ndarray] = []
    for index, parent in enumerate(SMPL_PARENTS):
        local = Rotation.from_rotvec(np.asarray(poses[:, index], dtype=np.float64))
        turned.append(local if parent < 0 else turned[parent] * local)
        start = np.zeros((len(poses), 3)) if trans is None else np.asarray(trans, dtype=np.float64)
        placed.append(start if parent < 0 else placed[parent] + turned[parent].apply(BONES[index]))
    return np.stack(placed, axis=1), np.stack([rotation.as_matrix() for rotation in turned], axis=1)


def positions(poses: np.ndarray, trans: np.ndarray | None = None) -> np.ndarray:
    """Joints (T,24,3), metres."""
    return frames(poses, trans)[0]


def without_root(poses: np.ndarray) -> np.ndarray:
    """The same poses with the root upright and facing +z."""
    aligned = np.array(poses)
    aligned[:, joint("pelvis")] = 0.0
    return aligned
