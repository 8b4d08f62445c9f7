"""Merging consecutive layers of a state dict into one, parameter by parameter. Pure: nothing is changed in place.

Rules take the same parameter of the layers i..j in order, lowest first. Equation 4 of FastHMR (the rule of sliding
layer merging, arXiv 2502.19159) is `theta_i + sum_k (theta_{i+k} - theta_i)`: of two layers it gives exactly the upper
one, and with m layers the first has the weight -(m - 2). `lstsq` keeps the first layer and adds a patch to its second
MLP matrix that was fitted on data (`merging.lstsq`). Layers, or halves of layers, that are removed are simply left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.merging.lstsq import Patch

BLOCKS = "backbone.blocks."


def eq4(layers: Sequence[Tensor]) -> Tensor:
    """The sum of the upper layers minus (m - 2) times the first; summed in float64."""
    return _sum(layers[1:]) - (len(layers) - 2) * _exact(layers[0])


def keep_last(layers: Sequence[Tensor]) -> Tensor:
    """The upper layer; the others are dropped."""
    return layers[-1]


def keep_first(layers: Sequence[Tensor]) -> Tensor:
    """The lowest layer; the others are dropped."""
    return layers[0]


def mean(layers: Sequence[Tensor]) -> Tensor:
    """The plain average; summed in float64."""
    return _sum(layers) / len(layers)


RULES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "eq4": eq4,
    "keep_last": keep_last,
    "keep_first": keep_first,
    "mean": mean,
    "lstsq": keep_first,
}
FITTED = "lstsq"
"""The rule that needs patches beside the weights."""
PATCHED = {"mlp.fc2.weight": "weight", "mlp.fc2.bias": "bias"}
HALVES_OF_KEYS = {"attention": ("norm1.", "attn."), "mlp": ("norm2.", "mlp.")}
"""How the parameters of each half of a layer begin."""


def _sum(layers: Sequence[Tensor]) -> Tensor:
    """In float64, one layer at a time."""
    total = _exact(layers[0])
    for layer in layers[1:]:
        total = total + layer
    return total


def _exact(layer: Tensor) -> Tensor:
    return layer.to(torch.complex128 if layer.is_complex() else torch.float64)


def patched(parameter: Tensor, patch: Tensor) -> Tensor:
    """A parameter with its part of a patch added, in its own dtype and on its own device; summed in float64."""
    return (parameter.double() + patch.to(parameter.device)).to(parameter.dtype)


def merge_layers(
    state: Mapping[str, Tensor],
    groups: Sequence[Sequence[int]],
    rule: str = "eq4",
    prefix: str = BLOCKS,
    *,
    patches: Mapping[int, Patch] | None = None,
    removed: Mapping[int, str] | None = None,
) -> dict[str, Tensor]:
    """A state dict in which every group of layers has become one; layers are renumbered, other keys stay.

    Keys of layers are `{prefix}{layer}.{parameter}`. Tensors of groups of one are handed on as they are (the same
    storage, no copy); merged ones have the dtype of the first layer of their group. The order of keys is kept.
    `patches`, by the first layer of each group of several, are what the rule `lstsq` adds. `removed`: by layer, `all`
    or the half of it that is left out; such a layer stands alone in its group.
    Raises UserError for an unknown rule, missing patches, groups that do not fit the layers of the state dict, a group
    of layers that do not have the same halves, and a half to be removed that is not there.
    """
    gone = dict(removed or {})
    if rule not in RULES:
        raise UserError(f"got {rule!r}, expected one of {', '.join(RULES)}", "merge_rule")
    present = sorted({int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix)})
    if (covered := [layer for group in groups for layer in group]) != present:
        raise UserError(f"got {len(covered)} layers, expected 0 … {len(present) - 1}, each once, in order", "groups")
    if rule == FITTED and (bare := {group[0] for group in groups if len(group) > 1} - set(patches or {})):
        raise UserError(f"{FITTED} has no patch for layer {min(bare)}", "merge_rule", "It is fitted on data")
    check_halves(state, groups, gone, prefix)
    kept = [group for group in groups if gone.get(group[0]) != "all"]
    place = {group[0]: (number, group) for number, group in enumerate(kept)}
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            merged[name] = tensor
            continue
        first, parameter = name[len(prefix) :].split(".", 1)
        if int(first) not in place or parameter.startswith(HALVES_OF_KEYS.get(gone.get(int(first), ""), ("\0",))):
            continue
        number, group = place[int(first)]
        if len(group) > 1:
            parts = [state[f"{prefix}{layer}.{parameter}"] for layer in group]
            tensor = RULES[rule](parts).to(tensor.dtype)
            if rule == FITTED and patches and parameter in PATCHED:
                tensor = patched(tensor, getattr(patches[group[0]], PATCHED[parameter]))
        merged[f"{prefix}{number}.{parameter}"] = tensor
    return merged


def check_halves(
    state: Mapping[str, Tensor], groups: Sequence[Sequence[int]], removed: Mapping[int, str], prefix: str = BLOCKS
) -> None:
    """UserError where layers of a group differ in their parameters, or a half that is to be removed is not there, or is
    the only one that its layer has."""
    parts: dict[int, set[str]] = {}
    for name in state:
        if name.startswith(prefix):
            number, parameter = name[len(prefix) :].split(".", 1)
            parts.setdefault(int(number), set()).add(parameter)
    for group in groups:
        for layer in group[1:]:
            if parts[layer] != parts[group[0]]:
                raise UserError(
                    f"layers {group[0]} and {layer} do not have the same halves, so they cannot become one", "groups"
                )
    for layer, part in removed.items():
        if part == "all":
            continue
        going = [name for name in parts[layer] if name.startswith(HALVES_OF_KEYS[part])]
        if not going:
            raise UserError(f"layer {layer} has no {part} to remove", "removed")
        if len(going) == len(parts[layer]):
            raise UserError(f"layer {layer} has nothing but its {part}; part: all removes it", "removed")
