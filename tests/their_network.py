"""Networks as other code bases write them, from their description; only the weights of the head are ours."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hmrcompress.models.network import HMR2

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
