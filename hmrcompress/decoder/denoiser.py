"""The denoiser: noisy latents and the features of a window's frames -> what the objective asks for, as latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.layers import SkipStack, attention_mask, hide, learned, seeded
from hmrcompress.decoder.readout import Blend

LONGEST_PERIOD = 10_000.0


def time_waves(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of a timestep: (B,) -> (B, width) float32, periods from 2 pi to 2 pi 10,000, geometric.

    As Vaswani et al. (2017) code positions; an odd width ends in a zero.
    """
    half = width // 2
    rates = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * rates
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class Denoiser(nn.Module):
    """A post-norm transformer with long skips over [latents, timestep, frames]; only the latents' outputs are kept.

    Frames whose features are missing carry a learned token in their place. With `config.readout` every frame carries
    the read-out's pose too, and the output is zero before any training; `blend` averages the read-out over time for the
    latents to start from (`TemporalDecoder.condition`).
    Weights depend on `seed` alone.
    """

    def __init__(self, config: DecoderConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width = config.width
        with seeded(seed):
            self.latent_in = nn.Linear(config.latent_dim, width)
            self.latent_positions = learned(config.latents, width)
            self.feature_in = nn.Linear(config.feature_dim, width)
            self.frame_positions = learned(config.frames, width)
            self.missing = learned(width)
            if config.diffuses:
                self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            self.stack = SkipStack(config.layers, width, config.heads, config.mlp, dropout=config.denoiser_dropout)
            self.latent_out = nn.Linear(width, config.latent_dim)
            if config.readout:
                self.pose_in = nn.Linear(config.pose_dim, width)
                self.blend = Blend(config.feature_dim, config.pose_dim)
                nn.init.zeros_(self.latent_out.weight)
                nn.init.zeros_(self.latent_out.bias)

    def forward(
        self,
        z: Tensor,
        t: Tensor | None,
        features: Tensor,
        known: Tensor,
        valid: Tensor,
        readout: Tensor | None = None,
    ) -> Tensor:
        """z (B,Nz,Dz), t (B,) timesteps (None: no token for them, as the regressor), features (B,T,D) normalised,
        known (B,T) bool, valid (B,T) bool, with `config.readout` readout (B,T,P), see `model.Condition` -> (B,Nz,Dz). T
        is at most `config.frames`.

        Features of frames that are not known and valid are never read.
        """
        read = known & valid
        frames = torch.where(read[..., None], self.feature_in(hide(features, read)), self.missing)
        tokens = [self.latent_in(z) + self.latent_positions]
        if readout is not None:
            frames = frames + self.pose_in(readout)
        if t is not None:
            tokens.append(self.time_in(time_waves(t, self.config.width).to(z.dtype))[:, None])
        before = self.config.latents + len(tokens) - 1
        tokens.append(frames + self.frame_positions[: frames.shape[1]])
        mixed = self.stack(torch.cat(tokens, dim=1), attention_mask(valid, before=before))
        return self.latent_out(mixed[:, : self.config.latents])
