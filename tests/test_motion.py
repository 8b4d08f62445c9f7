"""Procedural motion: what a body can do, smoothly, on a floor, and always something else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skeletons import frames, positions, without_root

from hmrcompress.body.joints import joint
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.motion.clip import Motion
from hmrcompress.starter.motion import limits
from hmrcompress.starter.motion.procedural import KINDS, generate

SEEDS, FRAMES, FPS = 40, 75, 30.0


@pytest.fixture(scope="module")
def clips() -> list[Motion]:
    return [generate(seed, FRAMES, FPS) for seed in range(SEEDS)]


def speeds(poses: np.ndarray) -> np.ndarray:
    """Angular velocities (T-1,24,3) rad/s in the body's frame, by scipy."""
    flat = poses.astype(np.float64)
    turned = [
        (Rotation.from_rotvec(a).inv() * Rotation.from_rotvec(b)).as_rotvec()
        for a, b in zip(flat[:-1], flat[1:], strict=True)
    ]
    return np.stack(turned) * FPS


def test_shapes_and_types(clips: list[Motion]) -> None:
    for clip in clips:
        assert clip.poses.shape == (FRAMES, 24, 3) and clip.poses.dtype == np.float32
        assert clip.trans.shape == (FRAMES, 3) and clip.trans.dtype == np.float32
        assert clip.fps == FPS and clip.kind in KINDS and clip.seconds == pytest.approx(FRAMES / FPS)


def test_angles_stay_inside_the_limits(clips: list[Motion]) -> None:
    angles = limits.from_poses(np.concatenate([clip.poses for clip in clips]))[:, 1:]
    assert (angles > limits.LIMITS[1:, :, 0] - 0.1).all() and (angles < limits.LIMITS[1:, :, 1] + 0.1).all()


def test_hinges_bend_one_way_only(clips: list[Motion]) -> None:
    """Seen in the upper bone's own frame: a shin goes back, a forearm forward; neither folds flat on the upper bone."""
    poses = np.concatenate([clip.poses for clip in clips]).astype(np.float64)
    for name, bone, forwards in (
        ("left_knee", (0, -1, 0), -1), ("right_knee", (0, -1, 0), -1),
        ("left_elbow", (1, 0, 0), 1), ("right_elbow", (-1, 0, 0), 1),
    ):  # fmt: skip
        lower = Rotation.from_rotvec(poses[:, joint(name)]).apply(bone)
        assert (forwards * lower[:, 2]).min() > -np.sin(np.deg2rad(7)), name
        assert (lower @ np.array(bone)).min() > np.cos(np.deg2rad(157)), name


def test_movement_is_smooth(clips: list[Motion]) -> None:
    for seed, clip in enumerate(clips):
        speed = speeds(clip.poses)
        assert np.linalg.norm(speed, axis=-1).max() < 30, f"rad/s, seed {seed}"
        assert np.linalg.norm(np.diff(speed, axis=0), axis=-1).max() * FPS < 600, f"rad/s^2, seed {seed}"
        assert np.linalg.norm(np.diff(clip.trans, axis=0), axis=-1).max() * FPS < 9, f"m/s, seed {seed}"


def test_the_same_seed_gives_the_same_bytes_whatever_came_before(clips: list[Motion]) -> None:
    np.random.seed(0)
    for seed in (0, 7, 23):
        again = generate(seed, FRAMES, FPS)
        assert again.kind == clips[seed].kind
        assert again.poses.tobytes() == clips[seed].poses.tobytes()
        assert again.trans.tobytes() == clips[seed].trans.tobytes()


def test_every_kind_can_be_had_and_many_come_up_by_themselves(clips: list[Motion]) -> None:
    for kind in KINDS:
        assert generate(3, 8, kind=kind).kind == kind
    assert len({clip.kind for clip in clips}) >= 15


def test_nothing_is_under_the_floor_and_something_is_on_it(clips: list[Motion]) -> None:
    for seed, clip in enumerate(clips):
        lowest = positions(clip.poses, clip.trans)[..., 1].min(axis=1)
        assert lowest.min() > -0.03, f"seed {seed}"
        if clip.kind not in ("jump", "hop", "hang", "acrobatics", "run"):
            assert np.median(lowest) < 0.15, f"seed {seed}, {clip.kind}"


def test_seeds_differ_in_posture(clips: list[Motion]) -> None:
    """Mean distance of joints between clips of two seeds, root position and orientation taken away."""
    joints = np.stack([positions(without_root(clip.poses[::8])) for clip in clips])
    apart = np.linalg.norm(joints[:, None] - joints[None], axis=-1).mean(axis=(2, 3)) * 1000
    others = apart[~np.eye(len(clips), dtype=bool)]
    assert others.mean() > 180
    assert np.percentile(others, 2) > 70


def test_hands_go_everywhere_within_reach(clips: list[Motion]) -> None:
    joints = positions(without_root(np.concatenate([clip.poses[::3] for clip in clips])))
    hand = (joints[:, joint("left_wrist")] - joints[:, joint("left_shoulder")]) / 0.51
    assert np.linalg.norm(hand, axis=-1).min() < 0.35 and np.linalg.norm(hand, axis=-1).max() > 0.95
    shares = {
        "up": hand[:, 1] > 0.4, "down": hand[:, 1] < -0.4, "front": hand[:, 2] > 0.5, "back": hand[:, 2] < -0.3,
        "out": hand[:, 0] > 0.5, "across": hand[:, 0] < -0.2,
    }  # fmt: skip
    assert {name for name, share in shares.items() if share.mean() < 0.02} == set()


def test_nobody_stands_in_a_t_pose(clips: list[Motion]) -> None:
    joints = positions(without_root(np.concatenate([clip.poses for clip in clips])))
    level = np.ones(len(joints), dtype=bool)
    for side in ("left", "right"):
        arm = joints[:, joint(f"{side}_wrist")] - joints[:, joint(f"{side}_shoulder")]
        level &= np.abs(arm[:, 0]) / np.linalg.norm(arm, axis=-1) > np.cos(np.deg2rad(20))
    assert level.mean() < 0.05
    wrists = joints[:, [joint("left_wrist"), joint("right_wrist")], 1]
    assert np.median(wrists) < np.median(joints[:, joint("left_shoulder"), 1]) - 0.2


def test_headings_cover_the_circle(clips: list[Motion]) -> None:
    facing = Rotation.from_rotvec([clip.poses[0, 0] for clip in clips]).apply([0, 0, 1])[:, [0, 2]]
    assert np.linalg.norm(facing.mean(axis=0)) < 0.35
    assert len({tuple(quarter) for quarter in np.sign(facing)}) == 4


@pytest.mark.parametrize(("kind", "ahead"), [("walk", 1), ("run", 1), ("climb", 1), ("backwards", -1)])
def test_gaits_get_on_in_their_direction(kind: str, ahead: int) -> None:
    for seed in range(4):
        clip = generate(seed, 40, kind=kind)
        joints, turned = frames(clip.poses, clip.trans)
        step = np.diff(clip.trans, axis=0)[:, [0, 2]]
        facing = turned[:-1, 0][:, [0, 2], 2]
        assert ahead * np.sum(step * facing) > 0.15, f"{kind}, seed {seed}"
        assert (joints[:, joint("head"), 1] - joints[:, 0, 1]).mean() > 0.35


def test_feet_that_carry_a_walk_do_not_slide() -> None:
    for seed in range(4):
        clip = generate(seed, 60, kind="walk")
        feet = positions(clip.poses, clip.trans)[:, [joint("left_foot"), joint("right_foot")]]
        moved = np.linalg.norm(np.diff(feet[..., [0, 2]], axis=0), axis=-1) * FPS
        assert np.median(moved.min(axis=1)) < 0.25 * np.median(moved.max(axis=1)), f"seed {seed}"


def test_sitting_lying_and_falling_look_like_it() -> None:
    height = {"lie": [], "fall": [], "sit_floor": [], "sit_chair": []}
    for kind, seen in height.items():
        for seed in range(6):
            clip = generate(seed, 150, kind=kind)
            joints = positions(clip.poses, clip.trans)
            seen.append((joints[:, joint("head"), 1].min(), clip.trans[:, 1].min()))
    assert np.median([head for head, _ in height["lie"]]) < 0.45
    assert np.median([head for head, _ in height["fall"]]) < 0.45
    assert np.median([root for _, root in height["sit_floor"]]) < 0.3
    assert 0.3 < np.median([root for _, root in height["sit_chair"]]) < 0.65


def test_bad_arguments_are_user_errors() -> None:
    with pytest.raises(UserError, match="0 frames"):
        generate(0, 0)
    with pytest.raises(UserError, match="unknown kind 'fly'.*walk"):
        generate(0, 10, kind="fly")


def test_a_motion_checks_its_arrays() -> None:
    poses, trans = np.zeros((4, 24, 3), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(ShapeError, match=r"poses.*\(4, 23, 3\)"):
        Motion(poses[:, :23], trans, 30.0, "test")
    with pytest.raises(ShapeError, match=r"trans.*\(3, 3\)"):
        Motion(poses, trans[:3], 30.0, "test")
    with pytest.raises(ShapeError, match="NaN"):
        Motion(poses * np.nan, trans, 30.0, "test")
    with pytest.raises(ShapeError, match="fps"):
        Motion(poses, trans, 0.0, "test")
