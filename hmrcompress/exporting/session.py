"""Sessions of onnxruntime on a device, with so many threads."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.errors import MissingExtra, UserError

CUDA = "CUDAExecutionProvider"
WARNINGS_OFF = 3
PRODUCTS = (
    "Conv", "Gemm", "MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
)  # fmt: skip
"""Types of nodes that multiply with their second input, also in onnxruntime's own forms."""


def open_session(
    path: Path,
    *,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    optimised: Path | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` of a file, all of onnxruntime's own graph optimisations on.

    threads: of the CPU, None for as many as torch has. device: on CUDA products are computed in full float32, as torch
    does. optimised: where the graph that is really run is written, its weights in a file beside it. Raises
    MissingExtra, and UserError where the installed onnxruntime does not know the device.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "export") from error
    device = torch.device(device)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if CUDA not in onnxruntime.get_available_providers():
            raise no_cuda(f"onnxruntime {onnxruntime.__version__}")
        providers.insert(0, (CUDA, {"device_id": device.index or 0, "use_tf32": 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = WARNINGS_OFF
    # Threads that go on spinning after a call would take the cores from whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
        # A graph with its weights inside ends at 2 GiB.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{optimised.name}.data"
        )
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def no_cuda(runtime: str) -> UserError:
    """What to raise where the installed version of a runtime knows no CUDA."""
    remedy = "Try pip install onnxruntime-gpu in place of onnxruntime, or --device cpu"
    return UserError(f"the installed {runtime} cannot run on CUDA", "--device", remedy)


@lru_cache(maxsize=1)
def has_exact_int8() -> bool:
    """Whether onnxruntime's products of unsigned with signed 8-bit numbers are right on this processor, tried out once.

    Without VNNI or AMX it adds pairs of them in 16 bits, which saturate without a word ("Quantize ONNX models" in its
    documentation); products of unsigned with unsigned ones do not. Raises MissingExtra.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "export") from error
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = onnx.numpy_helper.from_array(np.full((64, 16), 127, np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "largest",
        [helper.make_tensor_value_info("x", kinds.UINT8, ["rows", 64])],
        [helper.make_tensor_value_info("y", kinds.INT32, ["rows", 16])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [session.run(None, {"x": np.full((rows, 64), 255, np.uint8)})[0] for rows in (1, 192)]
    return all(bool((each == 64 * 255 * 127).all()) for each in found)


def nodes_and_products(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """What a graph is made of: how many nodes of each type (those that are no standard operators as `DOMAIN:NAME`), and
    how many products with a matrix or kernel of weights by the type of those weights (`float`, `int8`, …).

    The weights themselves are not read. Raises MissingExtra.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "export") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    types = {each.name: onnx.TensorProto.DataType.Name(each.data_type).lower() for each in graph.initializer}
    nodes = Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in graph.node)
    products = Counter(
        types[node.input[1]] for node in graph.node if node.op_type in PRODUCTS and node.input[1] in types
    )
    return dict(sorted(nodes.items())), dict(sorted(products.items()))
