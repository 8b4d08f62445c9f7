"""How far apart two ways of computing the same thing may be: from types and sizes alone, whatever processor computes.

Sums of n terms in another order differ by at most (n - 1) u of the sum of magnitudes (Higham, "Accuracy and Stability
of Numerical Algorithms", 2002, section 4.2), u being half the distance from 1 to the next number, and by about
sqrt(n) u where roundings do not conspire (Higham and Mary 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GELU_SLOPE = 1.13
"""The steepest that GELU gets."""


def unit(dtype: torch.dtype) -> float:
    """The unit roundoff: what one rounding changes at most, relative to what is rounded."""
    return torch.finfo(dtype).eps / 2


def product_bound(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """How far x W^T + b may be from exact, number by number, in float64: summed in float32 in any order, rounded to
    `dtype` before the bias and at the end."""
    sizes = x.double().abs() @ weight.double().abs().T + (0.0 if bias is None else bias.double().abs())
    return (weight.shape[1] + 1) * unit(torch.float32) * sizes + 2 * unit(dtype) * sizes


def rounding_bound(x: Tensor, weight: Tensor, steps: int = 127) -> Tensor:
    """How far the product of x and W^T may move where x, and every row of W, is rounded to whole multiples of its
    largest magnitude / `steps`: half a step of each, in float64."""
    x, weight = x.double().abs(), weight.double().abs()
    step, steps_of_rows = x.max() / steps, weight.amax(1) / steps
    return step / 2 * weight.sum(1) + steps_of_rows / 2 * (x + step / 2).sum(-1, keepdim=True)


def network_bound(network: nn.Module, output: object, dtype: torch.dtype = torch.float32) -> float:
    """How far two ways of computing a network's output (a tensor, or a record of tensors) may be apart: u sqrt(n) of
    its largest number, n being the terms of all products as if they lay one behind the other; in half precision, where
    sums are in float32, the roundings: of what goes into a product, of weights, of what comes out, and of what is added
    to it. Layer norms keep what passes on at one size. `network` needs a state dict, which the fast path has not."""
    parts = [output] if isinstance(output, Tensor) else [part for part in vars(output).values() if part is not None]
    largest = max(float(part.detach().abs().max()) for part in parts)
    lengths = [
        tensor[0].numel()
        for name, tensor in network.state_dict().items()
        if tensor.ndim >= 2 and not name.endswith(("pos_embed", "pos_embedding"))
    ]
    roundings = 4 * len(lengths) if dtype in (torch.float16, torch.bfloat16) else sum(lengths)
    return unit(dtype) * roundings**0.5 * largest


def int8_bound(network: nn.Module, output: object) -> float:
    """How far a network whose blocks compute their four products in 8 bits may be from the one that does not: half a
    step of 1/127 from each of them, of the largest number, and they add up as roundings do."""
    products = 4 * len(network.backbone.blocks)
    largest = max(float(part.detach().abs().max()) for part in vars(output).values() if part is not None)
    return products**0.5 / (2 * 127) * largest
