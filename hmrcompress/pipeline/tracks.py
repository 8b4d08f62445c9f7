"""One person through time: predictions on some frames become a body on every frame, in bounded memory.

A track's timeline runs from its first frame to its last; frames without a box of their own, and those that a stride
skips, are filled in, by the times at which frames are shown. Where a track is away for too long, or the video begins
another segment, a new timeline begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.readout import decoder_inputs
from hmrcompress.decoder.uneven import UnevenStream
from hmrcompress.decoder.windows import ClipStream
from hmrcompress.evaluation.timelines import LONGEST_HOLE, Timeline, interpolated, neighbours
from hmrcompress.pipeline.boxes import Box
from hmrcompress.records import BodyParams

LONGEST_PAUSE = 2.0
"""Seconds between two frames of a track beyond which what lies on either side is no longer one movement."""
STEPS_A_SECOND = 30.0
"""Of a decoder, where its model does not say at what rate it was trained."""


class Seen(NamedTuple):
    """A box of a frame, the (width, height) of its picture, and whether the network runs on it. seconds: when the frame
    is shown; segment: of the video (see `pipeline.frames.Frame`)."""

    frame: int
    box: Box
    size: tuple[int, int]
    run: bool
    seconds: float = 0.0
    segment: int = 0


def apart(before: tuple[int, float, int], now: tuple[int, float, int]) -> bool:
    """Whether a track begins anew between two of its frames, given as (number, seconds, segment)."""
    pause = round(now[1] - before[1], 3)  # videos of a frame every two seconds are to be treated alike throughout
    away = now[0] - before[0] > LONGEST_HOLE + 1 or pause > LONGEST_PAUSE
    return away or now[2] != before[2]


class Prediction(NamedTuple):
    """The network's answer to one crop, float32 on the CPU: features (D,), rotations (J,3,3), betas (S,), cam (3,)."""

    features: Tensor
    rotations: Tensor
    betas: Tensor
    cam: Tensor


@dataclass(frozen=True)
class Rows:
    """Bodies of one track on n frames that follow each other. rotations (n,J,3,3), betas (n,S), cam (n,3) of the
    square box with centre (n,2) and side (n,), size (n,2) = (W, H) of the picture; run (n,) bool: the network ran;
    seconds (n,) float64, segment (n,) int64 of the frames."""

    track: int
    frame: Tensor
    rotations: Tensor
    betas: Tensor
    cam: Tensor
    centre: Tensor
    side: Tensor
    size: Tensor
    run: Tensor
    seconds: Tensor
    segment: Tensor

    @property
    def params(self) -> BodyParams:
        """Pose and shape."""
        return BodyParams(self.rotations[:, :1], self.rotations[:, 1:], self.betas)

    def cut(self, part: slice) -> Self:
        """Some of the rows."""
        return self.changed(**{name: getattr(self, name)[part] for name in _TENSORS})

    def changed(self, **values: Any) -> Self:
        """The same with fields replaced."""
        return type(self)(**{each.name: getattr(self, each.name) for each in fields(self)} | values)


_TENSORS = tuple(each.name for each in fields(Rows) if each.name != "track")


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(parts[0].track, *(torch.cat([getattr(each, name) for each in parts]) for name in _TENSORS))


class TrackStream:
    """The rows of a track as they become known: between two predictions as soon as the second is there, with a decoder
    as soon as its windows are. `steps` and `seed` are of its denoising; the track's number is added to the seed."""

    def __init__(
        self,
        track: int,
        *,
        decoder: TemporalDecoder | None = None,
        codec: PoseCodec | None = None,
        steps: int = 1,
        seed: int = 0,
        times: Sequence[float] | None = None,
        rate: float = STEPS_A_SECOND,
    ) -> None:
        self.track, self.codec = track, codec
        self.decoder, self.steps, self.seed = decoder, steps, seed + track
        self.times, self.rate = times, rate
        self.newest, self.even = -1, True
        self._begin()

    def _begin(self) -> None:
        self.seen: list[Seen] = []
        self.predictions: list[Prediction | None] = []
        self.owed: list[Rows] = []
        self.open, self.start = True, 0.0
        self.stream: UnevenStream | None = None
        if self.decoder is not None:
            self.stream = UnevenStream(ClipStream(self.decoder, steps=self.steps, seed=self.seed))

    def push(self, seen: Sequence[Seen], predictions: Sequence[Prediction | None]) -> list[Rows]:
        """The track's next boxes, by rising frame, with what the network said of those that it ran on."""
        made: list[Rows] = []
        for each, prediction in zip(seen, predictions, strict=True):
            if self.seen and apart(_place(self.seen[-1]), _place(each)):
                made += self.flush()
            self.newest = each.frame
            self.seen.append(each)
            self.predictions.append(prediction)
        return made + self._advance(last=False)

    def flush(self) -> list[Rows]:
        """What is still owed; the timeline ends, and the next box begins another."""
        made = self._advance(last=True)
        self._begin()
        return made

    def _advance(self, *, last: bool) -> list[Rows]:
        """Interpolates up to the newest prediction (`last`: to the end) and feeds the decoder with that."""
        known = [place for place, each in enumerate(self.predictions) if each is not None]
        rows = None
        if known and (last or known[-1] > 0 or self.open):
            end = len(self.seen) - 1 if last else known[-1]
            rows, features = self._filled(known, end)
            self.start = float(rows.seconds[0]) if self.open else self.start
            # The newest prediction is where the next stretch begins; it has been given already.
            self.seen, self.predictions, self.open = self.seen[known[-1] :], self.predictions[known[-1] :], False
        if self.stream is None:
            return [rows] if rows is not None and len(rows.frame) else []
        poses = self.stream.nothing()
        if rows is not None and len(rows.frame):
            self.owed.append(rows)
            poses = self.stream.push(features, rows.run, self._places(rows))
        if last:
            poses = torch.cat([poses, self.stream.flush()])
        self.even &= self.stream.even
        return self._decoded(poses.cpu())

    def _filled(self, known: list[int], end: int) -> tuple[Rows, Tensor]:
        """Rows of every frame from the one after those given up to `end`, and what the decoder reads of each."""
        given = [self.predictions[place] for place in known]
        found = [each for each in given if each is not None]
        first, length = self.seen[0].frame, self.seen[end].frame - self.seen[0].frame + 1
        frames = np.arange(first, first + length)
        seconds = self._seconds(frames)
        timeline = Timeline(
            self.track,
            first,
            length,
            torch.tensor([self.seen[place].frame - first for place in known]),
            torch.stack([each.features for each in found]),
            _params(torch.stack([each.rotations for each in found]), torch.stack([each.betas for each in found])),
            torch.from_numpy(seconds),
        )
        bodies = interpolated(timeline)
        before, after, weight = neighbours(timeline)
        cams = torch.stack([each.cam for each in found])
        shown = self.seen[: end + 1]
        at = self._seconds(np.array([each.frame for each in shown]))
        numbers = np.array([(*each.box.centre, each.box.side, *each.size) for each in shown], np.float64)
        boxes = torch.from_numpy(np.stack([np.interp(seconds, at, column) for column in numbers.T], 1))
        rows = Rows(
            self.track,
            torch.from_numpy(frames),
            bodies.rotations,
            bodies.betas,
            torch.lerp(cams[before], cams[after], weight[:, None]),
            boxes[:, :2],
            boxes[:, 2],
            boxes[:, 3:],
            timeline.known,
            torch.from_numpy(seconds),
            torch.full((length,), shown[0].segment),
        )
        fresh = slice(0 if self.open else 1, None)
        return rows.cut(fresh), self._inputs(timeline)[fresh]

    def _seconds(self, frames: np.ndarray) -> np.ndarray:
        """When frames (n,) are shown: (n,) float64."""
        if self.times is None:
            return frames / self.rate
        return np.array([self.times[frame] for frame in frames], np.float64)

    def _places(self, rows: Rows) -> list[float]:
        """Where rows lie along the decoder's steps, the first one of the timeline at 0."""
        return ((rows.seconds - self.start) * self.rate).tolist()

    def _inputs(self, timeline: Timeline) -> Tensor:
        """What the decoder reads of each frame, (T,config.input_dim), zeros where nothing is known; (T,0) without."""
        if self.decoder is None or self.codec is None:
            return timeline.features.new_zeros(timeline.length, 0)
        device = self.codec.leaf_index.device
        given = timeline.features.to(device), timeline.params.to(device)
        return timeline.spread(decoder_inputs(self.decoder.config, self.codec, *given).cpu())

    def _decoded(self, poses: Tensor) -> list[Rows]:
        """The owed rows that poses (n,P) have come for, with the decoder's rotations."""
        if not len(poses) or self.codec is None:
            return []
        rows = _joined(self.owed)
        done, rest = rows.cut(slice(0, len(poses))), rows.cut(slice(len(poses), None))
        self.owed = [rest] if len(rest.frame) else []
        device = self.codec.leaf_index.device
        rotations = self.codec.decode(poses.to(device), done.betas.to(device)).rotations.cpu()
        return [done.changed(rotations=rotations)]


def _place(seen: Seen) -> tuple[int, float, int]:
    return seen.frame, seen.seconds, seen.segment


def _params(rotations: Tensor, betas: Tensor) -> BodyParams:
    return BodyParams(rotations[:, :1], rotations[:, 1:], betas)
