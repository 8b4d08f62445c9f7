"""Core ML: an ML program (mlpackage) for a batch of one, converted by coremltools from the traced network.

Core ML runs on Apple's machines alone. Elsewhere the package is converted and its structure is looked at: names, shapes
and types of what goes in and comes out, and that its specification can be read back.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmrcompress.errors import HMRCompressError, MissingExtra, UserError, first_line
from hmrcompress.exporting.onnx import Exported, inputs_of
from hmrcompress.exporting.parity import OUTPUTS
from hmrcompress.exporting.runtimes.runtime import STEM, Compiled, Running, Source

PACKAGE = f"{STEM}.mlpackage"
PREPARED = "Core ML runs on Apple's machines"
LINES = (
    "python -c \"import coremltools, numpy; golden = numpy.load('golden.npz'); "
    f"model = coremltools.models.MLModel('{PACKAGE}'); "
    "given = {name: golden[name][:1].astype('float32') for name in model.input_description}; "
    "print(abs(model.predict(given)['body_pose'] - golden['body_pose'][:1]).max())\"",
)
"""What compares it with torch on a Mac."""


class CoreMl:
    """See `runtime.Runtime`."""

    name = "coreml"
    extra = "coreml"
    precisions = ("float32", "float16")
    writes = (f"{PACKAGE}/*", f"{PACKAGE}/*/*/*", f"{PACKAGE}/*/*/*/*")

    def weight_bits(self) -> int:
        """See `Runtime`."""
        return 8

    def check(self, precision: str) -> None:
        """See `Runtime`."""
        if importlib.util.find_spec("coremltools") is None:
            raise MissingExtra("coremltools", self.extra)

    def compile(self, source: Source, folder: Path, precision: str) -> Compiled:
        """See `Runtime`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("coremltools").setLevel(logging.CRITICAL)
            import coremltools

            program = traced(source)
            kinds = coremltools.precision
            try:
                model = coremltools.convert(
                    program,
                    convert_to="mlprogram",
                    minimum_deployment_target=coremltools.target.iOS17,
                    compute_precision=kinds.FLOAT16 if precision == "float16" else kinds.FLOAT32,
                    outputs=[coremltools.TensorType(name=name) for name in OUTPUTS],
                    skip_model_load=True,
                )
            except Exception as error:  # its converters raise whatever they raise
                raise HMRCompressError(f"coremltools does not take the network: {first_line(error)}") from error
            model.save(str(folder / PACKAGE))
            described = structure(coremltools.utils.load_spec(str(folder / PACKAGE)))
        if set(described["outputs"]) != set(OUTPUTS):
            raise HMRCompressError(f"coremltools gave outputs {', '.join(described['outputs'])}")
        details = {"coremltools": coremltools.__version__, "structure": described}
        return Compiled(PACKAGE, PREPARED, lines=LINES, details=details)

    def run(self, path: Path, precision: str, *, threads: int, cuda: bool = False) -> Running:
        """See `Runtime`."""
        mac = " yet" if sys.platform == "darwin" else " here: Core ML is Apple's"
        raise UserError(
            f"is prepared for Core ML, and hmrcompress does not run it{mac}",
            path.parent,
            "README.md in it has a line that compares it with torch; export with --format onnx to run it here",
        )


class _OfFloats(nn.Module):
    """The network with its mask as numbers, 0 or 1: Core ML takes no booleans."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.exported = Exported(source.network).eval()

    def forward(
        self, images: Tensor, person_mask: Tensor | None = None, condition: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        return self.exported(images, None if person_mask is None else person_mask > 0.5, condition)


def traced(source: Source) -> torch.export.ExportedProgram:
    """The network for a batch of one, in operators that coremltools has."""
    inputs = {name: tensor.float() for name, tensor in inputs_of(source.network, source.batch, 1).items()}
    with torch.no_grad():
        program = torch.export.export(_OfFloats(source).eval(), (), inputs).run_decompositions({})
    return in_known_operators(program)


def in_known_operators(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same, in place, where coremltools has no operator: `&` and `|` of booleans, `where` with a number, and
    `gather` of booleans."""
    aten, graph = torch.ops.aten, program.graph
    same = {aten.__and__.Tensor: aten.logical_and.default, aten.__or__.Tensor: aten.logical_or.default}

    def added(target: Any, arguments: tuple[Any, ...], like: torch.fx.Node, **named: Any) -> torch.fx.Node:
        made = graph.call_function(target, arguments, named)
        made.meta = dict(like.meta)
        return made

    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in same:
            node.target = same[node.target]
        elif node.target is aten.where.ScalarOther:
            condition, value, other = node.args
            with graph.inserting_before(node):
                rest = added(aten.logical_not.default, (condition,), condition)
            node.target, node.args = aten.masked_fill.Scalar, (value, rest, other)
        elif node.target is aten.gather.default and node.args[0].meta["val"].dtype == torch.bool:
            with graph.inserting_before(node):
                numbers = added(aten._to_copy.default, (node.args[0],), node.args[0], dtype=torch.int32)
                numbers.meta["val"] = node.args[0].meta["val"].to(torch.int32)
            with graph.inserting_after(node):
                truth = added(aten.ne.Scalar, (node, 0), node)
            node.replace_all_uses_with(truth, delete_user_cb=lambda user, made=truth: user is not made)
            node.args = (numbers, *node.args[1:])
            node.meta = dict(node.meta) | {"val": node.meta["val"].to(torch.int32)}
    graph.lint()
    return program


def structure(spec: Any) -> dict[str, Any]:
    """{inputs, outputs: {name: shape}, operators} of a specification."""

    def shapes(features: Any) -> dict[str, list[int]]:
        return {each.name: list(each.type.multiArrayType.shape) for each in features}

    operators = sum(
        len(block.operations)
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
    )
    found = {"inputs": shapes(spec.description.input), "outputs": shapes(spec.description.output)}
    return {**found, "operators": operators}


RUNTIME = CoreMl()
