"""State and log of a training in a folder of its own, from which a later run goes on."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hmrcompress.errors import UserError, tell
from hmrcompress.io.figures import json_line
from hmrcompress.io.keys import Key, listed
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.torch_file import STATE, save_torch
from hmrcompress.training.distributed import Team

STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"
LOG = "log"
OTHER_CODE = (
    "the training began under another version of hmrcompress, torch or numpy and goes on under this one, so that no "
    "single version gives its result"
)


def steps_done(folder: Path) -> int:
    """Steps of the unfinished run that `folder` holds the state of; 0 where there is none."""
    state = folder / STATE_FILE
    return int(_read(state, mmap=True)["step"]) if state.exists() else 0


def check_work(folder: Path) -> None:
    """UserError where something else than state and log of a training has their names in `folder`."""
    OutputRule().check_file(folder / STATE_FILE, STATE)
    OutputRule().check_file(folder / LOG_FILE, LOG)


def write_state(state: dict[str, Any], path: Path) -> None:
    """Writes a state, whole or not at all."""
    with OutputRule().file(path, STATE, hashed=False) as temporary:
        save_torch(state, temporary)


class FolderBook:
    """The `Book` of a run in `folder`: state.pt with all that has been taken down, and log.jsonl (losses, validations,
    minutes of all runs). What came after the last state is dropped from the log of a run that goes on.

    key_of: everything that the result depends on, by how many processes share the work.
    """

    def __init__(self, folder: Path, key_of: Callable[[int], Key]) -> None:
        self.folder, self.key_of = folder, key_of
        self.records: list[dict[str, Any]] = []
        self.inputs: dict[str, Any] = {}
        self.leads = True

    @property
    def validations(self) -> list[dict[str, Any]]:
        """{step, ...figures} of all runs."""
        return [{"step": record["step"], **record["val"]} for record in self.records if "val" in record]

    def open(self, team: Team) -> dict[str, Any] | None:
        """The state of an interrupted run, if there is one. One that other code wrote is gone on from, which is told.
        UserError for a state of another task, other inputs or settings, and files that are something else."""
        self.leads = team.leads
        key = self.key_of(team.count)
        self.inputs = dict(key.inputs)
        check_work(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STATE_FILE
        state = _read(path) if path.exists() else None
        if state is not None:
            self._compare(key, state["identity"])
            self.records = state["records"]
        if self.leads:
            (self.folder / LOG_FILE).write_text("".join(map(json_line, self.records)))
        return state

    def losses(self, step: int, parts: dict[str, float], rate: float, minutes: float) -> None:
        """See `training.loop.Book`."""
        values = {name: round(mean, 6) for name, mean in parts.items()}
        self._add({"step": step, "rate": float(f"{rate:.4g}"), "losses": values}, minutes)

    def validation(self, step: int, figures: dict[str, float], minutes: float) -> None:
        """See `training.loop.Book`."""
        self._add({"step": step, "val": figures}, minutes)

    def keep(self, state: dict[str, Any]) -> None:
        """See `training.loop.Book`."""
        write_state({"identity": self.inputs, **state, "records": self.records}, self.folder / STATE_FILE)

    def _add(self, record: dict[str, Any], minutes: float) -> None:
        self.records.append({**record, "minutes": round(minutes, 2)})
        if self.leads:
            with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json_line(self.records[-1]))

    def _compare(self, key: Key, before: Any) -> None:
        if not isinstance(before, dict) or before.get("schema") != key.inputs["schema"]:
            what = "holds an unfinished run of another version of hmrcompress, whose states are made otherwise"
            raise UserError(what, self.folder, "Finish it with that version, or remove the folder")
        if other := key.changed_beside_code(before):
            raise UserError(
                f"holds an unfinished run with other settings ({listed(sorted(other))})",
                self.folder,
                "Give the settings it began with, remove the folder, or choose another --out",
            )
        if key.changed(before) and self.leads:
            tell(OTHER_CODE, self.folder)


def _read(path: Path, **options: Any) -> dict[str, Any]:
    """A state as it was saved. UserError where the file is something else, or damaged."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", **options)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"not the state of a training ({type(error).__name__})", path, "Remove the folder") from error
    if not isinstance(state, dict) or not {"identity", "step", "records"} <= set(state):
        raise UserError("not the state of a training", path, "Remove the folder")
    return state
