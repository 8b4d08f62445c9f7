"""Clips whose end is not known yet, as `clips.decode_clip` decodes them, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from hmrcompress.decoder.clips import OVERLAP_SHARE, window_noise, window_starts
from hmrcompress.decoder.model import TemporalDecoder


class ClipStream:
    """Pose numbers of a clip, fed piece by piece: those of `decode_clip` on the whole clip, each as soon as no later
    frame can change it, at most two windows after its own. Holds at most three windows, however long the clip is."""

    def __init__(self, decoder: TemporalDecoder, *, overlap: int | None = None, steps: int = 1, seed: int = 0) -> None:
        """Arguments as of `decode_clip`. Raises UserError for a wrong overlap."""
        self.decoder, self.steps, self.noise = decoder, steps, window_noise(decoder, seed)
        self.frames = decoder.config.frames
        self.overlap = self.frames // OVERLAP_SHARE if overlap is None else overlap
        window_starts(1, self.frames, self.overlap)
        self.device = decoder.pose_mean.device
        self.features = torch.zeros(0, decoder.config.input_dim, device=self.device)
        self.known = torch.zeros(0, dtype=torch.bool, device=self.device)
        self.first = self.total = self.next = self.given = 0
        self.windows: list[tuple[int, Tensor, Tensor]] = []

    def push(self, features: Tensor, known: Tensor) -> Tensor:
        """features (n,config.input_dim), known (n,) bool of the next n frames -> the poses (m,P) that are finished, in
        their order."""
        self.features = torch.cat([self.features, features.to(self.device, torch.float32)])
        self.known = torch.cat([self.known, known.to(self.device)])
        self.total += len(features)
        made = [self.nothing()]
        while self.total > self.next + self.frames:
            self._decode(self.next)
            made.append(self._finished(self.next))
            # The last window may begin right after this one.
            kept = self.next + 1 - self.first
            self.features, self.known, self.first = self.features[kept:], self.known[kept:], self.next + 1
            self.next += self.frames - self.overlap
        return torch.cat(made)

    def flush(self) -> Tensor:
        """The poses (m,P) that are still owed. The clip ends here."""
        if self.total == self.given:
            return self.nothing()
        self._decode(max(0, self.total - self.frames))
        return self._finished(self.total)

    def nothing(self) -> Tensor:
        """No poses: (0,P)."""
        return torch.zeros(0, self.decoder.pose_mean.shape[-1], device=self.device)

    @torch.no_grad()
    def _decode(self, start: int) -> None:
        """Decodes the window there, and fades it and the one before it into each other."""
        part = slice(start - self.first, start - self.first + self.frames)
        features, known = self.features[part], self.known[part]
        short = self.frames - len(features)
        valid = torch.arange(self.frames, device=self.device) < len(features)
        features = torch.cat([features, features.new_zeros(short, features.shape[1])])
        known = torch.cat([known, known.new_zeros(short)])
        poses = self.decoder(features[None], known[None], valid[None], steps=self.steps, noise=self.noise)[0]
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
        total, mass = like.new_zeros(count, like.shape[1]), like.new_zeros(count, 1)
        for start, poses, weights in self.windows:
            low, high = max(start, self.given), min(start + self.frames, until)
            if low < high:
                there, here = slice(low - self.given, high - self.given), slice(low - start, high - start)
                total[there] += weights[here, None] * poses[here]
                mass[there] += weights[here, None]
        self.given = until
        self.windows = [each for each in self.windows if each[0] + self.frames > until]
        return total / mass
