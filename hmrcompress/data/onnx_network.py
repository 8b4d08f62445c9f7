"""Networks that take pictures, in ONNX files of somebody else's: detectors and segmenters of people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hmrcompress.errors import UserError, shown
from hmrcompress.io.onnx_process import OnnxProcess, Port

DEFAULT_SIDE, LARGEST_SIDE = 640, 4096
"""Pixels of an input whose sides are free, and at most: a larger one takes gigabytes for every picture."""
MOST_AT_A_TIME = 64
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class PictureNetwork:
    """A network in a helper process (`io.onnx_process`) that takes pictures as (n,3,H,W).

    `size` is the height and width of its input, `outputs` are what it gives, `one_by_one` says that it takes a single
    picture in a call, `names` is the text of its table of class names.
    """

    def __init__(self, path: Path | str, *, cuda: bool = False) -> None:
        """Raises UserError for a file that is no such network, MissingExtra."""
        self.path = Path(path)
        self._process = OnnxProcess(self.path, threads=torch.get_num_threads(), cuda=cuda)
        self.outputs: Sequence[Port] = self._process.outputs
        self.names = self._process.names
        try:
            self.size, self.one_by_one, self._type = self._input()
        except UserError:
            self._process.close()
            raise

    def run(self, pictures: np.ndarray, wanted: Sequence[str]) -> list[np.ndarray]:
        """The outputs `wanted` for pictures (n,3,*size): arrays of numbers, each (n,…). UserError as `OnnxProcess`, and
        for results of another number of pictures."""
        step = 1 if self.one_by_one else MOST_AT_A_TIME
        ready: np.ndarray = np.ascontiguousarray(pictures, self._type)
        parts = [self._part(ready[at : at + step], wanted) for at in range(0, len(ready), step)]
        try:
            return [np.concatenate(one) for one in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
        except ValueError as error:
            raise UserError("gave results of other shapes for other pictures", self.path) from error

    def _part(self, pictures: np.ndarray, wanted: Sequence[str]) -> list[np.ndarray]:
        found = self._process.run(pictures, wanted)
        for name, output in zip(wanted, found, strict=True):
            if not output.ndim or len(output) != len(pictures):
                what = f"its output {shown(name)} has the shape {output.shape} for {len(pictures)} pictures"
                raise UserError(what, self.path)
        return found

    def _input(self) -> tuple[tuple[int, int], bool, type]:
        inputs = self._process.inputs
        if len(inputs) != 1:
            raise UserError(f"it takes {len(inputs)} inputs, expected pictures alone", self.path)
        kind, shape = inputs[0].type, inputs[0].shape
        if len(shape) != 4 or kind not in INPUT_TYPES:
            raise UserError(f"its input is {kind} {list(shape)}, expected pictures (1, 3, H, W)", self.path)
        count, channels, *sides = (side if isinstance(side, int) and side != -1 else None for side in shape)
        if channels not in (3, None):
            raise UserError(
                f"it takes pictures of {channels} channels, expected 3", self.path, "RGB is what it is given"
            )
        if count not in (1, None):
            remedy = "Export it with a batch of one, or of any size"
            raise UserError(f"it takes {count} pictures at a time, expected one or any number", self.path, remedy)
        height, width = (DEFAULT_SIDE if side is None else side for side in sides)
        if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
            what = f"it takes pictures of {width}x{height} pixels, expected sides of 1 to {LARGEST_SIDE}"
            raise UserError(what, self.path)
        return (height, width), count == 1, INPUT_TYPES[kind]
