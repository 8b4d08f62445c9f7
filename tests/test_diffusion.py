"""Noise schedule, losses and sampling: against closed formulas in float64 and against diffusers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_decoder_nets import TINY, draw, every
from torch import nn

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.denoiser import Denoiser
from hmrcompress.decoder.diffusion import noise_schedule, sample, sampling_steps, scheduler, training_loss
from hmrcompress.errors import UserError

PLAIN = replace(TINY, zero_snr=False)
NOISE = replace(PLAIN, objective="noise")
REGRESS = replace(TINY, objective="regress")


def abar_by_formula(config: DecoderConfig) -> np.ndarray:
    """Scaled-linear betas, cumulated; shifted and scaled in the square root, as Lin et al. (2023) do."""
    betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.train_steps) ** 2
    roots = np.sqrt(np.cumprod(1 - betas))
    if config.zero_snr:
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots**2


class Oracle(nn.Module):
    """Knows the latents: predicts from z_t what the objective asks for, plus an error."""

    def __init__(self, config: DecoderConfig, z0: torch.Tensor, error: torch.Tensor | float = 0.0) -> None:
        super().__init__()
        self.config, self.z0, self.error = config, z0, error
        self.asked: list[int] = []

    def forward(self, z: torch.Tensor, t: torch.Tensor | None, *given: torch.Tensor) -> torch.Tensor:
        if t is None:
            assert not z.any()
            return self.z0 + self.error
        self.asked.append(int(t[0]))
        abar = torch.tensor(abar_by_formula(self.config))[t][:, None, None]
        eps = (z - abar.sqrt() * self.z0) / (1 - abar).sqrt()
        wanted = eps if self.config.objective == "noise" else abar.sqrt() * eps - (1 - abar).sqrt() * self.z0
        return wanted + self.error


def given(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return draw(batch, 12, 8).double(), every(batch, 12), every(batch, 12)


@pytest.mark.parametrize("config", [TINY, PLAIN, replace(TINY, train_steps=50, beta_end=0.3)])
def test_the_schedule_is_the_formula(config: DecoderConfig) -> None:
    abar = noise_schedule(config)
    np.testing.assert_allclose(abar.numpy(), abar_by_formula(config), rtol=1e-4, atol=1e-6)
    assert (abar.diff() < 0).all() and (abar[-1] == 0.0) == config.zero_snr
    if config == PLAIN:
        assert abs(float(abar[-1]) - 0.00466) < 1e-5


def test_steps_trail() -> None:
    """One step begins with pure noise and ends with none; every step ends where the next begins."""
    assert [(step.t, step.before, step.after) for step in sampling_steps(TINY, 1)] == [(999, 0.0, 1.0)]
    assert [step.t for step in sampling_steps(TINY, 5)] == [999, 799, 599, 399, 199]
    three = sampling_steps(TINY, 3)
    assert [step.t for step in three] == [999, 666, 332]
    assert [step.before for step in three[1:]] == [step.after for step in three[:-1]] and three[-1].after == 1.0
    for steps in (0, 1001):
        with pytest.raises(UserError, match=f"steps: got {steps}, expected a number from 1 to 1000"):
            sampling_steps(TINY, steps)


@pytest.mark.parametrize("objective", ["both", "velocity", "noise", "regress"])
def test_losses_by_formula(objective: Any) -> None:
    """Of a network that is wrong by a known amount: |error|^2, and (1 + abar) |error|^2 for both; nothing if right."""
    config = replace(TINY, objective=objective, zero_snr=objective != "noise")
    z0, error = draw(4, 3, 8, seed=1).double(), draw(4, 3, 8, seed=2).double()
    seeded = torch.Generator().manual_seed(5)
    wrong = training_loss(Oracle(config, z0, error), z0, *given(), config=config, generator=seeded)  # type: ignore[arg-type]
    t = torch.randint(1000, (4,), generator=torch.Generator().manual_seed(5))
    weight = 1 + torch.tensor(abar_by_formula(config))[t] if objective == "both" else torch.ones(4)
    assert t.unique().numel() == 4
    expected = (weight[:, None, None] * error**2).mean()
    torch.testing.assert_close(wrong, expected.double(), rtol=1e-4, atol=0)
    right = training_loss(Oracle(config, z0), z0, *given(), config=config, generator=seeded)  # type: ignore[arg-type]
    assert right < 1e-7


def test_every_timestep_is_drawn_even_the_last() -> None:
    """At pure noise the loss of both is that of the velocity, and finite."""
    config = replace(TINY, train_steps=4)
    oracle = Oracle(config, torch.zeros(1, 3, 8).double())
    random = torch.Generator().manual_seed(0)
    for _ in range(40):
        oracle.z0 = draw(1, 3, 8).double()
        assert training_loss(oracle, oracle.z0, *given(1), config=config, generator=random) < 1e-9  # type: ignore[arg-type]
    assert set(oracle.asked) == {0, 1, 2, 3}


def test_regression_draws_nothing() -> None:
    denoiser = Denoiser(REGRESS).eval()
    features, known, valid = given()
    args = (draw(4, 3, 8), features.float(), known, valid)
    losses = [
        training_loss(denoiser, *args, config=REGRESS, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    ]
    assert torch.equal(losses[0], losses[1])
    assert not any(name.startswith("time_in") for name, _ in denoiser.named_parameters())
    out = [sample(denoiser, *args[1:], config=REGRESS, noise=draw(4, 3, 8, seed=seed)) for seed in (3, 4)]
    assert torch.equal(out[0], out[1])
    torch.testing.assert_close(losses[0], (out[0] - args[0]).square().mean())
    with pytest.raises(UserError, match="steps: got 5, the decoder `regress` takes one step"):
        sample(denoiser, *args[1:], config=REGRESS, steps=5)


@pytest.mark.parametrize("config", [TINY, replace(TINY, objective="velocity"), PLAIN, NOISE])
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_sampling_is_that_of_diffusers(config: DecoderConfig, steps: int) -> None:
    """Wherever `steps` divides the number of timesteps, which is where theirs ends each step at the next one."""
    denoiser = Denoiser(config).eval()
    features, known, valid = given()
    features, z = features.float(), draw(4, 3, 8, seed=9)
    ours = sample(denoiser, features, known, valid, config=config, steps=steps, noise=z)
    theirs = scheduler(config)
    theirs.set_timesteps(steps)
    for t in theirs.timesteps:
        z = theirs.step(denoiser(z, t.expand(4), features, known, valid), int(t), z).prev_sample
    torch.testing.assert_close(ours, z, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", [TINY, PLAIN, NOISE])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_an_oracle_is_believed(config: DecoderConfig, steps: int) -> None:
    z0 = draw(4, 3, 8, seed=1).double()
    oracle = Oracle(config, z0)
    found = sample(oracle, *given(), config=config, steps=steps, noise=draw(4, 3, 8).double())  # type: ignore[arg-type]
    torch.testing.assert_close(found, z0, rtol=1e-3, atol=1e-3)
    assert len(oracle.asked) == steps and oracle.asked[0] == 999


def test_one_step_from_pure_noise_is_the_negated_velocity() -> None:
    denoiser, z = Denoiser(TINY).eval(), draw(4, 3, 8)
    features, known, valid = given()
    found = sample(denoiser, features.float(), known, valid, config=TINY, noise=z)
    assert torch.equal(found, -denoiser(z, torch.full((4,), 999), features.float(), known, valid))


def test_predicted_noise_fails_as_it_is_known_to() -> None:
    """At zero signal-to-noise ratio it is not a number (so the setting is refused); on the plain schedule one step
    multiplies the error of the network by sqrt(1 - abar) / sqrt(abar), almost fifteen."""
    theirs = type(scheduler(NOISE)).from_config({**scheduler(NOISE).config, "rescale_betas_zero_snr": True})
    theirs.set_timesteps(1)
    assert not theirs.step(draw(1, 3, 8), 999, draw(1, 3, 8, seed=1)).prev_sample.isfinite().any()
    with pytest.raises(UserError, match="zero signal-to-noise ratio"):
        replace(NOISE, zero_snr=True)
    z0 = draw(4, 3, 8).double()
    noise = draw(4, 3, 8, seed=1).double()
    found = sample(Oracle(NOISE, z0, 0.01), *given(), config=NOISE, noise=noise)  # type: ignore[arg-type]
    torch.testing.assert_close(found - z0, torch.full_like(z0, -0.1461), rtol=0.01, atol=1e-3)


def test_noise_comes_from_the_generator() -> None:
    denoiser = Denoiser(TINY).eval()
    features, known, valid = given()
    args = (features.float(), known, valid)

    def once(**more: Any) -> torch.Tensor:
        return sample(denoiser, *args, config=TINY, **more)

    drawn = once(generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn, once(noise=draw(4, 3, 8, seed=7)))
    assert not torch.equal(drawn, once(generator=torch.Generator().manual_seed(8)))
    assert torch.equal(once(), once(generator=torch.Generator().manual_seed(0)))
    shared = once(noise=draw(3, 8))
    assert torch.equal(shared, once(noise=draw(3, 8).expand(4, 3, 8)))
