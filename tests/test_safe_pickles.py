"""Pickles of other code bases: what is harmless is understood without their packages, the rest refused by its name."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import pickle
import pickletools
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import tiny
import torch
from foreign_pickles import foreign, python_2, sequence_3dpw, sequence_emdb
from test_checkpoints import HEADS, Evil, same, state
from typer.testing import CliRunner

from hmrcompress.body.files import load_body
from hmrcompress.body.pickled import convert_body
from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import read_arrays, read_values
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.io.pickle_machine import Inert, Machine
from hmrcompress.io.unpickler import load
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress_cli.main import app

OMEGACONF = ("omegaconf.dictconfig.DictConfig", "omegaconf.nodes.AnyNode", "omegaconf.base.ContainerMetadata")


def equal(read: Any, true: Any) -> None:
    """The same structure, arrays by dtype and value; tuples come as lists."""
    if isinstance(true, dict):
        assert set(read) == set(true)
        for key in true:
            equal(read[key], true[key])
    elif isinstance(true, (list, tuple)):
        assert isinstance(read, list) and len(read) == len(true)
        for one, other in zip(read, true, strict=True):
            equal(one, other)
    elif isinstance(true, np.ndarray):
        assert read.dtype == true.dtype
        np.testing.assert_array_equal(read, true)
    else:
        assert read == true and type(read) is type(true)


@pytest.mark.parametrize("way", ["python 2", 0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("make", [sequence_3dpw, sequence_emdb])
def test_pickles_of_data_sets(tmp_path: Path, make: Any, way: Any) -> None:
    true = make(np.random.default_rng(0))
    path = tmp_path / "a.pkl"
    path.write_bytes(python_2(true) if way == "python 2" else pickle.dumps(true, protocol=way))
    equal(read_values(path), true)
    if way == "python 2":
        equal(pickle.loads(path.read_bytes(), encoding="latin1"), true)  # the field's own way of reading them


@pytest.mark.parametrize("make", [sequence_3dpw, sequence_emdb])
def test_convert_a_pickle_of_a_data_set(tmp_path: Path, make: Any) -> None:
    true = make(np.random.default_rng(0))
    (tmp_path / "a.pkl").write_bytes(python_2(true))
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "a.pkl"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    arrays, record = np.load(tmp_path / "out.npz"), json.loads((tmp_path / "out.json").read_text())

    def back(value: Any) -> Any:
        if isinstance(value, dict):
            return arrays[value["array"]] if "array" in value else {key: back(item) for key, item in value.items()}
        return [back(item) for item in value] if isinstance(value, list) else value

    equal(back(record["content"]), true)


def test_every_opcode_of_plain_values() -> None:
    """Against the standard library, over all protocols; and every opcode that is no way out of the file is known."""
    shared = [1]
    values = {
        "numbers": [0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**70, -(2**2100), 1.5, -0.0, float("inf")],
        "text": ["", "a", "ü\n'\"\\", "x" * 300, "\ud800", "\U0001f600", b"", b"\x00\xff\n", b"y" * 300],
        "rest": [
            None,
            True,
            False,
            (),
            (1,),
            (1, 2),
            (1, 2, 3),
            (1, 2, 3, 4),
            {},
            {1: "a", (2, "b"): {}},
            shared,
            shared,
        ],
    }
    for protocol in range(6):
        assert load(Machine(pickle.dumps(values, protocol=protocol))) == values
        assert load(Machine(pickle.dumps({1, 2}, protocol=protocol))) == [1, 2]
    from hmrcompress.io.unpickler import OPERATIONS

    outside = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "STOP"}
    assert {code.name for code in pickletools.opcodes if code.code.encode("latin1") not in OPERATIONS} == outside


@pytest.mark.parametrize("form", [scipy.sparse.csc_matrix, scipy.sparse.csr_matrix, scipy.sparse.coo_matrix,
                                  scipy.sparse.csc_array, scipy.sparse.csr_array, scipy.sparse.coo_array])  # fmt: skip
def test_sparse_matrices(tmp_path: Path, form: Any) -> None:
    dense = np.random.default_rng(0).normal(size=(5, 7)) * (np.random.default_rng(1).random((5, 7)) < 0.4)
    (tmp_path / "a.pkl").write_bytes(python_2({"m": form(dense), "empty": form((3, 4))}))
    read = read_arrays(tmp_path / "a.pkl")
    np.testing.assert_array_equal(read["m"], dense)
    np.testing.assert_array_equal(read["empty"], np.zeros((3, 4)))


def chumpy_cases(rng: np.random.Generator) -> dict[str, tuple[Any, np.ndarray]]:
    """Operation -> (pickled object, its value by numpy)."""
    names = [f"chumpy.ch.{name}" for name in ("Ch", "MatVecMult", "add", "multiply", "subtract", "divide")]
    orders = ("Select", "Reshape", "transpose", "Concatenate", "AtleastNd")
    names += [f"chumpy.reordering.{name}" for name in orders]
    ch, product, add, multiply, subtract, divide, *rest = classes(*names)
    select, reshape, transpose, concatenate, at_least = rest
    a, b, matrix = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.normal(size=(9, 12))
    inner = select(a=ch(x=a), idxs=np.array([5, 0, 11, 5]), preferred_shape=(2, 2))
    return {
        "Ch": (ch(x=a), a),
        "nested Ch": (ch(x=ch(x=a)), a),
        "Select": (inner, a.ravel()[[5, 0, 11, 5]].reshape(2, 2)),
        "Select without a shape": (select(a=ch(x=a), idxs=np.arange(3)), a.ravel()[:3]),
        "Select of a Reshape": (select(a=reshape(a=ch(x=a), newshape=(12,)), idxs=np.arange(2)), a.ravel()[:2]),
        "transpose": (transpose(a=ch(x=a), axes=None), a.T),
        "transpose by axes": (transpose(a=ch(x=a[None]), axes=(2, 0, 1)), a[None].transpose(2, 0, 1)),
        "add": (add(a=ch(x=a), b=multiply(a=ch(x=b), b=ch(x=2.0))), a + 2 * b),
        "divide": (divide(a=subtract(a=ch(x=a), b=ch(x=b)), b=ch(x=b)), (a - b) / b),
        "Concatenate": (concatenate(m0=ch(x=a), m1=ch(x=b), dterms=["m0", "m1"], axis=1), np.concatenate([a, b], 1)),
        "AtleastNd": (at_least(x=ch(x=a[0]), ndims=2), a[:1]),
        "MatVecMult": (
            product(mtx=scipy.sparse.csc_matrix(matrix), vec=ch(x=a)), (matrix @ a.ravel()).reshape(-1, 3),
        ),
    }  # fmt: skip


FOREIGN: list[Any] = []


def classes(*names: str) -> list[type]:
    context = foreign(*names)
    FOREIGN.append(context)
    return context.__enter__()


@pytest.fixture(autouse=True)
def _foreign_classes_are_gone_again() -> Any:
    yield
    while FOREIGN:
        FOREIGN.pop().__exit__(None, None, None)


def gone() -> None:
    """From here on the foreign classes cannot be imported."""
    while FOREIGN:
        FOREIGN.pop().__exit__(None, None, None)


def test_operations_of_chumpy_are_carried_out(tmp_path: Path) -> None:
    cases = chumpy_cases(np.random.default_rng(0))
    (tmp_path / "a.pkl").write_bytes(python_2({name: made for name, (made, _) in cases.items()}))
    gone()
    read = read_arrays(tmp_path / "a.pkl")
    assert set(read) == set(cases)
    for name, (_, true) in cases.items():
        np.testing.assert_allclose(read[name], true, rtol=1e-14, err_msg=name)


def test_a_body_of_python_2_equals_its_npz(tmp_path: Path) -> None:
    """SMPL's layout: chumpy arrays, one of them an operation, a sparse regressor, byte strings, everything float64."""
    ch, select = classes("chumpy.ch.Ch", "chumpy.reordering.Select")
    arrays = tiny.body_arrays()
    joints = arrays["kintree_table"].shape[1]
    arrays["posedirs"] = np.random.default_rng(0).normal(size=(len(arrays["v_template"]), 3, 9 * (joints - 1)))
    shape = arrays["shapedirs"].shape
    wider = np.concatenate([arrays["shapedirs"], np.ones((*shape[:2], 5))], axis=2)
    places = np.arange(wider.size).reshape(wider.shape)[..., : shape[2]].ravel()
    content = {
        "v_template": ch(x=arrays["v_template"]),
        "f": arrays["f"].astype(np.uint32),
        "shapedirs": select(a=ch(x=wider), idxs=places, preferred_shape=shape),
        "posedirs": np.asfortranarray(arrays["posedirs"]),
        "J_regressor": scipy.sparse.csc_matrix(arrays["J_regressor"]),
        "J_regressor_prior": scipy.sparse.csr_matrix(arrays["J_regressor"]),
        "weights": arrays["weights"],
        "kintree_table": arrays["kintree_table"].astype(np.uint32),
        "bs_type": "lrotmin",
    }
    (tmp_path / "model.pkl").write_bytes(python_2(content))
    gone()
    np.savez(tmp_path / "true.npz", **{key: value for key, value in arrays.items() if key != "name"})
    made = convert_body(tmp_path / "model.pkl", tmp_path / "model.npz")
    one, other = load_body(made.path), load_body(tmp_path / "true.npz")
    assert one.posedirs is not None and same(dict(one.state_dict()), dict(other.state_dict()))
    assert one.parents == other.parents and one.faces_sha256 == other.faces_sha256


def lightning_content() -> dict[str, Any]:
    """What Lightning pickles beside the weights, with all objects that are known to occur."""
    (cfg, *omega) = classes("yacs.config.CfgNode", *OMEGACONF)
    config, node, about = omega
    any_node = {"_metadata": about(ref_type=Any, key="lr"), "_parent": None, "_val": 0.1}
    head = cfg({"TRANSFORMER_DECODER": cfg({"depth": 2, "heads": 2}), "IEF_ITERS": 2})
    return {
        "cfg": cfg({"MODEL": cfg({"SMPL_HEAD": head})}),
        "omega": config(_content={"lr": node(**any_node)}, _metadata=about(object_type=dict), _parent=None),
        "path": pathlib.PosixPath("/data/a"),
        "space": argparse.Namespace(lr=0.1, inner=types.SimpleNamespace(x=[1])),
        "default": collections.defaultdict(list, {"a": [1]}),
        "ordered": collections.OrderedDict(b=1),
        "numpy": [np.float64(1.5), np.int64(3), np.bool_(True), np.arange(3), np.float32("nan"), np.zeros(5000)],
        "tuple": (1, "x"),
        "tensor": torch.tensor([1.0, 2.0]),
    }


PLAIN = {
    "cfg": {"MODEL": {"SMPL_HEAD": {"TRANSFORMER_DECODER": {"depth": 2, "heads": 2}, "IEF_ITERS": 2}}},
    "omega": {"lr": 0.1},
    "path": "/data/a",
    "space": {"lr": 0.1, "inner": {"x": [1]}},
    "default": {"a": [1]},
    "ordered": {"b": 1},
    "numpy": [1.5, 3, True, [0, 1, 2], "nan", "array of float64, 5000, left out"],
    "tuple": [1, "x"],
    "tensor": [1.0, 2.0],
}


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_lightning_loads_and_converts(tmp_path: Path, wrapper: str, zipped: bool) -> None:
    path = tmp_path / "a.ckpt"
    content = {wrapper: state(), "hyper_parameters": lightning_content(), "epoch": 3, "loops": {"fit": {"a": 1}}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    gone()
    file = open_state_file(path)
    assert file.taken.keys == (wrapper,) and file.hyper_parameters == PLAIN and same(file.tensors, state())
    assert load_checkpoint(path, num_heads=2).config.iterations == 2

    options = ["--num-heads", "2", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["convert", str(path), *options])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out.json").read_text())["hyper_parameters"] == PLAIN
    assert same(load_checkpoint(tmp_path / "out.safetensors").state(), state())


def test_a_checkpoint_of_no_known_network_is_converted_as_it_is(tmp_path: Path) -> None:
    weights = {"encoder.w": torch.arange(6.0).view(2, 3), "flag": torch.tensor(True)}
    torch.save({"net": weights, "hparams": argparse.Namespace(width=8)}, tmp_path / "tokenizer.pth")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "tokenizer.pth"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert same(open_state_file(tmp_path / "out.safetensors").tensors, weights)
    record = json.loads((tmp_path / "out.json").read_text())
    assert (
        record["family"] is None and record["hyper_parameters"] == {"width": 8} and record["weights"]["keys"] == ["net"]
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["hyper_parameters", "state_dict"])
@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_checkpoint_with_code_is_refused_by_the_command_line(
    tmp_path: Path, zipped: bool, where: str, command: str
) -> None:
    path, target = tmp_path / "evil.ckpt", tmp_path / "ran"
    content: dict[str, Any] = {"state_dict": state(), "hyper_parameters": {"cfg": {}}}
    content[where]["payload"] = Evil(target)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    done = CliRunner().invoke(
        app, [command, str(path), *(["-o", str(tmp_path / "out")] if command == "convert" else [])]
    )
    assert done.exit_code == 2 and f"the pickle asks for {os.system.__module__}.system" in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["evil.ckpt"]


def pickled_call(module: str, name: str) -> bytes:
    """A pickle of protocol 0 that calls `module.name("x")`."""
    return f"c{module}\n{name}\n(S'x'\ntR.".encode()


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "__builtin__.eval", "subprocess.Popen", "builtins.getattr", "numpy.load",
     "torch.load", "pickle.loads", "shutil.rmtree", "functools.partial", "operator.attrgetter", "numpy.f2py.compile",
     "hmrcompress.io.atomic.write_bytes", "collections.OrderedDict.fromkeys"],
)  # fmt: skip
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    module, _, last = name.rpartition(".")
    (tmp_path / "a.pkl").write_bytes(pickled_call(module, last))
    said = name.replace("__builtin__", "builtins")
    with pytest.raises(UserError, match=f"the pickle asks for {said}, which could run code"):
        read_values(tmp_path / "a.pkl")


def test_records_do_nothing(tmp_path: Path) -> None:
    """What is on the list is not called either: builtins.list of a text would be its characters."""
    made = load(Machine(pickled_call("builtins", "str")))
    assert isinstance(made, Inert) and made.args == ("x",) and made.stands_for == "builtins.str"


BOMB = (
    b"]"
    + b"q\x00"
    + b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60))
    + b"."
)
HOSTILE = {
    "a memo of two billion places": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a text of a terabyte": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x.",
    "negative size": b"\x80\x02\x8b\xff\xff\xff\xffx.",
    "tuples in tuples as a key": b"\x80\x02}Kaq\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60)) + b"Ns.",
    "lists in lists": BOMB,
    "a list that holds itself": b"]q\x00h\x00a.",
    "deeper than anybody nests": b"\x80\x02" + b"](" * 5000 + b"e" * 5000 + b".",
    "copies of a copy": b"}q\x00(" + b"".join(b"K" + bytes([n % 256]) + b"K\x01" for n in range(512)) + b"u("
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 6000 + b"l.",
    "an array of a terabyte": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01\x8a\x08"
    + (1 << 40).to_bytes(8, "little") + b"\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R\x89U\x08abcdefghtb.",
    "a sparse matrix of a terabyte": pickle.dumps(scipy.sparse.csc_matrix((1, 1)), protocol=2).replace(
        b"_shapeq", b"_shapeq"
    ),
    "a persistent id": b"Pfile\n.",
    "an extension": b"\x80\x02\x82\x01.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_that_would_hang_or_fill_the_memory(tmp_path: Path, name: str) -> None:
    """Each ends at once. A value that is shared is put together once, so lists in lists are no fault."""
    path = tmp_path / "a.pkl"
    path.write_bytes(HOSTILE[name])
    try:
        read_values(path)
        assert name in ("a memo of two billion places", "lists in lists", "a sparse matrix of a terabyte")
    except UserError as error:
        assert "a.pkl" in str(error) and "\n" not in str(error)
    with pytest.raises(UserError):
        read_arrays(path)


def test_a_matrix_that_claims_too_much(tmp_path: Path) -> None:
    wide = scipy.sparse.csc_matrix((3, 3))
    wide._shape = (1 << 20, 1 << 20)
    wide.indptr = np.zeros((1 << 20) + 1, np.int8)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"m": wide}, protocol=2))
    with pytest.raises(UserError, match="stands for more than there is in the file"):
        read_arrays(tmp_path / "a.pkl")


@pytest.mark.parametrize("kind", ["script", "tar", "compressed", "claims"])
def test_other_files_of_torch(tmp_path: Path, kind: str) -> None:
    import tarfile
    import zipfile

    path = tmp_path / "a.pt"
    if kind == "script":
        with zipfile.ZipFile(path, "w") as new:  # the files of a program, as torch.jit.save lays them out
            for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
                new.writestr(f"a/{name}", pickle.dumps(()))
        fault = "a TorchScript program, expected weights"
    elif kind == "tar":
        with tarfile.open(path, "w") as tar:
            tar.add(__file__, "storages")
        fault = "a tar of a very old torch"
    elif kind == "compressed":
        torch.save({"a": torch.zeros(1000)}, tmp_path / "b.pt")
        with zipfile.ZipFile(tmp_path / "b.pt") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        fault = "its entries are compressed"
    else:
        torch.save({"a": torch.zeros(1).expand(1 << 33)}, path)
        fault = "a claims the shape"
    with pytest.raises(UserError, match=fault):
        open_state_file(path)
    with pytest.raises(UserError):
        load_checkpoint(path, **HEADS)
