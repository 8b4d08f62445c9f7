"""Named places on the starter body, and the vertex order that puts them where other programs look for them.

Programs written for SMPL pick extra joints by vertex number: smplx its nose, eyes, ears, fingertips, toes and heels,
HybrIK its five leaves. The starter body has another topology, so its vertices are numbered such that these few agree.
"""

from __future__ import annotations

import numpy as np

from hmrcompress.body.joints import LEAF_NAMES, SMPL_JOINTS

_LEFT_SLOTS = {
    "eye": 2800,
    "ear": 583,
    "thumb": 2746,
    "index_finger": 2319,
    "middle_finger": 2445,
    "ring_finger": 2556,
    "little_finger": 2673,
    "big_toe": 3216,
    "little_toe": 3226,
    "heel": 3387,
}
_RIGHT_SLOTS = {
    "eye": 6260,
    "ear": 4071,
    "thumb": 6191,
    "index_finger": 5782,
    "middle_finger": 5905,
    "ring_finger": 6016,
    "little_finger": 6133,
    "big_toe": 6617,
    "little_toe": 6624,
    "heel": 6787,
}
SLOTS = {
    "head_top": 411,
    "nose": 332,
    **{f"left_{name}": slot for name, slot in _LEFT_SLOTS.items()},
    **{f"right_{name}": slot for name, slot in _RIGHT_SLOTS.items()},
}
"""Vertex number of each landmark, as smplx's `vertex_ids['smplh']` and HybrIK number them."""
LEAF_SLOTS = tuple(SLOTS[name] for name in LEAF_NAMES)

EYE_RADIUS = 0.012
_FINGERS = {1: "thumb", 2: "index_finger", 3: "middle_finger", 4: "ring_finger", 5: "little_finger"}


def find_landmarks(
    points: np.ndarray,
    partner: np.ndarray,
    weights: np.ndarray,
    bones: tuple[str, ...],
    bone_weights: np.ndarray,
    heads: np.ndarray,
) -> dict[str, int]:
    """Vertex index of every landmark of SLOTS on a T-posed body.

    points (V,3) metres, SMPL's axes; partner (V,) mirror images; weights (V,24) of SMPL's joints; bone_weights
    (V,bones) and heads (bones,3) of anny's bones.
    """
    owner = weights.argmax(1)
    left = points[:, 0] > 0

    def furthest(among: np.ndarray, direction: tuple[float, float, float]) -> int:
        candidates = np.nonzero(among)[0]
        return int(candidates[np.argmax(points[candidates] @ np.asarray(direction))])

    def follows(*names: str) -> np.ndarray:
        return left & (bone_weights[:, [bones.index(f"{name}.L") for name in names]].sum(1) > 0.3)

    head = owner == SMPL_JOINTS.index("head")
    seam = partner == np.arange(len(points))
    found = {"head_top": furthest(head & seam, (0, 1, 0)), "nose": furthest(head & seam, (0, 0, 1))}
    around_eye = np.linalg.norm((points - heads[bones.index("eye.L")])[:, :2], axis=1) < EYE_RADIUS
    sides = {"eye": furthest(head & around_eye, (0, 0, 1))}
    above_chin = np.abs(points[:, 1] - points[found["nose"], 1]) < 0.05
    sides["ear"] = furthest(head & left & above_chin, (1, 0, 0))
    for number, name in _FINGERS.items():
        direction = (0.7, 0, 0.7) if number == 1 else (1, 0, 0)
        sides[name] = furthest(follows(f"finger{number}-3"), direction)
    sides["big_toe"] = furthest(follows("toe1-2"), (0, 0, 1))
    sides["little_toe"] = furthest(follows("toe5-1", "toe5-2", "toe5-3"), (0.5, 0, 1))
    foot = left & (owner == SMPL_JOINTS.index("left_ankle"))
    sides["heel"] = furthest(foot, (0, -0.5, -1))
    for name, vertex in sides.items():
        found[f"left_{name}"], found[f"right_{name}"] = vertex, int(partner[vertex])
    if len(set(found.values())) != len(SLOTS):
        raise ValueError("two landmarks fell on one vertex")
    return found


def order_with_slots(count: int, landmarks: dict[str, int]) -> np.ndarray:
    """The order (count,) of old vertex indices that has every landmark in its slot and the others as they came."""
    order = np.full(count, -1, np.int64)
    for name, vertex in landmarks.items():
        order[SLOTS[name]] = vertex
    order[order < 0] = np.setdiff1d(np.arange(count), list(landmarks.values()))
    return order
