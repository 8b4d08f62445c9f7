"""`Annotations`: what a reader finds in a data set, and how it becomes a `CropSet` whose crops are cut on demand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from hmrcompress.data.box_limits import LARGEST, beside
from hmrcompress.data.conditions import bbox_info
from hmrcompress.data.crops import CropSet
from hmrcompress.data.on_demand import OnDemand
from hmrcompress.data.picture_sets import Pictures, picture, picture_sha256, picture_size
from hmrcompress.data.pictures import turn
from hmrcompress.data.warp import crop, square_side
from hmrcompress.errors import UserError, tell
from hmrcompress.records import CROP, CropSize

GENDERS = {"neutral": 0, "male": 1, "female": 2}
"""Numbers of the genders in the column `gender`."""
BOX_SCALE = 1.2
"""How much larger than a box around somebody (or around keypoints) the crop is, each way."""
CLOCKWISE = 6
"""Exif's number of pictures that are turned so to be shown."""
NEAR_MIDDLE = 0.1
"""How far from the middle a principal point may be, as a share of half the picture."""
LAST_NUMBER = re.compile(r"(\d+)\D*$")


@dataclass(frozen=True)
class Annotations:
    """N people in pictures, in any order.

    picture (N,): which of `pictures` each is in. center (N,2) = (x, y) and side (N,): its square box, pixels of that
    picture, widened to 192:256; extent (N,2): width and height that it was widened from, NaN (or None for everybody)
    where the file has squares, which are cut out as they are. size: of the crops.
    sequence: N names of clips; frame (N,): numbers in the clip that follow each other at `fps`.

    Where known: poses (N,24,3) axis-angle in the camera frame, root first, and betas (N,10), SMPL's; gender (N,)
    numbers of `GENDERS`; keypoints (N,19,3) metres, 4D-Humans' extra ones; focal (N,) and principal (N,2) pixels of the
    picture. protocol: how such data are scored by default. antialias: whether small crops of large boxes are cut from
    blurred pictures. left_out: how many people were passed over, by reason.

    Everything is told of upright pictures. One that lies on its side in its file, which the principal point tells
    (`lies`), is turned clockwise where `turns` says that the data set stores some so, and refused where not.
    """

    name: str
    split: str
    fps: float
    protocol: str
    pictures: Pictures
    picture: np.ndarray
    center: np.ndarray
    side: np.ndarray
    sequence: Sequence[str]
    frame: np.ndarray
    poses: np.ndarray | None = None
    betas: np.ndarray | None = None
    gender: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    focal: np.ndarray | None = None
    principal: np.ndarray | None = None
    extent: np.ndarray | None = None
    size: CropSize = CROP
    turns: bool = False
    antialias: bool = False
    left_out: dict[str, int] | None = None
    told: set[str] = field(default_factory=set, compare=False)

    def crops(self, where: object) -> CropSet:
        """The people as a set of crops. UserError for boxes and other numbers that make no sense."""
        if not len(self.picture):
            raise UserError("there is nobody in it", where)
        self._check(where)
        clips, clip = np.unique(np.asarray(_apart(self.sequence, self.frame)), return_inverse=True)
        count = len(self.picture)
        known = {"poses": self.poses, "betas": self.betas, "keypoints": self.keypoints}
        arrays = {
            "images": OnDemand((count, *self.size.pixels, 3), np.uint8, self._cut, self._cut_from),
            "clip": clip.astype(np.int64),
            "frame": np.asarray(self.frame, np.int64),
            **{name: np.asarray(values, np.float32) for name, values in known.items() if values is not None},
        }
        if self.gender is not None:
            arrays["gender"] = np.asarray(self.gender, np.int8)
        if self.focal is not None:
            arrays["conditions"] = OnDemand((count, 3), np.float32, self._conditions)
        meta = {
            "schema": 1,
            "name": self.name,
            "split": self.split,
            "fps": float(self.fps),
            "sha256": self.sha256,
            "body": {"name": "SMPL"},
            "protocol": self.protocol,
            "clips": clips.tolist(),
            "left_out": dict(self.left_out or {}),
        }
        names = [self.pictures.names[number] for number in self.picture]
        return CropSet(
            arrays, meta, where=where, pictures=names, anew=lambda size: replace(self, size=size).crops(where)
        )

    @cached_property
    def squares(self) -> np.ndarray:
        """(N,) sides of the squares that crops of this size are the middle of, pixels of the pictures."""
        if self.extent is None or self.size.same_shape(CROP):
            return self.side
        extent = np.asarray(self.extent, np.float64)
        widened = square_side(extent[:, 0], extent[:, 1], self.size)
        return np.where(np.isnan(widened), self.side, widened)

    @property
    def sha256(self) -> str:
        """Hash of the names of the pictures and of all annotations, not of pixels."""
        names = [self.pictures.names[number] for number in self.picture]
        digest = hashlib.sha256(json.dumps([names, list(self.sequence), self.fps, self.antialias]).encode())
        for name in ("center", "side", "frame", "poses", "betas", "gender", "keypoints", "focal", "principal"):
            values = getattr(self, name)
            if values is not None:
                digest.update(name.encode() + np.ascontiguousarray(values, "<f8").tobytes())
        if self.size.pixels != CROP.pixels:
            digest.update(f"{self.size}".encode() + np.ascontiguousarray(self.squares, "<f8").tobytes())
        return digest.hexdigest()

    def _check(self, where: object) -> None:
        for name in ("center", "side", "poses", "betas", "keypoints", "focal", "principal"):
            values = getattr(self, name)
            if values is None:
                continue
            bad = ~np.isfinite(np.asarray(values, np.float64).reshape(len(self.picture), -1)).all(1)
            if name in ("side", "focal"):
                bad |= np.asarray(values) <= 0
            if name in ("center", "side"):
                bad |= (np.abs(np.asarray(values, np.float64)).reshape(len(self.picture), -1) > LARGEST).any(1)
            if bad.any():
                place = f"{where}: {name} of {self.pictures.names[self.picture[int(bad.argmax())]]}"
                raise UserError("holds NaN, infinity or, of a box or a focal length, pixels that no picture has", place)

    def _cut(self, rows: np.ndarray) -> np.ndarray:
        """(n,H,W,3) uint8; a picture is decoded once for all the rows that are in it."""
        made = np.empty((len(rows), *self.size.pixels, 3), np.uint8)
        numbers = self.picture[rows]
        for number in np.unique(numbers):
            decoded = picture(self.pictures, int(number))
            if decoded.note:
                self._tell(int(number), decoded.note)
            whole = decoded.image
            if self._lies(int(number), (whole.shape[1], whole.shape[0])):
                whole = turn(whole, CLOCKWISE)
            for place in np.flatnonzero(numbers == number):
                row = rows[place]
                self._tell_beside(row, whole.shape)
                made[place] = crop(
                    whole, self.center[row], float(self.squares[row]), size=self.size, antialias=self.antialias
                )
        return made

    def _size(self, number: int) -> tuple[int, int]:
        """(width, height) of a picture, upright."""
        width, height = picture_size(self.pictures, number)
        return (height, width) if self._lies(number, (width, height)) else (width, height)

    def _lies(self, number: int, size: tuple[int, int]) -> bool:
        """Whether a picture lies on its side. UserError where such a one is not to be turned; once a data set that
        some are turned is told."""
        if self.principal is None or not lies(self.principal[int((self.picture == number).argmax())], size):
            return False
        if not self.turns:
            what = f"a picture of {size[0]}x{size[1]}, whose camera's principal point is that of an upright one"
            raise UserError(what, self.pictures.place(number), "Turn it as the camera was held")
        self._tell(number, "lies on its side and is turned clockwise")
        return True

    def _tell_beside(self, row: int, shape: tuple[int, ...]) -> None:
        """Evaluations are made of all boxes, but a crop without its picture is worth a word."""
        size = np.array(shape[1::-1])
        if beside(self.center[row, None], self.squares[row, None], size, self.size)[0]:
            self._tell(int(self.picture[row]), f"its box lies beside the picture of {size[0]}x{size[1]}")

    def _tell(self, number: int, what: str) -> None:
        """Of one picture, the first of perhaps many."""
        kind = what.rstrip("0123456789x ")
        if kind not in self.told:
            self.told.add(kind)
            tell(f"{what} (perhaps others, too)", self.pictures.place(number))

    def _cut_from(self, rows: np.ndarray) -> str:
        """Hash of what these crops are cut from and where: the files of their pictures, which need not be decoded."""
        resized = "" if self.size.pixels == CROP.pixels else f" {self.size}"
        digest = hashlib.sha256(f"{self.antialias} {self.turns}{resized}".encode())
        for number in np.unique(self.picture[rows]):
            digest.update(picture_sha256(self.pictures, int(number)).encode())
        where = np.unique(self.picture[rows], return_inverse=True)[1]
        principal = np.empty(0) if self.principal is None else self.principal[rows]
        for values in (where, self.center[rows], self.squares[rows], principal):
            digest.update(np.ascontiguousarray(values, "<f8").tobytes())
        return digest.hexdigest()

    def _conditions(self, rows: np.ndarray) -> np.ndarray:
        """(n,3) float32, see `conditions.bbox_info`."""
        assert self.focal is not None
        sizes = {int(number): self._size(int(number)) for number in np.unique(self.picture[rows])}
        image_size = np.array([sizes[int(number)] for number in self.picture[rows]], np.float64)
        return bbox_info(self.center[rows], self.squares[rows], image_size, self.focal[rows]).numpy()


def lies(principal: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a picture of this (width, height) lies on its side: its camera's principal point (2,) = (x, y) is near
    the middle of a picture as high as this one is wide, and nearer than to its own middle. Pixels."""
    width, height = size
    upright = max(abs(2 * principal[0] / width - 1), abs(2 * principal[1] / height - 1))
    lying = max(abs(2 * principal[0] / height - 1), abs(2 * principal[1] / width - 1))
    return bool(lying < NEAR_MIDDLE and upright > 2 * lying)


def frame_number(name: str) -> int:
    """The last number in a picture's file name (its last 18 digits), 0 where there is none."""
    found = LAST_NUMBER.search(PurePosixPath(name).stem)
    return int(found[1][-18:]) if found else 0


def sequence_name(name: str, person: int | str | None = None) -> str:
    """The clip that a picture is of: its folder, what its file is called but for the last number, and the person."""
    path = PurePosixPath(name)
    stem = LAST_NUMBER.sub("", path.stem).rstrip("_-. ")
    parts = [part for part in (str(path.parent).strip("."), stem) if part]
    folder = "/".join(parts) or "all"
    return folder if person is None else f"{folder}:{person}"


def numbered(names: Sequence[str], persons: Sequence[int | str] | None = None) -> tuple[list[str], np.ndarray]:
    """Clips and frame numbers (N,) of pictures by their names, and by who is in them where that is known."""
    who = [None] * len(names) if persons is None else persons
    sequences = [sequence_name(name, person) for name, person in zip(names, who, strict=True)]
    return sequences, np.array([frame_number(name) for name in names], np.int64)


def _apart(sequences: Sequence[str], frames: np.ndarray) -> list[str]:
    """Clips in which no frame occurs twice: the second of the same frame goes to a clip with #2 after its name."""
    seen: dict[tuple[str, int], int] = {}
    found = []
    for sequence, frame in zip(sequences, np.asarray(frames).tolist(), strict=True):
        times = seen[sequence, frame] = seen.get((sequence, frame), 0) + 1
        found.append(sequence if times == 1 else f"{sequence}#{times}")
    return found


def find_pictures(names: Sequence[str], images: Path | None, file: Path) -> Path:
    """The folder that the names of the pictures in a file start from: `images`, or, without it, the first in which the
    first picture lies of the file's folder, its `images`, and the one above. UserError naming where it was looked for.
    """
    places = [file.parent, file.parent / "images", file.absolute().parent.parent] if images is None else [images]
    if not names:
        return places[0]
    for place in places:
        if (place / names[0]).is_file():
            return place
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise UserError(f"the picture {names[0]} is not in {looked}", file, "Say where the pictures lie: ,images=DIR")


def safe_names(names: Sequence[str], where: object) -> list[str]:
    """Names of pictures with slashes. UserError for one that leads out of the folder of the pictures."""
    found = [str(name).replace("\\", "/").removeprefix("./") for name in names]
    for name in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name or "\0" in name:
            raise UserError(f"the picture's name {name!r} leads out of its folder", where)
    return found


def shared_pictures(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Pictures by name, each once, and which of them (N,) each person is in."""
    unique, which = np.unique(np.asarray(names), return_inverse=True)
    return unique.tolist(), which.reshape(-1)


class Squares(NamedTuple):
    """As `Annotations` has them: center (…,2), side (…) and extent (…,2)."""

    center: np.ndarray
    side: np.ndarray
    extent: np.ndarray


def squares(corners: np.ndarray, scale: float, where: object) -> Squares:
    """Boxes (…,4) = (left, top, right, bottom) around people -> their squares: `scale` times as large, widened to
    192:256, the larger side taken. UserError for boxes without any pixels."""
    size = corners[..., 2:] - corners[..., :2]
    if not (size > 0).all():
        raise UserError("expected left, top, right, bottom of a box with pixels in it", where)
    side = square_side(scale * size[..., 0], scale * size[..., 1])
    return Squares((corners[..., :2] + corners[..., 2:]) / 2, side, scale * size)


NO_SQUARES = Squares(np.empty((0, 2)), np.empty(0), np.empty((0, 2)))
