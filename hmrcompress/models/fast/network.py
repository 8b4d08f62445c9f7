"""The fast path: a network for inference alone, made from a loaded one by rearranging its weights.

Nothing is approximated: outputs are those of the plain path within rounding. What changes, beside the layout of the
weights (`fast_linear`):

- The scale and shift of a layer norm go into the linear layer behind it, `W (g n + b) + c = (W diag g) n + (W b + c)`.
  In float32 on the CPU they stay where they are: there the layer works on the caller's own tensors, and folding would
  copy all of them to save a multiplication an element.
- GELU and the residual are computed inside the products where the library can.
- Patches are a product with the unfolded image.
- The head has a path of its own, see `fast_head`.

Weights are converted layer by layer and straight to the dtype asked for.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.models.fast.head import make_fast_head
from hmrcompress.models.fast.linear import Kind, Norm, converted, kind_for, linear, norm_and_linear
from hmrcompress.models.network import HMR2, share
from hmrcompress.models.vit import PATCH_PADDING, Block, PatchEmbed


class FastBlock(nn.Module):
    """A `Block` for inference: the same three calls, arguments and results."""

    def __init__(self, block: Block, kind: Kind, dtype: torch.dtype) -> None:
        super().__init__()
        self.has_attention, self.has_mlp = block.has_attention, block.has_mlp
        if block.has_attention:
            self.num_heads = block.attn.num_heads
            self.norm1, self.qkv = norm_and_linear(block.norm1, block.attn.qkv, kind, dtype)
            self.proj = converted(block.attn.proj, kind, dtype)
        if block.has_mlp:
            self.norm2, self.fc1 = norm_and_linear(block.norm2, block.mlp.fc1, kind, dtype)
            self.fc2 = converted(block.mlp.fc2, kind, dtype)

    def attend(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The attention half: tokens (B,M,D) -> tokens (B,M,D), keys (B,heads,M,D/heads)."""
        if not self.has_attention:
            return tokens, tokens[:, None]
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if bias is not None:
            bias = bias.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2), residual=tokens), key

    def feed(self, tokens: Tensor) -> Tensor:
        """The MLP half: (B,M,D) -> (B,M,D)."""
        return self.fc2(self.fc1(self.norm2(tokens), gelu=True), residual=tokens) if self.has_mlp else tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,M,D) -> (B,M,D)."""
        return self.feed(self.attend(tokens)[0])


class FastPatchEmbed(nn.Module):
    """A `PatchEmbed` as one product with the patches, which do not overlap: padded, cut by views, multiplied."""

    def __init__(self, embed: PatchEmbed, kind: Kind, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = embed.proj.weight.detach(), embed.proj.bias
        self.patch, self.dtype = weight.shape[-1], dtype
        self.proj = linear(kind, weight.flatten(1).to(dtype), None if bias is None else bias.detach().to(dtype))

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,dim,H/patch,W/patch), a view of tokens that lie row by row."""
        rows, columns = images.shape[2] // self.patch, images.shape[3] // self.patch
        # The last patch begins at patch * (rows - 1) - padding, so it ends inside the image.
        framed = F.pad(images.to(self.dtype), (PATCH_PADDING, 0, PATCH_PADDING, 0))
        framed = framed[:, :, : rows * self.patch, : columns * self.patch]
        patches = framed.unflatten(3, (columns, self.patch)).unflatten(2, (rows, self.patch))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.proj(patches).transpose(1, 2).unflatten(2, (rows, columns))


@torch.no_grad()
def make_fast(
    network: HMR2,
    dtype: torch.dtype = torch.float32,
    *,
    int8: bool | Collection[int] = False,
    kernel: Kind = "int8",
    consume: bool = False,
) -> HMR2:
    """Another network for inference that computes what `network` computes, in `dtype`; `network` stays as it is.

    network: in evaluation mode, on its device, with the token merging that is wanted. int8: linear layers of the
    backbone (of all of its layers, or of these) with 8-bit weights and activations, the rest in `dtype` (CPU only).
    kernel: by which of `linear.INT8_KINDS`. consume: take the weights out of `network`, which is of no use
    afterwards, layer by layer, so that there are never two of each.

    The result has the modules and methods of an HMR2, but no state dict: it cannot be merged, trained or saved. It
    takes images of any float dtype and gives bodies in float32.
    """
    device = next(network.parameters()).device
    plain = kind_for(device, dtype)
    fast = (network if consume else share(network)).eval()
    backbone = fast.backbone
    for layer, block in enumerate(backbone.blocks):
        quantised = int8 if isinstance(int8, bool) else layer in int8
        kind = kind_for(device, dtype, int8=kernel) if quantised else plain
        backbone.blocks[layer] = FastBlock(block, kind, dtype)  # type: ignore[arg-type]
    backbone.patch_embed = FastPatchEmbed(backbone.patch_embed, plain, dtype)  # type: ignore[assignment]
    backbone.pos_embed = nn.Parameter(backbone.pos_embed.detach().to(dtype), requires_grad=False)
    backbone.last_norm = Norm(backbone.last_norm, dtype, folded=False)  # type: ignore[assignment]
    make_fast_head(fast.head, plain, dtype)
    return fast.requires_grad_(False)
