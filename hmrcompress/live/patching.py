"""Compresses a live network of somebody else's code in place: `apply`, `person_mask`, `unapply`.

Blocks keep their own `forward` wherever nothing has to come between their halves; a block in which tokens are merged,
or whose attention is told the sizes of tokens, is taken apart (`live.blocks`). Other arguments of blocks are passed on;
rotary positions among them are cut down to the tokens that are left (`live.positions`).

Such code ends its backbone in `x.permute(0, 2, 1).reshape(B, -1, rows, columns)`, which 90 tokens would silently turn
into nonsense. So the last block hands back one token for every patch of the crop: each patch gets the token that it was
merged into, or, where background was dropped, the kept token that stands for it (`background.nearest_kept`). A
cross-attention over these reads the merged tokens with the log of their sizes as a bias, a mean over them is weighted
by sizes. A plan whose head has that bias is therefore one function in every network; for any other plan the head's
cross-attentions are told to read each token once (`live.heads`), and where they are not known the plan is refused.

Nothing here is global: the mask and the tokens of a forward pass belong to the patched model and to the thread.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.live import passes
from hmrcompress.live.blocks import Anatomy, attend, bound_arguments, feed, plain_output, table_in
from hmrcompress.live.heads import Reading, cross_attentions, read_once, unknown_head
from hmrcompress.live.masks import Masks, MaskSource
from hmrcompress.live.passes import LiveState, Pass
from hmrcompress.live.plans import LivePlan, plan_for
from hmrcompress.live.positions import MASK_NAMES, OFF_NAMES, rows_of
from hmrcompress.live.removed import hollow
from hmrcompress.live.structure import RECORD, Blocks, Network, compressed_in
from hmrcompress.live.structure import network as found_network
from hmrcompress.live.weights import made_blocks
from hmrcompress.merging.apply import TokenMerger, settled, token_counts
from hmrcompress.merging.lstsq import Patch
from hmrcompress.models.fast.network import FastBlock
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.models.vit import ViT
from hmrcompress.plan import ALL, Plan

Module = TypeVar("Module", bound=nn.Module)
PICTURES = 16
"""So many pictures of different sizes one call of the blocks may hold."""


class Replay(Protocol):
    """What a search does with a pass: it starts in a layer whose input it knows, and counts what is computed."""

    def begin(self, tokens: Tensor, state: LiveState | None) -> tuple[int, Any]:
        """A pass has come to the first block with these tokens -> the layer that it is to begin at, and a note."""

    def enter(
        self, layer: int, start: int, note: Any, tokens: Tensor, state: LiveState | None
    ) -> tuple[Tensor, LiveState | None]:
        """Tokens before a layer that is run, start and note of the pass -> those that the layer is to have."""


class Picture(NamedTuple):
    """What a patch embedding was given (B,3,H,W), and the grid that it made of it."""

    pixels: Tensor
    grid: tuple[int, int]


class Local(threading.local):
    """What belongs to one thread: masks (the innermost last), pictures since the last pass began, the passes that are
    on their way by their place in a list of tokens, and what heads know of those that have ended. Copies start empty.
    """

    def __init__(self) -> None:
        self.masks: list[MaskSource] = []
        self.pictures: deque[Picture] = deque(maxlen=PICTURES)
        self.runs: dict[int, Pass] = {}
        self.reading = Reading()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Local, ())


@dataclass(eq=False)
class Patched:
    """What was done to a model and how to undo it. `replaced`: modules, their attributes that were set, and what these
    were before."""

    originals: tuple[nn.Module, ...]
    bodies: tuple[Anatomy | None, ...]
    """By layer of the compressed stack."""
    merger: TokenMerger | None
    grid: tuple[int, int]
    prefix: int
    suffix: int
    plan: Plan
    name: str
    before: tuple[Any, ...]
    replay: Replay | None = None
    wraps: bool = False
    """Whether blocks give back tuples."""
    replaced: list[tuple[nn.Module, str, Callable | None]] = field(default_factory=list)
    local: Local = field(default_factory=Local)

    @property
    def depth(self) -> int:
        """Layers that are left."""
        return len(self.plan.kept_groups)

    def replace(self, module: nn.Module, name: str, function: Callable) -> None:
        """Sets an attribute of one module to a function, until `unapply`."""
        self.replaced.append((module, name, module.__dict__.get(name)))
        module.__dict__[name] = function


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
    plan.tell_run(live=True)
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
            patch.replace(block, "forward", partial(_forward, patch, layer, block, own))
    for name, module in heads.items():
        patch.replace(module, "forward", partial(_read, patch, module, module.__dict__.get("forward"), name))
    if merger is not None:
        if found.stem is not None:
            patch.replace(found.stem, "forward", partial(_embed, patch, found.stem, found.stem.__dict__.get("forward")))
        if isinstance(owner, ViT):
            patch.replace(owner, "encode", partial(_encode, patch, owner))
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


def _forward(
    patch: Patched, layer: int, block: nn.Module, own: Callable[..., Any] | None, tokens: Any, *args: Any, **kwargs: Any
) -> Any:
    """What a block of a compressed model does, with its own `forward` where the instance had one: a tensor of tokens,
    or a list of them, one for each size of crop."""
    call = own or type(block).forward.__get__(block)
    if layer == 0:
        _begin_all(patch, [tokens] if isinstance(tokens, Tensor) else tokens)
    if isinstance(tokens, Tensor):
        return _one(patch, layer, block, call, 0, tokens, args, kwargs)
    count = len(tokens)
    results = []
    for place, part in enumerate(tokens):
        its = tuple(_of(arg, place, count) for arg in args)
        named = {name: _of(arg, place, count) for name, arg in kwargs.items()}
        results.append(_one(patch, layer, block, call, place, part, its, named))
    return results


def _of(argument: Any, place: int, count: int) -> Any:
    """The part of an argument that goes with one of a list of tokens."""
    return argument[place] if isinstance(argument, list) and len(argument) == count else argument


def _one(
    patch: Patched,
    layer: int,
    block: nn.Module,
    call: Callable[..., Any],
    place: int,
    tokens: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Tokens (B,M,D) through a layer -> (B,M',D), as the block gives them back; the last gives one for every patch."""
    local, replay = patch.local, patch.replay
    run = local.runs.get(place)
    if run is not None and layer == 0:
        tokens = run.entered
    size = None if run is None else run.state.sizes.shape[1] + patch.prefix + patch.suffix
    if run is None or run.layer != layer or (patch.merger is not None and tokens.shape[1] != size):
        raise UserError(
            f"layer {layer} was not called after layer {layer - 1} on its tokens",
            "hc.apply",
            "Switch gradient checkpointing off",
        )
    output: Any = (tokens,) if patch.wraps else tokens
    if layer >= run.start:
        if replay is not None:
            state = run.state if patch.merger else None
            tokens, found = replay.enter(layer, run.start, run.note, tokens, state)
            if found is not None and found is not state:
                probe = None if patch.merger is None else patch.merger.probe
                run.resume(found, unlocated=run.unlocated and probe is not None and layer <= probe.layer)
        output = _computed(patch, layer, block, call, run, tokens, args, kwargs)
    run.layer += 1
    if run.layer < patch.depth:
        return output
    del local.runs[place]
    if patch.merger is None or run.whole:
        return output
    parts = passes.split(plain_output(output), patch.prefix, patch.suffix)
    local.reading.remember(run.state.owner, parts.patches.shape[1])
    full = parts.joined(passes.restored(run, parts.patches))
    return (full, *output[1:]) if isinstance(output, tuple) else full


def _computed(
    patch: Patched,
    layer: int,
    block: nn.Module,
    call: Callable[..., Any],
    run: Pass,
    tokens: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """What the block gives back for these tokens: by its own forward, unless something has to come in between."""
    merger, body = patch.merger, patch.bodies[layer]
    if merger is None:
        return call(tokens, *args, **kwargs)
    assert body is not None
    bias = passes.bias_of(merger, run, patch.prefix, patch.suffix)
    removes = merger.removes(layer, run.state.sizes.shape[1])
    apart = bias is not None or run.unlocated or removes > 0
    if apart or not run.whole:
        args, kwargs = _fitted(block, body, run, args, kwargs, f"{patch.name}.{layer}")
    if not apart:
        return call(tokens, *args, **kwargs)
    mixed, keys = attend(block, body, tokens, patch.prefix, table_in(block, body, args, kwargs), bias)
    parts = passes.split(tokens + mixed, patch.prefix, patch.suffix)
    before = parts.patches
    patches = passes.located(merger, run, layer, before)
    stop = keys.shape[2] - patch.suffix
    if patches.shape[1] == before.shape[1]:
        patches = passes.merged(merger, run, layer, patches, keys[:, :, patch.prefix : stop])
    tokens = parts.joined(patches) if patches is not before else tokens + mixed
    output = feed(block, body, tokens)
    return (output,) if patch.wraps else output


def _fitted(
    block: nn.Module, body: Anatomy, run: Pass, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments for fewer tokens: rotary positions of those that are left. UserError for what is about pairs
    of tokens."""
    named = bound_arguments(block, args, kwargs)
    for name in (*MASK_NAMES, *OFF_NAMES):
        value = named.get(name)
        if isinstance(value, Tensor) or value is True:
            raise UserError(f"is called with {name}, which does not fit merged tokens", where)
    if body.rope is None or named.get(body.rope) is None or run.whole:
        return args, kwargs
    rows = rows_of(named[body.rope], run.state.place)
    if body.rope in kwargs:
        return args, {**kwargs, body.rope: rows}
    place = list(named).index(body.rope)
    return (*args[:place], rows, *args[place + 1 :]), kwargs


def _begin_all(patch: Patched, parts: Sequence[Tensor]) -> None:
    """Passes begin, one for each of these tokens (B,M,D); the pictures that they were made of are the last ones."""
    found = list(patch.local.pictures)[-len(parts) :]
    patch.local.pictures.clear()
    pictures = [*[None] * (len(parts) - len(found)), *found]
    patch.local.runs = {}
    for place, (tokens, picture) in enumerate(zip(parts, pictures, strict=True)):
        entered, run = _begin(patch, tokens, picture)
        run.entered = entered
        patch.local.runs[place] = run


def _begin(patch: Patched, tokens: Tensor, picture: Picture | None) -> tuple[Tensor, Pass]:
    """Tokens (B,M,D) as they enter the first block -> those that stay, and the pass."""
    local, merger = patch.local, patch.merger
    if merger is None:
        nothing = tokens.new_zeros(0, 0)
        run = Pass(0, patch.grid, LiveState(nothing, nothing, nothing, nothing), unlocated=False, whole=True)
        if patch.replay is not None:
            run.start, run.note = patch.replay.begin(tokens, None)
        return tokens, run
    mask = local.masks[-1].next(None if picture is None else picture.pixels) if local.masks else None
    batch, count = tokens.shape[0], tokens.shape[1] - patch.prefix - patch.suffix
    grid = patch.grid
    if mask is not None:
        grid = int(mask.shape[1]), int(mask.shape[2])
    elif picture is not None:
        grid = picture.grid
    if count != grid[0] * grid[1]:
        others = f" and {patch.prefix + patch.suffix} others" if patch.prefix + patch.suffix else " and no others"
        raise ShapeError(
            f"got {tokens.shape[1]} tokens, expected {grid[0]} x {grid[1]} patches{others}",
            "hc.apply" if mask is None else "hc.person_mask",
            "Say how many tokens belong to no patch: hc.live.network(model, grid=…, prefix=…)",
        )
    if mask is not None and len(mask) != batch:
        raise ShapeError(f"got {len(mask)} masks for {batch} crops", "hc.person_mask")
    parts = passes.split(tokens, patch.prefix, patch.suffix)
    if mask is None and merger.probe is None:
        mask = torch.zeros(batch, *grid, dtype=torch.bool)
    kept, run = passes.begun(merger, parts.patches, None if mask is None else mask.to(tokens.device), grid)
    tokens = tokens if kept is parts.patches else parts.joined(kept)
    if patch.replay is not None:
        run.start, run.note = patch.replay.begin(tokens, run.state)
    return tokens, run


def _embed(patch: Patched, stem: nn.Module, own: Callable[..., Any] | None, pixels: Tensor) -> Tensor:
    """What the convolution that makes patches does: it notes the picture and its grid."""
    patches = (own or type(stem).forward.__get__(stem))(pixels)
    patch.local.pictures.append(Picture(pixels, (int(patches.shape[2]), int(patches.shape[3]))))
    return patches


def _read(patch: Patched, module: nn.Module, before: Callable | None, name: str, *args: Any, **kwargs: Any) -> Any:
    """What a cross-attention of a head does: it reads each merged token once."""
    return read_once(patch.local.reading, module, before, name, args, kwargs)


def _encode(patch: Patched, backbone: ViT, images: Tensor, person_mask: Tensor | None = None) -> Any:
    """What a backbone of ours does with the mask that it is called with: it counts as one of `person_mask`."""
    if person_mask is None:
        return ViT.encode(backbone, images)
    patch.local.masks.append(MaskSource(person_mask))
    try:
        return ViT.encode(backbone, images, person_mask)
    finally:
        patch.local.masks.pop()


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
        patch.replace(copied, "forward", partial(_forward, patch, layer, copied, own))
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
