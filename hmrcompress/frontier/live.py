"""The same search in a network of other code: its errors by the user's own distance, and its times as whole models.

What stands between the blocks is theirs, so that a cost table has no parts: the model is timed by turns as it is, with
half of its layers, and with each way of having fewer tokens, and what a layer takes follows from the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.costs import way_of
from hmrcompress.frontier.errors import DIGITS, Measured
from hmrcompress.frontier.ledger import Ledger
from hmrcompress.live.distances import measured
from hmrcompress.live.masks import Masks
from hmrcompress.live.patching import apply, unapply
from hmrcompress.live.probing import LiveProbe, Run
from hmrcompress.live.structure import Network
from hmrcompress.live.trees import placed
from hmrcompress.plan import ALL, Plan
from hmrcompress.runtime import Progress
from hmrcompress.timing.live_bench import ORIGINAL, contenders, run_once
from hmrcompress.timing.rounds import take_turns


class CandidateProbe(LiveProbe):
    """Errors of any plan without a patch, layers below the first that it changes replayed where it keeps all tokens."""

    def errors(self, plan: Plan, number: int) -> np.ndarray:
        """The user's distances in mm, one for each sample of a batch."""
        self._prepare()
        first = self.depth if plan.first_change is None else plan.first_change
        first = min(first, len(plan.kept_groups) - 1)  # the layer at which it goes on has to be there
        apply(self.network.model, plan, network=self.network, replay=self.prefix)
        try:
            self.tokens = plan.tokens  # whoever calls the model is told where people are
            outputs = self._outputs(number, first if plan.tokens is None else 0)
        finally:
            self.tokens = None
            unapply(self.network.model)
        teacher = placed(self._teacher[number], self.device)
        return measured(self.distance, outputs, teacher, self.batches[number], self.sizes[number])


class LiveErrors:
    """`frontier.errors.Errors` of a live network: samples stand for clips, and the distance for the error, too."""

    fitter, target = None, "truth"

    def __init__(self, name: str, probe: CandidateProbe, ledger: Ledger) -> None:
        self.name, self.probe, self.ledger = name, probe, ledger
        self.network = SimpleNamespace(config=SimpleNamespace(depth=probe.depth))
        self.parts = probe.parts

    def frames_of(self, batches: int | None) -> np.ndarray:
        """The number of each sample of the first batches."""
        return np.arange(sum(self.probe.sizes[:batches]))

    def __call__(self, candidate: Candidate, batches: int | None = None) -> Measured:
        """On the samples of the first batches (None: of all)."""
        found = np.concatenate([self._of(candidate, number) for number in range(len(self.parts[:batches]))])
        return Measured(found, found)

    def _of(self, candidate: Candidate, number: int) -> np.ndarray:
        name = f"{self.name} {number} {candidate.key}"
        known = self.ledger.get(name)
        if known is None:
            found = self.probe.errors(candidate.plan(self.probe.network.reference, self.probe.depth), number)
            rounded = [round(float(each), DIGITS) if np.isfinite(each) else None for each in found]
            known = self.ledger.put(name, rounded)
        return np.array([np.nan if each is None else each for each in known], dtype=np.float64)


@dataclass(frozen=True)
class LiveCosts:
    """Seconds of a batch: of all that is no layer, of a layer with all tokens, and with each way of having fewer."""

    device: str
    batch: int
    grid: int
    rest: float
    layer: float
    ways: dict[str, float]

    def seconds(self, candidate: Candidate, depth: int) -> float:
        """Of a call of the candidate's model."""
        each = self.layer if candidate.keep is None else self.ways[way_of(candidate)]
        return self.rest + candidate.layers(depth) * each


def live_ways(network: Network, keeps: Sequence[int]) -> list[Candidate]:
    """The ways of having fewer tokens that a live network allows."""
    found = []
    for candidate in (Candidate(keep=keep, way=way) for keep in keeps for way in ("drop", "merge")):
        try:
            apply(network.model, candidate.plan(network.reference, network.depth), network=network)
        except UserError:
            continue
        unapply(network.model)
        found.append(candidate)
    return found


def turns(
    network: Network,
    candidates: Sequence[Candidate],
    batch: Any,
    count: int,
    *,
    run: Run,
    masks: Callable[[Any], Masks] | None,
    rounds: int,
    progress: Progress,
) -> Any:
    """The `Timing` of the model as it is (`original`) and of these candidates, by their keys."""
    plans = {each.key: each.plan(network.reference, network.depth) for each in candidates}
    models = contenders(network, plans)

    def calls(name: str) -> Callable[[], object]:
        return lambda: run_once(models[name], batch, run, masks)

    device = next(network.blocks.parameters()).device
    calling = {name: calls(name) for name in models}
    return take_turns(calling, count, device, rounds=rounds, progress=progress, what="timing the device")


def live_costs(network: Network, ways: Sequence[Candidate], timing: Any, half: Candidate, device: str) -> LiveCosts:
    """From the `turns` of `half`, which lacks layers, and the ways."""
    depth, whole = network.depth, median(timing.seconds[ORIGINAL])
    gone = len([part for _, part in half.removed if part == ALL])
    # Round by round, so that all of a difference saw the same machine.
    pairs = zip(timing.seconds[ORIGINAL], timing.seconds[half.key], strict=True)
    layer = max(median(all_of_it - less for all_of_it, less in pairs) / gone, 0.0)
    rest = max(whole - depth * layer, 0.0)
    each = {way_of(way): max(median(timing.seconds[way.key]) - rest, 0.0) / depth for way in ways}
    return LiveCosts(device, timing.frames, network.tokens, rest, layer, each)
