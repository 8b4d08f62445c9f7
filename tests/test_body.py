"""The body model against smplx, on the starter body and on a made-up one with pose-dependent offsets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import smplx
import tiny
import torch
from smplx.utils import Struct
from smplx.vertex_ids import vertex_ids

from hmrcompress.body.files import STARTER_BODY, load_body
from hmrcompress.body.joints import SMPL_JOINTS, SMPL_PARENTS
from hmrcompress.body.model import BodyModel
from hmrcompress.errors import ShapeError
from hmrcompress.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from hmrcompress.records import BodyParams
from hmrcompress.report.sheets import EXTREME_POSES

JOINTS = len(SMPL_JOINTS)
METRES = 1e-5


def made_up_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """The tiny body with every vertex hung on four joints, joints regressed from everywhere, and large posedirs."""
    arrays = tiny.body_arrays()
    rng = np.random.default_rng(seed)
    vertices = len(arrays["v_template"])
    weights = np.zeros((vertices, JOINTS))
    for row in weights:
        row[rng.choice(JOINTS, 4, replace=False)] = rng.dirichlet(np.ones(4))
    return {
        **arrays,
        "weights": weights,
        "J_regressor": rng.dirichlet(np.full(vertices, 0.1), JOINTS),
        "posedirs": 0.02 * rng.normal(size=(vertices, 3, 9 * (JOINTS - 1))),
    }


@pytest.fixture(scope="module", params=["starter", "made up"])
def body_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "starter":
        return STARTER_BODY
    path = tmp_path_factory.mktemp("body") / "made_up.npz"
    np.savez(path, **made_up_arrays())  # type: ignore[arg-type]
    return path


def reference(path: Path, dtype: torch.dtype) -> smplx.SMPL:
    """smplx's own model of the same file; small bodies lack the vertices of its extra joints, so those are moved."""
    with np.load(path) as archive:
        arrays = dict(archive)
    ids = vertex_ids["smplh"] if len(arrays["v_template"]) == 6890 else dict.fromkeys(vertex_ids["smplh"], 0)
    return smplx.SMPL(str(path), data_struct=Struct(**arrays), vertex_ids=ids, dtype=dtype)


def poses(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Axis-angle (B,24,3) and betas (B,10) in float64: moderate, every joint turned by 180 degrees, or the sheet's."""
    generator = torch.Generator().manual_seed(5)
    if kind == "random":
        return 0.5 * torch.randn(8, JOINTS, 3, generator=generator).double(), torch.randn(
            8, 10, generator=generator
        ).double()
    if kind == "half turns":
        axes = torch.nn.functional.normalize(torch.randn(6, JOINTS, 3, generator=generator).double(), dim=-1)
        return math.pi * axes, 5 * torch.randn(6, 10, generator=generator).double()
    sheet = torch.stack([matrix_to_axis_angle(pose.rotations()) for pose in EXTREME_POSES])
    return sheet, 3 * torch.randn(len(sheet), 10, generator=generator).double()


def params_of(axis_angle: torch.Tensor, betas: torch.Tensor) -> BodyParams:
    rotations = axis_angle_to_matrix(axis_angle)
    return BodyParams(rotations[:, :1], rotations[:, 1:], betas)


def small_batch(count: int = 3, dtype: torch.dtype = torch.float64) -> BodyParams:
    axis_angle, betas = poses("random")
    return params_of(axis_angle[:count].to(dtype), betas[:count].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "half turns", "sheet"])
def test_equals_smplx(body_file: Path, kind: str, dtype: torch.dtype) -> None:
    axis_angle, betas = (tensor.to(dtype) for tensor in poses(kind))
    body = load_body(body_file, dtype=dtype)
    with torch.no_grad():
        theirs = reference(body_file, dtype)(
            betas=betas, global_orient=axis_angle[:, 0], body_pose=axis_angle[:, 1:].flatten(1)
        )
        ours = body(params_of(axis_angle, betas))
    assert ours.vertices.dtype == dtype
    assert theirs.vertices.std() > 0.1
    assert (ours.vertices - theirs.vertices).abs().max() < METRES
    assert (ours.joints - theirs.joints[:, :JOINTS]).abs().max() < METRES


def test_joints_are_those_of_the_full_model(body_file: Path) -> None:
    body, params = load_body(body_file, dtype=torch.float64), small_batch()
    torch.testing.assert_close(body.joints(params), body(params).joints, rtol=0, atol=1e-14)


def test_any_tree_in_any_order() -> None:
    """Joints numbered limb by limb, against the textbook chain of 4x4 transforms."""
    parents = (-1, 0, 1, 2, 0, 4, 1)
    rng = np.random.default_rng(0)
    template, betas = rng.normal(size=(len(parents), 3)), torch.zeros(2, 10, dtype=torch.float64)
    body = BodyModel(
        name="tree",
        faces=np.asarray([[0, 1, 2]]),
        v_template=template,
        shapedirs=np.zeros((len(parents), 3, 10)),
        joint_regressor=np.eye(len(parents)),
        weights=np.eye(len(parents)),
        parents=parents,
        dtype=torch.float64,
    )
    rotations = axis_angle_to_matrix(torch.tensor(rng.normal(size=(2, len(parents), 3))))
    output = body(BodyParams(rotations[:, :1], rotations[:, 1:], betas))
    for row in range(2):
        world: list[np.ndarray] = []
        for joint, parent in enumerate(parents):
            local = np.eye(4)
            local[:3, :3] = rotations[row, joint].numpy()
            local[:3, 3] = template[joint] - (template[parent] if joint else 0)
            world.append(world[parent] @ local if joint else local)
        np.testing.assert_allclose(output.joints[row].numpy(), np.stack(world)[:, :3, 3], atol=1e-12)
    torch.testing.assert_close(output.vertices, output.joints)


def test_folded_joints_are_the_regressed_ones(body_file: Path) -> None:
    body, betas = load_body(body_file, dtype=torch.float64), poses("half turns")[1]
    vertices, joints = body.rest(betas)
    with np.load(body_file) as archive:
        regressed = np.einsum("jv,bvc->bjc", archive["J_regressor"].astype(np.float64), vertices.numpy())
    np.testing.assert_allclose(joints.numpy(), regressed, atol=1e-12)


def test_the_root_joint_stays_and_a_root_rotation_turns_everything(body_file: Path) -> None:
    body, params = load_body(body_file, dtype=torch.float64), small_batch()
    rest = body.rest(params.betas)[1][:, :1]
    torch.testing.assert_close(body.joints(params)[:, :1], rest)
    upright = BodyParams(torch.eye(3).double().expand(3, 1, 3, 3), params.body_pose, params.betas)
    before, after = body(upright), body(params)
    turned = (before.vertices - rest) @ params.global_orient[:, 0].mT + rest
    torch.testing.assert_close(after.vertices, turned)


def test_a_bent_knee_moves_only_what_hangs_on_it() -> None:
    body = load_body(STARTER_BODY, dtype=torch.float64)
    axis_angle = torch.zeros(1, JOINTS, 3).double()
    knee, ankle = SMPL_JOINTS.index("left_knee"), SMPL_JOINTS.index("left_ankle")
    axis_angle[0, knee, 0] = math.pi / 2
    betas = torch.zeros(1, 10).double()
    before, after = body.rest(betas), body(params_of(axis_angle, betas))
    moved = (after.joints - before[1])[0].norm(dim=-1) > 1e-9
    assert set(torch.nonzero(moved)[:, 0].tolist()) == {ankle, SMPL_JOINTS.index("left_foot")}
    shin = before[1][0, ankle] - before[1][0, knee]
    bent = after.joints[0, ankle] - after.joints[0, knee]
    torch.testing.assert_close(bent, torch.stack([shin[0], -shin[2], shin[1]]))
    assert bent[2] < -0.3, "a positive turn about x bends the knee backwards"


def test_gradients(tmp_path: Path) -> None:
    np.savez(tmp_path / "body.npz", **{**made_up_arrays(), **fewer_vertices(made_up_arrays(), 12)})  # type: ignore[arg-type]
    body = load_body(tmp_path / "body.npz", dtype=torch.float64)

    def pose(axis_angle: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = body(params_of(axis_angle, betas))
        return output.vertices, output.joints

    axis_angle, betas = poses("random")
    axis_angle[0, 3:6] = 0
    inputs = axis_angle[:1].requires_grad_(), betas[:1].requires_grad_()
    assert torch.autograd.gradcheck(pose, inputs)


def fewer_vertices(arrays: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The first `count` vertices of a body, with a regressor over them."""
    cut = {key: arrays[key][:count] for key in ("v_template", "shapedirs", "weights", "posedirs")}
    regressor = np.random.default_rng(1).dirichlet(np.ones(count), JOINTS)
    return {
        **cut,
        "J_regressor": regressor,
        "f": arrays["f"][:2],
        "faces_sha256": np.array(tiny.hash_faces(arrays["f"][:2])),
    }


def test_traces_with_any_batch(body_file: Path) -> None:
    class Posed(torch.nn.Module):
        def __init__(self, body: BodyModel) -> None:
            super().__init__()
            self.body = body

        def forward(
            self, root: torch.Tensor, rest: torch.Tensor, betas: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.body(BodyParams(root, rest, betas))
            return output.vertices, output.joints

    model = Posed(load_body(body_file))
    example = small_batch(2, torch.float32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        model, (example.global_orient, example.body_pose, example.betas), dynamic_shapes=({0: batch},) * 3
    )
    for count in (1, 5):
        params = small_batch(count, torch.float32)
        inputs = params.global_orient, params.body_pose, params.betas
        for got, wanted in zip(program.module()(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_empty_batches_and_inputs_left_alone(body_file: Path) -> None:
    body = load_body(body_file, dtype=torch.float64)
    assert body(small_batch(0)).vertices.shape == (0, body.num_vertices, 3)
    params = small_batch()
    kept = [tensor.clone() for tensor in (params.global_orient, params.body_pose, params.betas)]
    body(params)
    for before, after in zip(kept, (params.global_orient, params.body_pose, params.betas), strict=True):
        assert torch.equal(before, after)


def test_wrong_shapes_are_named() -> None:
    body, params = load_body(STARTER_BODY), small_batch(2, torch.float32)
    with pytest.raises(ShapeError, match="betas.*expected"):
        body(BodyParams(params.global_orient, params.body_pose, params.betas[:, :9]))
    with pytest.raises(ShapeError, match="rotations.*expected"):
        body.joints(BodyParams(params.global_orient, params.body_pose[:, :20], params.betas))


def test_attributes() -> None:
    body = load_body(STARTER_BODY)
    assert (body.num_vertices, body.num_joints, body.num_betas) == (6890, 24, 10)
    assert body.parents == SMPL_PARENTS and body.posedirs is None
    assert body.faces.dtype == np.int32 and body.faces.shape == (13776, 3)
    assert not list(body.parameters()) and body.v_template.dtype == torch.float32
