"""The files that an ONNX file names beside itself: weights of large networks lie in files of their own.

An ONNX file is a protobuf message; only the parts that lead to tensors are walked. Fields by number as in
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from hmrcompress.errors import UserError, shown
from hmrcompress.io.hashes import sha256_file, sha256_json

MOST_FIELDS = 5_000_000
VARINT, EIGHT, COUNTED, FOUR = 0, 1, 2, 5
TENSOR, ENTRY = "tensor", "entry"
PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: TENSOR, 6: "graph", 10: TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: TENSOR, 2: TENSOR},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    TENSOR: {13: ENTRY},
    ENTRY: {},
}


def check_onnx(path: Path) -> list[Path]:
    """The files that an ONNX file keeps weights in. UserError where it is missing or no ONNX file, or where one of them
    is anything but a file in the same folder, called by its plain name."""
    if not path.is_file():
        raise UserError("no such file", path)
    if not path.stat().st_size:
        raise UserError("not a readable ONNX file: it is empty", path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        names = _locations(data, path)
    homes = {path.parent.resolve(), path.resolve().parent}
    found = []
    for name in sorted(names):
        beside = path.parent / name
        if name in ("", ".", "..") or any(mark in name for mark in "/\\:\0"):
            raise UserError(f"keeps weights in {shown(name)}, which is a path; it was not opened", path, REMEDY)
        if not beside.is_file() or beside.resolve().parent not in homes:
            raise UserError(f"keeps weights in {shown(name)}, and there is no such file beside it", path, REMEDY)
        found.append(beside)
    return found


def sha256_onnx(path: Path) -> str:
    """Hash of an ONNX file and of the files that it keeps weights in. UserError as `check_onnx`."""
    return sha256_json([sha256_file(path), [[beside.name, sha256_file(beside)] for beside in check_onnx(path)]])


REMEDY = "Weights may lie in a file of the same folder"


def _locations(data: mmap.mmap, path: Path) -> set[str]:
    """Every location of external data, used or not."""
    names, left = set(), MOST_FIELDS
    to_do = [("model", 0, len(data))]
    try:
        while to_do:
            kind, at, end = to_do.pop()
            entry: dict[int, bytes] = {}
            while at < end:
                left -= 1
                if left < 0:
                    raise UserError("has more parts than any network", path)
                tag, at = _varint(data, at, end)
                number, way = tag >> 3, tag & 7
                if way == VARINT:
                    _, at = _varint(data, at, end)
                elif way in (EIGHT, FOUR):
                    at += 8 if way == EIGHT else 4
                elif way == COUNTED:
                    length, at = _varint(data, at, end)
                    inside = PARTS[kind].get(number)
                    if at + length > end:
                        raise ValueError
                    if inside:
                        to_do.append((inside, at, at + length))
                    elif kind == ENTRY and number in (1, 2):
                        entry[number] = data[at : at + length]
                    at += length
                else:
                    raise ValueError
            if at != end:
                raise ValueError
            if entry.get(1) == b"location":
                names.add(entry.get(2, b"").decode("utf-8"))
    except ValueError as error:
        raise UserError("not a readable ONNX file, perhaps truncated", path) from error
    return names


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The number that begins at `at`, seven bits a byte, and where it ends. ValueError where there is none."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError
