"""3DPW as it is distributed: DIR/sequenceFiles/SPLIT/*.pkl and DIR/imageFiles/SEQUENCE/image_00000.jpg.

The ground truth is that of the published comparisons: SMPL's parameters, posed by the body of the person's gender, and
not `jointPositions`. Frames count where `campose_valid` says so and 2D keypoints are there, which give the box: the
smallest one around those with a confidence above 0, enlarged by `box_scale` (1.2, as SPIN's preparation does). The
intrinsics give the focal length that CameraHMR is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.data.annotations import BOX_SCALE, NO_SQUARES, Annotations, squares
from hmrcompress.data.crops import CropSet
from hmrcompress.data.foreign import Columns
from hmrcompress.data.formats import Options
from hmrcompress.data.picture_sets import FilePictures
from hmrcompress.data.recordings import Sequence, in_camera, joined
from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import read_values

ANNOTATIONS, PICTURES = "sequenceFiles", "imageFiles"
SPLITS = ("test", "validation", "train", "all")
PICTURE = "image_{frame:05d}.jpg"
KEYPOINTS = 18
FPS = 30.0


def read(path: Path, options: Options) -> CropSet:
    """The sequences of a split (`test` unless said otherwise, `validation`, `train`, or `all`). Raises UserError."""
    split = options.split or SPLITS[0]
    if split not in SPLITS:
        raise UserError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}", path)
    files = sorted((path / ANNOTATIONS).glob("*/*.pkl" if split == "all" else f"{split}/*.pkl"))
    if not files:
        raise UserError(f"there is no {ANNOTATIONS}/{split}/*.pkl below it", path)
    names: list[str] = []
    found = [each for file in files for each in _people(file, names, options.box_scale or BOX_SCALE)]
    return Annotations(
        name="3dpw",
        split=split,
        fps=FPS,
        protocol="3dpw14-wham",
        pictures=FilePictures(path, names),
        antialias=bool(options.antialias),
        **joined(found),
    ).crops(path)


def _people(file: Path, names: list[str], scale: float) -> list[Sequence]:
    """The people of a sequence; its pictures are added to `names`."""
    values = read_values(file)
    if not isinstance(values, dict):
        raise UserError("expected a dictionary", file)
    sequence = values.get("sequence") if isinstance(values.get("sequence"), str) else file.stem
    if not sequence or any(part in sequence for part in ("/", "\\", "..", "\0")):
        raise UserError(f"the sequence's name {sequence!r} leads out of {PICTURES}", file)
    turns = Columns(values, file).numbers("cam_poses", 4, 4)[:, :3, :3]
    intrinsics = Columns({"cam_intrinsics": [values.get("cam_intrinsics")]}, file).numbers("cam_intrinsics", 3, 3)
    start = len(names)
    names += [f"{PICTURES}/{sequence}/{PICTURE.format(frame=frame)}" for frame in range(len(turns))]
    columns = {name: _by_person(values, name, file) for name in ("poses", "betas", "poses2d", "campose_valid")}
    genders = Columns(values, file, len(columns["poses"])).genders("genders")
    made = []
    for person, gender in enumerate(genders):
        rows_of = Columns({name: column[person] for name, column in columns.items()}, f"{file}, person {person}")
        rows_of.count = len(turns)
        made.append(_person(rows_of, f"{sequence}_{person}", int(gender), turns, intrinsics, start, scale))
    return made


def _person(
    table: Columns, name: str, gender: int, turns: np.ndarray, intrinsics: np.ndarray, start: int, scale: float
) -> Sequence:
    poses = table.numbers("poses", 72).reshape(-1, 24, 3)
    betas = Columns({"betas": [table.values["betas"]]}, table.where).numbers("betas", 10)
    points = table.numbers("poses2d", 3, KEYPOINTS)
    seen = points[:, 2] > 0
    spread = [np.where(seen, points[:, axis], fill) for axis, fill in ((0, np.inf), (1, np.inf))]
    low = np.stack([values.min(1) for values in spread], 1)
    high = np.stack([np.where(seen, points[:, axis], -np.inf).max(1) for axis in (0, 1)], 1)
    good = table.flags("campose_valid") & seen.any(1) & (high > low).all(1)
    rows = np.flatnonzero(good)
    boxes = np.concatenate([low, high], axis=1)[rows]
    box = squares(boxes, scale, table.where) if len(rows) else NO_SQUARES
    return Sequence(
        name=name,
        picture=start + rows,
        **box._asdict(),
        frame=rows,
        poses=in_camera(poses[rows], turns[rows]),
        betas=np.repeat(betas, len(rows), axis=0),
        gender=np.full(len(rows), gender, np.int8),
        focal=np.repeat(intrinsics[:, 0, 0], len(rows)),
        principal=np.repeat(intrinsics[:, :2, 2], len(rows), axis=0),
    )


def _by_person(values: Mapping[str, Any], name: str, file: Path) -> list[Any]:
    """A list with something for every person. UserError where it is none, or for another number of people."""
    found = values.get(name)
    if isinstance(found, np.ndarray) and found.ndim:
        found = list(found)
    people = values.get("poses")
    if not isinstance(found, list) or not found:
        raise UserError("expected a list by person", f"{file}: {name}")
    if isinstance(people, (list, np.ndarray)) and len(found) != len(people):
        raise UserError(f"is for {len(found)} people, poses for {len(people)}", f"{file}: {name}")
    return found
