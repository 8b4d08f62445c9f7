"""What the training loop steps with: AdamW, and Muon for groups of matrices that ask for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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
    """One step of all groups at their rates; its state goes into the loop's."""

    def __init__(self, groups: Sequence[ParameterGroup], betas: tuple[float, float]) -> None:
        self._groups = {kind: [group for group in groups if group.muon == kind] for kind in (False, True)}
        self._each: dict[bool, torch.optim.Optimizer] = {}
        for kind, its in self._groups.items():
            options = [{"params": [*group.parameters.values()], "weight_decay": group.weight_decay} for group in its]
            if its and kind:
                self._each[kind] = Muon(options, lr=0.0, weight_decay=0.0)
            elif its:
                self._each[kind] = torch.optim.AdamW(options, lr=0.0, betas=betas)

    def step(self, rate: float) -> None:
        """Updates all parameters; the highest rate of a group is `rate` times its factor. Gradients are gone then."""
        for kind, optimiser in self._each.items():
            for optimised, group in zip(optimiser.param_groups, self._groups[kind], strict=True):
                optimised["lr"] = rate * group.rate_factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of AdamW and Muon, of those there are."""
        return [optimiser.state_dict() for optimiser in self._each.values()]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """What `state_dict` gave."""
        for optimiser, state in zip(self._each.values(), states, strict=True):
            optimiser.load_state_dict(state)
