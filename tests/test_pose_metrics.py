"""Pose errors against closed forms, invariances and slow float64 loops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation
from torch import Tensor

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.errors import ShapeError
from hmrcompress.metrics.points import similarity_aligned
from hmrcompress.metrics.pose import (
    STARTER24,
    Protocol,
    Scores,
    accel,
    constant_predict,
    joint_errors,
    mpjpe,
    network_predict,
    pa_mpjpe,
    pve,
    score,
    score_all,
)
from hmrcompress.models.network import HMR2
from hmrcompress.records import BodyOutput, BodyParams, FrameBatch

JOINTS = 24
HIPS = Protocol("hips", (1, 2, 4, 5, 7), (1, 2))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(7, JOINTS, 3, generator=generator, dtype=torch.float64)
    return target + 0.1 * torch.randn(7, JOINTS, 3, generator=generator, dtype=torch.float64), target


def rotations(count: int) -> Tensor:
    return torch.from_numpy(Rotation.random(count, rng=np.random.default_rng(3)).as_matrix())


def slow_mpjpe(pred: np.ndarray, target: np.ndarray, protocol: Protocol) -> np.ndarray:
    errors = []
    for one, other in zip(pred, target, strict=True):
        roots = [sum(points[j] for j in protocol.pelvis) / len(protocol.pelvis) for points in (one, other)]
        distances = [np.sqrt((((one[j] - roots[0]) - (other[j] - roots[1])) ** 2).sum()) for j in protocol.joints]
        errors.append(1000 * sum(distances) / len(distances))
    return np.array(errors)


@pytest.mark.parametrize("protocol", [STARTER24, HIPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mpjpe_equals_a_loop(pair: tuple[Tensor, Tensor], protocol: Protocol, dtype: torch.dtype) -> None:
    pred, target = (points.to(dtype) for points in pair)
    expected = slow_mpjpe(pred.double().numpy(), target.double().numpy(), protocol)
    got = mpjpe(pred, target, protocol)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_mpjpe_in_closed_form() -> None:
    target = torch.randn(2, JOINTS, 3, generator=torch.Generator().manual_seed(1))
    pred = target.clone()
    pred[0, 5, 1] += 0.048  # one joint of 24, 48 mm off
    pred[1, 0, 2] += 0.024  # the pelvis itself: all others are 24 mm off, it is not
    assert mpjpe(pred, target).tolist() == pytest.approx([2.0, 23.0], abs=1e-3)
    assert joint_errors(pred, target)[0, 5].item() == pytest.approx(48, abs=1e-3)


def test_translation_costs_nothing_a_rotation_does(pair: tuple[Tensor, Tensor]) -> None:
    pred, target = pair
    moved = pred + torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(mpjpe(moved, target), mpjpe(pred, target))
    assert (mpjpe(target @ rotations(1)[0], target) > 50).all()


def test_pa_mpjpe_sees_no_similarity_but_a_mirror(pair: tuple[Tensor, Tensor]) -> None:
    pred, target = pair
    turned = 1.7 * pred @ rotations(7) + torch.tensor([0.3, 2.0, -1.0])
    torch.testing.assert_close(pa_mpjpe(turned, target), pa_mpjpe(pred, target), rtol=1e-9, atol=1e-9)
    assert pa_mpjpe(0.3 * target @ rotations(7) + 5, target).max() < 1e-9
    assert pa_mpjpe(target * torch.tensor([-1.0, 1.0, 1.0]), target).min() > 50


def test_pa_mpjpe_equals_scipys_rotation(pair: tuple[Tensor, Tensor]) -> None:
    """scipy gives the best rotation of centred points; the best scale follows in closed form."""
    pred, target = (points.numpy() for points in pair)
    expected = []
    for one, other in zip(pred, target, strict=True):
        one, middle = one - one.mean(0), other.mean(0)
        turned = Rotation.align_vectors(other - middle, one)[0].apply(one)
        scale = (turned * (other - middle)).sum() / (turned**2).sum()
        expected.append(1000 * np.linalg.norm(scale * turned + middle - other, axis=1).mean())
    np.testing.assert_allclose(pa_mpjpe(*pair).numpy(), expected, rtol=1e-6)


def test_the_alignment_is_the_best_one(pair: tuple[Tensor, Tensor]) -> None:
    """No similarity found by a general optimiser leaves a smaller sum of squares, for a mirrored target too."""
    for target in (pair[1][0], pair[1][0] * torch.tensor([-1.0, 1.0, 1.0])):
        pred, goal = pair[0][0].numpy(), target.numpy()

        def cost(x: np.ndarray, pred: np.ndarray = pred, goal: np.ndarray = goal) -> float:
            return float(((np.exp(x[3]) * Rotation.from_rotvec(x[:3]).apply(pred) + x[4:] - goal) ** 2).sum())

        starts = Rotation.random(8, rng=np.random.default_rng(5)).as_rotvec()
        best = min(minimize(cost, np.concatenate([start, np.zeros(4)])).fun for start in starts)
        ours = (similarity_aligned(pair[0][:1], target[None])[0] - target).square().sum().item()
        assert ours == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_predictions_give_the_distance_to_the_centroid(dtype: torch.dtype) -> None:
    target = torch.randn(3, JOINTS, 3, generator=torch.Generator().manual_seed(2), dtype=dtype)
    to_centroid = (target.double() - target.double().mean(1, keepdim=True)).norm(dim=-1).mean(1) * 1000
    constant = torch.full((3, JOINTS, 3), 0.1, dtype=dtype)
    for pred in (torch.zeros_like(constant), constant):
        torch.testing.assert_close(pa_mpjpe(pred, target), to_centroid, rtol=1e-5, atol=1e-4)
    assert pa_mpjpe(target, constant).max() < 1e-6  # everything can shrink to a point
    assert pa_mpjpe(torch.zeros_like(target), torch.zeros_like(target)).max() == 0
    line = torch.linspace(-1, 1, JOINTS, dtype=dtype)[None, :, None] * torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    assert pa_mpjpe(line, line.flip(-1)).max() < 1e-3  # rank one: the rotation is ambiguous, the error is not


def test_values_that_are_not_finite_mark_their_frames_only(pair: tuple[Tensor, Tensor]) -> None:
    pred, target = pair[0].clone(), pair[1]
    pred[2, 3, 0], pred[5, 1, 1] = torch.nan, torch.inf
    for got, clean in ((pa_mpjpe(pred, target), pa_mpjpe(*pair)), (mpjpe(pred, target), mpjpe(*pair))):
        good = torch.tensor([0, 1, 3, 4, 6])
        assert not got[[2, 5]].isfinite().any()
        torch.testing.assert_close(got[good], clean[good])


def test_pve_in_closed_form() -> None:
    vertices, joints = torch.randn(2, 50, 3), torch.randn(2, JOINTS, 3)
    moved = BodyOutput(vertices + 0.5, joints + 0.5)
    assert pve(moved, BodyOutput(vertices, joints)).max() < 1e-3
    only_mesh = BodyOutput(vertices + torch.tensor([0.003, 0.004, 0.0]), joints)
    assert pve(only_mesh, BodyOutput(vertices, joints)).tolist() == pytest.approx([5, 5], abs=1e-3)


def test_accel_in_closed_form() -> None:
    """A joint on a parabola of 2 mm per frame squared against a resting target: 4 mm/frame² for that joint of 24."""
    time = torch.arange(6, dtype=torch.float64)
    target = torch.randn(1, JOINTS, 3, dtype=torch.float64).expand(6, -1, -1)
    pred = target.clone()
    pred[:, 9, 0] += 0.002 * time**2
    pred += torch.randn(6, 1, 3, dtype=torch.float64)  # the pelvis may jump about
    values, middle = accel(pred, target, torch.zeros(6), torch.arange(6))
    assert values.tolist() == pytest.approx([4 / 24] * 4) and middle.tolist() == [1, 2, 3, 4]


def slow_accel(pred: np.ndarray, target: np.ndarray, clip: np.ndarray, frame: np.ndarray) -> dict[int, float]:
    place = {(int(c), int(f)): i for i, (c, f) in enumerate(zip(clip, frame, strict=True))}
    found = {}
    for (c, f), i in place.items():
        if (c, f - 1) in place and (c, f + 1) in place:
            a, b = place[c, f - 1], place[c, f + 1]
            second = [(p[a] - p[a][0]) - 2 * (p[i] - p[i][0]) + (p[b] - p[b][0]) for p in (pred, target)]
            found[i] = 1000 * np.mean([np.sqrt(((second[0][j] - second[1][j]) ** 2).sum()) for j in range(JOINTS)])
    return found


def test_accel_is_safe_for_gaps_clips_and_order() -> None:
    rng = np.random.default_rng(4)
    frames = {0: [0, 1, 2, 3, 7, 8, 20], 1: [4, 5, 6], 2: [0, 2, 4], 5: [9]}
    clip, frame = np.array([(c, f) for c, all_ in frames.items() for f in all_]).T
    mixed = rng.permutation(len(clip))
    clip, frame = clip[mixed], frame[mixed]
    pred, target = rng.normal(size=(2, len(clip), JOINTS, 3))
    expected = slow_accel(pred, target, clip, frame)
    values, middle = accel(*map(torch.from_numpy, (pred, target, clip, frame)))
    assert sorted(middle.tolist()) == sorted(expected) and len(expected) == 3
    for value, index in zip(values.tolist(), middle.tolist(), strict=True):
        assert value == pytest.approx(expected[index], rel=1e-12)
    none, _ = accel(*map(torch.from_numpy, (pred[:2], target[:2], clip[:2], frame[:2])))
    assert none.shape == (0,)


def test_shapes_are_checked(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ShapeError, match="for the prediction"):
        mpjpe(pair[0][:3], pair[1])
    with pytest.raises(ShapeError, match="expected \\(B, points, 3\\)"):
        mpjpe(pair[0][..., :2], pair[1][..., :2])
    with pytest.raises(ShapeError, match="too few for protocol starter24"):
        mpjpe(pair[0][:, :14], pair[1][:, :14])


def test_inputs_stay_as_they_are(pair: tuple[Tensor, Tensor]) -> None:
    before = [points.clone() for points in pair]
    mpjpe(*pair), pa_mpjpe(*pair), accel(*pair, torch.zeros(7), torch.arange(7))
    pve(BodyOutput(*pair), BodyOutput(*pair[::-1]))
    assert all(torch.equal(points, old) for points, old in zip(pair, before, strict=True))


def scores_of(network: HMR2, crops: CropSet, body: BodyModel, batch_size: int, with_vertices: bool = True) -> Scores:
    batches = crops.batches(batch_size=batch_size)
    return score(network_predict(network), batches, body=body, pve=with_vertices)


def test_score_is_the_mean_of_the_parts(tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    scores = scores_of(tiny_network, tiny_crops, tiny_body, 5)
    (whole,) = tiny_crops.batches(batch_size=len(tiny_crops))
    with torch.no_grad():
        pred, target = tiny_body(tiny_network(whole.images).params), tiny_body(whole.params)
    assert scores.mpjpe_mm == pytest.approx(mpjpe(pred.joints, target.joints).mean().item(), rel=1e-5)
    assert scores.pa_mpjpe_mm == pytest.approx(pa_mpjpe(pred.joints, target.joints).mean().item(), rel=1e-5)
    assert scores.pve_mm == pytest.approx(pve(pred, target).mean().item(), rel=1e-5)
    expected = slow_accel(pred.joints.double().numpy(), target.joints.double().numpy(), whole.clip, whole.frame)
    assert scores.accel_mm_per_frame2 == pytest.approx(np.mean(list(expected.values())), rel=1e-4)
    assert (scores.n_frames, scores.n_clips, scores.protocol) == (12, 2, "starter24")
    assert scores.per_joint_mm.mean() == pytest.approx(scores.mpjpe_mm) and scores.per_frame.shape == (12,)
    assert list(scores.to_json()) == [
        "mpjpe_mm", "pa_mpjpe_mm", "pve_mm", "accel_mm_per_frame2", "n_frames", "n_clips", "protocol",
    ]  # fmt: skip


def test_scores_of_one_clip(tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    scores = scores_of(tiny_network, tiny_crops, tiny_body, 4)
    parts = [scores.of_clip(clip) for clip in (0, 1)]
    assert np.mean([part.mpjpe_mm for part in parts]) == pytest.approx(scores.mpjpe_mm)
    accels = [part.accel_mm_per_frame2 for part in parts]
    assert np.mean([value for value in accels if value is not None]) == pytest.approx(scores.accel_mm_per_frame2)
    assert parts[1].triple.tolist() == [1, 2, 3, 4] and parts[1].n_clips == 1


def test_vertices_are_computed_only_for_pve(tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    class JointsOnly:
        def joints(self, params: BodyParams) -> Tensor:
            return tiny_body.joints(params)

        def __call__(self, params: BodyParams) -> BodyOutput:
            raise AssertionError("the mesh was not asked for")

    batches = tiny_crops.batches(batch_size=4)
    scores = score(network_predict(tiny_network), batches, body=JointsOnly(), pve=False)
    full = scores_of(tiny_network, tiny_crops, tiny_body, 4)
    assert scores.pve_mm is None and "pve_mm" not in scores.to_json()
    assert scores.mpjpe_mm == pytest.approx(full.mpjpe_mm, rel=1e-6)


def test_the_truth_scores_zero_and_nan_is_named(tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    def broken(batch: FrameBatch) -> BodyParams:
        betas = batch.params.betas.clone()
        betas[(batch.clip == 1) & (batch.frame == 3)] = torch.nan
        return BodyParams(batch.params.global_orient, batch.params.body_pose, betas)

    predictors = {"truth": lambda batch: batch.params, "broken": broken}
    scores = score_all(predictors, tiny_crops.batches(batch_size=5), body=tiny_body)
    assert scores["truth"].mpjpe_mm == 0 and scores["truth"].accel_mm_per_frame2 == 0
    assert scores["truth"].first_not_finite() is None
    assert np.isnan(scores["broken"].mpjpe_mm) and scores["broken"].first_not_finite() == (1, 3)
    with pytest.raises(ShapeError, match="no frames"):
        score_all(predictors, iter(()), body=tiny_body)


def test_a_constant_predictor_repeats_itself(tiny_crops: CropSet) -> None:
    params = BodyParams(torch.eye(3)[None, None], torch.eye(3).repeat(1, 23, 1, 1), torch.full((1, 10), 0.5))

    def sizes() -> Iterator[tuple[torch.Size, float]]:
        for batch in tiny_crops.batches(batch_size=5):
            made = constant_predict(params)(batch)
            yield made.rotations.shape, float(made.betas.mean())

    assert list(sizes()) == [((5, 24, 3, 3), 0.5), ((5, 24, 3, 3), 0.5), ((2, 24, 3, 3), 0.5)]
