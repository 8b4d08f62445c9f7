"""Rotation vectors in numpy against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from hmrcompress.motion import rotvec


@pytest.fixture
def rotations() -> Rotation:
    """Random rotations, and the awkward ones: none, tiny, half turns, nearly half turns."""
    awkward = [[0, 0, 0], [1e-9, 0, 0], [0, np.pi, 0], [0, 0, -np.pi], [np.pi - 1e-6, 0, 0], [0, 1e-4, 0]]
    drawn = Rotation.random(200, random_state=np.random.default_rng(0)).as_rotvec()
    return Rotation.from_rotvec(np.concatenate([drawn, awkward]))


def same(a: np.ndarray, b: Rotation) -> None:
    assert (Rotation.from_rotvec(a).inv() * b).magnitude().max() < 1e-7


def test_matrices_and_quaternions_are_those_of_scipy(rotations: Rotation) -> None:
    vectors = rotations.as_rotvec()
    np.testing.assert_allclose(rotvec.to_matrix(vectors), rotations.as_matrix(), atol=1e-12)
    quaternions = rotvec.to_quaternion(vectors)
    np.testing.assert_allclose(
        np.abs(np.sum(np.roll(quaternions, -1, axis=-1) * rotations.as_quat(), -1)), 1.0, atol=1e-12
    )
    same(rotvec.from_quaternion(quaternions), rotations)
    same(rotvec.from_quaternion(-2.5 * quaternions), rotations)
    same(rotvec.from_matrix(rotations.as_matrix()), rotations)


def test_products_rotate_the_last_first(rotations: Rotation) -> None:
    others = Rotation.random(len(rotations), random_state=np.random.default_rng(1))
    same(rotvec.compose(rotations.as_rotvec(), others.as_rotvec()), rotations * others)
    third = [0.1, -0.2, 0.3]
    same(
        rotvec.compose(rotations.as_rotvec(), others.as_rotvec(), np.array(third)),
        rotations * others * Rotation.from_rotvec(third),
    )
    points = np.random.default_rng(2).normal(size=(len(rotations), 3))
    np.testing.assert_allclose(rotvec.rotate(rotations.as_rotvec(), points), rotations.apply(points), atol=1e-12)


def test_slerp_is_that_of_scipy() -> None:
    ends = Rotation.random(2, random_state=np.random.default_rng(3))
    fractions = np.linspace(0, 1, 9)
    start, end = (np.repeat(ends[i].as_rotvec()[None], 9, axis=0) for i in (0, 1))
    same(rotvec.slerp(start, end, fractions), Slerp([0, 1], ends)(fractions))
    assert rotvec.angle_between(start[0], end[0]) == pytest.approx((ends[0].inv() * ends[1]).magnitude())


def test_a_spin_past_half_a_turn_is_written_without_jumps() -> None:
    angles = np.linspace(0, 5 * np.pi, 80)
    axis = np.array([0.6, 0.0, 0.8])
    wrapped = Rotation.from_rotvec(angles[:, None] * axis).as_rotvec()
    assert np.abs(np.diff(wrapped, axis=0)).max() > 1
    np.testing.assert_allclose(rotvec.continuous(wrapped), angles[:, None] * axis, atol=1e-9)
