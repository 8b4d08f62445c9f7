"""The ViT backbone shared by HMR2.0 and its kin, with the key names of the original checkpoints (`backbone.*`).

Written from the description of ViTPose's backbone as 4D-Humans uses it: patches of 16 with a padding of 2, no class
token, positions `pos_embed[:, 1:] + pos_embed[:, :1]`, pre-norm blocks, exact GELU, a final norm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.errors import ShapeError
from hmrcompress.models.layers import Conv2d, LayerNorm, Linear
from hmrcompress.records import PATCH_PADDING

NORM_EPS = 1e-6


class TokenState(NamedTuple):
    """What a reducer knows about the tokens of one forward pass: person (B,M) bool, sizes (B,M) patches per token."""

    person: Tensor
    sizes: Tensor


class TokenReducer(Protocol):
    """Makes the tokens fewer, before the first block or inside blocks, between attention and MLP. Immutable: all state
    is in `TokenState`."""

    def begin(self, tokens: Tensor, person_mask: Tensor | None, grid: tuple[int, int]) -> tuple[Tensor, TokenState]:
        """Embedded tokens (B,M,D), positions added, and person_mask (B,*grid) bool or None (nobody) -> the tokens that
        enter the first block, and their state."""

    def attention_bias(self, state: TokenState) -> Tensor | None:
        """What is added to the logits of self-attention over these tokens: (B,1,1,M), or None."""

    def head_bias(self, state: TokenState) -> Tensor | None:
        """What is added to the logits of a head's cross-attention to these tokens: (B,1,1,M), or None."""

    def reduce(self, layer: int, tokens: Tensor, keys: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """tokens (B,M,D), the layer's attention keys (B,heads,M,D/heads) -> tokens (B,M',D) and their state."""


class Attention(nn.Module):
    """Multi-head self-attention with one qkv projection; logits are scaled by head_dim^-0.5."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B,M,D), bias broadcastable to (B,heads,M,M) -> attended (B,M,D), keys (B,heads,M,D/heads)."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if bias is not None:
            bias = bias.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2)), key


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """A pre-norm transformer block. A half that was removed has no modules: there `attend` or `feed` gives back the
    tokens as they are."""

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, *, has_attention: bool = True, has_mlp: bool = True
    ) -> None:
        super().__init__()
        self.has_attention, self.has_mlp = has_attention, has_mlp
        if has_attention:
            self.norm1 = LayerNorm(dim, eps=NORM_EPS)
            self.attn = Attention(dim, num_heads)
        if has_mlp:
            self.norm2 = LayerNorm(dim, eps=NORM_EPS)
            self.mlp = MLP(dim, mlp_dim)

    def attend(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The attention half: tokens (B,M,D) -> tokens (B,M,D), keys (B,heads,M,D/heads). Without attention the tokens
        themselves stand for the keys of a single head; nothing may be merged by those (`merging.apply`)."""
        if not self.has_attention:
            return tokens, tokens[:, None]
        mixed, keys = self.attn(self.norm1(tokens), bias)
        return tokens + mixed, keys

    def feed(self, tokens: Tensor) -> Tensor:
        """The MLP half: (B,M,D) -> (B,M,D)."""
        return tokens + self.mlp(self.norm2(tokens)) if self.has_mlp else tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,M,D) -> (B,M,D)."""
        return self.feed(self.attend(tokens)[0])


class PatchEmbed(nn.Module):
    """Token (i, j) sees rows Pi-2 … Pi+P-3 and columns Pj-2 … Pj+P-3 of the crop, for patches of P pixels."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = Conv2d(3, dim, kernel_size=patch, stride=patch, padding=PATCH_PADDING)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,dim,H/patch,W/patch)."""
        return self.proj(images)


class ViT(nn.Module):
    """Images to tokens. `reducer` (None: off) drops tokens before the blocks or merges them inside; see
    `hmrcompress.merging.apply`."""

    reducer: TokenReducer | None

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        patch: int = 16,
        grid: tuple[int, int] = (16, 12),
        without_attention: Collection[int] = (),
        without_mlp: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.patch, self.grid = patch, tuple(grid)
        self.reducer = None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], dim))
        self.patch_embed = PatchEmbed(dim, patch)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                mlp_dim,
                has_attention=layer not in without_attention,
                has_mlp=layer not in without_mlp,
            )
            for layer in range(depth)
        )
        self.last_norm = LayerNorm(dim, eps=NORM_EPS)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens that images (B,3,H,W) give. Raises ShapeError unless H, W are whole patches."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % self.patch or images.shape[3] % self.patch:
            rows, columns = (self.patch * side for side in self.grid)
            raise ShapeError(f"got shape {_shape(images)}, expected (B, 3, {rows}, {columns})", "images")
        if not images.is_floating_point():
            raise ShapeError(f"got {images.dtype}, expected ImageNet-normalised floats", "images")
        return images.shape[2] // self.patch, images.shape[3] // self.patch

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(1,rows*columns,D): the positions, interpolated (bicubic) where the grid is not the model's own."""
        own, shared = self.pos_embed[:, 1:], self.pos_embed[:, :1]
        if tuple(grid) != self.grid:
            plane = own.transpose(1, 2).unflatten(2, self.grid)
            plane = F.interpolate(plane, size=tuple(grid), mode="bicubic", align_corners=False)
            own = plane.flatten(2).transpose(1, 2)
        return own + shared

    def embed(self, images: Tensor) -> Tensor:
        """images (B,3,H,W), H and W whole patches -> tokens (B,M,D), row by row, before the first block."""
        grid = self.grid_of(images)
        return self.patch_embed(images).flatten(2).transpose(1, 2) + self.positions(grid)

    def begin(self, images: Tensor, person_mask: Tensor | None = None) -> tuple[Tensor, TokenState | None]:
        """Embeds, checks the mask and starts the reducer, which may drop tokens: -> tokens (B,M,D) and their state.

        person_mask (B,rows,columns) bool. Raises ShapeError.
        """
        rows, columns = self.grid_of(images)
        if person_mask is not None:
            expected = f"(B, {rows}, {columns})"
            if person_mask.ndim != 3 or tuple(person_mask.shape[1:]) != (rows, columns):
                raise ShapeError(f"got shape {_shape(person_mask)}, expected {expected}", "person_mask")
            if person_mask.shape[0] != images.shape[0]:
                raise ShapeError(
                    f"got {person_mask.shape[0]} masks for {images.shape[0]} images, expected {expected}", "person_mask"
                )
            if person_mask.dtype != torch.bool:
                raise ShapeError(f"got {person_mask.dtype}, expected torch.bool of shape {expected}", "person_mask")
        tokens = self.embed(images)
        return (tokens, None) if self.reducer is None else self.reducer.begin(tokens, person_mask, (rows, columns))

    def step(self, layer: int, tokens: Tensor, state: TokenState | None = None) -> tuple[Tensor, TokenState | None]:
        """Block `layer`: tokens (B,M,D) and their state -> the same after it. Without a state nothing is merged."""
        block = cast(Block, self.blocks[layer])
        if self.reducer is None or state is None:
            return block(tokens), state
        tokens, keys = block.attend(tokens, self.reducer.attention_bias(state))
        tokens, state = self.reducer.reduce(layer, tokens, keys, state)
        return block.feed(tokens), state

    def run_blocks(
        self, tokens: Tensor, start: int = 0, stop: int | None = None, state: TokenState | None = None
    ) -> tuple[Tensor, TokenState | None]:
        """Blocks start … stop-1 (stop None: to the end, without the last norm)."""
        for layer in range(start, self.depth if stop is None else stop):
            tokens, state = self.step(layer, tokens, state)
        return tokens, state

    def layer_inputs(self, images: Tensor, person_mask: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the input (B,M,D) of every block in order, then the output of the last one (before `last_norm`)."""
        tokens, state = self.begin(images, person_mask)
        yield tokens
        for layer in range(self.depth):
            tokens, state = self.step(layer, tokens, state)
            yield tokens

    def encode(self, images: Tensor, person_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """images, person_mask -> tokens (B,M',D) after the last norm, and the bias (B,1,1,M') for attending to them."""
        tokens, state = self.begin(images, person_mask)
        return self.finish(*self.run_blocks(tokens, state=state))

    def finish(self, tokens: Tensor, state: TokenState | None = None) -> tuple[Tensor, Tensor | None]:
        """What the last block gave and its state -> tokens after the last norm, and the bias for attending to them."""
        bias = None if self.reducer is None or state is None else self.reducer.head_bias(state)
        return self.last_norm(tokens), bias

    def forward(self, images: Tensor, person_mask: Tensor | None = None) -> Tensor:
        """images (B,3,H,W), person_mask (B,rows,columns) bool or None -> tokens (B,M',D). Raises ShapeError."""
        return self.encode(images, person_mask)[0]


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(str(int(side)) for side in tensor.shape) + ("," if tensor.ndim == 1 else "") + ")"
