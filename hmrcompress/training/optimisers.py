"""What the training loop steps with: AdamW, and Muon for groups of matrices that ask for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hmrcompress.training.muon import Muon


def rate_share(fraction: float, warmup: float, rate_end: float) -> float:
    """Share of the highest rate after `fraction` (0..1) of a run: linear up over `warmup`, then half a cosine."""
    if fraction < warmup:
        return fraction / warmup
    along = min(1.0, (fraction - warmup) / (1 - warmup))
    return rate_end + (1 - rate_end) * 0.5 * (1 + math.cos(math.pi * along))


@dataclass(frozen=True)
class ParameterGroup:
    """Named parameters that share a rate (`rate_factor` times the schedule's) and a weight decay. `muon`: they are
    matrices, and Muon trains them instead of AdamW."""

    parameters: Mapping[str, nn.Parameter]
    rate_factor: float = 1.0
    weight_decay: float = 0.0
    muon: bool = False


class Optimisers:
    """One step of all groups at their rates; its state goes into the loop's. Groups with the same settings are one to
    AdamW or Muon, so that parameters may be listed in an order of their own. fused: see `training.loop.Terms`."""

    def __init__(self, groups: Sequence[ParameterGroup], betas: tuple[float, float], fused: bool = False) -> None:
        self._factors: dict[bool, list[float]] = {}
        self._each: dict[bool, torch.optim.Optimizer] = {}
        for kind in (False, True):
            alike: dict[tuple[float, float], list[nn.Parameter]] = {}
            for group in groups:
                if group.muon == kind:
                    alike.setdefault((group.rate_factor, group.weight_decay), []).extend(group.parameters.values())
            options = [{"params": its, "weight_decay": decay} for (_, decay), its in alike.items()]
            if options and kind:
                self._each[kind] = Muon(options, lr=0.0, weight_decay=0.0)
            elif options:
                self._each[kind] = torch.optim.AdamW(options, lr=0.0, betas=betas, fused=fused or None)
            self._factors[kind] = [factor for factor, _ in alike]

    def step(self, rate: float, beside_muon: float = 1.0) -> None:
        """Updates all parameters; the highest rate of a group is `rate` times its factor, and times `beside_muon` where
        it is AdamW's. Gradients are gone then."""
        for kind, optimiser in self._each.items():
            for group, factor in zip(optimiser.param_groups, self._factors[kind], strict=True):
                group["lr"] = rate * factor * (1.0 if kind else beside_muon)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of AdamW and Muon, of those there are."""
        return [optimiser.state_dict() for optimiser in self._each.values()]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """What `state_dict` gave."""
        for optimiser, state in zip(self._each.values(), states, strict=True):
            optimiser.load_state_dict(state)


@torch.no_grad()
def follow(average: Iterable[Tensor], parameters: Iterable[nn.Parameter], decay: float) -> None:
    """Exponential moving average of the parameters, in place."""
    torch._foreach_lerp_([*average], [p.detach() for p in parameters], 1.0 - decay)
