"""A video made of crops with known ground truth, so that the whole way from a video can be scored.

Every clip is a person of its own. Its crops are pasted pixel for pixel into a larger picture, at a place that wanders
from frame to frame; behind them stands a blurred picture. The box of each is known exactly, so what differs from
scoring the crops themselves is what the way through a video does: coding, cutting, batching, tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from hmrcompress.data.crops import CropSet
from hmrcompress.data.mask_files import MASK_FILE
from hmrcompress.errors import UserError
from hmrcompress.io.manifests import FolderKind
from hmrcompress.io.npz import write_npz
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import is_stream
from hmrcompress.io.seals import seal
from hmrcompress.pipeline.drawing import video_writer
from hmrcompress.records import CROP

HEIGHT, MARGIN, GAP = 360, 48, 96
LOSSLESS = {"codec": "ffv1", "pixels": "bgr0", "options": {}}
"""FFV1 in RGB: what is read is what was written, bit for bit."""
KIND = "starter video"
MASKS = FolderKind(KIND, None, ("*.png",))
PERIOD = 90
"""Frames of a person's way around its place."""


def places(people: int, frames: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Top left corners (frames,people,2) int64 = (x, y) of the crops in the picture, and its (width, height)."""
    width = 2 * MARGIN + people * CROP.width + (people - 1) * GAP
    turn = 2 * np.pi * (np.arange(frames)[:, None] / PERIOD + np.arange(people)[None] / 3)
    x = MARGIN + np.arange(people) * (CROP.width + GAP) + np.rint(0.9 * MARGIN * np.sin(turn))
    y = (HEIGHT - CROP.height) / 2 + np.rint(0.5 * MARGIN * np.cos(turn))
    return np.stack([x, y], -1).astype(np.int64), (width + width % 2, HEIGHT)


def write_crop_video(
    path: Path,
    crops: CropSet,
    clips: Sequence[int],
    *,
    frames: int | None = None,
    lossless: bool = False,
    overwrite: bool | OutputRule = False,
) -> tuple[Path, Path | None]:
    """Writes a video of these clips side by side, track by clip number; beside it `NAME.boxes.npz`, and the folder
    `NAME.masks` for `--masks files:` where the data have masks. Returns both paths.

    lossless: FFV1 (.mkv), else x264 at a constant rate factor of 12. UserError for clips that are not there, and as
    `io.outputs`.
    """
    outputs = OutputRule.of(overwrite)
    check_video(path, outputs)
    for clip in clips:
        if clip not in crops.clip_ids:
            raise UserError(
                f"there is no clip {clip}", crops.name, f"It has clips {crops.clip_ids[0]} to {crops.clip_ids[-1]}"
            )
    rows = [crops.frames_of(clip)[:frames] for clip in clips]
    count = min(map(len, rows))
    corners, (width, height) = places(len(clips), count)
    behind = _backdrop(np.asarray(crops.arrays["images"][rows[0][0]]), (width, height))
    how = LOSSLESS if lossless else {"options": {"crf": "12", "preset": "fast"}}
    with outputs.file(path, KIND) as temporary, video_writer(temporary, crops.fps, **how) as write:
        for number in range(count):
            picture = behind.copy()
            for person, mine in enumerate(rows):
                x, y = corners[number, person]
                picture[y : y + CROP.height, x : x + CROP.width] = crops.arrays["images"][mine[number]]
            write(picture)
    boxes = path.with_suffix(".boxes.npz")
    with outputs.file(boxes, KIND) as temporary:
        centre = corners + np.array([CROP.width / 2, CROP.height / 2])
        people = {
            "frame": np.repeat(np.arange(count), len(clips)),
            "track": np.tile(np.asarray(clips), count),
            "centre": centre.reshape(-1, 2),
            "side": np.full(count * len(clips), float(CROP.height)),
            "image_size": np.tile([width, height], (count * len(clips), 1)),
        }
        write_npz(temporary, people)
    return boxes, _write_masks(path.with_suffix(".masks"), crops, clips, rows, count, outputs)


def check_video(path: Path, outputs: OutputRule) -> None:
    """UserError where the video, or what goes beside it, must not be written."""
    if is_stream(path):
        raise UserError("is no file, and boxes and masks go beside it", path, "Give it a name")
    outputs.check_file(path, KIND)
    outputs.check_file(path.with_suffix(".boxes.npz"), KIND)
    outputs.check_folder(path.with_suffix(".masks"), MASKS)


def _write_masks(
    folder: Path, crops: CropSet, clips: Sequence[int], rows: Sequence[np.ndarray], count: int, outputs: OutputRule
) -> Path | None:
    if crops.column("masks") is None:
        return None
    with outputs.folder(folder, MASKS) as temporary:
        for clip, mine in zip(clips, rows, strict=True):
            for number in range(count):
                masks = crops.pixel_masks(mine[number : number + 1])
                assert masks is not None
                picture = temporary / MASK_FILE.format(clip=clip, frame=number)
                Image.fromarray(masks[0].astype(np.uint8) * np.uint8(255)).save(picture)
                seal(picture, KIND)
    return folder


def _backdrop(crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture of that (width, height), blurred and darkened beyond recognition."""
    large = Image.fromarray(crop).resize(size).filter(ImageFilter.GaussianBlur(size[1] / 8))
    return (np.asarray(large) * 0.55).astype(np.uint8)
