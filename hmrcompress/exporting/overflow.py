"""Whether a network's numbers have room in float16, whose largest is 65,504: looked up in float32 on real crops.

Attention multiplies queries with keys before it scales or after, and a layer norm squares what it is given; those are
the numbers that run over first. A runtime that scales late or squares in float16 needs room for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hmrcompress.errors import HMRCompressError
from hmrcompress.models.network import HMR2
from hmrcompress.records import FrameBatch

LARGEST = torch.finfo(torch.float16).max
LOGITS, SQUARES, PRODUCTS = "attention logits before scaling", "mean squares in layer norms", "outputs of linear layers"
MUST_FIT = (LOGITS, PRODUCTS)
"""What is computed in float16 in a file of ours; mean squares are computed in float32."""


class _Looking(TorchFunctionMode):
    def __init__(self) -> None:
        self.largest: dict[str, float] = {LOGITS: 0.0, SQUARES: 0.0, PRODUCTS: 0.0}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            self._see(LOGITS, args[0] @ args[1].transpose(-2, -1))
        elif function is F.layer_norm:
            self._see(SQUARES, args[0].square().mean(-1))
        elif function is F.linear:
            self._see(PRODUCTS, found)
        return found

    def _see(self, what: str, numbers: Tensor) -> None:
        # numpy's maximum hands NaN on, Python's may not.
        self.largest[what] = float(np.maximum(self.largest[what], numbers.abs().amax().item()))


@torch.no_grad()
def largest_numbers(network: HMR2, batch: FrameBatch) -> dict[str, float]:
    """The largest magnitude of each kind of number that float16 might have no room for, by what it is."""
    with _Looking() as seen:
        network(*batch.inputs())
    return seen.largest


def require_room(network: HMR2, batch: FrameBatch) -> dict[str, Any]:
    """{largest, limit} of a network on real crops. HMRCompressError where a number has no room in float16."""
    largest = largest_numbers(network, batch)
    for what in MUST_FIT:
        if not largest[what] <= LARGEST:
            raise HMRCompressError(
                f"float16: {what} reach {largest[what]:.3g}, and {LARGEST:,.0f} is the largest number there; "
                "export in float32"
            )
    return {"largest": largest, "limit": LARGEST}
