"""A frame in, its bodies out, for cameras and robots: nothing is looked at ahead, and nothing is written."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hmrcompress.errors import UserError
from hmrcompress.pipeline.boxes import BoxSource
from hmrcompress.pipeline.camera import default_focal
from hmrcompress.pipeline.checked_boxes import CheckedBoxes
from hmrcompress.pipeline.columns import columns_of
from hmrcompress.pipeline.frames import Frame
from hmrcompress.pipeline.overlap import StageClock
from hmrcompress.pipeline.predict import Reader, predicted
from hmrcompress.pipeline.tracks import TrackStream
from hmrcompress.pipeline.work import Run, work_batches

Bodies = dict[str, NDArray[np.generic]]
REMEMBERED = 100
"""Frames whose times `latency` tells of."""
AT_A_TIME = 100
"""People of a frame that the network sees at once: all."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a frame's coming to its bodies, of the last `frames` (at most 100): median and worst.
    lookahead: frames that have to come after a frame before its bodies are known."""

    frames: int
    median_ms: float
    worst_ms: float
    lookahead: int = 0


@dataclass
class FrameByFrame:
    """Bodies of one frame after the other. Every body is the network's own answer to its crop: the temporal decoder of
    a model is not asked, since it has to wait for frames to come. focal: of the pictures in pixels, None for HMR2.0's
    guess."""

    reader: Reader
    boxes: BoxSource
    focal: float | None = None
    antialias: bool = True
    _number: int = field(default=0, init=False)
    _last: float | None = field(default=None, init=False)
    _size: tuple[int, ...] = field(default=(), init=False)
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED), init=False)
    _checked: CheckedBoxes = field(init=False)
    _run: Run = field(default_factory=Run, init=False)

    def __post_init__(self) -> None:
        self._checked = CheckedBoxes(self.boxes, same_size=False, crop=self.reader.crop)

    def __call__(self, image: NDArray[np.uint8], seconds: float | None = None) -> Bodies:
        """image (H,W,3) uint8 RGB; seconds: when it was taken, on any clock that rises, by default this machine's.

        Gives the columns of params.npz (`pipeline.columns.columns_of`) for the people of this frame, n rows each, by
        track; no columns where nobody is seen. Where the size changes everybody is somebody new. Raises UserError.
        """
        begun = time.perf_counter()
        now = time.monotonic() if seconds is None else float(seconds)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise UserError(f"got a picture {image.shape} of {image.dtype}, expected (H, W, 3) uint8, RGB", "image")
        if not np.isfinite(now) or (self._last is not None and now <= self._last):
            raise UserError(f"got {now:g} after {self._last}, expected seconds that rise", "seconds")
        if self._size and image.shape != self._size:
            self._run = Run(self._run.segment + 1)
        self._last, self._size = now, image.shape
        frame = Frame(self._number, np.ascontiguousarray(image), f"frame {self._number}", now, self._run.segment)
        self._number += 1
        made = self._bodies(frame)
        self._took.append(time.perf_counter() - begun)
        return made

    def _bodies(self, frame: Frame) -> Bodies:
        found = sorted(self._checked.boxes(frame), key=lambda box: box.track)
        if not found:
            return {}
        clock = StageClock()
        works = work_batches(
            iter([(frame, found)]),
            batch_size=AT_A_TIME,
            stride=1,
            masks=self.reader.masks,
            focal=self.focal,
            antialias=self.antialias,
            pinned=self.reader.device.type == "cuda",
            size=self.reader.crop,
            run=self._run,
            clock=clock,
        )
        parts = []
        for work, answers in predicted(works, self.reader, clock):
            for seen, answer in zip(work.seen, answers, strict=True):
                stream = TrackStream(seen.box.track)
                for rows in stream.push([seen], [answer]) + stream.flush():
                    focal = np.full(len(rows.frame), self.focal or default_focal(frame.size, self.reader.crop))
                    parts.append(columns_of(rows, self.reader.body, focal, root_centred=self.reader.root_centred))
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return joined | {"time": np.full(len(joined["track"]), frame.seconds, np.float64)}

    @property
    def latency(self) -> Latency:
        """Of the frames so far; zeros before the first."""
        took = 1000 * np.array(self._took or [0.0])
        return Latency(len(self._took), float(np.median(took)), float(took.max()))
