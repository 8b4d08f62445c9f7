"""Augmentation of motions, checked on joint positions by scipy's forward kinematics."""

from __future__ import annotations

import numpy as np
import pytest
from skeletons import positions

from hmrcompress.body.joints import ARMS, LEGS, MIRROR
from hmrcompress.errors import ShapeError
from hmrcompress.motion import augment, rotvec
from hmrcompress.motion.clip import Motion
from hmrcompress.starter.motion.procedural import generate


@pytest.fixture(scope="module")
def walk() -> Motion:
    return generate(5, 60, kind="walk")


@pytest.fixture(scope="module")
def other() -> Motion:
    return generate(11, 50, kind="squat")


def test_mirroring_reflects_every_joint_and_undoes_itself(walk: Motion) -> None:
    mirrored = augment.mirror(walk)
    expected = positions(walk.poses, walk.trans)[:, list(MIRROR)] * (-1, 1, 1)
    np.testing.assert_allclose(positions(mirrored.poses, mirrored.trans), expected, atol=1e-5)
    assert np.abs(mirrored.poses - walk.poses).max() > 0.1
    again = augment.mirror(mirrored)
    np.testing.assert_array_equal(again.poses, walk.poses)
    np.testing.assert_array_equal(again.trans, walk.trans)


def test_swapping_touches_only_the_named_joints(walk: Motion, other: Motion) -> None:
    mixed = augment.swap_limbs(walk, other, ARMS)
    rest = [index for index in range(24) if index not in ARMS]
    assert len(mixed) == 50
    np.testing.assert_array_equal(mixed.poses[:, rest], walk.poses[:50, rest])
    np.testing.assert_array_equal(mixed.poses[:, list(ARMS)], other.poses[:, list(ARMS)])
    np.testing.assert_array_equal(mixed.trans, walk.trans[:50])


def test_swapped_legs_still_stand_on_the_floor(walk: Motion, other: Motion) -> None:
    mixed = augment.swap_limbs(walk, other, LEGS)
    lowest = positions(mixed.poses, mixed.trans)[..., 1].min(axis=1)
    assert lowest.min() > -0.03 and np.median(lowest) < 0.1
    np.testing.assert_array_equal(mixed.trans[:, [0, 2]], walk.trans[:50, [0, 2]])


def test_swapping_refuses_the_root_and_other_rates(walk: Motion, other: Motion) -> None:
    with pytest.raises(ShapeError, match="joints"):
        augment.swap_limbs(walk, other, (0, 16))
    slow = Motion(other.poses, other.trans, 25.0, other.kind)
    with pytest.raises(ShapeError, match=r"25\.0.*30\.0"):
        augment.swap_limbs(walk, slow, ARMS)


def test_jitter_turns_joints_by_about_so_much_and_smoothly(walk: Motion) -> None:
    noisy = [augment.jitter(walk, np.random.default_rng(seed), degrees=4.0) for seed in range(6)]
    off = np.stack([rotvec.compose(-walk.poses[:, 1:], clip.poses[:, 1:]) for clip in noisy])
    rms = np.rad2deg(np.sqrt((off**2).sum(-1).mean()))
    assert 3.0 < rms < 5.0
    assert np.rad2deg(np.linalg.norm(np.diff(off, axis=1), axis=-1)).max() < 2.5
    np.testing.assert_array_equal(noisy[0].poses[:, 0], walk.poses[:, 0])
    same = augment.jitter(walk, np.random.default_rng(0), degrees=4.0)
    np.testing.assert_array_equal(same.poses, noisy[0].poses)


def test_turning_rotates_all_positions_about_the_vertical(walk: Motion) -> None:
    turned = augment.turn(walk, np.pi / 2)
    before, after = positions(walk.poses, walk.trans), positions(turned.poses, turned.trans)
    # A quarter turn from +z towards +x: (x, y, z) -> (z, y, -x).
    np.testing.assert_allclose(after, before[..., [2, 1, 0]] * (1, 1, -1), atol=1e-5)


def test_twice_the_speed_is_every_second_frame(walk: Motion) -> None:
    fast = augment.change_speed(walk, 2.0)
    np.testing.assert_allclose(positions(fast.poses, fast.trans), positions(walk.poses, walk.trans)[::2], atol=1e-5)
    assert fast.fps == walk.fps


def test_speed_scales_velocities(walk: Motion) -> None:
    def mean_speed(clip: Motion) -> float:
        return float(np.linalg.norm(np.diff(positions(clip.poses, clip.trans), axis=0), axis=-1).mean() * clip.fps)

    for factor in (0.6, 1.5):
        changed = augment.change_speed(walk, factor)
        assert len(changed) == pytest.approx(len(walk) / factor, abs=2)
        assert mean_speed(changed) / mean_speed(walk) == pytest.approx(factor, rel=0.05)
    with pytest.raises(ShapeError, match="factor"):
        augment.change_speed(walk, 0.0)


def test_inputs_are_left_alone(walk: Motion, other: Motion) -> None:
    before = (walk.poses.copy(), walk.trans.copy(), other.poses.copy())
    augment.mirror(walk)
    augment.swap_limbs(walk, other, LEGS)
    augment.jitter(walk, np.random.default_rng(0), 5.0)
    augment.turn(walk, 1.0)
    augment.change_speed(walk, 1.3)
    np.testing.assert_array_equal(walk.poses, before[0])
    np.testing.assert_array_equal(walk.trans, before[1])
    np.testing.assert_array_equal(other.poses, before[2])


def test_single_frames_can_be_augmented(walk: Motion) -> None:
    still = Motion(walk.poses[:1], walk.trans[:1], 30.0, "still")
    changed = augment.jitter(augment.turn(augment.mirror(still), 0.3), np.random.default_rng(0), 3.0)
    assert len(augment.swap_limbs(changed, still, LEGS)) == len(augment.change_speed(still, 2.0)) == 1
