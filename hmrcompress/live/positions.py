"""Rotary positions (RoPE) that blocks are handed from outside, carried per token when tokens become fewer. Pure
tensors and signatures; knows no model.

A table has a row for every patch of the grid, none for prefix tokens. Three ways of handing it over are known: a pair
(sin, cos) as DINOv3's own code does, a pair (cos, sin) called `position_embeddings` as `transformers` does, and one
tensor with sines before cosines as timm does. Tables are (patches, d); where tokens are dropped or merged, each crop
gets rows of its own, (B,1,M,d), which all three codes take as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Form = Literal["sin_cos", "cos_sin", "joined"]
ROPE_NAMES = ("rope", "rope_or_rope_list", "position_embeddings", "rope_sincos", "rotary_pos_emb")
"""What blocks call the argument that holds the table."""
COSINE_FIRST = ("position_embeddings",)
MASK_NAMES = ("attention_mask", "attn_mask", "attn_bias", "head_mask", "mask")
"""What they call arguments about pairs of tokens, which fewer tokens would not fit."""
OFF_NAMES = ("is_causal", "output_attentions")
"""Flags that have to be off where a block is taken apart."""


@dataclass(frozen=True)
class Table:
    """sine and cosine, (…,M,d). `half`: element j turns with element j + d/2, else with its neighbour."""

    sine: Tensor
    cosine: Tensor
    half: bool = True

    @property
    def patches(self) -> int:
        """M, the number of rows."""
        return int(self.sine.shape[-2])

    def rotated(self, part: Tensor, prefix: int) -> Tensor:
        """Queries or keys (B,heads,prefix+M+…,d) with the M behind the prefix turned; in their own dtype."""
        stop = prefix + self.patches
        middle = part[:, :, prefix:stop].to(torch.promote_types(part.dtype, self.sine.dtype))
        turned = (middle * self.cosine + self._turned(middle) * self.sine).to(part.dtype)
        if prefix == 0 and stop == part.shape[2]:
            return turned
        return torch.cat([part[:, :, :prefix], turned, part[:, :, stop:]], dim=2)

    def _turned(self, part: Tensor) -> Tensor:
        if self.half:
            first, second = part.chunk(2, dim=-1)
            return torch.cat([-second, first], dim=-1)
        return torch.stack([-part[..., 1::2], part[..., ::2]], dim=-1).flatten(-2)


def names_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a forward's parameters in order, without `*args` and `**kwargs`; empty where they are hidden."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD))


def rope_name(names: tuple[str, ...]) -> str | None:
    """The parameter that holds the table, if a block has one."""
    return next((name for name in names if name in ROPE_NAMES), None)


def table_of(value: Any, name: str, half: bool) -> Table | None:
    """What a block was handed, as a table; None for nothing and for what is no table."""
    if isinstance(value, Tensor):
        sine, cosine = value.chunk(2, dim=-1)
        return Table(sine, cosine, half)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, Tensor) for part in value):
        sine, cosine = reversed(value) if name in COSINE_FIRST else value
        return Table(sine, cosine)
    return None


def rows_of(value: Any, place: Tensor) -> Any:
    """The same value with the rows of the tokens at `place` (B,M) alone: (patches,d) or (B|1,1,patches,d) ->
    (B,1,M,d), in every tensor of it."""
    if isinstance(value, Tensor):
        table = value if value.ndim == 4 else value[None, None]
        index = place[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[-1])
        return table.expand(len(place), -1, -1, -1).gather(2, index)
    return type(value)(rows_of(part, place) for part in value)


def made_up(name: str, count: int, size: int, like: Tensor, *, joined: bool) -> Any:
    """A table of random angles for `count` patches and heads of `size`, as a block with this parameter takes it."""
    random = torch.Generator().manual_seed(1)
    angles = torch.rand(count, size // 2, generator=random, dtype=torch.float64).mul(6.28).repeat(1, 2)
    sine, cosine = (part.to(like) for part in (angles.sin(), angles.cos()))
    if joined:
        return torch.cat([sine, cosine], dim=-1)
    return (cosine, sine) if name in COSINE_FIRST else (sine, cosine)
