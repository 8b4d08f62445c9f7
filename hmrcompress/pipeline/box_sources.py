"""From the name of a source of boxes, as `--boxes` has it, to the source."""

from __future__ import annotations

from pathlib import Path

from hmrcompress.errors import UserError
from hmrcompress.pipeline.boxes import BOX_SCALE, BoxSource, FullFrame, read_boxes
from hmrcompress.pipeline.detect import Detector
from hmrcompress.pipeline.people import PeopleDetector


def open_boxes(text: str, *, scale: float = BOX_SCALE, every: int = 1, cuda: bool = False) -> BoxSource:
    """`full`, `auto`, `onnx:FILE`, or a file of boxes -> a `BoxSource`. every: detectors look at every k-th frame.
    Raises UserError."""
    if not 0.5 <= scale <= 4:
        raise UserError(f"got {scale:g}, expected 0.5 to 4", "predict.box_scale")
    kind, _, rest = text.partition(":")
    if kind == "onnx" and rest:
        return Detector(Path(rest), scale=scale, every=every, cuda=cuda)
    if text == "auto":
        return PeopleDetector(scale=scale, every=every, cuda=cuda)
    if every > 1:
        raise UserError(f"{text} has no detector that could leave frames out", "predict.stride_detect")
    return FullFrame() if text == "full" else read_boxes(Path(text), scale)
