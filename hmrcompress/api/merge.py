"""`hc.merge` and `hc.apply`: a plan carried out on a checkpoint, or on a live network of other code."""

from __future__ import annotations

from pathlib import Path

from hmrcompress.api.opening import (
    Body,
    Data,
    Masks,
    Model,
    ModelFile,
    Module,
    body_for,
    load,
    on_device,
    open_data,
    open_masks,
    open_plan,
)
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.provenance import KEY, record
from hmrcompress.errors import UserError
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.io.outputs import OutputRule
from hmrcompress.live.files import holds_stack
from hmrcompress.live.patching import apply as apply_to_live
from hmrcompress.live.plans import LivePlan
from hmrcompress.live.structure import FAMILY
from hmrcompress.merging.fit import DEFAULT_FRAMES_PER_CLIP, fit_plan
from hmrcompress.merging.layers import FITTED
from hmrcompress.merging.merge import fit_patch, frames_of_patch, merge_checkpoint
from hmrcompress.models.families.registry import MARKS, is_known
from hmrcompress.models.files.folder import KIND as MODEL
from hmrcompress.models.files.folder import Folder
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.plan import Plan
from hmrcompress.records import CropSize
from hmrcompress.runtime import Progress, no_progress, pick_device


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
    if wanted.merge_rule != FITTED and wanted.patch is None:
        return merge_checkpoint(
            checkpoint, wanted, out, force=force, plan_name=name, decoder_of=donor, overwrite=outputs
        )
    if wanted.patch is not None:
        return _merged_with_patch(
            checkpoint, wanted, out, force, name, donor, data, masks, body, device, outputs, progress
        )
    found, size = wanted.search, checkpoint.config.crop
    crops = crops_to_fit(wanted, data, body_for(checkpoint, body), size, progress)
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


def is_of_other_code(model: Model, plan: Plan | Path | str | None = None) -> bool:
    """Whether a model is a checkpoint file of no family that is read, with a stack of blocks all the same, which
    `live.files.merge_file` takes; with a plan of a live network any file is. Raises UserError for a file that cannot be
    read."""
    if isinstance(model, Checkpoint):
        return False
    asked = model if isinstance(model, ModelFile) else ModelFile(str(model))
    if not Path(asked.name).is_file():
        return False
    if plan is not None:
        reference = open_plan(plan).checkpoint
        if reference is not None and reference.family.startswith(FAMILY):
            return True
    try:
        known = is_known(open_state_file(asked.name, *MARKS, weights=asked.weights).tensors)
    except UserError:
        if asked.weights is None:
            raise
        known = False  # a name of weights that only a file of other code has
    return not known and holds_stack(asked.name)


def frames_to_fit(plan: Plan) -> int:
    """Frames of each clip that a plan is fitted on: those its patch names, or as many as it was searched on."""
    if plan.patch is not None:
        return plan.patch.fitted_on.frames_per_clip
    return (plan.search.frames_per_clip if plan.search else None) or DEFAULT_FRAMES_PER_CLIP


def _merged_with_patch(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Path | str,
    force: bool,
    name: object,
    donor: Checkpoint | None,
    data: Data | None,
    masks: Masks | None,
    body: Body,
    device: str,
    outputs: OutputRule,
    progress: Progress,
) -> Folder:
    """`merge` for a plan with a patch, which is fitted on the data that it names."""
    assert plan.patch is not None
    fitted_on = plan.patch.fitted_on
    crops = crops_to_fit(plan, data, body_for(checkpoint, body), checkpoint.config.crop, progress)
    chosen = masks or fitted_on.masks
    source = None if chosen is None else open_masks(chosen)
    network = on_device(checkpoint.network, pick_device(device))
    patches = fit_patch(network, plan, crops, source, progress=progress)
    about = {
        "data": {"name": crops.name, "split": crops.split, "sha256": crops.sha256},
        "masks": None if source is None else source.name,
        KEY: record(crops, frames_of_patch(plan, crops)),
    }
    return merge_checkpoint(
        checkpoint,
        plan,
        out,
        force=force,
        plan_name=name,
        cut_patches=patches,
        fitted_on=about,
        decoder_of=donor,
        overwrite=outputs,
    )


def crops_to_fit(plan: Plan, data: Data | None, body: BodyModel, size: CropSize, progress: Progress) -> CropSet:
    """The data given, in crops of that size, or those that the plan was fitted on, or searched. UserError where they
    are not known or have changed since."""
    found = plan.patch.fitted_on if plan.patch else plan.search.data if plan.search else None
    if data is None and (found is None or found.source is None):
        what = "the patch" if plan.patch else FITTED
        raise UserError(f"{what} is fitted on data, and the plan does not say which", "merge", "Give --data")
    crops = open_data(data or str(found and found.source), body=body, split="calib", size=size, progress=progress)
    if data is None and found is not None and crops.sha256 != found.sha256:
        raise UserError("the data have changed since the search", str(found.source), "Give --data to fit on them")
    return crops


def apply(model: Module, plan: LivePlan, *, grid: tuple[int, int] | None = None) -> Module:
    """Compresses a live network of other code in place: layers and tokens, as `plan`, its file or its fields say.

    `with hc.person_mask(model, mask): model(batch)` tells it where people are, `hc.unapply(model)` undoes it. See
    `live.patching`. Raises UserError.
    """
    return apply_to_live(model, plan, grid=grid)
