"""The one training loop: seeded, resumable, with clipping, a moving average, validations and a log.

What is trained is a `Task`; the loop knows parameters and losses, nothing of networks. How far it goes, at which rates,
and when it is looked at says a `Course` (`LoopSettings`: warm-up and half a cosine); where state and log are kept, a
`Book` (`training.book`: a folder). Everything that a step depends on is its number and the state that is saved, so a
run that was killed and goes on ends with the same bytes (on the same machine) as one that was not. Several processes
(`training.distributed`) take the same steps together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.io.keys import Key
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.training.book import FolderBook
from hmrcompress.training.distributed import Team
from hmrcompress.training.optimisers import Optimisers, ParameterGroup, follow, rate_share

SCHEMA = 3
LOG_STEPS = 20


class Task(Protocol):
    """What the loop trains. `identity`: plain values that a run which goes on must share with its beginning: hashes of
    all that the task is made of, and its settings."""

    identity: dict[str, Any]
    groups: list[ParameterGroup]

    @property
    def name(self) -> str:
        """In messages."""

    def losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a step and its parts, told by parameters and step; of several processes, that of `own_rows` each."""

    def validate(self) -> dict[str, float]:
        """Figures of the parameters as they stand."""


@dataclass(frozen=True)
class Terms:
    """What stays the same throughout a run. keep: see `LoopSettings`; betas: of AdamW, which takes its step in one pass
    over all parameters if `fused`; save_seconds: how much a kill may lose.

    pause_minutes: after how long this run ends, for a later one to go on; it takes one step at least, and is measured
    then if `measured_when_cut`. by_clock: minutes say how far the run is. measured_at_start: validated before any step.
    """

    clip_norm: float
    betas: tuple[float, float]
    save_seconds: float
    keep: str | None = None
    fused: bool = False
    pause_minutes: float | None = None
    by_clock: bool = False
    measured_at_start: bool = True
    measured_when_cut: bool = False


class Course(Protocol):
    """How far a run goes, and what is due when. Its position counts steps, or whatever the course counts (crops); what
    is asked of a step is told by the position at which it begins."""

    def terms(self) -> Terms:
        """What stays the same throughout."""

    def fraction(self, step: int, minutes: float) -> float:
        """How much of the run is done, 0..1, after so many minutes in all runs."""

    def after(self, step: int) -> int:
        """Where the step ends."""

    def rates(self, step: int, fraction: float) -> tuple[float, float]:
        """The rate of the step, and what multiplies it for what Muon does not train."""

    def decay(self, step: int) -> float | None:
        """Of the moving average after the step; None where it stays."""

    def logs(self, step: int) -> bool:
        """Whether the losses of the step go into the log."""

    def looks(self, step: int, fraction: float) -> int:
        """How many validations are due by then, beside those at start and end."""

    def told(self, step: int, minutes: float) -> tuple[int, int]:
        """(done, whole) for whoever watches."""


class Book(Protocol):
    """Where a run is written down. Of several processes each opens it, and only the first one writes."""

    @property
    def validations(self) -> list[dict[str, Any]]:
        """Those of all runs that it knows of: {step, ...figures}."""

    def open(self, team: Team) -> dict[str, Any] | None:
        """What `keep` was given last, with step, minutes, parameters, average, best and optimisers; None to begin."""

    def losses(self, step: int, parts: dict[str, float], rate: float, minutes: float) -> None:
        """Takes down the loss of a step and its parts."""

    def validation(self, step: int, figures: dict[str, float], minutes: float) -> None:
        """Takes down a validation. The task's parameters are their moving average meanwhile."""

    def keep(self, state: dict[str, Any]) -> None:
        """Keeps all that is needed to go on."""


@dataclass(frozen=True)
class LoopSettings:
    """A course of warm-up and half a cosine. `steps` None: until `max_minutes` are over, the schedule going by the
    clock; else `max_minutes` interrupts the run, and a later one goes on.

    rate: the highest, after a linear warm-up over the first `warmup` (share of the run); then half a cosine down to
    `rate_end` times that. clip_norm: of the whole gradient. ema: decay of the moving average, which is what is kept:
    as it is at the end, or where `keep` names a figure of the validations, as it was when that was lowest.
    """

    steps: int | None
    max_minutes: float | None = None
    rate: float = 3e-4
    warmup: float = 0.03
    rate_end: float = 0.01
    keep: str | None = None
    clip_norm: float = 1.0
    ema: float = 0.999
    betas: tuple[float, float] = (0.9, 0.99)
    validations: int = 10
    save_seconds: float = 60.0

    def terms(self) -> Terms:
        """See `Course`."""
        by_clock = self.steps is None
        pause = None if by_clock else self.max_minutes
        return Terms(
            self.clip_norm, self.betas, self.save_seconds, keep=self.keep, pause_minutes=pause, by_clock=by_clock
        )

    def fraction(self, step: int, minutes: float) -> float:
        """See `Course`."""
        if self.steps is not None:
            return min(1.0, step / self.steps) if self.steps else 1.0
        assert self.max_minutes is not None
        return min(1.0, minutes / self.max_minutes)

    def after(self, step: int) -> int:
        """The next step."""
        return step + 1

    def rates(self, step: int, fraction: float) -> tuple[float, float]:
        """One for all; at the very beginning, where the schedule is at zero, the first step is to move something."""
        return self.rate * rate_share(max(fraction, 1e-3), self.warmup, self.rate_end), 1.0

    def decay(self, step: int) -> float:
        """Short at first, so that the start is forgotten."""
        return min(self.ema, (step + 1) / (step + 10))

    def logs(self, step: int) -> bool:
        """Every so many steps."""
        return (step + 1) % LOG_STEPS == 0

    def looks(self, step: int, fraction: float) -> int:
        """Evenly over the run."""
        return int(fraction * self.validations)

    def told(self, step: int, minutes: float) -> tuple[int, int]:
        """Steps, or seconds."""
        if self.steps is not None:
            return step, self.steps
        return round(60 * minutes), round(60 * (self.max_minutes or 0))


@dataclass(frozen=True)
class Trained:
    """How a run ended: steps in all and in this run; every validation {step, …figures}; False if it was interrupted.
    kept: the validation of the parameters that were kept."""

    steps: int
    steps_now: int
    validations: list[dict[str, Any]]
    finished: bool
    keep: str | None = None

    @property
    def kept(self) -> dict[str, Any]:
        figure = self.keep
        return self.validations[-1] if figure is None else min(self.validations, key=lambda record: record[figure])


def train(
    task: Task,
    settings: LoopSettings,
    folder: Path,
    *,
    progress: Progress = no_progress,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """Trains, or goes on training where `folder` holds the state of an interrupted run.

    In the end the task's parameters hold their moving average, or, interrupted, what they were. The folder then has
    state.pt (all that is needed to go on) and log.jsonl (losses, validations, minutes of all runs). `report` gets each
    validation. A state that other code wrote is gone on from, which is told. Raises UserError for a state of another
    task, other inputs or settings, files of these names that are something else, and where a loss is not finite.
    """
    if settings.steps is None and settings.max_minutes is None:
        raise UserError("got neither a number of steps nor of minutes", "training")
    book = FolderBook(folder, lambda processes: state_key(task, settings, processes))
    return run(task, settings, book, progress=progress, report=report)


def run(
    task: Task,
    course: Course,
    book: Book,
    *,
    progress: Progress = no_progress,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """`train` by any course, written down in any book."""
    return _Loop(task, course, book, progress, report).run()


def state_key(task: Task, settings: LoopSettings, processes: int = 1) -> Key:
    """Everything that the result of a training depends on, which its state says."""
    given = asdict(settings)
    saved = given.pop("save_seconds"), given.pop("max_minutes")
    minutes = saved[1] if settings.steps is None else None  # with steps it only says when to pause
    identity = {**task.identity, "schema": SCHEMA, "processes": processes}
    return Key.of("training", ("training",), **{**identity, **given, "max_minutes": minutes})


class _Loop:
    def __init__(
        self,
        task: Task,
        course: Course,
        book: Book,
        progress: Progress,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.task, self.course, self.book = task, course, book
        self.terms = course.terms()
        self.progress, self.report = progress, report
        self.parameters = {name: p for group in task.groups for name, p in group.parameters.items()}
        self.optimisers = Optimisers(task.groups, self.terms.betas, fused=self.terms.fused)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.team = Team(next(iter(self.parameters.values())).device)
        self.step, self.before = 0, 0.0
        self.best, self.lowest = self.average, math.inf
        self.started = self.saved = time.monotonic()
        if (state := book.open(self.team)) is not None:
            self._load(state)
        self.begun_at = self.step
        self.team.wait()

    @property
    def minutes(self) -> float:
        """Of training so far, in all runs."""
        return self.before + (time.monotonic() - self.started) / 60

    def fraction(self) -> float:
        """How much of the run is done, 0..1."""
        minutes = self.team.agreed(self.minutes) if self.terms.by_clock else 0.0
        return self.course.fraction(self.step, minutes)

    def run(self) -> Trained:
        """All steps that are left."""
        course = self.course
        shown = course.looks(self.step, self.fraction())
        if self.step == 0 and self.terms.measured_at_start:
            self._validate()
        while (fraction := self.fraction()) < 1:
            if self.step > self.begun_at and self._out_of_time():
                if self.terms.measured_when_cut:
                    self._validate()
                self._save()
                return self._trained(finished=False)
            self._step(fraction)
            now = course.looks(self.step, fraction := self.fraction())
            if now > shown and fraction < 1:
                self._validate()
            shown = now
            if time.monotonic() - self.saved > self.terms.save_seconds:
                self._save()
        if not any(record["step"] == self.step for record in self.book.validations):
            self._validate()
        self._save()
        self._put(self.average if self.terms.keep is None else self.best)
        return self._trained(finished=True)

    def _trained(self, finished: bool) -> Trained:
        done = self.step - self.begun_at
        return Trained(self.step, done, self.book.validations, finished, self.terms.keep)

    def _out_of_time(self) -> bool:
        limit = self.terms.pause_minutes
        return limit is not None and self.team.agreed((time.monotonic() - self.started) / 60) > limit

    def _step(self, fraction: float) -> None:
        course, at = self.course, self.step
        rate, beside_muon = course.rates(at, fraction)
        loss, parts = self.task.losses(at)
        loss.backward()
        self.team.average_gradients(self.parameters.values())
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.terms.clip_norm)
        if not bool(torch.isfinite(norm)):
            fault = f"the loss of step {at} or its gradient is not finite"
            raise UserError(fault, self.task.name, "Try a lower rate, or --dtype float32")
        self.optimisers.step(rate, beside_muon)
        self.step = course.after(at)
        if (decay := course.decay(at)) is not None:
            follow(self.average.values(), self.parameters.values(), decay)
        if course.logs(at):
            self._log_losses({"loss": loss, **parts}, rate)

    def _log_losses(self, parts: dict[str, Tensor], rate: float) -> None:
        values = dict(zip(parts, self.team.means([*parts.values()]), strict=True))
        minutes = self.minutes
        self.book.losses(self.step, values, rate, minutes)
        self.progress(f"{self.task.name}: loss {values['loss']:.3f}", *self.course.told(self.step, minutes))

    def _validate(self) -> None:
        with self._averaged():
            figures = self.task.validate()
            self.book.validation(self.step, figures, self.minutes)
        keep = self.terms.keep
        if keep is not None and figures[keep] < self.lowest:
            self.lowest = figures[keep]
            self.best = {name: tensor.clone() for name, tensor in self.average.items()}
        fraction = self.fraction()
        if self.report is not None:
            self.report({"step": self.step, "val": figures, "fraction": fraction, "minutes": self.minutes})

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average in the parameters' place while the block runs."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _save(self) -> None:
        self.saved = time.monotonic()
        if not self.team.leads:
            return
        state = {
            "step": self.step,
            "minutes": self.minutes,
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "average": self.average,
            "best": None if self.terms.keep is None else {"lowest": self.lowest, "parameters": self.best},
            "optimisers": self.optimisers.state_dict(),
        }
        self.book.keep(state)

    def _load(self, state: dict[str, Any]) -> None:
        self._put(state["parameters"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        self.optimisers.load_state_dict(state["optimisers"])
        if self.terms.keep is not None:
            self.lowest, self.best = state["best"]["lowest"], state["best"]["parameters"]
        self.step, self.before = state["step"], state["minutes"]
