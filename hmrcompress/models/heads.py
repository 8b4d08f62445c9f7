"""The SMPL head of HMR2.0: one query attends to the backbone's tokens; linear read-outs are added to mean parameters.

Key names are those of the original checkpoints (`smpl_head.*`). The heads of its kin are made from it: a subclass says
what the query starts from (`query`), and how pose and more are read out (`make_pose_readout`, `read_pose`, `rotations`,
`read_keypoints`).
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.geometry.rotations import sixd_to_matrix
from hmrcompress.models.layers import LayerNorm, Linear
from hmrcompress.records import BodyParams, HMROutput


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = Linear(width, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Sequential(Linear(heads * dim_head, width))

    def forward(self, query: Tensor) -> Tensor:
        q, k, v = (_split_heads(part, self.heads) for part in self.to_qkv(query).chunk(3, dim=-1))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _CrossAttention(nn.Module):
    def __init__(self, width: int, context_dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_kv = Linear(context_dim, 2 * heads * dim_head, bias=False)
        self.to_q = Linear(width, heads * dim_head, bias=False)
        self.to_out = nn.Sequential(Linear(heads * dim_head, width))

    def forward(self, query: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        k, v = (_split_heads(part, self.heads) for part in self.to_kv(context).chunk(2, dim=-1))
        q = _split_heads(self.to_q(query), self.heads)
        if bias is not None:
            bias = bias.to(q.dtype)
        return self.to_out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # The third place was a dropout; it keeps the second linear layer at index 3.
        self.net = nn.Sequential(Linear(width, hidden), nn.GELU(), nn.Identity(), Linear(hidden, width))

    def forward(self, query: Tensor) -> Tensor:
        return self.net(query)


class _PreNorm(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=1e-5)
        self.fn = fn

    def forward(self, query: Tensor, *args: Tensor | None) -> Tensor:
        return query + self.fn(self.norm(query), *args)


class _DecoderLayers(nn.Module):
    def __init__(self, width: int, context_dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _PreNorm(width, _SelfAttention(width, heads, dim_head)),
                    _PreNorm(width, _CrossAttention(width, context_dim, heads, dim_head)),
                    _PreNorm(width, _FeedForward(width, mlp_dim)),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, query: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        for layer in self.layers:
            self_attention, cross_attention, feed_forward = layer.children()
            query = self_attention(query)
            query = cross_attention(query, context, bias)
            query = feed_forward(query)
        return query


class _Decoder(nn.Module):
    """Embeds the query token, adds its position, runs the layers."""

    def __init__(self, token_dim: int, width: int, **layers: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.to_token_embedding = Linear(token_dim, width)
        self.transformer = _DecoderLayers(width, **layers)

    def forward(self, token: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        return self.transformer(self.to_token_embedding(token) + self.pos_embedding, context, bias)


class SMPLHead(nn.Module):
    """Tokens of the backbone, in any order and number, to body parameters. The read-outs `dec*` and the mean parameters
    `init_*` may have a greater precision than the rest.

    `token_input` is what the query starts from: `zero`, or `mean_shape` (pose, betas and camera as they stand).
    `iterations` repeats query and read-outs, each adding to the last estimate. `more_inputs` numbers come with each
    crop and stand before the others in the query. `pose_name` is what the family calls its mean pose, `layout` how it
    stacks six numbers to a rotation.
    """

    pose_name: ClassVar[str] = "init_body_pose"
    layout: ClassVar[Literal["columns", "rows"]] = "columns"
    init_body_pose: Tensor
    init_betas: Tensor
    init_cam: Tensor

    def __init__(
        self,
        *,
        context_dim: int,
        width: int,
        depth: int,
        heads: int,
        dim_head: int,
        mlp_dim: int,
        num_joints: int = 24,
        num_betas: int = 10,
        token_input: str = "zero",
        iterations: int = 1,
        more_inputs: int = 0,
    ) -> None:
        super().__init__()
        pose = 6 * num_joints
        self.token_input, self.iterations = token_input, iterations
        self.make_mean_pose(pose)
        self.register_buffer("init_betas", torch.zeros(1, num_betas))
        self.register_buffer("init_cam", torch.zeros(1, 3))
        self.transformer = _Decoder(
            more_inputs + self.own_inputs(pose + num_betas + 3),
            width,
            context_dim=context_dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
        )
        self.make_pose_readout(width, pose)
        self.decshape = Linear(width, num_betas)
        self.deccam = Linear(width, 3)

    def make_mean_pose(self, pose: int) -> None:
        """Adds the buffers that `init_pose` is made of: `pose` numbers, six a joint."""
        self.register_buffer(self.pose_name, torch.zeros(1, pose))

    def own_inputs(self, estimate: int) -> int:
        """How many numbers the query holds beside `more_inputs`; `estimate` are those of pose, betas and camera."""
        return estimate if self.token_input == "mean_shape" else 1

    def make_pose_readout(self, width: int, pose: int) -> None:
        """Adds the modules that `read_pose` uses: from `width` features to `pose` numbers, six a joint."""
        self.decpose = Linear(width, pose)

    @property
    def init_pose(self) -> Tensor:
        """The mean pose (1,6J), six numbers a joint in the head's `layout`, whatever the family calls it."""
        return cast(Tensor, getattr(self, self.pose_name))

    def mean_params(self) -> BodyParams:
        """The mean parameters that the read-outs are added to, float32: a batch of one."""
        rotations = self.rotations(self.init_pose.float())
        return BodyParams(rotations[:, :1], rotations[:, 1:], self.init_betas.float())

    def rotations(self, pose: Tensor) -> Tensor:
        """Six numbers a joint (B,6J) -> rotations (B,J,3,3)."""
        return sixd_to_matrix(pose.unflatten(-1, (-1, 6)), layout=self.layout)

    def query(self, estimate: Tensor, condition: Tensor | None) -> Tensor:
        """What the query starts from: the estimate (B,6J+S+3) of pose, betas and camera, condition -> (B,inputs)."""
        return estimate if self.token_input == "mean_shape" else estimate.new_zeros(estimate.shape[0], 1)

    def read_pose(self, features: Tensor) -> Tensor:
        """Features (B,width) -> what is added to the pose (B,6J)."""
        return self.decpose(features)

    def read_keypoints(self, features: Tensor) -> Tensor | None:
        """Features (B,width) -> keypoints (B,K,2) where the family reads any, else None."""
        return None

    def forward(self, tokens: Tensor, bias: Tensor | None = None, condition: Tensor | None = None) -> HMROutput:
        """tokens (B,M,context_dim), bias (B,1,1,M) on the cross-attention logits or None, condition (B,C) where the
        family has one -> HMROutput."""
        batch = tokens.shape[0]
        pose = self.init_pose.expand(batch, -1)
        betas = self.init_betas.expand(batch, -1)
        cam = self.init_cam.expand(batch, -1)
        read = self.deccam.weight.new_zeros(batch, self.deccam.in_features)
        for _ in range(self.iterations):
            token = self.query(torch.cat([pose, betas, cam], dim=-1), condition)[:, None].to(tokens.dtype)
            read = self.transformer(token, tokens, bias)[:, 0].to(self.deccam.weight.dtype)
            pose = pose + self.read_pose(read)
            betas = betas + self.decshape(read)
            cam = cam + self.deccam(read)
        rotations = self.rotations(pose)
        return HMROutput(
            global_orient=rotations[:, :1],
            body_pose=rotations[:, 1:],
            betas=betas,
            cam=cam,
            features=read,
            keypoints=self.read_keypoints(read),
        )


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    """(B,M,heads*d) -> (B,heads,M,d)."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)
