"""`hmrcompress.load, search, merge, evaluate, export_onnx`: one call each, from names and paths to results.

Arguments are names and paths, or the objects that `hmrcompress.opening` makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.benching import bench, bench_adaptive
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.seen import KEY, record, records_in
from hmrcompress.errors import UserError
from hmrcompress.evaluation.decoded import SequenceSettings
from hmrcompress.evaluation.evaluate import Evaluation, stages_of
from hmrcompress.evaluation.evaluate import evaluate as evaluate_stages
from hmrcompress.evaluation.similarity import layer_similarity as similarity_of_layers
from hmrcompress.exports import export_decoder, export_onnx, parity_frames
from hmrcompress.io.keys import Key
from hmrcompress.io.outputs import OutputRule
from hmrcompress.live.patching import apply as apply_to_live
from hmrcompress.live.patching import person_mask, unapply
from hmrcompress.merging.fit import DEFAULT_FRAMES_PER_CLIP, fit_plan
from hmrcompress.merging.layers import FITTED
from hmrcompress.merging.merge import merge_checkpoint
from hmrcompress.metrics.points import STARTER24, Protocol
from hmrcompress.models.folder import KIND as MODEL
from hmrcompress.models.folder import Folder
from hmrcompress.models.fov import focal_lengths, load_fov
from hmrcompress.models.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.models.running import RunPath
from hmrcompress.opening import (
    STARTER_MODEL,
    Body,
    Data,
    Masks,
    Model,
    Module,
    adaptive_network,
    body_for,
    compressed_network,
    load,
    of_starter,
    on_device,
    open_body,
    open_data,
    open_masks,
    open_measure,
    open_plan,
    open_protocol,
    probe_for,
    protocol_for,
    require_truth,
)
from hmrcompress.opening_decoder import decoder_for, pipeline_of, temporal_decoder
from hmrcompress.plan import Plan
from hmrcompress.runtime import Progress, no_progress, pick_device
from hmrcompress.searching.journal import KIND as JOURNAL
from hmrcompress.searching.search import SearchResult, SearchSettings
from hmrcompress.searching.search import search as search_plan
from hmrcompress.searching.search import search_key as key_of_search

__all__ = [
    "Body", "Data", "Masks", "Model", "Module", "STARTER_MODEL", "adaptive_network", "apply", "bench",
    "bench_adaptive", "body_for", "compressed_network", "decoder_for", "evaluate", "export_decoder", "export_onnx",
    "focal_lengths", "frames_to_fit", "layer_similarity", "load", "load_fov", "merge", "of_starter", "on_device",
    "open_body", "open_data", "open_masks", "open_measure", "open_plan", "open_protocol", "parity_frames",
    "person_mask", "pipeline_of", "probe_for", "search", "search_key", "temporal_decoder", "unapply",
]  # fmt: skip


def search(
    model: Model,
    data: Data = "starter:calib",
    *,
    journal: Path | str,
    settings: SearchSettings | None = None,
    masks: Masks = "data",
    protocol: str | Protocol | None = None,
    regressor: Path | str | None = None,
    body: Body = "starter",
    device: str = "auto",
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> SearchResult:
    """Chooses the layers to merge; `result.plan.write(path)` keeps the plan. See `searching.search`.

    `protocol`, by default that of the data, may need a `regressor`, and a folder of bodies; see `open_measure`.
    `journal` receives every evaluation and lets a search that was stopped go on; with `overwrite` something else in its
    place is replaced. Raises UserError.
    """
    outputs = OutputRule.of(overwrite, model, data, regressor)
    outputs.check_file(journal, JOURNAL, "jsonl")
    checkpoint, network, crops, opened = _opened_for_search(
        model, data, settings, masks, protocol, regressor, body, device, progress
    )
    return search_plan(
        network,
        checkpoint.reference,
        crops,
        body=opened["measure"].body,
        journal=Path(journal),
        overwrite=outputs.overwrite,
        source=None if isinstance(data, CropSet) else str(data),
        progress=progress,
        **opened,
    )


def search_key(
    model: Model,
    data: Data = "starter:calib",
    *,
    settings: SearchSettings | None = None,
    masks: Masks = "data",
    protocol: str | Protocol | None = None,
    regressor: Path | str | None = None,
    body: Body = "starter",
    device: str = "auto",
    progress: Progress = no_progress,
) -> Key:
    """What the evaluations of this search depend on. Raises UserError as `search` does before it begins."""
    _, network, crops, opened = _opened_for_search(
        model, data, settings, masks, protocol, regressor, body, device, progress
    )
    return key_of_search(network, crops, **opened)


def _opened_for_search(
    model: Model,
    data: Data,
    settings: SearchSettings | None,
    masks: Masks,
    protocol: str | Protocol | None,
    regressor: Path | str | None,
    body: Body,
    device: str,
    progress: Progress,
) -> tuple[Checkpoint, HMR2, CropSet, dict[str, Any]]:
    """The model, its network on the device, the crops, and what else a search and its key take."""
    settings = settings or SearchSettings()
    checkpoint, labelled = load(model, seed=settings.seed), settings.target == "truth"
    if labelled:
        require_truth(checkpoint)
    surface, where, source = body_for(checkpoint, body), pick_device(device), open_masks(masks)
    crops = open_data(data, body=surface, split="calib", progress=progress)
    # Without labels only the protocol's pelvis counts.
    chosen = protocol_for(checkpoint, protocol or (crops.protocol if labelled else STARTER24))
    return (
        checkpoint,
        on_device(checkpoint.network, where),
        crops,
        {
            "measure": open_measure(chosen, crops, body, surface, regressor=regressor, device=where),
            "masks": source,
            "settings": settings,
            "mask_probe": probe_for(checkpoint, source) if settings.with_tokens else None,
        },
    )


def merge(
    model: Model,
    plan: Plan | Path | str,
    out: Path | str,
    *,
    force: bool = False,
    seed: int = 0,
    data: Data | None = None,
    masks: Masks | None = None,
    decoder: Model | None = None,
    body: Body = "starter",
    device: str = "auto",
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> Folder:
    """Applies a plan: writes the compressed model to the folder `out`. See `merging.merge`. Raises UserError, also
    where something else than a compressed model is there, unless `overwrite` (see `io.outputs`).

    `decoder` is another compressed version of the same network, whose temporal decoder is taken over. A plan with the
    rule `lstsq` is fitted on `data` and `masks`, by default those of its search; only then are these, `body` and
    `device` of any use.
    """
    outputs = OutputRule.of(overwrite, model, plan, data, decoder)
    outputs.check_folder(out, MODEL)
    name, checkpoint, wanted = "plan" if isinstance(plan, Plan) else plan, load(model, seed=seed), open_plan(plan)
    wanted.check(checkpoint.family, checkpoint.sha256, checkpoint.config.depth, force, name)
    donor = None if decoder is None else load(decoder, seed=seed)
    if wanted.merge_rule != FITTED:
        return merge_checkpoint(
            checkpoint, wanted, out, force=force, plan_name=name, decoder_of=donor, overwrite=outputs
        )
    found, crops = wanted.search, _crops_to_fit(wanted, data, body_for(checkpoint, body), progress)
    source = open_masks(masks or (found.masks if found else None) or "data")
    patches = fit_plan(
        on_device(checkpoint.network, pick_device(device)),
        wanted.groups,
        crops,
        source,
        frames_per_clip=frames_to_fit(wanted),
        frames=found.frames if found else None,
        progress=progress,
    )
    per_clip = frames_to_fit(wanted)
    about = {
        "data": {"name": crops.name, "split": crops.split, "sha256": crops.sha256},
        "masks": source.name,
        KEY: record(crops, crops.sample(per_clip)),
    }
    return merge_checkpoint(
        checkpoint,
        wanted,
        out,
        force=force,
        plan_name=name,
        patches=patches,
        fitted_on=about,
        decoder_of=donor,
        overwrite=outputs,
    )


def frames_to_fit(plan: Plan) -> int:
    """Frames of each clip that a plan with the rule `lstsq` is fitted on: as many as it was searched on."""
    return (plan.search.frames_per_clip if plan.search else None) or DEFAULT_FRAMES_PER_CLIP


def _crops_to_fit(plan: Plan, data: Data | None, body: BodyModel, progress: Progress) -> CropSet:
    """The data given, or those of the plan's search. UserError where they are not known or have changed since."""
    found = plan.search.data if plan.search else None
    if data is None and (found is None or found.source is None):
        raise UserError(f"{FITTED} is fitted on data, and the plan does not say which", "merge", "Give --data")
    crops = open_data(data or str(found and found.source), body=body, split="calib", progress=progress)
    if data is None and found is not None and crops.sha256 != found.sha256:
        raise UserError("the data have changed since the search", str(found.source), "Give --data to fit on them")
    return crops


def apply(model: Module, plan: Plan | Path | str, *, grid: tuple[int, int] | None = None) -> Module:
    """Compresses a live network of other code in place: layers and tokens, as `plan` or its file says.

    `with hc.person_mask(model, mask): model(batch)` tells it where people are, `hc.unapply(model)` undoes it. See
    `live.patching`. Raises UserError.
    """
    return apply_to_live(model, open_plan(plan), grid=grid)


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
    dtype: torch.dtype = torch.float32,
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
    the model (not `against`) is run. Raises UserError, also where the model was not made from `against`.
    """
    checkpoint = load(model, seed=seed)
    require_truth(checkpoint)
    surface, where, source = body_for(checkpoint, body), pick_device(device), open_masks(masks)
    probe = probe_for(checkpoint, source) if checkpoint.tokens else None
    reference = None if against is None else on_device(_original(checkpoint, load(against, seed=seed)).network, where)
    decoder = temporal_decoder(checkpoint)
    crops = open_data(data, body=surface, progress=progress)
    measure = open_measure(protocol, crops, body, surface, regressor=regressor, device=where)
    network = on_device(checkpoint.network, where)
    path = replace(path or RunPath(), batch_sizes=(batch_size,))
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
    """`against`, if it is what a model was made from, by its hash or that of the file it was converted from. UserError
    for another network: the difference between the two would say nothing of what compressing did."""
    planned = checkpoint.reference if checkpoint.plan is None else checkpoint.plan.checkpoint
    recorded = checkpoint.source.get("checkpoint")
    made_from = str(recorded.get("sha256")) if checkpoint.plan and isinstance(recorded, dict) else planned.sha256
    if made_from in (against.sha256, against.source.get("sha256")):
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
    crops = open_data(data, body=body_for(checkpoint, body), split="calib", progress=progress)
    return similarity_of_layers(network, crops, frames=frames, batch_size=batch_size, dtype=dtype, progress=progress)
