"""What `hmrcompress finetune` does to a model: heals it, or fits its saliency probe, and writes the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import MaskSource
from hmrcompress.data.provenance import KEY
from hmrcompress.errors import UserError
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import real
from hmrcompress.io.work import remove_work
from hmrcompress.models.files.folder import KIND, Folder, checkpoint_record, read_model_folder, write_model_folder
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.models.probe import REACH, SaliencyProbe
from hmrcompress.plan import Plan
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.training.book import check_work
from hmrcompress.training.heal import Healing, HealSettings, Pair, Validation
from hmrcompress.training.loop import LoopSettings, Trained, train
from hmrcompress.training.probe_fit import ProbeFit, fit_probe
from hmrcompress.training.streams import Crops, Stream

VALIDATION_FRAMES = 256
PROBE_FRAMES = 2048


@dataclass(frozen=True)
class Healed:
    """How healing ended. folder: None where the run was interrupted by its time limit; layers were adapted (numbers of
    the compressed network); trained: how many numbers learned; images: crops seen in all runs."""

    folder: Folder | None
    run: Trained
    images: int
    layers: list[int]
    trained: int
    frames: int

    def to_json(self) -> dict[str, Any]:
        """{heal: {images, steps, finished, layers, trained_parameters, n_frames, before, after, validations}}."""
        validations = self.run.validations
        figures = {
            "images": self.images,
            "steps": self.run.steps,
            "finished": self.run.finished,
            "layers": self.layers,
            "trained_parameters": self.trained,
            "n_frames": self.frames,
            "before": _figures(validations[0]),
            "after": _figures(validations[-1]),
            "validations": validations,
        }
        return {"heal": figures}


def work_folder(out: Path) -> Path:
    """Where a run that writes `out` keeps its state: beside it, under a name that nobody else uses."""
    out = real(out)
    return out.with_name(f"{out.name}.hmrcompress-training")


def check_out(out: Path, outputs: OutputRule) -> None:
    """UserError where a model could not be written to `out` in the end."""
    outputs.check_folder(out, KIND)
    check_work(work_folder(out))


def plan_to_heal(checkpoint: Checkpoint) -> Plan:
    """The plan that made a model. UserError where nothing was merged in it."""
    if checkpoint.plan is None:
        fault = "nothing was merged in this model, so there is nothing to heal"
        raise UserError(fault, checkpoint.name, "`hmrcompress merge` makes one")
    return checkpoint.plan


def check_healable(checkpoint: Checkpoint, teacher: Checkpoint) -> None:
    """UserError where nothing was merged in the model, or where the teacher has other sizes than it."""
    plan_to_heal(checkpoint)
    if teacher.config.whole(1) != checkpoint.config.whole(1):
        raise UserError(f"has other sizes than {checkpoint.name}", teacher.name, "Give the network it was made from")


def heal(
    checkpoint: Checkpoint,
    teacher: Checkpoint,
    networks: tuple[HMR2, HMR2],
    stream: Stream,
    validation: tuple[CropSet, np.ndarray],
    masks: MaskSource,
    out: Path,
    *,
    body: BodyModel,
    batch_size: int,
    probe: SaliencyProbe | None = None,
    settings: HealSettings | None = None,
    loop: LoopSettings,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Healed:
    """Heals a compressed model and writes it to `out`; goes on where an interrupted run left its state beside `out`.

    networks: those of `checkpoint` and `teacher` where the computing is to happen, as `body` is. validation: crops and
    the frames of them to validate on. probe: finds the person where `masks` are `self`. A probe that the model holds
    stays valid: what it reads is not trained. Raises UserError (see `check_healable`, `check_out`, `loop.train`).
    """
    check_healable(checkpoint, teacher)
    outputs = OutputRule.of(overwrite, checkpoint, teacher)
    check_out(out, outputs)
    plan = plan_to_heal(checkpoint)
    crops, indices = validation
    indices = evenly(indices, VALIDATION_FRAMES)
    student, taught = networks
    measure = Validation(crops, indices, masks, taught, body)
    task = Healing(
        Pair(student, taught, plan.kept_groups, plan.tokens, probe, kept_probe=checkpoint.probe),
        stream,
        measure,
        body,
        settings or HealSettings(),
    )
    work = work_folder(out)
    run = train(task, loop, work, progress=progress, report=report)
    images = run.steps * batch_size
    healed = Healed(None, run, images, task.layers, task.trained, len(indices))
    if not run.finished:
        return healed
    origin = {"model": checkpoint.sha256, "teacher": {"name": teacher.name, "sha256": teacher.sha256}}
    about = {
        **origin,
        "data": stream.name,
        **({KEY: stream.seen} if stream.seen else {}),
        "images": images,
        **{name: value for name, value in task.identity.items() if name in ("rank", "full", "with_head", "layers")},
        "masks": masks.name,
        "validation": {"data": f"{crops.name}:{crops.split}".rstrip(":"), "frames": len(indices)},
        "before": _figures(run.validations[0]),
        "after": _figures(run.validations[-1]),
    }
    folder = write_model_folder(
        out,
        task.state(),
        checkpoint.config,
        plan=plan,
        provenance={**checkpoint.source, "command": "finetune", "heal": about},
        body=checkpoint.body,
        probe=checkpoint.probe,
        decoder=None,  # a temporal decoder was trained on the features of the network before it was healed
        overwrite=outputs,
    )
    remove_work(work)
    return replace(healed, folder=folder)


def add_probe(
    checkpoint: Checkpoint,
    network: HMR2,
    stream: Stream,
    validation: tuple[CropSet, np.ndarray],
    masks: MaskSource,
    out: Path,
    *,
    frames: int = PROBE_FRAMES,
    layer: int | None = None,
    batch_size: int = 32,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> tuple[Folder, ProbeFit]:
    """Fits a saliency probe for a model and writes the model with it to `out`; the weights stay as they are.

    network: that of `checkpoint`, where the computing is to happen. frames: crops of the stream to fit on. layer: see
    `fit_probe`. validation: crops and the frames of them to judge it on. Raises UserError (see `fit_probe`,
    `check_out`).
    """
    outputs = OutputRule.of(overwrite, checkpoint)
    check_out(out, outputs)
    crops, indices = validation
    judged = crops.batches(evenly(indices, VALIDATION_FRAMES), batch_size, masks, truth=False)
    fit = fit_probe(
        network,
        (stream.batch(step) for step in range(-(-frames // batch_size))),
        (Crops(batch.images, batch.person_mask, batch.condition) for batch in judged),
        frames=frames,
        layer=layer,
        progress=progress,
    )
    about = {
        "fitted_on": stream.name,
        **({KEY: stream.seen} if stream.seen else {}),
        "stream": stream.identity,
        "validation": f"{crops.name}:{crops.split}".rstrip(":"),
        **fit.to_json(),
    }
    source = checkpoint.source or checkpoint_record(checkpoint.reference, name=checkpoint.name, command="finetune")
    folder = write_model_folder(
        out,
        stored_state(checkpoint),
        checkpoint.config,
        plan=checkpoint.plan,
        provenance={**source, "probe": about},
        body=checkpoint.body,
        probe=fit.probe,
        decoder=checkpoint.decoder,
        overwrite=outputs,
    )
    remove_work(work_folder(out))
    return folder, fit


def probe_macs(network: HMR2) -> int:
    """Multiply-accumulates of a saliency probe for one crop: a product with every token for each of its reaches."""
    rows, columns = network.config.grid
    return rows * columns * network.config.dim * len(REACH)


def stored_state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The weights in the dtype in which a model folder stores them, so that its hash stays the same."""
    if checkpoint.path is not None and checkpoint.path.is_dir():
        return read_model_folder(checkpoint.path, verify=False).state
    return checkpoint.state()


def _figures(validation: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in validation.items() if name != "step"}
