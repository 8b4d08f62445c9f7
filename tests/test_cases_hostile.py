"""Files that stand for more than they hold: refused in seconds, with memory in proportion to what is in them."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.hostile import array, chumpy, dictionary, name, text
from typer.testing import CliRunner

from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import read_arrays, read_values
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.io.npz import read_npy, read_npz, write_npz
from hmrcompress.io.open_formats import convert_values
from hmrcompress.io.zips import check_zip
from hmrcompress.timing.memory import peak_resident
from hmrcompress_cli.main import app

SECONDS, MEGABYTES = 20, 400
"""Of the CPU, and above the start: many times what these files of kilobytes take. Unbounded it is gigabytes, hours."""


CLEAR = Path("/proc/self/clear_refs")


@pytest.fixture(autouse=True)
def bounded() -> Any:
    """No test here takes long or much memory."""
    if CLEAR.exists():
        CLEAR.write_text("5")  # the greatest size so far is that of now: an earlier test's would hide all below it
    started, before = time.process_time(), peak_resident()
    yield
    assert (peak_resident() - before) >> 20 < MEGABYTES
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("case", ["product.pkl", "object_field.pkl", "laughs.ckpt"])
def test_convert_refuses(case: str, cases: Callable[[str], Path], tmp_path: Path) -> None:
    """Cases C1, C3 and D11."""
    done = CliRunner().invoke(app, ["convert", str(cases("pickles") / case), "-o", str(tmp_path / "o")])
    assert done.exit_code == 2 and done.output.count("\n") == 1 and case in done.output
    assert list(tmp_path.iterdir()) == []


def shared(count: int, numbers: int) -> bytes:
    """A list of numbers, and as many chumpy arrays of that one list."""
    lists = {f"k{i}": chumpy("chumpy.ch", "Ch", x=b"h\x01") for i in range(count)}
    return dictionary(a=b"]q\x01(" + b"K\x01" * numbers + b"e", **lists)


def test_arrays_of_one_list_spend_from_one_budget(tmp_path: Path) -> None:
    """Case C2: 64 MB and eight times the file, in all."""
    path = tmp_path / "a.pkl"
    path.write_bytes(shared(3, 1000))
    found = read_arrays(path)
    assert {key: value.tolist() for key, value in found.items()} == {f"k{i}": [1] * 1000 for i in range(3)}
    path.write_bytes(shared(600, 50_000))  # 240 MB, if all were made
    with pytest.raises(UserError, match="stands for more than there is"):
        read_arrays(path)


def long(count: int) -> bytes:
    return array((count,), bytes(8 * count))


CHUMPY = {
    "an outer sum": chumpy(
        "chumpy.ch", "add", b=long(9000),
        a=chumpy("chumpy.reordering", "Reshape", a=long(9000), newshape=b"M(#K\x01\x86"),
    ),
    "an empty column": chumpy(
        "chumpy.ch", "add", a=array((10**9, 0)), b=array((0,))
    ),
    "a product of nothing": chumpy("chumpy.ch_ops", "MatVecMult", mtx=array((10**9, 0)), vec=array((0,))),
    "a product of other shapes": chumpy("chumpy.ch_ops", "MatVecMult", mtx=long(9), vec=long(9)),
    "nothing, reshaped": chumpy("chumpy.reordering", "Reshape", a=array((0,)), newshape=b"J\x00\xca\x9a;K\x00\x86"),
    "text among numbers": chumpy("chumpy.ch", "Ch", x=b"](K\x01X\x01\x00\x00\x00ae"),
    "one long text among many": chumpy(
        "chumpy.ch", "Ch", x=b"](" + text("x" * 60_000) + text("y") * 10_000 + b"e"
    ),
    "rows of two lengths": chumpy("chumpy.ch", "Ch", x=b"](](K\x01e](K\x01K\x02ee"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHUMPY)
def test_operations_of_chumpy(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(dictionary(v_template=CHUMPY[what]))
    with pytest.raises(UserError, match="holds an array that is damaged"):
        read_arrays(path)


def nested(levels: int, leaf: bytes = b"K\x01") -> bytes:
    """Nine of nine of nine …, `levels` deep, in a few bytes a level."""
    made = b"](" + leaf * 9 + b"e"
    for level in range(levels):
        made = b"](" + made + bytes([0x71, level]) + bytes([0x68, level]) * 8 + b"e"
    return made


@pytest.mark.parametrize(
    "content",
    {
        "lists": nested(40),
        "an array of lists": chumpy("chumpy.ch", "Ch", x=nested(40)),
        "a sum of lists": chumpy("chumpy.ch", "add", a=nested(12), b=nested(12)),
    }.values(),
    ids=["lists", "an array", "a sum"],
)
def test_lists_of_lists_of_one_list(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(dictionary(a=content, b=long(2)))
    with pytest.raises(UserError, match="stands for more"):
        convert_values(path, tmp_path / "out")


def test_one_text_in_many_places(tmp_path: Path) -> None:
    """A text of 1 MB, named 2,000 times by two bytes each: as bytes (which are decoded), as a key, and as written."""
    path, long_text = tmp_path / "a.pkl", b"T" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
    as_bytes = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
    for made in (
        b"](" + as_bytes + b"q\x01" + b"h\x01" * 2000 + b"e",
        b"](" + as_bytes + b"q\x010" + b"}h\x01K\x01s" * 2000 + b"e",
        b"](" + long_text + b"q\x01" + b"h\x01" * 2000 + b"e",
    ):
        path.write_bytes(dictionary(a=made, b=long(2)))
        with pytest.raises(UserError, match="stands for more"):
            convert_values(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["f8,O", "O,f8", "(1000000000,)f8", "f8:x", "S99999999", "x", ""])
def test_types_that_no_array_has(kind: str, tmp_path: Path) -> None:
    """Case D11 and its like."""
    path = tmp_path / "a.pkl"
    path.write_bytes(dictionary(a=array((0,), kind=kind), v_template=array((2,), bytes(16))))
    with pytest.raises(UserError, match="damaged"):
        convert_values(path, tmp_path / "out")


def test_numbers_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": 1 << 100_000, "b": np.ones(2)}))
    with pytest.raises(UserError, match="digits"):
        read_values(path)


def test_small_tensors_of_one_storage(tmp_path: Path) -> None:
    """Of 100,000 numbers each, as lists; a checkpoint of them is read, without them."""
    views = [torch.zeros(1).expand(100_000) for _ in range(3000)]
    torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": {"x": views}}, tmp_path / "a.ckpt")
    assert open_state_file(tmp_path / "a.ckpt").hyper_parameters == {}


def test_configuration_is_still_read(tmp_path: Path) -> None:
    hyper = {"cfg": {"lr": 0.1, "names": [["a"] * 100] * 100, "mean": np.arange(3.0), "tensor": torch.arange(3)}}
    torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": hyper}, tmp_path / "a.ckpt")
    found = open_state_file(tmp_path / "a.ckpt").hyper_parameters["cfg"]
    assert found == hyper["cfg"] | {"mean": [0.0, 1.0, 2.0], "tensor": [0, 1, 2]}


# Archives


def npz_of(header: str, kind: str = "<f8", held: int = 64, way: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of one array that claims a shape."""
    line = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {header}, }}".encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + bytes(held)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", way) as archive:
        archive.writestr("a.npy", content)
    return made.getvalue()


@pytest.mark.parametrize("shape", ["(1000000000, 0)", "(0, 1000000000)", "(1000,)", "(-1,)", "(9, 9, 9, 9)"])
def test_arrays_claim_no_more_than_they_hold(shape: str, tmp_path: Path) -> None:
    path, single = tmp_path / "a.npz", tmp_path / "a.npy"
    path.write_bytes(npz_of(shape))
    with zipfile.ZipFile(path) as archive:
        single.write_bytes(archive.read("a.npy"))
    with pytest.raises(UserError, match="no bytes for"):
        read_npz(path)
    with pytest.raises(UserError, match="no bytes for"):
        read_npy(single)


def test_arrays_that_are_fine(tmp_path: Path) -> None:
    for made in (np.zeros((0, 3)), np.arange(6.0).reshape(2, 3), np.array("text"), np.zeros((3, 0), np.int8)):
        np.savez_compressed(tmp_path / "a.npz", a=made)
        np.save(tmp_path / "a.npy", made)
        assert np.array_equal(read_npz(tmp_path / "a.npz")["a"], made)
        assert np.array_equal(read_npy(tmp_path / "a.npy"), made)


@pytest.mark.parametrize("way", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_ways_of_packing_that_take_memory_ahead(way: int, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(npz_of("(8,)", way=way))
    for read in (check_zip, read_npz):
        with pytest.raises(UserError, match="never use"):
            read(tmp_path / "a.npz")


def bomb(path: Path, megabytes: int) -> Path:
    """Zeros by the megabyte, packed a thousand times over."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        line = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({megabytes << 20},), }}".encode()
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line)
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    return path


def test_archives_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.npz", 300)
    from hmrcompress.body.files import load_body
    from hmrcompress.body.pickled import convert_body
    from hmrcompress.data.crops import CropSet
    from hmrcompress.metrics.measure import _arrays
    from hmrcompress.motion.amass import load_amass_segments

    for read in (read_npz, load_body, CropSet.open, _arrays, load_amass_segments):
        with pytest.raises(UserError, match="unfolds from"):
            read(path)
    with pytest.raises(UserError, match="unfolds from"):
        convert_body(path, tmp_path / "out.npz")


def test_names_of_known_objects_only(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(dictionary(a=name("os", "system")))
    with pytest.raises(UserError, match="asks for os.system"):
        read_values(tmp_path / "a.pkl")


def test_what_is_written_is_numpys_file(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "text": np.array("é"), "none": np.zeros((0, 2), np.int8)}
    np.savez(tmp_path / "theirs.npz", **arrays)  # type: ignore[arg-type]
    write_npz(tmp_path / "ours.npz", arrays)
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npz(tmp_path / "c.npz", {"a": np.array([object()])})
