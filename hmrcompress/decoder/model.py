"""The temporal decoder: features of single frames -> poses of a window, through the latents of the motion VAE."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.denoiser import Denoiser
from hmrcompress.decoder.diffusion import sample
from hmrcompress.decoder.layers import hide
from hmrcompress.decoder.readout import filled
from hmrcompress.decoder.vae import MotionVAE
from hmrcompress.errors import ShapeError
from hmrcompress.metrics.cost import Cost, cost

STATISTICS = ("pose_mean", "pose_std", "feature_mean", "feature_std", "latent_mean", "latent_std")
SMALLEST_STD = 1e-4


class Condition(NamedTuple):
    """What is known of a window before anything is decoded: features (B,T,D) normalised, and with `config.readout` the
    read-out's average over time `blended` (B,T,P), how far every frame's read-out is from it (B,T,P), normalised, and
    the latents `start` (B,Nz,Dz) that the average projects to, in the VAE's units, to which z0 is added; no gradient
    goes from there to the average, which has a loss of its own.

    The denoiser then sees features and read-outs as they differ from their means: who is seen, where, and in which
    posture is what it would learn by heart from a few hundred clips, and what helps on no other.
    """

    features: Tensor
    readout: Tensor | None = None
    start: Tensor | None = None
    blended: Tensor | None = None


class TemporalDecoder(nn.Module):
    """Motion VAE, denoiser, and the statistics that their inputs and outputs are normalised with.

    Buffers: pose_mean, pose_std (P,); feature_mean, feature_std (D,); latent_mean, latent_std (Nz,Dz), the latter one
    number for all (see `latent_statistics`), of the latents or, with `config.readout`, of their difference from what
    the read-out projects to. `train()` leaves the VAE in evaluation mode, because the denoiser is
    trained over a frozen one; `vae.train()` is for training the VAE itself. Weights depend on `seed` alone.
    """

    pose_mean: Tensor
    pose_std: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: DecoderConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.vae = MotionVAE(config, seed=seed)
        self.denoiser = Denoiser(config, seed=seed + 1)
        latents = (config.latents, config.latent_dim)
        for name, shape in (("pose", (config.pose_dim,)), ("feature", (config.feature_dim,)), ("latent", latents)):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets the denoiser's mode; the VAE is in evaluation mode either way."""
        super().train(mode)
        self.vae.eval()
        return self

    @torch.no_grad()
    def set_statistics(self, **values: Tensor) -> None:
        """Sets statistics by the names of `STATISTICS`; values broadcast. Deviations are at least `SMALLEST_STD`, so
        that numbers which never change (joint 0 is the origin) are not blown up. ValueError for another name."""
        for name, value in values.items():
            if name not in STATISTICS:
                raise ValueError(f"no statistic {name}")
            buffer = getattr(self, name)
            buffer.copy_(value.clamp(min=SMALLEST_STD) if name.endswith("_std") else value)

    def normalise_pose(self, pose: Tensor) -> Tensor:
        """Pose numbers (...,P) -> what the VAE reads."""
        return (pose - self.pose_mean) / self.pose_std

    def denormalise_pose(self, x: Tensor) -> Tensor:
        """The inverse of `normalise_pose`."""
        return x * self.pose_std + self.pose_mean

    def condition(self, inputs: Tensor, known: Tensor, valid: Tensor) -> Condition:
        """Inputs (B,T,config.input_dim), see `readout.decoder_inputs`, known and valid (B,T) bool -> what the denoiser
        reads of them, and where it starts from."""
        features = (inputs[..., : self.config.feature_dim] - self.feature_mean) / self.feature_std
        if not self.config.readout:
            return Condition(features)
        read = known & valid
        present = hide(features, read)
        mean = present.sum(1, keepdim=True) / read.sum(1).clamp(min=1)[:, None, None]
        pose = hide(filled(self.normalise_pose(inputs[..., self.config.feature_dim :]), read), valid)
        blended = self.denoiser.blend(pose, features, read, valid)
        average = blended.detach()
        start = self.vae.project(average, valid)
        return Condition(features - mean, hide(pose - average, valid), start, self.denormalise_pose(blended))

    def normalise_latents(self, z: Tensor, start: Tensor | None = None) -> Tensor:
        """Latents (...,Nz,Dz) of the VAE -> z0 of the diffusion; start: see `Condition`."""
        return ((z if start is None else z - start) - self.latent_mean) / self.latent_std

    def denormalise_latents(self, z0: Tensor, start: Tensor | None = None) -> Tensor:
        """The inverse of `normalise_latents`."""
        z = z0 * self.latent_std + self.latent_mean
        return z if start is None else z + start

    def latents(
        self,
        features: Tensor,
        known: Tensor,
        valid: Tensor,
        *,
        steps: int = 1,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Latents of the VAE (B,Nz,Dz) for features (B,T,config.input_dim) as `forward` takes them.

        steps, generator, noise: see `diffusion.sample`. Raises ShapeError.
        """
        self._check(features, known, valid)
        given = self.condition(features, known, valid)
        z0 = sample(
            self.denoiser,
            given.features,
            known,
            valid,
            config=self.config,
            steps=steps,
            generator=generator,
            noise=noise,
            readout=given.readout,
        )
        return self.denormalise_latents(z0, given.start)

    def forward(
        self,
        features: Tensor,
        known: Tensor,
        valid: Tensor,
        *,
        steps: int = 1,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Pose numbers (B,T,P), un-normalised (`decoder.pose`), of windows of T frames, at most `config.frames`.

        features (B,T,config.input_dim) float32: those of the network as it gives them and, with `config.readout`, the
        pose numbers of its own read-out (`readout.decoder_inputs`); known (B,T) bool: the frame has them; valid (B,T)
        bool: the frame exists. Poses of frames that are not valid mean nothing. steps, generator, noise: see
        `diffusion.sample`. Raises ShapeError.
        """
        z = self.latents(features, known, valid, steps=steps, generator=generator, noise=noise)
        return self.denormalise_pose(self.vae.decode(z, features.shape[1]))

    def _check(self, features: Tensor, known: Tensor, valid: Tensor) -> None:
        if features.ndim != 3 or features.shape[2] != self.config.input_dim:
            raise ShapeError(f"got {tuple(features.shape)}, expected (B,T,{self.config.input_dim})", "features")
        if not 1 <= features.shape[1] <= self.config.frames:
            raise ShapeError(f"got {features.shape[1]} frames, expected 1 to {self.config.frames}", "features")
        for name, mask in (("known", known), ("valid", valid)):
            if mask.shape != features.shape[:2] or mask.dtype != torch.bool:
                wanted = f"({features.shape[0]},{features.shape[1]}) bool"
                raise ShapeError(f"got {tuple(mask.shape)} {mask.dtype}, expected {wanted}", name)


def latent_statistics(means: Tensor) -> tuple[Tensor, Tensor]:
    """(mean (Nz,Dz), deviation ()) of the VAE's mean latents (N,Nz,Dz) of the training motions.

    The deviation is one number, the root mean square over all latents: numbers that the VAE left unused hardly vary,
    and scaling each to unit variance would make the diffusion loss spend itself on them.
    """
    mean = means.mean(0)
    return mean, (means - mean).square().mean().sqrt()


def decoder_cost(config: DecoderConfig) -> Cost:
    """Parameters (the VAE's encoder included) and multiply-accumulates of decoding a window of `config.frames` in one
    step. Nothing is computed."""
    with torch.device("meta"):
        decoder = TemporalDecoder(config).eval()
        features = torch.empty(1, config.frames, config.input_dim)
        every = torch.ones(1, config.frames, dtype=torch.bool)
    return cost(decoder, features, every, every)
