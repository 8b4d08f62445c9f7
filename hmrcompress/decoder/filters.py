"""Classical smoothing of a network's rotations in time: what a temporal decoder has to beat.

Both work clip by clip on rotations themselves, so that neither jumps of a representation nor its distortions are
smoothed, compute in float64, and leave shapes as they are. Rows of a clip follow each other in time, one frame apart.
The defaults come near the least error on procedural motions at 30 frames/s whose rotations carry independent noise of
0.1 to 0.25 radians an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.records import BodyParams


def one_euro(
    params: BodyParams,
    clip: Tensor,
    fps: float,
    *,
    min_cutoff: float = 1.0,
    beta: float = 0.3,
    derivative_cutoff: float = 1.0,
) -> BodyParams:
    """The 1€ filter (Casiez, Roussel and Vogel 2012, algorithm 1) of every joint's rotation; causal.

    params: N bodies; clip (N,) which clip each belongs to; fps frames a second. A low pass whose cutoff is
    min_cutoff (Hz) + beta * smoothed speed (rad/s): differences are rotation vectors, and the low pass moves along
    the geodesic, so that turns about one axis are filtered as the angle would be. Raises ShapeError, UserError.
    """
    _check(params, clip, fps)
    if min(min_cutoff, derivative_cutoff) <= 0 or beta < 0:
        raise UserError("cutoffs must be above 0 and beta at least 0", "one-euro")

    def smooth(rotations: Tensor) -> Tensor:
        import roma

        smoothed = [rotations[0]]
        speed = torch.zeros_like(rotations[0, :, 0])
        slow = _share(torch.tensor(derivative_cutoff, dtype=rotations.dtype), fps)
        for rotation in rotations[1:]:
            step = roma.rotmat_to_rotvec(smoothed[-1].mT @ rotation)
            speed = torch.lerp(speed, step * fps, slow)
            share = _share(min_cutoff + beta * speed.norm(dim=-1, keepdim=True), fps)
            smoothed.append(smoothed[-1] @ roma.rotvec_to_rotmat(share * step))
        return torch.stack(smoothed)

    return _by_clip(params, clip, smooth)


def savgol(params: BodyParams, clip: Tensor, fps: float, *, seconds: float = 0.5, order: int = 2) -> BodyParams:
    """The filter of Savitzky and Golay (1964) of every joint's rotation; it looks half a window ahead.

    params: N bodies; clip (N,) which clip each belongs to; fps frames a second; seconds: length of the window, made an
    odd number of frames, at most the clip. A polynomial of `order` is fitted to the entries of the matrices, whose
    value is turned into the nearest rotation. Clips of `order` frames or fewer stay. Raises ShapeError, UserError.
    """
    _check(params, clip, fps)
    if not 0 < seconds < math.inf or order < 0:
        raise UserError("the window must be longer than 0 seconds and the order at least 0", "savgol")

    def smooth(rotations: Tensor) -> Tensor:
        import roma
        from scipy.signal import savgol_filter

        window = min(_odd(seconds * fps), _odd(len(rotations) - 1))
        if window <= order:
            return rotations
        fitted = savgol_filter(rotations.numpy(), window, order, axis=0, mode="interp")
        return roma.special_procrustes(torch.from_numpy(fitted))

    return _by_clip(params, clip, smooth)


def _odd(frames: float) -> int:
    """The odd number nearest to `frames`; of an integer that is even, the one above."""
    return 2 * math.floor(frames / 2) + 1


def _share(cutoff: Tensor, fps: float) -> Tensor:
    """How far a low pass of `cutoff` Hz goes towards a new value in one frame."""
    rate = 2 * math.pi * cutoff / fps
    return rate / (rate + 1)


def _by_clip(params: BodyParams, clip: Tensor, smooth: Callable[[Tensor], Tensor]) -> BodyParams:
    """`smooth` (T,J,3,3) -> (T,J,3,3), float64 on the CPU, applied to each clip's rows."""
    rotations = params.rotations
    exact = rotations.detach().double().cpu()
    result = exact.clone()
    for number in clip.unique():
        rows = torch.nonzero(clip == number)[:, 0].cpu()
        result[rows] = smooth(exact[rows])
    result = result.to(rotations)
    return BodyParams(result[:, :1], result[:, 1:], params.betas)


def _check(params: BodyParams, clip: Tensor, fps: float) -> None:
    if clip.shape != params.global_orient.shape[:1]:
        raise ShapeError(f"got shape {tuple(clip.shape)}, expected ({len(params.global_orient)},)", "clip")
    if not 0 < fps < math.inf:
        raise UserError(f"got {fps}, expected frames a second above 0", "fps")
