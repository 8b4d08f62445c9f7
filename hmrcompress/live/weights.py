"""The blocks of a plan's groups: rules of `merging.layers` applied to every tensor of blocks of other code.

A rule takes each tensor of the blocks for itself: gates and values of a gated MLP, biases and buffers alike. What a
layer scale multiplies is one map with it, `gamma * (W u + b)`, so rules that add tensors up first fold the scale into
W and b, exactly, and the new block's scale is 1; the average of products is not the product of averages.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.live.blocks import Anatomy
from hmrcompress.merging.layers import merge_layers
from hmrcompress.merging.lstsq import Patch

SELECTING = {"keep_first": 0, "keep_last": -1}
"""Rules that take a block of the group as it is, and which."""
MLP_OUTPUTS = ("fc2", "w3", "down_proj", "weights_out", "c_proj")
SCALE_NAMES = ("gamma", "lambda1")


class Named(Protocol):
    """What is known of a block's names: `live.blocks.Anatomy` of a live one, `live.files.Parts` of one in a file."""

    @property
    def attention(self) -> str: ...
    @property
    def output(self) -> str | None: ...
    @property
    def scales(self) -> tuple[str, str] | None: ...


def made_blocks(
    blocks: Sequence[nn.Module],
    bodies: Sequence[Anatomy],
    groups: Sequence[Sequence[int]],
    rule: str,
    patches: Mapping[int, Patch] | None = None,
) -> list[nn.Module]:
    """A block for every group: the original where the group is of one, the one that the rule keeps, or a new one of
    merged weights.

    bodies: how the blocks are taken apart, or none, and then layer scales are like other tensors. Raises UserError for
    blocks that are not built alike, and as `merge_layers`.
    """
    return [
        blocks[group[0]] if len(group) == 1 else _merged(blocks, bodies, group, rule, patches or {}) for group in groups
    ]


def _merged(
    blocks: Sequence[nn.Module],
    bodies: Sequence[Anatomy],
    group: Sequence[int],
    rule: str,
    patches: Mapping[int, Patch],
) -> nn.Module:
    states = [blocks[number].state_dict() for number in group]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if odd := [number for number, found in zip(group, shapes, strict=True) if found != shapes[0]]:
        raise UserError(f"layers {group[0]} and {odd[0]} are not built alike, so they cannot be merged", "groups")
    if rule in SELECTING:
        return blocks[group[SELECTING[rule]]]
    if bodies:
        states = [folded(state, bodies[number], f"layer {number}") for state, number in zip(states, group, strict=True)]
    together = {f"{place}.{name}": tensor for place, state in enumerate(states) for name, tensor in state.items()}
    given = {0: patches[group[0]]} if group[0] in patches else None
    try:
        merged = merge_layers(together, [range(len(group))], rule, prefix="", patches=given)
    except UserError as error:
        raise UserError(error.what.replace("layer 0", f"layer {group[0]}"), error.where, error.remedy) from error
    block = copy.deepcopy(blocks[group[0]])
    block.load_state_dict({name.removeprefix("0."): tensor for name, tensor in merged.items()})
    return block


def folded(state: Mapping[str, Tensor], body: Named, where: object = "groups") -> dict[str, Tensor]:
    """A block's tensors with layer scale folded into the linear layers before it, these in float64; scales are 1.

    As they are where the block has no scale. UserError, naming `where`, where it has one and what is multiplied by it
    goes by an unknown name: added up apart, scales and layers make another block.
    """
    if body.scales is None:
        return dict(state)
    last = next((f"mlp.{name}" for name in MLP_OUTPUTS if f"mlp.{name}.weight" in state), None)
    out = dict(state)
    attended = None if body.output is None else f"{body.attention}.{body.output}"
    for scale, linear, half in zip(body.scales, (attended, last), ("attention", "MLP"), strict=True):
        name = next((each for each in (scale, *(f"{scale}.{end}" for end in SCALE_NAMES)) if each in state), None)
        if name is None:
            continue
        if linear is None or f"{linear}.weight" not in state:
            raise UserError(
                f"has a layer scale, and the last layer of its {half} goes by no known name, so that layers cannot be"
                " added up",
                where,
                "Merge with keep_first or keep_last",
            )
        gamma = state[name].double().flatten()
        out[f"{linear}.weight"] = state[f"{linear}.weight"].double() * gamma[:, None]
        if f"{linear}.bias" in state:
            out[f"{linear}.bias"] = state[f"{linear}.bias"].double() * gamma
        out[name] = torch.ones_like(state[name])
    return out
