"""Small ONNX graphs with the inputs and outputs of YOLO-seg and RF-DETR-seg: one person is what is red, one what is
green, so that their masks are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = helper.make_opsetid("", 17)


def save(
    path: Path, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray], names: str = ""
) -> Path:
    """Writes a graph; every name in `constants` is an initializer."""
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, held), opset_imports=[OPSET], ir_version=8)
    if names:
        helper.set_model_props(model, {"names": names})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def value(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def colours(pool: int, offset: str, result: str) -> list:
    """Nodes: red and green channels of `images`, averaged over `pool` pixels, minus the constant `offset`."""
    return [
        helper.make_node("Slice", ["images", "from", "to", "axis"], ["two"]),
        helper.make_node("AveragePool", ["two"], ["pooled"], kernel_shape=[pool, pool], strides=[pool, pool]),
        helper.make_node("Sub", ["pooled", offset], [result]),
    ]


COLOUR_CONSTANTS = {name: np.array([number]) for name, number in (("from", 0), ("to", 2), ("axis", 1))}


def expanded(constant: str, result: str) -> list:
    """Nodes: a constant (1,a,b), once for every image of the batch."""
    return [
        helper.make_node("Shape", ["images"], [f"{result}_shape"]),
        helper.make_node("Slice", [f"{result}_shape", "from", "one", "from"], [f"{result}_batch"]),
        helper.make_node("Concat", [f"{result}_batch", "ones"], [f"{result}_to"], axis=0),
        helper.make_node("Expand", [constant, f"{result}_to"], [result]),
    ]


EXPAND_CONSTANTS = {"one": np.array([1]), "ones": np.array([1, 1])}


def yolo(
    path: Path,
    rows: np.ndarray,
    *,
    side: int = 640,
    batch: int | str = 1,
    size: int | str | None = None,
    names: str = "",
) -> Path:
    """rows: `output0`, (channels, N) or (N, channels); the last two numbers of a row weigh red and green."""
    constants = {**COLOUR_CONSTANTS, **EXPAND_CONSTANTS, "rows": rows[None].astype(np.float32)}
    constants["offset"] = np.array(0.5, np.float32)
    nodes = colours(4, "offset", "output1") + expanded("rows", "output0")
    shape = size if size is not None else side
    outputs = [value("output0", (batch, *rows.shape)), value("output1", (batch, 2, "mh", "mw"))]
    return save(path, nodes, [value("images", (batch, 3, shape, shape))], outputs, constants, names)


def rf_detr(path: Path, dets: np.ndarray, labels: np.ndarray, side: int = 384) -> Path:
    """dets (Q,4), labels (Q,C) with Q=2: the mask of the first query is red, of the second green. The input comes
    normalised, so half of full red is (0.5 - mean) / std."""
    half = (0.5 - np.array([0.485, 0.456])) / np.array([0.229, 0.224])
    constants = {**COLOUR_CONSTANTS, "offset": half.astype(np.float32)[None, :, None, None]}
    constants |= {"d": dets[None].astype(np.float32), "l": labels[None].astype(np.float32)}
    nodes = colours(4, "offset", "masks")
    nodes += [helper.make_node("Identity", [one], [name]) for one, name in (("d", "dets"), ("l", "labels"))]
    outputs = [value("labels", (1, *labels.shape)), value("masks", (1, 2, side // 4, side // 4))]
    return save(
        path, nodes, [value("images", (1, 3, side, side))], [*outputs, value("dets", (1, *dets.shape))], constants
    )
