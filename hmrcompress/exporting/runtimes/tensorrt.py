"""TensorRT: ONNX files with fixed shapes, one for each size of batch, ready for `trtexec`.

Since TensorRT 11 networks are strongly typed: what a graph says is what is computed, and flags such as `--fp16` are
gone. So precision is in the graph. Layer norms are the ONNX operator (INormalizationLayer), which computes in float32
whatever it is given (`stash_type` 1); where they are written out, float16 overflows in them.

The engine itself is built where there is a GPU. Here the files that TensorRT parses are compared with torch through
onnxruntime, which says that they are right, and not how fast or exact TensorRT is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting.onnx import require_exporter
from hmrcompress.exporting.runtimes.helper import HelperNetwork
from hmrcompress.exporting.runtimes.runtime import STEM, Compiled, Running, Source

OPSETS = (17, 22)
"""Of ONNX: the first with layer norms as an operator, and the last that TensorRT's parser is known to take."""
PREPARED = "a TensorRT engine is built and run where there is an NVIDIA GPU"


class TensorRt:
    """See `runtime.Runtime`."""

    name = "tensorrt"
    extra = "tensorrt"
    precisions = ("float32", "float16")
    writes = (f"{STEM}.b*.onnx", f"{STEM}.onnx.data")

    def weight_bits(self) -> int:
        """See `Runtime`."""
        return 8

    def check(self, precision: str) -> None:
        """See `Runtime`."""
        require_exporter()

    def compile(self, source: Source, folder: Path, precision: str) -> Compiled:
        """See `Runtime`."""
        import onnx

        path = folder / f"{STEM}.onnx"
        source.write_onnx(path, precision)
        model = onnx.load(str(path), load_external_data=False)
        opset = next(each.version for each in model.opset_import if not each.domain)
        norms = layer_norms(model)
        if not OPSETS[0] <= opset <= OPSETS[1] or not norms:
            raise HMRCompressError(f"TensorRT: opset {opset} and {norms} layer norms, expected opset {OPSETS} and some")
        names = []
        for size in source.sizes:
            for value in (*model.graph.input, *model.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = size
            del model.graph.value_info[:]  # shapes with the batch left open
            names.append(f"{STEM}.b{size}.onnx")
            onnx.save(model, str(folder / names[-1]))
        path.unlink()
        lines = tuple(
            f"trtexec --onnx={name} --saveEngine={name.removesuffix('.onnx')}.plan --stronglyTyped" for name in names
        )
        details: dict[str, Any] = {"opset": opset, "layer_norms_in_float32": norms, "batch_sizes": list(source.sizes)}
        files = {size: folder / name for size, name in zip(source.sizes, names, strict=True)}
        return Compiled(names[0], PREPARED, lambda threads: FixedSizes(files, threads), lines, details)

    def run(self, path: Path, precision: str, *, threads: int, cuda: bool = False) -> Running:
        """See `Runtime`."""
        gpu = "" if torch.cuda.is_available() else ", and there is no NVIDIA GPU here"
        raise UserError(
            f"is prepared for TensorRT, whose engines hmrcompress does not run{gpu}",
            path.parent,
            "README.md in it has the trtexec line; export with --format onnx to run it here",
        )


class FixedSizes:
    """Files for fixed sizes of batches through onnxruntime, as a `Running` network for any size up to the largest:
    the last crop fills what is left."""

    def __init__(self, files: Mapping[int, Path], threads: int) -> None:
        self.opened = {
            size: HelperNetwork(path, engine="onnxruntime", threads=threads) for size, path in sorted(files.items())
        }
        first = next(iter(self.opened.values()))
        self.inputs, self.about = first.inputs, first.about

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Running`."""
        count = len(next(iter(given.values())))
        size = next(size for size in self.opened if size >= count)
        filled = {name: np.concatenate([each, each[-1:].repeat(size - count, 0)]) for name, each in given.items()}
        return {name: each[:count] for name, each in self.opened[size](filled).items()}

    def close(self) -> None:
        """Ends all of them."""
        for each in self.opened.values():
            each.close()


def layer_norms(model: Any) -> int:
    """How many layer norms of an `onnx.ModelProto` compute in float32. HMRCompressError where one does not."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    stashes = [next((each.i for each in node.attribute if each.name == "stash_type"), 1) for node in norms]
    if any(stash != 1 for stash in stashes):
        raise HMRCompressError("TensorRT: a layer norm of the graph does not compute in float32")
    return len(norms)


RUNTIME = TensorRt()
