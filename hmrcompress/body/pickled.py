"""Body files of any make to npz in SMPL's layout, which `load_body` reads; pickles are read without executing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hmrcompress.body.files import EXAMPLES, load_body, require_joints
from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import read_arrays
from hmrcompress.io.npz import read_npz, write_npz
from hmrcompress.io.open_formats import KIND, Converted, described, target_of
from hmrcompress.io.outputs import OutputRule

KEYS = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")
BODY_KEYS = {"v_template", "weights"}
"""What tells a body from the pickles of data sets."""


def is_body(path: Path | str) -> bool:
    """Whether a pickle holds what a body has. Raises UserError as `read_arrays`."""
    return BODY_KEYS <= set(read_arrays(path))


def convert_body(path: Path | str, out: Path | str, *, overwrite: bool | OutputRule = False) -> Converted:
    """Writes OUT.npz, which holds what a body model needs of `path` (.pkl or .npz), and OUT.json.

    The result is loaded once, so that what is written is known to be a body. Raises UserError where `path` is
    missing, damaged, asks for code, or is no body of SMPL's, SMPL-X's or MANO's joints, for an `out` that does not end
    in .npz, and as `io.outputs`.
    """
    path, outputs = Path(path), OutputRule.of(overwrite)
    target = target_of(path, out, ".npz", outputs)
    arrays = _of_npz(path) if path.suffix == ".npz" else _of_pickle(path)
    if (tree := arrays.get("kintree_table")) is not None and tree.ndim == 2:  # else `load_body` says what is wrong
        require_joints(tree.shape[1], EXAMPLES, path)
    with outputs.file(target, KIND) as temporary:
        write_npz(temporary, arrays)
        try:
            body = load_body(temporary)
        except UserError as error:
            raise UserError(error.what, error.where.replace(str(temporary), str(path)), error.remedy) from error
    about = {
        "body": {"name": body.name, "faces_sha256": body.faces_sha256},
        "vertices": body.num_vertices,
        "joints": body.num_joints,
    }
    return described(path, target, about, outputs)


def refuse_other_pickles(path: Path | str) -> None:
    """UserError for a pickle of a body that no network predicts, such as SMPL-H, which to convert would be of no use.
    Raises UserError as `read_arrays`."""
    arrays = read_arrays(path)
    if BODY_KEYS <= set(arrays) and "kintree_table" in arrays:
        require_joints(np.asarray(arrays["kintree_table"]).shape[-1], EXAMPLES, path)


def _of_pickle(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path)
    found = {key: np.asarray(arrays[key]) for key in KEYS if key in arrays}
    return found | {"name": np.array(path.stem)}


def _of_npz(path: Path) -> dict[str, np.ndarray]:
    load_body(path)
    return read_npz(path, skip_objects=True)
