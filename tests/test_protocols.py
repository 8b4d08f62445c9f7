"""Every protocol against its formula written out in numpy: random and degenerate joints, float32 and float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import their_data
import torch
from scipy.spatial.transform import Rotation

from hmrcompress.api.opening import open_body
from hmrcompress.body.files import load_body
from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.body.model import BodyModel
from hmrcompress.errors import UserError
from hmrcompress.metrics.measure import Measure, read_regressor
from hmrcompress.metrics.other_bodies import HAND16
from hmrcompress.metrics.points import PROTOCOLS, accel, joint_errors, pa_mpjpe
from hmrcompress.metrics.pose import score
from hmrcompress.records import BodyParams, FrameBatch

# Written here once more, from the published scripts: which joints of which set, and the pelvis.
H36M_NAMES = (
    "pelvis", "left hip", "left knee", "left ankle", "right hip", "right knee", "right ankle", "spine", "neck", "jaw",
    "head", "left shoulder", "left elbow", "left wrist", "right shoulder", "right elbow", "right wrist",
)  # fmt: skip
FOURTEEN = (
    "right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle", "right wrist", "right elbow",
    "right shoulder", "left shoulder", "left elbow", "left wrist", "neck", "head",
)  # fmt: skip
J14 = [H36M_NAMES.index(name) for name in FOURTEEN]
TABLE = {
    "starter24": (24, list(range(24)), [0]),
    "3dpw14-wham": (17, J14, [J14[2], J14[3]]),
    "3dpw14-camerahmr": (17, J14, [0]),
    "3dpw14-4dhumans": (19, [k - 25 for k in [*range(25, 38), 43]], [39 - 25]),
    "emdb24-kinematic": (24, list(range(24)), [1, 2]),
    "emdb24-regressed": (24, list(range(24)), [1, 2]),
}
CLIP = np.array([0] * 7 + [1] * 6 + [2] * 4)
FRAME = np.array([0, 1, 2, 3, 7, 8, 9] + [10, 11, 12, 13, 14, 15] + [0, 1, 2, 3])


def centred(points: np.ndarray, pelvis: list[int]) -> np.ndarray:
    return points - sum(points[:, p] for p in pelvis)[:, None] / len(pelvis)


def horn(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """points (K,3) moved onto target by the best similarity: Horn's unit quaternion (1987), which never mirrors."""
    a, b = points - points.mean(0), target - target.mean(0)
    variance = (a**2).sum()
    if variance < 1e-24:
        return np.repeat(target.mean(0)[None], len(points), axis=0)
    m = a.T @ b
    trace, anti = np.trace(m), np.array([m[1, 2] - m[2, 1], m[2, 0] - m[0, 2], m[0, 1] - m[1, 0]])
    n = np.zeros((4, 4))
    n[0, 0], n[0, 1:], n[1:, 0] = trace, anti, anti
    n[1:, 1:] = m + m.T - trace * np.eye(3)
    w, x, y, z = np.linalg.eigh(n)[1][:, -1]
    turned = a @ Rotation.from_quat([x, y, z, w]).as_matrix().T
    return (turned * b).sum() / variance * turned + target.mean(0)


def accelerations(pred: np.ndarray, true: np.ndarray, *, published: bool) -> list[float]:
    """Triple by triple over the clips, in mm per frame squared."""
    found = []
    for clip in np.unique(CLIP):
        rows = [row for row in np.argsort(FRAME, kind="stable") if CLIP[row] == clip]
        errors = []
        for one, two, three in zip(rows[:-2], rows[1:-1], rows[2:], strict=True):
            if not published and not FRAME[one] + 2 == FRAME[two] + 1 == FRAME[three]:
                continue
            moved = [values[one] - 2 * values[two] + values[three] for values in (pred, true)]
            errors.append(1000 * np.sqrt(((moved[0] - moved[1]) ** 2).sum(-1)).mean())
        found += errors[1:-1] if published else errors
    return found


def cases(count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(17,count,3) predictions and targets, random and degenerate."""
    rng = np.random.default_rng(count)
    true = rng.normal(size=(len(CLIP), count, 3))
    yield "random", true + 0.1 * rng.normal(size=true.shape), true
    yield "the same", true, true
    yield "mirrored", true * [-1, 1, 1], true
    yield "a point", np.full_like(true, 0.3), true
    yield "onto a point", true, np.full_like(true, -0.2)
    yield "a line", np.linspace(0, 1, count)[None, :, None] * rng.normal(size=(len(CLIP), 1, 3)), true
    yield "far away", true + 1000.0, true


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLE)
def test_the_errors_of_joints_are_the_formulas(name: str, dtype: torch.dtype) -> None:
    count, joints, pelvis = TABLE[name]
    for what, pred, true in cases(count):
        given, wanted = (torch.tensor(values, dtype=dtype) for values in (pred, true))
        pred, true = given.double().numpy(), wanted.double().numpy()
        before = given.clone()
        p, t = centred(pred, pelvis)[:, joints], centred(true, pelvis)[:, joints]
        expected = 1000 * np.sqrt(((p - t) ** 2).sum(-1))
        np.testing.assert_allclose(joint_errors(given, wanted, PROTOCOLS[name]), expected, atol=1e-6, err_msg=what)
        aligned = np.stack([horn(a, b) for a, b in zip(pred[:, joints], true[:, joints], strict=True)])
        expected = 1000 * np.sqrt(((aligned - true[:, joints]) ** 2).sum(-1)).mean(1)
        found = pa_mpjpe(given, wanted, PROTOCOLS[name])
        assert found.isfinite().all()
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=what)
        for published in (False, True):
            times = torch.tensor(CLIP), torch.tensor(FRAME)
            errors, _ = accel(given, wanted, *times, PROTOCOLS[name], as_published=published)
            np.testing.assert_allclose(errors, accelerations(p, t, published=published), atol=1e-6, err_msg=what)
        assert torch.equal(given, before)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return their_data.write_bodies(tmp_path_factory.mktemp("bodies"))


def params(seed: int) -> BodyParams:
    rng, count = np.random.default_rng(seed), len(CLIP)
    turns = Rotation.from_rotvec(0.4 * rng.normal(size=(count * 24, 3))).as_matrix().reshape(count, 24, 3, 3)
    rotations = torch.tensor(turns, dtype=torch.float32)
    betas = torch.tensor(rng.normal(size=(count, 10)), dtype=torch.float32)
    return BodyParams(rotations[:, :1], rotations[:, 1:], betas)


@pytest.mark.parametrize("name", TABLE)
def test_a_score_is_the_formula_from_the_vertices_on(bodies: Path, name: str) -> None:
    """Whose body is posed for whom, which regressor is used, what the pelvis of PVE is, units, and accelerations."""
    count, joints, pelvis = TABLE[name]
    by_name = {each: load_body(bodies / f"SMPL_{each.upper()}.npz") for each in ("neutral", "male", "female")}
    file = bodies / f"regressor{count}.npy"
    regressor = None if count == 24 else read_regressor(file, by_name["neutral"])
    protocol = PROTOCOLS[name]
    measure = Measure(
        by_name["neutral"], protocol, gendered={n: b for n, b in by_name.items() if n != "neutral"}, regressor=regressor
    )
    true, pred, gender = params(0), params(1), np.arange(len(CLIP)) % 3
    keypoints = torch.tensor(np.random.default_rng(3).normal(size=(len(CLIP), 19, 3)), dtype=torch.float32)
    batch = FrameBatch(
        torch.zeros(len(CLIP), 3, 2, 2), None, true, torch.tensor(CLIP), torch.tensor(FRAME),
        gender=torch.tensor(gender), keypoints=keypoints,
    )  # fmt: skip
    scores = score(lambda _: pred, [batch], body=measure, fps=30.0)

    gendered = name in ("3dpw14-wham", "3dpw14-camerahmr", "emdb24-kinematic")
    names = ["neutral", "male", "female"]
    true_bodies = [by_name[names[g] if gendered else "neutral"] for g in gender]
    p_vertices, p_joints = posed([by_name["neutral"]] * len(CLIP), pred)
    t_vertices, t_joints = posed(true_bodies, true)
    if count != 24:
        weights = np.load(file)
        p_joints, t_joints = (np.einsum("jv,bvc->bjc", weights, v) for v in (p_vertices, t_vertices))
    elif name == "emdb24-regressed":
        weights = np.load(bodies / "SMPL_NEUTRAL.npz")["J_regressor"]
        p_joints, t_joints = (np.einsum("jv,bvc->bjc", weights, v) for v in (p_vertices, t_vertices))
    if name == "3dpw14-4dhumans":
        t_joints = keypoints.double().numpy()
    p, t = centred(p_joints, pelvis)[:, joints], centred(t_joints, pelvis)[:, joints]
    assert scores.mpjpe_mm == pytest.approx(1000 * np.sqrt(((p - t) ** 2).sum(-1)).mean(), abs=2e-3)
    aligned = np.stack([horn(a, b) for a, b in zip(p, t, strict=True)])
    assert scores.pa_mpjpe_mm == pytest.approx(1000 * np.sqrt(((aligned - t) ** 2).sum(-1)).mean(), abs=2e-3)
    if name == "3dpw14-4dhumans":
        assert scores.pve_mm is None
    else:
        p_surface = p_vertices - sum(p_joints[:, i] for i in pelvis)[:, None] / len(pelvis)
        t_surface = t_vertices - sum(t_joints[:, i] for i in pelvis)[:, None] / len(pelvis)
        expected = 1000 * np.sqrt(((p_surface - t_surface) ** 2).sum(-1)).mean()
        assert scores.pve_mm == pytest.approx(expected, abs=2e-3)
    own, published = (np.mean(accelerations(p, t, published=each)) for each in (False, True))
    figures = scores.to_json()
    assert figures["accel_mm_per_frame2"] == pytest.approx(own, abs=5e-3)
    assert figures["accel_m_per_s2"] == pytest.approx(0.9 * own, abs=5e-3)  # 1 mm/frame² is 0.9 m/s² at 30 fps
    assert figures["accel_published_m_per_s2"] == pytest.approx(0.9 * published, abs=5e-3)
    assert (figures["protocol"], figures["n_frames"], figures["n_clips"]) == (name, 17, 3)
    of_one = scores.of_clip(1)
    assert of_one.fps == 30 and len(of_one.published_accel) == 2 and (of_one.clip[of_one.published_triple] == 1).all()


def posed(bodies: list[BodyModel], given: BodyParams) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and joints, frame by frame, each by its own body."""
    vertices, joints = [], []
    for row, body in enumerate(bodies):
        one = slice(row, row + 1)
        made = body(BodyParams(given.global_orient[one], given.body_pose[one], given.betas[one]))
        vertices.append(made.vertices[0].double().numpy())
        joints.append(made.joints[0].double().numpy())
    return np.stack(vertices), np.stack(joints)


def test_gender_matters_to_gendered_protocols_alone(bodies: Path) -> None:
    """A neutral prediction with the true parameters of a man errs where he is posed as a man, and nowhere else."""
    body = open_body(str(bodies))
    male = load_body(bodies / "SMPL_MALE.npz")
    true = params(0)
    batch = FrameBatch(
        torch.zeros(17, 3, 2, 2), None, true, torch.tensor(CLIP), torch.tensor(FRAME), gender=torch.ones(17).long()
    )
    for name, errs in {"emdb24-kinematic": True, "emdb24-regressed": False, "starter24": False}.items():
        measure = Measure(body, PROTOCOLS[name], gendered={"male": male})
        assert (score(lambda _: true, [batch], body=measure).mpjpe_mm > 1) == errs


def test_regressors(bodies: Path, tmp_path: Path) -> None:
    body = load_body(bodies / "SMPL_NEUTRAL.npz")
    matrix = np.load(bodies / "regressor17.npy")
    faces = np.array(body.faces_sha256)
    np.savez(tmp_path / "own.npz", J_regressor=matrix, faces_sha256=faces)
    np.savez(tmp_path / "other.npz", J_regressor=matrix, faces_sha256=np.array("0" * 64))
    np.save(tmp_path / "few.npy", matrix[:, :50])
    np.save(tmp_path / "nan.npy", matrix * np.nan)
    (tmp_path / "torn.npy").write_bytes((bodies / "regressor17.npy").read_bytes()[:200])
    matrix.dump(tmp_path / "pickled.pkl")
    for name in ("own.npz", "pickled.pkl"):
        np.testing.assert_allclose(read_regressor(tmp_path / name, body), matrix, rtol=1e-6)
    for name, fault in {
        "other.npz": "another surface",
        "few.npy": "is for 50 vertices",
        "nan.npy": "finite",
        "torn.npy": "no bytes for",
        "nowhere.npy": "no such file",
    }.items():
        with pytest.raises(UserError, match=fault):
            read_regressor(tmp_path / name, body)
    with pytest.raises(UserError, match="made for SMPL"):
        read_regressor(bodies / "regressor17.npy", open_body("starter"))


def test_joints_have_the_names_of_their_places() -> None:
    """SMPL's, those of the 14, and numbers for hands, which have names of their own."""
    assert PROTOCOLS["starter24"].names == SMPL_JOINTS == PROTOCOLS["emdb24-regressed"].names
    for name in ("3dpw14-wham", "3dpw14-camerahmr", "3dpw14-4dhumans"):
        assert [each.replace("_", " ") for each in PROTOCOLS[name].names] == list(FOURTEEN)
    assert HAND16.names == tuple(map(str, range(16)))
