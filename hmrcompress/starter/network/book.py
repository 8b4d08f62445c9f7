"""State, log and snapshots of a training of the starter network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.safetensors_file import write_safetensors
from hmrcompress.models.network import HMR2
from hmrcompress.starter.network.log import KIND as LOG
from hmrcompress.starter.network.log import LOG_FILE, Log
from hmrcompress.starter.network.task import StarterFit, parts_of
from hmrcompress.training.book import STATE_FILE, write_state
from hmrcompress.training.distributed import Team

SNAPSHOT = "snapshot"


class StarterBook:
    """The `Book` of a run in the folder `out`, where the log goes on from that of what the run began with.

    inputs: what the result depends on, kept with the state. snapshot: where the averaged weights are written at every
    validation (.safetensors, with the log beside them as .jsonl), by the rule `outputs`.
    """

    def __init__(
        self,
        out: Path,
        fit: StarterFit,
        inputs: Mapping[str, Any],
        *,
        snapshot: Path | None = None,
        outputs: OutputRule | None = None,
    ) -> None:
        self.out, self.fit, self.inputs = out, fit, dict(inputs)
        self.snapshot, self.outputs = snapshot, outputs or OutputRule()
        self.validations: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {}
        self.leads = True

    def open(self, team: Team) -> dict[str, Any] | None:
        """The state of an earlier run. Raises UserError if it was another network or seed."""
        self.leads = team.leads
        path, fit = self.out / STATE_FILE, self.fit
        if not path.exists():
            return None
        state = torch.load(path, weights_only=True, map_location=fit.device)
        if state["config"] != fit.recipe.config.to_dict() or state["seed"] != fit.seed:
            raise UserError("made with another network or seed", path, "Choose another --out, or the same settings")
        parts = parts_of(fit.network, fit.dense)
        for name, module in parts:
            module.load_state_dict(state[name])
        named = [f"{part}.{name}" for part, module in parts for name, _ in module.named_parameters()]
        fit.before = state["before"]
        return {
            "step": state["seen"],
            "minutes": 0.0,  # those of this run alone are counted
            "parameters": {name: state[name.split(".", 1)[0]][name.split(".", 1)[1]] for name in named},
            "average": dict(zip(named, state["average"], strict=True)),
            "best": None,
            "optimisers": state["optimisers"],
        }

    def losses(self, step: int, parts: dict[str, float], rate: float, minutes: float) -> None:
        """See `training.loop.Book`; the rate is that of the step's last crop."""
        if self.leads:
            course, parts = self.fit.course, {name: value for name, value in parts.items() if name != "loss"}
            self._log().losses(step, course.stage(step - 1).name, parts, course.recipe.rate(step - 1), minutes)

    def validation(self, step: int, figures: dict[str, float], minutes: float) -> None:
        """See `training.loop.Book`."""
        self.validations.append({"step": step, **figures})
        if self.leads:
            self.last = self._log().validation(step, figures, minutes)
            if self.snapshot is not None:
                self._write_snapshot(self.snapshot, step)

    def keep(self, state: dict[str, Any]) -> None:
        """Everything that a later run needs."""
        fit = self.fit
        kept = {
            "seen": state["step"],
            "before": fit.before,
            "seed": fit.seed,
            "inputs": self.inputs,
            "config": fit.recipe.config.to_dict(),
            **{name: module.state_dict() for name, module in parts_of(fit.network, fit.dense)},
            "average": [*state["average"].values()],
            "optimisers": state["optimisers"],
        }
        write_state(kept, self.out / STATE_FILE)

    def _log(self) -> Log:
        return Log(self.out / LOG_FILE, self.fit.before)

    def _write_snapshot(self, path: Path, seen: int) -> None:
        """The weights as they are, in float16, from which a later run can begin anew, and the log beside them."""
        fit = self.fit
        notes = {"network": json.dumps(fit.recipe.config.to_dict()), "images": str(fit.before + seen)}
        state = fit.network.state_dict()
        half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        with self.outputs.file(path, SNAPSHOT) as temporary:
            write_safetensors(temporary, half, notes, seal=SNAPSHOT)
        with self.outputs.file(path.with_suffix(".jsonl"), LOG) as temporary:
            shutil.copyfile(self.out / LOG_FILE, temporary)


def averaged_state(network: HMR2, average: list[Tensor]) -> dict[str, Tensor]:
    """The state dict of a network with a moving average in place of its parameters; buffers stay.

    average holds the network's parameters in their order, then those of the dense read-out, which are left out.
    """
    names = [name for name, _ in network.named_parameters()]
    return network.state_dict() | dict(zip(names, average[: len(names)], strict=True))
