"""Masks by segmentation networks: both output layouts against known masks, the choice of the person, tracks."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import segmenters
import tiny
import torch
from cases import hostile
from test_masks import slow_coverage

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import mask_source
from hmrcompress.data.onnx_masks import LONGEST_GAP, OnnxMasks
from hmrcompress.data.onnx_segment import Segmenter
from hmrcompress.data.people import People, choose, expected_box, overlap, suppress
from hmrcompress.data.yolo import Letterbox
from hmrcompress.errors import UserError
from hmrcompress.pipeline.boxes import Box
from hmrcompress.pipeline.tracks import Seen
from hmrcompress.pipeline.work import CropFrames, Run

CENTRAL, BESIDE = (56, 30, 136, 228), (130, 60, 190, 200)
"""x0 y0 x1 y1 in the crop: the person that it is of (red), and another who overlaps (green)."""
PERSON, OTHER_CLASS = 0, 1


def box_mask(box: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((256, 192), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def picture() -> np.ndarray:
    """(256,192,3): red where the central person is, green where the other is in front of or beside him."""
    image = np.zeros((256, 192, 3), np.uint8)
    image[box_mask(BESIDE), 1] = 255
    image[box_mask(CENTRAL)] = (255, 0, 0)
    return image


def crops(images: np.ndarray, clips: int = 1) -> CropSet:
    arrays = {name: values for name, values in tiny.crop_arrays(clips, len(images) // clips).items() if name != "masks"}
    return CropSet(arrays | {"images": images}, tiny.crop_meta())


def in_letterbox(box: tuple[int, ...], side: int = 640) -> np.ndarray:
    """The same box in a square input: scaled by side/256, with an equal margin left and right."""
    scale = side / 256
    return np.array(box) * scale + np.array([(side - 192 * scale) / 2, 0] * 2)


def yolo_rows(boxes: list[tuple[tuple[int, ...], float, int, tuple[float, float]]], side: int = 640) -> np.ndarray:
    """(box in the crop, score, class, weights of red and green) -> (4 + 2 + 2, N) with as many empty rows again."""
    rows = []
    for box, score, kind, weights in boxes:
        x0, y0, x1, y1 = in_letterbox(box, side)
        rows.append(
            [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, *((score, 0.01) if kind == 0 else (0.01, score)), *weights]
        )
    return np.array(rows + [[0.0] * 8] * 20).T


ROWS = [
    (BESIDE, 0.95, PERSON, (0, 1)),
    (CENTRAL, 0.8, PERSON, (1, 0)),
    (CENTRAL, 0.7, PERSON, (1, 0)),  # a duplicate, to be suppressed
    (expected_box().round().astype(int).tolist(), 0.9, OTHER_CLASS, (0, 1)),  # not a person
]


def expected_tokens(box: tuple[int, ...]) -> np.ndarray:
    """The boxes are chosen so that no token's share is within 0.03 of the threshold: a mask may be a pixel off."""
    shares = slow_coverage(box_mask(box))
    assert np.abs(shares - 0.1).min() > 0.03
    return shares >= 0.1


@pytest.mark.parametrize(("batch", "size", "side"), [(1, None, 640), ("batch", None, 320), ("batch", "size", 640)])
def test_yolo_masks_on_the_token_grid(tmp_path: Path, batch: int | str, size: str | None, side: int) -> None:
    path = segmenters.yolo(tmp_path / "seg.onnx", yolo_rows(ROWS, side), side=side, batch=batch, size=size)
    data = crops(np.stack([picture()] * 3))
    source = mask_source(f"onnx:{path}")
    (made,) = data.batches(masks=source)
    assert made.person_mask is not None
    np.testing.assert_array_equal(made.person_mask.numpy(), np.stack([expected_tokens(CENTRAL)] * 3))
    assert source.name == f"onnx:{path}"


def test_yolo_masks_pixel_by_pixel(tmp_path: Path) -> None:
    """At most the pixels along the edges differ; both people are found, the other class and the duplicate are not."""
    (found,) = Segmenter(segmenters.yolo(tmp_path / "seg.onnx", yolo_rows(ROWS))).people(picture()[None])
    np.testing.assert_allclose(found.scores, [0.95, 0.8], atol=1e-6)
    np.testing.assert_allclose(found.boxes, [BESIDE, CENTRAL], atol=1e-3)
    beside = box_mask(BESIDE) & ~box_mask(CENTRAL)
    for mask, true in zip(found.masks, (beside, box_mask(CENTRAL)), strict=True):
        assert (mask & ~grown(true, 2)).sum() == 0 and (grown(~true, 2) | mask).all()


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    padded = np.pad(mask, by)
    turns = [np.roll(padded, (y, x), (0, 1)) for y in range(-by, by + 1) for x in range(-by, by + 1)]
    return np.logical_or.reduce(turns)[by:-by, by:-by]


def test_yolo_with_suppression_inside(tmp_path: Path) -> None:
    rows = [[*in_letterbox(box), score, kind, *weights] for box, score, kind, weights in ROWS]
    path = segmenters.yolo(tmp_path / "seg.onnx", np.array(rows + [[0.0] * 8] * 10))
    (found,) = Segmenter(path).people(picture()[None])
    np.testing.assert_allclose(found.boxes, [BESIDE, CENTRAL], atol=1e-3)


def test_the_class_of_people_is_read_from_the_file(tmp_path: Path) -> None:
    rows = yolo_rows([(CENTRAL, 0.9, 0, (1, 0)), (BESIDE, 0.8, 1, (0, 1))])
    path = segmenters.yolo(tmp_path / "seg.onnx", rows, names="{0: 'car', 1: 'person'}")
    (found,) = Segmenter(path).people(picture()[None])
    np.testing.assert_allclose(found.boxes, [BESIDE], atol=1e-3)
    with pytest.raises(UserError, match="no person among them"):
        Segmenter(segmenters.yolo(tmp_path / "cars.onnx", rows, names="{0: 'car', 1: 'dog'}"))
    with pytest.raises(UserError, match="names of classes is damaged"):
        Segmenter(segmenters.yolo(tmp_path / "odd.onnx", rows, names="__import__('os').getcwd()"))


def detr_file(path: Path, slots: int, person: int, boxes: tuple = (CENTRAL, BESIDE)) -> Path:
    boxes = np.array(boxes) / [192, 256, 192, 256]
    dets = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    labels = np.full((2, slots), -6.0)
    labels[:, person] = 1.0, 3.0
    return segmenters.rf_detr(path, dets, labels)


@pytest.mark.parametrize(("slots", "person"), [(91, 1), (2, 0)])
def test_rf_detr_masks(tmp_path: Path, slots: int, person: int) -> None:
    path = detr_file(tmp_path / "detr.onnx", slots, person)
    (found,) = Segmenter(path).people(picture()[None].astype(np.float32) / 255)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp([-3.0, -1.0])))
    np.testing.assert_allclose(found.boxes, [BESIDE, CENTRAL], atol=1e-4)
    (made,) = crops(picture()[None]).batches(masks=mask_source(f"onnx:{path}"))
    np.testing.assert_array_equal(made.person_mask.numpy()[0], expected_tokens(CENTRAL))


def test_rf_detr_counts_only_people(tmp_path: Path) -> None:
    path = detr_file(tmp_path / "detr.onnx", 91, 17)
    (found,) = Segmenter(path).people(picture()[None])
    assert len(found.boxes) == 0 and found.masks.shape == (0, 256, 192)
    (made,) = crops(picture()[None]).batches(masks=mask_source(f"onnx:{path}"))
    assert not made.person_mask.any()


def test_letterbox_there_and_back() -> None:
    frame = Letterbox.fit((256, 192), (640, 640))
    assert (frame.inner, frame.top, frame.left) == ((640, 480), 0, 80)
    ready = frame.apply(torch.rand(1, 3, 256, 192), (640, 640))
    assert (ready[..., :80] == 114 / 255).all() and (ready[..., 560:] == 114 / 255).all()
    np.testing.assert_allclose(frame.boxes_back(in_letterbox(CENTRAL)[None]), [CENTRAL])
    np.testing.assert_allclose(frame.boxes_back(np.array([[0.0, 0, 640, 640]])), [[0, 0, 192, 256]])
    mask = torch.zeros(1, 160, 160)
    mask[:, :, 20:80] = 1  # the left half of the image
    back = frame.masks_back(mask, (640, 640))[0]
    assert (back[:, :94] > 0.5).all() and (back[:, 98:] < 0.5).all()


def test_overlap_and_suppression_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (40, 2))], axis=1)
    scores = rng.uniform(size=40)

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = width * height if width > 0 and height > 0 else 0.0
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    np.testing.assert_allclose(overlap(boxes, boxes[3]), [iou(box, boxes[3]) for box in boxes])
    kept: list[int] = []
    for index in sorted(range(40), key=lambda i: -scores[i]):
        if all(iou(boxes[index], boxes[other]) <= 0.3 for other in kept):
            kept.append(index)
    assert suppress(boxes, scores, 0.3).tolist() == kept and 1 < len(kept) < 40


def test_the_central_person_unless_another_was_followed() -> None:
    people = np.array([BESIDE, CENTRAL], float)
    assert choose(people, None) == 1
    assert choose(people, people[0] + 3) == 0
    assert choose(people, np.array([0.0, 0, 20, 20])) == 1
    assert choose(people[:0], people[0]) is None


class Scripted:
    """A segmenter that says what a table has for a frame; the number of the frame is in the image's first pixel."""

    def __init__(self, table: dict[int, list[tuple[int, ...]]]) -> None:
        self.table, self.asked = table, 0

    def people(self, images: np.ndarray) -> list[People]:
        self.asked += len(images)
        found = []
        for image in images:
            boxes = self.table.get(int(image[0, 0, 0]), [])
            masks = np.array([box_mask(box) for box in boxes]).reshape(-1, 256, 192)
            found.append(People(np.array(boxes, float).reshape(-1, 4), np.ones(len(boxes)), masks))
        return found


def scripted(table: dict[int, list[tuple[int, ...]]], frames: int, clips: int = 1) -> tuple[OnnxMasks, CropSet]:
    images = np.zeros((clips * frames, 256, 192, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(clips * frames)
    with TemporaryDirectory() as folder:
        source = OnnxMasks(hostile.detector(Path(folder) / "unused.onnx"))
    source.segmenter = Scripted(table)  # type: ignore[assignment]
    return source, crops(images, clips)


MOVING = {index: [(50 + 6 * index, 30, 130 + 6 * index, 226), (56, 24, 136, 232)] for index in range(10)}
"""The person of the first frame walks out of the middle; from frame 3 on another stands where he was."""
MOVING |= {index: MOVING[index][:1] for index in range(3)}


def test_a_track_is_kept_although_another_stands_in_the_middle() -> None:
    source, data = scripted(MOVING, 10)
    (made,) = data.batches(masks=source)
    true = [slow_coverage(box_mask(MOVING[index][0])) >= 0.1 for index in range(10)]
    np.testing.assert_array_equal(made.person_mask.numpy(), np.stack(true))
    alone, _ = scripted({9: MOVING[9]}, 10)
    assert (alone.person(data, np.array([9])).numpy()[0] != true[9]).any(), "without the track it is the other"


def test_masks_do_not_depend_on_the_order_of_asking() -> None:
    source, data = scripted(MOVING, 10)
    everything = np.arange(10)
    source.check(data, everything)
    late = source.person(data, np.array([9, 4]))
    early = source.person(data, everything)
    assert torch.equal(late, early[[9, 4]]) and source.segmenter.asked == 10
    unchecked, _ = scripted(MOVING, 10)
    assert torch.equal(unchecked.person(data, np.array([9])), early[9:])


def test_a_person_who_is_lost_keeps_the_mask_for_a_while_and_clips_are_apart() -> None:
    frames = LONGEST_GAP + 3
    source, data = scripted({0: [CENTRAL], frames + 1: [BESIDE]}, frames, clips=2)
    got = source.person(data, np.arange(2 * frames)).numpy()
    assert (got[: LONGEST_GAP + 1] == expected_tokens(CENTRAL)).all() and not got[LONGEST_GAP + 1 : frames + 1].any()
    assert (got[frames + 1] == (slow_coverage(box_mask(BESIDE)) >= 0.1)).all()


def test_files_that_are_no_segmenters(tmp_path: Path) -> None:
    data = crops(picture()[None])
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    rows = np.zeros((8, 30))
    node = segmenters.helper.make_node("Identity", ["images"], ["y"])
    image = (1, 3, 64, 64)
    segmenters.save(
        tmp_path / "b.onnx", [node], [segmenters.value("images", image)], [segmenters.value("y", image)], {}
    )
    faults = {
        "none.onnx": "none.onnx: no such file",
        "a.onnx": "a.onnx: not a readable ONNX file",
        "b.onnx": r"its outputs are y \[1, 3, 64, 64\], expected those of YOLO-seg",
    }
    for name, fault in faults.items():
        with pytest.raises(UserError, match=fault) as caught:
            data.batches(masks=mask_source(f"onnx:{tmp_path / name}"))
        assert "\n" not in str(caught.value)
    path = segmenters.yolo(tmp_path / "c.onnx", rows[:3])
    with pytest.raises(UserError, match=r"gave \(3, 30\) rows for 2 prototypes"):
        list(data.batches(masks=mask_source(f"onnx:{path}")))


def test_batches_of_one_input_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """And pictures that have nothing to do with each other take no mask of each other."""
    images, nobody = (
        np.stack([picture(), np.zeros((256, 192, 3), np.uint8)]),
        People(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 256, 192), bool)),
    )
    seen = [Seen(number, Box(0, (128.0, 128.0), 256.0), (192, 256), True) for number in range(2)]
    run, masks = Run(), OnnxMasks(segmenters.yolo(tmp_path / "seg.onnx", yolo_rows(ROWS)))
    look = masks.segmenter.people
    masks.segmenter.people = lambda shown: [  # type: ignore[method-assign]
        found if picture.any() else nobody for found, picture in zip(look(shown), shown, strict=True)
    ]

    def person(rows: slice, run: Run | None) -> np.ndarray:
        crops = CropFrames(images[rows], seen[rows], run=run)
        numbers = np.arange(len(crops.clip))
        masks.check(crops, numbers)
        found = masks.person(crops, numbers)
        assert found is not None
        return found.numpy()

    first = person(slice(0, 1), run)[0]
    assert first.any() and (person(slice(1, 2), run)[0] == first).all(), "the mask of the frame before"
    assert not person(slice(1, 2), Run())[0].any(), "another input"
    apart = person(slice(0, 2), None)
    assert (apart[0] == first).all() and not apart[1].any()
