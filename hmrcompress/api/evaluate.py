"""`hc.evaluate` and the similarity of layers: how well a network does, compressed and not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from hmrcompress.api.opening import (
    Body,
    Data,
    Masks,
    Model,
    adaptive_network,
    body_for,
    load,
    on_device,
    open_data,
    open_masks,
    open_measure,
    probe_for,
    require_truth,
)
from hmrcompress.api.opening_decoder import temporal_decoder
from hmrcompress.api.running import batched, device_for, masks_of_exported, running
from hmrcompress.data.provenance import records_in
from hmrcompress.errors import UserError
from hmrcompress.evaluation.decoded import SequenceSettings
from hmrcompress.evaluation.evaluate import Evaluation, stages_of, stages_of_exported
from hmrcompress.evaluation.evaluate import evaluate as evaluate_stages
from hmrcompress.evaluation.similarity import layer_similarity as similarity_of_layers
from hmrcompress.exporting.opened import ExportedNetwork
from hmrcompress.io.together import own_device
from hmrcompress.metrics.points import Protocol
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.runtime import Progress, no_progress, pick_device


def evaluate(
    model: Model,
    data: Data = "starter:val",
    *,
    against: Model | None = None,
    masks: Masks = "data",
    protocol: str | Protocol | None = None,
    regressor: Path | str | None = None,
    body: Body = "starter",
    limit: int | None = None,
    frames_per_clip: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    path: RunPath | None = None,
    sequences: SequenceSettings | None = None,
    buckets: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Evaluation:
    """Scores a model beside the mean pose, and beside `against` where given. See `evaluation.evaluate`.

    A compressed model is scored with merged layers, and with merged tokens too where its plan merges them. The network
    as it was before is the stage `baseline`. A model that holds a temporal decoder is scored with it too; `sequences`
    says how clips are decoded, on every how manieth frame the network runs, and which filters to measure. `buckets`
    adds the stage `adaptive_tokens`: as many of the numbers of tokens as each crop's person needs. `protocol`, by
    default that of the data, may need a `regressor`, and a folder of bodies; see `open_measure`. `path` says how
    the model (not `against`) is run. `dtype`, `path`, `buckets` and strides that are not given are those that the
    model's plan says (`api.running`). An exported network is the stage `exported`, beside `against`. Raises
    UserError, also where the model was not made from `against`.
    """
    checkpoint = load(model, seed=seed, exported=True)
    require_truth(checkpoint)
    surface, where, source = body_for(checkpoint, body), device_for(checkpoint, own_device(device)), open_masks(masks)
    exported = checkpoint.exported
    if exported is not None:
        source = masks_of_exported(checkpoint, source)
    probe = probe_for(checkpoint, source) if checkpoint.tokens and exported is None else None
    reference = None if against is None else on_device(_original(checkpoint, load(against, seed=seed)).network, where)
    decoder = temporal_decoder(checkpoint)
    crops = open_data(data, body=surface, size=checkpoint.config.crop, progress=progress)
    measure = open_measure(protocol, crops, body, surface, regressor=regressor, device=where)
    strides = sequences.strides if sequences is not None else ()
    run = running(
        checkpoint, where, dtype=dtype, path=path, buckets=buckets, stride=strides[0] if strides else None, masks=source
    )
    if not strides and (sequences is not None or run.stride > 1):
        sequences = replace(sequences or SequenceSettings(), strides=(run.stride,))
    dtype, path, buckets = run.dtype, batched(run.path, batch_size), run.buckets
    if exported is not None:
        ready, (rows, columns) = cast(ExportedNetwork, exported.to(where)), checkpoint.config.grid
        stages = stages_of_exported(ready, ready.mean, checkpoint.plan, tokens=rows * columns, against=reference)
    else:
        network = on_device(checkpoint.network, where)
        stages = stages_of(network, checkpoint.plan, against=reference, dtype=dtype, probe=probe, path=path)
    if buckets is not None:
        adaptive = adaptive_network(checkpoint, network, source, buckets, path=path, dtype=dtype)
        stages = stages.with_adaptive(adaptive, dtype=path.left_to_autocast(dtype))
    return evaluate_stages(
        stages,
        crops,
        body=on_device(surface, where),
        measure=measure,
        masks=source,
        limit=limit,
        frames_per_clip=frames_per_clip,
        batch_size=batch_size,
        plan=checkpoint.plan,
        trained_on=list(records_in(checkpoint.source)),
        decoder=None if decoder is None else on_device(decoder, where),
        sequences=sequences,
        progress=progress,
    )


def _original(checkpoint: Checkpoint, against: Checkpoint) -> Checkpoint:
    """`against`, if it is what a model was made from, by its hash or that of the file it was converted from, and opened
    with the same numbers of heads and the same grid. UserError for another network: the difference between the two
    would say nothing of what compressing did."""
    planned = checkpoint.reference if checkpoint.plan is None else checkpoint.plan.checkpoint
    recorded = checkpoint.source.get("checkpoint")
    planned = planned or checkpoint.reference  # the plan of a folder names what the folder was made from
    made_from = str(recorded.get("sha256")) if checkpoint.plan and isinstance(recorded, dict) else planned.sha256
    if made_from in (against.sha256, against.source.get("sha256")):
        mine, theirs = (each.config.whole(1).to_dict() for each in (checkpoint, against))
        if odd := next((name for name in mine if mine[name] != theirs.get(name)), None):
            raise UserError(
                f"has {odd} {theirs.get(odd)} and {checkpoint.name} {mine[odd]}, so it was opened as another network",
                f"--against {against.name}",
                "Give what its file does not tell, as for the model; `hmrcompress convert` writes it down",
            )
        return against
    was = f"was made from another network ({made_from[:12]}…)" if checkpoint.plan else "was not compressed"
    fault = f"{checkpoint.name} {was}; this one is {against.sha256[:12]}…"
    raise UserError(fault, f"--against {against.name}", "Give the network that it was made from")


def layer_similarity(
    model: Model,
    data: Data = "starter:calib",
    *,
    frames: int = 256,
    batch_size: int = 32,
    body: Body = "starter",
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Progress = no_progress,
) -> np.ndarray:
    """CKA between the layers of a model, (L+1,L+1). See `evaluation.similarity`. Raises UserError."""
    checkpoint = load(model, seed=seed)
    network = on_device(checkpoint.network, pick_device(device))
    surface, size = body_for(checkpoint, body), checkpoint.config.crop
    crops = open_data(data, body=surface, split="calib", size=size, progress=progress)
    return similarity_of_layers(network, crops, frames=frames, batch_size=batch_size, dtype=dtype, progress=progress)
