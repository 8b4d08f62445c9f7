"""`hc.search`: the layers of a network that can be merged, as a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmrcompress.api.opening import (
    Body,
    Data,
    Masks,
    Model,
    body_for,
    load,
    on_device,
    open_data,
    open_masks,
    open_measure,
    probe_for,
    protocol_for,
    require_truth,
)
from hmrcompress.data.crops import CropSet
from hmrcompress.errors import UserError, some
from hmrcompress.io.keys import Key
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.together import own_device
from hmrcompress.metrics.points import STARTER24, Protocol
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.runtime import Progress, no_progress, pick_device
from hmrcompress.searching.journal import KIND as JOURNAL
from hmrcompress.searching.search import SearchResult, SearchSettings
from hmrcompress.searching.search import search as search_plan
from hmrcompress.searching.search import search_key as key_of_search


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
    if halved := sorted({*checkpoint.config.without_attention, *checkpoint.config.without_mlp}):
        raise UserError(
            f"has layers of one half ({some(halved)}), and whole layers become one with whole ones only",
            checkpoint.name,
            "Search the network that it was made from",
        )
    if labelled:
        require_truth(checkpoint)
    surface, where, source = body_for(checkpoint, body), pick_device(own_device(device)), open_masks(masks)
    crops = open_data(data, body=surface, split="calib", size=checkpoint.config.crop, progress=progress)
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
