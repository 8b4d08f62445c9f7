"""Finding what can be compressed in a model of other code: its stack of blocks, and what the tokens in it are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError, some
from hmrcompress.live.blocks import Anatomy, Refused, anatomy, check_same
from hmrcompress.live.watching import Seen, watched
from hmrcompress.plan import CheckpointRef
from hmrcompress.records import CROP

Blocks = nn.ModuleList | nn.Sequential
RECORD = "_hmrcompress_patch"
"""Attribute of the list of blocks that holds what was done to a model."""
FAMILY = "live:"
"""How plans that were made for live networks call their families; the hash beside is one of blocks."""
USUAL = ("backbone.blocks", "blocks")
"""Lists that are taken for stacks although their blocks cannot be taken apart: layers can be merged in them."""
PREFIX_TOKENS = ("cls_token", "register_tokens", "reg_token", "storage_tokens", "task_tokens", "dist_token")
CONFIG_SIDES = (("image_size", "patch_size"), ("img_size", "patch_size"))


@dataclass(frozen=True, eq=False)
class Network:
    """A stack of blocks in a live model. `name` is where it is, `owner` what holds it, `stem` the convolution that
    makes patches, if one is known; `grid` rows and columns of patches; `prefix` and `suffix` the tokens in front of
    the patches and behind them. `bodies` say how each block is taken apart; where one cannot be, `refusal` says why
    tokens cannot be merged. Layers can be merged in any case."""

    model: nn.Module
    name: str
    blocks: Blocks
    stem: nn.Module | None
    grid: tuple[int, int]
    grid_known: bool
    prefix: int = 0
    suffix: int = 0
    bodies: tuple[Anatomy, ...] = ()
    refusal: UserError | None = None
    wraps: bool = False
    """Whether blocks give back a tuple of which tokens are the first."""
    seen: Seen | None = None
    _hash: list[str] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """Patches of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def dim(self) -> int:
        """Channels of a token."""
        if self.bodies:
            body = self.bodies[0]
            return cast(nn.Linear, self.blocks[0].get_submodule(f"{body.attention}.{body.qkv[0]}")).in_features
        return next(parameter.shape[-1] for parameter in self.blocks.parameters())

    @property
    def sha256(self) -> str:
        """Hash of the blocks' tensors, by name; of a compressed model, of the blocks as they were when first asked."""
        if not self._hash:
            self._hash.append(hash_of(self.blocks.state_dict()))
        return self._hash[0]

    @property
    def family(self) -> str:
        """What plans for this network call it: `live:` and the model's class."""
        return f"{FAMILY}{type(self.model).__name__}"

    @property
    def reference(self) -> CheckpointRef:
        """What a plan for it refers to."""
        return CheckpointRef(family=self.family, sha256=self.sha256, layers=self.depth)

    def __str__(self) -> str:
        rows, columns = self.grid
        block = type(self.blocks[0]).__name__
        others = [f"{count} tokens {where}" for count, where in ((self.prefix, "in front"), (self.suffix, "behind"))]
        around = ", ".join(text for text in others if not text.startswith("0 ")) or "no other tokens"
        known = "" if self.grid_known else " (assumed)"
        found = f"{self.name}: {self.depth} of {block}, grid {rows} x {columns}{known}, {around}"
        if self.refusal is not None:
            return f"{found}; layers can be merged, tokens cannot ({self.refusal})"
        body = self.bodies[0]
        ways = [
            "joint qkv" if len(body.qkv) == 1 else "separate q, k, v",
            *(["layer scale"] if body.scales else []),
            *([f"rotary positions in {body.rope}"] if body.rope else []),
        ]
        return f"{found}; layers and tokens can be merged ({', '.join(ways)})"


def network(
    model: nn.Module,
    blocks: str | None = None,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
    *,
    suffix: int = 0,
    example: Callable[[], Any] | None = None,
) -> Network:
    """Finds the stack of blocks of a live model; `print` what it gives to see what was found.

    blocks: where the list of blocks is, such as `backbone.encoder.blocks`; without it, the one stack that is found by
    its structure. grid: rows and columns of patches; prefix, suffix: tokens in front of the patches and behind them
    that belong to no patch. What is not given is read off the model (patch embedding, configuration, class and
    register tokens), or off one call of `example`, such as `lambda: model(batch)`. Nothing is changed.

    UserError where there is no such stack or several, the model is spread over several devices, or what was given
    contradicts the call.
    """
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise UserError(
            f"is spread over {len(model.device_ids)} devices, whose copies do not know what is merged",
            type(model).__name__,
            "Give the module inside (model.module)",
        )
    name, found = (blocks, _named(model, blocks)) if blocks is not None else _found(model)
    holders = _holders(model, name)
    stem = _stem(holders, found)
    told = grid or _grid_of(holders)
    known = Network(
        model, name, found, stem,
        grid=told or CROP.grid, grid_known=told is not None,
        prefix=_prefix_of(holders) if prefix is None else prefix, suffix=suffix,
    )  # fmt: skip
    if example is not None:
        known = _looked_at(known, example, grid is not None, prefix is not None)
    return _examined(known)


def hash_of(state: dict[str, Tensor]) -> str:
    """sha256 of tensors by name, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compressed_in(model: nn.Module) -> nn.Module | None:
    """The list of blocks that is compressed in a model, if one is."""
    return next((module for module in model.modules() if RECORD in module.__dict__), None)


def _examined(known: Network) -> Network:
    """With what is known of its blocks: each is looked at, the first and the last are run on noise."""
    given = None if known.seen is None else known.seen.arguments
    try:
        bodies = tuple(anatomy(block, f"{known.name}.{number}") for number, block in enumerate(known.blocks))
        wraps = False
        for number in sorted({0, known.depth - 1}):
            wraps = check_same(
                known.blocks[number], bodies[number], f"{known.name}.{number}", known.tokens, known.prefix,
                known.suffix, given,
            )  # fmt: skip
    except Refused as refusal:
        return replace(known, refusal=refusal)
    return replace(known, bodies=bodies, wraps=wraps)


def _looked_at(known: Network, example: Callable[[], Any], fixed_grid: bool, fixed_prefix: bool) -> Network:
    """With grid and prefix as a call of the model shows them."""
    with torch.no_grad(), watched(known.blocks[0], known.stem) as seen:
        example()
    if seen.tokens is None:
        raise UserError("was not reached by the call that was given as an example", f"{known.name}.0")
    grid = seen.grid if seen.grid is not None and not fixed_grid else known.grid
    patches = grid[0] * grid[1]
    prefix = known.prefix if fixed_prefix else seen.tokens - patches - known.suffix
    if prefix < 0 or patches + prefix + known.suffix != seen.tokens:
        raise UserError(
            f"got {seen.tokens} tokens, expected {grid[0]} x {grid[1]} patches, {known.prefix} tokens in front and "
            f"{known.suffix} behind",
            known.name,
            "Give grid, prefix and suffix",
        )
    sure = known.grid_known or seen.grid is not None
    return replace(known, grid=grid, grid_known=sure, prefix=prefix, seen=seen)


def _named(model: nn.Module, name: str) -> Blocks:
    found: Any = model
    for step in name.split("."):
        found = getattr(found, step, None)
        if found is None:
            raise UserError(f"there is no {name}", type(model).__name__, _stacks_text(model))
    if not isinstance(found, nn.ModuleList | nn.Sequential) or not len(found):
        raise UserError(f"{name} is a {type(found).__name__}, expected a list of blocks", type(model).__name__)
    return found


def _found(model: nn.Module) -> tuple[str, Blocks]:
    """The one stack of the model, by the structure of its blocks, else by its usual name."""
    stacks = _stacks(model)
    if not stacks:
        for name in USUAL:
            try:
                return name, _named(model, name)
            except UserError:
                continue
        raise UserError(
            "there is neither backbone.blocks nor blocks, a list of layers, nor another stack of transformer blocks",
            type(model).__name__,
            'Say where it is, such as blocks="encoder.layers"',
        )
    if len(stacks) > 1:
        lengths = ", ".join(f"{name} ({len(found)})" for name, found in stacks.items())
        raise UserError(f"there are several stacks of blocks: {lengths}", type(model).__name__, "Say which: blocks=…")
    return next(iter(stacks.items()))


def _stacks(model: nn.Module) -> dict[str, Blocks]:
    """Lists of blocks that can be taken apart, by name; each once."""
    stacks: dict[str, Blocks] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or not len(module):
            continue
        try:
            for block in module:
                anatomy(block, name)
        except Refused:
            continue
        stacks[name] = module
    return stacks


def _stacks_text(model: nn.Module) -> str:
    stacks = list(_stacks(model))
    return f"Try {some(stacks)}" if stacks else ""


def _holders(model: nn.Module, name: str) -> list[nn.Module]:
    """What the list of blocks lies in, innermost first, the model last."""
    steps = name.split(".")[:-1]
    holders = [model]
    for step in steps:
        holders.append(getattr(holders[-1], step))
    return holders[::-1]


def _stem(holders: Sequence[nn.Module], blocks: Blocks) -> nn.Module | None:
    """The convolution that cuts pictures into patches, nearest to the blocks."""
    inside = set(blocks.modules())
    for holder in holders:
        for module in holder.modules():
            if isinstance(module, nn.Conv2d) and module not in inside and module.kernel_size == module.stride:
                if module.in_channels == 3 and module.kernel_size[0] > 1:
                    return module
    return None


def _parts(holder: nn.Module) -> list[nn.Module]:
    """What may say something about patches and tokens: the holder itself and its embedding."""
    parts = [holder]
    for name in ("patch_embed", "embeddings", "patch_embeddings"):
        for part in list(parts):
            found = getattr(part, name, None)
            if isinstance(found, nn.Module):
                parts.append(found)
    return parts


def _grid_of(holders: Sequence[nn.Module]) -> tuple[int, int] | None:
    """Rows and columns of patches, where a patch embedding or a configuration tells them."""
    for holder in holders:
        for part in _parts(holder):
            for name in ("grid_size", "patch_shape", "grid", "patches_resolution"):
                found = getattr(part, name, None)
                if isinstance(found, tuple | list) and len(found) == 2:
                    return int(found[0]), int(found[1])
        config = getattr(holder, "config", None)
        for side, patch in CONFIG_SIDES:
            picture, size = _pair(getattr(config, side, None)), _pair(getattr(config, patch, None))
            if picture and size:
                return picture[0] // size[0], picture[1] // size[1]
    return None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int) and value > 0:
        return value, value
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, int) for part in value):
        return value[0], value[1]
    return None


def _prefix_of(holders: Sequence[nn.Module]) -> int:
    """Tokens in front of the patches: what the model says, else its class, register and task tokens."""
    for holder in holders:
        told = getattr(holder, "num_prefix_tokens", None)
        if isinstance(told, int) and not isinstance(told, bool):
            return told
        counts = 0
        for part in _parts(holder):
            for name in PREFIX_TOKENS:
                tokens = getattr(part, name, None)
                if isinstance(tokens, nn.Parameter) and tokens.ndim == 3:
                    counts += int(tokens.shape[1])
                elif isinstance(tokens, nn.Embedding):
                    counts += tokens.num_embeddings
        if counts:
            return counts
    return 0
