"""Ways of damaging a file: bytes whatever is in it, and by its suffix what is in it. Drawn by hypothesis."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from test_safe_pickles import HOSTILE

from hmrcompress.io.array_pickles import read_values

Draw = Callable[..., Any]
CANARY = "CANARY"
"""Environment variable: the file that the payloads of hostile pickles would make."""


class Payload:
    """Unpickling this makes the canary."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {os.environ[CANARY]}",)


def damaged(draw: Draw, name: str, data: bytes, path: Path) -> bytes:
    """Another content for the file `path`, whose valid content is `data`."""
    by_suffix = {
        ".npz": npz, ".npy": npy, ".pkl": pickled, ".ckpt": checkpoint, ".pt": checkpoint, ".safetensors": tensors,
        ".json": text, ".jsonl": text, ".yaml": text, ".png": png, ".mp4": atoms, ".heic": atoms, ".onnx": graph,
    }  # fmt: skip
    special = by_suffix.get(path.suffix)
    if special is not None and draw(st.booleans()):
        return special(draw, data, path)
    return raw(draw, data)


def raw(draw: Draw, data: bytes) -> bytes:
    """Truncated, bits flipped, parts overwritten, taken out, put in twice, or something else altogether."""
    way = draw(st.sampled_from(("empty", "cut", "flip", "flip", "overwrite", "remove", "repeat", "other")))
    # Headers stand at both ends of most formats, so places near them are drawn as often as any.
    near = st.integers(0, min(len(data), 400))
    place = st.one_of(near, near.map(lambda at: len(data) - at), st.integers(0, len(data)))
    if way == "empty" or not data:
        return b""
    if way == "cut":
        return data[: draw(place)]
    if way == "flip":
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 8))):
            changed[min(draw(place), len(data) - 1)] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if way == "other":
        return draw(
            st.sampled_from((b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x02", b"{", b"\x89PNG\r\n\x1a\n", b""))
        ) + draw(st.binary(max_size=200))
    start, length = draw(place), draw(st.integers(1, 64))
    part = data[start : start + length]
    if way == "overwrite":
        filling = draw(st.sampled_from((b"\x00", b"\xff", b"\x7f"))) * len(part)
        return data[:start] + filling + data[start + len(part) :]
    return data[:start] + (part * draw(st.integers(2, 50)) if way == "repeat" else b"") + data[start + len(part) :]


def changed_array(draw: Draw, array: np.ndarray) -> Any:
    """An array of another type or shape, or with other values; or none at all."""
    way = draw(
        st.sampled_from(("dtype", "shape", "flat", "empty", "scalar", "nan", "huge", "negative", "longer", "text"))
    )
    if way == "dtype":
        kind = draw(st.sampled_from(("f2", "f8", "i1", "u8", "c8", "?", "M8[s]", ">f4", "S3", "U2")))
        return np.zeros(array.shape, kind)
    if way == "shape":
        return array[..., None]
    if way == "flat":
        return array.reshape(-1)
    if way == "empty":
        return array.reshape(-1)[:0].reshape((0, *array.shape[1:])) if array.ndim else np.zeros(0)
    if way == "scalar":
        return np.array(draw(st.sampled_from((0, -1, 2**62, 1.5, np.nan))))
    if way == "text":
        return np.array(draw(st.sampled_from(("", "x", "{}", "[" * 5000, '{"schema": 1}', "é"))))
    if way == "longer":
        return np.concatenate([array, array]) if array.ndim else array
    if array.dtype.kind not in "fiu" or not array.size:
        return None
    value = {"nan": np.nan, "huge": 1e300, "negative": -1}[way]
    changed = array.astype(np.float64) if way != "negative" else array.astype(np.int64)
    changed.reshape(-1)[draw(st.integers(0, array.size - 1))] = value
    with np.errstate(over="ignore", invalid="ignore"):
        return changed.astype(array.dtype) if draw(st.booleans()) and array.dtype.kind == "f" else changed


def claimed(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    """An .npy file that claims a shape and holds next to nothing."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\x00" * 64


HEADERS = (
    claimed((1 << 40,)),
    claimed((1 << 20, 1 << 20, 1 << 20)),
    claimed((-1,)),
    claimed((1 << 62, 4)),
    claimed((0, 1 << 60)),
    claimed((3,), "O"),
    claimed((3,), "<U1000000000"),
    claimed((3,), "V2"),
    b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFFF) + b"{}",
    b"\x93NUMPY\x01\x00" + struct.pack("<H", 5000) + b"(" * 5000,
    b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"__import__('os')    ",
    b"\x93NUMPY\x09\x00" + b"\x00" * 100,
)


@functools.cache
def folded() -> bytes:
    """An .npy file of 300 MB of zeros, as a zip folds it."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as file,
    ):
        header = claimed((300_000_000,), "|u1")[:-64]
        file.write(header)
        for _ in range(300):
            file.write(bytes(1_000_000))
    return packed.getvalue()


def npz(draw: Draw, data: bytes, path: Path) -> bytes:
    """An archive whose arrays are not what they should be."""
    with np.load(io.BytesIO(data), allow_pickle=True) as file:  # written by the test itself; some hold names as objects
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    victim = draw(st.sampled_from(sorted(arrays)))
    way = draw(st.sampled_from(("drop", "array", "array", "array", "objects", "header", "slip", "bomb", "twice")))
    if way == "bomb":
        return folded().replace(b"x.npy", f"{victim[:1]}.npy".encode())
    if way == "drop":
        del arrays[victim]
    elif way == "objects":
        arrays[victim] = np.array([Payload()], dtype=object)
    elif way == "array":
        arrays[victim] = changed_array(draw, arrays[victim])
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.lib.format.write_array(one, np.asanyarray(array), allow_pickle=True)
            content = draw(st.sampled_from(HEADERS)) if way == "header" and name == victim else one.getvalue()
            inside = f"../../../{name}.npy" if way == "slip" and name == victim else f"{name}.npy"
            archive.writestr(inside, content)
            if way == "slip":
                archive.writestr("/tmp/../" + os.environ[CANARY], b"x")
    return made.getvalue()


def npy(draw: Draw, data: bytes, path: Path) -> bytes:
    """One array of the same kind."""
    if draw(st.booleans()):
        return draw(st.sampled_from(HEADERS))
    made = io.BytesIO()
    np.save(made, np.asanyarray(changed_array(draw, np.load(io.BytesIO(data)))), allow_pickle=True)
    return made.getvalue()


def changed_leaf(draw: Draw, value: Any) -> Any:
    """A structure of dictionaries and lists with something in it replaced."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 9)):
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        changed = dict(value) if isinstance(value, dict) else list(value)
        changed[key] = changed_leaf(draw, value[key])
        return changed
    if isinstance(value, np.ndarray) and draw(st.booleans()):
        return changed_array(draw, value)
    if isinstance(value, torch.Tensor) and draw(st.booleans()):
        return changed_tensor(draw, value)
    loop: list[Any] = []
    loop.append(loop)
    odd = (None, -1, 2**70, float("nan"), "", "x", b"\xff", [], {}, loop, {None: 1}, np.zeros((2, 2)), True, Payload())
    return odd[draw(st.integers(0, len(odd) - 1))]


def changed_tensor(draw: Draw, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of another kind."""
    ways = (
        lambda: tensor.half(),
        lambda: tensor.long(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor[None],
        lambda: tensor.reshape(-1)[:0],
        lambda: torch.full_like(tensor, torch.nan),
        lambda: torch.zeros(1).expand(1 << 40),
        lambda: torch.zeros(3, 3).to_sparse(),
        lambda: torch.empty(1 << 40, device="meta"),
        lambda: torch.nn.Parameter(tensor),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    )
    return ways[draw(st.integers(0, len(ways) - 1))]()


def hostile_pickle(draw: Draw) -> bytes:
    """A pickle that would run code, hang or fill the memory."""
    if draw(st.booleans()):
        return HOSTILE[draw(st.sampled_from(sorted(HOSTILE)))]
    return pickle.dumps({"poses": Payload(), "v_template": 1}, protocol=draw(st.integers(0, 5)))


def pickled(draw: Draw, data: bytes, path: Path) -> bytes:
    """A pickle of something else, or a hostile one."""
    if draw(st.integers(0, 3)) == 0:
        return hostile_pickle(draw)
    with open(path, "wb") as file:
        file.write(data)
    return pickle.dumps(changed_leaf(draw, read_values(path)), protocol=draw(st.integers(0, 5)))


def checkpoint(draw: Draw, data: bytes, path: Path) -> bytes:
    """A checkpoint of something else, or with a hostile pickle in it."""
    way = draw(st.sampled_from(("leaf", "leaf", "leaf", "pickle", "bare")))
    if way == "bare":
        return hostile_pickle(draw)
    made = io.BytesIO()
    if way == "pickle" and data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist():
                new.writestr(name, hostile_pickle(draw) if name.endswith("data.pkl") else old.read(name))
        return made.getvalue()
    from fuzz_targets import checkpoint_content

    torch.save(changed_leaf(draw, checkpoint_content()), made, _use_new_zipfile_serialization=data[:2] == b"PK")
    return made.getvalue()


def tensors(draw: Draw, data: bytes, path: Path) -> bytes:
    """Safetensors with another header."""
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    way = draw(st.sampled_from(("length", "text", "shape", "dtype", "offsets", "drop", "metadata", "nan")))
    if way == "length":
        return struct.pack("<Q", draw(st.sampled_from((0, 1, 1 << 27, 1 << 62, (1 << 64) - 1)))) + data[8:]
    victim = draw(st.sampled_from(sorted(name for name in header if name != "__metadata__")))
    if way == "shape":
        header[victim]["shape"] = draw(st.sampled_from(([1 << 40], [-1], [], [0], [1 << 32, 1 << 32], "x")))
    elif way == "dtype":
        header[victim]["dtype"] = draw(st.sampled_from(("F64", "BOOL", "I8", "F8_E4M3", "C64", "X", None)))
    elif way == "offsets":
        header[victim]["data_offsets"] = draw(st.sampled_from(([0, 1 << 40], [5, 3], [-1, 3], [0], None)))
    elif way == "drop":
        del header[victim]
    elif way == "metadata":
        header["__metadata__"] = {
            "hmrcompress": draw(st.sampled_from(("{", "[]", '{"network": {"dim": -1}}', "[" * 9999)))
        }
    elif way == "nan":
        rest = b"\xff" * len(rest)
    written = json.dumps(header).encode()
    if way == "text":
        written = text(draw, written, path)
    return struct.pack("<Q", len(written)) + written + rest


def png(draw: Draw, data: bytes, path: Path) -> bytes:
    """A picture whose header says something else, with the right checksum."""
    if data[12:16] != b"IHDR":
        return raw(draw, data)
    fields = list(struct.unpack(">IIBBBBB", data[16:29]))
    place = draw(st.integers(0, 6))
    odd = (0, 1, 3, 9_000, 30_000, 1 << 20, 1 << 31, (1 << 32) - 1) if place < 2 else (0, 1, 2, 3, 4, 6, 7, 16, 255)
    fields[place] = draw(st.sampled_from(odd))
    header = b"IHDR" + struct.pack(">IIBBBBB", *fields)
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


ATOM = re.compile(
    rb"moov|trak|mdia|stsd|stts|stsc|stsz|stco|ctts|stss|elst|tkhd|mvhd|mdhd|avc1|avcC|hvcC|hvc1|ispe|iloc|ipma|iinf|"
    rb"infe|iref|dimg|grid|irot|idat|mdat|ftyp|pitm|pixi"
)


def atoms(draw: Draw, data: bytes, path: Path) -> bytes:
    """A video or HEIC picture with an atom of another length, name or content."""
    found = [match.start() for match in ATOM.finditer(data)]
    if not found:
        return raw(draw, data)
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from(found)) + draw(st.sampled_from((-4, 0, 4, 8, 12, 16, 20, 24, 28, 32)))
        odd = (0, 1, 2, 8, 255, 65_535, 1 << 20, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
        changed[at : at + 4] = struct.pack(">I", draw(st.sampled_from(odd)))
    return bytes(changed)


def graph(draw: Draw, data: bytes, path: Path) -> bytes:
    """A network with another input, output, operator, constant or table of names."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto.FromString(data)
    inside = model.graph
    way = draw(
        st.sampled_from(("input", "output", "node", "constant", "constant", "names", "external", "type", "more"))
    )
    odd = draw(st.sampled_from((-1, 0, 1, 2, 3, 5, 7, 1000, 100_000, 1 << 40)))
    if way in ("input", "output"):
        dims = (inside.input if way == "input" else inside.output)[0].type.tensor_type.shape.dim
        dims[draw(st.integers(0, len(dims) - 1))].dim_value = odd
    elif way == "node":
        kinds = (
            "Abs",
            "Not",
            "Shape",
            "Size",
            "Loop",
            "If",
            "Gather",
            "Expand",
            "Tile",
            "NonZero",
            "Cast",
            "Nope",
            "Exp",
        )
        inside.node[draw(st.integers(0, len(inside.node) - 1))].op_type = draw(st.sampled_from(kinds))
    elif way == "constant":
        place = draw(st.integers(0, len(inside.initializer) - 1))
        other = changed_array(draw, numpy_helper.to_array(inside.initializer[place]))
        name = inside.initializer[place].name
        if other is not None and other.dtype.kind in "biuf":
            inside.initializer[place].CopyFrom(
                numpy_helper.from_array(np.asarray(other, other.dtype.newbyteorder("=")), name)
            )
        else:
            inside.initializer[place].dims[:] = [abs(odd)]
    elif way == "names":
        text = draw(st.sampled_from(("{0: 'person'}", "{", "[" * 5000, "{99: 'person'}", "{-1: 'person'}", "9" * 9000)))
        helper.set_model_props(model, {"names": text})
    elif way == "external":
        tensor = inside.initializer[draw(st.integers(0, len(inside.initializer) - 1))]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = (
            "location",
            draw(st.sampled_from(("../../x", "/etc/passwd", "x", path.name, "*/_ORT_MEM_ADDR_/*"))),
        )
    elif way == "type":
        inside.input[0].type.tensor_type.elem_type = draw(st.sampled_from((0, 2, 7, 8, 10, 11, 99)))
    else:
        size = helper.make_tensor("fuzz_size", onnx.TensorProto.INT64, [2], [1, abs(odd) << draw(st.integers(0, 12))])
        inside.initializer.append(size)
        inside.node.append(helper.make_node("ConstantOfShape", ["fuzz_size"], ["fuzz_out"]))
        inside.output.insert(0, helper.make_tensor_value_info("fuzz_out", onnx.TensorProto.FLOAT, None))
    return model.SerializeToString()


ODD = (
    "1e999", "-1", "null", "true", '"x"', "99999999999999999999", "9" * 5000, "[" * 100_000, "{}", "[]", "NaN", "1.5",
    "'", "\x00", "[[[[1]]]]", "2001-99-99", "!!python/object/apply:os.system ['touch x']", "&a [1, *a]", "*a", "? [1]",
    "\ud800", "0x1F", "1000000000", "!!binary x", '"../../x"', "<<: {a: 1}", "---\n",
)  # fmt: skip
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def text(draw: Draw, data: bytes, path: Path) -> bytes:
    """A text with words or numbers replaced, lines taken out, or YAML's aliases in it."""
    if draw(st.integers(0, 19)) == 0:
        return ALIASES.encode() + data
    written = data.decode()
    words = list(re.finditer(r'"[^"]*"|-?[\w.]+', written))
    for _ in range(draw(st.integers(1, 2))):
        word = words[draw(st.integers(0, len(words) - 1))]
        odd = draw(st.sampled_from(ODD))
        written = written[: word.start()] + odd + written[word.end() :]
    return written.encode("utf-8", "surrogatepass")
