"""Reads the two kinds of files in which TensorFlow keeps networks, as plain values: frozen graphs (`GraphDef`, Protocol
Buffers) and TensorFlow Lite (`Model`, FlatBuffers). Just what `people_networks.py` needs of them, without TensorFlow.

Sources: tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto, tensorflow/lite/schema/schema.fbs, and the
descriptions of both encodings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
GRAPH_TYPES = {1: np.dtype("<f4"), 3: np.dtype("<i4")}
LITE_TYPES = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 2: np.dtype("<i4")}
LITE_OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE", 14: "LOGISTIC", 18: "MUL",
    19: "RELU", 23: "RESIZE_BILINEAR", 32: "CUSTOM", 117: "HARD_SWISH",
}  # fmt: skip


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: an int, or bytes of what is longer or of fixed size."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == VARINT:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == BYTES else ({EIGHT: 8, FOUR: 4}[kind], at)
            value, at = data[at : at + size], at + size
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


@dataclass(frozen=True)
class GraphNode:
    """A node of a frozen graph. attributes: int, float, bytes, list[int] or an array, by name."""

    name: str
    op: str
    inputs: list[str]
    attributes: dict[str, Any]


def frozen_graph(data: bytes) -> dict[str, GraphNode]:
    """The nodes of a `GraphDef` by name."""
    nodes = (_node(value) for number, value in fields(data) if number == 1)
    return {node.name: node for node in nodes}


def _node(data: bytes) -> GraphNode:
    name = op = ""
    inputs, attributes = [], {}
    for number, value in fields(data):
        if number == 1:
            name = value.decode()
        elif number == 2:
            op = value.decode()
        elif number == 3:
            inputs.append(value.decode())
        elif number == 5:
            entry = dict(fields(value))
            attributes[entry[1].decode()] = _attribute(entry.get(2, b""))
    return GraphNode(name, op, inputs, attributes)


def _attribute(data: bytes) -> Any:
    for number, value in fields(data):
        if number == 1:
            return _integers(value, 3)
        if number == 4:
            return struct.unpack("<f", value)[0]
        if number == 8:
            return _tensor(value)
        return value
    return None


def _integers(data: bytes, wanted: int) -> list[int]:
    found: list[int] = []
    for number, value in fields(data):
        if number != wanted:
            continue
        if isinstance(value, int):
            found.append(value)
        else:  # packed
            at = 0
            while at < len(value):
                one, at = _varint(value, at)
                found.append(one)
    return found


def _tensor(data: bytes) -> np.ndarray | None:
    kind, shape, content, loose = 0, [], b"", b""
    for number, value in fields(data):
        if number == 1:
            kind = value
        elif number == 2:
            shape = [dict(fields(size)).get(1, 0) for key, size in fields(value) if key == 2]
        elif number == 4:
            content = value
        elif number == 5:
            loose += value
        elif number == 7:
            values = [value] if isinstance(value, int) else _integers(b"\x0a" + _length(value) + value, 1)
            loose += np.array([each & 0xFFFFFFFF for each in values], "<u4").tobytes()
    if kind not in GRAPH_TYPES:
        return None
    values = np.frombuffer(content or loose, GRAPH_TYPES[kind])
    # A single value stands for all of a tensor.
    return np.broadcast_to(values[0], shape) if len(values) == 1 else values.reshape(shape)


def _length(data: bytes) -> bytes:
    size, out = len(data), bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


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
