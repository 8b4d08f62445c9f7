"""Files of CameraHMR and BEDLAM: an .npz with the cameras' intrinsics.

`scale` is the square box's side divided by 200 (a second number, where there is one, its height); `pose_cam` are 24 (or
22, hands at rest) rotations in the camera frame, `shape` betas, of which the first ten are used; `cam_int` gives the
focal length that CameraHMR is told. BEDLAM stores the pictures of its close-up scenes lying on their side, while its
files are of upright ones: these are turned. Their evaluation does not blur pictures before they are made smaller.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hmrcompress.data.annotations import Annotations, find_pictures, numbered, safe_names, shared_pictures
from hmrcompress.data.crops import CropSet
from hmrcompress.data.foreign import Columns, read_columns
from hmrcompress.data.formats import Options
from hmrcompress.data.picture_sets import FilePictures
from hmrcompress.data.warp import square_side
from hmrcompress.errors import UserError, tell

KEYS = ("imgname", "center", "scale", "pose_cam", "shape", "cam_int", "gender", "sub", "personid")
UNIT = 200.0
"""Pixels that boxes are counted in."""
POSE, SHORT_POSE, BETAS = 72, 66, 10
OTHER_BODIES = {156: "SMPL-H", 165: "SMPL-X"}
"""Numbers a pose of other bodies has. Their first 22 joints are SMPL's."""


def read(path: Path, options: Options) -> CropSet:
    """The people of a file. Pictures lie in `images`, by default the file's folder, its `images`, or the one above.

    Raises UserError.
    """
    table = read_columns(path, KEYS)
    names = safe_names(table.texts("imgname"), path)
    center = table.numbers("center", 2)
    single = table.width("scale") <= 1
    size = UNIT * table.numbers("scale", 1 if single else 2)
    camera = table.numbers("cam_int", 3, 3) if "cam_int" in table else None
    sequence, frame = numbered(names, _persons(table))
    unique, which = shared_pictures(names)
    return Annotations(
        name=path.stem,
        split="",
        fps=options.fps or 30.0,
        protocol="3dpw14-camerahmr",
        pictures=FilePictures(find_pictures(names, options.images, path), unique),
        picture=which,
        center=center,
        side=size[:, 0] if single else square_side(size[:, 0], size[:, 1]),
        extent=None if single else size,
        sequence=sequence,
        frame=frame,
        poses=_poses(table),
        betas=table.numbers("shape", BETAS) if "pose_cam" in table else None,
        gender=table.genders("gender") if "gender" in table else None,
        focal=None if camera is None else camera[:, 0, 0],
        principal=None if camera is None else camera[:, :2, 2],
        turns=True,
        antialias=bool(options.antialias),
    ).crops(path)


def _persons(table: Columns) -> list[int | str] | None:
    """Who each is: BEDLAM's `sub` or `personid`."""
    if "sub" in table:
        return list(table.texts("sub"))
    return table.numbers("personid", 1)[:, 0].astype(np.int64).tolist() if "personid" in table else None


def _poses(table: Columns) -> np.ndarray | None:
    """(N,24,3) axis-angle, or None where the file has none. Of other bodies than SMPL, which is told, only the joints
    that SMPL has too: behind them come fingers or the face. UserError for rows of another length."""
    if "pose_cam" not in table:
        return None
    width = table.width("pose_cam")
    if width not in (POSE, SHORT_POSE, *OTHER_BODIES):
        others = " or ".join(f"{numbers} ({name})" for numbers, name in OTHER_BODIES.items())
        expected = f"expected {SHORT_POSE} or {POSE} (SMPL), {others}"
        raise UserError(f"got {width} numbers a person, {expected}", f"{table.where}: pose_cam")
    if width in OTHER_BODIES:
        name = OTHER_BODIES[width]
        tell(
            f"its poses are {name}'s, of which SMPL's joints are read; {name}'s shapes are others on SMPL", table.where
        )
    rows = table.numbers("pose_cam", POSE if width == POSE else SHORT_POSE)
    return np.pad(rows, ((0, 0), (0, POSE - rows.shape[1]))).reshape(-1, 24, 3)
