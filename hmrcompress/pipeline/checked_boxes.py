"""Boxes held against the pictures that they are for, whatever they come from: what cannot be meant is refused or left
out, and at the end told with the numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hmrcompress.data.box_limits import OTHER_PICTURE, beside, off_centre, reach, too_large
from hmrcompress.errors import MOST_LISTED, UserError, some, tell
from hmrcompress.pipeline.boxes import Box, BoxSource, BoxTable, Widening
from hmrcompress.pipeline.frames import Frame
from hmrcompress.records import CROP, CropSize

MOST_PEOPLE = 100
"""In one frame; of more, the largest are read."""


@dataclass
class _Cases:
    """How often something was seen, and the first times."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: object) -> None:
        self.count += 1
        if self.count <= MOST_LISTED:
            self.first.append(str(text))

    def __str__(self) -> str:
        return some(self.first, self.count)


class CheckedBoxes:
    """A source of boxes that checks them; `finish` tells, after the last frame. same_size: all pictures have the size
    of the first. crop: the size of the crops that are cut out. `frames` counts those seen."""

    def __init__(self, source: BoxSource, *, same_size: bool, crop: CropSize = CROP) -> None:
        self.crop = crop
        if isinstance(source, Widening):
            source.crop = crop
        self.source, self.name, self.same_size = source, source.name, same_size
        self.table = source if isinstance(source, BoxTable) else None
        self.frames, self.newest, self.read = 0, -1, 0
        self.empty, self.beside, self.off_centre, self.crowded = _Cases(), _Cases(), _Cases(), _Cases()
        self.reach = np.zeros(2)

    def boxes(self, frame: Frame) -> list[Box]:
        """The people of a frame who are on its picture, at most `MOST_PEOPLE`. UserError for a box that is absurd next
        to the picture, or was made for another one."""
        found, size = self.source.boxes(frame), np.array(frame.size, np.float64)
        self.frames, self.newest = self.frames + 1, frame.number
        if self.table is not None:
            self._check_table(self.table, frame)
        if not found:
            self.empty.add(frame.number)
            return found
        centre, side = np.array([box.centre for box in found]), np.array([box.side for box in found])
        if (bad := ~np.isfinite(centre).all(1) | ~(np.isfinite(side) & (side > 0))).any():
            what = f"frame {frame.number}: {found[int(bad.argmax())]}, expected finite numbers and a side above 0"
            raise UserError(what, self.name)
        if (large := too_large(side, size)).any():
            what = f"frame {frame.number}: {_box(found[int(large.argmax())])} on a picture of {_size(size)}"
            raise UserError(what, self.name, OTHER_PICTURE)
        self.reach = np.maximum(self.reach, ((centre + side[:, None] * reach(self.crop)) / size).max(0))
        outside, astray = beside(centre, side, size, self.crop), off_centre(centre, size)
        for cases, which in ((self.beside, outside), (self.off_centre, astray & ~outside)):
            for place in np.flatnonzero(which):
                cases.add(f"frame {frame.number}: {_box(found[place])} on {_size(size)}")
        found = [box for box, out in zip(found, outside, strict=True) if not out]
        if len(found) > MOST_PEOPLE:
            self.crowded.add(f"{len(found)} on frame {frame.number}")
            order = sorted(range(len(found)), key=lambda place: -found[place].side)
            found = [found[place] for place in sorted(order[:MOST_PEOPLE])]
        self.read += len(found)
        return found

    def _check_table(self, table: BoxTable, frame: Frame) -> None:
        made_for = table.image_size_on(frame.number)
        if made_for is not None and (made_for != frame.size).any():
            what = f"frame {frame.number}: its boxes are of a picture of {_size(made_for)}, this one has"
            raise UserError(f"{what} {_size(frame.size)}", self.name, "Scale the boxes")
        if (
            self.same_size
            and self.frames == 1
            and beside(table.centre, table.side(), np.array(frame.size), self.crop).all()
        ):
            first = Box(0, (float(table.centre[0, 0]), float(table.centre[0, 1])), float(table.side()[0]))
            what = f"all of its {len(table.centre)} boxes lie beside the picture: {_box(first)} on {_size(frame.size)}"
            raise UserError(what, self.name, OTHER_PICTURE)

    def finish(self, *, whole: bool, length: int = 0) -> None:
        """Tells what was left out, and what looks wrong. whole: to the end of what there is, `length` frames or as many
        as came. UserError where nobody was on any picture."""
        past = self._past_the_end(max(length, self.newest + 1)) if whole else ""
        if not self.read:
            if self.beside.count:
                raise UserError(f"all of its boxes lie beside the pictures ({self.beside})", self.name, OTHER_PICTURE)
            raise UserError("nobody was found on any frame", self.name, past or "See --boxes")
        if past:
            tell(past, self.name)
        if self.table is not None and self.empty.count:
            tell(f"no box on {self.empty.count} of {self.frames} frames: {self.empty}", self.name)
        for cases, what, remedy in (
            (self.beside, "boxes beside the picture, left out", f". {OTHER_PICTURE}"),
            (self.off_centre, "boxes whose middle is outside of the picture", f". {OTHER_PICTURE}"),
            (self.crowded, f"frames with more than {MOST_PEOPLE} people, of whom the largest were read", ""),
        ):
            if cases.count:
                tell(f"{what}: {cases.count} ({cases}){remedy}", self.name)
        if self.table is not None and (self.reach <= 0.5).all():
            right, down = self.reach
            tell(f"no box reaches further than {right:.0%} of the width and {down:.0%} of the height. {OTHER_PICTURE}",
                 self.name)  # fmt: skip

    def _past_the_end(self, end: int) -> str:
        if self.table is None or not (late := self.table.frame[self.table.frame >= end]).size:
            return ""
        frames = f"frame {late.min()}" if len(late) == 1 else f"frames {late.min()} to {late.max()}"
        one_based = self.table.frame.min() == 1 and late.max() == end
        hint = "; are its frames counted from 1?" if one_based else ""
        count = f"{len(late)} of its {len(self.table.frame)} boxes ({frames})"
        return f"past the end: {count}, as there are {end} frames, counted from 0{hint}"


def _size(size: tuple[int, int] | np.ndarray) -> str:
    return f"{size[0]:.0f}x{size[1]:.0f}"


def _box(box: Box) -> str:
    return f"a square around {box.centre[0]:.0f}, {box.centre[1]:.0f} with a side of {box.side:.0f}"
