"""ECLM for a number of layers, beam and evolution on made-up errors: never worse than ECLM, the same when rejecting
early, and, where there are few plans, compared with trying them all."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any, cast

import pytest

from hmrcompress.errors import UserError
from hmrcompress.searching.beam import beam
from hmrcompress.searching.eclm import Groups, eclm, grouping
from hmrcompress.searching.error import Fails, Measured, never
from hmrcompress.searching.evaluations import Evaluations
from hmrcompress.searching.evolve import evolve
from hmrcompress.searching.methods import Found, below, cuts, found, from_cuts, joins, swaps
from hmrcompress.searching.sized import eclm_with_layers, run_eclm

BASE, TAU = 60.0, 0.5


class Table:
    """In place of the probe: a made-up error for every grouping, mostly the sum of a cost for each removed layer.

    A candidate that fails is reported by a lower bound that fails too, now a tight one, now a loose one.
    """

    frames, base = 1, None

    def __init__(self, seed: int, noise: float = 0.1, nan_share: float = 0.05) -> None:
        self.seed, self.noise, self.nan_share, self.calls = seed, noise, nan_share, 0

    def work(self, groups: Groups) -> float:
        return 1.0

    def value(self, groups: Groups) -> float:
        draw = random.Random(f"{self.seed} {groups}")
        if all(len(group) == 1 for group in groups):
            return BASE
        if draw.random() < self.nan_share:
            return math.nan
        removed = [layer for group in groups for layer in group[1:]]
        costs = sum(random.Random(f"{self.seed} cost {layer}").uniform(-0.1, 0.6) for layer in removed)
        return BASE + costs + 0.3 * sum(len(group) > 2 for group in groups) + draw.gauss(0, self.noise)

    def __call__(self, groups: Groups, fails: Fails = never, on_frames: Any = None) -> Measured:
        self.calls += 1
        value = self.value(groups)
        bounds = [] if math.isnan(value) else [value * share for share in (0.5, 0.9, 0.999, 0.9999)]
        return next((Measured(bound, exact=False) for bound in bounds if fails(bound)), Measured(value))


class Memory:
    """In place of the journal."""

    frames_mm = None

    def __init__(self) -> None:
        self.known: dict[Groups, Measured] = {}

    def get(self, groups: Groups) -> Measured | None:
        return self.known.get(groups)

    def add(self, groups: Groups, measured: Measured, frames_mm: object = None) -> Measured:
        self.known[groups] = measured
        return measured


def evaluations(table: Table, layers: int, *, early: bool = True, memory: Memory | None = None) -> Evaluations:
    return Evaluations(cast(Any, table), cast(Any, memory or Memory()), layers, early)


def tried(layers: int, table: Table, wanted: int) -> float:
    """The least error of all groupings of a size."""
    plans = (from_cuts(layers, chosen) for chosen in itertools.combinations(range(1, layers), wanted - 1))
    return min(value for plan in plans if not math.isnan(value := table.value(plan)))


def too_much(error_mm: float) -> bool:
    return not error_mm - BASE < TAU


def test_neighbours() -> None:
    groups = ((0, 1), (2,), (3, 4))
    assert cuts(groups) == {2, 3} and from_cuts(5, cuts(groups)) == groups
    assert list(joins(5, groups)) == [((0, 1), (2, 3, 4)), ((0, 1, 2), (3, 4))]
    moved = list(swaps(5, groups))
    assert len(moved) == len(set(moved)) == 2 * 2 and all(len(each) == 3 for each in moved)
    assert all(len(cuts(each) & cuts(groups)) == 1 for each in moved)
    assert list(joins(3, ((0, 1, 2),))) == list(swaps(3, ((0, 1, 2),))) == []


@pytest.mark.parametrize("early", [True, False])
def test_rejecting_early_changes_no_run_of_eclm(early: bool) -> None:
    rejected = 0
    for seed in range(150):
        layers, table = 1 + seed % 20, Table(seed)
        expected = eclm(layers, table.value, TAU)
        trace = run_eclm(evaluations(table, layers, early=early), TAU)
        assert (trace.groups, trace.final_mm) == (expected.groups, expected.final_mm)
        for step, exact in zip(trace.steps, expected.steps, strict=True):
            assert (step.low, step.high, step.accepted) == (exact.low, exact.high, exact.accepted)
            if step.at_least:
                assert step.error_mm < exact.error_mm
            else:
                assert step.error_mm == exact.error_mm or (math.isnan(step.error_mm) and math.isnan(exact.error_mm))
            rejected += step.at_least
    assert (rejected > 100) == early


def at_size(
    method: str, table: Table, layers: int, wanted: int, *, early: bool = True, memory: Memory | None = None
) -> tuple[Found, Found, int]:
    """ECLM's plan and what the method makes of it, and how many groupings it asked for."""
    asks = evaluations(table, layers, early=early, memory=memory)
    start, _ = eclm_with_layers(asks, wanted, TAU)
    best = beam(start, asks, width=3) if method == "beam" else evolve(start, asks, budget=60, seed=1)
    return start, best, len(asks.asked)


@pytest.mark.parametrize("method", ["beam", "evolve"])
def test_never_worse_than_eclm_at_the_same_number_of_layers(method: str) -> None:
    better = 0
    for seed in range(40):
        layers = 4 + seed % 8
        wanted = 2 + seed % (layers - 2)
        table = Table(seed, nan_share=0.0)
        start, best, _ = at_size(method, table, layers, wanted)
        assert start.layers == best.layers == wanted == len(best.groups)
        assert start.error_mm == table.value(start.groups) and best.error_mm == table.value(best.groups)
        assert tried(layers, table, wanted) <= best.error_mm <= start.error_mm
        better += best.error_mm < start.error_mm
    assert better >= 10


@pytest.mark.parametrize("method", ["beam", "evolve"])
def test_methods_are_repeatable_and_journals_and_bounds_change_nothing(method: str) -> None:
    for seed in range(12):
        memory = Memory()
        first = at_size(method, Table(seed), 10, 6, memory=memory)
        assert first == at_size(method, Table(seed), 10, 6, early=False)
        table = Table(seed)
        memory.known = dict(list(memory.known.items())[: 5 * seed])  # stopped on the way
        assert first == at_size(method, table, 10, 6, memory=memory)
        again = Table(seed)
        assert first == at_size(method, again, 10, 6, memory=memory) and again.calls < table.calls


@pytest.mark.parametrize("method", ["beam", "evolve"])
def test_at_a_fixed_error_fewer_layers_win(method: str) -> None:
    fewer = 0
    for seed in range(30):
        table, layers = Table(seed, nan_share=0.02), 12
        plans = []
        for early in (True, False):
            asks = evaluations(table, layers, early=early)
            trace = run_eclm(asks, TAU)
            start = found(trace.final_mm, trace.groups)
            if method == "beam":
                plans.append(beam(start, asks, width=3, fails=too_much))
            else:
                plans.append(evolve(start, asks, budget=80, seed=0, fails=too_much))
        assert plans[0] == plans[1]
        assert plans[0].error_mm - BASE < TAU and plans[0] <= start
        fewer += plans[0].layers < start.layers
    assert fewer > 10


def test_the_budget_is_kept() -> None:
    table = Table(3)
    for method in ("beam", "evolve"):
        asks = evaluations(table, 14)
        start, _ = eclm_with_layers(asks, 9, TAU)
        before = len(asks.asked)
        if method == "beam":
            beam(start, asks, width=4, budget=25)
        else:
            evolve(start, asks, budget=25, seed=0)
        assert len(asks.asked) - before == 25


def test_evolution_ends_where_nothing_is_new() -> None:
    asks = evaluations(Table(0, nan_share=0.0), 4)
    start, _ = eclm_with_layers(asks, 2, TAU)
    best = evolve(start, asks, budget=1000, seed=0)
    assert best.error_mm == tried(4, Table(0, nan_share=0.0), 2) and len(asks.asked) < 8


def test_eclm_for_a_number_of_layers() -> None:
    for seed in range(40):
        layers = 2 + seed % 12
        for wanted in (1, layers // 2 + 1, layers - 1, layers):
            table = Table(seed, nan_share=0.0)
            plan, trace = eclm_with_layers(evaluations(table, layers), wanted, TAU)
            assert plan.layers == wanted and plan.error_mm == table.value(plan.groups)
            if len(trace.groups) == wanted:
                assert trace.groups == plan.groups
            other = eclm(layers, table.value, TAU)  # the first that is tried
            assert len(other.groups) != wanted or plan.error_mm <= other.final_mm


def test_no_plan_of_that_size() -> None:
    with pytest.raises(UserError, match="no plan of 5 layers has a finite error"):
        eclm_with_layers(evaluations(Table(0, nan_share=1.0), 6), 3, TAU)


def test_a_bound_is_measured_again_where_it_is_not_enough() -> None:
    table = Table(1, nan_share=0.0)
    asks, groups = evaluations(table, 6), grouping(6, [(1, 4)])
    value = table.value(groups)
    loose = asks(groups, below(0.4 * value))
    assert not loose.exact and loose.error_mm == 0.5 * value and table.calls == 1
    assert asks(groups, below(0.45 * value)) == loose and table.calls == 1
    assert asks(groups) == Measured(value) and table.calls == 2
    assert asks(groups, below(0.1)) == Measured(value) and table.calls == 2 and len(asks.asked) == 1
