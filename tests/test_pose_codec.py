"""The 133 pose numbers: round trips through smplx, what the numbers are, bodies that cannot have them, noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import smplx
import tiny
import torch
from scipy.spatial.transform import Rotation
from smplx.utils import Struct
from smplx.vertex_ids import vertex_ids

from hmrcompress.body.files import STARTER_BODY, load_body
from hmrcompress.body.joints import LEAF_PARENTS, SMPL_JOINTS, SMPL_PARENTS
from hmrcompress.body.model import BodyModel
from hmrcompress.decoder.pose import JOINTS, POSE_DIM, TWISTS, PoseCodec
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.records import BodyParams

COUNT = 10_000
KINEMATIC = len(SMPL_JOINTS)


def random_params(count: int, dtype: torch.dtype, *, seed: int = 0, spread: float | None = None) -> BodyParams:
    """Rotations uniform over SO(3), or by rotation vectors of this deviation; betas of deviation 2."""
    rng = np.random.default_rng(seed)
    if spread is None:
        made = Rotation.random(count * KINEMATIC, rng=rng)
    else:
        made = Rotation.from_rotvec(spread * rng.normal(size=(count * KINEMATIC, 3)))
    rotations = torch.from_numpy(made.as_matrix()).to(dtype).unflatten(0, (count, KINEMATIC))
    return BodyParams(rotations[:, :1], rotations[:, 1:], torch.from_numpy(2 * rng.normal(size=(count, 10))).to(dtype))


@pytest.fixture(scope="module", params=["starter", "tiny"])
def body_file(request: pytest.FixtureRequest, tiny_body_file: Path) -> Path:
    return STARTER_BODY if request.param == "starter" else tiny_body_file


def reference(path: Path) -> smplx.SMPL:
    """smplx's model of a body file in float64, its joints and those of its vertices that are leaves."""
    with np.load(path) as archive:
        arrays = {"posedirs": np.zeros((*archive["v_template"].shape, 9 * (KINEMATIC - 1))), **archive}
    ids = vertex_ids["smplh"] if len(arrays["v_template"]) == 6890 else dict.fromkeys(vertex_ids["smplh"], 0)
    return smplx.SMPL(str(path), data_struct=Struct(**arrays), vertex_ids=ids, dtype=torch.float64)


def by_smplx(model: smplx.SMPL, params: BodyParams) -> smplx.utils.SMPLOutput:
    rotations = params.to(torch.float64)
    return model(
        betas=rotations.betas, global_orient=rotations.global_orient, body_pose=rotations.body_pose, pose2rot=False
    )


@pytest.mark.parametrize(("dtype", "joint_mm", "vertex_mm"), [(torch.float32, 0.1, 0.5), (torch.float64, 1e-3, 1e-3)])
def test_round_trip(body_file: Path, dtype: torch.dtype, joint_mm: float, vertex_mm: float) -> None:
    """10,000 poses: joints of all by our kinematics in float64, joints and vertices of the worst thirty by smplx."""
    count = COUNT if body_file == STARTER_BODY else COUNT // 10
    codec, params = PoseCodec(load_body(body_file, dtype=dtype)), random_params(count, dtype)
    back = codec.decode(codec.encode(params), params.betas)
    assert back.rotations.dtype == dtype
    exact = load_body(body_file, dtype=torch.float64)
    moved = exact.joints(params.to(torch.float64)) - exact.joints(back.to(torch.float64))
    assert moved.norm(dim=-1).max() * 1e3 < joint_mm
    turned = (back.rotations - params.rotations).abs().amax(dim=(1, 2, 3))
    worst = turned.topk(30).indices
    before, after = (
        by_smplx(reference(body_file), BodyParams(p.global_orient[worst], p.body_pose[worst], p.betas[worst]))
        for p in (params, back)
    )
    assert (before.joints - after.joints).norm(dim=-1).max() * 1e3 < joint_mm
    assert (before.vertices - after.vertices).norm(dim=-1).max() * 1e3 < vertex_mm


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "vertex_mm"), [(torch.float32, 0.5), (torch.float64, 1e-3)])
def test_vertices_of_ten_thousand_poses(dtype: torch.dtype, vertex_mm: float) -> None:
    body = load_body(STARTER_BODY, dtype=dtype)
    codec, params = PoseCodec(body), random_params(COUNT, dtype, seed=1)
    back = codec.decode(codec.encode(params), params.betas)
    for rows in torch.arange(COUNT).split(250):
        before, after = (
            body(BodyParams(p.global_orient[rows], p.body_pose[rows], p.betas[rows])).vertices for p in (params, back)
        )
        assert (before - after).norm(dim=-1).max() * 1e3 < vertex_mm


def test_the_numbers(body_file: Path) -> None:
    """Joints by smplx, leaves by its transforms of their parents, twists by scipy where there is no swing."""
    body = load_body(body_file, dtype=torch.float64)
    params = random_params(5, torch.float64)
    pose = PoseCodec(body).encode(params)
    assert pose.shape == (5, POSE_DIM) and (JOINTS, TWISTS, POSE_DIM) == (29, 23, 133)
    joints = pose[:, : 3 * JOINTS].unflatten(1, (JOINTS, 3))
    wanted = by_smplx(reference(body_file), params).joints[:, :KINEMATIC]
    torch.testing.assert_close(joints[:, :KINEMATIC], wanted - wanted[:, :1], rtol=0, atol=1e-7)
    vertices, rest = (part.numpy() for part in body.rest(params.betas))
    for leaf, (vertex, parent) in enumerate(zip(body.leaf_vertices, LEAF_PARENTS, strict=True)):
        for row in range(5):
            whole = np.eye(3)
            above = parent
            while above >= 0:
                whole = params.rotations[row, above].numpy() @ whole
                above = SMPL_PARENTS[above]
            arm = whole @ (vertices[row, vertex] - rest[row, parent])
            np.testing.assert_allclose(joints[row, KINEMATIC + leaf] - joints[row, parent], arm, atol=1e-12)


def test_a_turned_forearm_is_its_twist() -> None:
    body = load_body(STARTER_BODY, dtype=torch.float64)
    elbow, wrist = SMPL_JOINTS.index("left_elbow"), SMPL_JOINTS.index("left_wrist")
    rest = body.rest_joints(torch.zeros(1, 10).double())[0].numpy()
    bone = (rest[wrist] - rest[elbow]) / np.linalg.norm(rest[wrist] - rest[elbow])
    rotations = torch.eye(3).double().repeat(1, KINEMATIC, 1, 1)
    rotations[0, elbow] = torch.from_numpy(Rotation.from_rotvec(0.7 * bone).as_matrix())
    pose = PoseCodec(body).encode(BodyParams(rotations[:, :1], rotations[:, 1:], torch.zeros(1, 10).double()))
    twists = pose[0, 3 * JOINTS :].unflatten(0, (TWISTS, 2))
    angles = torch.zeros(TWISTS).double()
    angles[elbow - 1] = 0.7
    torch.testing.assert_close(twists, torch.stack([angles.cos(), angles.sin()], -1), rtol=0, atol=1e-12)


def test_leading_axes_and_shapes_broadcast(tiny_body: BodyModel) -> None:
    codec, params = PoseCodec(tiny_body), random_params(6, torch.float32)
    pose = codec.encode(params).unflatten(0, (2, 3))
    betas = params.betas[:1]
    clips = codec.decode(pose, betas.expand(2, 1, 10))
    singly = codec.decode(pose.flatten(0, 1), betas[0])
    assert clips.rotations.shape == (6, KINEMATIC, 3, 3) and clips.betas.shape == (6, 10)
    assert torch.equal(clips.rotations, singly.rotations) and torch.equal(clips.betas, singly.betas)
    assert codec.decode(pose[:, :0], betas).rotations.shape == (0, KINEMATIC, 3, 3)


def test_half_precision_does_not_leak_in(tiny_body: BodyModel) -> None:
    """Under autocast, and for numbers in half precision, the arithmetic is the body's."""
    codec, params = PoseCodec(tiny_body), random_params(3, torch.float32)
    pose = codec.encode(params)
    rotations = codec.decode(pose, params.betas).rotations
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(params), pose)
        assert torch.equal(codec.decode(pose, params.betas).rotations, rotations)
    rounded = codec.decode(pose.half(), params.betas.half()).rotations
    assert torch.equal(rounded, codec.decode(pose.half().float(), params.betas.half().float()).rotations)


def test_a_codec_adds_nothing_to_a_checkpoint_but_the_body(tiny_body: BodyModel) -> None:
    assert {name.split(".")[0] for name in PoseCodec(tiny_body).state_dict()} == {"body"}


def test_bodies_that_will_not_do(tmp_path: Path) -> None:
    arrays = {name: array for name, array in tiny.body_arrays().items() if name != "leaf_vertices"}
    np.savez(tmp_path / "leafless.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="leaf_vertices.*head_top"):
        PoseCodec(load_body(tmp_path / "leafless.npz"))
    tree = tiny.body_arrays()["kintree_table"].copy()
    tree[0, 9] = 3
    np.savez(tmp_path / "tree.npz", **{**tiny.body_arrays(), "kintree_table": tree})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="SMPL's 24"):
        PoseCodec(load_body(tmp_path / "tree.npz"))


def test_wrong_shapes_are_named(tiny_body: BodyModel) -> None:
    codec = PoseCodec(tiny_body)
    with pytest.raises(ShapeError, match="pose.*133"):
        codec.decode(torch.zeros(2, 132), torch.zeros(2, 10))
    with pytest.raises(ShapeError, match="betas.*10"):
        codec.decode(torch.zeros(2, 133), torch.zeros(2, 9))
    with pytest.raises(ShapeError, match="do not broadcast"):
        codec.decode(torch.zeros(2, 133), torch.zeros(3, 10))


def noisy(pose: torch.Tensor, metres: float, radians: float) -> torch.Tensor:
    """Independent noise on all joints but the root, on twist angles, and on the length of their (cos, sin)."""
    generator = torch.Generator().manual_seed(0)
    joints, twists = pose[:, : 3 * JOINTS], pose[:, 3 * JOINTS :].unflatten(1, (TWISTS, 2))
    moved = joints + metres * torch.randn(joints.shape, generator=generator)
    angle = torch.atan2(twists[..., 1], twists[..., 0])
    angle = angle + radians * torch.randn(angle.shape, generator=generator)
    length = 0.3 + torch.rand(angle.shape, generator=generator)
    return torch.cat([moved, (length[..., None] * torch.stack([angle.cos(), angle.sin()], -1)).flatten(1)], 1)


def test_noise_is_not_amplified() -> None:
    """Joints after inverse kinematics are about as near to the truth as the noisy ones they come from."""
    body = load_body(STARTER_BODY)
    codec, params = PoseCodec(body), random_params(400, torch.float32, spread=0.3)
    truth = body.joints(params) - body.rest_joints(params.betas)[:, :1]
    for metres in (0.002, 0.01, 0.02):
        pose = noisy(codec.encode(params), metres, radians=10 * metres)
        raw = (pose[:, : 3 * KINEMATIC].unflatten(1, (KINEMATIC, 3)) - truth)[:, 1:].norm(dim=-1).mean()
        found = codec.decode(pose, params.betas)
        solved = (body.joints(found) - body.rest_joints(params.betas)[:, :1] - truth)[:, 1:].norm(dim=-1).mean()
        assert raw > 1.5 * metres and solved < 1.1 * raw
        assert (found.rotations @ found.rotations.mT - torch.eye(3)).abs().max() < 1e-5


def test_other_bone_lengths_keep_the_pose() -> None:
    """Numbers of one body on the template of another: rotations stay near, as directions say more than lengths."""
    body = load_body(STARTER_BODY)
    codec, params = PoseCodec(body), random_params(300, torch.float32, spread=0.3)
    generator = torch.Generator().manual_seed(1)
    others = params.betas + 0.7 * torch.randn(params.betas.shape, generator=generator)
    found = codec.decode(codec.encode(params), others)
    turned = body.kinematics(params)[0].mT @ body.kinematics(found)[0]
    degrees = np.degrees(Rotation.from_matrix(turned.flatten(0, 1).double().numpy()).magnitude())
    assert degrees.mean() < 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["identity", "random", "zeros", "huge"])
def test_gradients_through_the_body_are_finite(tiny_body_file: Path, kind: str, dtype: torch.dtype) -> None:
    body = load_body(tiny_body_file, dtype=dtype)
    codec, params = PoseCodec(body), random_params(4, dtype, spread=0.0 if kind == "identity" else None)
    pose = codec.encode(params)
    pose = {"zeros": 0 * pose, "huge": 1e3 * pose}.get(kind, pose).requires_grad_()
    betas = params.betas.clone().requires_grad_()
    again = codec.encode(codec.decode(pose, betas))
    weights = torch.randn(again.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for gradient in torch.autograd.grad((again * weights).sum(), (pose, betas)):
        assert torch.isfinite(gradient).all() and gradient.any()
