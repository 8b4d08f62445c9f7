"""The condition of CameraHMR against the formula in plain Python, and against the projection that it stands for."""

import math
import random

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.data.conditions import bbox_info, check_condition
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.starter.scene.camera import Placement


def test_the_formula_number_by_number():
    source = random.Random(0)
    boxes = [
        [source.uniform(-200, 4000), source.uniform(-200, 3000), source.uniform(5, 3000)]
        + [float(source.randrange(100, 5000)), float(source.randrange(100, 5000)), source.uniform(50, 9000)]
        for _ in range(50)
    ]
    given = torch.tensor(boxes, dtype=torch.float64)
    found = bbox_info(given[:, :2], given[:, 2], given[:, 3:5], given[:, 5])
    assert found.shape == (50, 3) and found.dtype == torch.float32
    for row, (cx, cy, b, width, height, f) in zip(found.tolist(), boxes, strict=True):
        wanted = ((cx - width / 2) / f, (cy - height / 2) / f, b / f)
        assert row == pytest.approx(wanted, rel=1e-6, abs=1e-7)


def test_it_is_the_angle_under_which_the_box_is_seen():
    # A point at 30 degrees to the right of the optical axis of a 1920 x 1080 picture, f = 1500, and a box around it
    # that is as wide as the distance: the first number is tan 30, the last the box's share of the distance.
    focal, angle = 1500.0, math.radians(30)
    centre = np.array([[960 + focal * math.tan(angle), 540.0]])
    found = bbox_info(centre, [1500.0], (1920, 1080), focal)
    np.testing.assert_allclose(found, [[math.tan(angle), 0.0, 1.0]], atol=1e-6)


def test_one_picture_and_one_focal_length_stand_for_all():
    centres, sides = torch.rand(4, 2) * 900, torch.rand(4) * 300 + 1
    each = bbox_info(centres, sides, torch.tensor([[640.0, 480.0]] * 4), torch.full((4,), 700.0))
    assert torch.equal(bbox_info(centres, sides, (640, 480), 700.0), each)
    assert bbox_info(torch.zeros(0, 2), torch.zeros(0), (640, 480), 700.0).shape == (0, 3)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"center": [3.0, 4.0]}, "box centres"),
        ({"center": [[math.nan, 0.0]]}, "box centres"),
        ({"size": [[5.0]]}, "box sizes"),
        ({"size": [0.0]}, "box sizes"),
        ({"image_size": [640.0]}, "image sizes"),
        ({"image_size": [640.0, 0.0]}, "image sizes"),
        ({"focal": [-3.0]}, "focal lengths"),
        ({"focal": math.inf}, "focal lengths"),
        ({"focal": [1.0, 2.0]}, "focal lengths"),
    ],
)
def test_what_cannot_be_a_box_is_refused_by_name(change, named):
    given = {"center": [[10.0, 20.0]], "size": [5.0], "image_size": [640.0, 480.0], "focal": [700.0]} | change
    with pytest.raises(UserError, match=named):
        bbox_info(**given)


def test_a_condition_that_is_missing_or_misshapen_is_refused():
    with pytest.raises(UserError, match="bbox_info"):
        check_condition(None, 2)
    for wrong in (torch.zeros(2, 2), torch.zeros(3, 3), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(ShapeError, match=r"expected floats of shape \(2, 3\)"):
            check_condition(wrong, 2)
    right = torch.zeros(2, 3)
    assert check_condition(right, 2) is right


def test_crop_sets_hand_them_to_batches(tmp_path):
    arrays, wanted = tiny.crop_arrays(), np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    write_crops(tmp_path / "crops.npz", arrays | {"conditions": wanted}, tiny.crop_meta())
    crops = CropSet.open(tmp_path / "crops.npz")
    batch = next(crops.batches(np.array([7, 2]), 2))
    assert batch.condition is not None
    np.testing.assert_array_equal(batch.condition, wanted[[7, 2]])
    images, mask, condition = batch.inputs("cpu")
    assert images is batch.images and mask is None and condition is batch.condition
    np.testing.assert_array_equal(batch.to(torch.float64).condition, wanted[[7, 2]])

    without = CropSet(arrays, tiny.crop_meta())
    assert without.conditions is None and len(next(without.batches(np.array([1]))).inputs()) == 2
    with pytest.raises(UserError, match=r"array conditions: got shape \(12, 2\)"):
        CropSet(arrays | {"conditions": wanted[:, :2]}, tiny.crop_meta())


def test_the_starter_world_says_where_its_boxes_are():
    source = np.random.default_rng(0)
    count = 5
    place = Placement(
        root=np.zeros((count, 3, 3)),
        transl=np.zeros((count, 3)),
        focal=source.uniform(200, 900, count),
        centre=source.uniform(-100, 400, (count, 2)),
    )
    conditions, depth = place.conditions.astype(np.float64), 3.0
    assert place.conditions.dtype == np.float32
    # A point of the camera frame on the ray through the box's middle, and one a box's height below it.
    middle = depth * np.concatenate([conditions[:, :2], np.ones((count, 1))], axis=1)
    below = middle + depth * np.stack([np.zeros(count), conditions[:, 2], np.zeros(count)], axis=1)
    seen, seen_below = (place.focal[:, None] * p[:, :2] / p[:, 2:] + place.centre for p in (middle, below))
    np.testing.assert_allclose(seen, np.tile([96.0, 128.0], (count, 1)), atol=1e-3)
    np.testing.assert_allclose(seen_below - seen, np.tile([0.0, 256.0], (count, 1)), atol=1e-3)
