"""Where the people are: square boxes by frame and track, out of a file, from a detector, or the whole picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hmrcompress.data.box_limits import check_squares
from hmrcompress.data.warp import square_side
from hmrcompress.errors import UserError
from hmrcompress.io.jsons import read_json
from hmrcompress.io.npz import read_npz
from hmrcompress.pipeline.frames import Frame
from hmrcompress.records import CROP, CropSize

BOX_SCALE = 1.2
"""How much larger than a tight box the crop is, each way."""
FIELDS = ("frame", "track", "box", "centre", "side", "image_size")
MOST_NUMBERS = 20_000_000
"""In a column: ten hours of five people."""
LARGEST_NUMBER = 10**9
"""Of frames and tracks."""


class Box(NamedTuple):
    """A person in a frame: the centre (x, y) and the side of the square that is cut out, in pixels."""

    track: int
    centre: tuple[float, float]
    side: float


class BoxSource(Protocol):
    """Says who is where in a frame; asked for every frame once, in order."""

    @property
    def name(self) -> str:
        """As `--boxes` has it."""

    def boxes(self, frame: Frame) -> list[Box]:
        """The people of a frame, each track at most once."""


class Widening:
    """A source that knows what a crop has to hold, and widens it to the aspect of `crop`, the size of the crops that
    are cut out, which `CheckedBoxes` sets."""

    crop: CropSize = CROP


class FullFrame(Widening):
    """One person who fills the picture: the whole of it is the box."""

    name = "full"

    def boxes(self, frame: Frame) -> list[Box]:
        """A square around the whole picture; in every segment somebody else."""
        width, height = frame.size
        side = float(square_side(np.array(width), np.array(height), self.crop))
        return [Box(frame.segment, (width / 2, height / 2), side)]


def enlarged(corners: NDArray[np.float64], scale: float = BOX_SCALE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tight boxes (N,4) = (left, top, right, bottom) -> centres (N,2), and extents (N,2) = (width, height) `scale`
    times as large."""
    return (corners[:, :2] + corners[:, 2:]) / 2, scale * (corners[:, 2:] - corners[:, :2])


def squares(
    corners: NDArray[np.float64], scale: float = BOX_SCALE, crop: CropSize = CROP
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tight boxes (N,4) -> centres (N,2) and sides (N,) of the squares to cut out: `enlarged`, widened to the aspect of
    the crops, the larger side taken."""
    centre, extent = enlarged(corners, scale)
    return centre, _sides(extent, crop)


def _sides(extent: NDArray[np.float64], crop: CropSize = CROP) -> NDArray[np.float64]:
    """Extents (N,2) -> sides (N,) of squares; sides as they are."""
    return extent if extent.ndim == 1 else square_side(extent[:, 0], extent[:, 1], crop)


@dataclass
class BoxTable(Widening):
    """Boxes known ahead: frame (N,), track (N,) int64, rising by frame and track; centre (N,2); either the sides (N,)
    of squares, or the extents (N,2) = (width, height) that crops have to hold; and where it is known image_size (N,2) =
    (W, H) of the pictures that they were made for."""

    name: str
    frame: NDArray[np.int64]
    track: NDArray[np.int64]
    centre: NDArray[np.float64]
    extent: NDArray[np.float64]
    image_size: NDArray[np.float64] | None = None

    def side(self, rows: slice = slice(None)) -> NDArray[np.float64]:
        """Of the squares to cut out, of some rows."""
        return _sides(self.extent[rows], self.crop)

    def boxes(self, frame: Frame) -> list[Box]:
        """The file's boxes of this frame."""
        first, last = np.searchsorted(self.frame, (frame.number, frame.number + 1))
        rows = slice(int(first), int(last))
        return [
            Box(int(track), (float(centre[0]), float(centre[1])), float(side))
            for track, centre, side in zip(self.track[rows], self.centre[rows], self.side(rows), strict=True)
        ]

    def image_size_on(self, number: int) -> NDArray[np.float64] | None:
        """(W, H) of the picture that the boxes of a frame were made for; None where it is not known."""
        place = int(np.searchsorted(self.frame, number))
        known = self.image_size is not None and place < len(self.frame) and self.frame[place] == number
        return self.image_size[place] if known and self.image_size is not None else None


def read_boxes(path: Path, scale: float = BOX_SCALE) -> BoxTable:
    """A file of boxes: .npz with arrays, or JSON with a list `boxes` of objects, of the same fields.

    frame (counting from 0), track (a whole number; without it every frame holds one person), and either box = [left,
    top, right, bottom] around the person, which is enlarged and widened, or centre = [x, y] and side, used as they are,
    as in the params.npz that predict writes; all in pixels. image_size = [width, height], if it is there, is compared
    with the pictures. Raises UserError naming the field, also for boxes that no picture has (`data.box_limits`).
    """
    if not path.is_file():
        raise UserError("no such file of boxes", path, "Expected full, onnx:FILE, or a .json or .npz file")
    arrays = _json_arrays(path) if path.suffix == ".json" else read_npz(path, FIELDS)
    if "frame" not in arrays or not ({"box"} <= set(arrays) or {"centre", "side"} <= set(arrays)):
        raise UserError(f"has {', '.join(arrays) or 'nothing'}, expected frame, track, and box or centre, side", path)
    frame = _column(arrays, "frame", (), path)
    count = len(frame)
    track = _column(arrays, "track", (), path) if "track" in arrays else np.zeros(count)
    for name, values in (("frame", frame), ("track", track)):
        whole = (values == np.floor(values)) & (values >= 0) & (values <= LARGEST_NUMBER)
        if len(values) != count or not whole.all():
            raise UserError(f"{name}: expected {count} whole numbers from 0 to {LARGEST_NUMBER:,}", path)
    if "box" in arrays and ("centre" in arrays or "side" in arrays):
        raise UserError("has box and centre, side, of which only one can count", path, "Leave one of them out")
    if "centre" in arrays:
        centre, extent = _column(arrays, "centre", (2,), path), _column(arrays, "side", (), path)
    else:
        corners = _column(arrays, "box", (4,), path)
        if wrong := np.flatnonzero((corners[:, 2:] <= corners[:, :2]).any(1)).tolist():
            what = f"box {wrong[0]}: got {corners[wrong[0]].tolist()}, expected left, top, right, bottom"
            raise UserError(what, path, "Of left, top, width, height add the first two to the others")
        centre, extent = enlarged(corners, scale)
        check_squares(centre, squares(corners, 1.0)[1], path)
    image_size = _column(arrays, "image_size", (2,), path) if "image_size" in arrays else None
    if len(centre) != count or len(extent) != count or (image_size is not None and len(image_size) != count):
        raise UserError(f"expected {count} boxes, one for each frame and track", path)
    check_squares(centre, _sides(extent), path)
    order = np.lexsort((track, frame))
    key = np.stack([frame, track])[:, order]
    if (twice := np.flatnonzero((key[:, 1:] == key[:, :-1]).all(0))).size:
        raise UserError(f"frame {int(key[0, twice[0]])}, track {int(key[1, twice[0]])} occurs twice", path)
    return BoxTable(
        str(path),
        frame[order].astype(np.int64),
        track[order].astype(np.int64),
        centre[order],
        extent[order],
        None if image_size is None else image_size[order],
    )


def _column(arrays: Mapping[str, Any], name: str, shape: tuple[int, ...], path: Path) -> NDArray[np.float64]:
    wanted = "(N,)" if not shape else f"(N, {shape[0]})"
    try:
        found = np.asarray(arrays[name])
    except ValueError as error:  # rows that differ in length
        raise UserError(f"{name}: expected numbers {wanted}", path) from error
    if found.dtype.kind not in "fiu":
        raise UserError(f"{name}: got {found.dtype}, expected numbers {wanted}", path)
    if found.size > MOST_NUMBERS:
        raise UserError(f"{name}: holds {found.size:,} numbers, at most {MOST_NUMBERS:,} are read", path)
    values = found.astype(np.float64)
    if values.ndim != 1 + len(shape) or values.shape[1:] != shape or not len(values) or not np.isfinite(values).all():
        raise UserError(f"{name}: got shape {values.shape}, expected finite numbers {wanted}", path)
    return values


def _json_arrays(path: Path) -> dict[str, Any]:
    content = read_json(path, "a file of boxes")
    rows = content.get("boxes") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("expected a list `boxes` of objects", path)
    found: dict[str, Any] = {}
    for name in (each for each in FIELDS if each in rows[0]):
        if missing := [number for number, row in enumerate(rows) if name not in row]:
            raise UserError(f"boxes[{missing[0]}] has no {name}", path)
        found[name] = [row[name] for row in rows]
    return found
