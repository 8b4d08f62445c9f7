"""Masks in files that somebody made: a PNG a frame, one .npz, or one JSON of run lengths, all of the size of crops.

Which of their pixels are the person's is read in `data.mask_pixels`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.mask_pixels import Value, open_png, parse_value, person_of_levels, person_of_png
from hmrcompress.data.masks import MaskedFrames, coverage_grid, person_tokens
from hmrcompress.data.rle import decode_rle
from hmrcompress.errors import UserError, tell
from hmrcompress.io.hashes import sha256_file, sha256_files, sha256_json
from hmrcompress.io.jsons import read_json
from hmrcompress.io.npz import read_npz
from hmrcompress.records import CropSize

MASK_FILE = "{clip:04d}_{frame:06d}.png"
ARCHIVE, RUNS = "masks.npz", "masks.json"
SAID_VALUE = ",value="
"""What comes between the path and the value in the name of masks."""
NOBODY_TOLD = 8
"""Masks of nobody in a row that are worth a word: perhaps the value is a wrong one."""
Frame = tuple[int, int]
Table = Mapping[Frame, Callable[[CropSize], np.ndarray]]


class FileMasks:
    """A folder of PNG files of the size of the crops (192x256, width x height, for HMR2.0 and its kin),
    `{clip:04d}_{frame:06d}.png`; a folder with a `masks.npz` or a `masks.json`; or such a file itself (docs/masks.md).
    value: the greys or indices that are the
    person's, in PNG files and in arrays of whole numbers; None for what is not background (`data.mask_pixels`).
    UserError where there is nothing at the path."""

    def __init__(self, path: Path, value: Value | None = None) -> None:
        self.path, self.value = path, value
        said = "" if value is None else f"{SAID_VALUE}{value[0]}" + (f"-{value[1]}" if value[1] != value[0] else "")
        self.name = f"files:{path}{said}"
        self.nobody = 0
        self._table_sha256 = ""
        if not (path.is_dir() or path.is_file()):
            raise UserError("no such folder of masks", path)

    @property
    def sha256(self) -> str:
        """Hash of all masks that are there, of the PNG files as they are now, of one file as it was when it was read,
        and of what counts as the person. UserError where it cannot be read."""
        if self._table is None:
            return sha256_json([self.value, sha256_files(self.path, self.path.glob("*.png"))])
        return sha256_json([self.value, self._table_sha256])

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """UserError for the first frame whose mask is missing, unreadable, or of another size; of the first frame's it
        is read whether it says a mask."""
        for place, frame in enumerate(_frames(crops, indices)):
            if self._table is not None:
                self._entry(self._table, frame)
            elif place:
                with open_png(self._png(frame), crops.size):
                    pass
            if not place:
                self._mask(frame, crops.size)

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """(n,*grid) bool."""
        frames = _frames(crops, indices)
        masks = np.stack([self._mask(frame, crops.size) for frame in frames])
        for frame, mask in zip(frames, masks, strict=True):
            self.nobody = 0 if mask.any() else self.nobody + 1
            if self.nobody == NOBODY_TOLD:
                tell(
                    f"nobody on {NOBODY_TOLD} masks one after the other, to clip {frame[0]}, frame {frame[1]}",
                    self.name,
                )
        return person_tokens(coverage_grid(torch.from_numpy(masks), crops.size))

    def _mask(self, frame: Frame, size: CropSize) -> np.ndarray:
        """(H,W) bool."""
        if self._table is None:
            return person_of_png(self._png(frame), self.value, size)
        return self._entry(self._table, frame)(size)

    def _entry(self, table: Table, frame: Frame) -> Callable[[CropSize], np.ndarray]:
        if frame not in table:
            raise UserError(f"no mask of clip {frame[0]}, frame {frame[1]}", self.path, "One a frame is needed")
        return table[frame]

    def _png(self, frame: Frame) -> Path:
        return self.path / MASK_FILE.format(clip=frame[0], frame=frame[1])

    @cached_property
    def _table(self) -> Table | None:
        """Where the mask of each frame is to be had; None for a folder of PNG files."""
        file = self.path
        if self.path.is_dir():
            there = [self.path / name for name in (ARCHIVE, RUNS) if (self.path / name).is_file()]
            if len(there) > 1:
                raise UserError(f"holds {ARCHIVE} and {RUNS}", self.path, "Name one of them")
            if not there:
                return None
            file = there[0]
        table = _table_of(file, self.value)
        self._table_sha256 = sha256_file(file)
        return table


def _frames(crops: MaskedFrames, indices: np.ndarray) -> list[Frame]:
    return [(int(crops.clip[i]), int(crops.frame[i])) for i in indices]


def open_file_masks(text: Path) -> FileMasks:
    """`PATH` or `PATH,value=N[-M]` -> the masks. UserError."""
    path, comma, value = str(text).rpartition(SAID_VALUE)
    return FileMasks(Path(path), parse_value(value)) if comma and path else FileMasks(text)


def _table_of(path: Path, value: Value | None) -> Table:
    if path.suffix == ".npz":
        return _of_npz(path, value)
    if path.suffix == ".json":
        if value is not None:
            raise UserError("run lengths have no values", path, "Leave value= out")
        return _of_json(path)
    raise UserError("got a file, expected a folder of PNG files, or a file ending in .npz or .json", path)


def _of_npz(path: Path, value: Value | None) -> Table:
    arrays = read_npz(path, ("clip", "frame", "masks"))
    if missing := [name for name in ("clip", "frame", "masks") if name not in arrays]:
        raise UserError(f"no array {', '.join(missing)}", path)
    clip, frame, masks = (arrays[name] for name in ("clip", "frame", "masks"))
    for name, values in (("clip", clip), ("frame", frame)):
        if values.ndim != 1 or values.shape != masks.shape[:1] or values.dtype.kind not in "iu":
            raise UserError(f"got {values.dtype} {values.shape}, expected whole numbers, one a mask", f"{path}: {name}")

    def mask(row: int, size: CropSize) -> np.ndarray:
        packed = masks.shape[1:] == size.packed and masks.dtype == np.uint8
        if not packed and (masks.shape[1:] != size.pixels or masks.dtype.kind not in "bui"):
            rows, columns = size.pixels
            forms = f"bools or whole numbers (N,{rows},{columns}), or packed bits (N,{rows},{size.packed[1]})"
            raise UserError(f"got {masks.dtype} {masks.shape}, expected {forms}", f"{path}: masks")
        if value is not None and (packed or masks.dtype.kind == "b"):
            raise UserError("bits have no values", f"{path}: masks", "Leave value= out")
        if packed:
            return np.unpackbits(masks[row], axis=-1, count=size.width).astype(bool)
        where = f"{path}: masks of clip {clip[row]}, frame {frame[row]}"
        return person_of_levels(masks[row], value, where) if masks.dtype.kind != "b" else masks[row]

    frames = list(zip(clip.tolist(), frame.tolist(), strict=True))
    if len(found := {key: _later(mask, row) for row, key in enumerate(frames)}) != len(frames):
        twice = next(key for key, count in Counter(frames).items() if count > 1)
        raise UserError(f"clip {twice[0]}, frame {twice[1]} occurs twice", path)
    return found


def _of_json(path: Path) -> Table:
    found: dict[Frame, list[Any]] = {}
    for frame, segmentation in _annotations(read_json(path), path):
        found.setdefault(frame, []).append(segmentation)

    def mask(parts: list[Any], frame: Frame, size: CropSize) -> np.ndarray:
        where = f"{path}: clip {frame[0]}, frame {frame[1]}"
        return np.logical_or.reduce([decode_rle(part, size.pixels, where) for part in parts])

    return {frame: _later(mask, parts, frame) for frame, parts in found.items()}


def _later(function: Callable[..., np.ndarray], *arguments: Any) -> Callable[[CropSize], np.ndarray]:
    return lambda size: function(*arguments, size)


def _annotations(content: Any, path: Path) -> list[tuple[Frame, Any]]:
    """Frame and segmentation of every entry of a list of {clip, frame, segmentation}, or of a COCO file whose images
    are named `{clip:04d}_{frame:06d}`."""
    if isinstance(content, list):
        entries = [(entry, entry) for entry in content]
    elif isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations")):
        frames = {_plain_id(image, "id", path): _named_frame(image, path) for image in content["images"]}
        entries = []
        for entry in content["annotations"]:
            image = _plain_id(entry, "image_id", path)
            if image not in frames:
                raise UserError(f"an annotation of image {image!r}, which is not in the file", path)
            entries.append((frames[image], entry))
    else:
        raise UserError("neither a list of {clip, frame, segmentation} nor a COCO file", path)
    found = []
    for named, entry in entries:
        keys = ("clip", "frame", "segmentation")
        if not isinstance(entry, dict) or not isinstance(named, dict) or "segmentation" not in entry:
            raise UserError(f"an entry without {', '.join(keys)}", path)
        frame = (named.get("clip"), named.get("frame"))
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in frame):
            raise UserError(f"clip and frame: got {frame}, expected whole numbers", path)
        found.append((frame, entry["segmentation"]))
    return found  # type: ignore[return-value]


def _plain_id(entry: Any, key: str, path: Path) -> int | str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, (int, str)):
        raise UserError(f"an entry whose {key} is {value!r}, expected a number or a text", path)
    return value


def _named_frame(image: dict[str, Any], path: Path) -> dict[str, int]:
    clip, _, frame = Path(str(image.get("file_name", ""))).stem.partition("_")
    if not (clip.isascii() and clip.isdigit() and frame.isascii() and frame.isdigit()):
        got = image.get("file_name")
        raise UserError(f"an image named {got!r}, expected its clip and frame such as 0001_000005.png", path)
    return {"clip": int(clip[:18]), "frame": int(frame[:18])}
