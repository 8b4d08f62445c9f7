"""Which detection is whom: tracks by overlap with where a steady movement would have brought each person.

After ByteTrack (Zhang et al. 2022): people who were surely seen are matched first, then those who were hardly seen,
which is how somebody behind another keeps the number. Movement is a Kalman filter of constant velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmrcompress.data.people import overlap

Corners = NDArray[np.float64]
LEAST_OVERLAP, LEAST_OVERLAP_LOW = 0.3, 0.5
"""Of a box with the one that is expected of its track: where it was surely seen, and where hardly."""
HIGH_SCORE, LOW_SCORE = 0.5, 0.2
"""From the first on a box may begin a track, from the second on it may go on with one."""
PATIENCE = 30
"""Frames that a track may be unseen before its number is given up."""
PLACE_NOISE, SPEED_NOISE = 1 / 20, 1 / 160
"""Standard deviations of a box's place and of the change of its speed in a frame, as shares of its height (DeepSORT,
Wojke et al. 2017)."""


def overlaps(first: Corners, second: Corners) -> NDArray[np.float64]:
    """Intersection over union of boxes (N,4) and (M,4) = (left, top, right, bottom) -> (N,M) in 0..1."""
    return np.stack([overlap(first, other) for other in second], axis=1) if len(second) else np.empty((len(first), 0))


@dataclass
class Motion:
    """A box that moves steadily, known with some doubt: `place` and `speed` a frame (4,) of centre x, centre y, width
    and height; `doubt` (2,2), their covariance, the same for all four, as all have the same noise. By itself each is
    the textbook's Kalman filter."""

    place: NDArray[np.float64]
    speed: NDArray[np.float64]
    doubt: NDArray[np.float64]

    @classmethod
    def begun(cls, corners: NDArray[np.float64]) -> Motion:
        """At a box (4,), of a speed that is not known."""
        place = _middle(corners)
        height = place[3]
        return cls(place, np.zeros(4), np.diag([2 * PLACE_NOISE * height, 10 * SPEED_NOISE * height]) ** 2)

    @property
    def corners(self) -> NDArray[np.float64]:
        """The box (4,)."""
        half = np.maximum(self.place[2:], 1.0) / 2
        return np.concatenate([self.place[:2] - half, self.place[:2] + half])

    def go_on(self, frames: int) -> None:
        """So many frames later."""
        for _ in range(frames):
            height = max(self.place[3], 1.0)
            self.place = self.place + self.speed
            step = np.array([[1.0, 1.0], [0.0, 1.0]])
            noise = np.diag([PLACE_NOISE * height, SPEED_NOISE * height]) ** 2
            self.doubt = step @ self.doubt @ step.T + noise

    def see(self, corners: NDArray[np.float64]) -> None:
        """Seen at a box (4,)."""
        seen = _middle(corners)
        noise = (PLACE_NOISE * max(self.place[3], 1.0)) ** 2
        gain = self.doubt[:, 0] / (self.doubt[0, 0] + noise)
        off = seen - self.place
        self.place, self.speed = self.place + gain[0] * off, self.speed + gain[1] * off
        self.doubt = self.doubt - np.outer(gain, self.doubt[0])


def _middle(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([(corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]])


@dataclass
class _Track:
    number: int
    seen: int
    motion: Motion


class Tracker:
    """Gives every box of a frame the number of its track; call `update` once a frame, in order.

    Boxes and tracks are paired so that the sum of overlaps is greatest (Hungarian method); what overlaps less than
    `least_overlap` is no pair. Boxes from `HIGH_SCORE` on are paired first, and begin tracks where they have none; the
    others are paired with tracks that were there when it was last looked, and go on with those alone.
    """

    def __init__(self, least_overlap: float = LEAST_OVERLAP, patience: int = PATIENCE) -> None:
        self.least_overlap, self.patience = least_overlap, patience
        self.tracks: list[_Track] = []
        self.begun = 0
        self.now = self.looked = -1

    def forget(self) -> None:
        """Everybody who comes is somebody new."""
        self.tracks.clear()

    def update(self, frame: int, corners: Corners, scores: NDArray[np.float64] | None = None) -> list[int]:
        """corners (N,4) of the frame, scores (N,), all sure where there are none -> N numbers of tracks, all different;
        -1 for boxes that are nobody."""
        self._go_on(frame)
        before, self.looked = self.looked, frame
        sure = np.ones(len(corners), bool) if scores is None else scores >= HIGH_SCORE
        numbers = np.full(len(corners), -1)
        paired = self._pair(corners, numbers, np.flatnonzero(sure), self.tracks, self.least_overlap)
        left = [track for track in self.tracks if track not in paired and track.seen == before]
        self._pair(corners, numbers, np.flatnonzero(~sure), left, LEAST_OVERLAP_LOW)
        for row in np.flatnonzero(sure & (numbers < 0)):
            numbers[row] = self.begun
            self.tracks.append(_Track(self.begun, frame, Motion.begun(corners[row])))
            self.begun += 1
        return [int(number) for number in numbers]

    def expected(self, frame: int) -> tuple[list[int], Corners]:
        """Who was there when it was last looked: numbers of tracks, and where they should be on a later frame (N,4)."""
        self._go_on(frame)
        there = [track for track in self.tracks if track.seen == self.looked]
        return [track.number for track in there], np.array([track.motion.corners for track in there]).reshape(-1, 4)

    def _go_on(self, frame: int) -> None:
        self.tracks = [track for track in self.tracks if frame - track.seen <= self.patience]
        for track in self.tracks:
            track.motion.go_on(frame - self.now)
        self.now = frame

    def _pair(
        self, corners: Corners, numbers: NDArray[np.int64], rows: NDArray[np.int64], tracks: list[_Track], least: float
    ) -> list[_Track]:
        """Gives boxes `rows` numbers of tracks, and the tracks the boxes; the tracks that have one."""
        from scipy.optimize import linear_sum_assignment

        if not tracks or not len(rows):
            return []
        score = overlaps(corners[rows], np.stack([track.motion.corners for track in tracks]))
        # What is too far apart is worth nothing, so that no good pair is given up for it.
        score[score < least] = 0
        paired = []
        for row, column in zip(*linear_sum_assignment(score, maximize=True), strict=True):
            if score[row, column] > 0:
                track = tracks[column]
                numbers[rows[row]] = track.number
                track.motion.see(corners[rows[row]])
                track.seen = self.now
                paired.append(track)
        return paired
