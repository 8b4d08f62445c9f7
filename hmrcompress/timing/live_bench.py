"""A live model and its compressed versions by turns: theirs as it is, with layers merged, with tokens merged, both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hmrcompress.errors import UserError
from hmrcompress.live.cost import stack_macs
from hmrcompress.live.masks import Masks
from hmrcompress.live.patching import apply, person_mask, shared_copy
from hmrcompress.live.plans import LivePlan, plan_for
from hmrcompress.live.probing import Run
from hmrcompress.live.searching import called, evaluating
from hmrcompress.live.structure import Network, compressed_in
from hmrcompress.live.structure import network as found_network
from hmrcompress.live.trees import length_of
from hmrcompress.plan import Plan, trivial_groups
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.timing.rounds import Timing, take_turns

ORIGINAL = "original"


@dataclass(frozen=True)
class LiveTiming:
    """Seconds by contender, and multiply-accumulates of the stack of blocks in each, for one crop."""

    timing: Timing
    macs: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """{frames, contenders: {name: {fps, fps_quartiles, speedup, speedup_quartiles, macs, macs_ratio}}}; macs_ratio
        is how many times fewer the blocks have."""
        before = self.macs[ORIGINAL]
        found = {
            name: {**self.timing.figures(name, ORIGINAL), "macs": macs, "macs_ratio": before / macs}
            for name, macs in self.macs.items()
        }
        return {"frames": self.timing.frames, "contenders": found}


def bench(
    model: nn.Module | Network,
    plan: LivePlan,
    batch: Any,
    *,
    run: Run = called,
    masks: Callable[[Any], Masks] | None = None,
    count: Callable[[Any], int] = length_of,
    rounds: int = 7,
    warmup: int = 1,
    max_seconds: float | None = None,
    parts: bool = True,
    progress: Progress = no_progress,
) -> LiveTiming:
    """Times `run(model, batch)` by turns: the model as it is and as the plan makes it; with `parts`, its layers alone
    and its tokens alone too. All share their weights, and the model is left as it was. UserError as `apply`."""
    found = model if isinstance(model, Network) else found_network(model)
    if compressed_in(found.model) is not None:
        raise UserError("the model is compressed already", type(found.model).__name__, "hc.unapply(model) undoes it")
    whole = plan_for(plan, found)
    plans: dict[str, Plan] = {}
    if parts and whole.compresses_layers and whole.tokens is not None:
        plans["layers"] = whole.model_copy(update={"tokens": None})
        plans["tokens"] = whole.model_copy(update={"groups": trivial_groups(found.depth), "removed": ()})
    plans["compressed"] = whole
    with evaluating(found.model):
        models = contenders(found, plans)

        def calls(name: str) -> Callable[[], object]:
            return lambda: run_once(models[name], batch, run, masks)

        timing = take_turns(
            {name: calls(name) for name in models},
            count(batch),
            next(found.blocks.parameters()).device,
            rounds=rounds,
            warmup=warmup,
            max_seconds=max_seconds,
            progress=progress,
        )
    macs = {ORIGINAL: stack_macs(found), **{name: stack_macs(found, each) for name, each in plans.items()}}
    return LiveTiming(timing, macs)


def contenders(found: Network, plans: Mapping[str, Plan]) -> dict[str, nn.Module]:
    """The model as it is, and copies over the same weights as each plan makes them. UserError as `apply`."""
    models: dict[str, nn.Module] = {ORIGINAL: found.model}
    for name, each in plans.items():
        copied = shared_copy(found.model)
        again = found_network(copied, found.name, found.grid, found.prefix, suffix=found.suffix)
        models[name] = apply(copied, each, network=again)
    return models


def run_once(model: nn.Module, batch: Any, run: Run, masks: Callable[[Any], Masks] | None) -> Any:
    """One call of a model, compressed or not; it is told where people are where it is."""
    with _masked(model, batch, masks), torch.no_grad():
        return run(model, batch)


@contextmanager
def _masked(model: nn.Module, batch: Any, masks: Callable[[Any], Masks] | None) -> Iterator[None]:
    given = masks is not None and compressed_in(model) is not None
    with person_mask(model, masks(batch)) if given and masks else nullcontext():
        yield
