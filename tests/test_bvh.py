"""BVH files, read back by a parser of their own and moved in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_overlay_glb import motion

from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.body.model import BodyModel
from hmrcompress.errors import Notice
from hmrcompress.pipeline.bvh import write_bvh
from hmrcompress.pipeline.glb import Motion

CLOSE_CM = 5e-4
"""Six decimals of degrees along nine bones of at most 2 m altogether, and rotations in float32."""


def read_bvh(path: Path) -> tuple[list[dict[str, Any]], float, np.ndarray]:
    """Joints (name, parent, offset, channels), seconds a frame, values (T,channels)."""
    words = path.read_text().split()
    joints: list[dict[str, Any]] = []
    stack: list[int] = []
    at, ends = 1, 0
    assert words[0] == "HIERARCHY"
    while words[at] != "MOTION":
        word = words[at]
        if word in ("ROOT", "JOINT"):
            assert (word == "ROOT") == (not stack)
            joints.append({"name": words[at + 1], "parent": stack[-1] if stack else -1})
            stack.append(len(joints) - 1)
            at += 3
        elif word == "End":
            assert words[at : at + 4] == ["End", "Site", "{", "OFFSET"] and words[at + 7] == "}"
            ends, at = ends + 1, at + 8
        elif word == "OFFSET":
            joints[stack[-1]]["offset"] = np.array(words[at + 1 : at + 4], float)
            at += 4
        elif word == "CHANNELS":
            count = int(words[at + 1])
            joints[stack[-1]]["channels"] = words[at + 2 : at + 2 + count]
            at += 2 + count
        else:
            assert word == "}"
            stack.pop()
            at += 1
    assert not stack and ends == sum(all(each["parent"] != n for each in joints) for n in range(len(joints)))
    assert words[at + 1] == "Frames:" and words[at + 3 : at + 5] == ["Frame", "Time:"]
    values = np.array(words[at + 6 :], float).reshape(int(words[at + 2]), -1)
    return joints, float(words[at + 5]), values


def turn(axis: str, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about = {
        "X": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "Y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "Z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(about[axis])


def moved(joints: list[dict[str, Any]], row: np.ndarray) -> np.ndarray:
    """Places (J,3) of the joints in one frame, channels applied in the order in which they are listed."""
    world: list[np.ndarray] = []
    at = 0
    for each in joints:
        local = np.eye(4)
        local[:3, 3] = each["offset"]
        for channel in each["channels"]:
            step = np.eye(4)
            if channel.endswith("position"):
                step["XYZ".index(channel[0]), 3] = row[at]
            else:
                step[:3, :3] = turn(channel[0], row[at])
            local, at = local @ step, at + 1
        world.append(world[each["parent"]] @ local if each["parent"] >= 0 else local)
    return np.array([matrix[:3, 3] for matrix in world])


def expected(made: Motion, body: BodyModel, key: int) -> np.ndarray:
    """Joints (J,3) in centimetres, y up, in float64."""
    rest = body.rest(torch.from_numpy(made.betas)[None])[1][0].double().numpy()
    rotations = made.rotations[key].astype(np.float64)
    turned: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for number, parent in enumerate(body.parents):
        if parent < 0:
            turned.append(rotations[number])
            places.append(made.root[key].astype(np.float64))
        else:
            turned.append(turned[parent] @ rotations[number])
            places.append(places[parent] + turned[parent] @ (rest[number] - rest[parent]))
    return 100 * np.array(places) * [1, -1, -1]


def test_the_skeleton_moves_as_the_body_does(tmp_path: Path, tiny_body: BodyModel) -> None:
    made = motion(2, 7)
    write_bvh(tmp_path / "t.bvh", made, tiny_body)
    joints, step, values = read_bvh(tmp_path / "t.bvh")
    names = [each["name"] for each in joints]
    assert sorted(names) == sorted(SMPL_JOINTS) and step == pytest.approx(1 / 30, rel=1e-6)
    for each in joints:
        parent = tiny_body.parents[SMPL_JOINTS.index(each["name"])]
        assert (each["parent"] < 0) == (parent < 0)
        assert parent < 0 or joints[each["parent"]]["name"] == SMPL_JOINTS[parent]
    place = [names.index(name) for name in SMPL_JOINTS]
    for key, row in enumerate(values):
        assert np.abs(moved(joints, row)[place] - expected(made, tiny_body, key)).max() < CLOSE_CM


def test_uneven_frames_are_put_on_even_steps(tmp_path: Path, tiny_body: BodyModel) -> None:
    """A steady turn and a straight way stay what they are, also over a hole; turns by more than half a circle between
    the first and last frame make no jump."""
    seconds = np.array([0.0, 0.1, 0.2, 0.35, 0.4, 0.7, 0.8])
    angles = 400 * seconds
    rotations = np.tile(np.eye(3), (len(seconds), 24, 1, 1))
    rotations[:, 5] = [turn("Z", angle) for angle in angles]
    made = Motion(0, 5 + seconds, rotations, np.outer(seconds, [1.0, 2, 3]), np.zeros(10, np.float32))
    write_bvh(tmp_path / "t.bvh", made, tiny_body)
    joints, step, values = read_bvh(tmp_path / "t.bvh")
    assert step == pytest.approx(0.1) and len(values) == 9
    at = 6 + 3 * ([each["name"] for each in joints].index(SMPL_JOINTS[5]) - 1)
    assert np.allclose(values[:, at], 400 * 0.1 * np.arange(9), atol=1e-5)
    assert np.allclose(values[:, :3], 10 * np.outer(np.arange(9), [1, -2, -3]), atol=1e-5)


def test_a_single_picture_stands_still(tmp_path: Path, tiny_body: BodyModel) -> None:
    write_bvh(tmp_path / "t.bvh", motion(1, 1), tiny_body)
    joints, step, values = read_bvh(tmp_path / "t.bvh")
    assert len(values) == 1 and step == pytest.approx(1 / 30, rel=1e-6)
    assert len(values[0]) == 6 + 3 * 23 and len(joints) == 24


def test_a_quarter_turn_about_x_is_no_trouble(tmp_path: Path, tiny_body: BodyModel) -> None:
    """Where z and y turn alike."""
    made = motion(4, 2)
    made.rotations[:, 3] = turn("Z", 30) @ turn("X", 90) @ turn("Y", 10)
    write_bvh(tmp_path / "t.bvh", made, tiny_body)
    joints, _, values = read_bvh(tmp_path / "t.bvh")
    place = [[each["name"] for each in joints].index(name) for name in SMPL_JOINTS]
    assert np.abs(moved(joints, values[1])[place] - expected(made, tiny_body, 1)).max() < 0.05


def test_a_track_that_is_away_for_hours_is_left_out(tmp_path: Path, tiny_body: BodyModel) -> None:
    """Even steps of a thousandth of a second over five hours would be 18 million frames."""
    given = motion(3, 4)
    away = replace(given, seconds=np.array([0.0, 0.001, 0.002, 18_000.0]))
    with pytest.warns(Notice, match=r"would have 18,000,001 frames at even steps, as track \d+ is away for long"):
        assert not write_bvh(tmp_path / "a.bvh", away, tiny_body)
    assert not (tmp_path / "a.bvh").exists() and write_bvh(tmp_path / "b.bvh", given, tiny_body)
