"""Compresses a live network of somebody else's code in place: `apply`, `person_mask`, `unapply`.

It fits whatever holds timm-like blocks in `backbone.blocks` or `blocks`: `x + attn(norm1(x))`, then
`x + mlp(norm2(x))`, with `attn.qkv`, `attn.proj` and `attn.num_heads`. Layer scale, drop-path and norms of queries and
keys are honoured; anything else in a block is refused by name, and the first and the last block are run once to see
that they compute what is expected.

Such code ends its backbone in `x.permute(0, 2, 1).reshape(B, -1, rows, columns)`, which 90 tokens would silently turn
into nonsense. So the last block hands back one token for every patch of the crop: each patch gets the token that it was
merged into, or, where background was dropped, the kept token that stands for it (`background.nearest_kept`). A
cross-attention over these reads the merged tokens with the log of their sizes as a bias, a mean over them is weighted
by sizes. A plan whose head has that bias is therefore one function in every network; for any other plan the head's
cross-attentions are told to read each token once (`live_heads`), and where they are not known the plan is refused.

Nothing here is global: the mask and the tokens of a forward pass belong to the patched model and to the thread.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.merging.apply import TokenMerger, check_depth, token_counts
from hmrcompress.merging.background import nearest_kept
from hmrcompress.merging.layers import merge_layers
from hmrcompress.merging.live_heads import Reading, cross_attentions, read_once, unknown_head
from hmrcompress.merging.lstsq import Patch
from hmrcompress.merging.timm_blocks import attend, check_block, check_same, feed
from hmrcompress.merging.tokens import destinations, merge
from hmrcompress.models.fast import FastBlock
from hmrcompress.models.vit import TokenState, ViT
from hmrcompress.plan import Plan
from hmrcompress.records import GRID_HEIGHT, GRID_WIDTH

RECORD = "_hmrcompress_patch"
Blocks = nn.ModuleList | nn.Sequential
Module = TypeVar("Module", bound=nn.Module)


@dataclass
class _Run:
    """A forward pass on its way: the next layer, the state of the tokens, and which token each patch is in (B,M)."""

    layer: int
    state: TokenState
    owner: Tensor


class _Local(threading.local):
    """What belongs to one thread: masks (the innermost last), the pass that is on its way, and what heads know of those
    that have ended. Copies start empty."""

    def __init__(self) -> None:
        self.masks: list[Tensor | None] = []
        self.run: _Run | None = None
        self.reading = Reading()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Local, ())


@dataclass(eq=False)
class _Patch:
    """What was done to a model and how to undo it. `replaced`: modules, their attributes that were set, and what these
    were before."""

    def replace(self, module: nn.Module, name: str, function: Callable) -> None:
        """Sets an attribute of one module to a function, until `unapply`."""
        self.replaced.append((module, name, module.__dict__.get(name)))
        module.__dict__[name] = function

    originals: tuple[nn.Module, ...]
    reducer: TokenMerger | None
    grid: tuple[int, int]
    depth: int
    before: tuple[Any, ...]
    replaced: list[tuple[nn.Module, str, Callable | None]] = field(default_factory=list)
    local: _Local = field(default_factory=_Local)


class _Removed(nn.Module):
    """Stands where a layer was merged into another; code that counts layers goes on working."""

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The tokens as they are."""
        return tokens


def apply(
    model: Module,
    plan: Plan,
    *,
    grid: tuple[int, int] | None = None,
    patches: Mapping[int, Patch] | None = None,
) -> Module:
    """Merges layers and tokens of a live network in place, as `plan` says; gives the same `model` back.

    Keys of layers that remain keep their names; layers merged into another become empty. `grid` is rows and columns of
    patches of the crop where `patch_embed` does not tell (16 x 12); `patches` is what the rule `lstsq` adds, by the
    first layer of each group. The layers as they were are kept for `unapply`. Token merging takes everything for
    background unless the call runs inside `person_mask`. Copies of the model are independent of it.

    UserError where the model does not fit or is compressed already, or the plan is for another number of layers, has
    `lstsq` without patches, or merges tokens that the model's head would read otherwise than the native network does
    (`live_heads`); the model is untouched then.
    """
    owner, blocks = _parts(model)
    if RECORD in owner.__dict__:
        raise UserError("the model is compressed already", type(model).__name__, "hc.unapply(model) undoes it")
    if getattr(owner, "reducer", None) is not None:
        raise UserError("the network merges tokens already", type(model).__name__, "Load it without, or without `fast`")
    if any(isinstance(block, FastBlock) for block in blocks):
        raise UserError("the network is on the fast path", type(model).__name__, "Load it without `fast`")
    if plan.checkpoint.layers != len(blocks):
        raise UserError(
            f"the plan is for {plan.checkpoint.layers} layers, the model has {len(blocks)}", "checkpoint.layers"
        )
    grid = grid or _grid_of(owner)
    originals, heads = tuple(blocks), dict[str, nn.Module]()
    if plan.tokens is not None:
        check_depth(plan.tokens, grid[0] * grid[1], len(plan.groups))
        for number, block in enumerate(originals):
            check_block(block, number)
        for number in {0, len(originals) - 1}:
            check_same(originals[number], number, grid[0] * grid[1])
        if not plan.tokens.biases_head and token_counts(plan.tokens, grid[0] * grid[1])[-1] < grid[0] * grid[1]:
            heads = cross_attentions(model, blocks)
            if not heads:
                raise unknown_head(model)
    made = _merged(blocks, plan, patches)
    reducer = None if plan.tokens is None else TokenMerger(plan.tokens)
    patch = _Patch(originals, reducer, grid, len(plan.groups), _placement(blocks))
    for layer, (group, block) in enumerate(zip(plan.groups, made, strict=True)):
        blocks[group[0]] = block
        for number in group[1:]:
            blocks[number] = _Removed()
        if reducer is not None:
            patch.replace(block, "forward", partial(_forward, patch, layer, block))
    for name, module in heads.items():
        patch.replace(module, "forward", partial(_read, patch, module, module.__dict__.get("forward"), name))
    if isinstance(owner, ViT) and reducer is not None:
        patch.replace(owner, "encode", partial(_encode, patch, owner))
    setattr(owner, RECORD, patch)
    return model


def unapply(model: Module) -> Module:
    """Puts a model back as it was before `apply`, with the same parameter objects; gives the same `model` back.

    Where the model has been moved or changed its mode since, the layers that were taken out follow it. UserError where
    it was not compressed.
    """
    owner, blocks = _parts(model)
    patch = _patch_of(model)
    for module, name, before in patch.replaced:
        del module.__dict__[name]
        if before is not None:
            module.__dict__[name] = before
    now = _placement(blocks)
    for number, original in enumerate(patch.originals):
        if blocks[number] is not original:
            if now[:2] != patch.before[:2]:
                original.to(device=now[0], dtype=now[1])
            if now[2] != patch.before[2]:
                original.train(now[2])
            blocks[number] = original
    delattr(owner, RECORD)
    return model


@contextmanager
def person_mask(model: nn.Module, mask: Tensor | None) -> Iterator[None]:
    """Calls of a compressed `model` in this block and thread know where the person is.

    mask: (B,rows,columns) bool, true where a patch shows the person (`data.masks` makes it from pixels); None for
    nobody. Blocks may be nested. UserError where the model was not compressed, ShapeError for another kind of mask.
    """
    local = _patch_of(model).local
    if mask is not None and (mask.ndim != 3 or mask.dtype != torch.bool):
        raise ShapeError(
            f"got {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool (B, rows, columns)", "mask"
        )
    local.masks.append(mask)
    try:
        yield
    finally:
        local.masks.pop()


def _forward(patch: _Patch, layer: int, block: nn.Module, tokens: Tensor) -> Tensor:
    """What a block of a compressed model does: tokens (B,M,D) -> (B,M',D); the last gives a token for every patch."""
    local, reducer = patch.local, cast(TokenMerger, patch.reducer)
    if layer == 0:
        tokens, local.run = _begin(patch, tokens)
    run = local.run
    if run is None or run.layer != layer or tokens.shape[:2] != run.state.sizes.shape:
        raise UserError(
            f"layer {layer} was not called after layer {layer - 1} on its tokens",
            "hc.apply",
            "Switch gradient checkpointing off",
        )
    mixed, keys = attend(block, tokens, reducer.attention_bias(run.state))
    tokens = tokens + mixed
    matching = reducer.matching(layer, tokens, keys, run.state)
    if matching is not None:
        run.owner = destinations(matching, tokens.shape[1]).gather(1, run.owner)
        tokens, *state = merge(matching, tokens, *run.state, size_weighted=reducer.settings.size_weighted)
        run.state = TokenState(*state)
    tokens = feed(block, tokens)
    run.layer += 1
    if run.layer < patch.depth:
        return tokens
    local.run = None
    local.reading.remember(run.owner, tokens.shape[1])
    return tokens.gather(1, run.owner[..., None].expand(-1, -1, tokens.shape[-1]))


def _read(patch: _Patch, module: nn.Module, before: Callable | None, name: str, *args: Any, **kwargs: Any) -> Any:
    """What a cross-attention of a head does: it reads each merged token once."""
    return read_once(patch.local.reading, module, before, name, args, kwargs)


def _encode(patch: _Patch, backbone: ViT, images: Tensor, person_mask: Tensor | None = None) -> Any:
    """What a backbone of ours does with the mask that it is called with: it counts as one of `person_mask`."""
    if person_mask is None:
        return ViT.encode(backbone, images)
    patch.local.masks.append(person_mask)
    try:
        return ViT.encode(backbone, images, person_mask)
    finally:
        patch.local.masks.pop()


def _begin(patch: _Patch, tokens: Tensor) -> tuple[Tensor, _Run]:
    """Tokens (B,M,D) as they enter the first block -> those that stay, and the state of the pass."""
    mask = patch.local.masks[-1] if patch.local.masks else None
    grid = patch.grid if mask is None else (int(mask.shape[1]), int(mask.shape[2]))
    batch, count = tokens.shape[:2]
    if count != grid[0] * grid[1]:
        raise ShapeError(f"got {count} tokens, expected {grid[0]} x {grid[1]} patches and no class token", "hc.apply")
    if mask is None:
        mask = torch.zeros(batch, *grid, dtype=torch.bool)
    if len(mask) != batch:
        raise ShapeError(f"got {len(mask)} masks for {batch} crops", "hc.person_mask")
    mask = mask.to(tokens.device)
    reducer = cast(TokenMerger, patch.reducer)
    kept, state = reducer.begin(tokens, mask, grid)
    places = reducer.kept_places(mask)
    if places is None:
        owner = torch.arange(count, device=tokens.device).expand(batch, -1)
    else:
        owner = nearest_kept(mask, places)
    return kept, _Run(0, state, owner)


def _parts(model: nn.Module) -> tuple[nn.Module, Blocks]:
    """Whatever holds the blocks, and the blocks."""
    for owner in (getattr(model, "backbone", None), model):
        blocks = getattr(owner, "blocks", None)
        if isinstance(owner, nn.Module) and isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks):
            return owner, blocks
    raise UserError("there is neither backbone.blocks nor blocks, a list of layers", type(model).__name__)


def _patch_of(model: nn.Module) -> _Patch:
    owner, _ = _parts(model)
    if RECORD not in owner.__dict__:
        raise UserError("the model is not compressed", type(model).__name__, "hc.apply(model, plan) does it")
    return owner.__dict__[RECORD]


def _grid_of(owner: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches, where the patch embedding tells them."""
    embed = getattr(owner, "patch_embed", None)
    for holder, name in ((embed, "grid_size"), (embed, "patch_shape"), (owner, "grid")):
        found = getattr(holder, name, None)
        if isinstance(found, tuple | list) and len(found) == 2:
            return int(found[0]), int(found[1])
    return GRID_HEIGHT, GRID_WIDTH


def _merged(blocks: Blocks, plan: Plan, patches: Mapping[int, Patch] | None) -> list[nn.Module]:
    """A block for every group: the original where the group is of one, else a new one of merged weights."""
    made: list[nn.Module] = []
    groups = [group for group in plan.groups if len(group) > 1]
    state: dict[str, Tensor] = {}
    if groups:
        for group in groups:
            shapes = [{name: tensor.shape for name, tensor in blocks[number].state_dict().items()} for number in group]
            if odd := [number for number, found in zip(group, shapes, strict=True) if found != shapes[0]]:
                raise UserError(
                    f"layers {group[0]} and {odd[0]} are not built alike, so they cannot be merged", "groups"
                )
        state = merge_layers(blocks.state_dict(), plan.groups, plan.merge_rule, prefix="", patches=patches)
    for layer, group in enumerate(plan.groups):
        if len(group) == 1:
            made.append(blocks[group[0]])
            continue
        block = copy.deepcopy(blocks[group[0]])
        start = f"{layer}."
        block.load_state_dict({name[len(start) :]: value for name, value in state.items() if name.startswith(start)})
        made.append(block)
    return made


def _placement(blocks: nn.Module) -> tuple[Any, ...]:
    """Device, dtype and mode, to see whether they have changed."""
    first = next(blocks.parameters())
    return first.device, first.dtype, blocks.training
