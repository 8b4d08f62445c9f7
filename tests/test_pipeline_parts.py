"""Parts of the pipeline by themselves: threads, frames, boxes, tracks, detections, cameras, rows on disk."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from hmrcompress.errors import UserError
from hmrcompress.pipeline.box_sources import open_boxes
from hmrcompress.pipeline.boxes import FullFrame, read_boxes
from hmrcompress.pipeline.camera import cam_crop_to_full, default_focal
from hmrcompress.pipeline.detect import Detector, decode_yolo
from hmrcompress.pipeline.drawing import video_writer
from hmrcompress.pipeline.followed import Followed
from hmrcompress.pipeline.frames import Frame, open_source
from hmrcompress.pipeline.overlap import StageClock, background
from hmrcompress.pipeline.store import RowStore
from hmrcompress.pipeline.tracking import Tracker, overlaps
from hmrcompress.pipeline.work import Strides


def frame(number: int = 0, size: tuple[int, int] = (640, 480)) -> Frame:
    return Frame(number, np.zeros((size[1], size[0], 3), np.uint8), f"frame {number}")


def test_what_is_made_ahead_comes_in_order_from_another_thread() -> None:
    seen: list[str] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            seen.append(threading.current_thread().name)
            yield number

    assert list(background(background(numbers(), 2), 3)) == list(range(20))
    assert threading.current_thread().name not in seen


def test_errors_arrive_where_the_items_are_used() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise UserError("torn", "video.mp4")

    chain = background(background(failing(), 1), 1)
    assert next(chain) == 1
    with pytest.raises(UserError, match="torn"):
        next(chain)


def test_closing_the_last_stage_stops_all_of_them() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield (number := number + 1)
        finally:
            closed.set()

    before = threading.active_count()
    chain = background(background(endless(), 2), 2)
    assert next(chain) == 1
    chain.close()  # type: ignore[attr-defined]
    assert closed.wait(5) and threading.active_count() == before


def test_heavy_items_wait_alone_and_light_ones_together() -> None:
    """With room for 10: at most one of 8 waits beside the one that is being handed over, or three of 3."""
    for weight, waiting in ((8, 1), (3, 3), (20, 1), (0, 4)):
        made: list[int] = []

        def numbers(made: list[int] = made) -> Iterator[int]:
            for number in range(12):
                made.append(number)
                yield number

        chain = background(numbers(), 4, lambda item, weight=weight: weight, 10)
        seen = []
        for number in chain:
            time.sleep(0.02)
            seen.append(number)
            assert len(made) <= len(seen) + waiting + 1
        assert seen == list(range(12)) and len(made) == 12
    stopped = background(iter(range(99)), 4, lambda item: 9, 10)
    assert next(stopped) == 0
    stopped.close()  # type: ignore[attr-defined]


def test_the_clock_adds_up_by_stage_and_ends_with_its_items() -> None:
    ticks = iter(range(100))
    clock = StageClock(lambda: float(next(ticks)))
    assert list(clock.timed("decode", iter("ab"))) == ["a", "b"]
    with clock("crop"), clock("inner"):
        pass
    assert dict(clock.seconds) == {"decode": 3.0, "inner": 1.0, "crop": 3.0}


def test_pictures_come_by_name_with_numbers_in_their_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    source = open_source(tmp_path)
    found = list(source.frames())
    assert [each.name for each in found] == ["frame1.png", "frame9.png", "frame10.png"]
    assert [int(each.image[0, 0, 0]) for each in found] == [1, 9, 10] and found[0].size == (8, 6)
    assert source.fps is None and source.count() == 3 and source.count(2) == 2
    assert open_source(tmp_path, fps=25.0).fps == 25.0


def test_a_lossless_video_comes_back_bit_for_bit(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)
    with video_writer(tmp_path / "v.mkv", 25.0, codec="ffv1", pixels="bgr0", options={}) as write:
        for picture in pictures:
            write(picture)
    source = open_source(tmp_path / "v.mkv")
    assert source.is_video and source.fps == 25.0
    assert np.array_equal(np.stack([each.image for each in source.frames()]), pictures)
    assert [each.number for each in source.frames(3)] == [0, 1, 2]


def test_a_video_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="32x24"), video_writer(tmp_path / "v.mkv", 25.0, codec="ffv1") as write:
        write(np.zeros((24, 32, 3), np.uint8))
        write(np.zeros((24, 40, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_source(tmp_path / "missing.mp4")
    with pytest.raises(UserError, match="holds no pictures"):
        open_source(tmp_path)
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(b"not a video at all")
    with pytest.raises(UserError, match=r"torn\.mp4: not a picture or video"):
        open_source(torn)
    (tmp_path / "torn.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"torn\.png: not a picture"):
        list(open_source(tmp_path / "torn.png").frames())


def test_boxes_of_a_file_become_squares(tmp_path: Path) -> None:
    """A box of 60 x 120 pixels, 1.2 times as large: 144 high; one of 150 x 100: 180 wide, 240 at the aspect 192:256."""
    rows = [{"frame": 3, "track": 1, "box": [10, 20, 70, 140]}, {"frame": 0, "track": 7, "box": [0, 0, 150, 100]}]
    (tmp_path / "b.json").write_text(json.dumps({"boxes": rows}))
    table = read_boxes(tmp_path / "b.json")
    assert table.boxes(frame(3)) == [(1, (40.0, 80.0), pytest.approx(144))]
    assert table.boxes(frame(0)) == [(7, (75.0, 50.0), pytest.approx(240))]
    assert table.boxes(frame(1)) == []
    np.savez(tmp_path / "b.npz", frame=[0, 0], track=[1, 0], centre=[[5.0, 6], [1, 2]], side=[8.0, 9])
    assert read_boxes(tmp_path / "b.npz").boxes(frame(0)) == [(0, (1.0, 2.0), 9.0), (1, (5.0, 6.0), 8.0)]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not JSON"),
        ('{"boxes": []}', "a list `boxes`"),
        ('[{"frame": 0}]', "expected frame, track, and box"),
        ('[{"frame": 0, "box": [0, 0, 9, 9]}, {"frame": 1}]', r"boxes\[1\] has no box"),
        ('[{"frame": 0, "box": [5, 0, 5, 9]}]', "left, top, right, bottom"),
        ('[{"frame": 0.5, "box": [0, 0, 9, 9]}]', "frame: expected 1 whole numbers"),
        ('[{"frame": 0, "box": [0, 0, 9]}]', r"box: got shape \(1, 3\)"),
        ('[{"frame": 2, "box": [0, 0, 9, 9]}, {"frame": 2, "box": [1, 0, 9, 9]}]', "frame 2, track 0 occurs twice"),
    ],
)
def test_wrong_files_of_boxes_are_refused(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(UserError, match=fault):
        read_boxes(tmp_path / "b.json")


def test_the_whole_picture_fits_its_box() -> None:
    (box,) = FullFrame().boxes(frame(size=(640, 480)))
    assert box.centre == (320, 240) and box.side == pytest.approx(640 * 256 / 192)


def test_overlaps_by_hand() -> None:
    boxes = np.array([[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]])
    assert np.allclose(overlaps(boxes, boxes), [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])


def test_two_people_who_pass_keep_their_numbers() -> None:
    """Each moves by a tenth of a box a frame, in opposite directions and at different heights; one is away a while, and
    the detector gives them in another order every other frame."""
    tracker = Tracker()
    for number in range(40):
        left, right = 100 + 4 * number, 260 - 4 * number
        corners = np.array([[left, 0, left + 40, 100], [right, 60, right + 40, 160.0]])
        if 10 <= number < 12:
            assert tracker.update(number, corners[:1]) == [0]
        elif number % 2:
            assert tracker.update(number, corners[::-1]) == [1, 0]
        else:
            assert tracker.update(number, corners) == [0, 1]
    assert tracker.update(40 + tracker.patience, corners) == [2, 3]


def test_strides_count_from_each_track_and_begin_anew_after_a_hole() -> None:
    strides = Strides(3)
    assert [strides.run(number, 5) for number in range(7)] == [True, False, False, True, False, False, True]
    assert [strides.run(7, 5), strides.run(7, 6), strides.run(10, 6)] == [False, True, True]
    assert strides.run(60, 5) and not strides.run(61, 5)


def yolo_rows(people: list[tuple[float, float, float, float, float]], classes: int, count: int = 20) -> np.ndarray:
    """(count, 4+classes): people first, as (cx, cy, w, h, score), then candidates of class 1."""
    rows = np.zeros((count, 4 + classes), np.float32)
    rows[:, 2:4], rows[:, 5] = 10, 0.9
    for row, person in enumerate(people):
        rows[row, :5], rows[row, 5:] = person, 0
    return rows


PEOPLE = [(100.0, 200.0, 40.0, 120.0, 0.7), (102.0, 202.0, 40.0, 120.0, 0.8), (400.0, 200.0, 50.0, 100.0, 0.6)]


def test_detections_of_every_layout_are_the_same() -> None:
    rows = yolo_rows(PEOPLE, 3)
    corners, scores = decode_yolo(rows.T[None])
    assert scores == pytest.approx([0.8, 0.7, 0.6])
    assert np.allclose(corners[0], [82, 142, 122, 262])
    old = np.concatenate([rows[:, :4], np.ones((len(rows), 1), np.float32), rows[:, 4:]], 1)
    assert np.allclose(decode_yolo(old[None])[0], corners)
    whole = np.array([[*box, score, 0] for box, score in zip(corners, scores, strict=True)], np.float32)
    elsewhere = np.array([[0, 0, 9, 9, 0.9, 1], [0, 0, 9, 9, 0.1, 0]], np.float32)
    assert np.allclose(decode_yolo(np.concatenate([elsewhere, whole])[None])[0], corners)


def write_detector(path: Path, output: np.ndarray, side: int = 64) -> None:
    """An ONNX model that finds the same in every picture."""
    constant = numpy_helper.from_array(output, "found")
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "none"], ["nothing"]),
        helper.make_node("Add", ["found", "nothing"], ["output"]),
    ]
    none = numpy_helper.from_array(np.zeros((), np.float32), "none")
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, list(output.shape))],
        [constant, none],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))


def test_a_detector_gives_boxes_in_the_picture_with_tracks(tmp_path: Path) -> None:
    """A picture of 640 x 320 in a detector of 64 x 64: a tenth the size, 16 rows of grey above. What overlaps a better
    box is left out."""
    found = [(33.0, 32.0, 6.0, 20.0, 0.6), (32.0, 32.0, 6.0, 20.0, 0.9)]
    write_detector(tmp_path / "d.onnx", yolo_rows(found, 3).T[None].copy())
    detector = open_boxes(f"onnx:{tmp_path / 'd.onnx'}", scale=1.0)
    for number in range(2):
        (box,) = detector.boxes(replace(frame(number, (640, 320)), seconds=number / 30))
        assert box.track == 0 and box.centre == pytest.approx((320, 160)) and box.side == pytest.approx(200)


class Found(Followed):
    """A detector that finds one person, of the scores that it is given."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__("found")
        self.scores = scores

    def people(self, image: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[10.0, 10.0, 60.0, 110.0]]), np.array([self.scores.pop(0)])


def test_pictures_that_are_no_sequence_have_nothing_to_do_with_each_other() -> None:
    """A low score counts where somebody was there before: in a video, and not in another picture of a folder."""
    for seconds, found in ((0.0, [1, 1]), (None, [1, 0])):
        detector = Found([0.9, 0.3])
        frames = [replace(frame(number), seconds=None if seconds is None else number / 30) for number in range(2)]
        assert [len(detector.boxes(each)) for each in frames] == found


def test_yolov5_of_one_class_is_not_taken_for_suppressed_boxes() -> None:
    """Both have six columns; centre and size are no corners in order, and scores are no classes."""
    rows = np.array([[300.0, 200.0, 60.0, 120.0, 0.9, 0.95], [10.0, 10.0, 5.0, 5.0, 0.01, 0.5]], np.float32)
    rows = np.concatenate([rows, np.full((50, 6), 1e-3, np.float32)])
    corners, scores = decode_yolo(rows[None])
    np.testing.assert_allclose(corners, [[270, 140, 330, 260]])
    np.testing.assert_allclose(scores, [0.9 * 0.95], rtol=1e-6)
    ends = np.array([[270.0, 140.0, 330.0, 260.0, 0.9, 0.0], *np.zeros((50, 6))], np.float32)
    np.testing.assert_allclose(decode_yolo(ends[None])[0], [[270, 140, 330, 260]])


def test_detectors_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Detector(tmp_path / "missing.onnx")
    (tmp_path / "torn.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a readable ONNX file"):
        Detector(tmp_path / "torn.onnx")
    write_detector(tmp_path / "odd.onnx", np.zeros((2, 3, 4), np.float32))
    with pytest.raises(UserError, match=r"odd\.onnx: its output 'output' has the shape \(2, 3, 4\) for 1 pictures"):
        Detector(tmp_path / "odd.onnx").boxes(frame())


def test_the_camera_of_the_picture_projects_where_the_crop_does() -> None:
    """Points near the root, through the crop's camera and through the picture's, in float64 by hand: at most a
    thousandth of the box apart, as perspective differs a little."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        s, tx, ty = rng.uniform(0.6, 1.2), *rng.uniform(-0.3, 0.3, 2)
        centre, side, (width, height) = rng.uniform(300, 900, 2), rng.uniform(100, 500), (1920, 1080)
        focal = default_focal((width, height))
        point = rng.uniform(-0.5, 0.5, 3)
        depth = 2 * 5000 / (256 * s) + point[2]
        in_crop = 5000 * (point[:2] + [tx, ty]) / depth + 128
        wanted = centre + (in_crop - 128) * side / 256
        (t,) = cam_crop_to_full(
            np.array([[s, tx, ty]]), centre[None], np.array([side]), np.array([[width, height]]), np.array([focal])
        )
        placed = point + t
        got = focal * placed[:2] / placed[2] + np.array([width, height]) / 2
        # How far off the axis the box lies, times how deep the point is, is what the two cameras see differently.
        assert np.abs(got - wanted).max() < 0.02 * side
        assert t[2] == pytest.approx(2 * focal / (s * side))
    flat = np.array([0.3, -0.2, 0.0])
    placed = flat + t
    got = focal * placed[:2] / placed[2] + np.array([width, height]) / 2
    in_crop = 5000 * (flat[:2] + [tx, ty]) / (2 * 5000 / (256 * s))
    assert np.allclose(got, centre + in_crop * side / 256, atol=1e-6)


def test_rows_are_written_by_frame_and_track(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    rng = np.random.default_rng(0)
    order = rng.permutation(10_000)
    value = rng.normal(size=(10_000, 2)).astype(np.float32)
    for part in np.array_split(order, 7):
        store.append({"frame": part // 3, "track": part % 3, "value": value[part]})
    store.close()
    store.write_npz(tmp_path / "out.npz", {"meta": np.array("about")})
    with np.load(tmp_path / "out.npz") as made:
        assert np.array_equal(made["value"], value) and str(made["meta"]) == "about"
        assert np.array_equal(3 * made["frame"] + made["track"], np.arange(10_000))
