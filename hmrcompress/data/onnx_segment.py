"""Segmentation networks in ONNX files, run in a helper process: YOLO-seg and RF-DETR-seg, told by their outputs."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import torch

from hmrcompress.data import rf_detr, yolo
from hmrcompress.data.onnx_network import PictureNetwork
from hmrcompress.data.people import People
from hmrcompress.errors import UserError

YOLO_SCORE, RF_DETR_SCORE = 0.25, 0.5
MOST_CLASSES = 100_000
KNOWN = "YOLO-seg (one output of 3 dimensions, one of 4) or RF-DETR-seg (dets, labels, masks)"


class Segmenter:
    """A network that finds people. `layout` is `yolo` or `rf_detr`; `size` the height and width of its input."""

    def __init__(self, path: Path | str) -> None:
        """Raises UserError where the file is missing, damaged, or of another layout; MissingExtra."""
        self.path = Path(path)
        self.network = PictureNetwork(self.path)
        self.size, self.one_by_one = self.network.size, self.network.one_by_one
        self.layout, self._wanted = self._layout()
        self.person = self._person() if self.layout == "yolo" else 0

    def people(self, images: np.ndarray) -> list[People]:
        """The people in each of images (n,H,W,3) RGB, uint8 or floats in 0..1. UserError where the outputs do not fit
        each other."""
        scale = 255 if images.dtype == np.uint8 else 1
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / scale
        size = (pixels.shape[2], pixels.shape[3])
        frame = yolo.Letterbox.fit(size, self.size)
        ready = frame.apply(pixels, self.size) if self.layout == "yolo" else rf_detr.prepare(pixels, self.size)
        found = zip(*self.network.run(ready.numpy(), self._wanted), strict=True)
        return [self._found(one, frame, size) for one in found]

    def _found(self, outputs: tuple[np.ndarray, ...], frame: yolo.Letterbox, size: tuple[int, int]) -> People:
        """The people in one image. UserError where its outputs do not fit each other."""
        if self.layout == "rf_detr":
            boxes, labels, masks = outputs
            queries = len(boxes)
            fits = boxes.shape == (queries, 4) and labels.ndim == 2 and masks.ndim == 3
            if not fits or not len(labels) == len(masks) == queries or not labels.shape[1] or 0 in masks.shape[1:]:
                shapes = f"dets {boxes.shape}, labels {labels.shape}, masks {masks.shape}"
                raise UserError(f"gave {shapes} for an image, expected (Q, 4), (Q, classes), (Q, h, w)", self.path)
            return rf_detr.people(boxes, labels, masks, size, RF_DETR_SCORE)
        rows, prototypes = outputs
        if rows.ndim != 2 or prototypes.ndim != 3 or 0 in prototypes.shape:
            shapes = f"rows {rows.shape} and prototypes {prototypes.shape}"
            raise UserError(f"gave {shapes} for an image, expected (4 + classes + M, N) and (M, h, w)", self.path)
        count = len(prototypes)
        if min(rows.shape) < 5 + count and rows.shape[1] != 6 + count:
            raise UserError(f"gave {rows.shape} rows for {count} prototypes", self.path)
        if rows.shape[1] != 6 + count and self.person >= rows.shape[0] - 4 - count:
            what = f"its table of names calls class {self.person} person, and it has {rows.shape[0] - 4 - count}"
            raise UserError(what, self.path)
        return yolo.people(rows, prototypes.astype(np.float32), frame, self.size, self.person, YOLO_SCORE)

    def _layout(self) -> tuple[str, tuple[str, ...]]:
        """The layout, and the outputs to ask for in its order."""
        outputs = {output.name: output.shape for output in self.network.outputs}
        if set(rf_detr.OUTPUTS) <= set(outputs):
            return "rf_detr", rf_detr.OUTPUTS
        if sorted(len(shape) for shape in outputs.values()) == [3, 4]:
            return "yolo", tuple(sorted(outputs, key=lambda name: len(outputs[name])))
        shown = ", ".join(f"{name} {list(shape)}" for name, shape in outputs.items())
        raise UserError(f"its outputs are {shown[:300]}, expected those of {KNOWN}", self.path)

    def _person(self) -> int:
        """Number of the class `person`: as the file's own table of names says, else 0. UserError where it has none."""
        text = self.network.names
        try:
            names = ast.literal_eval(text) if text else {0: "person"}
            number = next(number for number, name in names.items() if name == "person")
        except StopIteration:
            raise UserError("its classes have no person among them", self.path) from None
        except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError) as error:
            raise UserError("its table of names of classes is damaged", self.path) from error
        if not isinstance(number, int) or not 0 <= number < MOST_CLASSES:
            raise UserError(f"its table of names calls class {number!r:.40} person", self.path)
        return number
