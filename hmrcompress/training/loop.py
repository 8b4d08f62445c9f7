"""The one training loop: seeded, resumable, with warm-up, cosine decay, clipping, a moving average and a log.

What is trained is a `Task`; the loop knows parameters and losses, nothing of networks. Everything that a step depends
on is its number and the state that is saved, so a run that was killed and goes on ends with the same bytes (on the same
machine) as one that was not. Several processes (`training.distributed`) take the same steps together.
"""

from __future__ import annotations

import math
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError, tell
from hmrcompress.io.figures import json_line
from hmrcompress.io.keys import Key, listed
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.torch_file import STATE, save_torch
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.training.distributed import Team
from hmrcompress.training.optimisers import Optimisers, ParameterGroup, rate_share

STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"
LOG = "log"
SCHEMA = 3
LOG_STEPS = 20
OTHER_CODE = (
    "the training began under another version of hmrcompress, torch or numpy and goes on under this one, so that no "
    "single version gives its result"
)


class Task(Protocol):
    """What the loop trains. `identity`: plain values that a run which goes on must share with its beginning: hashes of
    all that the task is made of, and its settings."""

    name: str
    identity: dict[str, Any]
    groups: list[ParameterGroup]

    def losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a step and its parts, told by parameters and step; of several processes, that of `own_rows` each."""

    def validate(self) -> dict[str, float]:
        """Figures of the parameters as they stand."""


@dataclass(frozen=True)
class LoopSettings:
    """How to train. `steps` None: until `max_minutes` are over, the schedule going by the clock; else `max_minutes`
    interrupts the run, and a later one goes on.

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
    return _Loop(task, settings, folder, progress, report).run()


def steps_done(folder: Path) -> int:
    """Steps of the unfinished run that `folder` holds the state of; 0 where there is none."""
    state = folder / STATE_FILE
    return int(_read(state, mmap=True)["step"]) if state.exists() else 0


def _read(path: Path, **options: Any) -> dict[str, Any]:
    """A state as it was saved. UserError where the file is something else, or damaged."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", **options)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"not the state of a training ({type(error).__name__})", path, "Remove the folder") from error
    if not isinstance(state, dict) or not {"identity", "step", "records"} <= set(state):
        raise UserError("not the state of a training", path, "Remove the folder")
    return state


def check_work(folder: Path) -> None:
    """UserError where something else than state and log of a training has their names in `folder`."""
    OutputRule().check_file(folder / STATE_FILE, STATE)
    OutputRule().check_file(folder / LOG_FILE, LOG)


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
        settings: LoopSettings,
        folder: Path,
        progress: Progress,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.progress, self.report = progress, report
        self.parameters = {name: p for group in task.groups for name, p in group.parameters.items()}
        self.optimisers = Optimisers(task.groups, settings.betas)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.team = Team(next(iter(self.parameters.values())).device)
        self.key = state_key(task, settings, self.team.count)
        self.step, self.before = 0, 0.0
        self.best, self.lowest = self.average, math.inf
        self.records: list[dict[str, Any]] = []
        self.started = self.saved = time.monotonic()
        check_work(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE_FILE).exists():
            self._load(folder / STATE_FILE)
        self.begun_at = self.step
        if self.team.leads:
            (folder / LOG_FILE).write_text("".join(map(json_line, self.records)))
        self.team.wait()

    @property
    def minutes(self) -> float:
        """Of training so far, in all runs."""
        return self.before + (time.monotonic() - self.started) / 60

    def fraction(self) -> float:
        """How much of the run is done, 0..1."""
        settings = self.settings
        if settings.steps is not None:
            return min(1.0, self.step / settings.steps) if settings.steps else 1.0
        assert settings.max_minutes is not None
        return self.team.agreed(min(1.0, self.minutes / settings.max_minutes))

    def run(self) -> Trained:
        """All steps that are left."""
        settings = self.settings
        shown = int(self.fraction() * settings.validations)
        if self.step == 0:
            self._validate()
        while (fraction := self.fraction()) < 1:
            if settings.steps is not None and self._out_of_time():
                self._save()
                return Trained(self.step, self.step - self.begun_at, self._validations(), False)
            self._step(fraction)
            if (now := int(self.fraction() * settings.validations)) > shown and self.fraction() < 1:
                shown = now
                self._validate()
            if time.monotonic() - self.saved > settings.save_seconds:
                self._save()
        if not any(record["step"] == self.step for record in self._validations()):
            self._validate()
        self._save()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_((self.average if settings.keep is None else self.best)[name])
        return Trained(self.step, self.step - self.begun_at, self._validations(), True, settings.keep)

    def _out_of_time(self) -> bool:
        limit = self.settings.max_minutes
        return limit is not None and self.team.agreed((time.monotonic() - self.started) / 60) > limit

    def _step(self, fraction: float) -> None:
        settings = self.settings
        # The rate at the very beginning of the schedule is zero; the first step is to move something.
        share = rate_share(max(fraction, 1e-3), settings.warmup, settings.rate_end)
        loss, parts = self.task.losses(self.step)
        loss.backward()
        self.team.average_gradients(self.parameters.values())
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip_norm)
        if not bool(torch.isfinite(norm)):
            fault = f"the loss of step {self.step} or its gradient is not finite"
            raise UserError(fault, self.task.name, "Try a lower rate, or --dtype float32")
        self.optimisers.step(settings.rate * share)
        self.step += 1
        decay = min(settings.ema, self.step / (self.step + 9))  # short at first, so that the start is forgotten
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter, 1 - decay)
        if self.step % LOG_STEPS == 0:
            self._log_losses({"loss": loss, **parts}, settings.rate * share)

    def _log_losses(self, parts: dict[str, Tensor], rate: float) -> None:
        values = {name: round(mean, 6) for name, mean in zip(parts, self.team.means([*parts.values()]), strict=True)}
        self._record({"step": self.step, "rate": float(f"{rate:.4g}"), "losses": values})
        if self.settings.steps is not None:
            done, whole = self.step, self.settings.steps
        else:
            done, whole = round(60 * self.minutes), round(60 * (self.settings.max_minutes or 0))
        self.progress(f"{self.task.name}: loss {values['loss']:.3f}", done, whole)

    def _validate(self) -> None:
        with self._averaged():
            figures = self.task.validate()
        if self.settings.keep is not None and figures[self.settings.keep] < self.lowest:
            self.lowest = figures[self.settings.keep]
            self.best = {name: tensor.clone() for name, tensor in self.average.items()}
        record = {"step": self.step, "val": figures}
        self._record(record)
        fraction = self.fraction()
        if self.report is not None:
            self.report({**record, "fraction": fraction, "minutes": self.minutes})

    def _validations(self) -> list[dict[str, Any]]:
        return [{"step": record["step"], **record["val"]} for record in self.records if "val" in record]

    def _record(self, record: dict[str, Any]) -> None:
        self.records.append({**record, "minutes": round(self.minutes, 2)})
        if not self.team.leads:
            return
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json_line(self.records[-1]))

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
        settings = self.settings
        state = {
            "identity": dict(self.key.inputs),
            "step": self.step,
            "minutes": self.minutes,
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "average": self.average,
            "best": None if settings.keep is None else {"lowest": self.lowest, "parameters": self.best},
            "optimisers": self.optimisers.state_dict(),
            "records": self.records,
        }
        with OutputRule().file(self.folder / STATE_FILE, STATE, hashed=False) as temporary:
            save_torch(state, temporary)

    def _load(self, path: Path) -> None:
        state, key = _read(path), self.key
        before = state["identity"]
        if not isinstance(before, dict) or before.get("schema") != SCHEMA:
            what = "holds an unfinished run of another version of hmrcompress, whose states are made otherwise"
            raise UserError(what, path.parent, "Finish it with that version, or remove the folder")
        if other := key.changed_beside_code(before):
            raise UserError(
                f"holds an unfinished run with other settings ({listed(sorted(other))})",
                path.parent,
                "Give the settings it began with, remove the folder, or choose another --out",
            )
        if key.changed(before) and self.team.leads:
            tell(OTHER_CODE, path.parent)
        self._put(state["parameters"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        self.optimisers.load_state_dict(state["optimisers"])
        if self.settings.keep is not None:
            self.lowest, self.best = state["best"]["lowest"], state["best"]["parameters"]
        self.step, self.before, self.records = state["step"], state["minutes"], state["records"]
