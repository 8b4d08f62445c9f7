"""Layers and tokens together: which of all combinations to measure, racing them against a budget, and confirming the
winners on clips that no search saw.

The separate searches say about what a combination costs (their increases added) and the cost table how long it takes.
Combinations are tried in the order of their time, fastest first; one that shows on the first frames that it misses the
budget is dropped. A search sees few clips, so all that its frames leave possible goes on to the confirming clips, by
the same rule. What is offered is the fastest whose increase there meets the budget with the upper end of its 95 %
interval (paired, clips drawn with replacement).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.costs import CostTable
from hmrcompress.frontier.depth import MIDDLE, Sized
from hmrcompress.frontier.errors import Errors
from hmrcompress.merging.apply import token_counts
from hmrcompress.metrics.bootstrap import clip_interval
from hmrcompress.plan import ALL
from hmrcompress.runtime import Progress, no_progress

HOPE = 3.0
"""Combinations are measured whose parts together cost at most so many times the budget, and `MORE_MM`: parts that go
together may cost less than their sum, and on a few clips each is known to a millimetre or so."""
MORE_MM = 1.0
MOST_TIMED = 3
"""Choices that are timed by turns before the untouched network is offered."""


class Increase(NamedTuple):
    """Of the error over the untouched network's, on some frames, in mm: mean, the ends of its 95 % interval (None where
    there are fewer than two clips), the mean distance of the bodies from the untouched network's, and how many frames
    and clips."""

    mean: float
    low: float | None
    high: float | None
    distance: float
    frames: int
    clips: int

    @property
    def half_width(self) -> float:
        """Of the interval; infinite where there is none."""
        return float("inf") if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def least(self) -> float:
        """The lower end of the interval; the mean where there is none."""
        return self.mean if self.low is None else self.low

    def to_json(self) -> dict[str, Any]:
        """{increase_mm, ci95_mm, distance_mm, n_frames, n_clips}."""
        interval = None if self.low is None else [self.low, self.high]
        return {
            "increase_mm": self.mean,
            "ci95_mm": interval,
            "distance_mm": self.distance,
            "n_frames": self.frames,
            "n_clips": self.clips,
        }


@dataclass(frozen=True)
class Point:
    """A candidate with what is known of it: its predicted seconds a batch, what it costs on the frames searched, and on
    those that confirm."""

    candidate: Candidate
    seconds: float
    search: Increase | None = None
    confirmed: Increase | None = None

    @property
    def best_known(self) -> Increase | None:
        """On the confirming frames where it was measured there."""
        return self.confirmed or self.search


@dataclass(frozen=True)
class Goal:
    """What is asked: at most `budget_mm` more error, or at most `seconds` a batch."""

    budget_mm: float | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, asked: Mapping[str, float | None], batch: int, base: float) -> Goal:
        """asked: budget_mm, fps or speedup, the others None; batch: frames in one; base: the untouched network's
        seconds for it."""
        if asked["budget_mm"] is not None:
            return cls(budget_mm=asked["budget_mm"])
        return cls(seconds=batch / asked["fps"] if asked["fps"] else base / (asked["speedup"] or 1.0))


def increase_of(errors: Errors, candidate: Candidate, batches: int | None = None, *, seed: int = 0) -> Increase:
    """See `Increase`; all NaN and infinity count as infinite."""
    found, base, clip = errors(candidate, batches), errors(Candidate(), batches), errors.frames_of(batches)
    difference = found.errors - base.errors
    if not np.isfinite(difference).all():
        return Increase(float("inf"), None, None, float("inf"), len(clip), len(np.unique(clip)))
    if errors.target == "teacher":
        difference = found.distances
    interval = clip_interval(difference, clip, seed=seed)
    low, high = interval if interval is not None else (None, None)
    return Increase(float(difference.mean()), low, high, float(found.distances.mean()), len(clip), len(np.unique(clip)))


def combinations(
    sizes: Mapping[float, Sized],
    tokens: Mapping[Candidate, float],
    costs: CostTable,
    depth: int,
    *others: Mapping[Candidate, float],
) -> list[tuple[Candidate, float, float]]:
    """Every set of layers with every way of having fewer tokens, and every dtype and stride of `others`: candidate,
    seconds, and the sum of what each costs alone, in mm; fastest first. What has too few layers left to merge its
    tokens in is none."""
    found = []
    for sized in sizes.values():
        for parts in product(*({Candidate(): 0.0, **axis}.items() for axis in (tokens, *others))):
            whole = sized.candidate
            for part, _ in parts:
                whole = whole.joined(part)
            if _merges(whole, costs.grid, depth):
                alone = sum(cost for _, cost in parts)
                found.append((whole, costs.seconds(whole, depth), sized.increase_mm + alone))
    return sorted(found, key=lambda each: (each[1], each[2], each[0]))


def _merges(candidate: Candidate, grid: int, depth: int) -> bool:
    left = depth - sum(part == ALL for _, part in candidate.removed)
    return candidate.way != "merge" or len(token_counts(candidate.tokens, grid)) - 1 <= left


def front_of(found: Sequence[tuple[Candidate, float, float]]) -> list[tuple[Candidate, float, float]]:
    """Those that no other beats in both time and error, fastest first."""
    kept, best = [], float("inf")
    for each in sorted(found, key=lambda each: (each[1], each[2], each[0])):
        if each[2] < best:
            kept.append(each)
            best = each[2]
    return kept


def race(
    errors: Errors,
    found: Sequence[tuple[Candidate, float, float]],
    goal: Goal,
    most: int,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[Point]:
    """Measures at most `most` of the combinations on the frames searched: those along the front that may meet the goal,
    and of too many those whose parts together cost about the budget.

    Whether the cut is patched, which was decided with all tokens, is tried again with fewer: it takes no time, and the
    map was fitted on all of them. A combination is dropped when on the frames so far even the lower end of its interval
    misses the budget; the frames double from one batch on. Fastest first.
    """
    front = front_of(found)
    if goal.budget_mm is not None:
        budget = goal.budget_mm
        bound = HOPE * budget + MORE_MM
        hopeful = [each for each in front if each[2] <= bound] or front[-1:]
        near = sorted(hopeful, key=lambda each: abs(each[2] - budget))[:most]
        hopeful = [each for each in hopeful if each in near]
    else:
        assert goal.seconds is not None
        limit = goal.seconds
        hopeful = [each for each in front if each[1] <= limit][::-1] or front[:1]
    points = []
    for number, (candidate, seconds, _) in enumerate(hopeful[:most]):
        rivals = [Point(each, seconds, _raced(errors, each, goal, seed)) for each in _patched_or_not(errors, candidate)]
        points.append(min(rivals, key=lambda each: _standing(each, goal)))
        progress("racing", number + 1, min(most, len(hopeful)))
    return sorted(points, key=lambda each: (each.seconds, each.candidate))


def _standing(point: Point, goal: Goal) -> tuple[bool, float]:
    """Those that were dropped come last: they were measured on fewer frames, and miss the budget for certain."""
    found = point.search
    if found is None:
        return True, np.inf
    return goal.budget_mm is not None and bool(found.least > goal.budget_mm), found.mean


def _patched_or_not(errors: Errors, candidate: Candidate) -> list[Candidate]:
    if candidate.keep is None or not candidate.removed or errors.fitter is None or not errors.fitter(candidate):
        return [candidate]
    return [candidate, replace(candidate, strength=0.0 if candidate.strength else MIDDLE)]


def _raced(errors: Errors, candidate: Candidate, goal: Goal, seed: int) -> Increase:
    """The increase on all frames, or on those after which even the lower end of its interval missed the budget."""
    batches = 1
    while True:
        found = increase_of(errors, candidate, batches, seed=seed)
        out = goal.budget_mm is not None and found.low is not None and found.least > goal.budget_mm
        if batches >= len(errors.parts) or out or not np.isfinite(found.mean):
            return found
        batches = min(2 * batches, len(errors.parts))


@dataclass(frozen=True)
class Choice:
    """The point that is offered; `shown`: whether its interval meets the goal; `why`: in a sentence."""

    point: Point
    shown: bool
    why: str


def left_alone(choice: Choice, untouched: Point, goal: Goal, depth: int) -> Choice:
    """The untouched network in the place of a choice that is not faster: it meets any budget, and no goal of speed."""
    why = f"{choice.point.candidate.words(depth)} is not faster when both are timed by turns"
    return Choice(untouched, goal.budget_mm is not None, why)


def by_the_clock(choice: Choice, speed: Mapping[str, Any] | None, asked: Mapping[str, float | None]) -> Choice:
    """A choice for a goal of speed as it was timed: `shown` is what the clock says, not what was predicted. speed: of
    it, by turns with the untouched network {fps, speedup}; None where it is that itself."""
    for name, unit in (("speedup", "times the speed"), ("fps", "frames a second")):
        wanted = asked.get(name)
        if wanted is None or speed is None or speed[name] >= wanted:
            continue
        return replace(choice, shown=False, why=f"it was predicted to be fast enough, and has {speed[name]:.3g} {unit}")
    return choice


def choose(
    confirm: Errors,
    points: Sequence[Point],
    goal: Goal,
    untouched: Point,
    most: int,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Choice, list[Point]]:
    """Confirms points, fastest first, until one meets the budget: all that the frames searched leave possible (the
    lower end of the interval is within it), at most `most` of them on all frames, of which half are kept for points
    that the search has within the budget in the mean; one that misses it for certain is measured no further. Gives
    the choice and all points with what was confirmed of them. For a goal of speed: the fitting point with the least
    error."""
    known = {each.candidate: each for each in points}

    def confirmed(point: Point) -> Point:
        done = replace(point, confirmed=_raced(confirm, point.candidate, goal, seed))
        known[point.candidate] = done
        return done

    if goal.budget_mm is None:
        limit = goal.seconds or 0.0
        fitting = [each for each in points if each.seconds <= limit and each.search] or list(points)
        best = min(fitting, key=lambda each: (each.search.mean if each.search else np.inf, each.seconds))
        best = confirmed(best)
        fits = best.seconds <= limit
        why = "the least error among the plans that are fast enough" if fits else "no plan is fast enough; the nearest"
        return Choice(best, fits, why), list(known.values())
    budget = goal.budget_mm
    hopeful = [
        each for each in points if each.search and each.search.least <= budget and each.seconds < untouched.seconds
    ]
    tried: list[Point] = []
    whole, every = 0, len(confirm.frames_of(None))
    for number, each in enumerate(hopeful):
        if whole == most:
            break
        assert each.search is not None
        if each.search.mean > budget and whole >= (most + 1) // 2:
            continue
        tried.append(confirmed(each))
        progress("confirming", number + 1, len(hopeful))
        found = tried[-1].confirmed
        assert found is not None
        whole += found.frames == every
        if found.high is not None and found.high <= budget:
            why = "the fastest plan whose increase, with its interval, is within the budget on clips not searched on"
            return Choice(tried[-1], True, why), list(known.values())
    near = [
        each
        for each in tried
        if each.confirmed and each.confirmed.mean <= budget and each.confirmed.half_width > budget / 2
    ]
    if near:
        best = near[0]
        assert best.confirmed is not None
        width = best.confirmed.half_width
        why = f"not shown: {best.confirmed.clips} clips, ±{width:.2f} mm; more clips would tell"
        return Choice(best, False, why), list(known.values())
    return Choice(untouched, True, "no faster plan was shown to be within the budget"), list(known.values())


class Settled(NamedTuple):
    """The choice by the clock, all points with what was confirmed of them, fastest first, the choice's figures by turns
    (None for the untouched network), and the points that were no faster by turns, whatever the table said."""

    choice: Choice
    points: list[Point]
    speed: dict[str, Any] | None
    slower: list[Point]


def settle(
    confirm: Errors,
    points: Sequence[Point],
    goal: Goal,
    untouched: Point,
    asked: Mapping[str, float | None],
    timed: Callable[[Candidate], dict[str, Any] | None],
    *,
    depth: int,
    most: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Settled:
    """`choose`, and what is chosen timed by turns with the untouched network: {fps, speedup} of `timed`, None for that
    itself. One that is no faster gives way to the next, after `MOST_TIMED` of them to the untouched network. asked: as
    of `Goal.of`; depth: layers of the untouched network; most: as of `choose`."""
    choice, known = choose(confirm, points, goal, untouched, most, seed=seed, progress=progress)
    slower: list[Point] = []
    while (speed := timed(choice.point.candidate)) is not None and speed["speedup"] <= 1:
        slower.append(choice.point)
        known = [each for each in known if each.candidate != choice.point.candidate]
        if not known or len(slower) == MOST_TIMED:
            choice, speed = left_alone(choice, untouched, goal, depth), None
            break
        choice, known = choose(confirm, known, goal, untouched, most, seed=seed, progress=progress)
    every = sorted([*known, *slower], key=lambda each: (each.seconds, each.candidate))
    return Settled(by_the_clock(choice, speed, asked), every, speed, slower)
