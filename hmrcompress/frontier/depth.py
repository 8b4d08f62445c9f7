"""Which layers to remove: the greedy order of damage over all of them, refined by swaps, each set patched.

At every step the layer goes whose removal costs least: every one that is left is tried on the first frames, the better
half on twice as many, and so on (successive halving), the last few with their patches. Then single layers change places
with removed ones as long as that helps. The strength of the patch is chosen on frames that it was not fitted on; 0, no
patch, competes, so that on these frames it never costs anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hmrcompress.frontier.candidates import Candidate, Cutting, singles
from hmrcompress.frontier.errors import Errors
from hmrcompress.plan import ALL
from hmrcompress.runtime import Progress, no_progress

STRENGTHS = (1.0, 0.75, 0.5)
"""Beside 0."""


@dataclass(frozen=True)
class Effort:
    """How much a search may look at. `first`: batches of frames that every candidate is tried on; `finalists`: those
    whose patches are fitted; `swaps`: rounds of exchanges at every size."""

    first: int = 1
    finalists: int = 3
    swaps: int = 1
    parts: tuple[str, ...] = (ALL,)


@dataclass(frozen=True)
class Sized:
    """The best set found of one size, and its mean increase in mm on the frames searched."""

    candidate: Candidate
    increase_mm: float


def increase(errors: Errors, candidate: Candidate, batches: int | None = None) -> float:
    """Mean paired increase in mm over the untouched network; infinite where anything is not finite."""
    found = float((errors(candidate, batches).errors - errors(Candidate(), batches).errors).mean())
    return found if np.isfinite(found) else float("inf")


def halved(errors: Errors, candidates: Sequence[Candidate], effort: Effort, keep: int) -> list[Candidate]:
    """The `keep` best: all are tried on the first batches, the better half on twice as many, until all frames are
    seen. Best first."""
    left, batches = list(candidates), effort.first
    while True:
        ranked = sorted(left, key=lambda each: (increase(errors, each, batches), each))
        if batches >= len(errors.parts):
            return ranked[:keep]
        left = ranked[: max(keep, (len(ranked) + 1) // 2)]
        if len(left) <= keep:
            batches = len(errors.parts)
        else:
            batches = min(2 * batches, len(errors.parts))


def patched(errors: Errors, candidate: Candidate) -> Candidate:
    """The candidate with the strength of its patch that does best on all frames, which may be 0."""
    if errors.fitter is None or not errors.fitter(candidate):
        return candidate
    best, rising = candidate, (candidate, *(replace(candidate, strength=strength) for strength in STRENGTHS))
    found = {each: increase(errors, each) for each in rising[:2]}
    if found[rising[1]] >= found[candidate]:
        rising = (candidate, rising[1], rising[-1])  # a weak patch may still help where the full one does not
    for each in rising:
        found.setdefault(each, increase(errors, each))
        if found[each] < found[best]:
            best = each
    return best


def greedy(
    errors: Errors, fewest: int, effort: Effort, *, ceiling_mm: float = math.inf, progress: Progress = no_progress
) -> dict[float, Sized]:
    """The best sets found, by the number of layers that are left, from all down to `fewest`, or to the first that costs
    more than `ceiling_mm`: what is smaller costs more still."""
    depth = errors.network.config.depth
    current = Candidate()
    sizes = {float(depth): Sized(current, 0.0)}
    while current.layers(depth) > fewest:
        options = [current.without(each) for each in singles(depth, current, effort.parts)]
        if not options:
            break
        finalists = halved(errors, options, effort, effort.finalists)
        best = min((_sized(errors, each) for each in finalists), key=lambda each: (each.increase_mm, each.candidate))
        for _ in range(effort.swaps):
            better = _swapped(errors, best, effort)
            if better.increase_mm >= best.increase_mm:
                break
            best = better
        sizes[best.candidate.layers(depth)] = best
        if best.increase_mm > ceiling_mm:
            break
        current = replace(best.candidate, strength=0.0)
        progress("layers", depth - int(current.layers(depth)), depth - fewest)
    return sizes


def _sized(errors: Errors, candidate: Candidate) -> Sized:
    best = patched(errors, candidate)
    return Sized(best, increase(errors, best))


def _swapped(errors: Errors, sized: Sized, effort: Effort) -> Sized:
    """The best that comes of putting one layer back and removing another."""
    depth = errors.network.config.depth
    bare = replace(sized.candidate, strength=0.0)
    options = {other for back in bare.removed for other in _exchanges(depth, bare, back)}
    if not options:
        return sized
    finalists = halved(errors, sorted(options), effort, max(1, effort.finalists - 1))
    return min(
        [sized, *(_sized(errors, each) for each in finalists)], key=lambda each: (each.increase_mm, each.candidate)
    )


def _exchanges(depth: int, candidate: Candidate, back: Cutting) -> list[Candidate]:
    fewer = replace(candidate, removed=tuple(each for each in candidate.removed if each != back))
    others = [each for each in singles(depth, fewer, (back[1],)) if each != back and each[1] == back[1]]
    return [fewer.without(each) for each in others]
