"""Where the time of a run goes: every stage by itself, one after the other, the first frame apart."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hmrcompress.pipeline.boxes import BoxSource
from hmrcompress.pipeline.frames import Source
from hmrcompress.pipeline.overlap import StageClock
from hmrcompress.pipeline.predict import PredictSettings, Reader, predict
from hmrcompress.pipeline.summary import STAGES, Summary
from hmrcompress.runtime import Progress, no_progress

OTHER = "other"
"""What no stage accounts for."""


@dataclass(frozen=True)
class Profile:
    """A serial run over all frames after one over the first frame alone. seconds: wall time of each run as the clock on
    the wall shows it, measured apart from the stages; `summary` and `first` have the stages."""

    summary: Summary
    first: Summary
    seconds: float
    first_seconds: float
    batch_size: int

    @property
    def accounted(self) -> float:
        """Share of the wall time that the stages add up to."""
        return sum(self.summary.stages.values()) / self.seconds

    def rows(self) -> list[tuple[str, float, float, float]]:
        """(stage, ms a frame, share of the wall time, ms on the first frame), in the order of the pipeline, what is not
        accounted for last."""
        frames, found = self.summary.frames, []
        for name in (each for each in STAGES if each in self.summary.stages):
            seconds = self.summary.stages[name]
            found.append((name, 1000 * seconds / frames, seconds / self.seconds, 1000 * self.first.stages.get(name, 0)))
        rest = self.seconds - sum(self.summary.stages.values())
        first_rest = self.first_seconds - sum(self.first.stages.values())
        return [*found, (OTHER, 1000 * rest / frames, rest / self.seconds, 1000 * first_rest)]

    def to_json(self) -> dict[str, Any]:
        """Plain values: {frames, bodies, batch_size, seconds, ms_per_frame, accounted, stages: {name: {ms_per_frame,
        share, first_frame_ms}}, first_frame_ms, time, notes}, the last two as `Summary` has them."""
        return {
            "frames": self.summary.frames,
            "bodies": self.summary.bodies,
            "network_crops": self.summary.network_crops,
            "batch_size": self.batch_size,
            "seconds": self.seconds,
            "ms_per_frame": 1000 * self.seconds / self.summary.frames,
            "accounted": self.accounted,
            "first_frame_ms": 1000 * self.first_seconds,
            "stages": {
                name: {"ms_per_frame": ms, "share": share, "first_frame_ms": first}
                for name, ms, share, first in self.rows()
            },
            "time": self.summary.time,
            "notes": self.summary.notes,
        }


def profile(
    source: Source,
    boxes: Callable[[], BoxSource],
    reader: Reader,
    settings: PredictSettings | None = None,
    *,
    progress: Progress = no_progress,
) -> Profile:
    """Runs `predict` twice without any overlap, on the first frame, which pays for what is done once, then on all.

    boxes: makes the source of boxes anew for each run (a tracker remembers). What is written goes to a temporary
    folder. Raises UserError.
    """
    settings = replace(settings or PredictSettings(), overlapped=False)
    runs: list[tuple[Summary, float]] = []
    with tempfile.TemporaryDirectory(prefix="hmrcompress-profile-") as folder:
        for number, limit in enumerate((1, settings.limit)):
            people = boxes()
            start = time.perf_counter()
            made = predict(
                source,
                people,
                reader,
                Path(folder) / str(number),
                replace(settings, limit=limit),
                clock=StageClock(),
                progress=progress,
            )
            runs.append((made, time.perf_counter() - start))
    (first, first_seconds), (whole, seconds) = runs
    return Profile(whole, first, seconds, first_seconds, settings.batch_size)
