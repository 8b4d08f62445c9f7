"""Algorithm 1 against a literal transcription of its printed pseudo-code, on made-up error tables."""

from __future__ import annotations

import math
import random

import pytest

from hmrcompress.errors import UserError
from hmrcompress.searching.eclm import Groups, eclm

TAU = 0.1


class Table:
    """A random but repeatable error for every grouping; remembers what was asked.

    With `ties` errors are multiples of tau, so that many equal each other, the untouched model, or the bound itself.
    """

    def __init__(self, seed: int, nan_share: float = 0.1, spread: float = 0.1, ties: bool = False) -> None:
        self.seed, self.nan_share, self.spread, self.ties = seed, nan_share, spread, ties
        self.asked: list[Groups] = []

    def __call__(self, groups: Groups) -> float:
        self.asked.append(groups)
        return self.value(groups)

    def value(self, groups: Groups) -> float:
        draw = random.Random(f"{self.seed} {groups}")
        if all(len(group) == 1 for group in groups):
            return 70.0
        if draw.random() < self.nan_share:
            return math.nan if draw.random() < 0.7 else math.inf
        if self.ties:
            return 70.0 + TAU * draw.choice((-1, 0, 0, 0, 1, 2))
        return 70.0 + TAU + draw.gauss(-0.3 * self.spread, self.spread)


def merged(model: list[list[int]], low: int, high: int) -> list[list[int]]:
    """The current model with the original layers low..high made one; its layers are lists of original layers."""
    inside = [part for part in model if low <= part[0] and part[-1] <= high]
    assert sum(inside, []) == list(range(low, high + 1))
    place = model.index(inside[0])
    return model[:place] + [sum(inside, [])] + model[place + len(inside) :]


def as_printed(layers: int, table: Table) -> tuple[list[list[int]], int]:
    """The pseudo-code, line by line. Returns the model and the number of evaluations beside the baseline."""
    model = [[layer] for layer in range(layers)]
    evaluations = 0

    def mpjpe(candidate: list[list[int]]) -> float:
        return table(tuple(map(tuple, candidate)))

    base = mpjpe(model)
    high = layers - 1
    low = high - 1
    while low >= 0:
        evaluations += 1
        if mpjpe(merged(model, low, high)) - base < TAU:
            low = low - 1
        else:
            if low + 1 != high:
                model = merged(model, low + 1, high)
                high = low
                low = high - 1
            else:
                high = high - 1
                low = low - 1
    return model, evaluations


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("nan_share", [0.0, 0.3])
def test_equals_the_printed_algorithm(nan_share: float, ties: bool) -> None:
    """The same models asked for, in the same order, and the same result."""
    windows = 0
    for seed in range(400):
        layers = 1 + seed % 33
        table, literal = Table(seed, nan_share, ties=ties), Table(seed, nan_share, ties=ties)
        expected, evaluations = as_printed(layers, literal)
        trace = eclm(layers, table, TAU, as_printed=True)
        assert [list(group) for group in trace.groups] == expected and table.asked == literal.asked
        whole = eclm(layers, table, TAU)  # the same but for the window that the printed algorithm loses
        if trace.open_window:
            low, high = trace.open_window
            expected = merged(expected, low, high)
        assert [list(group) for group in whole.groups] == expected
        assert len(trace.steps) == evaluations == layers - 1
        assert not trace.open_window_merged
        assert trace.final_mm == table.value(trace.groups)
        windows += sum(len(group) > 1 for group in trace.groups)
    assert windows > 200  # the tables do make it merge


def test_every_error_function_costs_l_minus_1_evaluations() -> None:
    for seed in range(300):
        layers = 1 + seed % 40
        table = Table(seed, nan_share=seed % 3 / 2, spread=0.01 + seed % 7 / 10)
        trace = eclm(layers, table, TAU)
        assert len(table.asked) == layers and len(set(table.asked)) == layers
        assert [step.low for step in trace.steps] == list(range(layers - 2, -1, -1))
        assert [layer for group in trace.groups for layer in group] == list(range(layers))
        assert trace.final_mm == table.value(trace.groups)  # no evaluation is needed to know it
        assert trace.final_mm - trace.base_mm < TAU


def test_an_open_window_is_merged_unless_as_printed() -> None:
    def free(groups: Groups) -> float:
        return 50.0 + 0.001 * len(groups)

    ours, printed = eclm(12, free, TAU), eclm(12, free, TAU, as_printed=True)
    assert ours.groups == (tuple(range(12)),)
    assert ours.open_window == printed.open_window == (0, 11)
    assert ours.open_window_merged and not printed.open_window_merged
    assert printed.groups == tuple((layer,) for layer in range(12))
    assert printed.final_mm == printed.base_mm
    assert ours.final_mm == free(ours.groups)


def test_by_hand() -> None:
    """Merging costs nothing inside 0-1 and inside 3-5; layer 2 must not be merged with anything."""

    def error(groups: Groups) -> float:
        harmless = ({0, 1}, {3, 4, 5})
        return 60.0 if all(len(g) == 1 or any(set(g) <= ok for ok in harmless) for g in groups) else 99.0

    trace = eclm(6, error, TAU)
    assert trace.groups == ((0, 1), (2,), (3, 4, 5))
    steps = [(step.low, step.high, step.accepted) for step in trace.steps]
    assert steps == [(4, 5, True), (3, 5, True), (2, 5, False), (1, 2, False), (0, 1, True)]
    assert trace.open_window == (0, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_a_rejection(bad: float) -> None:
    def error(groups: Groups) -> float:
        return 60.0 if len(groups) == 8 else bad

    trace = eclm(8, error, 1e9)
    assert trace.groups == tuple((layer,) for layer in range(8))
    assert not any(step.accepted for step in trace.steps)


def test_the_bound_itself_is_rejected() -> None:
    assert len(eclm(2, lambda groups: 60.0 if len(groups) == 2 else 60.5, 0.5).groups) == 2
    assert len(eclm(2, lambda groups: 60.0 if len(groups) == 2 else 60.5, 0.501).groups) == 1


def test_refuses_what_cannot_be_searched() -> None:
    with pytest.raises(UserError, match="not finite"):
        eclm(4, lambda groups: math.nan, TAU)
    with pytest.raises(UserError, match="tau"):
        eclm(4, lambda groups: 1.0, math.nan)
