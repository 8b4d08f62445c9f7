"""ECLM for a number of layers instead of a tau.

The number of layers that ECLM leaves falls with tau, though not strictly, so tau is looked for by growing it until no
more layers are left than wanted, and then halving its logarithm eight times. Of all plans met on the way that have the
wanted number of layers, the one with the least error wins. Where none has, neighbouring groups of the smallest plan
above it are joined, the cheapest pair first. All runs share their evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hmrcompress.errors import UserError
from hmrcompress.searching.eclm import Groups, Trace, eclm, grouping
from hmrcompress.searching.error import below
from hmrcompress.searching.evaluations import Evaluations

GROWTH, HALVINGS = 4.0, 8
SMALLEST_TAU, LARGEST_TAU = 1e-3, 1e4


@dataclass(frozen=True)
class Found:
    """A grouping and its error in mm."""

    layers: int
    error_mm: float
    groups: Groups


def found(error_mm: float, groups: Groups) -> Found:
    """The same with its number of layers."""
    return Found(len(groups), error_mm, groups)


def joins(groups: Groups) -> Iterator[Groups]:
    """All groupings in which two neighbouring groups have become one, from the top down."""
    for upper in range(len(groups) - 1, 0, -1):
        yield (*groups[: upper - 1], groups[upper - 1] + groups[upper], *groups[upper + 1 :])


def run_eclm(
    evaluations: Evaluations, tau_mm: float, *, as_printed: bool = False, ceiling_mm: float = -math.inf
) -> Trace:
    """ECLM, with candidates rejected early where that is allowed.

    `ceiling_mm` is a greater tau that will be tried later: candidates are measured far enough for that one too.
    """
    layers = evaluations.layers
    pairs = [grouping(layers, [(low, low + 1)]) for low in range(layers - 2, -1, -1)]
    evaluations.expect(evaluations.unasked(pairs))
    base, bound = evaluations.base(), max(tau_mm, ceiling_mm)
    bounds: list[bool] = []

    def error(groups: Groups) -> float:
        if len(groups) == layers:
            return base
        measured = evaluations(groups, lambda error_mm: not error_mm - base < bound)
        bounds.append(not measured.exact)
        return measured.error_mm

    trace = eclm(layers, error, tau_mm, as_printed=as_printed)
    return trace.with_bounds(bounds)


def eclm_with_layers(
    evaluations: Evaluations, wanted: int, tau_mm: float, *, as_printed: bool = False
) -> tuple[Found, Trace]:
    """The plan with the least error at `wanted` layers as the module says, and the trace of the run nearest to it.

    `tau_mm` is where the search for a tau begins. UserError where no plan of that size has a finite error.
    """
    tau = min(max(tau_mm, SMALLEST_TAU), LARGEST_TAU)
    low, traces = SMALLEST_TAU, [run_eclm(evaluations, tau, as_printed=as_printed)]
    while len(traces[-1].groups) > wanted and tau < LARGEST_TAU:
        low, tau = tau, tau * GROWTH
        traces.append(run_eclm(evaluations, tau, as_printed=as_printed))
    for _ in range(HALVINGS if len(traces[-1].groups) <= wanted else 0):
        middle = math.sqrt(low * tau)
        traces.append(run_eclm(evaluations, middle, as_printed=as_printed, ceiling_mm=tau))
        low, tau = (low, middle) if len(traces[-1].groups) <= wanted else (middle, tau)
    if fitting := [trace for trace in traces if len(trace.groups) == wanted]:
        best = min(fitting, key=lambda trace: trace.final_mm)
        return found(best.final_mm, best.groups), best
    above = [trace for trace in traces if len(trace.groups) > wanted]
    nearest = min(above or traces, key=lambda trace: (len(trace.groups), trace.final_mm))
    if above:
        return _joined(found(nearest.final_mm, nearest.groups), evaluations, wanted), nearest
    return _joined(found(evaluations.base(), grouping(evaluations.layers, [])), evaluations, wanted), nearest


def _joined(plan: Found, evaluations: Evaluations, wanted: int) -> Found:
    """Neighbouring groups joined until `wanted` are left, each time the pair that costs least."""
    while plan.layers > wanted:
        candidates = list(joins(plan.groups))
        evaluations.expect(evaluations.unasked(candidates))
        best = _cheapest(candidates, evaluations)
        if best is None:
            raise UserError(f"no plan of {plan.layers - 1} layers has a finite error", "search.layers", "Ask for more")
        plan = best
    return plan


def _cheapest(candidates: list[Groups], evaluations: Evaluations) -> Found | None:
    """The candidate with the least error, the first of equals; the others are evaluated only as far as it takes to know
    that they are no better. None where no error is finite."""
    best = None
    for groups in candidates:
        bound = math.inf if best is None else best.error_mm
        measured = evaluations(groups, below(bound))
        if measured.error_mm < bound:
            best = found(measured.error_mm, groups)
    return best
