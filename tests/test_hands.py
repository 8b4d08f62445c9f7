"""The hand of sticks, and which body and protocol a model that predicts hands is measured on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hmrcompress.api import opening
from hmrcompress.body.files import load_body
from hmrcompress.body.hand import BONES, HAND_JOINTS, HAND_PARENTS, stick_hand
from hmrcompress.body.topology import hash_faces
from hmrcompress.errors import UserError
from hmrcompress.metrics.other_bodies import HAND16
from hmrcompress.records import BodyParams


def bent(joint: int, angle: float) -> BodyParams:
    """A hand with one joint turned about the axis across the palm."""
    rotations = torch.eye(3, dtype=torch.float64).repeat(1, 16, 1, 1)
    c, s = np.cos(angle), np.sin(angle)
    rotations[0, joint] = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return BodyParams(rotations[:, :1], rotations[:, 1:], torch.zeros(1, 10, dtype=torch.float64))


def test_sticks_keep_their_lengths_and_only_what_hangs_on_a_joint_moves() -> None:
    hand = stick_hand().double()
    assert len(HAND_JOINTS) == hand.num_joints == 16 and hand.num_vertices == 21
    rest, posed = hand(bent(0, 0.0)), hand(bent(HAND_JOINTS.index("ring2"), 1.0))
    for finger, lengths in BONES.items():
        first = HAND_JOINTS.index(f"{finger}1")
        tip = 16 + list(BONES).index(finger)
        chain = posed.vertices[0][[first, first + 1, first + 2, tip]]
        np.testing.assert_allclose((chain[1:] - chain[:-1]).norm(dim=-1), lengths, rtol=1e-6)
    moved = (posed.vertices - rest.vertices)[0].norm(dim=-1) > 1e-6
    ring3, ring_tip = HAND_JOINTS.index("ring3"), 16 + list(BONES).index("ring")
    assert set(moved.nonzero().flatten().tolist()) == {ring3, ring_tip}
    # A chord of one radian on a bone of 24 mm.
    step = (posed.joints - rest.joints)[0, ring3].norm().item()
    assert step == pytest.approx(2 * 0.024 * np.sin(0.5), rel=1e-6)
    assert all(HAND_JOINTS[parent][:-1] == HAND_JOINTS[j][:-1] for j, parent in enumerate(HAND_PARENTS) if parent > 0)


def model(joints: int) -> Any:
    return SimpleNamespace(config=SimpleNamespace(num_joints=joints, num_betas=10), name="model")


def test_hands_are_measured_on_hands(tmp_path: Path, tiny_body_file: Path) -> None:
    assert opening.body_for(model(16)).name == "stick hand"
    assert opening.body_for(model(24), tiny_body_file).name == "tiny"
    assert opening.protocol_for(model(16), "starter24") is HAND16
    assert opening.protocol_for(model(24), "starter24").name == "starter24"
    with pytest.raises(UserError, match="expected a MANO body .16 joints"):
        opening.body_for(model(16), tiny_body_file)
    with pytest.raises(UserError, match="no data set of hands"):
        opening.require_truth(model(16))
    opening.require_truth(model(24))


def test_a_mano_file_is_read_like_any_body(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    weights = source.random((778, 16))
    regressor = source.random((16, 778))
    faces = source.integers(0, 778, (1538, 3)).astype(np.uint32)
    path = tmp_path / "MANO_RIGHT.npz"
    np.savez(
        path,
        v_template=source.normal(size=(778, 3)),
        f=faces,
        shapedirs=source.normal(size=(778, 3, 10)),
        posedirs=source.normal(size=(778, 3, 135)),
        J_regressor=regressor / regressor.sum(1, keepdims=True),
        weights=weights / weights.sum(1, keepdims=True),
        kintree_table=np.array([[2**32 - 1, *HAND_PARENTS[1:]], range(16)], dtype=np.int64),
    )
    hand = load_body(path)
    assert hand.parents == HAND_PARENTS and hand.leaf_vertices == () and hand.faces_sha256 == hash_faces(faces)
    assert opening.body_for(model(16), path).num_vertices == 778
    assert hand(
        BodyParams(*(part.float() for part in (bent(3, 0.4).global_orient, bent(3, 0.4).body_pose)), torch.zeros(1, 10))
    ).vertices.shape == (1, 778, 3)
