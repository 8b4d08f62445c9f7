"""Errors of groupings as the search methods ask for them: remembered, journalled, counted, told of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.searching.eclm import Groups, grouping
from hmrcompress.searching.error import Fails, FrameProbe, Measured, never
from hmrcompress.searching.journal import Journal

TOO_FEW = Measured(math.inf)
"""The error of a candidate with too few layers: it loses to all others."""


@dataclass
class Evaluations:
    """The probe behind its journal. `early`: candidates are rejected as soon as it is certain. Those with less than
    `fewest` layers are out unmeasured: the token merging of the plan would not fit into them.

    `asked` holds every grouping asked for beside the untouched one, in that order, with the last that is known of it.
    `evaluated` counts what was measured now. Progress goes by the work that an evaluation takes (`FrameProbe.work`;
    late ones take many times that of early ones), times the share that those so far took of it, as candidates are
    rejected early and merged layers do not run. A bar that goes by speed is then right about the time left, and says
    too much at first where much is merged or rejected. What the journal knew is no work.
    """

    probe: FrameProbe
    journal: Journal
    layers: int
    early: bool = True
    progress: Progress = no_progress
    fewest: int = 1
    asked: dict[Groups, Measured] = field(default_factory=dict)
    evaluated: int = 0
    _base: float | None = None
    _done: float = 0.0
    _ahead: list[float] = field(default_factory=list)
    _believed: float = 0.0
    _taken: float = 0.0

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
        if len(groups) < self.fewest:
            return TOO_FEW
        known = self.asked.get(groups)
        if known is not None and (known.exact or fails(known.error_mm)):
            return known
        self.asked.setdefault(groups, Measured(math.nan))
        self.asked[groups] = self._of(groups, fails)
        return self.asked[groups]

    def expect(self, more: Iterable[Groups]) -> None:
        """Says which groupings, or others of about their cost, may have to be measured from now on, in that order."""
        self._ahead = [self.probe.work(groups) for groups in more if len(groups) >= self.fewest]

    def unasked(self, candidates: Iterable[Groups]) -> list[Groups]:
        """Those of them that were not asked for yet."""
        return [groups for groups in candidates if groups not in self.asked]

    def _of(self, groups: Groups, fails: Fails) -> Measured:
        window = next((group for group in groups if len(group) > 1), None)
        what = f"search: {len(groups)} layers, {window[0]}-{window[-1]} merged" if window else "search: untouched"
        work, before, ran = self.probe.work(groups), self._done, 0
        believed = self._ahead.pop(0) if window and self._ahead else work

        def count(frames: int) -> None:
            nonlocal ran
            ran += frames
            self._done = before + work * ran / self.probe.frames
            rest = max(0.0, believed * self._share() - work * ran / self.probe.frames) if ran < self.probe.frames else 0
            self.progress(what, round(self._done), round(self._done + rest + self._left()))

        known = self.journal.get(groups)
        if known is None or not (known.exact or fails(known.error_mm)):
            known = self.probe(groups, fails if self.early else never, count)
            self.evaluated += 1
            if window is None and not math.isfinite(known.error_mm):  # nothing to search: leave no journal behind
                return known
            if window is not None:
                self._believed, self._taken = self._believed + believed, self._taken + self._done - before
            by_frame = self.probe.base.tolist() if window is None and self.probe.base is not None else None
            known = self.journal.add(groups, known, by_frame)
        self.progress(what, round(self._done), round(self._done + self._left()))
        return known

    def _left(self) -> float:
        """The work of the evaluations to come."""
        return sum(self._ahead) * self._share()

    def _share(self) -> float:
        """What evaluations took of the work that was expected of them."""
        return self._taken / self._believed if self._believed else 1.0
