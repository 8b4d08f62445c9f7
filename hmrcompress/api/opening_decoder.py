"""From a model to its temporal decoder, and to what runs after its network in a bench of clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from hmrcompress.api.opening import on_device
from hmrcompress.body.model import BodyModel
from hmrcompress.decoder.config import PRESETS
from hmrcompress.decoder.files import build_decoder
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import UserError
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.pipeline.tracks import STEPS_A_SECOND
from hmrcompress.timing.pipeline_bench import Pipeline, PipelineSettings


def temporal_decoder(checkpoint: Checkpoint) -> TemporalDecoder | None:
    """The temporal decoder of a model, float32 on the CPU, None where it holds none. UserError where it was made for
    other features than those of the model's network."""
    if checkpoint.decoder is None:
        return None
    decoder = build_decoder(checkpoint.decoder.config, checkpoint.decoder.tensors, checkpoint.name)
    if decoder.config.feature_dim != checkpoint.config.head_width:
        fault = (
            f"its decoder reads {decoder.config.feature_dim} features, its network has {checkpoint.config.head_width}"
        )
        raise UserError(fault, checkpoint.name)
    return decoder


def steps_a_second(checkpoint: Checkpoint) -> float:
    """Frames a second that a model's decoder was trained at; `STEPS_A_SECOND` where the model does not say."""
    trained = checkpoint.source.get("decoder")
    found = trained.get("fps") if isinstance(trained, Mapping) else None
    return float(found) if isinstance(found, (int, float)) and 1 <= found <= 1000 else STEPS_A_SECOND


def decoder_for(checkpoint: Checkpoint) -> TemporalDecoder:
    """The same. UserError where the model holds none."""
    decoder = temporal_decoder(checkpoint)
    if decoder is None:
        raise UserError(
            "holds no temporal decoder",
            checkpoint.name,
            "Train one: hmrcompress finetune MODEL --stage all -o DIR",
        )
    return decoder


def random_decoder(preset: str, checkpoint: Checkpoint, *, seed: int = 0) -> TemporalDecoder:
    """A decoder of a preset's sizes for the features of a model, with seeded random weights: for speed only. UserError
    for another name."""
    if preset not in PRESETS:
        raise UserError(f"got {preset!r}, expected one of {', '.join(PRESETS)}", "decoder")
    sizes = replace(PRESETS[preset], feature_dim=checkpoint.config.head_width)
    return TemporalDecoder(sizes, seed=seed).eval().requires_grad_(False)


def pipeline_of(
    checkpoint: Checkpoint,
    body: BodyModel,
    device: torch.device,
    *,
    decoder: str | None = None,
    clips: PipelineSettings | None = None,
    seed: int = 0,
) -> Pipeline | None:
    """What follows a model's network in a bench of whole clips, on `device`: its temporal decoder, or one of random
    weights (`decoder`: its preset). None where there is neither. Raises UserError."""
    found = temporal_decoder(checkpoint) if decoder is None else random_decoder(decoder, checkpoint, seed=seed)
    if found is None:
        return None
    name = checkpoint.name if decoder is None else f"{decoder}, random weights"
    codec = on_device(PoseCodec(body), device)
    return Pipeline(on_device(found, device), codec, name, clips or PipelineSettings())
