"""A network through torch.compile, for shapes that do not change."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hmrcompress.errors import UserError, first_line

SHAPES = 64
"""Compiled forms that may stand beside each other; torch's own limit is 8 for all networks of a class together."""


class Compiled:
    """`network` compiled whole, anew for every shape that it is called with. The same call, for inference alone.

    Nothing is tuned by trying kernels out. Compilation takes place in the first call with a shape.
    """

    def __init__(self, network: nn.Module) -> None:
        self._run = torch.compile(network, dynamic=False, fullgraph=True)

    def __call__(self, *inputs: Any) -> Any:
        """As the network's. UserError where it cannot be compiled, such as without a C++ compiler."""
        import torch._dynamo

        try:
            with torch._dynamo.config.patch(recompile_limit=SHAPES):
                return self._run(*inputs)
        except RuntimeError as error:
            fault = f"torch.compile failed ({first_line(error)})"
            raise UserError(fault, "compile", "It needs a C++ compiler; or leave it out") from error
