"""Beam search from ECLM's plan: neighbours of the best few plans, scored by the true error.

At a fixed number of layers a neighbour has one cut between groups moved elsewhere; the search ends when none of the
neighbours of any plan in the beam gets into the beam. With a fixed error, plans in which two groups are joined come
first: as long as one passes tau, the beam goes on with one layer less. ECLM's plan is in the first beam and a beam
loses its best only to something better, so the result is never worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hmrcompress.searching.eclm import Groups
from hmrcompress.searching.error import Fails, never
from hmrcompress.searching.evaluations import Evaluations
from hmrcompress.searching.methods import Found, best_of, joins, swaps


def beam(
    start: Found, evaluations: Evaluations, *, width: int, fails: Fails | None = None, budget: int | None = None
) -> Found:
    """The best plan found. `fails` (fixed error) says what is too much; without it the number of layers is fixed.

    At most `budget` evaluations beyond those made already (None: until nothing gets better).
    """
    layers, limit = evaluations.layers, None if budget is None else len(evaluations.asked) + budget
    pool, expanded = [start], set[Groups]()

    def affordable(candidates: Iterable[Groups]) -> Iterator[Groups]:
        chosen = list(dict.fromkeys(candidates))
        evaluations.expect(evaluations.unasked(chosen))
        for groups in chosen:
            if groups in evaluations.asked or limit is None or len(evaluations.asked) < limit:
                yield groups

    while True:
        if fails is not None:
            smaller = (groups for each in pool for groups in joins(layers, each.groups))
            if found := best_of(affordable(smaller), evaluations, fails, width):
                pool = found
                continue
        unseen = [each for each in pool if each.groups not in expanded]
        expanded.update(each.groups for each in unseen)
        inside = {each.groups for each in pool}
        moved = (groups for each in unseen for groups in swaps(layers, each.groups) if groups not in inside)
        found = best_of(affordable(moved), evaluations, _also(fails or never, pool, width), width)
        better = sorted([*pool, *found])[:width]
        if better == pool:
            return pool[0]
        pool = better


def _also(fails: Fails, pool: list[Found], width: int) -> Fails:
    """Out as well what is not better than the worst of a full beam."""
    if len(pool) < width:
        return fails
    worst = pool[-1].error_mm
    return lambda error_mm: fails(error_mm) or not error_mm < worst
