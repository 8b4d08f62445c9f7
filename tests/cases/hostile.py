"""Files that stand for more than they hold, ask for code, or never end. Nothing in them does harm by itself."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

# Pickles, written opcode by opcode


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(shape: Sequence[int], data: bytes = b"", kind: str = "f8") -> bytes:
    """A numpy array as pickles hold it; shape and data need not agree."""
    dtype = name("numpy", "dtype") + b"(" + text(kind) + b"K\x00K\x01tR(K\x03" + text("<") + b"NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = name("numpy.core.multiarray", "_reconstruct") + b"(" + name("numpy", "ndarray") + b"K\x00\x85U\x01btR"
    sizes = b"(" + b"".join(number(size) for size in shape) + b"t"
    return empty + b"(K\x01" + sizes + dtype + b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"


def chumpy(module: str, kind: str, **fields: bytes) -> bytes:
    """An instance of one of chumpy's classes."""
    content = b"".join(text(key) + value for key, value in fields.items())
    return name(module, kind) + b")\x81}(" + content + b"ub"


def dictionary(**items: bytes) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in items.items()) + b"u."


def make_pickles(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    product = chumpy("chumpy.ch_ops", "MatVecMult", mtx=array((10**9, 0)), vec=array((0,)))
    (out / "product.pkl").write_bytes(dictionary(v_template=product))
    shared = b"]q\x01(" + b"K\x01" * 300_000 + b"e"
    lists = {f"k{i}": chumpy("chumpy.ch", "Ch", x=b"h\x01") for i in range(600)}
    (out / "shared_list.pkl").write_bytes(dictionary(a=shared, **lists))
    (out / "object_field.pkl").write_bytes(dictionary(a=array((0,), kind="f8,O"), v_template=array((2,), bytes(16))))
    laughs: list = [1] * 9
    for _ in range(40):
        laughs = [laughs] * 9
    torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": {"x": laughs}}, out / "laughs.ckpt")


def make_body_files(out: Path) -> None:
    """Bodies of another kind than SMPL: the right sizes, made-up numbers."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    joints, vertices = 52, 300
    weights = rng.random((vertices, joints))
    regressor = rng.random((joints, vertices))
    content = {
        "v_template": rng.random((vertices, 3)),
        "f": rng.integers(0, vertices, (590, 3)),
        "shapedirs": rng.random((vertices, 3, 16)),
        "posedirs": np.zeros((vertices, 3, 9 * (joints - 1))),
        "weights": weights / weights.sum(1, keepdims=True),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "kintree_table": np.array([[2**32 - 1, *range(joints - 1)], [*range(joints)]]),
    }
    np.savez(out / "SMPLH.npz", **content)
    (out / "SMPLH.pkl").write_bytes(pickle.dumps(content, protocol=2))


# ONNX


def constant(label: str, value: np.ndarray | float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), label)


def graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    outputs: list[tuple],
    constants: Sequence[onnx.TensorProto] = (),
    image: Sequence[int] = (1, 3, 64, 64),
    names: str | None = None,
) -> Path:
    """An ONNX file with one input, `images` of float32."""
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(image))],
        [helper.make_tensor_value_info(*output) for output in outputs], list(constants),
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if names:
        helper.set_model_props(model, {"names": names})
    path.write_bytes(model.SerializeToString())
    return path


BOX = np.array([[[10, 10, 60, 60, 0.9, 0]]], np.float32)


def detector(path: Path, value: np.ndarray = BOX, **more) -> Path:
    """Gives the same rows for every picture."""
    node = helper.make_node("Identity", ["c"], ["out"])
    return graph(path, [node], [("out", TensorProto.FLOAT, list(value.shape))], [constant("c", value)], **more)


def endless(path: Path, value: np.ndarray, outputs: Sequence[tuple[str, np.ndarray]] = (), first: str = "out") -> Path:
    """Turns in a loop 2^62 times, then gives `value` as output `first`, and `outputs` beside it."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Identity", ["x"], ["y"])], "b",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("i", TensorProto.INT64, []), ("ci", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, None))],
        [helper.make_tensor_value_info("co", TensorProto.BOOL, []),
         helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["m", "go", "c"], [first], body=body)]
    constants = [constant("m", np.array(2**62, np.int64)), constant("go", np.array(True)), constant("c", value)]
    listed = [(first, TensorProto.FLOAT, list(value.shape))]
    for label, more in outputs:
        nodes.append(helper.make_node("Identity", [f"{label}_c"], [label]))
        constants.append(constant(f"{label}_c", more))
        listed.append((label, TensorProto.FLOAT, list(more.shape)))
    return graph(path, nodes, listed, constants)


def segmenter(path: Path, prototypes: Sequence[int] = (4, 16, 16), names: str | None = None) -> Path:
    """YOLO-seg: one person in the middle of 100 rows."""
    count = prototypes[0]
    rows = np.zeros((1, 84 + count, 100), np.float32)
    rows[0, :5, 0] = 32, 32, 40, 60, 0.9
    rows[0, 84:, 0] = 1
    masks = np.ones((1, *prototypes), np.float32)
    nodes = [helper.make_node("Identity", [f"{n}_c"], [n]) for n in ("o0", "o1")]
    outputs = [("o0", TensorProto.FLOAT, list(rows.shape)), ("o1", TensorProto.FLOAT, list(masks.shape))]
    return graph(path, nodes, outputs, [constant("o0_c", rows), constant("o1_c", masks)], names=names)


def rf_detr(path: Path, boxes: Sequence[int], labels: Sequence[int], masks: Sequence[int]) -> Path:
    """RF-DETR-seg whose three outputs have these shapes."""
    arrays = {
        "dets": np.ones(boxes, np.float32),
        "labels": np.ones(labels, np.float32),
        "masks": np.ones(masks, np.float32),
    }
    nodes = [helper.make_node("Identity", [f"{n}_c"], [n]) for n in arrays]
    outputs = [(n, TensorProto.FLOAT, list(a.shape)) for n, a in arrays.items()]
    return graph(path, nodes, outputs, [constant(f"{n}_c", a) for n, a in arrays.items()])


def make_onnx(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    detector(out / "good.onnx")
    endless(out / "endless.onnx", BOX)
    detector(out / "one_channel.onnx", image=(1, 1, 64, 64))
    detector(out / "input_0x0.onnx", image=(1, 3, 0, 0))
    detector(out / "input_100000.onnx", image=(1, 3, 100_000, 100_000))
    detector(out / "batch_8.onnx", image=(8, 3, 64, 64))
    far = np.array([99], np.int64)
    graph(
        out / "gather.onnx",
        [helper.make_node("Gather", ["images", "s"], ["out"])],
        [("out", TensorProto.FLOAT, None)],
        [constant("s", far)],
    )
    size = np.array([1, 500_000_000, 6], np.int64)
    graph(
        out / "twelve_gb.onnx",
        [helper.make_node("ConstantOfShape", ["s"], ["out"])],
        [("out", TensorProto.FLOAT, None)],
        [constant("s", size)],
    )
    words = helper.make_tensor("c", TensorProto.STRING, [1, 1, 6], [b"a"] * 6)
    graph(
        out / "strings.onnx",
        [helper.make_node("Identity", ["c"], ["out"])],
        [("out", TensorProto.STRING, [1, 1, 6])],
        [words],
    )
    spread = np.array(
        [[[x, y, x + 0.45, y + 0.45, 0.9, 0] for x in np.arange(0, 50, 0.5) for y in np.arange(0, 50, 0.5)]], np.float32
    )
    detector(out / "ten_thousand_people.onnx", spread)
    segmenter(out / "seg_no_prototypes.onnx", (0, 8, 8))
    segmenter(out / "seg_0x0.onnx", (4, 0, 0))
    segmenter(out / "seg_class_99.onnx", names="{99: 'person'}")
    segmenter(out / "seg_class_1e99.onnx", names="{1e99: 'person'}")
    rf_detr(out / "detr_counts_differ.onnx", (1, 5, 4), (1, 3, 91), (1, 2, 8, 8))
    rf_detr(out / "detr_rank_2.onnx", (1, 5), (1, 5), (1, 5))


# YAML


def laughing(keys: Sequence[str], last: str) -> str:
    """A list of nine, nine times over at each key; all of it hangs at `last`."""
    lines = ["k0: &a0 [x,x,x,x,x,x,x,x,x]"]
    for depth, key in enumerate(keys, start=1):
        lines.append(f"{key}: &a{depth} [{','.join([f'*a{depth - 1}'] * 9)}]")
    return "\n".join([*lines, f"{last}: *a{len(keys)}", ""])


def make_yaml(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "aliases.yaml").write_text(laughing([f"k{i}" for i in range(1, 12)], "body"))
    (out / "nested.yaml").write_text("a: " + "[" * 20_000)
    (out / "date.yaml").write_text("seed: 2020-99-99\n")
    (out / "not_utf8.yaml").write_bytes(b"\xff\xfe\x00a: 1")
