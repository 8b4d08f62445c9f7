"""A network through onnxruntime, as fast as onnxruntime runs it: for measuring it beside torch.

The graph is that of `exporting.onnx`. Attention (MultiHeadAttention), residuals with the layer norms after them
(SkipLayerNormalization), and biases with GELUs are fused by the rules of onnxscript; what onnxruntime itself fuses and
lays out anew when it opens a file comes on top. The transformer optimiser that comes with onnxruntime does not know
attention as torch writes it, and finds none. A graph that does not compute what the network computes is not used: the
one without fusions takes its place.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import HMRCompressError, MissingExtra, UserError
from hmrcompress.exporting.onnx import (
    DTYPES,
    PREPARED,
    check_export,
    in_half_precision,
    needs_two_files,
    quietly,
    traced_graph,
)
from hmrcompress.exporting.parity import OUTPUTS, OnnxNetwork, Parity, measure
from hmrcompress.exporting.session import has_exact_int8, nodes_and_products, open_session
from hmrcompress.models.network import HMR2
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import dtype_name

ONNXRUNTIME = "onnxruntime"
QUANTISED_SCOPE = "network.backbone.blocks."
"""Modules whose products are computed in 8 bits: those that the fast path computes so, too."""
SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class RuntimeNetwork:
    """An open session of a network's graph, and what is known of it.

    dtype: `float32`, `float16` or `int8`. graph: `fused` or `plain`, and then `refused` says why. fused: how often each
    fusion of onnxscript was made. nodes, products: of the graph that is run, see `nodes_and_products`. parity: how far
    it is from torch in float32.
    """

    network: OnnxNetwork
    device: torch.device
    dtype: str
    threads: int
    parity: Parity
    graph: str = "fused"
    fused: dict[str, int] = field(default_factory=dict)
    refused: str | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    products: dict[str, int] = field(default_factory=dict)
    name: str = ONNXRUNTIME

    def runner(self, batch: FrameBatch) -> Callable[[FrameBatch], object]:
        """What runs the graph once on this batch, whatever it is called with; its inputs stay where they are, and its
        outputs go to the same device. Converting inputs to float32 is done here, once."""
        images, *more = batch.inputs()
        assert images is not None, "a batch holds images"
        # The binding reads the tensors' memory, so they have to live as long as it does.
        given = {
            name: tensor.to(self.device).contiguous()
            for name, tensor in self.network.inputs(images.float(), *more).items()
        }
        session, place = self.network.session, (self.device.type, self.device.index or 0)
        binding = session.io_binding()
        for name, tensor in given.items():
            kind = tensor.numpy(force=True).dtype.type
            binding.bind_input(name, *place, kind, tuple(tensor.shape), tensor.data_ptr())
        for name in OUTPUTS:
            binding.bind_output(name, *place)

        def run(_: FrameBatch, kept: dict[str, Tensor] = given) -> object:
            session.run_with_iobinding(binding)
            return binding

        return run

    def to_json(self) -> dict[str, Any]:
        """{version, providers, threads, dtype, graph: fused|plain, fused, nodes, products, parity[, refused]}."""
        import onnxruntime

        return {
            "version": onnxruntime.__version__,
            "providers": self.network.session.get_providers(),
            "threads": self.threads,
            "dtype": self.dtype,
            "graph": self.graph,
            "fused": self.fused,
            "nodes": self.nodes,
            "products": self.products,
            "parity": self.parity.to_dict(),
            **({"refused": self.refused} if self.refused else {}),
        }


@contextmanager
def runtime_network(
    network: HMR2,
    batch: FrameBatch,
    body: BodyModel,
    *,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Iterator[RuntimeNetwork]:
    """Exports a network to a temporary folder, optimises its graph, opens it, and compares it with torch; the folder is
    there while the block runs.

    network: float32 on the CPU, with the token merging that is wanted. batch: at least two crops, float32 on the CPU,
    on which both are compared. body: poses the joints of the comparison. dtype: float32 or float16, of weights and
    graph. int8: instead of either, the linear layers of the backbone with 8-bit weights (one scale an output channel)
    and 8-bit activations (one scale a call), nothing calibrated. device: where it runs. threads: of the CPU, None for
    torch's.

    Raises UserError for another dtype and where onnxruntime does not know the device, MissingExtra, and
    HMRCompressError where even the graph without fusions is not what torch computes (`Parity.require`; int8, which has
    no bound of its own, is judged by the graph it is made from, and has to be finite).
    """
    device = torch.device(device)
    check_runtime(dtype, int8=int8)
    dtype = torch.float32 if int8 else dtype
    with TemporaryDirectory(prefix="hmrcompress-onnxruntime-") as folder:
        check_export(network, Path(folder) / "network.onnx")
        made = in_half_precision(network) if dtype == torch.float16 else network
        threads = torch.get_num_threads() if threads is None else threads
        maker = _Maker(network, made, batch, body, dtype, device, threads, Path(folder))
        try:
            opened = maker.opened(fuse=True)
        except UserError:
            raise
        except HMRCompressError as error:
            opened = maker.opened(fuse=False, refused=str(error))
        if int8:
            opened = maker.quantised(opened)
        yield opened


def check_runtime(dtype: torch.dtype, *, int8: bool = False) -> None:
    """UserError for a dtype that graphs are not made in (with `int8` it does not count), MissingExtra."""
    if importlib.util.find_spec(ONNXRUNTIME) is None:
        raise MissingExtra(ONNXRUNTIME, "export")
    if not int8 and dtype not in DTYPES:
        raise UserError(
            f"got {dtype_name(dtype)}, which onnxruntime has no convolutions for on the CPU, nor are graphs made in it",
            "--dtype",
            "With bench.runtime=onnxruntime try float32, float16 or int8",
        )


@dataclass(frozen=True)
class _Maker:
    """Graphs of one network in a folder."""

    reference: HMR2
    network: HMR2
    batch: FrameBatch
    body: BodyModel
    dtype: torch.dtype
    device: torch.device
    threads: int
    folder: Path

    def opened(self, *, fuse: bool, refused: str | None = None) -> RuntimeNetwork:
        """The graph in a session. HMRCompressError where it is not what torch computes or onnxruntime refuses it."""
        graph = "fused" if fuse else "plain"
        path = self._path(graph)
        program = traced_graph(self.network, self.batch)
        program.model.metadata_props.update(PREPARED)
        fused = _fuse(program) if fuse else {}
        program.save(path, external_data=needs_two_files(self.network))
        found = self._run(path, dtype=dtype_name(self.dtype), graph=graph, fused=fused, refused=refused)
        found.parity.require("onnxruntime", self.dtype)
        return found

    def _path(self, graph: str) -> Path:
        return self.folder / f"{graph}.onnx"

    def quantised(self, plain: RuntimeNetwork) -> RuntimeNetwork:
        """A graph that was opened, with the backbone's linear layers in 8 bits."""
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        source, path = self._path(plain.graph), self._path("int8")
        graph = onnx.load(str(source), load_external_data=False).graph
        layers = [
            node.name
            for node in graph.node
            if node.op_type in ("MatMul", "Gemm")
            and any(each.key == SCOPES and QUANTISED_SCOPE in each.value for each in node.metadata_props)
        ]
        if not layers:
            raise HMRCompressError("onnxruntime: no linear layers of the backbone were found in the graph for int8")
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=layers,
            per_channel=True,
            weight_type=QuantType.QInt8 if has_exact_int8() else QuantType.QUInt8,
            use_external_data_format=needs_two_files(self.network),
        )
        found = self._run(path, dtype="int8", graph=plain.graph, fused=plain.fused, refused=plain.refused)
        if not found.parity.finite:
            raise HMRCompressError("onnxruntime: the graph in int8 gives numbers that are not finite")
        return found

    def _run(self, path: Path, **about: Any) -> RuntimeNetwork:
        optimised = path.with_suffix(".optimised.onnx")
        try:
            session = open_session(path, threads=self.threads, device=self.device, optimised=optimised)
        except HMRCompressError:
            raise
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise HMRCompressError(f"onnxruntime does not take the graph: {error}") from error
        nodes, products = nodes_and_products(optimised)
        for file in self.folder.glob(f"{optimised.name}*"):
            file.unlink()
        exported = OnnxNetwork(path, session, self.reference.config.grid)
        parity = measure(self.reference, exported, self.batch, self.body, (1, len(self.batch.images)))
        return RuntimeNetwork(
            exported, self.device, threads=self.threads, parity=parity, nodes=nodes, products=products, **about
        )


def _fuse(program: torch.onnx.ONNXProgram) -> dict[str, int]:
    """Fuses in place; how often each fusion was made. HMRCompressError where the rules fail."""
    try:
        from onnxscript.rewriter.ort_fusions import optimize_for_ort

        with quietly():
            program.model, counts = optimize_for_ort(program.model)
    except Exception as error:  # rules of another package, for graphs that it did not expect
        raise HMRCompressError(f"onnxscript could not fuse the graph: {error}") from error
    return {name: count for name, count in counts.items() if count}
