"""Errors of groupings as the search methods ask for them: remembered, journalled, counted, told of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.searching.eclm import Groups, grouping
from hmrcompress.searching.journal import Journal
from hmrcompress.searching.probe import ErrorProbe, Fails, Measured, never


@dataclass
class Evaluations:
    """The probe behind its journal. `early`: candidates are rejected as soon as it is certain.

    `asked` holds every grouping asked for beside the untouched one, in that order, with the last that is known of it.
    `evaluated` counts what was measured now. `expected` evaluations, the baseline included, are what progress goes by.
    """

    probe: ErrorProbe
    journal: Journal
    layers: int
    early: bool = True
    progress: Progress = no_progress
    asked: dict[Groups, Measured] = field(default_factory=dict)
    evaluated: int = 0
    expected: int = 1
    _base: float | None = None

    def __post_init__(self) -> None:
        if self.journal.frames_mm is not None:
            self.probe.base = np.array(self.journal.frames_mm)

    def base(self) -> float:
        """The error of the untouched network in mm. UserError where it is not finite."""
        if self._base is None:
            self._base = self._of(grouping(self.layers, []), never).error_mm
        if not math.isfinite(self._base):
            raise UserError(
                "the untouched model's error is not finite", "search", "Its predictions hold NaN or infinity"
            )
        return self._base

    def __call__(self, groups: Groups, fails: Fails = never) -> Measured:
        """The error of a grouping. Where it `fails` it may be a lower bound that fails as well."""
        if len(groups) == self.layers:
            return Measured(self.base())
        known = self.asked.get(groups)
        if known is not None and (known.exact or fails(known.error_mm)):
            return known
        self.asked.setdefault(groups, Measured(math.nan))
        self.asked[groups] = self._of(groups, fails)
        return self.asked[groups]

    def expect(self, more: int) -> None:
        """Says how many evaluations may follow those asked for so far; progress goes by it."""
        self.expected = 1 + len(self.asked) + more

    def _of(self, groups: Groups, fails: Fails) -> Measured:
        window = next((group for group in groups if len(group) > 1), None)
        what = f"search: {len(groups)} layers, {window[0]}-{window[-1]} merged" if window else "search: untouched"
        frames, before = self.probe.frames, len(self.asked) * self.probe.frames
        total = max(self.expected * frames, before + frames)
        known = self.journal.get(groups)
        if known is None or not (known.exact or fails(known.error_mm)):
            known = self.probe(groups, fails if self.early else never, _counter(self.progress, what, before, total))
            self.evaluated += 1
            if window is None and not math.isfinite(known.error_mm):  # nothing to search: leave no journal behind
                return known
            by_frame = self.probe.base.tolist() if window is None and self.probe.base is not None else None
            known = self.journal.add(groups, known, by_frame)
        self.progress(what, before + frames, total)
        return known


def _counter(progress: Progress, what: str, done: int, total: int) -> Callable[[int], None]:
    def count(frames: int) -> None:
        nonlocal done
        done += frames
        progress(what, done, total)

    return count
