"""The two halves of a transformer block as timm and its kin write it, taken apart so that tokens can be merged between.

A block is `x + drop_path(ls(attn(norm1(x))))`, then `x + drop_path(ls(mlp(norm2(x))))`; everything but `norm1`,
`attn.qkv`, `attn.proj`, `norm2` and `mlp` is optional. Knows no class, names only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.errors import UserError

BLOCK_NEEDS = ("norm1", "attn", "norm2", "mlp")
BLOCK_MAY_HAVE = ("drop_path", "drop_path1", "drop_path2", "ls1", "ls2")
ATTENTION_NEEDS = ("qkv", "proj")
ATTENTION_MAY_HAVE = ("attn_drop", "proj_drop", "q_norm", "k_norm")
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_TOLERANCE = 3e-2


def attend(block: Any, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the attention half adds: tokens (B,M,D) -> (B,M,D), and keys (B,heads,M,d); bias is added to its logits."""
    attention = block.attn
    query, key, value = attention.qkv(block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    query, key = _optional(attention, "q_norm", query), _optional(attention, "k_norm", key)
    dropped = (
        attention.attn_drop.p if attention.training and isinstance(_part(attention, "attn_drop"), nn.Dropout) else 0
    )
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if bias is None else bias.to(query.dtype),
        dropout_p=dropped,
        scale=getattr(attention, "scale", None),
    )
    mixed = _optional(attention, "proj_drop", attention.proj(mixed.transpose(1, 2).flatten(2)))
    return _scaled(block, 1, mixed), key


def feed(block: Any, tokens: Tensor) -> Tensor:
    """The MLP half: tokens (B,M,D) -> (B,M,D)."""
    return tokens + _scaled(block, 2, block.mlp(block.norm2(tokens)))


def check_block(block: nn.Module, number: int) -> None:
    """UserError naming what a block lacks or has too much of."""
    _check_parts(block, f"blocks.{number}", BLOCK_NEEDS, BLOCK_MAY_HAVE)
    attention = block.get_submodule("attn")
    _check_parts(attention, f"blocks.{number}.attn", ATTENTION_NEEDS, ATTENTION_MAY_HAVE)
    if not isinstance(getattr(attention, "num_heads", None), int):
        raise UserError("there is no num_heads", f"blocks.{number}.attn")


def check_same(block: nn.Module, number: int, count: int) -> None:
    """UserError unless `attend` and `feed` compute what the block itself does, on `count` tokens of noise."""
    like = next(block.parameters())
    dim = block.get_submodule("attn.qkv").in_features
    noise = torch.randn(1, count, int(dim), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    noise = noise.to(like)
    training = {module: module.training for module in block.modules()}
    try:
        with torch.no_grad():
            block.eval()
            tokens = noise + attend(block, noise)[0]
            expected, got = block(noise), feed(block, tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"does not run on tokens alone ({error})", f"blocks.{number}") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    bound = TOLERANCE.get(like.dtype, HALF_TOLERANCE)
    if not isinstance(expected, Tensor) or not torch.allclose(got.float(), expected.float(), rtol=bound, atol=bound):
        raise UserError("does not compute x + attn(norm1(x)), then x + mlp(norm2(x))", f"blocks.{number}")


def _check_parts(module: nn.Module, where: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    parts = dict(module.named_children())
    if missing := [name for name in needed if name not in parts]:
        raise UserError(f"there is no {missing[0]}; blocks need {', '.join(needed)}", where)
    odd = [
        name for name, part in parts.items() if name not in (*needed, *optional) and not isinstance(part, nn.Identity)
    ]
    odd += [name for name, _ in module.named_parameters(recurse=False)]
    odd += [name for name, _ in module.named_buffers(recurse=False)]
    if odd:
        raise UserError(f"has {odd[0]}, which token merging would leave out", where)


def _part(module: Any, name: str) -> Any:
    return getattr(module, name, None)


def _optional(module: Any, name: str, tensor: Tensor) -> Tensor:
    """The tensor through the part of that name, if there is one."""
    part = _part(module, name)
    return part(tensor) if isinstance(part, nn.Module) else tensor


def _scaled(block: Any, half: int, tensor: Tensor) -> Tensor:
    """Layer scale and drop-path of one half of a block, where it has them."""
    tensor = _optional(block, f"ls{half}", tensor)
    name = f"drop_path{half}"
    return _optional(block, name if isinstance(_part(block, name), nn.Module) else "drop_path", tensor)
