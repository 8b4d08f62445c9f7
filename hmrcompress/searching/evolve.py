"""Evolution from ECLM's plan: seeded, elitist, scored by the true error.

A population of the best eight plans. A child moves one or two cuts of a parent, or takes the cuts that two parents
share and draws the others from those that only one has; with a fixed error it may also lose a cut, and fewer layers
beat a smaller error. A child is taken in where it beats the worst, so the best one is never lost.
"""

from __future__ import annotations

import random

from hmrcompress.searching.eclm import Groups
from hmrcompress.searching.error import Fails
from hmrcompress.searching.evaluations import Evaluations
from hmrcompress.searching.methods import Found, cuts, found, from_cuts

POPULATION = 8
PATIENCE = 500
"""Children in a row that were all known, after which there is taken to be nothing new."""


def evolve(start: Found, evaluations: Evaluations, *, budget: int, seed: int, fails: Fails | None = None) -> Found:
    """The best plan found with `budget` evaluations beyond those made already.

    `fails` (fixed error) says what is too much; without it the number of layers is fixed.
    """
    draw = random.Random(seed)
    limit = len(evaluations.asked) + budget
    evaluations.expect([start.groups] * budget)
    pool, known, misses = [start], {start.groups}, 0
    while len(evaluations.asked) < limit and misses < PATIENCE:
        child = _child(pool, evaluations.layers, draw, shrink=fails is not None)
        if child is None or child in known:
            misses += 1
            continue
        misses = 0
        known.add(child)
        worst = pool[-1] if len(pool) == POPULATION else None
        if worst is not None and len(child) > worst.layers:
            continue
        bound = worst.error_mm if worst is not None and len(child) == worst.layers else float("inf")

        def out(error_mm: float, bound: float = bound) -> bool:
            return not error_mm < bound or (fails is not None and fails(error_mm))

        measured = evaluations(child, out)
        if not out(measured.error_mm):
            pool = sorted([*pool, found(measured.error_mm, child)])[:POPULATION]
    return pool[0]


def _child(pool: list[Found], layers: int, draw: random.Random, *, shrink: bool) -> Groups | None:
    """A new grouping from one or two plans, the better ones twice as likely; None where the draw gives none."""
    parent = min(draw.choice(pool), draw.choice(pool))
    starts = cuts(parent.groups)
    kind = draw.random()
    if shrink and starts and kind < 0.4:
        return from_cuts(layers, starts - {draw.choice(sorted(starts))})
    other = draw.choice(pool)
    if kind > 0.8 and other.groups != parent.groups:
        shared = starts & cuts(other.groups)
        single = sorted(starts ^ cuts(other.groups))
        return from_cuts(layers, shared | set(draw.sample(single, len(starts) - len(shared))))
    for _ in range(draw.choice((1, 1, 2))):
        free = sorted(set(range(1, layers)) - starts)
        if not free or not starts:
            return None
        starts = starts - {draw.choice(sorted(starts))} | {draw.choice(free)}
    return from_cuts(layers, starts)
