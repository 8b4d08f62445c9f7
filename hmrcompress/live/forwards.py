"""What the blocks of a compressed live network do in a pass, from the patch embedding to behind the last.

Blocks keep their own `forward` wherever nothing has to come between their halves; a block in which tokens are merged,
or whose attention is told the sizes of tokens, is taken apart (`live.blocks`). Other arguments of blocks are passed on;
rotary positions among them are cut down to the tokens that are left (`live.positions`).

Such code ends its backbone in `x.permute(0, 2, 1).reshape(B, -1, rows, columns)`, which 90 tokens would silently turn
into nonsense. So the last block hands back one token for every patch of the crop: each patch gets the token that it was
merged into, or, where background was dropped, the kept token that stands for it (`background.nearest_kept`).

Nothing here is global: the mask and the tokens of a forward pass belong to the patched model and to the thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.live import passes
from hmrcompress.live.blocks import Anatomy, attend, bound_arguments, feed, plain_output, table_in
from hmrcompress.live.heads import Reading, read_once
from hmrcompress.live.masks import MaskSource
from hmrcompress.live.passes import LiveState, Pass
from hmrcompress.live.positions import MASK_NAMES, OFF_NAMES, rows_of
from hmrcompress.merging.apply import TokenMerger
from hmrcompress.models.vit import ViT
from hmrcompress.plan import Plan

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


def forward(
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


def embed(patch: Patched, stem: nn.Module, own: Callable[..., Any] | None, pixels: Tensor) -> Tensor:
    """What the convolution that makes patches does: it notes the picture and its grid."""
    patches = (own or type(stem).forward.__get__(stem))(pixels)
    patch.local.pictures.append(Picture(pixels, (int(patches.shape[2]), int(patches.shape[3]))))
    return patches


def read(patch: Patched, module: nn.Module, before: Callable | None, name: str, *args: Any, **kwargs: Any) -> Any:
    """What a cross-attention of a head does: it reads each merged token once."""
    return read_once(patch.local.reading, module, before, name, args, kwargs)


def encode(patch: Patched, backbone: ViT, images: Tensor, person_mask: Tensor | None = None) -> Any:
    """What a backbone of ours does with the mask that it is called with: it counts as one of `person_mask`."""
    if person_mask is None:
        return ViT.encode(backbone, images)
    patch.local.masks.append(MaskSource(person_mask))
    try:
        return ViT.encode(backbone, images, person_mask)
    finally:
        patch.local.masks.pop()
