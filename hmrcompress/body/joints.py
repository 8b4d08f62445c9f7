"""SMPL's joints: names, tree, mirror pairs. Order and tree are those of SMPL (Loper et al. 2015)."""

from __future__ import annotations

SMPL_JOINTS = (
    "pelvis",
    "left_hip",
    "right_hip",
    "spine1",
    "left_knee",
    "right_knee",
    "spine2",
    "left_ankle",
    "right_ankle",
    "spine3",
    "left_foot",
    "right_foot",
    "neck",
    "left_collar",
    "right_collar",
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hand",
    "right_hand",
)
SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
LEAF_NAMES = ("head_top", "left_middle_finger", "right_middle_finger", "left_big_toe", "right_big_toe")
LEAF_PARENTS = (15, 22, 23, 10, 11)
ARMS = tuple(
    i for i, n in enumerate(SMPL_JOINTS) if n.split("_")[-1] in ("collar", "shoulder", "elbow", "wrist", "hand")
)
LEGS = tuple(i for i, n in enumerate(SMPL_JOINTS) if n.split("_")[-1] in ("hip", "knee", "ankle", "foot"))


def joint(name: str) -> int:
    """Index of a joint by its SMPL name. Raises ValueError for an unknown one."""
    return SMPL_JOINTS.index(name)


def mirrored_name(name: str) -> str:
    """`left_knee` -> `right_knee` and back; names without a side stay."""
    if name.startswith("left_"):
        return "right_" + name[5:]
    return "left_" + name[6:] if name.startswith("right_") else name


MIRROR = tuple(joint(mirrored_name(name)) for name in SMPL_JOINTS)
"""MIRROR[i] is the joint on the other side of the body."""
