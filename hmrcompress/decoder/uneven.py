"""Clips whose frames do not follow each other evenly, through a decoder that knows even steps only."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hmrcompress.decoder.windows import ClipStream

SNAP = 0.04
"""Of a step: frames that are no further from one lie on it. Stamps in whole milliseconds are off by that at 30 steps a
second."""


class _Answer(NamedTuple):
    """What the network says (input_dim,) near a step, and how far from it, in steps."""

    features: Tensor
    distance: float


class UnevenStream:
    """A `ClipStream` whose frames lie at any rising places along its steps. The network's answers are put on the steps
    nearest to them (of several the nearest one counts), steps without any are unknown to the decoder, and the pose of a
    frame between two steps is linear between theirs. Frames on consecutive steps come back as from the `ClipStream`.

    even: whether all frames so far lay on steps that follow each other.
    """

    def __init__(self, stream: ClipStream) -> None:
        self.stream, self.even = stream, True
        self.step = 0  # the newest one, which a later frame may still be nearest to
        self.answer: _Answer | None = None
        self.owed: list[float] = []
        self.poses, self.first = stream.nothing(), 0
        self.newest: float | None = None

    def push(self, features: Tensor, known: Tensor, places: list[float]) -> Tensor:
        """features (n,input_dim), known (n,) bool of the next n frames and their places in steps from the first one,
        0 -> the poses (m,P) that are finished, in their order."""
        made: list[Tensor | None] = []
        for row, given, place in zip(features, known.tolist(), places, strict=True):
            place = round(place) if abs(place - round(place)) <= SNAP else place
            self.even &= self.newest is None or place == self.newest + 1
            nearest = math.floor(place + 0.5)
            while self.step < nearest:
                made.append(self._pass())
            distance = abs(place - nearest)
            if given and (self.answer is None or distance < self.answer.distance):
                self.answer = _Answer(row, distance)
            self.newest = place
            self.owed.append(place)
        return self._finished(self._given(made))

    def flush(self) -> Tensor:
        """The poses (m,P) that are still owed. The clip ends here."""
        made: list[Tensor | None] = []
        while self.newest is not None and self.step <= math.ceil(self.newest):
            made.append(self._pass())
        return self._finished(torch.cat([self._given(made), self.stream.flush()]))

    def nothing(self) -> Tensor:
        """No poses: (0,P)."""
        return self.stream.nothing()

    def _pass(self) -> Tensor | None:
        """What is known at the newest step, which is left behind."""
        answer, self.answer = self.answer, None
        self.step += 1
        return None if answer is None else answer.features

    def _given(self, steps: list[Tensor | None]) -> Tensor:
        """Hands the next steps to the decoder."""
        if not steps:
            return self.nothing()
        blank = torch.zeros(self.stream.decoder.config.input_dim, device=self.stream.device)
        features = torch.stack([blank if each is None else each.to(blank) for each in steps])
        return self.stream.push(features, torch.tensor([each is not None for each in steps]))

    def _finished(self, poses: Tensor) -> Tensor:
        """Poses of the frames whose steps are all there; lets go of steps before the next frame."""
        self.poses = torch.cat([self.poses, poses])
        there = self.first + len(self.poses)
        count = sum(math.ceil(place) < there for place in self.owed)
        places = torch.tensor(self.owed[:count], dtype=torch.float64, device=self.poses.device)
        self.owed = self.owed[count:]
        before, after = (rows.long() - self.first for rows in (places.floor(), places.ceil()))
        share = (places - places.floor()).to(self.poses.dtype)[:, None]
        made = torch.lerp(self.poses[before], self.poses[after], share)
        kept = min(math.floor(self.owed[0]), there) if self.owed else there
        self.poses, self.first = self.poses[kept - self.first :], kept
        return made
