"""Parameters and multiply-accumulates of a network, counted on a forward pass (also on the meta device).

Two ways of counting: as the FastHMR paper does (as `thop` counts: linear layers, convolutions, norms with a scale and a
shift at four an element and others at two, one for each element of what is made larger, without the products of
attention), and with the products of attention. What token merging itself multiplies is told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm)


@dataclass(frozen=True)
class Cost:
    """Of one forward pass. `macs` as the paper counts; `attention_macs` the products QK^T and AV; `other_macs` matrix
    products outside of layers and attention, which is where token matching and merging show."""

    parameters: int
    macs: int
    attention_macs: int
    other_macs: int

    @property
    def macs_with_attention(self) -> int:
        """Layers, norms and the products of attention."""
        return self.macs + self.attention_macs

    def to_dict(self) -> dict[str, int]:
        """{params, macs, macs_with_attention, macs_of_merging}, for JSON."""
        return {
            "params": self.parameters,
            "macs": self.macs,
            "macs_with_attention": self.macs_with_attention,
            "macs_of_merging": self.other_macs,
        }


class _Products(TorchFunctionMode):
    """Counts linear layers, scaled_dot_product_attention and matrix products that are called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = self.attention = self.other = 0

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear:
            self.linear += out.numel() * args[0].shape[-1]
        elif func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            self.attention += query.numel() * key.shape[-2] + out.numel() * value.shape[-2]
        elif func in MATMULS:
            self.other += out.numel() * args[0].shape[-1]
        return out


def cost(network: nn.Module, *inputs: Tensor | None) -> Cost:
    """Counts a forward pass of `network(*inputs)`; give one sample for the cost of one. Hooks are removed again.

    Shared parameters count once. Network and inputs must be on one device; `meta` needs no memory.
    """
    layers = 0

    def convolution(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal layers
        layers += out.numel() * module.weight[0].numel()

    def norm(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal layers
        layers += (2 if module.weight is None else 4) * out.numel()

    def upsampling(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal layers
        layers += out.numel()

    kinds = (
        (nn.Conv1d, convolution),
        (nn.Conv2d, convolution),
        (nn.LayerNorm, norm),
        (nn.BatchNorm2d, norm),
        (nn.Upsample, upsampling),
    )
    handles = [
        module.register_forward_hook(hook)
        for module in network.modules()
        for kind, hook in kinds
        if isinstance(module, kind)
    ]
    try:
        with torch.no_grad(), _Products() as products:
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, layers + products.linear, products.attention, products.other)
