"""SMPL-X: the stand-in for its body, its files, and which body a model that predicts it is measured on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hmrcompress.api import opening
from hmrcompress.body.files import load_body, starter_body
from hmrcompress.body.hand import BONES, stick_hand
from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.body.whole import FACE, WHOLE_JOINTS, WHOLE_PARENTS, whole_body
from hmrcompress.errors import UserError
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.metrics.other_bodies import WHOLE55
from hmrcompress.records import BodyParams

METRES = 1e-6


def posed(rotations: torch.Tensor, betas: torch.Tensor) -> BodyParams:
    return BodyParams(rotations[:, :1], rotations[:, 1:], betas)


def test_names_and_tree() -> None:
    assert len(WHOLE_JOINTS) == len(set(WHOLE_JOINTS)) == 55 and FACE == (22, 23, 24)
    assert WHOLE_JOINTS[25:28] == ("left_index1", "left_index2", "left_index3") and WHOLE_JOINTS[-1] == "right_thumb3"
    for name, parent in zip(WHOLE_JOINTS[25:], WHOLE_PARENTS[25:], strict=True):
        side, finger = name.split("_")
        above = f"{side}_wrist" if finger.endswith("1") else f"{side}_{finger[:-1]}{int(finger[-1]) - 1}"
        assert WHOLE_JOINTS[parent] == above
    assert all(parent < joint for joint, parent in enumerate(WHOLE_PARENTS))


def test_the_body_moves_as_the_starter_body_does() -> None:
    """With the wrists' rotations in its hands, the starter body's surface is the same."""
    body, starter = whole_body().double(), starter_body(torch.float64)
    generator = torch.Generator().manual_seed(0)
    pose = 0.5 * torch.randn(3, 24, 3, generator=generator, dtype=torch.float64)
    pose[:, 22:] = 0  # the starter body's own hands
    betas = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    theirs = starter(posed(axis_angle_to_matrix(pose), betas))
    mine = torch.zeros(3, 55, 3, dtype=torch.float64)
    mine[:, :22] = pose[:, :22]
    more = torch.cat([betas, torch.randn(3, 6, generator=generator, dtype=torch.float64)], 1)
    ours = body(posed(axis_angle_to_matrix(mine), more))
    assert (ours.vertices[:, : starter.num_vertices] - theirs.vertices).abs().max() < METRES
    assert (ours.joints[:, :22] - theirs.joints[:, :22]).abs().max() < METRES


def test_hands_hang_at_the_wrists_and_mirror_each_other() -> None:
    body, hand = whole_body().double(), stick_hand().double()
    points, first = hand.num_vertices, starter_body().num_vertices
    still = torch.eye(3, dtype=torch.float64).repeat(1, 55, 1, 1)
    rest = body(posed(still, torch.zeros(1, 16, dtype=torch.float64)))
    left, right = rest.vertices[0, first : first + points], rest.vertices[0, first + points :]
    wrists = [rest.joints[0, WHOLE_JOINTS.index(f"{side}_wrist")] for side in ("left", "right")]
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(left - wrists[0], (right - wrists[1]) * flip)
    torch.testing.assert_close(left - wrists[0], hand.v_template.double())
    bent = still.clone()
    joint = WHOLE_JOINTS.index("right_middle2")
    bent[0, joint] = axis_angle_to_matrix(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    moved = body(posed(bent, torch.zeros(1, 16, dtype=torch.float64)))
    away = (moved.joints - rest.joints)[0].norm(dim=-1) > METRES
    assert away.nonzero().flatten().tolist() == [joint + 1]
    step = (moved.joints - rest.joints)[0, joint + 1].norm().item()
    assert step == pytest.approx(2 * BONES["middle"][1] * np.sin(0.5), rel=1e-5)


def model(joints: int, betas: int) -> Any:
    return SimpleNamespace(config=SimpleNamespace(num_joints=joints, num_betas=betas), name="model")


def write_smplx(path: Path, directions: int) -> Path:
    source = np.random.default_rng(1)
    weights, regressor = source.random((60, 55)), source.random((55, 60))
    np.savez(
        path,
        v_template=source.normal(size=(60, 3)),
        f=source.integers(0, 60, (90, 3)),
        shapedirs=source.normal(size=(60, 3, directions)),
        J_regressor=regressor / regressor.sum(1, keepdims=True),
        weights=weights / weights.sum(1, keepdims=True),
        kintree_table=np.array([[2**32 - 1, *WHOLE_PARENTS[1:]], range(55)], dtype=np.int64),
    )
    return path


def test_of_a_file_the_directions_of_shape_are_read(tmp_path: Path) -> None:
    """In files of SMPL-X those of expression follow: behind 300, or behind 10 in files of 20."""
    body = opening.body_for(model(55, 16), write_smplx(tmp_path / "SMPLX_NEUTRAL.npz", 400))
    assert (body.num_joints, body.num_betas) == (55, 16)
    assert load_body(write_smplx(tmp_path / "old.npz", 20)).num_betas == 10
    with pytest.raises(UserError, match="old.npz: shapedirs: got 10 shape directions, expected at least 16"):
        opening.body_for(model(55, 16), tmp_path / "old.npz")
    np.savez(tmp_path / "odd.npz", shapedirs=np.float64(1), kintree_table=np.zeros((2, 55), np.int64))
    with pytest.raises(UserError, match="odd.npz: v_template: the key is missing"):
        load_body(tmp_path / "odd.npz")
    with pytest.raises(UserError, match="is an SMPL-X body .55 joints., expected an SMPL body"):
        opening.body_for(model(24, 10), tmp_path / "old.npz")


def test_what_a_whole_body_is_measured_on() -> None:
    assert opening.body_for(model(55, 16)).name == "starter body with stick hands"
    assert opening.protocol_for(model(55, 16), "starter24") is WHOLE55
    with pytest.raises(UserError, match="predicts an SMPL-X body .55 joints., and no data set of such bodies"):
        opening.require_truth(model(55, 16))
    assert len(SMPL_JOINTS) == 24
