"""Reads two kinds of files in which TensorFlow keeps networks, as plain values: the graph models of TensorFlow.js (JSON
beside weights) and TensorFlow Lite (`Model`, FlatBuffers). Just what `people_networks.py` needs, without TensorFlow.

Sources: tfjs-core/src/io/types.ts, tensorflow/core/framework/{node_def,attr_value}.proto in their JSON form,
tensorflow/lite/schema/schema.fbs, and the description of FlatBuffers.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

STORED_TYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "int32": np.dtype("<i4")}
LITE_TYPES = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 2: np.dtype("<i4")}
LITE_OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE", 14: "LOGISTIC", 18: "MUL",
    19: "RELU", 23: "RESIZE_BILINEAR", 32: "CUSTOM", 117: "HARD_SWISH",
}  # fmt: skip


@dataclass(frozen=True)
class GraphNode:
    """A node of a graph model. attributes: bool, int, float, str, lists of them, or an array (`value`), by name; those
    of other kinds are None."""

    name: str
    op: str
    inputs: list[str]
    attributes: dict[str, Any]


def graph_model(described: bytes, stored: bytes) -> dict[str, GraphNode]:
    """The nodes by name of a graph model, its JSON and the weights of all its parts. Weights kept in 16 bits become 32.
    ValueError for weights of a type that is not in `STORED_TYPES`, or of another number than the JSON tells."""
    model = json.loads(described)
    values, at = {}, 0
    for each in (one for part in model["weightsManifest"] for one in part["weights"]):
        kind = each.get("quantization", each)["dtype"]
        if kind not in STORED_TYPES or each["dtype"] not in STORED_TYPES:
            raise ValueError(f"{each['name']}: weights of type {kind} are not known")
        count = math.prod(each["shape"])
        raw = np.frombuffer(stored, STORED_TYPES[kind], count, at).reshape(each["shape"])
        values[each["name"]] = raw.astype(STORED_TYPES[each["dtype"]])
        at += raw.nbytes
    if at != len(stored):
        raise ValueError(f"{len(stored)} bytes of weights, expected {at}")
    nodes = {}
    for node in model["modelTopology"]["node"]:
        attributes = {key: _attribute(value) for key, value in node.get("attr", {}).items()}
        if node["op"] == "Const":
            attributes["value"] = values[node["name"]]
        nodes[node["name"]] = GraphNode(node["name"], node["op"], node.get("input", []), attributes)
    return nodes


def _attribute(value: dict[str, Any]) -> Any:
    (kind, content), *_ = value.items() or (("none", None),)
    if kind == "list":
        (kind, several), *_ = content.items() or (("none", []),)
        return [_attribute({kind: one}) for one in several]
    read = {"i": int, "f": float, "b": bool, "s": lambda text: base64.b64decode(text).decode()}
    return read[kind](content) if kind in read else None


@dataclass(frozen=True)
class Table:
    """A table of a FlatBuffer: `at` is where it begins."""

    data: bytes
    at: int

    def _place(self, field: int) -> int:
        """Where the value of a field stands, 0 where it is left out."""
        listed = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        size = struct.unpack_from("<H", self.data, listed)[0]
        entry = 4 + 2 * field
        offset = struct.unpack_from("<H", self.data, listed + entry)[0] if entry < size else 0
        return self.at + offset if offset else 0

    def number(self, field: int, form: str, default: int = 0) -> int:
        """A number, `form` as of `struct`."""
        place = self._place(field)
        return struct.unpack_from(f"<{form}", self.data, place)[0] if place else default

    def _follow(self, place: int) -> int:
        return place + struct.unpack_from("<I", self.data, place)[0]

    def table(self, field: int) -> Table | None:
        """Another table."""
        place = self._place(field)
        return Table(self.data, self._follow(place)) if place else None

    def vector(self, field: int, form: str) -> list[int]:
        """Numbers."""
        place = self._place(field)
        if not place:
            return []
        begin = self._follow(place)
        count = struct.unpack_from("<I", self.data, begin)[0]
        return list(struct.unpack_from(f"<{count}{form}", self.data, begin + 4))

    def tables(self, field: int) -> list[Table]:
        """Tables."""
        place = self._place(field)
        if not place:
            return []
        begin = self._follow(place)
        count = struct.unpack_from("<I", self.data, begin)[0]
        return [Table(self.data, self._follow(begin + 4 + 4 * index)) for index in range(count)]

    def content(self, field: int) -> bytes:
        """A text, or bytes."""
        return bytes(byte & 255 for byte in self.vector(field, "B"))


@dataclass(frozen=True)
class LiteOperator:
    """op: the name of a custom operator, too; inputs, outputs: numbers of tensors, -1 for none; options: its table."""

    op: str
    inputs: list[int]
    outputs: list[int]
    options: Table | None
    custom: bytes


@dataclass(frozen=True)
class LiteGraph:
    """The first subgraph: operators in order, shapes of its tensors, values of those that are constant."""

    operators: list[LiteOperator]
    shapes: list[tuple[int, ...]]
    constants: dict[int, np.ndarray]
    inputs: list[int]
    outputs: list[int]


def lite_graph(data: bytes) -> LiteGraph:
    """A TensorFlow Lite file. ValueError for operators that are not in `LITE_OPERATORS`."""
    model = Table(data, struct.unpack_from("<I", data)[0])
    codes = [_operator_name(code) for code in model.tables(1)]
    buffers = [each.content(0) for each in model.tables(4)]
    graph = model.tables(2)[0]
    tensors = graph.tables(0)
    constants = {
        number: np.frombuffer(buffers[each.number(2, "I")], LITE_TYPES[each.number(1, "b")]).reshape(
            each.vector(0, "i")
        )
        for number, each in enumerate(tensors)
        if buffers[each.number(2, "I")]
    }
    operators = [
        LiteOperator(
            codes[each.number(0, "I")], each.vector(1, "i"), each.vector(2, "i"), each.table(4), each.content(5)
        )
        for each in graph.tables(3)
    ]
    shapes = [tuple(each.vector(0, "i")) for each in tensors]
    return LiteGraph(operators, shapes, constants, graph.vector(1, "i"), graph.vector(2, "i"))


def _operator_name(code: Table) -> str:
    number = max(code.number(0, "b"), code.number(3, "i"))
    if number not in LITE_OPERATORS:
        raise ValueError(f"operator {number} is not known")
    name = LITE_OPERATORS[number]
    return code.content(1).decode() if name == "CUSTOM" else name
