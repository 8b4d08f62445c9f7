"""Classical smoothing of a network's rotations in time: what a temporal decoder has to beat.

Both work clip by clip on rotations themselves, so that neither jumps of a representation nor its distortions are
smoothed, compute in float64, and leave shapes as they are. Rows of a clip follow each other in time: so many frames a
second (`fps`, a number), or at given seconds (`fps`, a tensor (N,)), as the `time` of `params.npz`.
The defaults come near the least error on procedural motions at 30 frames/s whose rotations carry independent noise of
0.1 to 0.25 radians an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.geometry.rotations import nearest_rotation
from hmrcompress.records import BodyParams

EVEN = 1e-3
"""Share of a step that steps may differ by and be one rate."""


def one_euro(
    params: BodyParams,
    clip: Tensor,
    fps: float | Tensor,
    *,
    min_cutoff: float = 1.0,
    beta: float = 0.3,
    derivative_cutoff: float = 1.0,
) -> BodyParams:
    """The 1€ filter (Casiez, Roussel and Vogel 2012, algorithm 1) of every joint's rotation; causal.

    params: N bodies; clip (N,) which clip each belongs to; fps frames a second, or seconds (N,). A low pass whose
    cutoff is min_cutoff (Hz) + beta * smoothed speed (rad/s): differences are rotation vectors, and the low pass moves
    along the geodesic, so that turns about one axis are filtered as the angle would be. Raises ShapeError, UserError.
    """
    _check(params, clip, fps)
    if min(min_cutoff, derivative_cutoff) <= 0 or beta < 0:
        raise UserError("cutoffs must be above 0 and beta at least 0", "one-euro")

    def smooth(rotations: Tensor, times: Tensor) -> Tensor:
        import roma

        smoothed = [rotations[0]]
        speed = torch.zeros_like(rotations[0, :, 0])
        cutoff = torch.tensor(derivative_cutoff, dtype=rotations.dtype)
        for rotation, passed in zip(rotations[1:], times.diff(), strict=True):
            step = roma.rotmat_to_rotvec(smoothed[-1].mT @ rotation)
            speed = torch.lerp(speed, step / passed, _share(cutoff, passed))
            share = _share(min_cutoff + beta * speed.norm(dim=-1, keepdim=True), passed)
            smoothed.append(smoothed[-1] @ roma.rotvec_to_rotmat(share * step))
        return torch.stack(smoothed)

    return _by_clip(params, clip, fps, smooth)


def savgol(
    params: BodyParams, clip: Tensor, fps: float | Tensor, *, seconds: float = 0.5, order: int = 2
) -> BodyParams:
    """The filter of Savitzky and Golay (1964) of every joint's rotation; it looks half a window ahead.

    params: N bodies; clip (N,) which clip each belongs to; fps frames a second, or seconds (N,); seconds: length of the
    window, made an odd number of frames, at most the clip. A polynomial of `order` is fitted to the entries of the
    matrices, whose value is turned into the nearest rotation. Clips of `order` frames or fewer stay. Where frames are
    not even in time, the window holds those within half its length, shifted into the clip at its ends, and a frame
    whose window has `order` frames or fewer stays. Raises ShapeError, UserError.
    """
    _check(params, clip, fps)
    if not 0 < seconds < math.inf or order < 0:
        raise UserError("the window must be longer than 0 seconds and the order at least 0", "savgol")

    def smooth(rotations: Tensor, times: Tensor) -> Tensor:
        from scipy.signal import savgol_filter

        steps = times.diff()
        if not len(steps) or steps.max() - steps.min() < EVEN * steps.mean():
            across = seconds / steps.mean().item() if len(steps) else 0.0
            window = min(_odd(round(across, 6)), _odd(len(rotations) - 1))
            if window <= order:
                return rotations
            fitted = savgol_filter(rotations.numpy(), window, order, axis=0, mode="interp")
        else:
            fitted = _local_fits(rotations.numpy(), times.numpy(), seconds, order)
        return nearest_rotation(torch.from_numpy(fitted))

    return _by_clip(params, clip, fps, smooth)


def _local_fits(rotations: np.ndarray, times: np.ndarray, width: float, order: int) -> np.ndarray:
    """The value at each of the times (T,) of a polynomial fitted by least squares to the rows (T,J,3,3) around it."""
    fitted, half = rotations.copy(), min(width, times[-1] - times[0]) / 2
    for row, time in enumerate(times):
        middle = np.clip(time, times[0] + half, times[-1] - half)
        near = np.flatnonzero(np.abs(times - middle) <= half + 1e-9)
        if len(near) > order:
            powers = ((times[near] - time) / width)[:, None] ** np.arange(order + 1)
            # The value at the time itself is the constant term: a row of weights for the rows around it.
            fitted[row] = np.tensordot(np.linalg.pinv(powers)[0], rotations[near], 1)
    return fitted


def _odd(frames: float) -> int:
    """The odd number nearest to `frames`; of an integer that is even, the one above."""
    return 2 * math.floor(frames / 2) + 1


def _share(cutoff: Tensor, passed: Tensor) -> Tensor:
    """How far a low pass of `cutoff` Hz goes towards a new value after so many seconds."""
    rate = 2 * math.pi * cutoff * passed
    return rate / (rate + 1)


def _by_clip(
    params: BodyParams, clip: Tensor, fps: float | Tensor, smooth: Callable[[Tensor, Tensor], Tensor]
) -> BodyParams:
    """`smooth` (T,J,3,3), seconds (T,) -> (T,J,3,3), float64 on the CPU, applied to each clip's rows. UserError where
    time does not go on from row to row."""
    rotations = params.rotations
    exact = rotations.detach().double().cpu()
    result = exact.clone()
    for number in clip.unique():
        rows = torch.nonzero(clip == number)[:, 0].cpu()
        if isinstance(fps, Tensor):
            seconds = fps.detach().double().cpu()[rows]
        else:
            seconds = torch.arange(len(rows), dtype=torch.float64) / fps
        if not (seconds.diff() > 0).all():
            raise UserError(f"the seconds of clip {int(number)} do not rise from row to row", "fps")
        result[rows] = smooth(exact[rows], seconds)
    result = result.to(rotations)
    return BodyParams(result[:, :1], result[:, 1:], params.betas)


def _check(params: BodyParams, clip: Tensor, fps: float | Tensor) -> None:
    if clip.shape != params.global_orient.shape[:1]:
        raise ShapeError(f"got shape {tuple(clip.shape)}, expected ({len(params.global_orient)},)", "clip")
    if isinstance(fps, Tensor):
        if fps.shape != clip.shape or not fps.isfinite().all():
            raise ShapeError(f"got shape {tuple(fps.shape)}, expected finite seconds ({len(clip)},)", "fps")
    elif not 0 < fps < math.inf:
        raise UserError(f"got {fps}, expected frames a second above 0", "fps")
