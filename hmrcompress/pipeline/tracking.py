"""Which detection is whom: tracks by overlap of boxes from frame to frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hmrcompress.data.people import overlap

Corners = NDArray[np.float64]
LEAST_OVERLAP = 0.3
PATIENCE = 30
"""Frames that a track may be unseen before its number is given up."""


def overlaps(first: Corners, second: Corners) -> NDArray[np.float64]:
    """Intersection over union of boxes (N,4) and (M,4) = (left, top, right, bottom) -> (N,M) in 0..1."""
    return np.stack([overlap(first, other) for other in second], axis=1) if len(second) else np.empty((len(first), 0))


class Tracker:
    """Gives every box of a frame the number of its track; call `update` once a frame, in order.

    Boxes and tracks are paired so that the sum of overlaps is greatest (Hungarian method); a pair below
    `least_overlap` is none, and its box begins a new track.
    """

    def __init__(self, least_overlap: float = LEAST_OVERLAP, patience: int = PATIENCE) -> None:
        self.least_overlap, self.patience = least_overlap, patience
        self.last: dict[int, tuple[int, Corners]] = {}
        self.begun = 0

    def forget(self) -> None:
        """Everybody who comes is somebody new."""
        self.last.clear()

    def update(self, frame: int, corners: Corners) -> list[int]:
        """corners (N,4) of the frame -> N numbers of tracks, all different."""
        from scipy.optimize import linear_sum_assignment

        self.last = {track: seen for track, seen in self.last.items() if frame - seen[0] <= self.patience}
        numbers = [-1] * len(corners)
        if self.last and len(corners):
            tracks = list(self.last)
            score = overlaps(corners, np.stack([self.last[track][1] for track in tracks]))
            # What is too far apart is worth nothing, so that no good pair is given up for it.
            score[score < self.least_overlap] = 0
            for row, column in zip(*linear_sum_assignment(score, maximize=True), strict=True):
                if score[row, column] > 0:
                    numbers[row] = tracks[column]
        for row in range(len(corners)):
            if numbers[row] < 0:
                numbers[row] = self.begun
                self.begun += 1
            self.last[numbers[row]] = (frame, corners[row])
        return numbers
