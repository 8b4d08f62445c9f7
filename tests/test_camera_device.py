"""`camera:0`: where there is no camera, and with a video file in the place of the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hmrcompress.data.crops import CropSet
from hmrcompress.errors import UserError
from hmrcompress.pipeline import camera_device
from hmrcompress.pipeline.camera_device import camera_number
from hmrcompress.pipeline.frames import open_source
from hmrcompress.pipeline.inputs import find_inputs
from hmrcompress.pipeline.predict import PredictSettings
from hmrcompress.pipeline.starter_video import write_crop_video
from hmrcompress_cli.main import app


def test_what_is_a_camera() -> None:
    assert [camera_number(each) for each in ("camera:0", "camera:12", "camera:", "camera:a", "a/camera:0")] == [
        0, 12, None, None, None,
    ]  # fmt: skip


def test_without_a_camera_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_device, "DEVICES", tmp_path)
    with pytest.raises(UserError, match=r"camera:0: no such camera at this machine: .*video0 is not there\. There is"):
        open_source("camera:0")
    done = CliRunner().invoke(
        app, ["predict", "starter", "camera:0", "-o", str(tmp_path / "out"), "--limit", "1", "--no-overlay"]
    )
    assert done.exit_code == 2 and "no such camera at this machine" in " ".join(done.output.split())
    (tmp_path / "video3").write_bytes(b"not a device")
    with pytest.raises(UserError, match="There are camera:3"):
        open_source("camera:1")
    with pytest.raises(UserError, match="camera:3: the camera cannot be opened"):
        open_source("camera:3")


def test_frames_come_from_the_device(tmp_path: Path, tiny_crops: CropSet, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "video0"
    write_crop_video(tmp_path / "v.mkv", tiny_crops, (0, 1), lossless=True)
    (tmp_path / "v.mkv").rename(video)
    monkeypatch.setattr(camera_device, "DEVICES", tmp_path)
    monkeypatch.setattr(camera_device, "FORM", None)
    source = open_source("camera:0")
    taken, stored = list(source.frames(4)), list(open_source(video).frames(4))
    assert len(taken) == 4 and source.camera is not None and source.is_video and source.stamped
    for one, other in zip(taken, stored, strict=True):
        assert np.array_equal(one.image, other.image) and one.seconds == other.seconds and one.number == other.number
    assert source.time()["base"] == "stamps"
    with pytest.raises(UserError, match="Say with --limit"):
        PredictSettings(overlay=False).check(source)
    with pytest.raises(UserError, match="Add --no-overlay"):
        PredictSettings(limit=3).check(source)
    PredictSettings(limit=3, overlay=False).check(source)
    with pytest.raises(UserError, match="--fps"):
        open_source("camera:0", fps=30)


def test_a_file_of_that_name_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_inputs(["camera:0"]).paths == (Path("camera:0"),)
    Path("camera:0").write_bytes(b"not a video")
    with pytest.raises(UserError) as told:
        open_source("camera:0")
    assert "camera at this machine" not in str(told.value)
