"""Anatomical joint angles: signs seen on a skeleton, the way back, and the clamp."""

from __future__ import annotations

import numpy as np
import pytest
from skeletons import positions

from hmrcompress.body.joints import SMPL_JOINTS, joint
from hmrcompress.starter.motion import limits

LEFT, UP, FORWARD = np.eye(3)


def bent(name: str, angle: str, degrees: float, base: dict[tuple[str, str], float] | None = None) -> np.ndarray:
    """Joints (24,3) of the neutral posture with one angle changed (and those of `base`)."""
    angles = np.zeros((24, 3))
    for (part, word), value in ((base or {}) | {(name, angle): degrees}).items():
        kind = limits.KINDS_OF_JOINT[joint(part)]
        angles[joint(part), limits.ANGLES[kind].index(word)] = value
    return positions(limits.to_poses(angles[None]))[0]


def test_all_zero_is_standing_with_hanging_arms() -> None:
    joints = bent("spine1", "flex", 0.0)
    for side, sign in (("left", 1), ("right", -1)):
        arm = joints[joint(f"{side}_wrist")] - joints[joint(f"{side}_shoulder")]
        assert arm[1] < -0.5 and abs(arm[0]) < 0.06 and abs(arm[2]) < 0.06
        assert joints[joint(f"{side}_ankle")][1] < -0.8
        assert sign * joints[joint(f"{side}_shoulder")][0] > 0.1


# What moves where (for the left side; the right one is its mirror image): joint, angle, seen at, direction, metres.
MOVES = [
    ("left_shoulder", "flex", "left_elbow", FORWARD, 0.1),
    ("left_shoulder", "flex", "left_elbow", UP, 0.1),
    ("left_shoulder", "abduct", "left_elbow", LEFT, 0.1),
    ("left_elbow", "flex", "left_wrist", FORWARD, 0.1),
    ("left_elbow", "flex", "left_wrist", UP, 0.1),
    ("left_collar", "raise", "left_shoulder", UP, 0.05),
    ("left_collar", "protract", "left_shoulder", FORWARD, 0.05),
    ("left_wrist", "flex", "left_hand", -LEFT, 0.05),
    ("left_wrist", "deviate_radial", "left_hand", FORWARD, 0.05),
    ("left_hip", "flex", "left_knee", FORWARD, 0.1),
    ("left_hip", "abduct", "left_knee", LEFT, 0.1),
    ("left_hip", "turn_out", "left_foot", LEFT, 0.03),
    ("left_knee", "flex", "left_ankle", -FORWARD, 0.1),
    ("left_ankle", "point", "left_foot", -UP, 0.05),
    ("spine1", "flex", "head", FORWARD, 0.1),
    ("spine2", "bend_left", "head", LEFT, 0.1),
    ("spine3", "twist_left", "left_shoulder", -FORWARD, 0.05),
    ("neck", "flex", "head", FORWARD, 0.03),
]


@pytest.mark.parametrize(("name", "angle", "marker", "way", "least"), MOVES)
def test_angles_move_limbs_where_their_names_say(
    name: str, angle: str, marker: str, way: np.ndarray, least: float
) -> None:
    for side, sign in (("left", 1), ("right", -1)):
        part, seen = name.replace("left", side), marker.replace("left", side)
        degrees = 60.0 if name.startswith("left") else 60.0 * (sign if angle in ("bend_left", "twist_left") else 1)
        moved = bent(part, angle, degrees) - bent(part, angle, 0.0)
        assert moved[joint(seen)] @ (way * (sign, 1, 1)) > least


def test_an_arm_turned_in_brings_the_bent_forearm_across_the_body() -> None:
    elbow = {("left_elbow", "flex"): 90.0, ("right_elbow", "flex"): 90.0}
    for side, sign in (("left", 1), ("right", -1)):
        moved = bent(f"{side}_shoulder", "turn_in", 60.0, elbow) - bent(f"{side}_shoulder", "turn_in", 0.0, elbow)
        assert sign * moved[joint(f"{side}_wrist")][0] < -0.1


def test_there_and_back() -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(limits.LIMITS[1:, :, 0], limits.LIMITS[1:, :, 1], (300, 23, 3))
    angles = limits.clamp(np.concatenate([rng.normal(size=(300, 1, 3)), angles], axis=1))
    np.testing.assert_allclose(limits.from_poses(limits.to_poses(angles)), angles, atol=1e-6)


def test_the_clamp_cuts_every_angle_and_the_arm_as_a_whole() -> None:
    wild = np.random.default_rng(1).normal(0, 200, (50, 24, 3))
    before = wild.copy()
    cut = limits.clamp(wild)
    np.testing.assert_array_equal(wild, before)
    assert (cut[:, 1:] >= limits.LIMITS[1:, :, 0]).all() and (cut[:, 1:] <= limits.LIMITS[1:, :, 1]).all()
    arms = cut[:, [joint("left_shoulder"), joint("right_shoulder")], :2]
    assert np.linalg.norm(arms, axis=-1).max() <= limits.SWING_LIMIT + 1e-9
    np.testing.assert_array_equal(cut[:, 0], wild[:, 0])


def test_limits_are_the_same_on_both_sides() -> None:
    for name in SMPL_JOINTS:
        if name.startswith("left_"):
            np.testing.assert_array_equal(limits.LIMITS[joint(name)], limits.LIMITS[joint("right_" + name[5:])])
