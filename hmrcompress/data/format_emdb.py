"""EMDB as it is distributed: DIR/P*/SEQUENCE/*_data.pkl with pictures in `images/`.

Frames count where `good_frames_mask` says so and a box is there. Poses are turned into the camera frame by the
extrinsics; betas belong to the body of the person's gender. The boxes of the data set are enlarged by `box_scale`
(1.2, as GVHMR does). The intrinsics give the focal length that CameraHMR is told.
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
from hmrcompress.data.picture_folders import list_pictures
from hmrcompress.data.picture_sets import FilePictures
from hmrcompress.data.recordings import Sequence, in_camera, joined
from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import read_values

PATTERNS = ("*_data.pkl", "*/*_data.pkl", "*/*/*_data.pkl")
SUBSETS = ("emdb1", "emdb2", "all")
FPS = 30.0


def read(path: Path, options: Options) -> CropSet:
    """The sequences of a subset (`emdb1` unless said otherwise, `emdb2`, or `all`) below a folder. Raises UserError."""
    subset = options.subset or SUBSETS[0]
    if subset not in SUBSETS:
        raise UserError(f"subset: got {subset!r}, expected one of {', '.join(SUBSETS)}", path)
    files = sorted({file for pattern in PATTERNS for file in path.glob(pattern)})
    if not files:
        raise UserError("there is no *_data.pkl below it", path, "Name the folder that holds P0, P1, …")
    names: list[str] = []
    found = []
    for file in files:
        values = read_values(file)
        if not isinstance(values, dict):
            raise UserError("expected a dictionary", file)
        if subset == "all" or _flag(values, subset, file):
            found.append(_sequence(values, file, path, names, options.box_scale or BOX_SCALE))
    if not found:
        raise UserError(f"no sequence of {subset} is in it", path, "Try subset=all")
    parts = joined(found)
    return Annotations(
        name="emdb",
        split=subset,
        fps=FPS,
        protocol="emdb24-kinematic",
        pictures=FilePictures(path, names),
        antialias=bool(options.antialias),
        **parts,
    ).crops(path)


def _sequence(values: Mapping[str, Any], file: Path, root: Path, names: list[str], scale: float) -> Sequence:
    smpl, camera = _part(values, "smpl", file), _part(values, "camera", file)
    body = Columns(smpl, f"{file}: smpl")
    poses = np.concatenate([body.numbers("poses_root", 3), body.numbers("poses_body", 69)], axis=1).reshape(-1, 24, 3)
    count = len(poses)
    boxes = Columns(_part(values, "bboxes", file), f"{file}: bboxes", count).numbers("bboxes", 4)
    good = Columns(values, file, count).flags("good_frames_mask")
    try:
        invalid = np.asarray(values["bboxes"].get("invalid_idxs", ()), np.float64).reshape(-1)
    except (ValueError, TypeError) as error:
        raise UserError("expected numbers of frames", f"{file}: bboxes: invalid_idxs") from error
    for index in invalid[np.isfinite(invalid)].astype(np.int64):
        if 0 <= index < count:
            good[index] = False
    good &= np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    rows = np.flatnonzero(good)
    turns = Columns(camera, f"{file}: camera", count).numbers("extrinsics", 4, 4)[:, :3, :3]
    betas = Columns({"betas": [smpl.get("betas")]}, f"{file}: smpl").numbers("betas", 10)
    intrinsics = Columns({"intrinsics": [camera.get("intrinsics")]}, f"{file}: camera").numbers("intrinsics", 3, 3)
    gender = Columns({"gender": [values.get("gender")]}, file).genders("gender")
    box = squares(boxes[rows], scale, file) if len(rows) else NO_SQUARES
    return Sequence(
        name="/".join(file.parent.relative_to(root).parts) or file.parent.name,
        picture=_pictures(file.parent / "images", root, count, names, file)[rows],
        **box._asdict(),
        frame=rows,
        poses=in_camera(poses[rows], turns[rows]),
        betas=np.repeat(betas, len(rows), axis=0),
        gender=np.repeat(gender, len(rows)),
        focal=np.repeat(intrinsics[:, 0, 0], len(rows)),
        principal=np.repeat(intrinsics[:, :2, 2], len(rows), axis=0),
    )


def _pictures(folder: Path, root: Path, count: int, names: list[str], file: Path) -> np.ndarray:
    """Numbers (T,) of a sequence's pictures, which are added to `names`: those of the folder, sorted."""
    if not folder.is_dir():
        raise UserError("there is no folder of this sequence's pictures", folder)
    found = list_pictures(folder).files
    if len(found) != count:
        raise UserError(f"has {len(found)} pictures, {file.name} {count} frames", folder)
    start = len(names)
    names += [each.relative_to(root).as_posix() for each in found]
    return np.arange(start, start + count)


def _part(values: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    found = values.get(name)
    if not isinstance(found, dict):
        raise UserError(f"there is no dictionary {name} in it", file)
    return found


def _flag(values: Mapping[str, Any], name: str, file: Path) -> bool:
    if name not in values:
        raise UserError(f"there is no {name} in it", file)
    return bool(np.all(values[name]))
