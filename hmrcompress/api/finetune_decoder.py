"""`hmrcompress.extract_features` and `.fit_decoder`: from names and paths to a model with a temporal decoder.

Strings mean what they mean in `hmrcompress.api`. Launched by `accelerate launch` or `torchrun`, several processes share
the work (see `training.distributed`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hmrcompress.api.decoder_data import TRAIN, clips_of, extract_for, features_of, held_motions, said_of_validation
from hmrcompress.api.opening import Body, Data, Masks, Model, body_for, load, on_device, open_masks
from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.data.provenance import KEY
from hmrcompress.decoder.config import PRESETS, DecoderConfig
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import UserError
from hmrcompress.io.home import cache_home
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.together import own_device, process_of
from hmrcompress.runtime import Progress, no_progress, pick_device
from hmrcompress.starter.data.captured import HELD_OUT
from hmrcompress.starter.motion import procedural
from hmrcompress.starter.scene.world import CLIP_FRAMES
from hmrcompress.training.book import check_work
from hmrcompress.training.decoder_fit import DecoderSettings
from hmrcompress.training.features import CropClips, FeatureSet
from hmrcompress.training.finetune import check_out, work_folder
from hmrcompress.training.finetune_decoder import (
    DECODER,
    STAGES,
    VAE,
    Fitted,
    decoder_over_vae,
    fit_denoiser,
    fit_vae,
    write_decoder,
)
from hmrcompress.training.loop import LoopSettings
from hmrcompress.training.motions import MotionBank, MotionSettings, motion_files
from hmrcompress.training.vae_fit import VAESettings

CLIP_WINDOWS = 1.2
"""Length of the clips rendered for this, in windows: many people and places teach more than long stretches of a few."""
STEPS = 2000
"""Of the training of each part."""
VAE_RATE, RATE = 1e-3, 1e-4
"""Highest learning rates. The denoiser's is the paper's; at 3e-4 held-out clips were worse off from the start."""


def extract_features(
    model: Model,
    data: Data = TRAIN,
    *,
    clips: int | None = None,
    clip_frames: int | None = None,
    masks: Masks = "data",
    batch_size: int = 32,
    body: Body = "starter",
    device: str = "auto",
    workers: int = 1,
    home: Path | None = None,
    progress: Progress = no_progress,
) -> FeatureSet:
    """Features of a model, layers and tokens merged, on the first `clips` clips of `data` (without a number, all).

    They are kept in `home`/features (`home`: by default the cache, where rendered splits are); what is there already is
    not computed again. `starter:train` is rendered by `workers` processes on the way, `clip_frames` (None: 243) frames
    of each clip. See `training.features`. Raises
    UserError.
    """
    checkpoint, source = load(model), open_masks(masks)
    surface, size = body_for(checkpoint, body), checkpoint.config.crop
    found = clips_of(data, source, surface, clip_frames or CLIP_FRAMES, workers, size, progress)
    return extract_for(
        checkpoint,
        source,
        found,
        list(found.clip_ids)[:clips],
        device=pick_device(own_device(device)),
        batch_size=batch_size,
        home=home or cache_home(),
        progress=progress,
    )


def fit_decoder(
    model: Model,
    out: Path | str,
    data: Data = TRAIN,
    *,
    stage: str = "all",
    motions: str = "starter",
    validation: Data | None = None,
    clips: int | None = None,
    clip_frames: int | None = None,
    masks: Masks = "data",
    preset: str = "starter",
    objective: str = "both",
    readout: bool | None = None,
    vae: Model | None = None,
    config: DecoderConfig | None = None,
    steps: int | None = None,
    max_minutes: float | None = None,
    rate: float | None = None,
    vae_settings: VAESettings | None = None,
    settings: DecoderSettings | None = None,
    batch_size: int = 32,
    body: Body = "starter",
    device: str = "auto",
    workers: int = 1,
    seed: int = 0,
    home: Path | None = None,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Fitted:
    """Trains a temporal decoder for a model and writes the model with it to `out`.

    stage: `vae` (the motion VAE, on `motions`: `starter` or `amass:DIR`, the latter beside the former), `decoder` (the
    denoiser over the VAE that the model holds, or that of the model `vae`, on features of the first `clips` clips of
    `data`), or `all`. clip_frames: frames of each clip where it is rendered for this (`starter:train`), by default
    CLIP_WINDOWS windows. Validation is on `validation`, by default `starter:dev`, or a part of `data` that is then not
    trained on; the denoiser that is kept is the one with the lowest MPJPE there. Sizes are those of `preset`, or
    `config`, or of a VAE that is there; objective and readout (None: as those sizes say): see `DecoderConfig`. steps
    and max_minutes (of each part), rate: see `loop.LoopSettings`; without either, STEPS steps. Features and motions are
    kept below `home`, by default the cache. An interrupted run goes on when it is called again. Raises UserError.
    """
    out, checkpoint, source = Path(out), load(model, seed=seed), open_masks(masks)
    if stage not in STAGES:
        raise UserError(f"got {stage!r}, expected one of {', '.join(STAGES)}", "--stage")
    if preset not in PRESETS:
        raise UserError(f"got {preset!r}, expected one of {', '.join(PRESETS)}", "finetune.preset")
    if vae is not None and VAE in STAGES[stage]:
        raise UserError(f"the stage {stage} trains one of its own", "--vae", "Give --stage decoder, or leave --vae out")
    outputs = OutputRule.of(overwrite, checkpoint, data, validation, vae)
    check_out(out, outputs)
    for part in STAGES[stage]:
        check_work(work_folder(out) / part)
    if checkpoint.config.num_joints != len(SMPL_JOINTS):
        raise UserError("predicts no whole bodies, which the temporal decoder is for", checkpoint.name)
    where, surface = pick_device(own_device(device)), body_for(checkpoint, body)
    codec = PoseCodec(on_device(surface, where)).to(where)
    changes: dict[str, Any] = {"objective": objective, "zero_snr": objective != "noise"}
    changes["feature_dim"] = checkpoint.config.head_width
    changes |= {} if readout is None else {"readout": readout}
    home = home or cache_home()
    steps = STEPS if steps is None and max_minutes is None else steps
    loop = LoopSettings(steps, max_minutes, rate=VAE_RATE if rate is None else rate)
    about: dict[str, Any] = {}
    if VAE in STAGES[stage]:
        decoder = TemporalDecoder(replace(config or PRESETS[preset], **changes), seed=seed).to(where)
    else:
        decoder = decoder_over_vae(checkpoint if vae is None else load(vae), changes, seed=seed).to(where)
    fitted = Fitted(None)
    if VAE in STAGES[stage]:
        true_motions = held_motions(data, validation, surface, progress)
        wanted, makers = MotionSettings(frames=round(1.5 * decoder.config.frames)), workers * (process_of()[0] == 0)
        files = motion_files(motions, wanted, held_out=HELD_OUT)
        with MotionBank(
            home / "motions", wanted, files, generate=procedural.generate, seed=seed, workers=makers
        ) as bank:
            run = fit_vae(
                decoder,
                codec,
                bank,
                true_motions,
                out,
                settings=replace(vae_settings or VAESettings(), batch_size=batch_size, seed=seed),
                loop=loop,
                progress=progress,
                report=_named(VAE, report),
            )
            about[VAE] = {"motions": motions, "validation": said_of_validation(data, validation), "bank": bank.identity}
        fitted = replace(fitted, runs={VAE: run})
        if not run.finished:
            return fitted
    if DECODER in STAGES[stage]:
        length = min(CLIP_FRAMES, math.ceil(CLIP_WINDOWS * decoder.config.frames))
        found = clips_of(data, source, surface, clip_frames or length, workers, checkpoint.config.crop, progress)
        extract = partial(
            extract_for, checkpoint, source, device=where, batch_size=batch_size, home=home, progress=progress
        )
        trained, held = features_of(
            extract, found, source, data, validation, clips, surface, checkpoint.config.crop, progress
        )
        about[DECODER] = {"data": found.name, "clips": len(trained), "masks": source.name, "objective": objective}
        about[DECODER] |= {"fps": found.fps, "validation": said_of_validation(data, validation)}
        if isinstance(found, CropClips):
            about[DECODER][KEY] = found.seen([clip.clip for clip in trained])
        run = fit_denoiser(
            decoder,
            codec,
            trained,
            held,
            out,
            settings=replace(settings or DecoderSettings(), batch_size=batch_size, seed=seed),
            loop=replace(loop, rate=RATE if rate is None else rate, keep="mpjpe_mm"),
            progress=progress,
            report=_named(DECODER, report),
        )
        fitted = replace(fitted, runs={**fitted.runs, DECODER: run})
        if not run.finished:
            return fitted
    return write_decoder(checkpoint, decoder, out, fitted, about, outputs)


def _named(part: str, report: Callable[[dict[str, Any]], None] | None) -> Callable[[dict[str, Any]], None] | None:
    return None if report is None else lambda record: report({**record, "part": part})
