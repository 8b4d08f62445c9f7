"""ECLM for a tau and for a number of layers on made-up errors: the same when rejecting early and when stopped on the
way."""

from __future__ import annotations

import math
import random
from typing import Any, cast

import pytest

from hmrcompress.errors import UserError
from hmrcompress.searching.eclm import Groups, eclm, grouping
from hmrcompress.searching.error import Fails, Measured, below, never
from hmrcompress.searching.evaluations import Evaluations
from hmrcompress.searching.sized import _cheapest, eclm_with_layers, joins, run_eclm

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


def test_of_equals_the_first_is_taken() -> None:
    first, second, third = ((0, 1), (2,)), ((0,), (1, 2)), ((0, 1, 2),)
    errors = {first: 61.0, second: 61.0, third: 60.5}

    def evaluated(groups: Groups, fails: Fails) -> Measured:
        return Measured(errors[groups], 1)

    for candidates, best in (([first, second], first), ([second, first], second), ([first, third, second], third)):
        chosen = _cheapest(candidates, cast(Evaluations, evaluated))
        assert chosen is not None and chosen.groups == best


def test_joins() -> None:
    assert list(joins(((0, 1), (2,), (3, 4)))) == [((0, 1), (2, 3, 4)), ((0, 1, 2), (3, 4))]
    assert list(joins(((0, 1, 2),))) == []


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


def test_early_rejection_and_journals_change_no_plan_of_a_size() -> None:
    for seed in range(12):
        memory = Memory()
        first = eclm_with_layers(evaluations(Table(seed), 10, memory=memory), 6, TAU)[0]
        assert first == eclm_with_layers(evaluations(Table(seed), 10, early=False), 6, TAU)[0]
        table, whole = Table(seed), dict(memory.known)
        memory.known = dict(list(whole.items())[: 3 * seed])  # stopped on the way
        assert first == eclm_with_layers(evaluations(table, 10, memory=memory), 6, TAU)[0] and memory.known == whole
        again = Table(seed)
        assert first == eclm_with_layers(evaluations(again, 10, memory=memory), 6, TAU)[0] and again.calls == 0


def test_where_no_tau_leaves_so_many_layers_the_cheapest_pair_is_joined() -> None:
    joined = 0
    for seed in range(60):
        table, layers = Table(seed, nan_share=0.05), 8
        for wanted in (3, 5):
            asks = evaluations(table, layers)
            plan, trace = eclm_with_layers(asks, wanted, TAU)
            if len(trace.groups) != wanted + 1:
                continue
            errors = [(table.value(each), number) for number, each in enumerate(joins(trace.groups))]
            error, number = min(each for each in errors if not math.isnan(each[0]))
            assert (plan.error_mm, plan.groups) == (error, list(joins(trace.groups))[number])
            joined += 1
    assert joined > 3


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
