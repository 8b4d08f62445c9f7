"""Networks as other code bases write them, from their description; only the weights of the head are ours."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hmrcompress.models.network import HMR2, NetworkConfig

DIM, HEADS, DEPTH, GRID = 32, 2, 4, (16, 12)


class TheirAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.qkv = nn.Linear(DIM, DIM * 3)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(DIM, DIM)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = self.attn_drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1))
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(B, N, -1)))


class TheirMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TheirDropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(len(x), 1, 1) < 0.5
        return x * keep / 0.5


class TheirBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(DIM, eps=1e-6), TheirAttention()
        self.drop_path = TheirDropPath()
        self.norm2, self.mlp = nn.LayerNorm(DIM, eps=1e-6), TheirMlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TheirPatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_shape = GRID
        self.proj = nn.Conv2d(3, DIM, kernel_size=16, stride=16, padding=2)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class TheirBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = TheirPatchEmbed()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID[0] * GRID[1], DIM))
        self.blocks = nn.ModuleList([TheirBlock() for _ in range(DEPTH)])
        self.last_norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        B = len(x)
        x, (Hp, Wp) = self.patch_embed(x)
        x = x + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for number in range(DEPTH):
            x = self.blocks[number](x)
        x = self.last_norm(x)
        return x.permute(0, 2, 1).reshape(B, -1, Hp, Wp).contiguous()


class TheirNetwork(nn.Module):
    """Their backbone, and the weights of our head behind a flattened grid: it only ever sees a map of features."""

    def __init__(self, ours: HMR2) -> None:
        super().__init__()
        self.backbone = TheirBackbone().double()
        self.backbone.load_state_dict(ours.backbone.state_dict(), strict=True)
        self.head = copy.deepcopy(ours.smpl_head)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads by cross-attention, and what pooling over the grid gives."""
        grid = self.backbone(images)
        return self.head(grid.flatten(2).transpose(1, 2)).features, grid.mean((2, 3))


class Scale(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(value * torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TimmBlock(TheirBlock):
    def __init__(self) -> None:
        super().__init__()
        del self.drop_path
        self.attn.q_norm, self.attn.k_norm, self.attn.norm = nn.LayerNorm(16), nn.LayerNorm(16), nn.Identity()
        self.ls1, self.drop_path1, self.ls2, self.drop_path2 = Scale(0.3), nn.Identity(), Scale(2.0), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a, y = self.attn, self.norm1(x)
        q, k, v = a.qkv(y).view(*y.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = ((a.q_norm(q) * a.scale) @ a.k_norm(k).transpose(-2, -1)).softmax(-1) @ v
        x = x + self.drop_path1(self.ls1(a.proj(mixed.transpose(1, 2).flatten(2))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TheirPreNorm(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.fn(self.norm(x, *args), **kwargs)


class TheirFeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, width), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def their_heads(x: Tensor, heads: int) -> Tensor:
    B, N, C = x.shape
    return x.reshape(B, N, heads, C // heads).permute(0, 2, 1, 3)


class TheirSelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_qkv = nn.Linear(width, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, width), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (their_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=-1))
        out = ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1) @ v
        return self.to_out(out.permute(0, 2, 1, 3).flatten(2))


class TheirCrossAttention(nn.Module):
    def __init__(self, width: int, context_dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_kv = nn.Linear(context_dim, 2 * heads * dim_head, bias=False)
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        k, v = (
            their_heads(part, self.heads) for part in self.to_kv(x if context is None else context).chunk(2, dim=-1)
        )
        q = their_heads(self.to_q(x), self.heads)
        out = ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1) @ v
        return self.to_out(out.permute(0, 2, 1, 3).flatten(2))


class TheirLayers(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, heads, size = config.head_width, config.head_heads, config.head_dim
        self.layers = nn.ModuleList([])
        for _ in range(config.head_depth):
            self.layers.append(
                nn.ModuleList(
                    [
                        TheirPreNorm(width, TheirSelfAttention(width, heads, size)),
                        TheirPreNorm(width, TheirCrossAttention(width, config.dim, heads, size)),
                        TheirPreNorm(width, TheirFeedForward(width, config.head_mlp_dim)),
                    ]
                )
            )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        contexts = [context] * len(self.layers)
        for number, (attention, cross, feed) in enumerate(self.layers):
            x = attention(x) + x
            x = cross(x, context=contexts[number]) + x
            x = feed(x) + x
        return x


class TheirDecoder(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.to_token_embedding = nn.Linear(1, config.head_width)
        self.pos_embedding = nn.Parameter(torch.zeros(1, 1, config.head_width))
        self.transformer = TheirLayers(config)

    def forward(self, inp: Tensor, context: Tensor | None = None) -> Tensor:
        return self.transformer(self.to_token_embedding(inp) + self.pos_embedding, context=context)


class TheirSMPLHead(nn.Module):
    """Reads the map of features and gives pose (six numbers a joint), shape, camera and the query."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.transformer = TheirDecoder(config)
        self.decpose = nn.Linear(config.head_width, 6 * config.num_joints)
        self.decshape = nn.Linear(config.head_width, config.num_betas)
        self.deccam = nn.Linear(config.head_width, 3)
        for name, size in (("body_pose", 6 * config.num_joints), ("betas", config.num_betas), ("cam", 3)):
            self.register_buffer(f"init_{name}", torch.zeros(1, size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = x.flatten(2).permute(0, 2, 1)
        token = torch.zeros(len(x), 1, 1).to(x)
        out = self.transformer(token, context=x).squeeze(1)
        return (
            self.decpose(out) + self.init_body_pose,
            self.decshape(out) + self.init_betas,
            self.deccam(out) + self.init_cam,
            out,
        )


class TheirHMR(nn.Module):
    """HMR2.0 as its own code has it, from names and description: it loads our state dict strictly."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.backbone, self.smpl_head = TheirBackbone(), TheirSMPLHead(config)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B,3,256,192) -> pose, betas, camera, features."""
        return self.smpl_head(self.backbone(images))
