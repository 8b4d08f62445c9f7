"""HMR2.0 as its authors run it, for `bench` to compare with: eager PyTorch, attention multiplied out, nothing fused.

Written from the description of 4D-Humans and ViTPose: a convolution for the patches; in each block q scaled, the matrix
of logits, its softmax, the product with v; a head whose one query passes self-attention, cross-attention and an MLP six
times, each with the same three explicit steps. It has the key names of the checkpoints, so it is built over the very
tensors of one of our networks, and a test holds it equal to that network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.geometry.rotations import sixd_to_matrix
from hmrcompress.models.families.registry import family
from hmrcompress.models.network import HMR2, NetworkConfig
from hmrcompress.records import HMROutput


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v, in these three steps: (B,heads,N,d), (B,heads,M,d) twice -> (B,heads,N,d)."""
    weights = ((query * scale) @ key.transpose(-2, -1)).softmax(dim=-1)
    return weights @ value


def _heads(tensor: Tensor, heads: int) -> Tensor:
    """(B,N,heads*d) -> (B,heads,N,d)."""
    batch, count, width = tensor.shape
    return tensor.reshape(batch, count, heads, width // heads).permute(0, 2, 1, 3)


def _joined(tensor: Tensor) -> Tensor:
    """(B,heads,N,d) -> (B,N,heads*d)."""
    batch, heads, count, width = tensor.shape
    return tensor.transpose(1, 2).reshape(batch, count, heads * width)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, dim = x.shape
        parts = self.qkv(x).reshape(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(_joined(attend(parts[0], parts[1], parts[2], self.scale)))


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.dim, eps=1e-6), nn.LayerNorm(config.dim, eps=1e-6)
        self.attn, self.mlp = _Attention(config.dim, config.num_heads), _MLP(config.dim, config.mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, kernel_size=config.patch, stride=config.patch, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _Backbone(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid[0] * config.grid[1], config.dim))
        self.patch_embed = _PatchEmbed(config)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.last_norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, images: Tensor, person_mask: Tensor | None = None) -> Tensor:
        """images (B,3,H,W) of the network's own size -> tokens (B,M,D). The mask is for networks that merge tokens."""
        x = self.patch_embed(images)
        x = x + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_qkv = nn.Linear(width, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=-1))
        return self.to_out(_joined(attend(q, k, v, self.scale)))


class _CrossAttention(nn.Module):
    def __init__(self, width: int, context_dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_kv = nn.Linear(context_dim, 2 * heads * dim_head, bias=False)
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = (_heads(part, self.heads) for part in self.to_kv(context).chunk(2, dim=-1))
        return self.to_out(_joined(attend(_heads(self.to_q(x), self.heads), k, v, self.scale)))


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, width), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _PreNorm(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.fn(self.norm(x), *others)


class _Layers(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, heads, dim_head = config.head_width, config.head_heads, config.head_dim
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _PreNorm(width, _SelfAttention(width, heads, dim_head)),
                    _PreNorm(width, _CrossAttention(width, config.dim, heads, dim_head)),
                    _PreNorm(width, _FeedForward(width, config.head_mlp_dim)),
                ]
            )
            for _ in range(config.head_depth)
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            itself, crossing, feeding = layer.children()
            x = itself(x) + x
            x = crossing(x, context) + x
            x = feeding(x) + x
        return x


class _Transformer(nn.Module):
    def __init__(self, config: NetworkConfig, token_dim: int) -> None:
        super().__init__()
        self.to_token_embedding = nn.Linear(token_dim, config.head_width)
        self.pos_embedding = nn.Parameter(torch.zeros(1, 1, config.head_width))
        self.transformer = _Layers(config)

    def forward(self, token: Tensor, context: Tensor) -> Tensor:
        x = self.to_token_embedding(token)
        return self.transformer(x + self.pos_embedding[:, : x.shape[1]], context)


class _Head(nn.Module):
    init_body_pose: Tensor
    init_betas: Tensor
    init_cam: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        numbers = {"pose": 6 * config.num_joints, "shape": config.num_betas, "cam": 3}
        self.transformer = _Transformer(config, sum(numbers.values()) if config.token_input == "mean_shape" else 1)
        self.decpose, self.decshape, self.deccam = (nn.Linear(config.head_width, n) for n in numbers.values())
        for name, count in zip(("init_body_pose", "init_betas", "init_cam"), numbers.values(), strict=True):
            self.register_buffer(name, torch.zeros(1, count))

    def forward(self, context: Tensor) -> HMROutput:
        batch = len(context)
        pose, betas, cam = (each.expand(batch, -1) for each in (self.init_body_pose, self.init_betas, self.init_cam))
        out = context.new_zeros(batch, self.config.head_width)
        for _ in range(self.config.iterations):
            if self.config.token_input == "mean_shape":
                token = torch.cat([pose, betas, cam], dim=1)[:, None]
            else:
                token = torch.zeros(batch, 1, 1, dtype=context.dtype, device=context.device)
            out = self.transformer(token, context).squeeze(1)
            pose, betas, cam = self.decpose(out) + pose, self.decshape(out) + betas, self.deccam(out) + cam
        rotations = sixd_to_matrix(pose.reshape(batch, -1, 6), layout="columns")
        return HMROutput(rotations[:, :1], rotations[:, 1:], betas, cam, out)


class Reference(nn.Module):
    """The whole network. images (B,3,H,W) ImageNet-normalised -> HMROutput; nothing is merged, so the mask that it
    is given like our networks makes no difference."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.smpl_head = _Backbone(config), _Head(config)

    def forward(self, images: Tensor, person_mask: Tensor | None = None) -> HMROutput:
        """images (B,3,H,W) of the network's own size -> HMROutput."""
        return self.smpl_head(self.backbone(images))


def reference(network: HMR2) -> Reference:
    """The reference over the weights of `network`, no copy of any tensor, in evaluation mode. What `network` merges
    among tokens it leaves out. UserError for a network of another family than HMR2.0."""
    if type(network) is not HMR2:
        raise UserError(
            f"{family(network.config.family).title} is not written down here as its authors run it, HMR2.0 alone is",
            "--baseline original",
            "Use --baseline ours",
        )
    with torch.device("meta"):
        made = Reference(network.config)
    made.load_state_dict(network.state_dict(), strict=True, assign=True)
    return made.eval()
