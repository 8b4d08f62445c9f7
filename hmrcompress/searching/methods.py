"""What the search methods share: groupings and their neighbours, and the best few among candidates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from hmrcompress.searching.eclm import Groups
from hmrcompress.searching.error import Fails
from hmrcompress.searching.evaluations import Evaluations


@dataclass(frozen=True, order=True)
class Found:
    """A grouping and its error in mm; ordered by layers, error, groups."""

    layers: int
    error_mm: float
    groups: Groups


def found(error_mm: float, groups: Groups) -> Found:
    """The same with its number of layers."""
    return Found(len(groups), error_mm, groups)


def cuts(groups: Groups) -> frozenset[int]:
    """The layers at which groups begin, without layer 0."""
    return frozenset(group[0] for group in groups[1:])


def from_cuts(num_layers: int, starts: Iterable[int]) -> Groups:
    """The inverse of `cuts`."""
    edges = [0, *sorted(starts), num_layers]
    return tuple(tuple(range(low, high)) for low, high in pairwise(edges))


def joins(num_layers: int, groups: Groups) -> Iterator[Groups]:
    """All groupings in which two neighbouring groups have become one, from the top down."""
    starts = cuts(groups)
    for cut in sorted(starts, reverse=True):
        yield from_cuts(num_layers, starts - {cut})


def swaps(num_layers: int, groups: Groups) -> Iterator[Groups]:
    """All groupings of as many groups in which one cut lies elsewhere, from the top down."""
    starts = cuts(groups)
    free = sorted(set(range(1, num_layers)) - starts, reverse=True)
    for cut in sorted(starts, reverse=True):
        for place in free:
            yield from_cuts(num_layers, starts - {cut} | {place})


def best_of(candidates: Iterable[Groups], evaluations: Evaluations, fails: Fails, count: int = 1) -> list[Found]:
    """At most `count` candidates of one size with the least errors among those that do not fail, best first.

    A candidate is evaluated only as far as it takes to know that it fails or that `count` others are better.
    """
    best: list[Found] = []
    for groups in candidates:
        worst = best[-1].error_mm if len(best) == count else math.inf

        def out(error_mm: float, worst: float = worst) -> bool:
            return fails(error_mm) or not error_mm < worst

        measured = evaluations(groups, out)
        if not out(measured.error_mm):
            best = sorted([*best, found(measured.error_mm, groups)])[:count]
    return best


def below(bound_mm: float) -> Fails:
    """Out unless the error is less than this."""
    return lambda error_mm: not error_mm < bound_mm
