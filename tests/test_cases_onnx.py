"""ONNX files of somebody else's: whatever they do ends in one sentence, within bounds on time and memory."""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
import segmenters
import tiny
from cases import hostile
from onnx import TensorProto, helper
from packaging.version import Version
from PIL import Image
from typer.testing import CliRunner

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import mask_source
from hmrcompress.data.onnx_network import PictureNetwork
from hmrcompress.errors import UserError
from hmrcompress.io import onnx_process, onnx_worker
from hmrcompress.io.onnx_file import check_onnx
from hmrcompress.io.onnx_process import SECONDS_ENV, OnnxProcess
from hmrcompress.pipeline.detect import Detector, decode_yolo
from hmrcompress.pipeline.frames import Frame
from hmrcompress_cli.main import app


@pytest.fixture(scope="module", autouse=True)
def _collections_look_at_what_is_new() -> None:
    """Not at all that earlier tests and imports left: that takes a second, and each test here collects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def helpers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Helpers may take half a gigabyte, none is left behind, and what waits for one without end fails."""
    monkeypatch.setattr(onnx_process, "MEMORY", 1 << 29)
    before = {child.pid for child in psutil.Process().children()}
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("nobody ended it"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    if {child.pid for child in psutil.Process().children()} - before:
        gc.collect()
    left = [child for child in psutil.Process().children() if child.pid not in before]
    _, left = psutil.wait_procs(left, timeout=5)
    assert not left, left


def frame(number: int = 0) -> Frame:
    return Frame(number, np.zeros((256, 256, 3), np.uint8), "picture")


def crops() -> CropSet:
    return CropSet(tiny.crop_arrays(1, 2), tiny.crop_meta())


DETECTORS = {
    "strings": "tensor|no numbers|is object",
    "one_channel": "pictures of 1 channels, expected 3",
    "input_0x0": "pictures of 0x0 pixels",
    "input_100000": "pictures of 100000x100000 pixels",
    "batch_8": "takes 8 pictures at a time",
    "gather": r"the network failed \(.*out of data bounds",
    "twelve_gb": "takes more than .* GB of memory and was stopped",
}
OF_NOW = Version(onnxruntime.__version__) >= Version("1.32")
"""Older ones make what it refuses first; the process is then stopped."""
SEGMENTERS = {
    "seg_no_prototypes": r"prototypes \(0, 8, 8\)",
    "seg_0x0": r"prototypes \(4, 0, 0\)",
    "seg_class_99": "calls class 99 person, and it has 80",
    "seg_class_1e99": r"calls class 1e\+99 person",
    "detr_counts_differ": r"dets \(5, 4\), labels \(3, 91\), masks \(2, 8, 8\)",
    "detr_rank_2": r"dets \(5,\)",
    "strings": "its outputs are",
    "twelve_gb": "its outputs are" if OF_NOW else "its outputs are|takes more than 0.5 GB",
    "input_0x0": "pictures of 0x0 pixels",
    "batch_8": "takes 8 pictures",
}


def one_sentence(caught: pytest.ExceptionInfo[UserError], name: str) -> None:
    text = str(caught.value)
    assert f"{name}.onnx: " in text and "\n" not in text and len(text) < 700


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors(name: str, cases: Callable[[str], Path]) -> None:
    """Cases C10 and D9."""
    with pytest.raises(UserError, match=DETECTORS[name]) as caught:
        Detector(cases("onnx") / f"{name}.onnx").boxes(frame())
    one_sentence(caught, name)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters(name: str, cases: Callable[[str], Path]) -> None:
    """Case D10."""
    with pytest.raises(UserError, match=SEGMENTERS[name]) as caught:
        list(crops().batches(masks=mask_source(f"onnx:{cases('onnx') / name}.onnx")))
    one_sentence(caught, name)


def test_loops_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case C8: as boxes and as masks. The process is gone afterwards, and the next call starts another."""
    hostile.endless(tmp_path / "d.onnx", hostile.BOX)
    prototypes, rows = np.ones((1, 4, 16, 16), np.float32), np.zeros((1, 88, 100), np.float32)
    hostile.endless(tmp_path / "s.onnx", rows, [("o1", prototypes)], first="o0")
    detector = Detector(tmp_path / "d.onnx")
    helper_process = detector.network._process._helper
    monkeypatch.setattr(detector.network._process, "_seconds", 0.5)
    with pytest.raises(UserError, match="not come to an end within 0 seconds and was stopped") as caught:
        detector.boxes(frame())
    one_sentence(caught, "d")
    assert SECONDS_ENV in str(caught.value) and helper_process.process.returncode == -signal.SIGKILL
    source = mask_source(f"onnx:{tmp_path / 's.onnx'}")
    monkeypatch.setattr(source.segmenter.network._process, "_seconds", 0.5)
    with pytest.raises(UserError, match="was stopped") as caught:
        list(crops().batches(masks=source))
    one_sentence(caught, "s")


def test_commands_end_with_one_sentence(
    cases: Callable[[str], Path], tmp_path: Path, tiny_model: Path, tiny_body_file: Path
) -> None:
    Image.fromarray(np.zeros((256, 192, 3), np.uint8)).save(tmp_path / "a.png")
    for name in ("gather", "twelve_gb"):
        words = ["predict", str(tiny_model), str(tmp_path / "a.png"), "--body", str(tiny_body_file)]
        words += ["--boxes", f"onnx:{cases('onnx') / name}.onnx", "-o", str(tmp_path / "out")]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and done.output.count("\n") == 1 and f"{name}.onnx" in done.output
        assert not (tmp_path / "out").exists()


def test_ten_thousand_people(cases: Callable[[str], Path]) -> None:
    """Case C9: bounded before boxes are compared with each other and with those of the frames before."""
    detector, started = Detector(cases("onnx") / "ten_thousand_people.onnx"), time.process_time()
    for number in range(3):
        assert 0 < len(detector.boxes(frame(number))) <= 300
    assert time.process_time() - started < 20
    corners, scores = decode_yolo(np.tile(hostile.BOX, (1, 10_000, 1)))
    assert len(corners) == len(scores) < 10_000


def test_numbers_that_are_none() -> None:
    rows = np.tile(np.array([10, 10, 60, 60, 0.9, 0], np.float32), (4, 1))
    rows[0, 0], rows[1, 4], rows[2, 5] = np.nan, np.inf, 1e38
    corners, scores = decode_yolo(rows[None])
    assert corners.tolist() == [[10, 10, 60, 60]] and scores.tolist() == pytest.approx([0.9])
    for shape in ((1, 9, 5), (1, 2, 9), (1, 0, 0), (1, 3), (2, 9, 6)):
        with pytest.raises(UserError):
            decode_yolo(np.zeros(shape, np.float32))


def test_helpers_do_what_onnxruntime_does(tmp_path: Path) -> None:
    """The same numbers as in this process, for any size of input, and again after it was killed."""
    import onnxruntime

    path = segmenters.yolo(tmp_path / "a.onnx", np.arange(240.0).reshape(8, 30))
    images = np.random.default_rng(0).random((1, 3, 640, 640)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": images})
    process = OnnxProcess(path, threads=1)
    names = [output.name for output in process.outputs]
    for _ in range(2):
        for got, wanted in zip(process.run(images, names), expected, strict=True):
            assert got.dtype == wanted.dtype and np.array_equal(got, wanted)
    os.kill(process._helper.process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="ended its process .signal 9. and was stopped"):
        process.run(images, names)
    assert np.array_equal(process.run(images, names)[0], expected[0])


def test_memory_that_is_taken_bit_by_bit(tmp_path: Path) -> None:
    """A loop that makes a tensor twice as long in every turn."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
        "b",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("i", TensorProto.INT64, []), ("ci", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, None))],
        [helper.make_tensor_value_info("co", TensorProto.BOOL, []),
         helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    hostile.graph(
        tmp_path / "a.onnx",
        [helper.make_node("Loop", ["m", "go", "c"], ["out"], body=body)],
        [("out", TensorProto.FLOAT, None)],
        [hostile.constant("m", np.array(60, np.int64)), hostile.constant("go", np.array(True)),
         hostile.constant("c", hostile.BOX)],
    )  # fmt: skip
    with pytest.raises(UserError, match="takes more than .* of memory and was stopped"):
        Detector(tmp_path / "a.onnx").boxes(frame())


def test_a_helper_is_watched_from_outside() -> None:
    """Where the system sets no limit, too: this process stands for one that says nothing and has grown."""
    waiting = onnx_process._Helper.__new__(onnx_process._Helper)
    waiting.answers, end = os.pipe()
    waiting.text, waiting.process = b"", SimpleNamespace(pid=os.getpid())  # type: ignore[assignment]
    for memory, seconds, fault in ((1 << 20, 60.0, "takes more than 0.0 GB"), (1 << 50, 0.1, "not come to an end")):
        waiting.memory = memory
        with pytest.raises(onnx_process._Fault, match=fault) as caught:
            waiting.answer(seconds)
        assert caught.value.ended
    os.close(waiting.answers)
    os.close(end)


def test_bounds_follow_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute to open or run and a second more for ten megabytes of weights; four times the weights of memory beside
    that of a small network. In the helper the system counts what is asked for, what there was before aside."""
    given: dict[str, Any] = {}

    class Helper:
        def __init__(self, *settings: Any) -> None:
            given["settings"] = settings

        def answer(self, seconds: float) -> dict[str, Any]:
            given["seconds"] = seconds
            return {"inputs": [], "outputs": [], "names": ""}

        def stop(self) -> None:
            pass

    monkeypatch.setattr(onnx_process, "_Helper", Helper)
    monkeypatch.setattr(onnx_process, "check_onnx", lambda path: [])
    monkeypatch.delenv(SECONDS_ENV, raising=False)
    (tmp_path / "b.onnx").write_bytes(bytes(20_000_000))
    OnnxProcess(tmp_path / "b.onnx", threads=3)
    assert given == {
        "settings": (tmp_path / "b.onnx", 3, False, (1 << 29) + 80_000_000, "onnxruntime", "float32"),
        "seconds": 62.0,
    }
    limits: dict[int, int] = {}
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.update({kind: pair[0]}))
    now = psutil.Process().memory_info().vms
    onnx_worker._limit_memory(1 << 30)
    assert limits[resource.RLIMIT_CORE] == 0 and abs(limits[resource.RLIMIT_AS] - now - (1 << 30)) < 1 << 26


def test_more_numbers_than_a_picture_can_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_process, "MOST_OUTPUT", 1 << 20)
    hostile.detector(tmp_path / "a.onnx", np.zeros((1, 60_000, 6), np.float32))
    with pytest.raises(UserError, match="gave 1 MB of numbers"):
        Detector(tmp_path / "a.onnx").boxes(frame())


# Weights in files of their own


def external(path: Path, location: str, *, where: str = "initializer") -> Path:
    """A detector whose weights are said to lie in `location`."""
    weights = helper.make_tensor("c", TensorProto.FLOAT, hostile.BOX.shape, hostile.BOX.tobytes(), raw=True)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(hostile.BOX.nbytes))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    outputs, branch = [("out", TensorProto.FLOAT, list(hostile.BOX.shape))], helper.make_tensor_value_info
    if where == "initializer":
        return hostile.graph(path, [helper.make_node("Identity", ["c"], ["out"])], outputs, [weights])
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["v"], value=weights)], "b", [], [branch("v", TensorProto.FLOAT, None)]
    )
    node = helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
    return hostile.graph(path, [node], outputs, [hostile.constant("yes", np.array(True))])


@pytest.mark.parametrize("where", ["initializer", "inside of a branch"])
@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "sub/weights.bin", "*/_ORT_MEM_ADDR_/*", ".."])
def test_weights_lie_nowhere_else(location: str, where: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "weights.bin", folder / "sub" / "weights.bin"):
        path.write_bytes(hostile.BOX.tobytes())
    path = external(folder / "a.onnx", location, where=where)
    with pytest.raises(UserError, match="which is a path; it was not opened") as caught:
        Detector(path)
    one_sentence(caught, "a")


def test_weights_lie_beside(tmp_path: Path) -> None:
    """In a file of the same folder, a link within it included; a link out of it is refused."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = external(folder / "a.onnx", "weights.bin")
    with pytest.raises(UserError, match="there is no such file beside it"):
        check_onnx(path)
    (tmp_path / "elsewhere.bin").write_bytes(hostile.BOX.tobytes())
    (folder / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(UserError, match="there is no such file beside it"):
        check_onnx(path)
    (folder / "weights.bin").unlink()
    (folder / "real.bin").write_bytes(hostile.BOX.tobytes())
    (folder / "weights.bin").symlink_to(folder / "real.bin")
    assert check_onnx(path) == [folder / "weights.bin"]
    (box,) = Detector(path, scale=1.0).boxes(frame())
    assert box.side == pytest.approx(200 * 4 / 3)  # 50 pixels of 64 are 200 of 256, and crops are three quarters wide


def test_every_place_that_a_tensor_can_hide_in_is_walked() -> None:
    """The numbers of fields are those of onnx's own description."""
    kinds = {
        "model": onnx.ModelProto, "graph": onnx.GraphProto, "node": onnx.NodeProto, "attribute": onnx.AttributeProto,
        "sparse": onnx.SparseTensorProto, "training": onnx.TrainingInfoProto, "function": onnx.FunctionProto,
        "tensor": onnx.TensorProto, "entry": onnx.StringStringEntryProto,
    }  # fmt: skip
    from hmrcompress.io.onnx_file import PARTS

    names = {proto.DESCRIPTOR.full_name: kind for kind, proto in kinds.items()}
    entry = onnx.StringStringEntryProto.DESCRIPTOR.full_name
    for kind, proto in kinds.items():
        fields = {
            field.number: names[field.message_type.full_name]
            for field in proto.DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.full_name in names
            if field.message_type.full_name != entry or (kind, field.name) == ("tensor", "external_data")
        }
        assert PARTS[kind] == fields, kind


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    good = hostile.detector(tmp_path / "good.onnx").read_bytes()
    for number, data in enumerate((b"", b"not a graph", good[:-3], b"\x0b" * 100, b"ORTM" * 20, b"\xff" * 99)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(data)
        with pytest.raises(
            UserError, match=rf"{number}\.onnx: (not a readable|onnxruntime cannot open|keeps|it takes)"
        ):
            PictureNetwork(path)
    with pytest.raises(UserError, match="no such file"):
        PictureNetwork(tmp_path)


def test_a_limit_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECONDS_ENV, "soon")
    with pytest.raises(UserError, match="got 'soon', expected seconds"):
        Detector(hostile.detector(tmp_path / "a.onnx"))
