"""From frames and boxes to batches of crops: across frames and people, so that the network always has enough to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from hmrcompress.data import warp
from hmrcompress.data.conditions import bbox_info
from hmrcompress.data.crops import normalise
from hmrcompress.data.masks import MaskSource
from hmrcompress.errors import UserError
from hmrcompress.pipeline.boxes import Box
from hmrcompress.pipeline.camera import default_focal
from hmrcompress.pipeline.frames import Frame
from hmrcompress.pipeline.overlap import StageClock
from hmrcompress.pipeline.tracks import Seen, apart
from hmrcompress.records import CROP, BodyParams, CropSize, FrameBatch

IDLE_FRAMES = 256
"""Frames without anything for the network after which what there is goes on all the same."""


@dataclass(eq=False)
class Run:
    """One input, from its first frame to its last. segment: the stretch of it that is read (`frames.Frame`)."""

    segment: int = 0


class CropFrames:
    """Crops of a batch, as mask sources ask for them: clip is the track, frame the frame's number. `arrays["images"]`
    holds the crops (n,H,W,3) uint8, of that size. run: what the batches of one input have in common, so that a source
    may go on where the last batch ended; None where pictures have nothing to do with each other."""

    name = "the input"

    def __init__(self, images: np.ndarray, seen: list[Seen], size: CropSize = CROP, run: Run | None = None) -> None:
        self.arrays, self.size, self.run = {"images": images}, size, run
        self.clip = np.array([each.box.track for each in seen], np.int64)
        self.frame = np.array([each.frame for each in seen], np.int64)

    def column(self, name: str) -> np.ndarray | None:
        """The crops by the name of `images`; None for any other."""
        return self.arrays.get(name)

    def pixel_masks(self, indices: np.ndarray) -> np.ndarray | None:
        """None: pictures bring no masks."""
        return None


@dataclass
class Work:
    """Boxes in order of frames, and the crops of those that the network runs on, in the same order. newest: number of
    the last frame that was looked at, -1 for none."""

    seen: list[Seen] = field(default_factory=list)
    crops: list[np.ndarray] = field(default_factory=list)
    batch: FrameBatch | None = None
    newest: int = -1


@dataclass
class Strides:
    """Which boxes the network runs on: of each track the first, and then every `stride`-th frame or the next there
    is; a track that was away for long, or across the end of a segment, begins anew."""

    stride: int
    last_run: dict[int, int] = field(default_factory=dict)
    last_seen: dict[int, tuple[int, float, int]] = field(default_factory=dict)

    def run(self, frame: int, track: int, seconds: float = 0.0, segment: int = 0) -> bool:
        """Asked once for every box, by rising frame."""
        before, now = self.last_seen.get(track), (frame, seconds, segment)
        self.last_seen[track] = now
        if before is None or apart(before, now) or frame - self.last_run[track] >= self.stride:
            self.last_run[track] = frame
            return True
        return False


def work_batches(
    located: Iterator[tuple[Frame, list[Box]]],
    *,
    batch_size: int,
    stride: int,
    masks: MaskSource,
    focal: float | None = None,
    antialias: bool = True,
    pinned: bool = False,
    size: CropSize = CROP,
    run: Run | None = None,
    clock: StageClock,
) -> Iterator[Work]:
    """Frames and their people -> work in portions of `batch_size` crops, the last one smaller, each with the condition
    of its box; `focal` of the pictures in pixels (None: `default_focal`). size: of the crops. Pinned memory is for
    copies to a GPU. run: of which these frames are a part, by default one of their own. Raises UserError, from the mask
    source too."""
    strides, work, whole = Strides(stride), Work(), run or Run()
    begun, last = -1, None
    for frame, boxes in located:
        if frame.segment != whole.segment:
            if work.seen:
                yield _finished(work, frame.number - 1, masks, focal, pinned, size, whole, clock)
                work, begun = Work(), frame.number
            whole = Run(frame.segment)
        common = None if frame.seconds is None else whole
        for box in boxes:
            seconds = frame.seconds or 0.0
            runs = strides.run(frame.number, box.track, seconds, frame.segment)
            seen = Seen(frame.number, box, frame.size, runs, seconds, frame.segment)
            if seen.run:
                with clock("crop"):
                    centre = np.array(box.centre)
                    work.crops.append(warp.crop(frame.image, centre, box.side, size=size, antialias=antialias))
            work.seen.append(seen)
            if len(work.crops) == batch_size:
                yield _finished(work, frame.number - 1, masks, focal, pinned, size, common, clock)
                work, begun = Work(), frame.number
        work.newest = frame.number
        if work.newest - begun >= IDLE_FRAMES:
            yield _finished(work, work.newest, masks, focal, pinned, size, common, clock)
            work, begun = Work(), frame.number
        last = common
    yield _finished(work, work.newest, masks, focal, pinned, size, last, clock)


def _finished(
    work: Work,
    newest: int,
    masks: MaskSource,
    focal: float | None,
    pinned: bool,
    size: CropSize,
    run: Run | None,
    clock: StageClock,
) -> Work:
    work.newest = max(work.newest, newest)
    if not work.crops:
        return work
    chosen = [each for each in work.seen if each.run]
    with clock("crop"):
        pixels = np.stack(work.crops)
        images = normalise(pixels)
        images = images.pin_memory() if pinned else images
    with clock("mask"):
        crops, rows = CropFrames(pixels, chosen, size, run), np.arange(len(chosen))
        masks.check(crops, rows)
        person = masks.person(crops, rows)
    if person is not None and person.shape[0] != len(chosen):
        raise UserError(f"gives {person.shape[0]} masks for {len(chosen)} crops", masks.name)
    nothing = torch.zeros(len(chosen), 0, 3, 3)
    truth = BodyParams(nothing, nothing, torch.zeros(len(chosen), 0))
    clip, frame = torch.from_numpy(crops.clip), torch.from_numpy(crops.frame)
    condition = bbox_info(
        np.array([each.box.centre for each in chosen]),
        np.array([each.box.side for each in chosen]),
        np.array([each.size for each in chosen]),
        np.array([focal or default_focal(each.size, size) for each in chosen]),
    )
    work.batch, work.crops = FrameBatch(images, person, truth, clip, frame, condition), []
    return work
