"""The classical filters against scipy, against a scalar loop written from the paper, and on noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.signal import savgol_coeffs
from scipy.spatial.transform import Rotation

from hmrcompress.decoder.filters import one_euro, savgol
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.records import BodyParams
from hmrcompress.starter.motion.procedural import generate

FPS = 30.0
JOINTS = 24


def params_of(rotations: np.ndarray) -> BodyParams:
    """(N,24,3,3) -> float64 parameters with betas that count the rows."""
    made = torch.from_numpy(np.asarray(rotations, np.float64))
    return BodyParams(made[:, :1], made[:, 1:], torch.arange(len(made)).double()[:, None].expand(-1, 10))


def motion(seed: int = 0, frames: int = 60) -> np.ndarray:
    """A procedural motion's rotations (T,24,3,3)."""
    poses = generate(seed, frames).poses.astype(np.float64)
    return Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(frames, JOINTS, 3, 3)


def shaken(rotations: np.ndarray, radians: float, seed: int = 1) -> np.ndarray:
    noise = Rotation.from_rotvec(radians * np.random.default_rng(seed).normal(size=(rotations[..., 0, 0].size, 3)))
    return (Rotation.from_matrix(rotations.reshape(-1, 3, 3)) * noise).as_matrix().reshape(rotations.shape)


def degrees(a: torch.Tensor, b: np.ndarray) -> float:
    turn = a.numpy().reshape(-1, 3, 3).transpose(0, 2, 1) @ b.reshape(-1, 3, 3)
    return float(np.degrees(Rotation.from_matrix(turn).magnitude().mean()))


def one_clip(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def scalar_one_euro(values: np.ndarray, rate: float, min_cutoff: float, beta: float, derivative: float) -> np.ndarray:
    """Algorithm 1 of Casiez et al. (2012) on one number a frame."""

    def alpha(cutoff: float) -> float:
        tau = 1 / (2 * math.pi * cutoff)
        return 1 / (1 + tau * rate)

    result, speed = [float(values[0])], 0.0
    for value in values[1:]:
        change = (float(value) - result[-1]) * rate
        speed = alpha(derivative) * change + (1 - alpha(derivative)) * speed
        share = alpha(min_cutoff + beta * abs(speed))
        result.append(share * float(value) + (1 - share) * result[-1])
    return np.array(result)


def test_one_euro_on_one_axis_is_the_scalar_filter() -> None:
    """Each joint turns about an axis of its own; its angle is filtered as the paper filters a number."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(JOINTS, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.cumsum(0.2 * rng.normal(size=(50, JOINTS)), axis=0)
    turned = Rotation.from_rotvec((angles[..., None] * axes).reshape(-1, 3)).as_matrix().reshape(50, JOINTS, 3, 3)
    settings = {"min_cutoff": 0.8, "beta": 0.4}
    found = one_euro(params_of(turned), one_clip(50), FPS, **settings, derivative_cutoff=1.3).rotations
    wanted = np.stack([scalar_one_euro(angles[:, j], FPS, 0.8, 0.4, 1.3) for j in range(JOINTS)], 1)
    expected = Rotation.from_rotvec((wanted[..., None] * axes).reshape(-1, 3)).as_matrix()
    np.testing.assert_allclose(found.numpy().reshape(-1, 3, 3), expected, atol=1e-10)


UNEVEN = np.cumsum(np.random.default_rng(4).uniform(0.01, 0.2, 50))
"""Seconds of 50 frames."""


def test_one_euro_takes_seconds_in_place_of_a_rate() -> None:
    """On one axis against the scalar loop with the rate of every step; even seconds are the rate."""
    angles = 0.4 * np.sin(3 * UNEVEN) + 0.05 * np.random.default_rng(0).normal(size=50)
    turned = Rotation.from_rotvec(np.repeat(angles, JOINTS)[:, None] * [0, 0, 1]).as_matrix()
    found = one_euro(params_of(turned.reshape(50, JOINTS, 3, 3)), one_clip(50), torch.from_numpy(UNEVEN)).rotations
    result, speed = [angles[0]], 0.0
    for value, passed in zip(angles[1:], np.diff(UNEVEN), strict=True):
        share = 1 / (1 + 1 / (2 * math.pi * passed))
        speed = share * (value - result[-1]) / passed + (1 - share) * speed
        share = 1 / (1 + 1 / (2 * math.pi * (1.0 + 0.3 * abs(speed)) * passed))
        result.append(share * value + (1 - share) * result[-1])
    made = Rotation.from_matrix(found[:, 5].numpy()).as_rotvec()[:, 2]
    assert np.abs(made - result).max() < 1e-9


@pytest.mark.parametrize("smooth", [one_euro, savgol])
def test_even_seconds_are_a_rate(smooth: Callable[..., BodyParams]) -> None:
    params, clip = params_of(motion(frames=40)), torch.arange(40) % 2
    seconds = torch.arange(40).div(2, rounding_mode="floor").double() / FPS + 7
    assert torch.allclose(smooth(params, clip, seconds).rotations, smooth(params, clip, FPS).rotations, atol=1e-9)
    with pytest.raises(UserError, match="clip 0 do not rise"):
        smooth(params, clip, seconds.flip(0))
    with pytest.raises(ShapeError):
        smooth(params, clip, seconds[:3])


def test_savgol_fits_a_parabola_around_each_of_uneven_frames() -> None:
    """Against numpy's least squares, frame by frame, and the nearest rotation by singular values."""
    rotations = shaken(motion(2, 50), 0.1)
    found = savgol(params_of(rotations), one_clip(50), torch.from_numpy(UNEVEN), seconds=0.6).rotations.numpy()
    for row in range(50):
        middle = np.clip(UNEVEN[row], UNEVEN[0] + 0.3, UNEVEN[-1] - 0.3)
        near = np.abs(UNEVEN - middle) < 0.3 + 1e-9
        if near.sum() < 3:
            assert np.allclose(found[row], rotations[row])
            continue
        fit = np.polynomial.polynomial.polyfit(UNEVEN[near] - UNEVEN[row], rotations[near].reshape(near.sum(), -1), 2)
        left, _, right = np.linalg.svd(fit[0].reshape(-1, 3, 3))
        assert np.allclose(found[row], left @ right, atol=1e-6)


def test_one_euro_looks_at_the_past_alone() -> None:
    rotations = motion()
    later = rotations.copy()
    later[40:] = motion(seed=3)[40:]
    before, after = (one_euro(params_of(r), one_clip(60), FPS).rotations for r in (rotations, later))
    assert torch.equal(before[:40], after[:40]) and not torch.equal(before[40], after[40])


@pytest.mark.parametrize(("seconds", "window"), [(0.3, 9), (0.5, 15), (0.2, 7)])
def test_savgol_is_the_nearest_rotation_to_the_weighted_mean(seconds: float, window: int) -> None:
    """Away from the ends: scipy's coefficients over the matrices, then the closest rotation by an SVD of numpy."""
    rotations = shaken(motion(), 0.1)
    found = savgol(params_of(rotations), one_clip(60), FPS, seconds=seconds, order=2).rotations.numpy()
    weights, half = savgol_coeffs(window, 2, use="dot"), window // 2
    for frame in (half, 30, 59 - half):
        mean = np.einsum("t,tjab->jab", weights, rotations[frame - half : frame + half + 1])
        u, _, vt = np.linalg.svd(mean)
        flip = np.stack([np.ones(JOINTS), np.ones(JOINTS), np.linalg.det(u @ vt)], -1)
        np.testing.assert_allclose(found[frame], u * flip[:, None] @ vt, atol=1e-9)


def test_savgol_of_short_clips() -> None:
    rotations = shaken(motion(frames=5), 0.1)
    for frames in (1, 2):
        part = params_of(rotations[:frames])
        assert torch.equal(savgol(part, one_clip(frames), FPS).rotations, part.rotations)
    assert degrees(savgol(params_of(rotations), one_clip(5), FPS).rotations, rotations) > 0.1


@pytest.mark.parametrize("smooth", [one_euro, savgol])
def test_clips_do_not_see_each_other(smooth) -> None:  # type: ignore[no-untyped-def]
    """Two clips, their rows mixed, give what each gives alone; shapes and inputs stay."""
    first, second = shaken(motion(0), 0.1), shaken(motion(1), 0.1)
    clip = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat([7, 3], 60)))
    mixed = np.empty((120, JOINTS, 3, 3))
    mixed[clip == 7], mixed[clip == 3] = first, second
    params = params_of(mixed)
    kept = params.rotations.clone()
    found = smooth(params, clip, FPS)
    assert torch.equal(params.rotations, kept) and torch.equal(found.betas, params.betas)
    for number, alone in ((7, first), (3, second)):
        assert torch.equal(found.rotations[clip == number], smooth(params_of(alone), one_clip(60), FPS).rotations)


@pytest.mark.parametrize("smooth", [one_euro, savgol])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filters_remove_noise_and_leave_stillness(smooth, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    clean = motion(frames=90)
    noisy = shaken(clean, 0.1)
    found = smooth(params_of(noisy).to(dtype), one_clip(90), FPS).rotations
    assert found.dtype == dtype
    assert (found @ found.mT - torch.eye(3)).abs().max() < 1e-5
    jerk = [np.abs(np.diff(r, 2, axis=0)).mean() for r in (found.double().numpy(), noisy)]
    assert jerk[0] < 0.4 * jerk[1]
    assert degrees(found.double(), clean) < 0.8 * degrees(torch.from_numpy(noisy), clean)
    still = np.repeat(clean[:1], 20, axis=0)
    assert degrees(smooth(params_of(still), one_clip(20), FPS).rotations, still) < 1e-5


@pytest.mark.parametrize("smooth", [one_euro, savgol])
def test_wrong_input_is_named(smooth) -> None:  # type: ignore[no-untyped-def]
    params = params_of(motion(frames=4))
    with pytest.raises(ShapeError, match="clip"):
        smooth(params, one_clip(3), FPS)
    with pytest.raises(UserError, match="fps"):
        smooth(params, one_clip(4), 0.0)


def test_wrong_settings_are_named() -> None:
    params = params_of(motion(frames=4))
    with pytest.raises(UserError, match="one-euro"):
        one_euro(params, one_clip(4), FPS, min_cutoff=0.0)
    with pytest.raises(UserError, match="savgol"):
        savgol(params, one_clip(4), FPS, seconds=0.0)
