"""Body files: what is read, and every fault refused in one sentence."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.body.files import SMPL_LEAF_VERTICES, STARTER_BODY, load_body, require_topology, starter_body
from hmrcompress.errors import UserError

Arrays = dict[str, Any]


def write(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def without(*keys: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: value for key, value in arrays.items() if key not in keys}


def put(**new: Any) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, **new}


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, key: change(np.array(arrays[key]))}


def with_entry(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


FAULTS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    **{
        f"no {key}": (without(key), f"{key}: the key is missing")
        for key in ("v_template", "f", "shapedirs", "weights", "kintree_table", "J_regressor")
    },
    "flat template": (changed("v_template", np.ravel), "v_template: got shape"),
    "four corners": (changed("f", lambda f: np.concatenate([f, f[:, :1]], 1)), r"f: got shape .* expected \(any, 3\)"),
    "nine betas": (changed("shapedirs", lambda s: s[..., :9]), "9 shape directions, expected at least 10"),
    "weights of 23 joints": (changed("weights", lambda w: w[:, :23]), r"weights: got shape .*24\)"),
    "regressor of other vertices": (changed("J_regressor", lambda r: r[:, :-1]), "J_regressor: got shape"),
    "posedirs transposed": (put(posedirs=np.zeros((207, 288))), "posedirs: got shape"),
    "NaN": (changed("shapedirs", with_entry((3, 1, 2), np.nan)), "shapedirs: holds NaN"),
    "infinity": (changed("v_template", with_entry((3, 1), np.inf)), "v_template: holds NaN or infinite"),
    "text": (changed("weights", lambda w: w.astype(str)), "weights: got <U.* expected numbers"),
    "face of no vertex": (changed("f", with_entry((2, 1), 96)), "f: names vertices outside 0..95"),
    "weights of 1.2": (changed("weights", with_entry((5, 0), 0.2)), "weights: row 5 sums to 1.2"),
    "negative weights": (put(weights=np.tile([-1.0, 2.0] + [0.0] * 22, (96, 1))), "weights: some weights are negative"),
    "regressor rows of 2": (changed("J_regressor", lambda r: 2 * r), "J_regressor: row 0 sums to 2"),
    "child before parent": (changed("kintree_table", with_entry((0, 3), 5)), "kintree_table: not a tree"),
    "joints misnumbered": (changed("kintree_table", with_entry((1, 3), 5)), "kintree_table: not a tree"),
    "hash of other faces": (put(faces_sha256=np.array("0" * 64)), "faces_sha256: not the hash of the faces"),
    "leaf of no vertex": (put(leaf_vertices=np.array([0, 1, 2, 3, 96])), "leaf_vertices: names vertices outside"),
    "four leaves": (put(leaf_vertices=np.arange(4)), "leaf_vertices: got shape"),
    "objects": (put(weights=np.array([{"a": 1}], dtype=object)), "pickled objects, which are never executed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_in_one_sentence(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    path = write(tmp_path / "body.npz", change(tiny.body_arrays()))
    with pytest.raises(UserError, match=message) as caught:
        load_body(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 1000, 300_000, -100, -1])
def test_truncated_files(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "body.npz"
    path.write_bytes(STARTER_BODY.read_bytes()[:kept])
    with pytest.raises(UserError, match="not a readable npz, perhaps truncated"):
        load_body(path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    data = bytearray(STARTER_BODY.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "body.npz"
    path.write_bytes(data)
    with pytest.raises(UserError, match="not a readable npz"):
        load_body(path)


def test_missing_file_folder_and_other_formats(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            load_body(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    shutil.move(tmp_path / "array.npy", tmp_path / "array.npz")
    with pytest.raises(UserError, match="one array, not an npz"):
        load_body(tmp_path / "array.npz")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", [".pkl", ".npz"])
def test_pickles_are_never_executed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"body{suffix}"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "gone off")))
    with pytest.raises(UserError):
        load_body(path)
    assert not (tmp_path / "gone off").exists()


def test_regressor_as_triplets(tmp_path: Path) -> None:
    arrays = tiny.body_arrays()
    dense = arrays.pop("J_regressor")
    row, column = np.nonzero(dense)
    triplets = {"J_regressor_row": row, "J_regressor_col": column, "J_regressor_value": dense[row, column]}
    sparse = load_body(write(tmp_path / "sparse.npz", {**arrays, **triplets}), dtype=torch.float64)
    full = load_body(write(tmp_path / "full.npz", {**arrays, "J_regressor": dense}), dtype=torch.float64)
    torch.testing.assert_close(sparse.joint_template, full.joint_template)
    with pytest.raises(UserError, match="differ in length"):
        load_body(write(tmp_path / "a.npz", {**arrays, **triplets, "J_regressor_col": column[1:]}))
    with pytest.raises(UserError, match="entries outside a matrix"):
        load_body(write(tmp_path / "b.npz", {**arrays, **triplets, "J_regressor_row": row + 1}))


def test_what_may_be_left_out_or_longer(tmp_path: Path) -> None:
    arrays = without("name", "faces_sha256", "leaf_vertices")(tiny.body_arrays())
    arrays["shapedirs"] = np.concatenate([arrays["shapedirs"], np.ones((96, 3, 290))], axis=-1)
    arrays["kintree_table"] = arrays["kintree_table"].astype(np.uint32)
    body = load_body(write(tmp_path / "my_body.npz", arrays))
    assert body.name == "my_body" and body.leaf_vertices == () and body.parents[0] == -1
    np.testing.assert_allclose(body.shapedirs.numpy(), tiny.body_arrays()["shapedirs"], rtol=1e-6)


def test_a_file_with_smpls_vertex_count_gets_smpls_leaves(tmp_path: Path) -> None:
    with np.load(STARTER_BODY) as archive:
        arrays = without("leaf_vertices")(dict(archive))
    assert load_body(write(tmp_path / "body.npz", arrays)).leaf_vertices == SMPL_LEAF_VERTICES


def test_regressors_for_another_surface_are_refused() -> None:
    body = starter_body()
    require_topology(body, body.faces_sha256, "J_regressor_h36m.npy")
    with pytest.raises(UserError, match="J_regressor_h36m.npy: made for another surface than .*starter-body") as caught:
        require_topology(body, "1" * 64, "J_regressor_h36m.npy")
    assert "--body" in caught.value.remedy
