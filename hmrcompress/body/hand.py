"""MANO's joints, and a hand of sticks that stands for MANO where there is no file of it.

MANO's files may not be shipped. What merging moves in a hand's pose is measured in millimetres all the same: on 16
joints and five fingertips of a hand with the rounded proportions of an adult's. A MANO file is read like any body.
"""

from __future__ import annotations

import numpy as np

from hmrcompress.body.model import BodyModel

HAND_JOINTS = (
    "wrist",
    *(f"{finger}{joint}" for finger in ("index", "middle", "pinky", "ring", "thumb") for joint in (1, 2, 3)),
)
"""MANO's order."""
HAND_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)

ROOTS = {
    "index": (0.088, 0.0, 0.026),
    "middle": (0.090, 0.0, 0.004),
    "pinky": (0.074, 0.0, -0.036),
    "ring": (0.083, 0.0, -0.017),
    "thumb": (0.022, -0.01, 0.030),
}
"""Where the first joint of each finger lies from the wrist, metres."""
BONES = {
    "index": (0.033, 0.022, 0.022),
    "middle": (0.038, 0.025, 0.024),
    "pinky": (0.026, 0.017, 0.019),
    "ring": (0.033, 0.024, 0.023),
    "thumb": (0.040, 0.032, 0.027),
}
"""Lengths of its bones, the last one up to the tip, metres."""
AHEAD, ASIDE = np.array([1.0, 0.0, 0.0]), np.array([0.8, 0.0, 0.6])


def stick_hand() -> BodyModel:
    """The hand: 21 vertices, which are the 16 joints and the five tips, metres; the betas change nothing."""
    joints, tips, owners, faces = [np.zeros(3)], [], [], []
    for finger, lengths in BONES.items():
        place, direction = np.array(ROOTS[finger]), ASIDE if finger == "thumb" else AHEAD
        first = len(joints)
        for length in lengths:
            joints.append(place)
            place = place + length * direction
        faces += [(0, first, first + 1), (first, first + 1, first + 2)]
        owners.append(first + 2)
        tips.append(place)
    count = len(joints)
    vertices = np.array([*joints, *tips])
    return BodyModel(
        name="stick hand",
        faces=np.array(faces),
        v_template=vertices,
        shapedirs=np.zeros((len(vertices), 3, 10)),
        joint_regressor=np.eye(count, len(vertices)),
        weights=np.eye(count)[[*range(count), *owners]],
        parents=HAND_PARENTS,
    )
