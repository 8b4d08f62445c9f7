"""A person detector in an ONNX file, run in a helper process, in YOLO's layouts of input and output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hmrcompress.data.onnx_network import PictureNetwork
from hmrcompress.data.people import suppress
from hmrcompress.data.yolo import Letterbox
from hmrcompress.errors import UserError
from hmrcompress.pipeline.boxes import BOX_SCALE
from hmrcompress.pipeline.followed import LOW_SCORE, Followed

PERSON = 0
"""Class of people in COCO's order, which detectors for it share."""
MOST_OVERLAP = 0.6
MOST_CANDIDATES, MOST_FOUND = 1000, 300
"""The best boxes of a frame, before and after those that overlap are left out: detectors themselves give no more. How
many people are read, and that there were more, is `checked_boxes`' to say."""
Array = NDArray[np.float64]


def decode_yolo(output: NDArray[np.float32], least_score: float = LOW_SCORE) -> tuple[Array, Array]:
    """People in a detector's raw output for one picture: corners (n,4) in its pixels and scores (n,), best first.

    Layouts: (1, 4+C, N) with (cx, cy, w, h, scores by class) in columns, as YOLOv8 and later export it; (1, N, 5+C)
    with (cx, cy, w, h, objectness, scores by class), YOLOv5; (1, N, 6) with (left, top, right, bottom, score, class),
    exported with suppression inside or YOLOv10, which YOLOv5 of one class is told from by its numbers. The first two
    still overlap (`data.people.suppress`). At most `MOST_CANDIDATES`; rows with what is no number are left out. Raises
    UserError.
    """
    if output.ndim != 3 or output.shape[0] != 1:
        raise UserError(f"its output has shape {output.shape}, expected (1, 4+C, N), (1, N, 5+C) or (1, N, 6)")
    rows = output[0].astype(np.float64)
    if rows.shape[1] == 6 and _is_suppressed(rows):
        kept = rows[(rows[:, 4] >= least_score) & (rows[:, 5] == PERSON)]
        corners, scores = kept[:, :4], kept[:, 4]
    else:
        # Candidates are many more than numbers of one, whatever the order of the axes.
        by_column = rows.shape[0] < rows.shape[1]
        rows = rows.T if by_column else rows
        if rows.shape[1] < (least := 5 if by_column else 6):
            raise UserError(f"its output has {rows.shape[1]} numbers a box, expected at least {least}")
        scores = rows[:, 4 + PERSON] if by_column else rows[:, 4] * rows[:, 5 + PERSON]
        found = scores >= least_score
        centre, half, scores = rows[found, :2], rows[found, 2:4] / 2, scores[found]
        corners = np.concatenate([centre - half, centre + half], axis=1)
    sound = np.isfinite(corners).all(1) & np.isfinite(scores)
    corners, scores = corners[sound], scores[sound]
    order = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
    return corners[order], scores[order]


def _is_suppressed(rows: Array) -> bool:
    """Whether rows of six are corners, score and class, and not centre, size, objectness and the score of one class:
    classes are whole numbers, and corners are in order."""
    sound = rows[np.isfinite(rows).all(1)]
    likely = sound[np.argsort(-sound[:, 4], kind="stable")[:MOST_FOUND]]
    return bool(((likely[:, 5] % 1 == 0) & (likely[:, 2:4] >= likely[:, :2]).all(1) | ~likely.any(1)).all())


class Detector(Followed):
    """Boxes from an ONNX detector, tracked over frames."""

    def __init__(self, path: Path, *, scale: float = BOX_SCALE, every: int = 1, cuda: bool = False) -> None:
        """Raises UserError as `PictureNetwork`, MissingExtra without onnxruntime."""
        self.network = PictureNetwork(path, cuda=cuda)
        if not self.network.outputs:
            raise UserError("it has no output", path)
        super().__init__(f"onnx:{path}", scale=scale, every=every)
        self.path, self.size = path, self.network.size

    def people(self, image: NDArray[np.uint8]) -> tuple[Array, Array]:
        """As `Followed.people`. Raises UserError for an output of another layout."""
        fitted = Letterbox.fit(image.shape[:2], self.size)
        whole = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        output = self.network.run(fitted.apply(whole, self.size).numpy(), [self.network.outputs[0].name])[0]
        try:
            corners, scores = decode_yolo(output)
        except UserError as error:
            raise UserError(error.what, self.path, "Is it a YOLO detector?") from error
        kept = suppress(corners, scores, MOST_OVERLAP)[:MOST_FOUND]
        return fitted.boxes_back(corners[kept]), scores[kept]
