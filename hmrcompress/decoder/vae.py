"""The motion VAE: a window of poses as a few latent tokens, and back. Both halves are transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.layers import Stack, attention_mask, hide, learned, seeded

LOGVAR_LIMIT = 20.0
"""Log-variances stay within plus and minus this, so that neither they nor their exponentials overflow."""


class MotionVAE(nn.Module):
    """Poses (B,T,P) normalised <-> latents (B,Nz,Dz), T up to `config.frames`; pre-norm layers.

    The encoder reads the frames beside Nz learned queries, whose outputs are means and log-variances; the decoder
    reads the latents beside one learned query a frame, whose outputs are the poses. Weights depend on `seed` alone.

    Beside the transformers (this is ours, not the paper's) one linear map `pieces` (Dz, K*P) takes the window's n-th
    piece of K = ceil(frames / Nz) frames to the n-th latent, and its transpose takes it back. Zero at first, it may
    begin as the pieces' principal components (`begin_linear`): then training only has to improve on them.
    """

    def __init__(self, config: DecoderConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width, sizes = config.vae_width, (config.vae_layers, config.vae_width, config.vae_heads, config.vae_mlp)
        with seeded(seed):
            self.pose_in = nn.Linear(config.pose_dim, width)
            self.pose_positions = learned(config.frames, width)
            self.latent_queries = learned(config.latents, width)
            self.encoder = Stack(*sizes, dropout=config.dropout)
            self.latent_out = nn.Linear(width, 2 * config.latent_dim)
            self.latent_in = nn.Linear(config.latent_dim, width)
            self.latent_positions = learned(config.latents, width)
            self.frame_queries = learned(config.frames, width)
            self.decoder = Stack(*sizes, dropout=config.dropout)
            self.pose_out = nn.Linear(width, config.pose_dim)
        self.piece_frames = -(-config.frames // config.latents)
        self.pieces = nn.Parameter(torch.zeros(config.latent_dim, self.piece_frames * config.pose_dim))

    def encode(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,T,P) normalised poses, valid (B,T) bool -> mean (B,Nz,Dz), log-variance (B,Nz,Dz).

        Frames that are not valid are never read.
        """
        frames = self.pose_in(hide(x, valid)) + self.pose_positions[: x.shape[1]]
        queries = self.latent_queries.expand(x.shape[0], -1, -1)
        tokens = self.encoder(torch.cat([frames, queries], dim=1), attention_mask(valid, after=self.config.latents))
        mean, logvar = self.latent_out(tokens[:, x.shape[1] :]).chunk(2, dim=-1)
        return mean + self.project(x, valid), logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)

    def project(self, x: Tensor, valid: Tensor) -> Tensor:
        """x, valid as `encode` takes them -> (B,Nz,Dz): what the linear map alone makes of them."""
        return self.cut(hide(x, valid)) @ self.pieces.mT

    def decode(self, z: Tensor, frames: int | None = None) -> Tensor:
        """z (B,Nz,Dz) -> normalised poses (B,T,P) of the window's first `frames` frames (None: all of them).

        All frames are computed whatever is asked for, because they look at one another.
        """
        latents = self.latent_in(z) + self.latent_positions
        queries = self.frame_queries.expand(z.shape[0], -1, -1)
        tokens = self.decoder(torch.cat([queries, latents], dim=1))
        linear = (z @ self.pieces).reshape(z.shape[0], -1, self.config.pose_dim)
        count = self.config.frames if frames is None else frames
        return self.pose_out(tokens[:, :count]) + linear[:, :count]

    def cut(self, x: Tensor) -> Tensor:
        """Poses (B,T,P) -> pieces (B,Nz,K*P), zeros after the window's end."""
        missing = self.config.latents * self.piece_frames - x.shape[1]
        return F.pad(x, (0, 0, 0, missing)).reshape(x.shape[0], self.config.latents, -1)

    @torch.no_grad()
    def begin_linear(self, components: Tensor, *, logvar: float) -> None:
        """Starts as a linear map: orthonormal `components` (Dz, K*P) of the pieces, the transformers' outputs zero, and
        the log-variances `logvar`."""
        self.pieces.copy_(components)
        for layer in (self.latent_out, self.pose_out):
            layer.weight.zero_()
            layer.bias.zero_()
        self.latent_out.bias[self.config.latent_dim :] = logvar
