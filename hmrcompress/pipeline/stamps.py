"""Time stamps of a video's frames as its file has them, made into times that rise from frame to frame.

Files without stamps, with the same one twice, with single ones that are wrong, and with clocks that start anew where
recordings were joined are all common. What was done to the times is counted and told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

REPEAT_SECONDS = 1e-3
"""How long after the frame before it one with the same stamp is put, or half the usual step, if that is less."""
MOST_REPEATS = 2
"""Frames in a row that may repeat a stamp; after more of them the clock is taken to stand still."""
LONGEST_GAP = 6 * 3600.0
"""Seconds without a frame beyond which a stamp is not believed; an MP4 file at 90,000 ticks a second holds no longer
ones."""
FARTHEST = 1e11
"""Seconds that the first stamp may be away from 0, or times start there: beyond, they would lose their milliseconds."""
SPIKE_SECONDS = 1.0
"""How far ahead a single stamp has to be, if those after it are behind it, to be taken for a mistake."""
Item = TypeVar("Item")


@dataclass
class StampLog:
    """How many frames had no stamp, the same as the one before, or one out of order; how often the clock jumped."""

    missing: int = 0
    repeated: int = 0
    misplaced: int = 0
    jumps: int = 0
    shortest: float | None = None
    longest: float | None = None

    def step(self, seconds: float) -> None:
        """Notes the time from one frame to the next."""
        self.shortest = seconds if self.shortest is None else min(self.shortest, seconds)
        self.longest = seconds if self.longest is None else max(self.longest, seconds)

    def notes(self, lacking: int = 0) -> Iterator[str]:
        """What was done, a sentence each. lacking: so many missing stamps are in the nature of the file."""
        if self.missing > lacking:
            yield f"{counted(self.missing, 'frame')} had no time stamp and came at the usual distance"
        if self.repeated:
            yield f"{counted(self.repeated, 'frame')} with the time stamp of the frame before, put just after it"
        if self.misplaced:
            yield f"{counted(self.misplaced, 'frame')} with a time stamp out of order, put between its neighbours"
        if self.jumps:
            yield f"its clock jumps, {counted(self.jumps, 'time')}; time goes on there, and nobody is followed across"


def counted(number: int, what: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Timed(Generic[Item]):
    """Something that was shown at `seconds`; `jumped`: the file's clock made a jump before it."""

    item: Item
    seconds: float
    jumped: bool


def risen(stamps: Iterable[tuple[float | None, Item]], step: float, log: StampLog) -> Iterator[Timed[Item]]:
    """(stamp in seconds or None, item) -> items at times that rise strictly; one item is read ahead.

    Stamps that rise are kept as they are. A frame without one comes `step` seconds after the last. Up to `MOST_REPEATS`
    equal ones are put right after each other. A single stamp between two that rise without it is replaced by the middle
    of those. Where the clock goes back, or ahead by more than `LONGEST_GAP`, it goes on one step after the last frame,
    as do all later stamps with it.
    """
    source = iter(stamps)
    present = next(source, None)
    last: float | None = None
    stamp: float | None = None
    offset, repeats = 0.0, 0
    while present is not None:
        following = next(source, None)
        before, stamp = stamp, present[0]
        now = None if stamp is None else stamp + offset
        ahead = None if following is None or following[0] is None else following[0] + offset
        jumped = False
        repeats = repeats + 1 if stamp is not None and stamp == before else 0
        if now is None or repeats > MOST_REPEATS:
            now = 0.0 if last is None else last + step
            log.missing += 1
        elif last is None:
            if abs(now) > FARTHEST:
                offset, now = -now, 0.0
                log.jumps += 1
        elif repeats:
            now = last + min(REPEAT_SECONDS, step / 2)
            log.repeated += 1
        elif ahead is not None and _strays(last, now, ahead):
            now = (last + ahead) / 2
            log.misplaced += 1
        elif following is None and now <= last:
            now = last + step
            log.misplaced += 1
        elif not 0 < now - last <= LONGEST_GAP:
            offset += last + step - now
            now, jumped = last + step, True
            log.jumps += 1
        if last is not None:
            log.step(now - last)
        yield Timed(present[1], now, jumped)
        last, present = now, following


def evenly(stamps: Iterable[tuple[float | None, Item]], fps: float) -> Iterator[Timed[Item]]:
    """The items at `fps` a second from 0, whatever their stamps."""
    for number, (_, item) in enumerate(stamps):
        yield Timed(item, number / fps, False)


def _strays(last: float, now: float, ahead: float) -> bool:
    """Whether a stamp between two that rise is before both, or far ahead of both."""
    return last < ahead <= last + LONGEST_GAP and (now <= last or (now > ahead and now - last > SPIKE_SECONDS))
