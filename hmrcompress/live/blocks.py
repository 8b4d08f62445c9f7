"""Blocks of other code: which parts they have, whatever these are called, and their two halves taken apart, so that
tokens can be merged between. Knows names and formulas, no class.

A block is `x + drop(scale(attention(norm(x))))`, then `x + drop(scale(mlp(norm(x))))`. Queries, keys and values come
from one linear layer or three; norms of queries and keys, rotary positions, layer scale (a module or a bare parameter)
and a gated MLP are honoured; what is left over in a block is named and refused. `check_same` runs a block beside its
halves. Names: timm (ViT, EVA), ViTPose and HMR2.0, DINOv2, DINOv3, and ViT, DINOv2, DINOv3 and ViTPose of
`transformers`, old and new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.errors import UserError, first_line
from hmrcompress.live.positions import Table, made_up, names_of, rope_name, table_of

NORMS = (("norm1", "norm2"), ("layernorm_before", "layernorm_after"))
ATTENTIONS = ("attn", "attention")
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("attention.query", "attention.key", "attention.value"),
    ("query", "key", "value"),
)
OUTPUTS = ("proj", "o_proj", "output.dense")
SCALES = (("ls1", "ls2"), ("layer_scale1", "layer_scale2"))
BARE_SCALES = ("gamma_1", "gamma_2")
QUERY_NORMS, OUTPUT_NORM = ("q_norm", "k_norm"), "norm"
BARE_BIASES = ("q_bias", "k_bias", "v_bias")
DROPS = ("drop_path", "drop_path1", "drop_path2", "dropout", "proj_drop")
HEADS = ("num_heads", "num_attention_heads")
LOGIT_SCALES = ("scale", "scaling")
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a block are, as dotted names within it. `qkv` has one name or three; `heads` is the number of
    heads; `rope` the parameter of `forward` that holds rotary positions; `dense` whether the MLP is written as
    `intermediate` and `output`."""

    norms: tuple[str, str]
    attention: str
    qkv: tuple[str, ...]
    output: str
    heads: int
    scales: tuple[str, str] | None = None
    bare_biases: bool = False
    rope: str | None = None
    half: bool = True
    logit_scale: float | None = None
    dense: bool = False


class Refused(UserError):
    """A block that cannot be taken apart."""


def anatomy(block: nn.Module, where: str) -> Anatomy:
    """Finds the parts. Raises Refused naming what a block at `where` lacks or has too much of."""
    parts = dict(block.named_children())
    norms = next((pair for pair in NORMS if any(name in parts for name in pair)), NORMS[0])
    holder = next((name for name in ATTENTIONS if name in parts), ATTENTIONS[0])
    dense = "mlp" not in parts and {"intermediate", "output"} <= set(parts)
    needed = (norms[0], holder, norms[1], *(("intermediate", "output") if dense else ("mlp",)))
    if missing := [name for name in needed if name not in parts]:
        raise Refused(f"there is no {missing[0]}; blocks need {', '.join(needed)}", where)
    attention = parts[holder]
    qkv = _qkv(attention, f"{where}.{holder}")
    output = next((name for name in OUTPUTS if _part(attention, name) is not None), None)
    if output is None:
        raise Refused(f"there is no {OUTPUTS[0]}", f"{where}.{holder}")
    bare = {name for name, _ in (*block.named_parameters(recurse=False), *block.named_buffers(recurse=False))}
    scales = next((pair for pair in SCALES if any(name in parts for name in pair)), None)
    if set(BARE_SCALES) <= bare or (scales is None and all(hasattr(block, name) for name in BARE_SCALES)):
        scales, bare = BARE_SCALES, bare - set(BARE_SCALES)
    inner = {name for name, _ in (*attention.named_parameters(recurse=False), *attention.named_buffers(recurse=False))}
    bare_biases = {"q_bias", "v_bias"} <= inner
    inner -= set(BARE_BIASES) if bare_biases else set()
    odd = sorted(bare) + _odd(block, "", (*needed, *(scales or ())))
    if odd:
        raise Refused(f"has {odd[0]}, which token merging would leave out", where)
    linears = (*qkv, output)
    odd = sorted(inner) + _odd(attention, "", (*linears, *QUERY_NORMS, OUTPUT_NORM))
    if odd:
        raise Refused(f"has {odd[0]}, which token merging would leave out", f"{where}.{holder}")
    names = names_of(type(block).forward)
    half = getattr(attention, "rotate_half", True)
    inside = _part(attention, "attention")
    heads = _number((attention, inside), HEADS)
    if heads is None:
        raise Refused("there is no num_heads", f"{where}.{holder}")
    return Anatomy(
        norms, holder, qkv, output, heads, scales, bare_biases, rope_name(names), bool(half),
        _number((attention, inside), LOGIT_SCALES, float), dense,
    )  # fmt: skip


def attend(block: nn.Module, body: Anatomy, tokens: Tensor, prefix: int, table: Table | None, bias: Tensor | None = None
           ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the attention half adds: tokens (B,M,D) -> (B,M,D), and keys (B,heads,M,d) without positions.

    table: turns queries and keys of the tokens behind the `prefix`; bias (B,1,1,M) is added to the logits.
    """
    attention = block.get_submodule(body.attention)
    query, key, value = _heads(attention, body, block.get_submodule(body.norms[0])(tokens))
    query, key = _optional(attention, "q_norm", query), _optional(attention, "k_norm", key)
    plain = key
    if table is not None:
        query, key = table.rotated(query, prefix), table.rotated(key, prefix)
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if bias is None else bias.to(query.dtype),
        dropout_p=_dropout(attention),
        scale=body.logit_scale,
    )
    mixed = _optional(attention, OUTPUT_NORM, mixed.transpose(1, 2).flatten(2))
    mixed = _optional(attention, "proj_drop", attention.get_submodule(body.output)(mixed))
    return _scaled(block, body, 0, mixed), plain


def feed(block: nn.Module, body: Anatomy, tokens: Tensor) -> Tensor:
    """The MLP half: tokens (B,M,D) -> (B,M,D)."""
    normed = block.get_submodule(body.norms[1])(tokens)
    if body.dense:
        return block.get_submodule("output")(block.get_submodule("intermediate")(normed), tokens)
    return tokens + _scaled(block, body, 1, block.get_submodule("mlp")(normed))


def check_same(
    block: nn.Module, body: Anatomy, where: str, count: int, prefix: int = 0, suffix: int = 0,
    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
) -> bool:  # fmt: skip
    """Refused unless `attend` and `feed` compute what the block itself does, on noise: `count` patches and others.
    Says whether the block gives back a tuple.

    given: arguments of a real call beside the tokens; without them rotary positions are made up. Noise has the dtype
    of the block's widest parameters and goes through it without autocast.
    """
    like = _like(block)
    dim = cast(nn.Linear, block.get_submodule(f"{body.attention}.{body.qkv[0]}")).in_features
    noise = torch.randn(1, prefix + count + suffix, dim, generator=torch.Generator().manual_seed(0)).to(like)
    args, kwargs = given or ((), {})
    training = {module: module.training for module in block.modules()}
    try:
        with torch.no_grad():
            for module in training:
                module.training = False
            if given is None and body.rope is not None:
                kwargs = {body.rope: _rope_for(block, body, noise, count)}
            table = table_in(block, body, args, kwargs)
            output = block(noise, *args, **kwargs)
            expected = plain_output(output)
            got = feed(block, body, noise + attend(block, body, noise, prefix, table)[0])
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, IndexError) as error:
        raise Refused(f"does not run on tokens alone ({first_line(error)})", where) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    bound = TOLERANCE.get(like.dtype, HALF_TOLERANCE)
    if not isinstance(expected, Tensor) or not torch.allclose(got.float(), expected.float(), rtol=bound, atol=bound):
        raise Refused("does not compute x + attn(norm1(x)), then x + mlp(norm2(x))", where)
    return isinstance(output, tuple)


def bound_arguments(block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments behind the tokens, by the names of the class's forward; unnamed ones by their place."""
    names = names_of(type(block).forward)[2:]
    named = {names[place] if place < len(names) else f"argument {place + 2}": arg for place, arg in enumerate(args)}
    return {**named, **kwargs}


def table_in(block: nn.Module, body: Anatomy, args: Sequence[Any], kwargs: dict[str, Any]) -> Table | None:
    """The rotary positions among a block's arguments, if there are any."""
    if body.rope is None:
        return None
    return table_of(bound_arguments(block, args, kwargs).get(body.rope), body.rope, body.half)


def plain_output(output: Any) -> Any:
    """The tokens that a block gave back: itself, or the first of a tuple, as older `transformers` have it."""
    return output[0] if isinstance(output, tuple) and output else output


def _rope_for(block: nn.Module, body: Anatomy, noise: Tensor, count: int) -> Any:
    assert body.rope is not None
    attention = block.get_submodule(body.attention)
    values = cast(nn.Linear, attention.get_submodule(body.qkv[-1]))
    size = values.out_features // (3 if len(body.qkv) == 1 else 1) // body.heads
    joined = hasattr(attention, "rotate_half")  # timm alone says how its one table is meant
    return made_up(body.rope, count, int(size), noise, joined=joined)


def _qkv(attention: nn.Module, where: str) -> tuple[str, ...]:
    if _part(attention, "qkv") is not None:
        return ("qkv",)
    for names in SEPARATE:
        if all(_part(attention, name) is not None for name in names):
            return names
    raise Refused("there is no qkv; blocks need qkv, proj or their kin", where)


def _heads(attention: nn.Module, body: Anatomy, tokens: Tensor) -> list[Tensor]:
    """Queries, keys and values, (B,heads,M,d) each."""
    parts = [attention.get_submodule(name)(tokens) for name in body.qkv]
    if len(parts) == 1:
        parts = list(parts[0].chunk(3, dim=-1))
    if body.bare_biases:
        biases = (getattr(attention, name, None) for name in BARE_BIASES)
        parts = [part if bias is None else part + bias for part, bias in zip(parts, biases, strict=True)]
    return [part.unflatten(-1, (body.heads, -1)).transpose(1, 2) for part in parts]


def _part(module: Any, name: str) -> nn.Module | None:
    for step in name.split("."):
        module = getattr(module, step, None)
        if not isinstance(module, nn.Module):
            return None
    return cast(nn.Module, module)


def _odd(module: nn.Module, start: str, known: Sequence[str]) -> list[str]:
    """Names of parts that hold numbers and are none of the known ones."""
    odd = []
    for name, part in module.named_children():
        dotted = f"{start}{name}"
        if dotted in known or dotted in DROPS or _empty(part):
            continue
        if any(each.startswith(f"{dotted}.") for each in known):
            odd += _odd(part, f"{dotted}.", known)
        else:
            odd.append(dotted)
    if start:
        odd += [f"{start}{name}" for name, _ in module.named_parameters(recurse=False)]
        odd += [f"{start}{name}" for name, _ in module.named_buffers(recurse=False)]
    return odd


def _empty(part: nn.Module) -> bool:
    """Whether a part is nothing in evaluation: an identity, a dropout, or a drop-path by another name."""
    if isinstance(part, nn.Identity | nn.Dropout):
        return True
    return "drop" in type(part).__name__.lower() and not list(part.parameters()) and not list(part.buffers())


def _optional(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The tensor through the part of that name, if there is one."""
    part = _part(module, name)
    return tensor if part is None else part(tensor)


def _scaled(block: nn.Module, body: Anatomy, half: int, tensor: Tensor) -> Tensor:
    """Layer scale and drop-path of one half of a block, where it has them."""
    if body.scales is not None:
        scale = getattr(block, body.scales[half], None)
        if isinstance(scale, nn.Module):
            tensor = scale(tensor)
        elif isinstance(scale, Tensor):
            tensor = scale * tensor
    name = f"drop_path{half + 1}"
    return _optional(block, name if _part(block, name) is not None else "drop_path", tensor)


def _dropout(attention: nn.Module) -> float:
    part = getattr(attention, "attn_drop", None)
    return part.p if attention.training and isinstance(part, nn.Dropout) else 0.0


def _number(holders: Sequence[Any], names: Sequence[str], kind: type = int) -> Any:
    for holder in holders:
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, kind) and not isinstance(value, bool):
                return value
    return None


def _like(block: nn.Module) -> Tensor:
    """A parameter of the dtype that a block takes tokens in: the narrowest of its dtypes, since norms may be kept in
    float32 among layers in half precision."""
    return min(block.parameters(), key=lambda parameter: parameter.dtype.itemsize)


def takes_lists(block: nn.Module) -> bool:
    """Whether a block may be called with a list of tokens, one for each size of crop."""
    return any("list" in name for name in names_of(type(block).forward))
