"""Segmentation networks in ONNX files, run through onnxruntime: YOLO-seg and RF-DETR-seg, told by their outputs."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data import rf_detr, yolo
from hmrcompress.data.people import People
from hmrcompress.errors import MissingExtra, UserError

YOLO_SCORE, RF_DETR_SCORE = 0.25, 0.5
DEFAULT_SIZE = 640
"""Of a YOLO file whose input is of any size."""
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
KNOWN = "YOLO-seg (one output of 3 dimensions, one of 4) or RF-DETR-seg (dets, labels, masks)"


class Segmenter:
    """A network that finds people. `layout` is `yolo` or `rf_detr`; `size` the height and width of its input."""

    def __init__(self, path: Path | str) -> None:
        """Raises UserError where the file is missing, damaged, or of another layout; MissingExtra."""
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError("no such file", self.path)
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingExtra("onnxruntime", "export")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime has a dozen classes for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"not a readable ONNX file ({reason})", self.path) from error
        self.layout = self._layout()
        self.input, self.type, self.size, self.one_by_one = self._input()
        self.person = self._person() if self.layout == "yolo" else 0

    def people(self, images: np.ndarray) -> list[People]:
        """The people in each of images (n,H,W,3) RGB, uint8 or floats in 0..1. UserError where the outputs do not fit
        each other."""
        scale = 255 if images.dtype == np.uint8 else 1
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / scale
        step = 1 if self.one_by_one else len(pixels)
        return [found for at in range(0, len(pixels), step) for found in self._people(pixels[at : at + step])]

    def _people(self, pixels: Tensor) -> list[People]:
        size = (pixels.shape[2], pixels.shape[3])
        frame = yolo.Letterbox.fit(size, self.size)
        ready = frame.apply(pixels, self.size) if self.layout == "yolo" else rf_detr.prepare(pixels, self.size)
        outputs = self._run(ready.numpy().astype(self.type))
        if any(len(output) != len(pixels) for output in outputs):
            raise UserError(f"gave {len(outputs[0])} results for {len(pixels)} images", self.path)
        if self.layout == "yolo":
            rows, prototypes = outputs
            if min(rows.shape[1:]) < 5 + prototypes.shape[1]:
                raise UserError(f"gave {rows.shape} rows for {prototypes.shape[1]} prototypes", self.path)
            return [
                yolo.people(row, one.astype(np.float32), frame, self.size, self.person, YOLO_SCORE)
                for row, one in zip(rows, prototypes, strict=True)
            ]
        boxes, labels, masks = outputs
        return [rf_detr.people(*one, size, RF_DETR_SCORE) for one in zip(boxes, labels, masks, strict=True)]

    def _run(self, ready: np.ndarray) -> list[np.ndarray]:
        """Outputs in the order that the layout names them."""
        names = [output.name for output in self.session.get_outputs()]
        try:
            found = dict(zip(names, self.session.run(None, {self.input: ready}), strict=True))
        except Exception as error:  # noqa: BLE001 - as above
            raise UserError(f"the network failed ({' '.join(str(error).split())[:200]})", self.path) from error
        if self.layout == "rf_detr":
            return [found[name] for name in rf_detr.OUTPUTS]
        return sorted(found.values(), key=lambda output: output.ndim)

    def _layout(self) -> str:
        outputs = {output.name: output.shape for output in self.session.get_outputs()}
        if set(rf_detr.OUTPUTS) <= set(outputs):
            return "rf_detr"
        if sorted(len(shape) for shape in outputs.values()) == [3, 4]:
            return "yolo"
        shown = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
        raise UserError(f"its outputs are {shown}, expected those of {KNOWN}", self.path)

    def _input(self) -> tuple[str, Any, tuple[int, int], bool]:
        """Name, dtype, height and width of the input, and whether it takes only one image at a time."""
        first = self.session.get_inputs()[0]
        if len(self.session.get_inputs()) != 1 or len(first.shape) != 4 or first.type not in INPUT_TYPES:
            raise UserError(f"its input is {first.type} {first.shape}, expected one of images (B,3,H,W)", self.path)
        height, width = (side if isinstance(side, int) else DEFAULT_SIZE for side in first.shape[2:])
        return first.name, INPUT_TYPES[first.type], (height, width), isinstance(first.shape[0], int)

    def _person(self) -> int:
        """Number of the class `person`: as the file's own table of names says, else 0. UserError where it has none."""
        text = self.session.get_modelmeta().custom_metadata_map.get("names", "")
        try:
            names = ast.literal_eval(text) if text else {0: "person"}
            return next(int(number) for number, name in names.items() if name == "person")
        except StopIteration:
            raise UserError("its classes have no person among them", self.path) from None
        except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError) as error:
            raise UserError("its table of names of classes is damaged", self.path) from error
