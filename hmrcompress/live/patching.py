"""Compresses a live network of somebody else's code in place: `apply`, `person_mask`, `unapply`.

What its blocks do then is told in `live.forwards`: behind the last, every patch has a token again. A cross-attention
over these reads the merged tokens with the log of their sizes as a bias, a mean over them is weighted by sizes. A plan
whose head has that bias is therefore one function in every network; for any other plan the head's cross-attentions are
told to read each token once (`live.heads`), and where they are not known the plan is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

from hmrcompress.errors import UserError
from hmrcompress.live import forwards
from hmrcompress.live.forwards import Patched, Replay
from hmrcompress.live.heads import cross_attentions, unknown_head
from hmrcompress.live.masks import Masks, MaskSource
from hmrcompress.live.plans import LivePlan, plan_for
from hmrcompress.live.removed import hollow
from hmrcompress.live.structure import RECORD, Blocks, Network, compressed_in
from hmrcompress.live.structure import network as found_network
from hmrcompress.live.weights import made_blocks
from hmrcompress.merging.apply import TokenMerger, settled, token_counts
from hmrcompress.merging.lstsq import Patch
from hmrcompress.models.fast.network import FastBlock
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.models.vit import ViT
from hmrcompress.plan import ALL

Module = TypeVar("Module", bound=nn.Module)


def apply(
    model: Module,
    plan: LivePlan,
    *,
    network: Network | None = None,
    grid: tuple[int, int] | None = None,
    force: bool = False,
    probe: SaliencyProbe | None = None,
    patches: Mapping[int, Patch] | None = None,
    replay: Replay | None = None,
) -> Module:
    """Merges layers and tokens of a live network in place, as `plan` says; gives the same `model` back.

    `plan` is a plan, its file, or its fields; written by hand it needs no checkpoint, and one that a search made for
    other blocks is refused without `force`. `network` is what `structure.network` found in it, and is looked for here
    without. Keys of layers that remain keep their names; layers merged into another become empty. `grid` is rows and
    columns of patches of the crop where the model does not tell. Heads are told to
    read each token once, unless the plan has log-sizes in the head or says that they read restored tokens, which is the
    same. `probe` finds the person where no mask is given; `patches` is what the rule `lstsq` adds, by the
    first layer of each group. The layers as they were are kept for `unapply`. Token merging takes everything for
    background unless the call runs inside `person_mask`. Copies of the model are independent of it.

    UserError where the model does not fit or is compressed already, or the plan is for another number of layers, has
    `lstsq` without patches, or merges tokens that the model's head would read otherwise than the native network does
    (`live.heads`); the model is untouched then.
    """
    if compressed_in(model) is not None:
        raise UserError("the model is compressed already", type(model).__name__, "hc.unapply(model) undoes it")
    found = network or found_network(model, grid=grid)
    owner = _ours(model, found)
    if getattr(owner, "reducer", None) is not None:
        raise UserError("the network merges tokens already", type(model).__name__, "Load it without, or without `fast`")
    if any(isinstance(block, FastBlock) for block in found.blocks):
        raise UserError("the network is on the fast path", type(model).__name__, "Load it without `fast`")
    plan = plan_for(plan, found, force=force)
    if plan.layers != found.depth:
        raise UserError(f"the plan is for {plan.layers} layers, the model has {found.depth}", "checkpoint.layers")
    if halves := [each.layer for each in plan.removed if each.part != ALL]:
        raise UserError(
            f"half of layer {halves[0]} is removed, and a live network's layers stay whole", "removed", "Use part: all"
        )
    if plan.patch is not None:
        raise UserError("the patch is fitted on data, which a live network is not given", "patch", "Leave patch out")
    merger, heads = None, dict[str, nn.Module]()
    if plan.tokens is not None:
        if found.refusal is not None:
            raise found.refusal
        if not found.grid_known and found.stem is not None:
            raise UserError(
                "does not say how many rows and columns of patches there are",
                type(model).__name__,
                "Give grid=…, or find it by a call: hc.live.network(model, example=lambda: model(batch))",
            )
        tokens = settled(plan.tokens, found.tokens, len(plan.kept_groups), probe)
        fewer = token_counts(plan.tokens, found.tokens)[-1] < found.tokens
        if not plan.tokens.biases_head and fewer:
            heads = cross_attentions(model, found.blocks)
            if not heads:
                raise unknown_head(model)
        merger = TokenMerger(tokens, probe)
    plan.tell_run("the code that calls a live network")
    blocks, originals = found.blocks, tuple(found.blocks)
    made = made_blocks(originals, found.bodies, plan.kept_groups, plan.merge_rule, patches)
    bodies = tuple(found.bodies[group[0]] if found.bodies else None for group in plan.kept_groups)
    patch = Patched(
        originals, bodies, merger, found.grid, found.prefix, found.suffix, plan, found.name, _placement(blocks), replay,
        found.wraps,
    )  # fmt: skip
    for number in plan.removed_parts:
        blocks[number] = hollow(originals[number], wraps=found.wraps)
    for layer, (group, block) in enumerate(zip(plan.kept_groups, made, strict=True)):
        blocks[group[0]] = block
        for number in group[1:]:
            blocks[number] = hollow(originals[number], wraps=found.wraps)
        if merger is not None or replay is not None:
            own = block.__dict__.get("forward")
            patch.replace(block, "forward", partial(forwards.forward, patch, layer, block, own))
    for name, module in heads.items():
        patch.replace(module, "forward", partial(forwards.read, patch, module, module.__dict__.get("forward"), name))
    if merger is not None:
        if found.stem is not None:
            patch.replace(
                found.stem, "forward", partial(forwards.embed, patch, found.stem, found.stem.__dict__.get("forward"))
            )
        if isinstance(owner, ViT):
            patch.replace(owner, "encode", partial(forwards.encode, patch, owner))
    blocks.__dict__[RECORD] = patch
    return model


def unapply(model: Module) -> Module:
    """Puts a model back as it was before `apply`, with the same parameter objects; gives the same `model` back.

    Where the model has been moved or changed its mode since, the layers that were taken out follow it. UserError where
    it was not compressed.
    """
    blocks, patch = patched_in(model)
    for module, name, before in reversed(patch.replaced):
        del module.__dict__[name]
        if before is not None:
            module.__dict__[name] = before
    device, dtypes, training = _placement(blocks)
    for number, original in enumerate(patch.originals):
        if blocks[number] is not original:
            _follow(original, patch.before[0], device, patch.before[1], dtypes)
            if training != patch.before[2]:
                _training(original, training)
            blocks[number] = original
    del blocks.__dict__[RECORD]
    return model


@contextmanager
def person_mask(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Calls of a compressed `model` in this block and thread know where the person is.

    masks: (B,rows,columns) bool, true where a patch shows the person (`data.masks` makes it from pixels); None for
    nobody; an iterable of these, of which every pass of the backbone takes the next one; or a function of what the
    patch embedding is given. Blocks may be nested. UserError where the model was not compressed or masks run out,
    ShapeError for another kind of mask.
    """
    local = patched_in(model)[1].local
    local.masks.append(MaskSource(masks))
    try:
        yield
    finally:
        local.masks.pop()


def patched_in(model: nn.Module) -> tuple[Blocks, Patched]:
    """The compressed list of blocks of a model, and what was done to it. UserError where there is none."""
    blocks = compressed_in(model)
    if blocks is None:
        raise UserError("the model is not compressed", type(model).__name__, "hc.apply(model, plan) does it")
    return cast(Blocks, blocks), blocks.__dict__[RECORD]


def _ours(model: nn.Module, found: Network) -> nn.Module:
    """What holds the blocks."""
    holder: nn.Module = model
    for step in found.name.split(".")[:-1]:
        holder = getattr(holder, step)
    return holder


def _placement(blocks: Sequence[nn.Module] | Blocks) -> tuple[torch.device, dict[str, torch.dtype], bool]:
    """Device, dtypes by parameter and mode of the first layer, to see whether they have changed."""
    first = next(block for block in blocks if next(block.parameters(), None) is not None)
    named = dict(first.named_parameters())
    return next(iter(named.values())).device, {name: each.dtype for name, each in named.items()}, first.training


def _follow(
    block: nn.Module,
    before: torch.device,
    device: torch.device,
    dtypes_before: Mapping[str, torch.dtype],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Moves a layer as its neighbours were moved, each parameter for itself: norms may have another dtype."""
    if before != device:
        block.to(device)
    if dtypes_before == dtypes:
        return
    for name, parameter in block.named_parameters():
        if name in dtypes and dtypes_before.get(name) != dtypes[name]:
            parameter.data = parameter.data.to(dtypes[name])
    floats = [tensor for tensor in block.buffers() if tensor.is_floating_point()]
    if floats and len(set(dtypes.values())) == 1:
        for module in block.modules():
            for name, tensor in module.named_buffers(recurse=False):
                if tensor.is_floating_point():
                    setattr(module, name, tensor.to(next(iter(dtypes.values()))))


def _training(block: nn.Module, mode: bool) -> None:
    for module in block.modules():
        module.training = mode


def own_layer(model: nn.Module, layer: int) -> nn.Module:
    """The block of a compressed model that stands for a group, by the group's number, as one that may be changed: an
    original is replaced by a copy first, and comes back with `unapply`."""
    blocks, patch = patched_in(model)
    number = patch.plan.kept_groups[layer][0]
    block = blocks[number]
    if all(block is not original for original in patch.originals):
        return block
    mine = [entry for entry in patch.replaced if entry[0] is block and entry[1] == "forward"]
    own = mine[0][2] if mine else block.__dict__.get("forward")
    given = block.__dict__.pop("forward", None)
    copied = copy.deepcopy(block)
    if given is not None:
        block.__dict__["forward"] = given
    if mine:
        patch.replace(copied, "forward", partial(forwards.forward, patch, layer, copied, own))
    blocks[number] = copied
    return copied


def changed_layers(model: nn.Module) -> dict[int, nn.Module]:
    """The blocks of a compressed model that are not those of the original, by the number of their first layer."""
    blocks, patch = patched_in(model)
    firsts = [group[0] for group in patch.plan.kept_groups]
    return {number: blocks[number] for number in firsts if blocks[number] is not patch.originals[number]}


def shared_copy(model: Module) -> Module:
    """Another model over the very same parameters and buffers, compressed or not as `model` is."""
    found = compressed_in(model)
    modules = [model] if found is None else [model, *found.__dict__[RECORD].originals]
    memo: dict[int, Any] = {}
    for module in modules:
        memo |= {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(model, memo)
