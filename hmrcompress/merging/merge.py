"""A checkpoint and a plan to a compressed-model folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.outputs import OutputRule
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.fit import Patches
from hmrcompress.merging.layers import merge_layers
from hmrcompress.models.files.folder import KIND, Folder, checkpoint_record, write_model_folder
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2, build, from_state
from hmrcompress.plan import Plan


def merge_network(network: HMR2, plan: Plan, patches: Patches | None = None) -> HMR2:
    """The network that a plan makes, layers and tokens merged; unmerged weights are shared with `network`.

    `patches` are what the rule `lstsq` adds (`merging.fit`). Raises UserError where groups, tokens or patches do not
    fit the network.
    """
    config = replace(network.config, depth=len(plan.groups))
    merged = from_state(config, merge_layers(network.state_dict(), plan.groups, plan.merge_rule, patches=patches))
    return with_token_merging(merged, plan.tokens)


def merge_checkpoint(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Path | str,
    *,
    force: bool = False,
    plan_name: object = "plan",
    patches: Patches | None = None,
    fitted_on: Mapping[str, Any] | None = None,
    decoder_of: Checkpoint | None = None,
    overwrite: bool | OutputRule = False,
) -> Folder:
    """Merges layers, records token merging, and writes the compressed model. Needs little memory beyond merged layers.

    `patches` are what the rule `lstsq` adds; `fitted_on` says on which data, for the provenance. Raises UserError where
    the plan was made for another checkpoint (`force`: only where the numbers of layers differ) or cannot be applied,
    and as `io.outputs`. A saliency probe is handed on where the layers up to the one that it reads stay as they are; a
    temporal decoder is not, because it was trained on the features of the network as it was. `decoder_of` is another
    compressed version of the same network, whose temporal decoder the new one is to have: UserError where it holds
    none, or has another head.
    """
    plan.check(checkpoint.family, checkpoint.sha256, checkpoint.config.depth, force, plan_name)
    outputs = OutputRule.of(overwrite, checkpoint, decoder_of)
    outputs.check_folder(out, KIND)
    config = replace(checkpoint.config, depth=len(plan.groups))
    with_token_merging(build(config, "meta"), plan.tokens)  # rehearsal: says what does not fit before anything is done
    state = merge_layers(checkpoint.state(), plan.groups, plan.merge_rule, patches=patches)
    more: dict[str, Any] = {} if not patches else {"fitted": {**(fitted_on or {}), "ridges": _ridges(patches)}}
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


def _untouched(plan: Plan, layer: int) -> bool:
    """Whether the layers up to this one stay as they are."""
    return plan.groups[: layer + 1] == tuple((index,) for index in range(layer + 1))
