"""Noise schedule, losses and sampling of the latent diffusion. Schedules come from diffusers.

With abar the share of signal left after t steps, noise eps and latents z0:

    z_t = sqrt(abar) z0 + sqrt(1 - abar) eps          v = sqrt(abar) eps - sqrt(1 - abar) z0
    z0  = sqrt(abar) z_t - sqrt(1 - abar) v           eps = sqrt(abar) v + sqrt(1 - abar) z_t

(Salimans and Ho 2022). The schedule is rescaled so that abar = 0 at its end (Lin et al. 2023, algorithm 1): there z_t
is pure noise, z0 = -v, and one step of sampling is plain regression of z0. Velocity and the noise derived from it stay
finite there; latents derived from predicted noise do not, which `DecoderConfig` refuses.

With `config.readout` z0 is not the latents of a motion but their difference from what the network's read-out projects
to. Latents and difference are an affine map apart that knows nothing of noise or timestep, so all of the above holds as
it stands, for every objective and at both ends of the schedule; where the network gives v = 0 for pure noise, the
read-out's own projection is decoded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.denoiser import Denoiser
from hmrcompress.errors import UserError
from hmrcompress.runtime import generator as seeded_generator


class Step(NamedTuple):
    """One step of sampling: the timestep, and the share of signal (abar) before and after it."""

    t: int
    before: float
    after: float


def scheduler(config: DecoderConfig) -> Any:
    """The DDIMScheduler of diffusers for this decoder, imported here because that takes seconds.

    Trailing spacing makes a single step begin at the last timestep, which is pure noise; with others it would be t = 0.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=config.train_steps,
        beta_schedule="scaled_linear",
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type="epsilon" if config.objective == "noise" else "v_prediction",
        rescale_betas_zero_snr=config.zero_snr,
        timestep_spacing="trailing",
        clip_sample=False,
    )


@lru_cache(maxsize=16)
def noise_schedule(config: DecoderConfig) -> Tensor:
    """abar of every timestep: (train_steps,) float64 on the CPU, falling, 0 at its end where `zero_snr`. Not to be
    changed: it is made once for a config."""
    with torch.inference_mode(False):  # Training reads the same tensor.
        return scheduler(config).alphas_cumprod.double()


@lru_cache(maxsize=64)
def sampling_steps(config: DecoderConfig, steps: int) -> tuple[Step, ...]:
    """The steps of sampling, first to last; the last one leaves no noise (abar 1). UserError for a wrong number.

    Each step ends where the next begins. (diffusers' own step goes train_steps // steps down instead, which is another
    timestep where `steps` is no divisor.)
    """
    if not 1 <= steps <= config.train_steps:
        raise UserError(f"got {steps}, expected a number from 1 to {config.train_steps}", "steps")
    schedule = scheduler(config)
    schedule.set_timesteps(steps)
    times = [int(t) for t in schedule.timesteps]
    shares = [float(noise_schedule(config)[t]) for t in times]
    return tuple(Step(*each) for each in zip(times, shares, [*shares[1:], 1.0], strict=True))


def velocity(z0: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """v of latents and noise; abar broadcasts."""
    signal, rest = _roots(abar)
    return signal * noise - rest * z0


def noisy(z0: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """z_t of latents and noise; abar broadcasts."""
    signal, rest = _roots(abar)
    return signal * z0 + rest * noise


def clean(z: Tensor, predicted: Tensor, abar: Tensor | float, config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """(z0, eps) that the network's output at z_t stands for; abar broadcasts."""
    signal, rest = _roots(abar)
    if config.objective == "noise":
        return (z - rest * predicted) / signal, predicted
    return signal * z - rest * predicted, signal * predicted + rest * z


def training_loss(
    denoiser: Denoiser,
    z0: Tensor,
    features: Tensor,
    known: Tensor,
    valid: Tensor,
    *,
    config: DecoderConfig,
    generator: torch.Generator,
    readout: Tensor | None = None,
) -> Tensor:
    """The loss of `config.objective`, a mean over all numbers of the batch -> scalar.

    z0 (B,Nz,Dz) and features (B,T,D) normalised, known and valid (B,T) bool. `both` is |v^ - v|^2 + |eps^ - eps|^2 with
    eps^ derived from v^, which equals (1 + abar) |v^ - v|^2. Timesteps are uniform; they and the noise are drawn with
    `generator`, on its device. `regress` compares with z0 and draws nothing.
    """
    if not config.diffuses:
        return compared(denoiser, z0, None, None, features, known, valid, config=config, readout=readout)[0]
    where = generator.device
    t = torch.randint(config.train_steps, (len(z0),), generator=generator, device=where).to(z0.device)
    noise = torch.randn(z0.shape, generator=generator, device=where, dtype=z0.dtype).to(z0.device)
    return compared(denoiser, z0, t, noise, features, known, valid, config=config, readout=readout)[0]


def compared(
    denoiser: Denoiser,
    z0: Tensor,
    t: Tensor | None,
    noise: Tensor | None,
    features: Tensor,
    known: Tensor,
    valid: Tensor,
    *,
    config: DecoderConfig,
    readout: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`training_loss` at given timesteps t (B,) with given noise (B,Nz,Dz), and the z0^ (B,Nz,Dz) that was predicted.

    The regressor reads neither; they may be None.
    """
    if t is None or noise is None or not config.diffuses:
        found = denoiser(torch.zeros_like(z0), None, features, known, valid, readout)
        return F.mse_loss(found, z0), found
    abar = noise_schedule(config).to(z0.device)[t].to(z0.dtype)[:, None, None]
    z = noisy(z0, noise, abar)
    predicted = denoiser(z, t, features, known, valid, readout)
    found, eps = clean(z, predicted, abar, config)
    if config.objective == "noise":
        return F.mse_loss(predicted, noise), found
    loss = F.mse_loss(predicted, velocity(z0, noise, abar))
    return (loss + F.mse_loss(eps, noise) if config.objective == "both" else loss), found


def sample(
    denoiser: Denoiser,
    features: Tensor,
    known: Tensor,
    valid: Tensor,
    *,
    config: DecoderConfig,
    steps: int = 1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    readout: Tensor | None = None,
) -> Tensor:
    """Latents (B,Nz,Dz), normalised, by deterministic DDIM (Song et al. 2021, eta = 0) from noise.

    features (B,T,D) normalised, known and valid (B,T) bool. noise: (B,Nz,Dz) or (Nz,Dz) to begin with; without it,
    drawn with `generator` (None: of seed 0). The regressor takes one step, from zeros. Raises UserError for a wrong
    number of steps.
    """
    shape = (features.shape[0], config.latents, config.latent_dim)
    if not config.diffuses:
        if steps != 1:
            raise UserError(f"got {steps}, the decoder `regress` takes one step", "steps")
        return denoiser(features.new_zeros(shape), None, features, known, valid, readout)
    if noise is None:
        generator = seeded_generator(0) if generator is None else generator
        noise = torch.randn(shape, generator=generator, device=generator.device)
    z = noise.to(features).expand(shape)
    for step in sampling_steps(config, steps):
        t = torch.full(shape[:1], step.t, device=features.device)
        z0, eps = clean(z, denoiser(z, t, features, known, valid, readout), step.before, config)
        z = noisy(z0, eps, step.after)
    return z


def _roots(abar: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    """sqrt(abar), sqrt(1 - abar)."""
    return abar**0.5, (1.0 - abar) ** 0.5
