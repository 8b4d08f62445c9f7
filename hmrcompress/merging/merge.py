"""A checkpoint and a plan to a compressed-model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.layers import merge_layers
from hmrcompress.models.folder import Folder, checkpoint_record, write_model_folder
from hmrcompress.models.load import Checkpoint
from hmrcompress.models.network import HMR2, build, from_state
from hmrcompress.plan import Plan


def merge_network(network: HMR2, plan: Plan) -> HMR2:
    """The network that a plan makes, layers and tokens merged; unmerged weights are shared with `network`.

    Raises UserError where the plan's groups or tokens do not fit the network.
    """
    config = replace(network.config, depth=len(plan.groups))
    merged = from_state(config, merge_layers(network.state_dict(), plan.groups, plan.merge_rule))
    return with_token_merging(merged, plan.tokens)


def merge_checkpoint(
    checkpoint: Checkpoint, plan: Plan, out: Path | str, *, force: bool = False, plan_name: object = "plan"
) -> Folder:
    """Merges layers, records token merging, and writes the compressed model. Needs little memory beyond merged layers.

    Raises UserError where the plan was made for another checkpoint (`force`: only where the numbers of layers
    differ), cannot be applied, or `out` is a folder of something else.
    """
    plan.check(checkpoint.family, checkpoint.sha256, checkpoint.config.depth, force, plan_name)
    config = replace(checkpoint.config, depth=len(plan.groups))
    with_token_merging(build(config, "meta"), plan.tokens)  # rehearsal: says what does not fit before anything is done
    state = merge_layers(checkpoint.state(), plan.groups, plan.merge_rule)
    provenance = checkpoint_record(checkpoint.reference, name=checkpoint.name, command="merge")
    return write_model_folder(
        out, state, config, family=checkpoint.family, plan=plan, provenance=provenance, body=checkpoint.body
    )
