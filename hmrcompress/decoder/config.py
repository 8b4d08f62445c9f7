"""Every size and choice of the temporal decoder, and the two presets: the paper's and the starter world's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from hmrcompress.errors import UserError

Objective = Literal["both", "velocity", "noise", "regress"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the motion VAE (`vae_*`) and of the denoiser (no prefix), and how the latter is trained.

    frames: of a window, the most that either network sees at once; pose_dim: numbers of a frame's pose; feature_dim:
    of a frame's features; a window becomes `latents` tokens of `latent_dim` numbers. objective: what the loss compares,
    velocity and the noise derived from it (`both`), one of them, or (`regress`) the latents themselves, predicted
    without noise and timestep. zero_snr: the noise schedule (`train_steps` scaled-linear betas from beta_start to
    beta_end) is rescaled so that nothing of the signal is left at its end. dropout is the VAE's.

    readout (ours, not the paper's): a frame's pose as the network's own linear head reads it out, `pose_dim` numbers,
    follows its features. Averaged over time, a window of them is taken to latents by the VAE's linear map; what is
    found, by whatever objective, is the difference between the true latents and these. A decoder that is untrained
    then gives the read-out, smoothed and projected on what motion looks like.

    The defaults are the paper's sizes. Raises UserError for values that make no network, and for `noise` at zero
    signal-to-noise ratio, where the latents cannot be recovered from the noise (a division by zero).
    """

    frames: int = 243
    pose_dim: int = 133
    feature_dim: int = 1024
    latents: int = 27
    latent_dim: int = 512
    vae_width: int = 512
    vae_layers: int = 9
    vae_heads: int = 4
    vae_mlp: int = 1024
    width: int = 512
    layers: int = 5
    heads: int = 4
    mlp: int = 1024
    objective: Objective = "both"
    zero_snr: bool = True
    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    dropout: float = 0.1
    denoiser_dropout: float = 0.001
    readout: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, int) and not isinstance(field.default, bool):
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise UserError(f"got {value!r}, expected a whole number from 1", field.name)
        for heads, width in (("heads", "width"), ("vae_heads", "vae_width")):
            if getattr(self, width) % getattr(self, heads):
                fault = f"got {getattr(self, heads)}, expected a divisor of {width} = {getattr(self, width)}"
                raise UserError(fault, heads)
        for name in ("dropout", "denoiser_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"got {getattr(self, name)}, expected a number from 0 to below 1", name)
        if not 0.0 < self.beta_start < self.beta_end < 1.0:
            fault = f"got {self.beta_start} and {self.beta_end}, expected 0 < beta_start < beta_end < 1"
            raise UserError(fault, "beta_start, beta_end")
        if self.objective not in OBJECTIVES:
            raise UserError(f"got {self.objective!r}, expected one of {', '.join(OBJECTIVES)}", "objective")
        if self.objective == "noise" and self.zero_snr:
            fault = (
                "noise cannot be the prediction at zero signal-to-noise ratio: recovering the latents divides by zero"
            )
            raise UserError(fault, "objective", "Set zero_snr to false, or take the objective velocity or both")

    @property
    def input_dim(self) -> int:
        """Numbers that the decoder reads of a frame: its features, and the read-out's pose where it is wanted."""
        return self.feature_dim + (self.pose_dim if self.readout else 0)

    @property
    def diffuses(self) -> bool:
        """Whether latents are found by denoising; False for the regressor."""
        return self.objective != "regress"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: object = "") -> DecoderConfig:
        """The inverse of `to_dict`. Raises UserError naming unknown or missing fields, or a wrong value."""
        known = {field.name for field in fields(cls)}
        if odd := sorted(set(values) ^ known):
            raise UserError(f"unknown or missing fields: {', '.join(odd)}", where)
        for field in fields(cls):
            value = values[field.name]
            if isinstance(field.default, float) and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
            ):
                raise UserError(f"{field.name}: got {value!r}, expected a number", where)
        try:
            return cls(**dict(values))
        except UserError as error:
            raise UserError(f"{error.where}: {error.what}", where, error.remedy) from error


PAPER = DecoderConfig()
"""Sizes of the FastHMR paper."""

STARTER = DecoderConfig(
    frames=81,
    feature_dim=192,
    latents=9,
    latent_dim=128,
    vae_width=160,
    vae_layers=3,
    vae_mlp=384,
    width=160,
    layers=5,
    mlp=320,
    denoiser_dropout=0.0,
    readout=True,
)
"""Small enough to be shipped (below 3 million parameters) and to be trained and run on a CPU.

Nine frames a latent, as in the paper, but windows of 81 frames instead of 243. Four of them, a third overlapping, cover
a clip of 243 frames and cost what one window of 243 would (a third more tokens, a third of the attention), while a
training sample and a streamed frame cost a third, and a clip of 243 frames has 163 windows to learn from instead of 1.
"""

PRESETS: dict[str, DecoderConfig] = {"paper": PAPER, "starter": STARTER}
