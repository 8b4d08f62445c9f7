"""The SMPL head for inference: what one query makes unnecessary is left out, exactly.

- Self-attention of a single token gives its own value, whatever the logits: `to_out(to_v(x))`, one matrix.
- In cross-attention of a single query the products change places: `(q W_k^T) x^T` for `q (x W_k^T)^T`, and
  `(a x) W_v^T` for `a (x W_v^T)`. Keys and values of the tokens are never computed, which for 90 tokens is 9 in 10 of
  the head's multiply-accumulates.
- Scales and shifts of the norms, and the scale of the logits, are folded into the matrices.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.models.fast.linear import Kind, converted, folded, linear
from hmrcompress.models.heads import SMPLHead


class _FastLayer(nn.Module):
    """Self-attention, cross-attention and MLP of one layer for one query."""

    keys: Tensor
    values: Tensor

    def __init__(self, parts: list[Any], kind: Kind, dtype: torch.dtype) -> None:
        super().__init__()
        itself, crossing, feeding = parts
        attention, cross, net = itself.fn, crossing.fn, feeding.fn.net
        inner = cross.to_q.weight.shape[0]
        self.heads = cross.heads
        self.eps = itself.norm.eps

        value = attention.to_qkv.weight[2 * attention.to_out[0].in_features :]
        out = attention.to_out[0]
        self.itself = _after(itself.norm, _exact(out.weight) @ _exact(value), out.bias, kind, dtype)
        scale = (inner // self.heads) ** -0.5
        self.to_q = _after(crossing.norm, _exact(cross.to_q.weight) * scale, None, kind, dtype)
        key, value = cross.to_kv.weight.detach().to(dtype).chunk(2)
        self.register_buffer("keys", key.unflatten(0, (self.heads, -1)).contiguous(), persistent=False)
        values = value.unflatten(0, (self.heads, -1)).transpose(1, 2).contiguous()
        self.register_buffer("values", values, persistent=False)
        self.to_out = converted(cross.to_out[0], kind, dtype)
        self.fc1 = _after(feeding.norm, net[0].weight, net[0].bias, kind, dtype)
        self.fc2 = converted(net[3], kind, dtype)

    def _norm(self, query: Tensor) -> Tensor:
        return F.layer_norm(query, query.shape[-1:], None, None, self.eps)

    def forward(self, query: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        """query (B,width), context (B,M,context_dim), bias (B,1,M) or None -> (B,width)."""
        query = self.itself(self._norm(query), residual=query)
        asked = self.to_q(self._norm(query)).unflatten(-1, (self.heads, -1))
        asked = torch.bmm(asked.transpose(0, 1), self.keys).transpose(0, 1)
        logits = torch.bmm(asked, context.transpose(1, 2))
        if bias is not None:
            logits = logits + bias
        seen = torch.bmm(logits.softmax(-1), context)
        seen = torch.bmm(seen.transpose(0, 1), self.values).transpose(0, 1).flatten(1)
        query = self.to_out(seen, residual=query)
        return self.fc2(self.fc1(self._norm(query), gelu=True), residual=query)


class FastDecoder(nn.Module):
    """The `transformer` of an `SMPLHead` of any family for inference: the same call, for one query."""

    def __init__(self, decoder: nn.Module, kind: Kind, dtype: torch.dtype) -> None:
        super().__init__()
        found: Any = decoder
        self.embedding = linear(
            "plain",
            found.to_token_embedding.weight.detach().to(dtype),
            (found.to_token_embedding.bias + found.pos_embedding[0, 0]).detach().to(dtype),
        )
        self.layers = nn.ModuleList(
            _FastLayer(list(layer.children()), kind, dtype) for layer in found.transformer.layers
        )

    def forward(self, token: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        """token (B,1,inputs), context (B,M,context_dim), bias (B,1,1,M) on the cross-attention logits or None ->
        (B,1,width)."""
        if bias is not None:
            bias = bias[:, 0].to(context.dtype)
        query = self.embedding(token[:, 0])
        for layer in self.layers:
            query = layer(query, context, bias)
        return query[:, None]


def make_fast_head(head: SMPLHead, kind: Kind, dtype: torch.dtype) -> SMPLHead:
    """The same head, of whatever family, its transformer replaced by a `FastDecoder` that computes in `dtype`.
    Read-outs, mean parameters and all that comes out are float32 or wider, whatever the rest computes in: they are
    small, and what follows needs them so."""
    head.transformer = FastDecoder(head.transformer, kind, dtype)  # type: ignore[assignment]
    for name, module in head.named_children():
        if name != "transformer":
            module._apply(_widened)
    for name, buffer in head.named_buffers(recurse=False):
        setattr(head, name, _widened(buffer))
    return head


def _widened(tensor: Tensor) -> Tensor:
    return _exact(tensor) if tensor.is_floating_point() else tensor


def _exact(tensor: Tensor) -> Tensor:
    """At least float32, for what is computed once."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _after(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None, kind: Kind, dtype: torch.dtype) -> nn.Module:
    """A linear layer that reads a norm, which is folded into it."""
    weight, bias = folded(norm, weight, bias)
    return linear(kind, weight.to(dtype), bias.to(dtype))
