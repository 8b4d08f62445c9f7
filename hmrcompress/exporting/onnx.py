"""ONNX: one graph from crops to body parameters, token merging and head included, with a dynamic batch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hmrcompress.body.model import BodyModel
from hmrcompress.data.conditions import CONDITION, check_condition
from hmrcompress.errors import MissingExtra, UserError
from hmrcompress.exporting.overflow import require_room
from hmrcompress.exporting.parity import BATCH_SIZES, OUTPUTS, OnnxNetwork, Parity, mask_or_nobody, measure
from hmrcompress.io.atomic import room
from hmrcompress.io.manifests import reference
from hmrcompress.io.npz import write_npz
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import is_stream, real
from hmrcompress.io.seals import seal
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.records import IMAGENET_MEAN, IMAGENET_STD, FrameBatch
from hmrcompress.runtime import dtype_name

SCHEMA = 1
SINGLE_FILE_BYTES = 1_800_000_000
"""Weights above this go to FILE.data beside FILE: an ONNX file itself ends at 2 GiB."""
EXAMPLE_BATCH = 2
GOLDEN_CROPS = 2
KIND = "export"
REFERENCE = "torch, float32, CPU"
BESIDE = (".json", ".golden.npz", ".data")
"""What goes beside FILE.onnx: the contract, golden tensors, and weights that it has no room for."""
DTYPES = (torch.float32, torch.float16)
PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Tells the quantiser that the graph was optimised; otherwise it logs a warning that it may not have been."""


@dataclass(frozen=True)
class OnnxExport:
    """What was written: the file, the JSON and the golden tensors beside it, its size with weights, and how close it
    is to torch."""

    path: Path
    contract: Path
    golden: Path
    size_bytes: int
    parity: Parity


class Exported(nn.Module):
    """The network with a tuple for its outputs, as a graph has them; float32 in and out."""

    def __init__(self, network: HMR2) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, images: Tensor, person_mask: Tensor | None = None, condition: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        predicted = self.network(images.to(self.network.backbone.pos_embed.dtype), person_mask, condition)
        return tuple(getattr(predicted, name).float() for name in OUTPUTS)


def in_half_precision(network: HMR2) -> HMR2:
    """Another network that computes in float16, token matching and read-outs apart; it merges tokens alike."""
    state = network.state_dict()
    other = from_state(
        network.config,
        {name: tensor if name.startswith(network.full_precision) else tensor.half() for name, tensor in state.items()},
    )
    other.backbone.reducer = network.backbone.reducer
    return other


def export_onnx(
    network: HMR2,
    path: Path | str,
    batch: FrameBatch,
    body: BodyModel,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, Any] | None = None,
    overwrite: bool | OutputRule = False,
) -> OnnxExport:
    """Writes FILE.onnx, the contract of its inputs and outputs, FILE.onnx.json, with `about` (provenance) in it, and
    FILE.onnx.golden.npz: inputs, and what the network gives for them in torch.

    The input `person_mask` exists where the network merges tokens and has no saliency probe to find the person with,
    `condition` (`data.conditions`) where the network is told of boxes and focal lengths.
    batch: real crops, on which the file is compared with torch at every one of `batch_sizes` before anything gets its
    name. dtype: float32 or float16, of weights and arithmetic inside; inputs and outputs are float32 either way.
    Raises UserError, also as `io.outputs`, MissingExtra, and HMRCompressError where the two differ.
    """
    path, outputs = Path(path), OutputRule.of(overwrite)
    if dtype not in DTYPES:
        raise UserError(f"got {dtype_name(dtype)}, expected {' or '.join(map(dtype_name, DTYPES))}", "export")
    check_export(network, path)
    check_files(path, outputs)
    network.eval()
    if dtype == torch.float16:
        require_room(network, batch)
    with room(real(path)) as folder:
        made = folder / path.name
        _write_graph(in_half_precision(network) if dtype == torch.float16 else network, made, batch)
        _seal_all(folder)
        parity = measure(network, OnnxNetwork(made, grid=network.config.grid), batch, body, batch_sizes)
        parity.require(path, dtype)
        size = sum(file.stat().st_size for file in folder.iterdir())
        write_npz(folder / f"{path.name}.golden.npz", golden_of(network, batch))
        about = {"dtype": dtype_name(dtype)} | dict(about or {})
        written = put_all(folder, path, contract_of(network, parity, body) | about, outputs)
    return OnnxExport(path, *written, size, parity)


def check_files(path: Path, outputs: OutputRule) -> None:
    """UserError where a graph, or what goes beside it, must not be written."""
    if is_stream(path):
        raise UserError("is no file, and there are several to be written", path, "Give it a name that ends in .onnx")
    outputs.check_file(path, KIND)
    for more in BESIDE:
        outputs.check_file(path.with_name(f"{path.name}{more}"), KIND)


def put_all(folder: Path, path: Path, contract: dict[str, Any], outputs: OutputRule) -> tuple[Path, Path]:
    """Puts what lies in a room beside `path` in its place, the graph last, and writes the contract with `files` and
    `golden`; gives the names of contract and golden tensors."""
    golden = path.with_name(f"{path.name}.golden.npz")
    seal(folder / golden.name, KIND)
    written = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
    files = {file.name: reference(file) for file in written}
    told = path.with_name(f"{path.name}.json")
    outputs.write_json(told, contract | {"files": files, "golden": golden.name}, KIND)
    for file in written:
        outputs.put(file, path.with_name(file.name), KIND)
    return told, golden


def _seal_all(folder: Path) -> None:
    for file in folder.iterdir():
        seal(file, KIND)


def check_export(network: nn.Module, path: Path) -> None:
    """UserError or MissingExtra where a network could not be written to `path`."""
    require_exporter()
    if path.suffix != ".onnx":
        raise UserError("the name has to end in .onnx", path)
    if path.is_dir():
        raise UserError("is a folder, expected the name of a file", path)
    require_float32(network)


def require_exporter() -> None:
    """MissingExtra where a package is not installed that graphs are written and compared with."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "export")


def require_float32(network: nn.Module) -> None:
    """UserError for a network that is not in float32 on the CPU."""
    first = next(network.parameters())
    if first.dtype != torch.float32 or first.is_cuda:
        raise UserError(f"got a network in {first.dtype} on {first.device}, expected float32 on the CPU", "export")


@torch.no_grad()
def golden_of(network: HMR2, batch: FrameBatch) -> dict[str, np.ndarray]:
    """The first crops as inputs of the graph, and the outputs of torch for them, by name."""
    inputs = inputs_of(network, batch, GOLDEN_CROPS)
    mask = None if batch.person_mask is None else batch.person_mask[:GOLDEN_CROPS]
    predicted = network(**({"person_mask": mask} | inputs))
    tensors = inputs | {name: getattr(predicted, name) for name in OUTPUTS}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def inputs_of(network: HMR2, batch: FrameBatch, count: int) -> dict[str, Tensor]:
    """The first crops of a batch as inputs of the graph, by name. UserError where one that is needed is missing."""
    images = batch.images[:count]
    inputs = {"images": images}
    if takes_mask(network):
        mask = None if batch.person_mask is None else batch.person_mask[:count]
        inputs["person_mask"] = mask_or_nobody(images, mask, network.config.grid)
    if network.conditioned:
        inputs["condition"] = check_condition(batch.condition, len(batch.images))[:count]
    return inputs


def _write_graph(network: HMR2, path: Path, batch: FrameBatch) -> None:
    traced_graph(network, batch).save(path, external_data=needs_two_files(network))


def traced_graph(network: HMR2, batch: FrameBatch) -> torch.onnx.ONNXProgram:
    """The graph of a network, which shares its weights: crops as `batch` holds them in (at least two), `OUTPUTS` out.
    Raises UserError where the batch lacks an input, and where torch can only make a graph for one number of crops."""
    inputs = inputs_of(network, batch, EXAMPLE_BATCH)
    batch_size = torch.export.Dim("batch", min=1, max=4096)
    with quietly():
        program = torch.onnx.export(
            Exported(network).eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=list(OUTPUTS),
            dynamic_shapes={name: {0: batch_size} for name in inputs},
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "torch gives a program where no file is named"
    dimensions = program.model.graph.inputs[0].shape
    if dimensions is None or str(dimensions[0]).isdigit():
        # As torch 2.6 did where tokens are merged: guards that it cannot keep fix the batch to that of the example.
        fault = f"torch {torch.__version__} makes a graph for {EXAMPLE_BATCH} crops at a time only"
        raise UserError(fault, "export", "Install a newer torch, such as that of constraints.txt")
    return program


def needs_two_files(network: HMR2) -> bool:
    """Whether the weights are too large to lie in the graph's own file."""
    return sum(each.numel() * each.element_size() for each in network.state_dict().values()) > SINGLE_FILE_BYTES


def takes_mask(network: HMR2) -> bool:
    """Whether the graph has a mask for an input: the network merges tokens and does not find the person itself."""
    reducer = network.backbone.reducer
    return reducer is not None and getattr(reducer, "probe", None) is None


@contextmanager
def quietly() -> Iterator[None]:
    """Without the exporter's deprecation warnings and its log of every step."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def contract_of(
    network: HMR2, parity: Parity | None, body: BodyModel, *, through: str = "onnxruntime, CPU"
) -> dict[str, Any]:
    """What someone needs who has only the file: names, shapes, units, normalisation, and how it was checked."""
    config = network.config
    rows, columns = config.grid
    image = {
        "shape": ["B", 3, rows * config.patch, columns * config.patch],
        "dtype": "float32",
        "meaning": "RGB crop, scaled to 0..1, then (value - mean) / std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    mask = {
        "shape": ["B", rows, columns],
        "dtype": "bool",
        "meaning": "true where a token's window shows the person; all false merges without regard to people",
    }
    condition = {
        "shape": ["B", CONDITION],
        "dtype": "float32",
        "meaning": "(cx - W/2, cy - H/2, b) / f: centre and side of the crop's box in a picture of W x H, f its focal "
        "length, all in pixels",
    }
    joints = config.num_joints
    rotation = "rotation matrices on column vectors, camera frame (x right, y down, z forward)"
    return {
        "schema": SCHEMA,
        "kind": "hmrcompress onnx",
        "inputs": {"images": image}
        | ({"person_mask": mask} if takes_mask(network) else {})
        | ({"condition": condition} if network.conditioned else {}),
        "outputs": {
            "global_orient": {"shape": ["B", 1, 3, 3], "dtype": "float32", "meaning": f"root: {rotation}"},
            "body_pose": {
                "shape": ["B", joints - 1, 3, 3],
                "dtype": "float32",
                "meaning": f"joints 1..{joints - 1} relative to their parents: {rotation}",
            },
            "betas": {"shape": ["B", config.num_betas], "dtype": "float32", "meaning": "shape coefficients"},
            "cam": {"shape": ["B", 3], "dtype": "float32", "meaning": "weak perspective (s, tx, ty) of the crop"},
            "features": {
                "shape": ["B", config.head_width],
                "dtype": "float32",
                "meaning": "the head's token before the linear read-outs, which a temporal decoder reads",
            },
        },
        "body": {"name": body.name, "faces_sha256": body.faces_sha256},
        **({"parity": parity.to_dict() | {"reference": REFERENCE, "through": through}} if parity else {}),
    }
