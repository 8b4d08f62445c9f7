"""`hmrcompress.predict, profile`: from names and paths to bodies in pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from hmrcompress.api.opening import (
    Body,
    Masks,
    Model,
    adaptive_network,
    body_for,
    load,
    on_device,
    open_masks,
    probe_for,
    require_people,
)
from hmrcompress.api.opening_decoder import steps_a_second, temporal_decoder
from hmrcompress.api.running import batched, device_for, masks_of_exported, running
from hmrcompress.body.model import BodyModel
from hmrcompress.data.masks import SHIPPED, NoMasks
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import UserError, tell
from hmrcompress.io.outputs import OutputRule
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.metrics.pose import network_outputs
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.pipeline.box_sources import open_boxes
from hmrcompress.pipeline.boxes import BOX_SCALE, BoxSource
from hmrcompress.pipeline.frames import open_source
from hmrcompress.pipeline.predict import KIND, PredictSettings, Reader
from hmrcompress.pipeline.predict import predict as predict_pipeline
from hmrcompress.pipeline.profile import Profile
from hmrcompress.pipeline.profile import profile as profile_pipeline
from hmrcompress.pipeline.summary import Summary
from hmrcompress.runtime import Progress, no_progress, pick_device

STARTER_BODY = "hmrcompress-starter-body"
"""The body of networks trained in the starter world, whose camera places the root joint."""


def predict(
    model: Model,
    source: Path | str,
    out: Path | str,
    *,
    boxes: str | BoxSource = "full",
    box_scale: float = BOX_SCALE,
    masks: Masks = "auto",
    buckets: Sequence[int] | None = None,
    fps: float | None = None,
    settings: PredictSettings | None = None,
    body: Body = "starter",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    path: RunPath | None = None,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> Summary:
    """Bodies of the people in a picture, a folder of pictures or a video, written to the folder `out`: params.npz,
    overlay, track.glb. See `pipeline.predict`.

    boxes: `full`, `auto`, `onnx:FILE`, or a file (see `pipeline.box_sources`). masks: `auto` is the model's own
    saliency probe where it holds one, else the segmenter that the package carries. fps: of a folder that is a sequence.
    path: how the network is run; its batch size is that of `settings`. What is not given of dtype, path, buckets and
    stride is as the model's plan says (`api.running`). Raises UserError, also where something else is in `out`, unless
    `overwrite` (see `io.outputs`).
    """
    outputs = OutputRule.of(overwrite, model, source, boxes, masks, body)
    outputs.check_folder(out, KIND)
    settings = settings or PredictSettings()
    require_people(model)
    found, where = open_source(source, fps), pick_device(device)
    settings.check(found)
    every, cuda = settings.stride_detect, where.type == "cuda"
    people = open_boxes(boxes, scale=box_scale, every=every, cuda=cuda) if isinstance(boxes, str) else boxes
    checkpoint = load(model, seed=settings.seed, exported=True)
    where = device_for(checkpoint, device)
    reader, settings = open_reader(
        checkpoint, settings, masks, body, where, dtype, buckets, path, clips=found.fps is not None
    )
    return predict_pipeline(found, people, reader, Path(out), settings, overwrite=outputs, progress=progress)


def profile(
    model: Model,
    source: Path | str,
    *,
    boxes: str = "full",
    box_scale: float = BOX_SCALE,
    masks: Masks = "auto",
    buckets: Sequence[int] | None = None,
    fps: float | None = None,
    settings: PredictSettings | None = None,
    body: Body = "starter",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    path: RunPath | None = None,
    progress: Progress = no_progress,
) -> Profile:
    """Where the time of `predict` goes, stage by stage, run one after the other. See `pipeline.profile`. Arguments as
    of `predict`; nothing stays on disk. Raises UserError."""
    settings = settings or PredictSettings()
    require_people(model)
    found, where, every = open_source(source, fps), pick_device(device), settings.stride_detect
    settings.check(found)

    def people() -> BoxSource:
        return open_boxes(boxes, scale=box_scale, every=every, cuda=where.type == "cuda")

    opened = [people()]  # so that a wrong file is told before the model is opened
    checkpoint = load(model, seed=settings.seed, exported=True)
    where = device_for(checkpoint, device)
    reader, settings = open_reader(
        checkpoint, settings, masks, body, where, dtype, buckets, path, clips=found.fps is not None
    )
    return profile_pipeline(found, lambda: opened.pop() if opened else people(), reader, settings, progress=progress)


def open_reader(
    checkpoint: Checkpoint,
    settings: PredictSettings,
    masks: Masks,
    body: Body,
    device: torch.device,
    dtype: torch.dtype | None,
    buckets: Sequence[int] | None,
    path: RunPath | None,
    *,
    clips: bool,
) -> tuple[Reader, PredictSettings]:
    """The model as it is run, and the settings with its stride. Arguments as of `predict`; clips: whether frames follow
    each other, so that it may be run on some of them. Raises UserError."""
    known = None if masks == SHIPPED and checkpoint.probe is not None else open_masks(masks)
    run = running(
        checkpoint,
        device,
        dtype=dtype,
        path=path,
        buckets=buckets,
        stride=settings.stride,
        masks=known,
        clips=clips,
        only_if_faster=True,
    )
    reader = pipeline_reader(
        checkpoint,
        masks,
        body_for(checkpoint, body),
        str(device),
        dtype=run.dtype,
        buckets=run.buckets,
        path=batched(run.path, settings.batch_size),
    )
    return reader, replace(settings, stride=run.stride)


def pipeline_reader(
    checkpoint: Checkpoint,
    masks: Masks,
    body: BodyModel,
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    buckets: Sequence[int] | None = None,
    path: RunPath | None = None,
) -> Reader:
    """A model as the pipeline runs it. masks: `auto` is the model's saliency probe where it holds one and may be used,
    else the segmenter that the package carries, and none where the model has no use for them; `none` merges tokens
    without. buckets: adaptive tokens. path: how the network is run. Raises UserError."""
    require_people(checkpoint)
    where, tokens = device_for(checkpoint, device), checkpoint.tokens
    exported = checkpoint.exported
    if exported is not None:
        masks = masks_of_exported(checkpoint, open_masks(masks))
        tokens = tokens if masks.name != "none" else None
    elif masks == SHIPPED and buckets is None:
        masks = "none" if tokens is None else SHIPPED if checkpoint.probe is None else "self"
    source = open_masks(masks)
    if source.name != "none" and tokens is None and buckets is None and exported is None:
        tell(f"{checkpoint.name} merges no tokens, so that masks are not used", f"--masks {source.name}")
    if source.name.partition(":")[0] == "data":
        raise UserError(
            "pictures and videos come without masks", f"--masks {source.name}", "Try auto, self or files:DIR"
        )
    ready: nn.Module
    path = path or RunPath()
    network = checkpoint.network if exported is not None else on_device(checkpoint.network, where)
    if exported is not None:
        ready = exported.to(where)
    elif buckets is not None:
        ready = adaptive_network(checkpoint, network, source, buckets, path=path, dtype=dtype)
    else:
        merging = with_token_merging(network, tokens, probe_for(checkpoint, source) if tokens else None).eval()
        ready = path.prepare(merging, dtype)
    surface, decoder = on_device(body, where), temporal_decoder(checkpoint)
    return Reader(
        outputs=network_outputs(ready, dtype=path.left_to_autocast(dtype)),
        body=surface,
        masks=source if tokens is not None or buckets is not None else NoMasks(),
        device=where,
        decoder=None if decoder is None else on_device(decoder, where),
        codec=None if decoder is None else PoseCodec(surface),
        crop=checkpoint.config.crop,
        root_centred=checkpoint.body == STARTER_BODY,
        steps_a_second=steps_a_second(checkpoint),
    )
