"""Multiply-accumulates of a stack of blocks, before and after a plan: linear layers and attention, for one crop."""

from __future__ import annotations

from itertools import accumulate

from torch import nn

from hmrcompress.errors import UserError
from hmrcompress.live.structure import Network
from hmrcompress.merging.apply import TokenMerger
from hmrcompress.plan import Plan


def stack_macs(network: Network, plan: Plan | None = None) -> int:
    """Of the blocks alone: what is in front of them and behind them is not counted. Tokens become fewer between the
    halves of a block. UserError where blocks cannot be taken apart and the plan merges tokens."""
    groups = [(number,) for number in range(network.depth)] if plan is None else plan.kept_groups
    others = network.prefix + network.suffix
    counts = [network.tokens] * (len(groups) + 1)
    if plan is not None and plan.tokens is not None:
        if network.refusal is not None:
            raise network.refusal
        merger, count = TokenMerger(plan.tokens), network.tokens
        if plan.tokens.drop_background is not None:
            count = min(count, plan.tokens.keep)
        removed: list[int] = []
        for layer in range(len(groups)):
            removed.append(merger.removes(layer, count - sum(removed)))
        counts = [count, *(count - gone for gone in accumulate(removed))]
    total = 0
    for layer, group in enumerate(groups):
        entering, leaving = counts[layer] + others, counts[layer + 1] + others
        attention, mlp = _linears(network, group[0])
        total += entering * attention + 2 * entering * entering * network.dim + leaving * mlp
    return total


def _linears(network: Network, number: int) -> tuple[int, int]:
    """Weights of a block's linear layers, of its attention and of the rest."""
    block = network.blocks[number]
    inside = network.bodies[0].attention if network.bodies else "attn"
    attention = mlp = 0
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            size = module.in_features * module.out_features
            if name.startswith(f"{inside}."):
                attention += size
            else:
                mlp += size
    if not attention + mlp:
        raise UserError("holds no linear layers", f"{network.name}.{number}")
    return attention, mlp
