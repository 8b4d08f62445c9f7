"""A checkpoint and a plan to a compressed-model folder."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource
from hmrcompress.errors import UserError
from hmrcompress.io.outputs import OutputRule
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.fit import Patches, StreamedTokens, fit_batches, plain
from hmrcompress.merging.layers import merge_layers
from hmrcompress.merging.patch import CutPatches, fit_cuts, with_patches
from hmrcompress.models.files.folder import KIND, Folder, checkpoint_record, write_model_folder
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2, NetworkConfig, build, from_state
from hmrcompress.plan import ATTENTION, MLP, Plan
from hmrcompress.runtime import Progress, no_progress


def merge_network(
    network: HMR2, plan: Plan, patches: Patches | None = None, cut_patches: CutPatches | None = None
) -> HMR2:
    """The network that a plan makes, layers and tokens merged; unmerged weights are shared with `network`.

    `patches` are what the rule `lstsq` adds (`merging.fit`), `cut_patches` those of the plan's patch (`merging.patch`)
    at full strength. Raises UserError where groups, tokens or patches do not fit the network.
    """
    state = _merged_state(network.state_dict(), plan, patches, cut_patches)
    merged = from_state(merged_config(network.config, plan), state)
    return with_token_merging(merged, plan.tokens)


def fit_patch(
    network: HMR2, plan: Plan, crops: CropSet, masks: MaskSource | None, *, progress: Progress = no_progress
) -> CutPatches:
    """The patches of a plan from the frames that its search fitted on: the same call, the same bits.

    network: original, in evaluation mode, on its device. UserError where there are no frames or no usable masks.
    """
    indices = frames_of_patch(plan, crops)
    if not len(indices):
        raise UserError("there are no frames to fit on", crops.name)
    original, batches = plain(network), fit_batches(crops, indices, masks)
    bare = plan.model_copy(update={"patch": None, "tokens": None})
    tokens = StreamedTokens(original, crops, batches)
    return fit_cuts(original, merge_network(original, bare), plan, batches, tokens, progress=progress)


def frames_of_patch(plan: Plan, crops: CropSet) -> np.ndarray:
    """The frames of the data that a plan's patch is fitted on."""
    assert plan.patch is not None
    data = plan.patch.fitted_on
    indices = crops.sample(data.frames_per_clip)
    return indices if data.clips is None else indices[np.isin(crops.clip[indices], data.clips)]


def merged_config(config: NetworkConfig, plan: Plan) -> NetworkConfig:
    """The sizes of the network that a plan makes of one of these sizes."""
    gone, kept = plan.removed_parts, plan.kept_groups

    def lacking(part: str, before: Collection[int]) -> tuple[int, ...]:
        return tuple(number for number, group in enumerate(kept) if gone.get(group[0]) == part or group[0] in before)

    return replace(
        config,
        depth=len(kept),
        without_attention=lacking(ATTENTION, config.without_attention),
        without_mlp=lacking(MLP, config.without_mlp),
    )


def _merged_state(
    state: Mapping[str, Tensor], plan: Plan, patches: Patches | None, cut_patches: CutPatches | None
) -> dict[str, Tensor]:
    """UserError where the plan has a patch and nobody fitted it."""
    if plan.patch is not None and cut_patches is None:
        raise UserError("the patch is not fitted", "patch", "It is fitted on data: `hmrcompress merge` does it")
    merged = merge_layers(state, plan.groups, plan.merge_rule, patches=patches, removed=plan.removed_parts)
    return with_patches(merged, cut_patches or {}, plan.patch.strength) if plan.patch else merged


def merge_checkpoint(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Path | str,
    *,
    force: bool = False,
    plan_name: object = "plan",
    patches: Patches | None = None,
    cut_patches: CutPatches | None = None,
    fitted_on: Mapping[str, Any] | None = None,
    chosen_on: Mapping[str, Any] | None = None,
    decoder_of: Checkpoint | None = None,
    overwrite: bool | OutputRule = False,
) -> Folder:
    """Merges layers, records token merging, and writes the compressed model. Needs little memory beyond merged layers.

    `patches` are what the rule `lstsq` adds, `cut_patches` those of the plan's patch; for the provenance `fitted_on`
    says on which data, and `chosen_on` on which the plan was found. Raises UserError where the plan was made for
    another checkpoint (`force`: only where the numbers of layers differ) or cannot be applied, and as `io.outputs`. A
    saliency probe is handed on where the layers up to the one that it reads stay as they are; a temporal decoder is
    not, because it was trained on the features of the network as it was. `decoder_of` is another compressed version of
    the same network, whose temporal decoder the new one is to have: UserError where it holds none, or has another head.
    """
    plan.check(checkpoint.family, checkpoint.sha256, checkpoint.config.depth, force, plan_name)
    outputs = OutputRule.of(overwrite, checkpoint, decoder_of)
    outputs.check_folder(out, KIND)
    config = merged_config(checkpoint.config, plan)
    with_token_merging(build(config, "meta"), plan.tokens)  # rehearsal: says what does not fit before anything is done
    state = _merged_state(checkpoint.state(), plan, patches, cut_patches)
    if plan.checkpoint is None:
        plan = plan.model_copy(update={"checkpoint": checkpoint.reference})
    fitted = _ridges(patches or {}) | _ridges_of_cuts(cut_patches or {})
    more: dict[str, Any] = dict(chosen_on or {})
    if fitted:
        more["fitted"] = {**(fitted_on or {}), "ridges": fitted}
    if decoder_of is not None:
        _check_decoder(decoder_of, state)
        more["decoder_of"] = {"name": decoder_of.name, "sha256": decoder_of.sha256}
    provenance = checkpoint_record(checkpoint.reference, name=checkpoint.name, command="merge", **more)
    return write_model_folder(
        out,
        state,
        config,
        plan=plan,
        provenance=provenance,
        body=checkpoint.body,
        probe=checkpoint.probe if checkpoint.probe and _untouched(plan, checkpoint.probe.layer) else None,
        decoder=None if decoder_of is None else decoder_of.decoder,
        overwrite=outputs,
    )


def _check_decoder(donor: Checkpoint, state: Mapping[str, Tensor]) -> None:
    """A decoder reads what the head makes of the tokens, so both networks must have the very same head."""
    if donor.decoder is None:
        raise UserError("holds no temporal decoder", donor.name, "`hmrcompress finetune --stage all` trains one")
    given = donor.network.state_dict()
    head = [name for name in state if not name.startswith("backbone.")]
    if any(name not in given or not torch.equal(given[name].float(), state[name].float()) for name in head):
        raise UserError("its decoder was trained for another head", donor.name, "Take one of the same network")


def _ridges(patches: Patches) -> dict[str, float | None]:
    """The ridge of each patch, by the first layer of its group; None where nothing beats leaving the patch away."""
    return {str(layer): patch.ridge if math.isfinite(patch.ridge) else None for layer, patch in patches.items()}


def _ridges_of_cuts(patches: CutPatches) -> dict[str, float | None]:
    """The same by the host of each, `3.mlp` for the MLP of layer 3 of the compressed network."""
    return {
        f"{host.layer}.{host.part}": patch.ridge if math.isfinite(patch.ridge) else None
        for host, patch in patches.items()
    }


def _untouched(plan: Plan, layer: int) -> bool:
    """Whether the layers up to this one stay as they are."""
    return plan.first_change is None or plan.first_change > layer
