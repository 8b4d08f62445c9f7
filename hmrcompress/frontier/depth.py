"""Which layers to remove: the greedy order of harm over all of them, refined by swaps, each set patched.

At every step the layer goes whose removal does least harm: all that are left are tried on the first frames, the better
half on twice as many, and so on (successive halving). Then single layers change places with removed ones as long as
that helps, and the best few sets of the size are patched. The strength of the patch is chosen on frames that it was not
fitted on; 0, no patch, competes, so that on these frames it never does any.

Harm is the mean distance of the bodies from those of the untouched network, whatever the budget counts. The increase of
the error is a difference between frames of either sign, and a search sees few clips: what it says of a set of layers on
some clips carries over to others less well than the distance does. Points are raced and confirmed by the error itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hmrcompress.frontier.candidates import Candidate, Cutting, singles
from hmrcompress.frontier.errors import Errors
from hmrcompress.plan import ALL
from hmrcompress.runtime import Progress, no_progress

BELOW, MIDDLE, ABOVE = 0.25, 0.5, (0.75, 1.0)
"""Strengths of a patch beside 0."""


@dataclass(frozen=True)
class Effort:
    """How much a search may look at. `first`: batches of frames that every candidate is tried on; `finalists`: those
    that are tried on all frames; `swaps`: rounds of exchanges at every size; `patched`: sets of every size whose
    patches are fitted, as a strength takes up to four looks at all frames."""

    first: int = 1
    finalists: int = 3
    swaps: int = 1
    patched: int = 2
    parts: tuple[str, ...] = (ALL,)


@dataclass(frozen=True)
class Sized:
    """The best set found of one size, and its mean increase in mm on the frames searched."""

    candidate: Candidate
    increase_mm: float


def harm(errors: Errors, candidate: Candidate, batches: int | None = None) -> float:
    """Mean distance in mm of the vertices from those of the untouched network, pelvis on pelvis; infinite where it is
    not finite."""
    found = float(errors(candidate, batches).distances.mean())
    return found if np.isfinite(found) else float("inf")


def increase(errors: Errors, candidate: Candidate, batches: int | None = None) -> float:
    """Mean paired increase in mm over the untouched network; infinite where anything is not finite."""
    found = float((errors(candidate, batches).errors - errors(Candidate(), batches).errors).mean())
    return found if np.isfinite(found) else float("inf")


def halved(errors: Errors, candidates: Sequence[Candidate], effort: Effort, keep: int) -> list[Candidate]:
    """The `keep` best: all are tried on the first batches, the better half on twice as many, until all frames are
    seen. Best first."""
    left, batches = list(candidates), effort.first
    while True:
        ranked = sorted(left, key=lambda each: (harm(errors, each, batches), each))
        if batches >= len(errors.parts):
            return ranked[:keep]
        left = ranked[: max(keep, (len(ranked) + 1) // 2)]
        if len(left) <= keep:
            batches = len(errors.parts)
        else:
            batches = min(2 * batches, len(errors.parts))


def patched(errors: Errors, candidate: Candidate) -> Candidate:
    """The candidate with the strength of its patch that does least harm on all frames, which may be 0. Harm falls and
    rises once with the strength, so that it is looked for upwards and downwards from one half."""
    if errors.fitter is None or not errors.fitter(candidate):
        return candidate
    best = _best(errors, [candidate, replace(candidate, strength=MIDDLE)])
    for strength in ABOVE if best.strength else ():
        better = _best(errors, [best, replace(candidate, strength=strength)])
        if better == best:
            break
        best = better
    return best if best.strength > MIDDLE else _best(errors, [best, replace(candidate, strength=BELOW)])


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
        found = halved(errors, options, effort, effort.finalists)
        for _ in range(effort.swaps):
            best = found[0]
            found = _ranked(errors, {*found, *_swapped(errors, best, effort)})
            if found[0] == best:
                break
        best = _best(errors, [patched(errors, each) for each in found[: effort.patched]])
        sizes[best.layers(depth)] = sized = Sized(best, increase(errors, best))
        if sized.increase_mm > ceiling_mm:
            break
        current = replace(best, strength=0.0)
        progress("layers", depth - int(current.layers(depth)), depth - fewest)
    return sizes


def _best(errors: Errors, candidates: Collection[Candidate]) -> Candidate:
    return _ranked(errors, candidates)[0]


def _ranked(errors: Errors, candidates: Collection[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda each: (harm(errors, each), each))


def _swapped(errors: Errors, candidate: Candidate, effort: Effort) -> list[Candidate]:
    """The best that come of putting one layer back and removing another."""
    depth = errors.network.config.depth
    options = {other for back in candidate.removed for other in _exchanges(depth, candidate, back)}
    return halved(errors, sorted(options), effort, max(1, effort.finalists - 1)) if options else []


def _exchanges(depth: int, candidate: Candidate, back: Cutting) -> list[Candidate]:
    fewer = replace(candidate, removed=tuple(each for each in candidate.removed if each != back))
    others = [each for each in singles(depth, fewer, (back[1],)) if each != back and each[1] == back[1]]
    return [fewer.without(each) for each in others]
