"""A frame in, its bodies out: the same bodies as those of the whole pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hmrcompress as hc
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import NoMasks
from hmrcompress.errors import UserError
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.pipeline.boxes import Box, FullFrame, read_boxes
from hmrcompress.pipeline.frame_by_frame import FrameByFrame
from hmrcompress.pipeline.frames import Frame, open_source
from hmrcompress.pipeline.predict import PredictSettings, Reader, predict
from hmrcompress.pipeline.starter_video import write_crop_video
from hmrcompress.pipeline.work import Run
from hmrcompress.plan import TokenSettings


def test_it_gives_what_predict_writes(
    tmp_path: Path, tiny_crops: CropSet, tiny_model: Path, tiny_body: BodyModel
) -> None:
    """On every frame, in every column but for the batch that a crop was in: float32 sums of another order."""
    video = tmp_path / "v.mkv"
    boxes, _ = write_crop_video(video, tiny_crops, (0, 1), lossless=True)
    predictor = hc.Predictor(str(tiny_model), boxes=read_boxes(boxes), body=tiny_body, device="cpu", masks="none")
    reader = predictor.reader
    predict(open_source(video), read_boxes(boxes), reader, tmp_path / "out", PredictSettings(overlay=False, glb=False))
    whole = np.load(tmp_path / "out" / "params.npz")
    seen = 0
    for frame in open_source(video).frames():
        found = predictor(frame.image, frame.seconds)
        rows = whole["frame"] == frame.number
        assert set(found) == set(whole.files) - {"meta"} and found["track"].tolist() == [0, 1]
        for name, values in found.items():
            assert values.dtype == whole[name].dtype and np.allclose(values, whole[name][rows], atol=2e-4), name
        seen += int(rows.sum())
    assert seen == len(whole["frame"]) == 12
    latency = predictor.latency
    assert latency.frames == 6 and 0 < latency.median_ms <= latency.worst_ms and latency.lookahead == 0


class Nobody:
    name = "nobody"

    def boxes(self, frame: Frame) -> list[Box]:
        return []


@pytest.fixture
def reader(tiny_model: Path, tiny_body: BodyModel) -> Reader:
    return hc.Predictor(str(tiny_model), boxes="full", body=tiny_body, device="cpu", masks="none").reader


def test_nobody_and_another_size(reader: Reader) -> None:
    """With nobody there are no columns; where the size changes, a full frame is somebody else."""
    image = np.zeros((64, 48, 3), np.uint8)
    assert FrameByFrame(reader, Nobody())(image) == {}
    one = FrameByFrame(reader, FullFrame(), focal=500.0)
    tracks = [
        int(one(each, float(n))["track"][0]) for n, each in enumerate((image, image, np.zeros((48, 64, 3), np.uint8)))
    ]
    assert tracks == [0, 0, 1]
    assert one.latency.frames == 3 and one(image, 9.0)["focal"].tolist() == [500.0]


def test_masks_go_on_from_frame_to_frame_until_the_size_changes(reader: Reader) -> None:
    """What frames of one size have in common stays the same, so that a source of masks goes on where it was."""
    runs: list[Run | None] = []

    class Noting(NoMasks):
        def person(self, crops: Any, indices: np.ndarray) -> None:
            runs.append(crops.run)

    small, wide = np.zeros((64, 48, 3), np.uint8), np.zeros((48, 64, 3), np.uint8)
    one = FrameByFrame(replace(reader, masks=Noting()), FullFrame())
    for number, image in enumerate((small, small, wide, wide, wide)):
        one(image, float(number))
    assert runs[0] is runs[1] is not None and runs[2] is runs[3] is runs[4] is not None and runs[1] is not runs[2]


def test_what_is_no_picture_or_no_time_is_refused(reader: Reader) -> None:
    one = FrameByFrame(reader, FullFrame())
    for wrong in (np.zeros((64, 48), np.uint8), np.zeros((64, 48, 4), np.uint8), np.zeros((64, 48, 3), np.float32)):
        with pytest.raises(UserError, match=r"expected \(H, W, 3\) uint8"):
            one(wrong)
    one(np.zeros((64, 48, 3), np.uint8), 1.0)
    for late in (1.0, 0.5, float("nan")):
        with pytest.raises(UserError, match="seconds that rise"):
            one(np.zeros((64, 48, 3), np.uint8), late)


def test_the_packaged_segmenter_marks_people_where_tokens_need_it(
    tiny_model: Path, tiny_body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--masks auto` without a probe: for tokens that are merged, and for adaptive ones; else nobody asks."""

    def masks(**more: Any) -> str:
        return hc.Predictor(str(tiny_model), boxes="full", body=tiny_body, device="cpu", **more).reader.masks.name

    assert masks() == "none" and masks(buckets=(90, 150)) == "auto"
    monkeypatch.setattr(Checkpoint, "tokens", TokenSettings(keep=90, per_layer=40))
    assert masks() == "auto" and masks(masks="none") == "none"
