"""Clips of any length through a decoder of fixed windows: overlapping ones for whole clips, a sliding one for live use.

Every window of a clip begins with the same noise, so that what differs between two windows is what they saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.runtime import generator

MAX_BATCH = 32
"""Windows that are decoded at once."""
OVERLAP_SHARE = 3
"""By default a window shares its first third with the window before it."""


def decode_clip(
    decoder: TemporalDecoder,
    features: Tensor,
    known: Tensor | None = None,
    *,
    steps: int = 1,
    overlap: int | None = None,
    seed: int = 0,
    resample: bool = False,
    max_batch: int = MAX_BATCH,
) -> Tensor:
    """Pose numbers (T,P) float32 of a clip of any length, where `features` (T,config.input_dim) lie, one row a frame as
    `readout.decoder_inputs` makes it.

    known (T,) bool: which frames have features (None: all; the others' are never read). Windows of `config.frames`
    share `overlap` frames (None: a third of a window), over which their numbers are cross-faded linearly; the last
    window ends with the clip; a clip shorter than a window is padded under a mask. `resample` does as the paper does
    instead: consecutive windows, the last one, if it is short, stretched to `config.frames` in time and its poses
    shrunk back. seed: of the noise. Raises ShapeError, and UserError for a wrong overlap, steps, a clip without any
    known frame, or `resample` with missing frames.
    """
    known = _check(decoder, features, known)
    frames, total = decoder.config.frames, len(features)
    if resample:
        if not known.all():
            raise UserError("got frames without features, which cannot be resampled", "resample", "Leave it out")
        return _resampled(decoder, features, steps, seed, max_batch)
    overlap = frames // OVERLAP_SHARE if overlap is None else overlap
    starts = window_starts(total, frames, overlap)
    windows = torch.tensor(starts)[:, None] + torch.arange(frames)
    poses = _decode(decoder, features, known, windows, windows < total, steps, seed, max_batch)
    weights = _fades(starts, frames).to(poses.device)
    out = poses.new_zeros(max(total, frames), poses.shape[2])
    mass = poses.new_zeros(max(total, frames), 1)
    for start, pose, weight in zip(starts, poses, weights, strict=True):
        out[start : start + frames] += weight[:, None] * pose
        mass[start : start + frames] += weight[:, None]
    return (out / mass)[:total].to(features.device)


def window_starts(total: int, frames: int, overlap: int) -> list[int]:
    """First frames of the windows of a clip of `total` frames: `frames - overlap` apart, the last one ending with the
    clip. UserError unless 0 <= overlap < frames."""
    if not 0 <= overlap < frames:
        raise UserError(f"got {overlap}, expected 0 to {frames - 1}: windows have {frames} frames", "overlap")
    last = max(0, total - frames)
    return [*range(0, last, frames - overlap), last]


def decode_streaming(
    decoder: TemporalDecoder,
    features: Tensor,
    known: Tensor | None = None,
    *,
    lookahead: int,
    steps: int = 1,
    seed: int = 0,
    max_batch: int = MAX_BATCH,
) -> Tensor:
    """Pose numbers (T,P) float32 of a clip as `StreamingDecoder` gives them, frame by frame, but in batches.

    Frame t depends on the features of frames up to t + lookahead and on none after. Otherwise as `decode_clip`.
    """
    known = _check(decoder, features, known)
    frames, total = decoder.config.frames, len(features)
    check_lookahead(lookahead, frames)
    now = torch.arange(total)
    seen = (now + lookahead).clamp(max=total - 1)
    starts = (seen - frames + 1).clamp(min=0)
    windows = starts[:, None] + torch.arange(frames)
    poses = _decode(
        decoder, features, known, windows, windows <= seen[:, None], steps, seed, max_batch, pick=now - starts
    )
    return poses.to(features.device)


class StreamingDecoder:
    """Poses of a live stream, each `lookahead` frames after its own: `push` every frame, `flush` at the end.

    Every frame costs one window, which ends with the newest frame. A window is never wider than what has arrived, so
    the first pose comes with frame `lookahead`.
    """

    def __init__(self, decoder: TemporalDecoder, *, lookahead: int, steps: int = 1, seed: int = 0) -> None:
        check_lookahead(lookahead, decoder.config.frames)
        self.decoder, self.lookahead, self.steps = decoder, lookahead, steps
        self.noise = window_noise(decoder, seed)
        self.seen: list[Tensor | None] = []
        self.arrived = self.finished = 0

    def latency_ms(self, fps: float) -> float:
        """How long a frame waits for later ones, beside the time of computing: `lookahead` frames at `fps`, in ms."""
        return 1000.0 * self.lookahead / fps

    def push(self, feature: Tensor | None) -> list[Tensor]:
        """Takes the next frame's features (config.input_dim,), None where the network was not run on it. Gives the
        poses (P,) that are finished now, in order: one, or none during the first `lookahead` frames."""
        self.seen = [*self.seen, feature][-self.decoder.config.frames :]
        self.arrived += 1
        return self._finish(self.arrived - self.lookahead)

    def flush(self) -> list[Tensor]:
        """The poses (P,) that are still owed, in order; the stream ends here, the next `push` begins another one."""
        poses = self._finish(self.arrived)
        self.seen, self.arrived, self.finished = [], 0, 0
        return poses

    @torch.no_grad()
    def _finish(self, until: int) -> list[Tensor]:
        """Poses of the frames from the first unfinished one to before `until`, out of one window."""
        if until <= self.finished:
            return []
        device = self.decoder.pose_mean.device
        blank = torch.zeros(self.decoder.config.input_dim, device=device)
        features = torch.stack([blank if each is None else each.to(blank) for each in self.seen])[None]
        known = torch.tensor([[each is not None for each in self.seen]], device=device)
        poses = self.decoder(features, known, torch.ones_like(known), steps=self.steps, noise=self.noise)[0]
        start = self.arrived - len(self.seen)
        done = list(poses[self.finished - start : until - start].unbind(0))
        self.finished = until
        return done


def check_lookahead(lookahead: int, frames: int) -> None:
    """UserError unless a frame and those that it waits for fit a window."""
    if not 0 <= lookahead < frames:
        raise UserError(f"got {lookahead}, expected 0 to {frames - 1}: windows have {frames} frames", "lookahead")


def window_noise(decoder: TemporalDecoder, seed: int) -> Tensor:
    """The noise (Nz,Dz) that every window begins with, the same on every device."""
    config = decoder.config
    return torch.randn(config.latents, config.latent_dim, generator=generator(seed)).to(decoder.pose_mean.device)


def _check(decoder: TemporalDecoder, features: Tensor, known: Tensor | None) -> Tensor:
    """The mask of known frames. Raises ShapeError, and UserError where there is no known frame."""
    if features.ndim != 2 or not len(features) or features.shape[1] != decoder.config.input_dim:
        raise ShapeError(f"got {tuple(features.shape)}, expected (T,{decoder.config.input_dim})", "features")
    if known is None:
        return torch.ones(len(features), dtype=torch.bool, device=features.device)
    if known.shape != features.shape[:1] or known.dtype != torch.bool:
        raise ShapeError(f"got {tuple(known.shape)} {known.dtype}, expected ({len(features)},) bool", "known")
    if not known.any():
        raise UserError("no frame of the clip has features", "known")
    return known


@torch.no_grad()
def _decode(
    decoder: TemporalDecoder,
    features: Tensor,
    known: Tensor,
    windows: Tensor,
    valid: Tensor,
    steps: int,
    seed: int,
    max_batch: int,
    pick: Tensor | None = None,
) -> Tensor:
    """Poses (W,T,P) of windows (W,T) of frame numbers, where the decoder is; `pick` (W,): of one frame each, (W,P)."""
    device, noise = decoder.pose_mean.device, window_noise(decoder, seed)
    features, known = features.to(device, torch.float32), known.to(device)
    windows, valid = windows.clamp(max=len(features) - 1).to(device), valid.to(device)
    poses = []
    for first in range(0, len(windows), max_batch):
        part = slice(first, first + max_batch)
        frames, exists = windows[part], valid[part]
        pose = decoder(features[frames], known[frames] & exists, exists, steps=steps, noise=noise)
        poses.append(pose if pick is None else pose[torch.arange(len(pose), device=device), pick[part].to(device)])
    return torch.cat(poses)


def _fades(starts: Sequence[int], frames: int) -> Tensor:
    """Weights (W, frames) of each window's frames: linear up over what it shares with the window before it, linear down
    over what it shares with the next. Two windows' weights add up to one; three may meet at the end of a clip."""
    weights = torch.ones(len(starts), frames)
    for window, (before, start) in enumerate(pairwise(starts), start=1):
        shared = before + frames - start
        rising = torch.arange(1, shared + 1) / (shared + 1)
        weights[window, :shared] = rising
        weights[window - 1, frames - shared :] *= rising.flip(0)
    return weights


def _resampled(decoder: TemporalDecoder, features: Tensor, steps: int, seed: int, max_batch: int) -> Tensor:
    """Consecutive windows without overlap; one that is short is stretched to a window and its poses shrunk back."""
    frames = decoder.config.frames
    pieces = features.float().split(frames)
    stretched = torch.cat([_stretch(piece, frames) for piece in pieces])
    every = torch.ones(len(stretched), dtype=torch.bool, device=features.device)
    windows = torch.arange(len(stretched)).view(-1, frames)
    poses = _decode(decoder, stretched, every, windows, windows >= 0, steps, seed, max_batch)
    parts = [_stretch(pose, len(piece)) for pose, piece in zip(poses, pieces, strict=True)]
    return torch.cat(parts).to(features.device)


def _stretch(values: Tensor, frames: int) -> Tensor:
    """(T,C) -> (frames,C), linear in time, first and last frame kept."""
    return F.interpolate(values.T[None], frames, mode="linear", align_corners=True)[0].T
