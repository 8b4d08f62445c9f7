"""`hmrcompress.heal` and `hmrcompress.fit_probe`: from names and paths to a healed model, or one that masks by itself.
(`hmrcompress.extract_features` and `hmrcompress.fit_decoder` are in `decoder_tuning`.)

Strings mean what they mean in `hmrcompress.api`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.api.finetune_decoder import extract_features, fit_decoder
from hmrcompress.api.opening import (
    STARTER_MODEL,
    Body,
    Data,
    Masks,
    Model,
    body_for,
    load,
    on_device,
    open_data,
    open_masks,
    probe_for,
)
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import MaskSource
from hmrcompress.errors import UserError
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.together import process_of
from hmrcompress.models.files.folder import Folder
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.records import CropSize
from hmrcompress.runtime import Progress, no_progress, pick_device
from hmrcompress.starter.data.stream import ShardStream
from hmrcompress.training.book import steps_done
from hmrcompress.training.finetune import (
    PROBE_FRAMES,
    Healed,
    add_probe,
    check_healable,
    check_out,
    plan_to_heal,
    work_folder,
)
from hmrcompress.training.finetune import heal as heal_checkpoint
from hmrcompress.training.heal import HealSettings
from hmrcompress.training.loop import LoopSettings
from hmrcompress.training.probe_fit import ProbeFit
from hmrcompress.training.streams import CropStream, Stream, held_out

__all__ = ["TRAIN", "Healed", "extract_features", "find_teacher", "fit_decoder", "fit_probe", "heal"]

TRAIN = "starter:train"


def heal(
    model: Model,
    out: Path | str,
    data: Data = TRAIN,
    *,
    teacher: Model | None = None,
    validation: Data | None = None,
    masks: Masks = "data",
    images: int | None = 200_000,
    batch_size: int = 32,
    settings: HealSettings | None = None,
    loop: LoopSettings | None = None,
    body: Body = "starter",
    device: str = "auto",
    limit: int | None = None,
    workers: int = 1,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Healed:
    """Trains a compressed model to predict what its teacher predicts, and writes the healed model to `out`. No labels.

    teacher: by default the network that the model was made from, if it can be found (`find_teacher`). images: crops to
    see (rounded up to whole batches), which sets `loop.steps`; None: train for `loop.max_minutes`. data:
    `starter:train` (fresh crops, rendered by `workers` processes) or any crops, of which at most `limit` frames are
    used. validation: by default `starter:dev`, or a part of `data` that is then not trained on. An interrupted run goes
    on when it is called again. See `training.heal`, `training.loop`. Raises UserError.
    """
    _alone("heal")
    settings, out = settings or HealSettings(), Path(out)
    checkpoint, source = load(model, seed=settings.seed), open_masks(masks)
    taught = find_teacher(checkpoint, seed=settings.seed) if teacher is None else load(teacher, seed=settings.seed)
    check_healable(checkpoint, taught)
    outputs = OutputRule.of(overwrite, checkpoint, taught, data, validation)
    check_out(out, outputs)
    probe, surface, where = probe_for(checkpoint, source), body_for(checkpoint, body), pick_device(device)
    steps = None if images is None else -(-images // batch_size)
    with crops_to_train_on(
        data,
        validation,
        source,
        surface,
        work_folder(out),
        size=checkpoint.config.crop,
        batch_size=batch_size,
        steps=steps,
        seed=settings.seed,
        workers=workers,
        limit=limit,
        progress=progress,
    ) as (stream, measured_on):
        return heal_checkpoint(
            checkpoint,
            taught,
            (on_device(checkpoint.network, where), on_device(taught.network, where)),
            stream,
            measured_on,
            source,
            out,
            body=on_device(surface, where),
            batch_size=batch_size,
            probe=probe,
            settings=settings,
            loop=replace(loop or LoopSettings(steps), steps=steps),
            overwrite=outputs,
            progress=progress,
            report=report,
        )


def _alone(stage: str) -> None:
    """UserError where several processes were launched together: each would do all of this, and write it."""
    if process_of()[1] > 1:
        fault = f"trains in one process, and there are {process_of()[1]}"
        raise UserError(fault, f"--stage {stage}", "Start it without torchrun (vae and decoder share work)")


@contextmanager
def crops_to_train_on(
    data: Data,
    validation: Data | None,
    masks: MaskSource,
    body: BodyModel,
    work: Path,
    *,
    size: CropSize,
    batch_size: int,
    steps: int | None,
    seed: int,
    workers: int,
    limit: int | None,
    progress: Progress,
) -> Iterator[tuple[Stream, tuple[CropSet, np.ndarray]]]:
    """The training crops, and those to validate on with their frames, all of that size. `work` is where an unfinished
    run lies."""
    fresh = not isinstance(data, CropSet) and str(data) in (TRAIN, "starter")
    given = "starter:dev" if validation is None and fresh else validation
    held = None if given is None else open_data(given, body=body, split="dev", size=size, progress=progress)
    if not fresh:
        crops = open_data(data, body=body, split="train", size=size, progress=progress)
        frames, rest = held_out(crops) if held is None else (crops.stretches(), np.empty(0, np.int64))
        frames = frames if limit is None else evenly(frames, limit)
        stream = CropStream(crops, frames, masks, batch_size=batch_size, seed=seed)
        yield stream, (crops, rest) if held is None else (held, held.stretches())
        return
    if limit is not None:
        raise UserError(f"{TRAIN} has no end that could be limited", "--limit", "Use --images")
    assert held is not None
    images = None if steps is None else steps * batch_size
    made = work / "shards"
    with ShardStream(
        made, masks, batch_size=batch_size, seed=seed, images=images, done=steps_done(work), workers=workers, size=size
    ) as rendered:
        yield rendered, (held, held.stretches())


def find_teacher(checkpoint: Checkpoint, *, seed: int = 0) -> Checkpoint:
    """The network that a compressed model was made from: the starter network, seeded random weights, or a file or
    folder of the recorded name beside the model or in the current folder. Its hash has to be the recorded one.

    Raises UserError asking for --teacher where there is none.
    """
    made_for = plan_to_heal(checkpoint).checkpoint
    if made_for is None:
        raise UserError("its plan does not say which network it was made from", checkpoint.name, "Give --teacher")
    wanted, name = made_for.sha256, str(checkpoint.source.get("name", ""))
    candidates: list[str | Path] = ["starter"] if STARTER_MODEL.is_dir() else []
    if name.startswith("random:"):
        candidates.append(name)
    elif name:
        beside = [] if checkpoint.path is None else [checkpoint.path.absolute().parent]
        candidates += [folder / name for folder in (*beside, Path.cwd()) if (folder / name).exists()]
    for candidate in candidates:
        found = load(candidate, seed=seed)
        if found.sha256 == wanted:
            return found
    raise UserError(
        f"was made from {name or 'a network'} ({wanted[:12]}…), which is not here", checkpoint.name, "Give --teacher"
    )


def fit_probe(
    model: Model,
    out: Path | str,
    data: Data = TRAIN,
    *,
    validation: Data | None = None,
    masks: Masks = "data",
    images: int = PROBE_FRAMES,
    layer: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    body: Body = "starter",
    device: str = "auto",
    workers: int = 1,
    seed: int = 0,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> tuple[Folder, ProbeFit]:
    """Fits the saliency probe of a model, so that `--masks self` needs no masks, and writes the model with it to `out`.

    It reads the tokens of `layer` (None: the first of the lowest five that tells the person well enough). Labels are
    the person masks of the data, or without any (`masks` none) what the head attends to. `images` crops are
    drawn from `data`, of which at most `limit` frames are used; they should show many people and places, so
    `starter:train` serves better than a few clips. The weights stay. See `training.probe_fit`. Raises UserError.
    """
    _alone("probe")
    checkpoint, source, out = load(model, seed=seed), open_masks(masks), Path(out)
    if source.name == "self":
        raise UserError("a probe cannot be fitted on its own masks", "--masks self", "Try data, files:DIR or none")
    outputs = OutputRule.of(overwrite, checkpoint, data, validation)
    check_out(out, outputs)
    network = on_device(checkpoint.network, pick_device(device))
    with crops_to_train_on(
        data,
        validation,
        source,
        body_for(checkpoint, body),
        work_folder(out),
        size=checkpoint.config.crop,
        batch_size=batch_size,
        steps=-(-images // batch_size),
        seed=seed,
        workers=workers,
        limit=limit,
        progress=progress,
    ) as (stream, measured_on):
        return add_probe(
            checkpoint,
            network,
            stream,
            measured_on,
            source,
            out,
            frames=images,
            layer=layer,
            batch_size=batch_size,
            overwrite=outputs,
            progress=progress,
        )
