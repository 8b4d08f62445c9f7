"""How a network is run for inference: the fast path, torch.compile, CUDA graphs. The one place that puts them together
for bench, eval and predict."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from hmrcompress.models.fast.graphs import LARGEST, StaticBatches, batch_buckets
from hmrcompress.models.fast.linear import Kind
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.network import HMR2


@dataclass(frozen=True)
class RunPath:
    """fast: on the fast path (`models.fast.network`), with `int8` linear layers in 8 bits (all, or those of these
    layers). compiled: by torch.compile. graphs: as CUDA graphs (`models.fast.graphs`); None: where the fast path runs
    on CUDA. batch_sizes: those that are expected. kernel: of
    8-bit products (`timing.int8_kernels` finds the fastest)."""

    fast: bool = False
    int8: bool | tuple[int, ...] = False
    compiled: bool = False
    graphs: bool | None = None
    batch_sizes: tuple[int, ...] = (LARGEST,)
    kernel: Kind = "int8"

    @property
    def lays_out(self) -> bool:
        """Whether weights are laid out anew, in the dtype that is computed in."""
        return self.fast or bool(self.int8)

    def graphed(self, device: torch.device) -> bool:
        """Whether networks on `device` run as CUDA graphs."""
        wanted = self.lays_out if self.graphs is None else self.graphs
        return wanted and device.type == "cuda"

    def left_to_autocast(self, dtype: torch.dtype) -> torch.dtype:
        """What `runtime.autocast` has to compute in: float32, which is nothing, where weights are in `dtype`."""
        return torch.float32 if self.lays_out else dtype

    def prepare(self, network: HMR2, dtype: torch.dtype, *, consume: bool = False) -> nn.Module:
        """The network (in evaluation mode, where it is to run, with the token merging that is wanted) as it is to be
        run: the same call. On the fast path it computes in `dtype`, else as it stands; `consume` as of `make_fast`."""
        ready = (
            make_fast(network, dtype, int8=self.int8, kernel=self.kernel, consume=consume) if self.lays_out else network
        )
        return self._static(ready)

    def prepare_alike(self, dtype: torch.dtype) -> Callable[[HMR2], nn.Module]:
        """`prepare` for networks over the same weights that merge tokens differently, as in `AdaptiveTokens`: weights
        are laid out once for all of them."""
        made: list[HMR2] = []

        def prepare(network: HMR2) -> nn.Module:
            if not self.lays_out:
                return self._static(network)
            if not made:
                made.append(make_fast(network, dtype, int8=self.int8, kernel=self.kernel))
            return self._static(_merging_like(made[0], network))

        return prepare

    def _static(self, ready: HMR2) -> nn.Module:
        graphed = self.graphed(next(ready.parameters()).device)
        if not graphed and not self.compiled:
            return ready
        return StaticBatches(ready, batch_buckets(self.batch_sizes), capture=graphed, compiled=self.compiled)


def backbone_of(network: nn.Module) -> nn.Module:
    """The backbone of a network, run as the network is."""
    return network.part("backbone") if isinstance(network, StaticBatches) else cast(nn.Module, network.backbone)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself of one that `RunPath.prepare` made ready."""
    return network.network if isinstance(network, StaticBatches) else network


def _merging_like(fast: HMR2, network: HMR2) -> HMR2:
    """The modules of `fast` with the token merging of `network`; both merge however they do afterwards."""
    other, backbone = copy(fast), copy(fast.backbone)
    other.__dict__["_modules"] = {**fast._modules, "backbone": backbone}
    backbone.reducer = network.backbone.reducer
    return other
