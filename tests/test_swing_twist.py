"""Swing–twist inverse kinematics against scipy's rotations, on exact, degenerate and inconsistent input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hmrcompress.body.joints import joint
from hmrcompress.body.swing_twist import (
    CHILDREN,
    LEVELS,
    MAIN_CHILD,
    PARENTS,
    inverse_kinematics,
    swing,
    twist,
    twists_of,
)

JOINTS, NODES = len(CHILDREN), len(PARENTS)
PELVIS, SPINE3, NECK, KNEE = (joint(name) for name in ("pelvis", "spine3", "neck", "left_knee"))


def rotations(count: int, seed: int = 0) -> torch.Tensor:
    """(count,24,3,3) uniform over all rotations, float64, by scipy."""
    made = Rotation.random(count * JOINTS, rng=np.random.default_rng(seed)).as_matrix()
    return torch.from_numpy(made).unflatten(0, (count, JOINTS))


def rest(count: int, seed: int = 0) -> torch.Tensor:
    """(count,29,3): random trees with bones of 0.1 to 0.4 m."""
    rng = np.random.default_rng(seed)
    nodes = np.zeros((count, NODES, 3))
    for node in range(1, NODES):
        step = rng.normal(size=(count, 3))
        length = rng.uniform(0.1, 0.4, (count, 1))
        nodes[:, node] = nodes[:, PARENTS[node]] + length * step / np.linalg.norm(step, axis=1, keepdims=True)
    return torch.from_numpy(nodes)


def posed(local: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """Forward kinematics, joint after joint, in numpy: locations (N,29,3) relative to joint 0."""
    turned, placed = [local[:, 0].numpy()], [np.zeros((len(local), 3))]
    bones = nodes.numpy()
    for node in range(1, NODES):
        parent = PARENTS[node]
        placed.append(placed[parent] + np.einsum("nij,nj->ni", turned[parent], bones[:, node] - bones[:, parent]))
        turned.append(turned[parent] @ local[:, node].numpy() if node < JOINTS else turned[parent])
    return torch.from_numpy(np.stack(placed, 1))


def recovered(local: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    return inverse_kinematics(posed(local, nodes), twists_of(local, nodes), nodes)


def subtree(node: int) -> list[int]:
    """The node and all below it."""
    return [node, *(k for child in range(NODES) if PARENTS[child] == node for k in subtree(child))]


def bone(nodes: torch.Tensor, j: int) -> torch.Tensor:
    return nodes[:, MAIN_CHILD[j]] - nodes[:, j]


def test_the_tables() -> None:
    assert [j for j in range(JOINTS) if len(CHILDREN[j]) != 1] == [PELVIS, SPINE3]
    assert (MAIN_CHILD[PELVIS], MAIN_CHILD[SPINE3]) == (joint("spine1"), NECK)
    assert sorted(j for level in LEVELS for j in level) == list(range(JOINTS))
    assert all(
        any(PARENTS[j] in above for above in LEVELS[:depth]) for depth, level in enumerate(LEVELS) for j in level if j
    )


def test_swing_is_the_shortest_turn() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 200, 3))
    found = swing(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    axis = np.cross(a, b)
    angle = np.arctan2(np.linalg.norm(axis, axis=1), (a * b).sum(1))
    wanted = Rotation.from_rotvec(angle[:, None] * axis / np.linalg.norm(axis, axis=1, keepdims=True)).as_matrix()
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_swing_stays_exact_around_the_opposite_direction(dtype: torch.dtype) -> None:
    """Offsets from the opposite direction over many orders, zero included: a rotation that arrives where it should."""
    generator = torch.Generator().manual_seed(0)
    start = torch.nn.functional.normalize(torch.randn(15, 3, generator=generator, dtype=torch.float64), dim=-1)
    sideways = torch.linalg.cross(start, torch.randn(15, 3, generator=generator, dtype=torch.float64))
    offsets = torch.tensor([0.0, *(10.0**-k for k in range(14))], dtype=torch.float64)[:, None]
    end = torch.nn.functional.normalize(-start + offsets * sideways, dim=-1)
    for axis in (start, torch.eye(3, dtype=torch.float64)[torch.arange(15) % 3]):
        target = end if axis is start else -axis
        found = swing(axis.to(dtype), target.to(dtype)).double()
        limit = 1e-5 if dtype == torch.float32 else 1e-13
        assert ((found @ axis[..., None])[..., 0] - target).abs().max() < limit
        assert (found @ found.mT - torch.eye(3)).abs().max() < limit
        assert (torch.linalg.det(found) - 1).abs().max() < limit


def test_twist_is_a_turn_about_the_bone() -> None:
    rng = np.random.default_rng(2)
    axis, angle = rng.normal(size=(50, 3)), rng.uniform(-math.pi, math.pi, 50)
    numbers = rng.uniform(0.2, 3, (50, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
    found = twist(torch.from_numpy(axis), torch.from_numpy(numbers)).numpy()
    unit = axis / np.linalg.norm(axis, axis=1, keepdims=True)
    np.testing.assert_allclose(found, Rotation.from_rotvec(angle[:, None] * unit).as_matrix(), atol=1e-12)


def test_twist_of_a_swing_after_a_twist() -> None:
    """Rotations composed by scipy of a twist by a known angle and a swing perpendicular to the bone."""
    rng = np.random.default_rng(3)
    nodes = rest(40)
    local = rotations(40).numpy().copy()
    angles = rng.uniform(-math.pi, math.pi, (40, JOINTS))
    for j in range(1, JOINTS):
        axis = bone(nodes, j).numpy()
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        sideways = np.cross(axis, rng.normal(size=(40, 3)))
        sideways *= rng.uniform(0, 3, (40, 1)) / np.linalg.norm(sideways, axis=1, keepdims=True)
        local[:, j] = (Rotation.from_rotvec(sideways) * Rotation.from_rotvec(angles[:, j, None] * axis)).as_matrix()
    found = twists_of(torch.from_numpy(local), nodes).numpy()
    np.testing.assert_allclose(found, np.stack([np.cos(angles), np.sin(angles)], -1)[:, 1:], atol=1e-11)


def test_round_trip_on_random_trees() -> None:
    local, nodes = rotations(300), rest(300)
    torch.testing.assert_close(recovered(local, nodes), local, rtol=0, atol=1e-9)


def test_inputs_are_left_alone_and_empty_batches_work() -> None:
    local, nodes = rotations(2), rest(2)
    joints, twists = posed(local, nodes), twists_of(local, nodes)
    kept = [tensor.clone() for tensor in (local, joints, twists, nodes)]
    inverse_kinematics(joints, twists, nodes)
    assert all(torch.equal(a, b) for a, b in zip(kept, (local, joints, twists, nodes), strict=True))
    assert inverse_kinematics(joints[:0], twists[:0], nodes[:0]).shape == (0, JOINTS, 3, 3)


def test_round_trip_of_exactly_opposite_bones() -> None:
    """Half turns perpendicular to every bone, with a twist before them: each swing's direction is undetermined."""
    nodes, local = rest(30), rotations(30)
    generator = torch.Generator().manual_seed(1)
    for j in range(JOINTS):
        axis = torch.nn.functional.normalize(bone(nodes, j), dim=-1)
        sideways = torch.linalg.cross(axis, torch.randn(30, 3, generator=generator, dtype=torch.float64))
        half = Rotation.from_rotvec(math.pi * torch.nn.functional.normalize(sideways, dim=-1).numpy())
        turn = Rotation.from_rotvec(torch.randn(30, 1, generator=generator, dtype=torch.float64).numpy() * axis.numpy())
        local[:, j] = torch.from_numpy((half * turn).as_matrix())
        assert ((local[:, j] @ axis[..., None])[..., 0] + axis).abs().max() < 1e-12
    torch.testing.assert_close(recovered(local, nodes), local, rtol=0, atol=1e-9)


def test_a_bone_without_length_in_the_rest_pose() -> None:
    """The knee keeps its turn about +y, loses the rest, and everything below it is still where it was seen."""
    nodes, local = rest(20), rotations(20)
    below = subtree(MAIN_CHILD[KNEE])
    nodes[:, below] -= bone(nodes, KNEE)[:, None]
    angle = np.linspace(-3, 3, 20)
    local[:, KNEE] = torch.from_numpy(Rotation.from_rotvec(angle[:, None] * [0, 1, 0]).as_matrix())
    torch.testing.assert_close(recovered(local, nodes), local, rtol=0, atol=1e-9)
    local[:, KNEE] = rotations(20, seed=9)[:, KNEE]
    found = recovered(local, nodes)
    torch.testing.assert_close(found[:, KNEE] @ up(), up().expand(20, 3, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(posed(found, nodes), posed(local, nodes), rtol=0, atol=1e-9)


def up() -> torch.Tensor:
    return torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)


def test_a_neck_without_length_leaves_spine3_to_the_collars() -> None:
    nodes, local = rest(20), rotations(20)
    nodes[:, subtree(NECK)] -= bone(nodes, SPINE3)[:, None]
    torch.testing.assert_close(recovered(local, nodes)[:, : NECK + 1], local[:, : NECK + 1], rtol=0, atol=1e-9)


def test_a_bone_seen_without_length_does_not_swing() -> None:
    nodes, local = rest(20), rotations(20)
    seen, twists = posed(local, nodes), twists_of(local, nodes)
    seen[:, MAIN_CHILD[KNEE]] = seen[:, KNEE]
    found = inverse_kinematics(seen, twists, nodes)
    torch.testing.assert_close(found[:, KNEE], twist(bone(nodes, KNEE), twists[:, KNEE - 1]), rtol=0, atol=1e-9)
    others = [j for j in range(JOINTS) if j not in (KNEE, MAIN_CHILD[KNEE], joint("left_foot"))]
    torch.testing.assert_close(found[:, others], local[:, others], rtol=0, atol=1e-9)


def test_a_twist_of_length_zero_is_none() -> None:
    nodes, local = rest(5), rotations(5)
    seen, twists = posed(local, nodes), twists_of(local, nodes)
    none, zero = twists.clone(), twists.clone()
    none[:, KNEE - 1], zero[:, KNEE - 1] = torch.tensor([1.0, 0.0]).double(), 0.0
    torch.testing.assert_close(inverse_kinematics(seen, zero, nodes), inverse_kinematics(seen, none, nodes))


def test_collinear_bones_of_the_pelvis() -> None:
    """Hips and spine on one line: the spine's swing, without twist, decides."""
    nodes, local = rest(10), rotations(10)
    line = bone(nodes, PELVIS)
    for child, scale in zip(CHILDREN[PELVIS], (-0.7, -1.3, 1.0), strict=True):
        nodes[:, subtree(child)] += (scale * line - nodes[:, child] + nodes[:, PELVIS])[:, None]
    seen = posed(local, nodes)
    found = inverse_kinematics(seen, twists_of(local, nodes), nodes)
    torch.testing.assert_close(found[:, PELVIS], swing(line, seen[:, MAIN_CHILD[PELVIS]]), rtol=0, atol=1e-9)
    torch.testing.assert_close(posed(found, nodes)[:, list(CHILDREN[PELVIS])], seen[:, list(CHILDREN[PELVIS])])


def test_the_pelvis_is_the_least_squares_rotation_of_its_children() -> None:
    """Against scipy's solution of Wahba's problem, on children that no rotation fits."""
    nodes, local = rest(20), rotations(20)
    seen = posed(local, nodes) + 0.05 * torch.randn(20, NODES, 3, generator=torch.Generator().manual_seed(2))
    found = inverse_kinematics(seen, twists_of(local, nodes), nodes)[:, PELVIS].numpy()
    for row in range(20):
        rest_bones = (nodes[row, list(CHILDREN[PELVIS])] - nodes[row, PELVIS]).numpy()
        lengths = np.linalg.norm(rest_bones, axis=1)
        assert lengths.min() > 0.05
        wanted, _ = Rotation.align_vectors(seen[row, list(CHILDREN[PELVIS])].numpy(), rest_bones)
        np.testing.assert_allclose(found[row], wanted.as_matrix(), atol=1e-8)


def test_spine3_weighs_its_children_and_its_twist() -> None:
    """Noise in all that is said about spine3: the error is below that of neck and twist, and that of the children."""
    nodes, local = rest(400), rotations(400)
    generator = torch.Generator().manual_seed(3)
    seen, twists = posed(local, nodes), twists_of(local, nodes)
    children, truth = list(CHILDREN[SPINE3]), Rotation.from_matrix(local[:, SPINE3].numpy())
    above = Rotation.identity(400)
    for j in (PELVIS, joint("spine1"), joint("spine2")):
        above *= Rotation.from_matrix(local[:, j].numpy())
    noise = torch.randn(400, 3, 3, generator=generator).double()
    seen[:, children] += 0.03 * noise
    angle = torch.atan2(*twists[:, SPINE3 - 1].flip(-1).unbind(-1)) + 0.1 * torch.randn(400, generator=generator)
    twists[:, SPINE3 - 1] = torch.stack([angle.cos(), angle.sin()], -1)

    def error(found: Rotation) -> float:
        return float((truth.inv() * found).magnitude().mean())

    bones, looks = (x[:, children] - x[:, [SPINE3]] for x in (nodes, seen))
    local_looks = np.stack([above.inv().apply(looks[:, k].numpy()) for k in range(3)], 1)
    fitted = [Rotation.align_vectors(a, b)[0] for a, b in zip(local_looks, bones.numpy(), strict=True)]
    neck = children.index(NECK)
    alone = swing(bones[:, neck], torch.from_numpy(local_looks[:, neck])) @ twist(bones[:, neck], twists[:, SPINE3 - 1])
    ours = error(Rotation.from_matrix(inverse_kinematics(seen, twists, nodes)[:, SPINE3].numpy()))
    assert ours < 0.9 * error(Rotation.from_matrix(alone.numpy()))
    assert ours < 0.97 * error(Rotation.concatenate(fitted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["identity", "random", "opposite", "all in one point", "no twists", "no template"])
def test_gradients_are_finite(case: str, dtype: torch.dtype) -> None:
    nodes, local = rest(4), rotations(4)
    if case in ("identity", "opposite"):
        local = torch.eye(3, dtype=torch.float64).expand(4, JOINTS, 3, 3).clone()
    seen, twists = posed(local, nodes), twists_of(local, nodes)
    if case == "opposite":
        seen = -seen
    elif case == "all in one point":
        seen = torch.zeros_like(seen)
    elif case == "no twists":
        twists = torch.zeros_like(twists)
    elif case == "no template":
        nodes = torch.zeros_like(nodes)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in (seen, twists, nodes)]
    found = inverse_kinematics(*inputs)
    assert (found @ found.mT - torch.eye(3)).abs().max() < 1e-4
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    turned = local.to(dtype).requires_grad_()
    numbers = twists_of(turned, inputs[2])
    gradients += torch.autograd.grad((numbers * weights[:, 1:, 0, :2]).sum(), (turned, inputs[2]))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_gradients_are_right() -> None:
    nodes, local = rest(1), rotations(1)
    seen = posed(local, nodes) + 0.03 * torch.randn(1, NODES, 3, generator=torch.Generator().manual_seed(4))
    inputs = seen.requires_grad_(), 1.5 * twists_of(local, nodes).requires_grad_(), nodes.requires_grad_()
    assert torch.autograd.gradcheck(inverse_kinematics, inputs, atol=1e-5, fast_mode=True)
    assert torch.autograd.gradcheck(twists_of, (local.requires_grad_(), nodes), atol=1e-5, fast_mode=True)
