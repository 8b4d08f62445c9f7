"""geometry/rotations.py against scipy."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hmrcompress.geometry.rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_sixd,
    nearest_rotation,
    sixd_to_matrix,
)

PRECISION = {torch.float32: 2e-6, torch.float64: 1e-12}


def unit_axes(count: int, seed: int = 0) -> np.ndarray:
    axes = np.random.default_rng(seed).normal(size=(count, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def random_matrices(count: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix())


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize(
    "angle", [0.0, 1e-9, 1e-5, 9e-5, 1.1e-4, 1e-3, 0.1, 1.0, 3.0, math.pi - 1e-4, math.pi, 4.0, 7.0]
)
def test_axis_angle_to_matrix_is_scipys(angle: float, dtype: torch.dtype) -> None:
    vectors = torch.tensor(angle * unit_axes(50)).to(dtype)
    wanted = Rotation.from_rotvec(vectors.double().numpy()).as_matrix()
    got = axis_angle_to_matrix(vectors)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=PRECISION[dtype])


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 5, 24, 3)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = axis_angle_to_matrix(vectors)
    assert got.shape == (*shape, 3)
    wanted = (
        Rotation.from_rotvec(vectors.reshape(-1, 3).numpy()).as_matrix() if vectors.numel() else np.empty((0, 3, 3))
    )
    np.testing.assert_allclose(got.reshape(-1, 3, 3).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 1e-3, 1.0, math.pi])
def test_gradients_stay_finite(angle: float, dtype: torch.dtype) -> None:
    vectors = torch.tensor(angle * unit_axes(20), dtype=dtype).requires_grad_()
    weights = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    (axis_angle_to_matrix(vectors) * weights).sum().backward()
    assert vectors.grad is not None and torch.isfinite(vectors.grad).all()
    assert vectors.grad.abs().max() > 0.1


def test_gradient_at_zero_is_the_cross_product() -> None:
    jacobian = torch.autograd.functional.jacobian(axis_angle_to_matrix, torch.zeros(3, dtype=torch.float64))
    point, turn = torch.tensor([0.3, -1.0, 2.0]).double(), torch.tensor([0.5, 0.1, -0.7]).double()
    moved = torch.einsum("ijk,k,j->i", jacobian, turn, point)
    torch.testing.assert_close(moved, torch.linalg.cross(turn, point))


def test_gradcheck() -> None:
    vectors = torch.tensor(unit_axes(6) * np.asarray([[0.0], [2e-5], [1e-3], [1.0], [3.0], [3.14159]]))
    assert torch.autograd.gradcheck(axis_angle_to_matrix, vectors.requires_grad_())


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 1.0, 3.0, math.pi - 1e-5])
def test_matrix_to_axis_angle_is_scipys(angle: float) -> None:
    matrices = Rotation.from_rotvec(angle * unit_axes(50, seed=1)).as_matrix()
    got = matrix_to_axis_angle(torch.tensor(matrices)).numpy()
    np.testing.assert_allclose(got, Rotation.from_matrix(matrices).as_rotvec(), atol=1e-7)


def test_half_turns_survive_the_way_there_and_back() -> None:
    vectors = torch.tensor(math.pi * unit_axes(50, seed=2))
    matrices = axis_angle_to_matrix(vectors)
    again = axis_angle_to_matrix(matrix_to_axis_angle(matrices))
    torch.testing.assert_close(again, matrices, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", PRECISION)
def test_sixd_holds_the_first_two_columns(dtype: torch.dtype) -> None:
    matrices = random_matrices(40).to(dtype)
    sixd = matrix_to_sixd(matrices)
    np.testing.assert_array_equal(sixd[:, :3].numpy(), matrices.numpy()[:, :, 0])
    np.testing.assert_array_equal(sixd[:, 3:].numpy(), matrices.numpy()[:, :, 1])
    torch.testing.assert_close(sixd_to_matrix(sixd), matrices, rtol=0, atol=PRECISION[dtype])
    torch.testing.assert_close(sixd_to_matrix(sixd, layout="rows"), matrices.mT, rtol=0, atol=PRECISION[dtype])


def test_sixd_of_any_numbers_is_gram_schmidt() -> None:
    """numpy's QR, signs fixed so that the diagonal of R is positive, orthogonalises in the same order."""
    numbers = np.random.default_rng(3).normal(size=(30, 6)) * 4
    got = sixd_to_matrix(torch.tensor(numbers)).numpy()
    for six, matrix in zip(numbers, got, strict=True):
        q, r = np.linalg.qr(six.reshape(2, 3).T)
        np.testing.assert_allclose(matrix[:, :2], q * np.sign(np.diag(r)), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1.0)


def test_sixd_example_by_hand() -> None:
    quarter_turn_about_z = torch.tensor([0.0, 2.0, 0.0, -3.0, 5.0, 0.0])
    wanted = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(sixd_to_matrix(quarter_turn_about_z), wanted)
    torch.testing.assert_close(sixd_to_matrix(quarter_turn_about_z, layout="rows"), wanted.T)


def test_inputs_stay_as_they_were() -> None:
    vectors, sixd = torch.randn(4, 3), torch.randn(4, 6)
    kept = vectors.clone(), sixd.clone()
    axis_angle_to_matrix(vectors)
    sixd_to_matrix(sixd)
    assert torch.equal(vectors, kept[0]) and torch.equal(sixd, kept[1])


def test_the_nearest_rotation_is_scipys() -> None:
    matrices = np.random.default_rng(5).normal(size=(30, 3, 3))
    for matrix, found in zip(matrices, nearest_rotation(torch.tensor(matrices)).numpy(), strict=True):
        left, _, right = np.linalg.svd(matrix)
        wanted = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
        np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_training_after_inference_in_the_same_process() -> None:
    """What is kept from a first call in inference mode, by roma too, may be differentiated through afterwards."""
    code = """
import torch
from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.diffusion import noise_schedule
from hmrcompress.geometry.rotations import nearest_rotation
matrix = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    found = nearest_rotation(matrix), noise_schedule(DecoderConfig())
known = nearest_rotation(matrix.requires_grad_())
assert torch.equal(known, found[0])
scale = torch.ones((), dtype=torch.float64, requires_grad=True)
(known.square().sum() + (noise_schedule(DecoderConfig()) * scale).sum()).backward()
assert matrix.grad is not None and scale.grad is not None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
