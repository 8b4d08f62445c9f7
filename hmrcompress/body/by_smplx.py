"""Bodies as the package smplx opens them: `smplx:FOLDER`, in the layout that `smplx.create` takes.

Files are read by our own readers, which execute nothing; smplx's classes, which would unpickle them, get the arrays
alone. Joints, shapes and surfaces of SMPL, SMPL-H, SMPL-X and MANO are different ones, and numbers of one mean nothing
on another: a network is posed on the body that it predicts.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.body.files import BETAS, KINDS, body_of
from hmrcompress.body.model import BodyModel
from hmrcompress.errors import MissingExtra, UserError, first_line
from hmrcompress.io.array_pickles import read_arrays
from hmrcompress.io.npz import read_npz, write_npz

PREFIX = "smplx:"
CLASSES = {24: "SMPL", 52: "SMPLH", 55: "SMPLX", 16: "MANO"}
"""Their names in smplx and at the head of their files, by the number of joints."""
ENDS = (".npz", ".pkl")


def is_smplx(body: object) -> bool:
    """Whether a body is named as `smplx:FOLDER`."""
    return str(body).startswith(PREFIX)


def open_smplx(name: str, joints: int | None = None, gender: str = "neutral", betas: int = BETAS) -> BodyModel:
    """The body of `smplx:FOLDER`: the one with so many joints, or the first one there is, in the order of `CLASSES`,
    with so many shape directions.

    FOLDER has smpl/SMPL_NEUTRAL.npz, smplh/SMPLH_…, smplx/SMPLX_… and mano/MANO_RIGHT.npz, or these themselves; .pkl is
    read where there is no .npz. FOLDER may be one such file, too. UserError where there is none, where smplx is not
    installed or cannot open it, and as `load_body`.
    """
    try:
        import smplx
    except ImportError as error:
        raise MissingExtra("smplx", "smplx") from error
    place = Path(name.removeprefix(PREFIX))
    path, kind = _file(place, joints, gender)
    arrays = read_npz(path, skip_objects=True) if path.suffix == ".npz" else read_arrays(path)
    try:
        with redirect_stdout(io.StringIO()):  # where smplx says how many shapes it found
            made = _made(smplx, kind, path, {key: np.asarray(value) for key, value in arrays.items()}, betas)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"smplx cannot open it as {kind} ({first_line(error)})", path) from error
    vertices, wide = len(made.v_template), made.posedirs.shape[0]
    return body_of(
        {
            "name": np.array(path.stem),
            "v_template": made.v_template.numpy(),
            "f": np.asarray(made.faces),
            "shapedirs": made.shapedirs.numpy(),
            "posedirs": made.posedirs.numpy().T.reshape(vertices, 3, wide),
            "J_regressor": made.J_regressor.numpy(),
            "weights": made.lbs_weights.numpy(),
            "kintree_table": np.stack([made.parents.numpy(), np.arange(len(made.parents))]),
        },
        path,
        betas=betas,
    )


def _file(place: Path, joints: int | None, gender: str) -> tuple[Path, str]:
    """The file to open, and the name of its class."""
    if place.is_file():
        kind = place.stem.partition("_")[0].upper()
        if kind not in CLASSES.values() or place.suffix not in ENDS:
            raise UserError("is named like none of smplx's files", place, "Name it SMPL_NEUTRAL.npz, or alike")
        return place, kind
    if not place.is_dir():
        raise UserError("no such folder", place)
    wanted = {joints: CLASSES[joints]} if joints in CLASSES else CLASSES
    names = {kind: f"{kind}_{'RIGHT' if kind == 'MANO' else gender.upper()}" for kind in wanted.values()}
    for kind, stem in names.items():
        for folder in (place / kind.lower(), place):
            for end in ENDS:
                if (folder / f"{stem}{end}").is_file():
                    return folder / f"{stem}{end}", kind
    if joints is not None and joints in CLASSES:
        kind = CLASSES[joints]
        what = f"holds no {names[kind]}.npz or .pkl, also not in a folder {kind.lower()}"
        raise UserError(what, place, f"The model predicts {KINDS[joints]}'s {joints} joints, no other body's")
    raise UserError(f"holds none of {', '.join(names.values())}, as .npz or .pkl", place)


def _made(smplx: Any, kind: str, path: Path, arrays: Mapping[str, np.ndarray], betas: int) -> Any:
    """smplx's model of these arrays, hands flat and without any parameters of its own."""
    parts: tuple[str, ...] = (
        "betas",
        "global_orient",
        "body_pose",
        "transl",
        "left_hand_pose",
        "right_hand_pose",
        "hand_pose",
    )
    parts += ("jaw_pose", "leye_pose", "reye_pose", "expression")
    bare: dict[str, Any] = {"num_betas": betas} | {f"create_{part}": False for part in parts}
    if kind == "SMPL":
        return smplx.SMPL(str(path), data_struct=smplx.utils.Struct(**arrays), **bare)
    hands = {"use_pca": False, "flat_hand_mean": True, **bare}
    if kind != "SMPLX":
        return getattr(smplx, kind)(str(path), data_struct=smplx.utils.Struct(**arrays), **hands)
    with tempfile.TemporaryDirectory() as room:  # this class takes a file alone, so it gets one of ours
        safe = Path(room, "SMPLX_NEUTRAL.npz")
        write_npz(safe, arrays)
        return smplx.SMPLX(str(safe), ext="npz", **hands)
