"""Evaluation files of 4D-Humans: an .npz whose `imgname` are paths of pictures (3DPW, Human3.6M, LSP, COCO, …).

`scale` is the box's width and height in pixels, or one number for both (unlike CameraHMR's, which are divided by 200).
Poses count only where `has_body_pose` says so of everybody in the file; the extra keypoints are the ground truth of the
protocol `3dpw14-4dhumans`. The evaluation of 4D-Humans does not blur pictures before they are made smaller.
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

KEYS = (
    "imgname", "center", "scale", "personid", "extra_keypoints_3d", "body_pose", "betas", "has_body_pose", "has_betas",
)  # fmt: skip
POSE, BETAS, KEYPOINTS = 72, 10, (19, 4)


def read(path: Path, options: Options) -> CropSet:
    """The people of a file. Pictures lie in `images`, by default the file's folder, its `images`, or the one above.

    Raises UserError.
    """
    table = read_columns(path, KEYS)
    names = safe_names(table.texts("imgname"), path)
    center = table.numbers("center", 2)
    size = table.numbers("scale", 2 if table.width("scale") > 1 else 1)
    persons = table.numbers("personid", 1)[:, 0].astype(np.int64).tolist() if "personid" in table else None
    sequence, frame = numbered(names, persons)
    unique, which = shared_pictures(names)
    poses, betas = _truth(table)
    return Annotations(
        name=path.stem,
        split="",
        fps=options.fps or 30.0,
        protocol="3dpw14-4dhumans",
        pictures=FilePictures(find_pictures(names, options.images, path), unique),
        picture=which,
        center=center,
        side=square_side(size[:, 0], size[:, -1]),
        extent=size[:, [0, -1]],
        sequence=sequence,
        frame=frame,
        poses=poses,
        betas=betas,
        keypoints=_keypoints(table),
        antialias=bool(options.antialias),
    ).crops(path)


def _truth(table: Columns) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Poses (N,24,3) and betas (N,10) where everybody has them."""
    for name in ("has_body_pose", "has_betas"):
        if name not in table or not table.flags(name).all():
            return None, None
    return table.numbers("body_pose", POSE).reshape(-1, 24, 3), table.numbers("betas", BETAS)


def _keypoints(table: Columns) -> np.ndarray | None:
    """(N,19,3) metres; None where they are all zero, as in files of pictures without 3D ground truth."""
    if "extra_keypoints_3d" not in table:
        return None
    found = table.numbers("extra_keypoints_3d", *KEYPOINTS)
    return found[..., :3] if found[..., :3].any() else None
