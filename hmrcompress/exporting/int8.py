"""Calibrated 8 bits under a budget in millimetres: which linear layers of the backbone may have them.

Weights get one scale an output channel, inputs one range a layer, found on calibration crops (static quantization).
Layers are turned to 8 bits in the order of the damage that each does by itself; the longest beginning of that order
whose joints stay within the budget is taken, the rest is kept. Damage is found in torch, on numbers rounded as the
graph will round them; what a runtime then gives is compared again, on other crops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import HMRCompressError
from hmrcompress.exporting.onnx import inputs_of, needs_two_files
from hmrcompress.models.network import HMR2
from hmrcompress.plan import CheckpointRef, Plan, RunSettings, trivial_groups
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, no_progress

SCOPES = "pkg.torch.onnx.name_scopes"
BLOCKS = "backbone.blocks."
LEVELS = 255
"""Steps between the ends of a range of 8 bits."""
CALIBRATED_AT_ONCE = 8


@dataclass(frozen=True)
class Int8Choice:
    """What was chosen. layers: names of linear layers with 8 bits, the least damaging first; kept: the others. ranges:
    of each layer's input. damage_mm: what each does alone; found_mm: what all of them do together, on the calibration
    crops: the median over crops of the largest distance of a joint; None where that was not measured. weight_bits: 8,
    or 7 where the products of this processor would overflow."""

    layers: tuple[str, ...]
    kept: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    damage_mm: Mapping[str, float]
    found_mm: float | None
    budget_mm: float
    crops: int
    weight_bits: int = 8

    def whole_blocks(self) -> tuple[int, ...]:
        """The backbone layers of which every linear layer has 8 bits."""
        kept = {block_of(name) for name in self.kept}
        return tuple(sorted({block_of(name) for name in self.layers} - kept))

    def fewer(self) -> Int8Choice:
        """The same without the most damaging eighth."""
        count = len(self.layers) - max(1, len(self.layers) // 8)
        kept = (*self.layers[count:], *self.kept)
        return replace(self, layers=self.layers[:count], kept=kept, found_mm=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "budget_mm": self.budget_mm,
            "found_mm": self.found_mm,
            "crops": self.crops,
            "weight_bits": self.weight_bits,
            "layers": list(self.layers),
            "kept": list(self.kept),
            "damage_mm": dict(self.damage_mm),
        }


def block_of(name: str) -> int:
    """The backbone layer that a linear layer is in."""
    return int(name.removeprefix(BLOCKS).partition(".")[0])


def linear_layers(network: HMR2) -> dict[str, nn.Linear]:
    """The linear layers of the backbone's blocks, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if name.startswith(BLOCKS) and isinstance(module, nn.Linear)
    }


@torch.no_grad()
def calibrated(network: HMR2, batch: FrameBatch) -> dict[str, tuple[float, float]]:
    """The least and the greatest number that goes into each linear layer on these crops, zero among them."""
    ranges: dict[str, tuple[float, float]] = {}
    with ExitStack() as hooks:
        for name, layer in linear_layers(network).items():

            def look(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                low, high = (float(each) for each in given[0].aminmax())
                known = ranges.get(name, (0.0, 0.0))
                ranges[name] = (min(known[0], low), max(known[1], high))

            hooks.callback(layer.register_forward_pre_hook(look).remove)
        for part in _parts(batch):
            network(*part.inputs())
    return ranges


def rounded_input(x: Tensor, low: float, high: float) -> Tensor:
    """x as 8 bits with a zero point hold it: `x = (q - zero) step` with q in 0 … 255."""
    step = (high - low) / LEVELS or 1.0
    zero = round(-low / step)
    return ((x / step).round() + zero).clamp(0, LEVELS).sub(zero).mul(step)


def rounded_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """(out,in) as signed numbers of so many bits hold it, one scale a row, symmetric."""
    largest = 2 ** (bits - 1) - 1
    step = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / largest
    return (weight / step).round().clamp(-largest, largest) * step


@contextmanager
def rounding(
    network: HMR2, names: Sequence[str], ranges: Mapping[str, tuple[float, float]], bits: int = 8
) -> Iterator[None]:
    """While the block runs these layers compute on what 8 bits hold of their inputs and weights."""
    layers = linear_layers(network)
    with ExitStack() as undo:
        for name in names:
            layer, (low, high) = layers[name], ranges[name]

            def change(
                _: nn.Module, given: tuple[Tensor, ...], low: float = low, high: float = high
            ) -> tuple[Tensor, ...]:
                return (rounded_input(given[0], low, high), *given[1:])

            weight = layer.weight
            undo.callback(setattr, layer, "weight", weight)
            undo.callback(layer.register_forward_pre_hook(change).remove)
            layer.weight = nn.Parameter(rounded_weight(weight.detach(), bits), requires_grad=False)
        yield


def choose(
    network: HMR2,
    batch: FrameBatch,
    body: BodyModel,
    budget_mm: float,
    *,
    weight_bits: int = 8,
    progress: Progress = no_progress,
) -> Int8Choice:
    """The layers that get 8 bits within the budget, on calibration crops. HMRCompressError where there is none."""
    with torch.no_grad():
        true = _joints(network, batch, body)

    @torch.no_grad()
    def apart(names: Sequence[str]) -> float:
        with rounding(network, names, ranges, weight_bits):
            moved = _joints(network, batch, body) - true
        found = moved.norm(dim=-1).amax(1).median().item() * 1000.0
        return found if np.isfinite(found) else float("inf")

    ranges = calibrated(network, batch)
    damage = {}
    for number, name in enumerate(ranges):
        progress("damage of 8 bits", number, len(ranges))
        damage[name] = apart([name])
    order = sorted(damage, key=lambda name: (damage[name], name))
    # The longest beginning within the budget, by halving: more layers do more damage, but for noise.
    good, bad, found = 0, len(order) + 1, 0.0
    while bad - good > 1:
        middle = len(order) if good == 0 and bad > len(order) else (good + bad) // 2
        seen = apart(order[:middle])
        if seen <= budget_mm:
            good, found = middle, seen
        else:
            bad = middle
    if not good:
        raise HMRCompressError(
            f"int8: no linear layer stays within {budget_mm:g} mm (the least damage is {min(damage.values()):.2g} mm); "
            "nothing was written."
        )
    count = len(batch.images)
    return Int8Choice(tuple(order[:good]), tuple(order[good:]), ranges, damage, found, budget_mm, count, weight_bits)


def all_layers(network: HMR2, batch: FrameBatch, weight_bits: int = 8) -> Int8Choice:
    """8 bits in every linear layer of the backbone, whatever that costs: for measuring speed."""
    ranges = calibrated(network, batch)
    return Int8Choice(tuple(ranges), (), ranges, {}, None, float("inf"), len(batch.images), weight_bits)


def quantise_onnx(
    source: Path, path: Path, network: HMR2, batch: FrameBatch, choice: Int8Choice, *, unsigned: bool = False
) -> None:
    """Writes the graph of a network with 8 bits where `choice` has them, as QuantizeLinear and DequantizeLinear around
    its products, through onnxruntime's tools. source: the graph in float32. unsigned: weights as unsigned numbers with
    the zero in their middle. HMRCompressError where a layer is not in the graph."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    nodes = nodes_of(onnx.load(str(source), load_external_data=False).graph, choice.layers)

    class Crops(CalibrationDataReader):
        def __init__(self) -> None:
            given = [inputs_of(network, part, len(part.images)) for part in _parts(batch)]
            self.left = iter([{name: tensor.numpy() for name, tensor in each.items()} for each in given])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(
        source,
        path,
        Crops(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_quantize=list(nodes.values()),
        per_channel=True,
        reduce_range=choice.weight_bits == 7,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        use_external_data_format=needs_two_files(network),
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": False,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        },
    )


def nodes_of(graph: Any, layers: Sequence[str]) -> dict[str, str]:
    """The product of each linear layer in an `onnx.GraphProto` of `traced_graph`, by the layer's name.
    HMRCompressError where there is none."""
    wanted = {f"network.{name}": name for name in layers}
    found = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        scopes = next((each.value for each in node.metadata_props if each.key == SCOPES), "")
        for scope in scopes.replace("'", " ").replace('"', " ").replace(",", " ").split():
            if scope in wanted:
                found[wanted[scope]] = node.name
    if missing := [name for name in layers if name not in found]:
        raise HMRCompressError(f"int8: the graph holds no product of {missing[0]}")
    return found


def planned(plan: Plan | None, reference: CheckpointRef, choice: Int8Choice, runtime: str) -> Plan:
    """The plan of a model with what runs in 8 bits: the layers of the checkpoint all of whose linear layers do."""
    plan = plan or Plan(checkpoint=reference, groups=trivial_groups(reference.layers))
    groups = plan.kept_groups
    layers = tuple(sorted(groups[block][0] for block in choice.whole_blocks()))
    run = (plan.run or RunSettings()).model_copy(
        update={"int8": layers, "runtime": {"onnx": "onnxruntime"}.get(runtime, runtime)}
    )
    return plan.model_copy(update={"run": run})


def _joints(network: HMR2, batch: FrameBatch, body: BodyModel) -> Tensor:
    return torch.cat([body.joints(network(*part.inputs()).params) for part in _parts(batch)])


def _parts(batch: FrameBatch) -> Iterator[FrameBatch]:
    for start in range(0, len(batch.images), CALIBRATED_AT_ONCE):
        rows = slice(start, start + CALIBRATED_AT_ONCE)
        mask, condition = (None if each is None else each[rows] for each in (batch.person_mask, batch.condition))
        yield replace(batch, images=batch.images[rows], person_mask=mask, condition=condition)
