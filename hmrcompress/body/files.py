"""Body files: npz in SMPL's layout, every field checked, nothing in them executed.

Keys: v_template (V,3), f (F,3), shapedirs (V,3,S), weights (V,J), kintree_table (2,J), and the joint regressor either
dense, J_regressor (J,V), or as triplets J_regressor_row, J_regressor_col, J_regressor_value. May be left out: posedirs
(V,3,9(J-1)), name, faces_sha256, leaf_vertices (5,). Axes: x to the subject's left, y up, z forward; metres.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

import numpy as np
import torch

from hmrcompress.body.joints import LEAF_NAMES
from hmrcompress.body.model import BodyModel
from hmrcompress.body.topology import hash_faces
from hmrcompress.errors import UserError
from hmrcompress.io.npz import read_npz

STARTER_BODY = Path(__file__).parent.parent / "assets" / "starter_body.npz"
SMPL_VERTICES = 6890
SMPL_LEAF_VERTICES = (411, 2445, 5905, 3216, 6617)
"""Head top, middle fingertips, big toes on SMPL's surface, as HybrIK takes them."""
BETAS = 10
KINDS = {24: "SMPL", 52: "SMPL-H", 55: "SMPL-X", 16: "MANO", 5: "FLAME"}
"""What a body is, by its number of joints."""
SMPLX_JOINTS = 55
SPELT_WITH_A_VOWEL = "S"
"""SMPL is spelt, MANO and FLAME are words."""
EXAMPLES = {24: "SMPL_NEUTRAL.npz", 16: "MANO_RIGHT.npz", 55: "SMPLX_NEUTRAL.npz"}
"""Files of the bodies that networks predict."""
OPTIONAL = ("name", "faces_sha256", "leaf_vertices", "posedirs")
TRIPLETS = ("J_regressor_row", "J_regressor_col", "J_regressor_value")
REMEDY = "Use an npz in SMPL's layout, or leave --body out to use the starter body."


def starter_body(dtype: torch.dtype = torch.float32) -> BodyModel:
    """The open body that is shipped with the package."""
    return load_body(STARTER_BODY, dtype=dtype)


def load_body(path: Path | str, *, betas: int = BETAS, dtype: torch.dtype = torch.float32) -> BodyModel:
    """Read a body file. Of longer shape spaces the first `betas` are kept; posedirs of zeros are dropped.

    Raises UserError, in one sentence, for a missing or broken file, a missing key, a wrong shape, numbers that are
    not finite, faces or joints that do not exist, weights that do not sum to 1, or a hash that does not fit the faces.
    """
    arrays = _read(Path(path))
    return body_of(arrays | _of_shape(arrays), Path(path), betas=betas, dtype=dtype)


def body_of(
    arrays: dict[str, np.ndarray], path: Path, *, betas: int = BETAS, dtype: torch.dtype = torch.float32
) -> BodyModel:
    """The body of arrays by key that were read from `path`. UserError as `load_body`, naming it."""
    template = _numbers(arrays, "v_template", path, (None, 3))
    vertices = len(template)
    parents = _parents(arrays, path)
    joints = len(parents)
    shapedirs = _numbers(arrays, "shapedirs", path, (vertices, 3, None))
    if (shapes := shapedirs.shape[2]) < betas:
        raise UserError(f"got {shapes} shape directions, expected at least {betas}", _at(path, "shapedirs"))
    weights = _numbers(arrays, "weights", path, (vertices, joints))
    _check_rows(weights, path, "weights", 1e-3)
    if weights.min() < 0:
        raise UserError("some weights are negative", _at(path, "weights"), REMEDY)
    regressor = _regressor(arrays, path, (joints, vertices))
    _check_rows(regressor, path, "J_regressor", 1e-2)
    faces = _faces(arrays, path, vertices)
    posedirs = None
    if "posedirs" in arrays:
        posedirs = _numbers(arrays, "posedirs", path, (vertices, 3, 9 * (joints - 1)))
    return BodyModel(
        name=str(arrays["name"]) if "name" in arrays else path.stem,
        faces=faces,
        v_template=template,
        shapedirs=shapedirs[..., :betas],
        joint_regressor=regressor,
        weights=weights,
        parents=parents,
        posedirs=posedirs if posedirs is not None and posedirs.any() else None,
        leaf_vertices=_leaves(arrays, path, vertices),
        dtype=dtype,
    )


def body_in_folder(folder: Path, gender: str) -> Path:
    """The file of the body `neutral`, `male` or `female` in a folder: SMPL_NEUTRAL.npz and the like, also as
    basicModel_f_… and basicmodel_f_…. UserError where there is none, or where only a pickle is there."""
    letter, found = gender[0], sorted(path for path in folder.iterdir() if path.suffix in (".npz", ".pkl"))
    fitting = [
        path
        for path in found
        if path.stem.lower().startswith((f"smpl_{gender}", f"basicmodel_{letter}_", f"basicmodel_{gender}"))
    ]
    if not fitting:
        raise UserError(f"there is no SMPL_{gender.upper()}.npz in it", folder, "Name the folder of the three bodies")
    return min(fitting, key=lambda path: path.suffix != ".npz")


def kind_of_body(joints: int) -> str:
    """What a body of so many joints is, in a few words: `an SMPL-H body (52 joints)`."""
    if joints not in KINDS:
        return f"a body of {joints} joints"
    name = KINDS[joints]
    return f"{'an' if name[0] in SPELT_WITH_A_VOWEL else 'a'} {name} body ({joints} joints)"


def require_joints(joints: int, wanted: Collection[int], where: object) -> None:
    """Raise UserError, saying what it is and which file is wanted, where a body has none of the `wanted` numbers of
    joints, which are those of `EXAMPLES`."""
    if joints not in wanted:
        expected = " or ".join(kind_of_body(joints) for joints in wanted)
        files = " or ".join(f"{KINDS[joints]}'s own file, such as {EXAMPLES[joints]}" for joints in wanted)
        raise UserError(f"is {kind_of_body(joints)}, expected {expected}", where, f"Give {files}")


def require_topology(body: BodyModel, faces_sha256: str, what: str) -> None:
    """Raise UserError unless `what` (a regressor, a vertex list) was made for the surface that `body` has.

    The number of vertices does not tell: the starter body has as many as SMPL, and SMPL's regressors would run on it
    and be silently wrong.
    """
    if body.faces_sha256 != faces_sha256:
        raise UserError(
            f"made for another surface than that of the body {body.name} "
            f"(faces {faces_sha256[:12]}, the body has {body.faces_sha256[:12]})",
            what,
            "Use the body it was made for (--body), or a protocol on the body's own joints.",
        )


def refuse_starter(body: BodyModel, what: str) -> None:
    """Raise UserError where `what`, which was made for SMPL, meets the starter body. Its faces tell."""
    if body.faces_sha256 == _starter_faces():
        raise UserError(
            f"made for SMPL, and the body {body.name} is not SMPL",
            what,
            "Give an SMPL file, or a folder of them: --body",
        )


@cache
def _starter_faces() -> str:
    with np.load(STARTER_BODY, allow_pickle=False) as archive:
        return str(archive["faces_sha256"])


def _at(path: Path, key: str) -> str:
    return f"{path}: {key}"


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError("no such file", path, REMEDY)
    if path.suffix == ".pkl":
        raise UserError("pickles are not opened here", path, f"Try: hmrcompress convert {path} -o {path.stem}.npz")
    wanted = ("v_template", "f", "shapedirs", "weights", "kintree_table", "J_regressor", *TRIPLETS, *OPTIONAL)
    return read_npz(path, wanted, remedy=REMEDY)


def _numbers(arrays: dict[str, np.ndarray], key: str, path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array, its shape (None = any number) and its values checked."""
    if key not in arrays:
        raise UserError("the key is missing", _at(path, key), REMEDY)
    array = arrays[key]
    fits = array.ndim == len(shape) and all(
        n == want or want is None for n, want in zip(array.shape, shape, strict=True)
    )
    if not fits or 0 in array.shape:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise UserError(f"got shape {array.shape}, expected ({wanted})", _at(path, key), REMEDY)
    if array.dtype.kind not in "fiu":
        raise UserError(f"got {array.dtype}, expected numbers", _at(path, key), REMEDY)
    if not np.isfinite(array).all():
        raise UserError("holds NaN or infinite numbers", _at(path, key), REMEDY)
    return array


def _parents(arrays: dict[str, np.ndarray], path: Path) -> tuple[int, ...]:
    """Parents of each joint, -1 for the root (files write it as -1, 2^32-1 or the like)."""
    table = _numbers(arrays, "kintree_table", path, (2, None))
    parents = tuple([-1] + [int(parent) for parent in table[0, 1:]])
    ordered = all(0 <= parent < joint for joint, parent in enumerate(parents) if joint > 0)
    if not ordered or [int(joint) for joint in table[1]] != list(range(len(parents))):
        raise UserError("not a tree with parents before children", _at(path, "kintree_table"), REMEDY)
    return parents


def _faces(arrays: dict[str, np.ndarray], path: Path, vertices: int) -> np.ndarray:
    faces = _numbers(arrays, "f", path, (None, 3)).astype(np.int64)
    if faces.min() < 0 or faces.max() >= vertices:
        raise UserError(f"names vertices outside 0..{vertices - 1}", _at(path, "f"), REMEDY)
    if "faces_sha256" in arrays and str(arrays["faces_sha256"]) != hash_faces(faces):
        raise UserError("not the hash of the faces in the file", _at(path, "faces_sha256"), "Fetch or build it again.")
    return faces


def _of_shape(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The directions of shape of an SMPL-X file, in which those of expression follow: behind 300, in files with fewer
    than 400 behind 10 (as smplx takes them)."""
    directions, tree = arrays.get("shapedirs"), arrays.get("kintree_table")
    if directions is None or directions.ndim != 3 or tree is None or tree.shape[-1:] != (SMPLX_JOINTS,):
        return {}
    shapes = 300 if directions.shape[-1] >= 400 else 10
    return {"shapedirs": directions[..., :shapes]}


def _leaves(arrays: dict[str, np.ndarray], path: Path, vertices: int) -> tuple[int, ...]:
    if "leaf_vertices" not in arrays:
        return SMPL_LEAF_VERTICES if vertices == SMPL_VERTICES else ()
    leaves = _numbers(arrays, "leaf_vertices", path, (len(LEAF_NAMES),)).astype(np.int64)
    if leaves.min() < 0 or leaves.max() >= vertices:
        raise UserError(f"names vertices outside 0..{vertices - 1}", _at(path, "leaf_vertices"), REMEDY)
    return tuple(int(vertex) for vertex in leaves)


def _regressor(arrays: dict[str, np.ndarray], path: Path, shape: tuple[int, int]) -> np.ndarray:
    if "J_regressor" in arrays or TRIPLETS[0] not in arrays:
        return _numbers(arrays, "J_regressor", path, shape)
    rows, columns, values = (_numbers(arrays, key, path, (None,)) for key in TRIPLETS)
    if not len(rows) == len(columns) == len(values):
        raise UserError("the three lists differ in length", _at(path, "J_regressor_*"), REMEDY)
    rows, columns = rows.astype(np.int64), columns.astype(np.int64)
    if min(rows.min(), columns.min()) < 0 or rows.max() >= shape[0] or columns.max() >= shape[1]:
        raise UserError(f"names entries outside a matrix of {shape}", _at(path, "J_regressor_*"), REMEDY)
    dense = np.zeros(shape)
    np.add.at(dense, (rows, columns), values.astype(np.float64))
    return dense


def _check_rows(rows: np.ndarray, path: Path, key: str, tolerance: float) -> None:
    sums = rows.sum(1, dtype=np.float64)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > tolerance:
        raise UserError(f"row {worst} sums to {sums[worst]:.4g}, expected 1", _at(path, key), REMEDY)
