"""The stage `finetune` of a recipe: one training after the other, each on what the one before wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hmrcompress.api import finetune as tuning
from hmrcompress.api import finetune_decoder as decoder_tuning
from hmrcompress.api import opening
from hmrcompress.api.decoder_data import TRAIN, validated_on
from hmrcompress.body.model import BodyModel
from hmrcompress.data.masks import masks_sha256
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.outputs import OutputRule
from hmrcompress.models.files.folder import KIND
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.recipe.chosen import heal_loop, heal_settings
from hmrcompress.recipe.schema import Finetune
from hmrcompress.records import CropSize
from hmrcompress.runtime import Progress
from hmrcompress.starter.data.captured import training_files
from hmrcompress.training.motions import motion_folder


def training_contents(
    settings: Finetune, masks: str, body: BodyModel, size: CropSize, progress: Progress
) -> dict[str, Any]:
    """Hashes of the data, masks and motions that the trainings of a network that takes crops of that size read: {data,
    validation, motions}. Of crops that are
    rendered for it there is none: body and code tell what they are. Raises UserError where something is missing."""
    source = opening.open_masks(masks)

    def contents(data: str, split: str) -> list[str]:
        if data in (TRAIN, "starter"):
            return [TRAIN, source.name]
        crops = opening.open_data(data, body=body, split=split, size=size, progress=progress)
        frames = crops.stretches()
        return [crops.contents_sha256(frames), masks_sha256(source, crops, frames)]

    folder = motion_folder(settings.motions)
    motions = () if folder is None else training_files(folder).files
    held = validated_on(settings.data, settings.val)
    return {
        "data": contents(settings.data, "train"),
        "validation": None if held is None else contents(str(held), "dev"),
        "motions": [sha256_file(file) for file in motions],
    }


def train_stages(
    checkpoint: Checkpoint,
    settings: Finetune,
    out: Path,
    *,
    masks: str,
    body: BodyModel,
    device: str,
    batch_size: int,
    seed: int,
    rule: OutputRule,
    progress: Progress,
) -> dict[str, Any]:
    """Trains a model as `settings` say and writes the last result to `out`; those in between lie beside it meanwhile.

    Gives the figures of the trainings by stage: {finetune: {stage: …}}. Raises UserError, also where
    `max_minutes` ended one, which the same call then goes on with.
    """
    model: Checkpoint | Path = checkpoint
    figures: dict[str, Any] = {}
    between: list[Path] = []
    common: dict[str, Any] = {
        "validation": settings.val,
        "masks": masks,
        "body": body,
        "device": device,
        "workers": settings.workers,
        "progress": progress,
    }
    for number, stage in enumerate(settings.stages, start=1):
        common["overwrite"] = rule.fresh()
        target = out if number == len(settings.stages) else out.with_name(f"{out.name}-{stage}")
        if stage == "heal":
            done: Any = tuning.heal(
                model,
                target,
                settings.data,
                images=settings.images,
                batch_size=batch_size,
                settings=heal_settings(settings, dtype=torch.float32, seed=seed),
                loop=heal_loop(settings, settings.max_minutes),
                **common,
            )
        else:
            done = decoder_tuning.fit_decoder(
                model,
                target,
                settings.data,
                stage=stage,
                motions=settings.motions,
                preset=settings.preset,
                objective=settings.decoder,
                clips=settings.clips,
                clip_frames=settings.clip_frames,
                readout=settings.readout,
                rate=settings.rate,
                steps=settings.steps,
                max_minutes=settings.max_minutes,
                seed=seed,
                **common,
            )
        if done.folder is None:
            raise UserError(f"{stage}: the time was over before the training was", "finetune", "Run with --resume")
        figures[stage] = done.to_json()
        between += [] if target == out else [target]
        model = target
    for folder in between:
        rule.remove_folder(folder, KIND)
    return {"finetune": figures}
