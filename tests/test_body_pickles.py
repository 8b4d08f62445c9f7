"""Body files pickled by python 2: read without the classes they name, and never executed."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import tiny
from test_checkpoints import Evil

from hmrcompress.body.files import load_body
from hmrcompress.body.pickled import convert_body
from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import read_arrays


@pytest.fixture
def chumpy_array() -> Iterator[type]:
    """A class that pickles as `chumpy.ch.Ch`; its module is gone again when the file is read."""

    class Ch:
        def __init__(self, x: np.ndarray) -> None:
            self.x = x

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    package, module = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")
    module.Ch = Ch  # type: ignore[attr-defined]
    sys.modules.update({"chumpy": package, "chumpy.ch": module})
    yield Ch
    sys.modules.pop("chumpy", None)
    sys.modules.pop("chumpy.ch", None)


def write_smpl_pickle(path: Path, chumpy_array: type) -> dict[str, np.ndarray]:
    arrays = tiny.body_arrays()
    joints = arrays["kintree_table"].shape[1]
    content = {
        "v_template": arrays["v_template"],
        "f": arrays["f"].astype(np.uint32),
        "shapedirs": chumpy_array(arrays["shapedirs"]),
        "posedirs": np.asfortranarray(np.random.default_rng(0).normal(size=(96, 3, 9 * (joints - 1)))),
        "J_regressor": scipy.sparse.csc_matrix(arrays["J_regressor"]),
        "weights": arrays["weights"].astype(">f4"),
        "kintree_table": arrays["kintree_table"].astype(np.uint32),
        "bs_style": "lbs",
        "vert_sym_idxs": np.array([{}], dtype=object),
    }
    path.write_bytes(pickle.dumps(content, protocol=2))
    return arrays | {"posedirs": content["posedirs"]}  # type: ignore[dict-item]


def test_an_smpl_pickle_becomes_an_npz(tmp_path: Path, chumpy_array: type) -> None:
    expected = write_smpl_pickle(tmp_path / "basicModel.pkl", chumpy_array)
    del sys.modules["chumpy"], sys.modules["chumpy.ch"]
    read = read_arrays(tmp_path / "basicModel.pkl")
    assert read["bs_style"] == "lbs" and "vert_sym_idxs" not in read
    for key in ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights"):
        np.testing.assert_array_equal(read[key], expected[key].astype(read[key].dtype), err_msg=key)

    made = convert_body(tmp_path / "basicModel.pkl", tmp_path / "body.npz")
    body = load_body(made.path)
    assert body.name == "basicModel" and body.num_joints == 24 and made.record["vertices"] == 96
    np.testing.assert_allclose(body.v_template, expected["v_template"], atol=1e-6)
    assert body.posedirs is not None
    again = convert_body(made.path, tmp_path / "again.npz")
    assert again.record["body"] == made.record["body"]


def test_strings_as_python_2_wrote_them(tmp_path: Path) -> None:
    numbers = np.array([1.5, -2.0])
    data = (
        b"\x80\x02}U\x01vcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x10" + numbers.tobytes() + b"tbs."
    )
    (tmp_path / "a.pkl").write_bytes(data)
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.pkl")["v"], numbers)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    path, target = tmp_path / "evil.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"v_template": np.zeros(3), "f": Evil(target)}, protocol=protocol))
    with pytest.raises(UserError, match=r"evil\.pkl: the pickle asks for (posix|nt)\.system"):
        convert_body(path, tmp_path / "out.npz")
    assert not target.exists() and [p.name for p in tmp_path.iterdir()] == ["evil.pkl"]


def test_faults_leave_nothing_behind(tmp_path: Path, chumpy_array: type) -> None:
    path, out = tmp_path / "a.pkl", tmp_path / "out.npz"
    with pytest.raises(UserError, match="no such file"):
        convert_body(path, out)
    write_smpl_pickle(path, chumpy_array)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="truncated or not a pickle"):
        convert_body(path, out)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="holds a list"):
        convert_body(path, out)
    path.write_bytes(pickle.dumps({"v_template": np.zeros((5, 3))}))
    with pytest.raises(UserError, match=r"a\.pkl: kintree_table: the key is missing"):
        convert_body(path, out)
    with pytest.raises(UserError, match=r"ending in '\.bin', expected \.npz"):
        convert_body(path, tmp_path / "out.bin")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pkl"]
