"""What a detector finds, followed from frame to frame: boxes with the numbers of their tracks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from hmrcompress.pipeline.boxes import BOX_SCALE, Box, Widening, squares
from hmrcompress.pipeline.frames import Frame
from hmrcompress.pipeline.tracking import LOW_SCORE, Tracker

__all__ = ["LOW_SCORE", "Followed"]
Array = NDArray[np.float64]


class Followed(Widening, ABC):
    """A source of boxes that looks for people in every `every`-th frame and follows them; on the frames in between they
    are where their movement should have brought them. scale: see `boxes.enlarged`."""

    def __init__(self, name: str, *, scale: float = BOX_SCALE, every: int = 1) -> None:
        self.name, self.scale, self.every = name, scale, every
        self.tracker, self.segment = Tracker(), 0
        self.looked: int | None = None

    @abstractmethod
    def people(self, image: NDArray[np.uint8]) -> tuple[Array, Array]:
        """Corners (n,4) = (left, top, right, bottom) in pixels and scores (n,) of the people in a picture (H,W,3) RGB,
        best first, from `LOW_SCORE` on. Raises UserError."""

    def boxes(self, frame: Frame) -> list[Box]:
        """People in the frame, under the numbers of their tracks. Raises UserError as `people`."""
        if frame.segment != self.segment or frame.seconds is None:  # None: pictures that have nothing to do with it
            self.segment, self.looked = frame.segment, None
            self.tracker.forget()
        if self.looked is not None and frame.number - self.looked < self.every:
            numbers, corners = self.tracker.expected(frame.number)
        else:
            self.looked = frame.number
            found, scores = self.people(frame.image)
            sound = (found[:, 2:] - found[:, :2] > 1).all(1)
            given = np.array(self.tracker.update(frame.number, found[sound], scores[sound]), np.int64)
            numbers, corners = given[given >= 0].tolist(), found[sound][given >= 0]
        centres, sides = squares(corners, self.scale, self.crop)
        return [
            Box(number, (float(centre[0]), float(centre[1])), float(side))
            for number, centre, side in zip(numbers, centres, sides, strict=True)
        ]
