"""Clips of any length through a decoder of fixed windows: the one place where windows are laid, decoded and joined.

Frames come piece by piece, a whole clip as one piece (`clips`). Every window of a clip begins with the same noise, so
that what differs between two windows is what they saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.errors import UserError
from hmrcompress.runtime import generator

MAX_BATCH = 32
"""Windows that are decoded at once."""
OVERLAP_SHARE = 3
"""By default a window shares its first third with the window before it."""


def window_starts(total: int, frames: int, overlap: int) -> list[int]:
    """First frames of the windows of a clip of `total` frames: `frames - overlap` apart, the last one ending with the
    clip. UserError unless 0 <= overlap < frames."""
    if not 0 <= overlap < frames:
        raise UserError(f"got {overlap}, expected 0 to {frames - 1}: windows have {frames} frames", "overlap")
    last = max(0, total - frames)
    return [*range(0, last, frames - overlap), last]


def check_stride(stride: float, frames: int) -> None:
    """UserError unless every window of so many frames sees one that the network ran on. stride: in steps of the
    decoder."""
    if stride > frames:
        raise UserError(
            f"the network runs on every {stride:g}th step, and the decoder sees {frames} at a time",
            "--stride",
            f"Give at most {frames}, in frames at the decoder's rate",
        )


def check_lookahead(lookahead: int, frames: int) -> None:
    """UserError unless a frame and those that it waits for fit a window."""
    if not 0 <= lookahead < frames:
        raise UserError(f"got {lookahead}, expected 0 to {frames - 1}: windows have {frames} frames", "lookahead")


def window_noise(decoder: TemporalDecoder, seed: int) -> Tensor:
    """The noise (Nz,Dz) that every window begins with, the same on every device."""
    config = decoder.config
    return torch.randn(config.latents, config.latent_dim, generator=generator(seed)).to(decoder.pose_mean.device)


class _Frames:
    """The frames of a clip that windows may still be laid over, and the decoding of such windows."""

    def __init__(self, decoder: TemporalDecoder, steps: int, seed: int, max_batch: int) -> None:
        self.decoder, self.steps, self.noise, self.max_batch = decoder, steps, window_noise(decoder, seed), max_batch
        self.frames, self.device = decoder.config.frames, decoder.pose_mean.device
        self.begin()

    def begin(self) -> None:
        """Another clip."""
        self.features = torch.zeros(0, self.decoder.config.input_dim, device=self.device)
        self.known = torch.zeros(0, dtype=torch.bool, device=self.device)
        self.first = self.total = self.given = 0

    def nothing(self) -> Tensor:
        """No poses: (0,P)."""
        return torch.zeros(0, self.decoder.pose_mean.shape[-1], device=self.device)

    def take(self, features: Tensor, known: Tensor) -> None:
        """The next frames: features (n,config.input_dim), known (n,) bool."""
        self.features = torch.cat([self.features, features.detach().to(self.device, torch.float32)])
        self.known = torch.cat([self.known, known.to(self.device)])
        self.total += len(features)

    def let_go(self, before: int) -> None:
        """No window will begin before that frame."""
        gone = max(0, before - self.first)
        self.features, self.known, self.first = self.features[gone:], self.known[gone:], self.first + gone

    def decoded(self, starts: Sequence[int], ends: Sequence[int]) -> Iterator[Tensor]:
        """Poses (frames,P) of each window that begins at a frame and sees the frames before another one, in batches.
        Those of frames that it does not see mean nothing."""
        every = torch.arange(self.frames, device=self.device)
        for batch in range(0, len(starts), self.max_batch):
            part = slice(batch, batch + self.max_batch)
            rows = torch.tensor(starts[part], device=self.device)[:, None] + every
            exists = rows < torch.tensor(ends[part], device=self.device)[:, None]
            rows = (rows - self.first).clamp(max=len(self.features) - 1)
            known = self.known[rows] & exists
            with torch.no_grad():
                poses = self.decoder(self.features[rows], known, exists, steps=self.steps, noise=self.noise)
            yield from poses


class ClipStream(_Frames):
    """Pose numbers of a clip as `clips.decode_clip` gives them, fed piece by piece: each as soon as no later frame can
    change it, at most two windows after its own. Holds at most three windows beside a piece, however long the clip is.
    """

    def __init__(
        self,
        decoder: TemporalDecoder,
        *,
        overlap: int | None = None,
        steps: int = 1,
        seed: int = 0,
        max_batch: int = MAX_BATCH,
    ) -> None:
        """Arguments as of `decode_clip`. Raises UserError for a wrong overlap."""
        super().__init__(decoder, steps, seed, max_batch)
        self.overlap = self.frames // OVERLAP_SHARE if overlap is None else overlap
        window_starts(1, self.frames, self.overlap)
        self.next = 0
        self.windows: list[tuple[int, Tensor, Tensor]] = []

    def push(self, features: Tensor, known: Tensor, *, ends: bool = False) -> Tensor:
        """features (n,config.input_dim), known (n,) bool of the next n frames -> the poses (m,P) that are finished, in
        their order. ends: the clip ends with them."""
        self.take(features, known)
        starts = []
        while self.total > self.next + self.frames:
            starts.append(self.next)
            self.next += self.frames - self.overlap
        if ends and self.total > self.given:
            starts.append(max(0, self.total - self.frames))
        if not starts:
            return self.nothing()
        for start, poses in zip(starts, self.decoded(starts, [self.total] * len(starts)), strict=True):
            self._join(start, poses)
        self.let_go(starts[-1] + 1)  # the last window may begin right after this one
        return self._finished(self.total if ends else starts[-1])

    def flush(self) -> Tensor:
        """The poses (m,P) that are still owed. The clip ends here."""
        return self.push(self.features[:0], self.known[:0], ends=True)

    def _join(self, start: int, poses: Tensor) -> None:
        """Fades a window and the one before it into each other over what they share: linear up, and down. Two windows'
        weights add up to one; three may meet at the end of a clip."""
        weights = torch.ones(self.frames, device=self.device)
        if self.windows:
            before, _, falling = self.windows[-1]
            shared = before + self.frames - start
            rising = torch.arange(1, shared + 1, device=self.device) / (shared + 1)
            weights[:shared] = rising
            falling[self.frames - shared :] *= rising.flip(0)
        self.windows.append((start, poses, weights))

    def _finished(self, until: int) -> Tensor:
        """Poses of the frames from the first one not given to before `until`; lets go of windows before it."""
        like, count = self.nothing(), until - self.given
        total, mass = like.new_zeros(count, self.windows[-1][1].shape[1]), like.new_zeros(count, 1)
        for start, poses, weights in self.windows:
            low, high = max(start, self.given), min(start + self.frames, until)
            if low < high:
                there, here = slice(low - self.given, high - self.given), slice(low - start, high - start)
                total[there] += weights[here, None] * poses[here]
                mass[there] += weights[here, None]
        self.given = until
        self.windows = [each for each in self.windows if each[0] + self.frames > until]
        return total / mass


class StreamingDecoder(_Frames):
    """Poses of a live stream, each `lookahead` frames after its own: `push` every frame, `flush` at the end.

    Every frame costs one window, which ends with the newest frame, so the first pose comes with frame `lookahead`.
    """

    def __init__(
        self, decoder: TemporalDecoder, *, lookahead: int, steps: int = 1, seed: int = 0, max_batch: int = MAX_BATCH
    ) -> None:
        check_lookahead(lookahead, decoder.config.frames)
        super().__init__(decoder, steps, seed, max_batch)
        self.lookahead = lookahead

    def latency_ms(self, fps: float) -> float:
        """How long a frame waits for later ones, beside the time of computing: `lookahead` frames at `fps`, in ms."""
        return 1000.0 * self.lookahead / fps

    def push(self, feature: Tensor | None) -> list[Tensor]:
        """Takes the next frame's features (config.input_dim,), None where the network was not run on it. Gives the
        poses (P,) that are finished now, in order: one, or none during the first `lookahead` frames."""
        row = torch.zeros(self.decoder.config.input_dim) if feature is None else feature
        return self.feed(row[None], torch.tensor([feature is not None]))

    def feed(self, features: Tensor, known: Tensor, *, ends: bool = False) -> list[Tensor]:
        """`push` of n frames (n,config.input_dim), known (n,) bool; ends: `flush` after them."""
        self.take(features, known)
        until = self.total if ends else max(self.given, self.total - self.lookahead)
        owed = Counter(min(frame + self.lookahead, self.total - 1) + 1 for frame in range(self.given, until))
        starts = [max(0, end - self.frames) for end in owed]
        poses: list[Tensor] = []
        for start, count, window in zip(starts, owed.values(), self.decoded(starts, [*owed]), strict=True):
            poses += window[self.given - start :][:count].clone().unbind()
            self.given += count
        self.let_go(self.total - self.frames)
        return poses

    def flush(self) -> list[Tensor]:
        """The poses (P,) that are still owed, in order; the stream ends here, the next `push` begins another one."""
        poses = self.feed(self.features[:0], self.known[:0], ends=True)
        self.begin()
        return poses
