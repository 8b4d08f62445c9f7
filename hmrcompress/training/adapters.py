"""Low-rank adapters beside a network's linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685), and folding them in.

Adapters are there while training only: folded, the network has the keys, the shapes and the speed that it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.models.network import HMR2
from hmrcompress.models.vit import Block
from hmrcompress.runtime import generator

LINEARS = (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))
"""The linear layers of a block, as (module, layer)."""


class LowRank(nn.Module):
    """A linear layer and two thin matrices beside it: y = W x + b + up (down x), with `up` zero at first.

    down (rank,in) is normal with deviation 1/sqrt(in), so that it keeps the size of x; drawn from `random`.
    """

    def __init__(self, linear: nn.Linear, rank: int, random: torch.Generator) -> None:
        super().__init__()
        self.linear = linear
        drawn = torch.randn(rank, linear.in_features, generator=random) * linear.in_features**-0.5
        self.down = nn.Parameter(drawn.to(linear.weight))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(…,in) -> (…,out)."""
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)

    def folded(self) -> Tensor:
        """(out,in): W + up down, added in float64, in the dtype of W."""
        weight = self.linear.weight.detach()
        return (weight.double() + self.up.detach().double() @ self.down.detach().double()).to(weight.dtype)


def adapt(network: HMR2, layers: Iterable[int], rank: int, seed: int) -> None:
    """Puts adapters beside the linear layers of these backbone layers, in place. The network's output stays the same.

    The rank is at most that of the matrix. Draws are seeded by (seed, layer).
    """
    for layer in layers:
        block = cast(Block, network.backbone.blocks[layer])
        random = generator(seed * 10_007 + layer)
        for part, name in LINEARS:
            if not hasattr(block, part):  # that half was removed
                continue
            linear = getattr(getattr(block, part), name)
            setattr(getattr(block, part), name, LowRank(linear, min(rank, *linear.weight.shape), random))


def folded_state(network: HMR2) -> dict[str, Tensor]:
    """The state dict of the network with its adapters folded in: the keys and shapes of one without adapters."""
    state = {
        name.replace(".linear.", "."): tensor.detach()
        for name, tensor in network.state_dict().items()
        if not name.endswith((".down", ".up"))
    }
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            state[f"{name}.weight"] = module.folded()
    return state


def layers_beside_cuts(
    groups: Sequence[Sequence[int]], changed: Iterable[int], reach: int, layers: int | None = None
) -> list[int]:
    """Which layers of the merged network to adapt: those within `reach` of a layer that came from several, of a gap in
    the `groups`, where layers of the `layers` there were are removed, or of one that is `changed` otherwise (tokens are
    merged in it, or a half is missing); where nothing was changed at all, every layer. Rising."""
    cuts = {number for number, group in enumerate(groups) if len(group) > 1} | set(changed)
    ends = [-1, *(group[-1] for group in groups)]
    starts = [*(group[0] for group in groups), ends[-1] + 1 if layers is None else layers]
    for number, (end, start) in enumerate(zip(ends, starts, strict=True)):
        if start != end + 1:
            cuts |= {number - 1, number} & set(range(len(groups)))
    near = {cut + step for cut in cuts for step in range(-reach, reach + 1)}
    return sorted(near & set(range(len(groups)))) if cuts else list(range(len(groups)))
