"""Transformer layers of the temporal decoder: self-attention over tokens of which some may be hidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITION_STD = 0.02


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights that are made in the block depend on the seed alone, and torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def learned(*shape: int) -> nn.Parameter:
    """Positions, queries or a token to be learned: normal with a small deviation."""
    return nn.Parameter(POSITION_STD * torch.randn(*shape))


def hide(tokens: Tensor, visible: Tensor) -> Tensor:
    """Zeros where `visible` (B,S) is false, whatever stood there (NaN included): (B,S,W) -> (B,S,W)."""
    return tokens.masked_fill(~visible[..., None], 0.0)


def attention_mask(valid: Tensor, *, before: int = 0, after: int = 0) -> Tensor:
    """Which tokens may be looked at: those of the valid frames (B,T) and all `before` and `after` -> (B,1,1,S) bool."""
    always = valid.new_ones(valid.shape[0], 1)
    parts = [always.expand(-1, before), valid, always.expand(-1, after)]
    return torch.cat(parts, dim=1)[:, None, None]


class Attention(nn.Module):
    """Multi-head self-attention: (B,S,W) -> (B,S,W). There is no dropout on its weights, which would be slow."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (B,1,1,S) bool, true where a token may be looked at; every row has one."""
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


class Layer(nn.Module):
    """Attention and a GELU network, each added to its input; norms before them (`pre_norm`) or after the sums."""

    def __init__(self, width: int, heads: int, mlp: int, *, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,S,W) -> (B,S,W); mask as `Attention` takes it."""
        if self.pre_norm:
            tokens = tokens + self.dropout(self.attention(self.norm1(tokens), mask))
            return tokens + self.dropout(self.mlp(self.norm2(tokens)))
        tokens = self.norm1(tokens + self.dropout(self.attention(tokens, mask)))
        return self.norm2(tokens + self.dropout(self.mlp(tokens)))


class Stack(nn.Module):
    """Pre-norm layers with a norm at their end."""

    def __init__(self, layers: int, width: int, heads: int, mlp: int, *, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, mlp, dropout=dropout, pre_norm=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,S,W) -> (B,S,W); mask as `Attention` takes it."""
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return self.norm(tokens)


class SkipStack(nn.Module):
    """Post-norm layers in a U: each of the first half hands its output to its mirror image in the second half, where
    it is concatenated to what arrives and projected back (Bao et al., "All are worth words", 2023)."""

    def __init__(self, layers: int, width: int, heads: int, mlp: int, *, dropout: float) -> None:
        super().__init__()
        self.pairs = layers // 2
        self.layers = nn.ModuleList(Layer(width, heads, mlp, dropout=dropout, pre_norm=False) for _ in range(layers))
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(self.pairs))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,S,W) -> (B,S,W); mask as `Attention` takes it."""
        kept: list[Tensor] = []
        upwards = len(self.layers) - self.pairs
        for number, layer in enumerate(self.layers):
            if number >= upwards:
                tokens = self.skips[number - upwards](torch.cat([tokens, kept.pop()], dim=-1))
            tokens = layer(tokens, mask)
            if number < self.pairs:
                kept.append(tokens)
        return tokens
