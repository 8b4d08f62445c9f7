"""The matrix products of a network and nothing else: what its speed is measured against.

What a library takes for these products alone, with the network's own weights and one buffer for each shape, is as fast
as a forward pass gets that computes them with that library. Norms, GELU, softmax, adding up, and matching and merging
tokens are what a network does beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hmrcompress.metrics.cost import MATMULS
from hmrcompress.records import FrameBatch


class _Recorder(TorchFunctionMode):
    """What is multiplied while it is active. layers: rows and weights (out,in) of linear layers and convolutions;
    others: (batch, m, k, n) of the products of attention and of matching."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[tuple[int, Tensor]] = []
        self.others: list[tuple[int, int, int, int]] = []

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear:
            self.layers.append((out.numel() // out.shape[-1], args[1].detach()))
        elif func is F.conv2d:
            self.layers.append((out.numel() // out.shape[1], args[1].detach().flatten(1)))
        elif func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            batch, rows = prod(query.shape[:-2]), query.shape[-2]
            self.others.append((batch, rows, query.shape[-1], key.shape[-2]))
            self.others.append((batch, rows, key.shape[-2], value.shape[-1]))
        elif func in MATMULS:
            first, second = args[:2]
            self.others.append((prod(out.shape[:-2]), first.shape[-2], first.shape[-1], second.shape[-1]))
        return out


def bare_products(network: nn.Module, batch: FrameBatch) -> Callable[[object], None]:
    """What computes the products of one forward pass of `network` on `batch`, whatever it is called with, in the dtype
    of its weights. The weights are the network's own, so that they come out of memory as they do there."""
    like = next(network.parameters())
    images, *more = batch.inputs()
    assert images is not None, "a batch holds images"
    with torch.no_grad(), _Recorder() as seen:
        network(images.to(like.dtype), *more)
    buffers: dict[tuple[object, ...], Tensor] = {}

    def buffer(role: str, *shape: int) -> Tensor:
        if (role, shape) not in buffers:
            buffers[role, shape] = like.new_ones(shape)
        return buffers[role, shape]

    calls: list[Callable[[], object]] = []
    for rows, weight in seen.layers:
        out, given = weight.shape
        calls.append(partial(torch.mm, buffer("first", rows, given), weight.t(), out=buffer("out", rows, out)))
    for size, m, k, n in seen.others:
        pair = buffer("first", size, m, k), buffer("second", size, k, n)
        calls.append(partial(torch.bmm, *pair, out=buffer("out", size, m, n)))

    def run(_: object) -> None:
        for call in calls:
            call()

    return run
