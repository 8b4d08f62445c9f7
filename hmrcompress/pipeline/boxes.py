"""Where the people are: square boxes by frame and track, out of a file, from a detector, or the whole picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hmrcompress.data.warp import square_side
from hmrcompress.errors import UserError
from hmrcompress.io.npz import UNREADABLE
from hmrcompress.pipeline.frames import Frame

BOX_SCALE = 1.2
"""How much larger than a tight box the crop is, each way."""
FIELDS = ("frame", "track", "box", "centre", "side")


class Box(NamedTuple):
    """A person in a frame: the centre (x, y) and the side of the square that is cut out, in pixels."""

    track: int
    centre: tuple[float, float]
    side: float


class BoxSource(Protocol):
    """Says who is where in a frame; asked for every frame once, in order."""

    name: str

    def boxes(self, frame: Frame) -> list[Box]:
        """The people of a frame, each track at most once."""


class FullFrame:
    """One person who fills the picture: the whole of it is the box."""

    name = "full"

    def boxes(self, frame: Frame) -> list[Box]:
        """A square around the whole picture."""
        width, height = frame.size
        return [Box(0, (width / 2, height / 2), float(square_side(np.array(width), np.array(height))))]


def squares(corners: NDArray[np.float64], scale: float = BOX_SCALE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tight boxes (N,4) = (left, top, right, bottom) -> centres (N,2) and sides (N,) of the squares to cut out: `scale`
    times as large, widened to 192:256, the larger side taken."""
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    return centre, square_side(*(scale * (corners[:, 2:] - corners[:, :2])).T)


@dataclass(frozen=True)
class BoxTable:
    """Boxes known ahead: frame (N,), track (N,) int64, rising by frame and track; centre (N,2), side (N,)."""

    name: str
    frame: NDArray[np.int64]
    track: NDArray[np.int64]
    centre: NDArray[np.float64]
    side: NDArray[np.float64]

    def boxes(self, frame: Frame) -> list[Box]:
        """The file's boxes of this frame."""
        first, last = np.searchsorted(self.frame, (frame.number, frame.number + 1))
        return [
            Box(int(self.track[i]), (float(self.centre[i, 0]), float(self.centre[i, 1])), float(self.side[i]))
            for i in range(first, last)
        ]


def read_boxes(path: Path, scale: float = BOX_SCALE) -> BoxTable:
    """A file of boxes: .npz with arrays, or JSON with a list `boxes` of objects, of the same fields.

    frame (counting from 0), track (a whole number; without it every frame holds one person), and either box = [left,
    top, right, bottom] around the person, which `squares` enlarges, or centre = [x, y] and side, used as they are, as
    in the params.npz that predict writes. Raises UserError naming the field.
    """
    arrays = _json_arrays(path) if path.suffix == ".json" else _npz_arrays(path)
    if "frame" not in arrays or not ({"box"} <= set(arrays) or {"centre", "side"} <= set(arrays)):
        raise UserError(f"has {', '.join(arrays) or 'nothing'}, expected frame, track, and box or centre, side", path)
    frame = _column(arrays, "frame", (), path)
    count = len(frame)
    track = _column(arrays, "track", (), path) if "track" in arrays else np.zeros(count)
    for name, values in (("frame", frame), ("track", track)):
        if len(values) != count or (values != np.floor(values)).any() or (values < 0).any():
            raise UserError(f"{name}: expected {count} whole numbers from 0", path)
    if "centre" in arrays and "side" in arrays:
        centre, side = _column(arrays, "centre", (2,), path), _column(arrays, "side", (), path)
    else:
        corners = _column(arrays, "box", (4,), path)
        if wrong := np.flatnonzero((corners[:, 2:] <= corners[:, :2]).any(1)).tolist():
            raise UserError(
                f"box {wrong[0]}: got {corners[wrong[0]].tolist()}, expected left, top, right, bottom", path
            )
        centre, side = squares(corners, scale)
    if len(centre) != count or len(side) != count or (side <= 0).any():
        raise UserError(f"expected {count} boxes, one for each frame and track, with sides above 0", path)
    order = np.lexsort((track, frame))
    key = np.stack([frame, track])[:, order]
    if (twice := np.flatnonzero((key[:, 1:] == key[:, :-1]).all(0))).size:
        raise UserError(f"frame {int(key[0, twice[0]])}, track {int(key[1, twice[0]])} occurs twice", path)
    return BoxTable(str(path), frame[order].astype(np.int64), track[order].astype(np.int64), centre[order], side[order])


def _column(arrays: dict[str, Any], name: str, shape: tuple[int, ...], path: Path) -> NDArray[np.float64]:
    wanted = "(N,)" if not shape else f"(N, {shape[0]})"
    try:
        values = np.asarray(arrays[name], np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: expected numbers {wanted}", path) from error
    if values.ndim != 1 + len(shape) or values.shape[1:] != shape or not len(values) or not np.isfinite(values).all():
        raise UserError(f"{name}: got shape {values.shape}, expected finite numbers {wanted}", path)
    return values


def _npz_arrays(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError("no such file of boxes", path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in FIELDS if name in file.files}
    except UNREADABLE as error:
        raise UserError(f"torn or not an .npz file of plain arrays ({error})", path) from error


def _json_arrays(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError("no such file of boxes", path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON ({error})", path) from error
    rows = content.get("boxes") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("expected a list `boxes` of objects", path)
    found: dict[str, Any] = {}
    for name in (each for each in FIELDS if each in rows[0]):
        if missing := [number for number, row in enumerate(rows) if name not in row]:
            raise UserError(f"boxes[{missing[0]}] has no {name}", path)
        found[name] = [row[name] for row in rows]
    return found
