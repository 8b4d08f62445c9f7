"""Error-constrained layer merging (FastHMR, Algorithm 1) as a pure function of an error.

A window low..high of layers slides from the last layer to the first. As long as merging the window costs less than
tau it grows downwards; when it grew too far, what had passed is kept and a new window starts below it. Every step
moves `low` down by one, so there are exactly L-1 evaluations beside the baseline, whatever the errors are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hmrcompress.errors import UserError

Groups = tuple[tuple[int, ...], ...]
"""Each layer of the original model once, in order; layers of a group become one."""


@dataclass(frozen=True)
class Step:
    """One evaluation: layers low..high merged, beside the windows kept before. Error of the whole grouping in mm.

    `at_least`: the error is a lower bound, at which the evaluation ended since it was enough to reject.
    """

    low: int
    high: int
    error_mm: float
    accepted: bool
    at_least: bool = False


@dataclass(frozen=True)
class Trace:
    """What a search found, and how. `open_window` is (low, high) of a window still open at the end, or None.

    It had passed its last evaluation: it is merged, unless the algorithm was run as printed, which loses it.
    """

    groups: Groups
    base_mm: float
    final_mm: float
    steps: tuple[Step, ...]
    open_window: tuple[int, int] | None
    open_window_merged: bool

    def with_bounds(self, at_least: Sequence[bool]) -> Trace:
        """The same, with the steps marked whose errors are lower bounds."""
        steps = tuple(replace(step, at_least=mark) for step, mark in zip(self.steps, at_least, strict=True))
        return replace(self, steps=steps)


def grouping(num_layers: int, windows: list[tuple[int, int]]) -> Groups:
    """Groups of `num_layers` layers in which the (disjoint) windows low..high are merged and all others stay single."""
    starts = {low: high for low, high in windows}
    groups, layer = [], 0
    while layer < num_layers:
        high = starts.get(layer, layer)
        groups.append(tuple(range(layer, high + 1)))
        layer = high + 1
    return tuple(groups)


def eclm(num_layers: int, error: Callable[[Groups], float], tau_mm: float, *, as_printed: bool = False) -> Trace:
    """Runs the algorithm. `error` gives the error in mm of the model with these groups merged.

    It is called once for the untouched model and L-1 times more. A window is accepted if its error exceeds that of the
    untouched model by less than tau; NaN and infinity are rejections. UserError for a baseline that is not finite.
    """
    if num_layers < 1 or not math.isfinite(tau_mm):
        raise UserError(f"got {num_layers} layers and tau {tau_mm}, expected a layer or more and a finite tau", "eclm")
    base = error(grouping(num_layers, []))
    if not math.isfinite(base):
        raise UserError("the untouched model's error is not finite", "search", "Its predictions hold NaN or infinity")
    kept: list[tuple[int, int]] = []
    steps: list[Step] = []
    high, final = num_layers - 1, base
    passed = base
    for low in range(num_layers - 2, -1, -1):
        value = error(grouping(num_layers, [*kept, (low, high)]))
        accepted = value - base < tau_mm
        steps.append(Step(low, high, value, accepted))
        if accepted:
            passed = value
            continue
        if low + 1 != high:
            kept.append((low + 1, high))
            final = passed
        high = low
    window = (0, high) if high > 0 else None
    if window and not as_printed:
        kept.append(window)
        final = passed
    return Trace(grouping(num_layers, kept), base, final, tuple(steps), window, bool(window) and not as_printed)
