"""Training of the denoiser over a frozen motion VAE, on cached features of whole clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hmrcompress.decoder.clips import decode_clip
from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.diffusion import compared, noise_schedule
from hmrcompress.decoder.model import TemporalDecoder, latent_statistics
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.readout import decoder_inputs
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_arrays
from hmrcompress.metrics.points import accel
from hmrcompress.training.augment_time import TimeSettings, draw_known, draw_times, read_at
from hmrcompress.training.distributed import own_rows
from hmrcompress.training.features import ClipFeatures
from hmrcompress.training.optimisers import ParameterGroup
from hmrcompress.training.vae_fit import LOCATIONS, joint_errors_mm, over_frames, seeded_dropout

STATISTICS_WINDOWS = 512
SHORTEST_RUN = 4
METRES_TO_UNITS = 10.0
"""The reconstruction loss is in decimetres, in which errors of a network are about as large as normalised latents."""
BLEND_RATE = 10.0
"""The rate of the average over time over that of the transformer: it has few numbers, which stand for much."""


@dataclass(frozen=True)
class DecoderSettings:
    """Beside the loss of the objective (`diffusion.compared`), `reconstruction` weighs the mean distance, in
    decimetres, of the joint locations that the frozen VAE makes of the predicted latents. (It is ours, not the paper's:
    it is what is scored. Diffusion weighs it by 1 - abar, as at little noise all is known. The objective `noise`, whose
    latents come from a division by nearly zero, goes without.) The read-out's average over time learns from the same
    distance and from nothing else.

    last_step: share of samples at the last timestep, pure noise, which is the one that a single step of sampling sees;
    uniform timesteps, as in the paper, would show it once in a thousand.
    """

    batch_size: int = 32
    reconstruction: float = 3.0
    last_step: float = 0.5
    weight_decay: float = 0.0
    time: TimeSettings = field(default_factory=TimeSettings)
    seed: int = 0


class Batch(NamedTuple):
    """pose (B,T,133) and inputs (B,T,input_dim) as they are, known and valid (B,T) bool."""

    pose: Tensor
    inputs: Tensor
    known: Tensor
    valid: Tensor


class DecoderFit:
    """The `Task` of the training loop. Trains `decoder.denoiser` and sets the statistics of features and latents; the
    VAE has to be trained, and stays as it is. `held`: clips to validate on.

    Raises UserError where there are no clips to train on.
    """

    name = "decoder"

    def __init__(
        self,
        decoder: TemporalDecoder,
        codec: PoseCodec,
        clips: Sequence[ClipFeatures],
        held: Sequence[ClipFeatures],
        settings: DecoderSettings,
    ) -> None:
        self.decoder, self.codec, self.settings, self.held = decoder, codec, settings, list(held)
        self.rows = own_rows(settings.batch_size)
        self.identity = {
            "task": self.name,
            **asdict(settings),
            "config": decoder.config.to_dict(),
            "start": sha256_arrays(decoder.state_dict()),
            "body": codec.body.sha256,
            "clips": [clip.sha256 for clip in clips],
            "held": [clip.sha256 for clip in held],
            "device": self.device.type,
        }
        decoder.requires_grad_(False).eval()
        self.windows = Windows(clips, codec, decoder.config, self.device)
        self.held_inputs = [clip_inputs(clip, codec, decoder.config, self.device) for clip in self.held]
        self._set_statistics()
        decoder.denoiser.requires_grad_(True)
        named = {f"denoiser.{name}": p for name, p in decoder.denoiser.named_parameters()}
        blend = {name: named.pop(name) for name in list(named) if name.startswith("denoiser.blend.")}
        self.groups = [ParameterGroup(named, weight_decay=settings.weight_decay)]
        self.groups += [ParameterGroup(blend, rate_factor=BLEND_RATE)] if blend else []

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.decoder.pose_mean.device

    def losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's rows of the step's batch, and its parts."""
        decoder, settings, config = self.decoder, self.settings, self.decoder.config
        rng = np.random.default_rng(np.random.SeedSequence([settings.seed, step]))
        batch = self.windows.draw(rng, settings.batch_size, config.frames, settings.time, self.rows)
        batch = Batch(*(part.to(self.device) for part in batch))
        given = decoder.condition(batch.inputs, batch.known, batch.valid)
        z0 = self._latents(batch, given.start)
        t, noise = self._draw_noise(rng)
        with seeded_dropout(settings.seed, step, self.device):
            decoder.denoiser.train()
            loss, predicted = compared(
                decoder.denoiser,
                z0,
                t,
                noise,
                given.features,
                batch.known,
                batch.valid,
                config=config,
                readout=given.readout,
            )
            decoder.denoiser.eval()
        parts: dict[str, Tensor] = {config.objective: loss}
        if settings.reconstruction and config.objective != "noise":
            parts["reconstruction"] = self._reconstruction(predicted, given.start, batch, t)
            loss = loss + settings.reconstruction * parts["reconstruction"]
        if given.blended is not None:
            parts["blend"] = distances(given.blended, batch)
            loss = loss + parts["blend"]
        return loss, parts

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """{mpjpe_mm, accel_mm_per_frame2, mpjpe_stride4_mm, linear_mpjpe_mm}: of the held-out clips, decoded in one
        step with the shape that the network predicts; the last is what the network's own read-out does."""
        figures: dict[str, float] = {}
        for stride in (1, 4):
            poses = []
            for inputs in self.held_inputs:
                poses.append(decode_clip(self.decoder, inputs, torch.arange(len(inputs)) % stride == 0))
            errors, accelerations = [], []
            for clip, pose in zip(self.held, poses, strict=True):
                betas = torch.from_numpy(clip.predicted_betas).to(self.device)
                found = self.codec.decode(pose.to(self.device), betas)
                truth = clip.truth.to(self.device)
                errors.append(joint_errors_mm(self.codec, found, truth))
                decoded, true = (self.codec.body.joints(params).cpu() for params in (found, truth))
                number = torch.full((len(clip),), clip.clip)
                accelerations.append(accel(decoded, true, number, torch.from_numpy(clip.frame))[0])
            suffix = "" if stride == 1 else f"_stride{stride}"
            figures[f"mpjpe{suffix}_mm"] = float(torch.cat(errors).mean())
            if stride == 1 and any(len(found) for found in accelerations):
                figures["accel_mm_per_frame2"] = float(torch.cat(accelerations).mean())
        figures["linear_mpjpe_mm"] = float(torch.cat([self._linear_errors(clip) for clip in self.held]).mean())
        return figures

    def _linear_errors(self, clip: ClipFeatures) -> Tensor:
        return joint_errors_mm(self.codec, clip.prediction.to(self.device), clip.truth.to(self.device))

    @torch.no_grad()
    def _latents(self, batch: Batch, start: Tensor | None) -> Tensor:
        mean, _ = self.decoder.vae.encode(self.decoder.normalise_pose(batch.pose), batch.valid)
        return self.decoder.normalise_latents(mean, start)

    def _draw_noise(self, rng: np.random.Generator) -> tuple[Tensor | None, Tensor | None]:
        """Timesteps (b,) and noise (b,Nz,Dz) of this process's rows; None for the regressor."""
        config, settings = self.decoder.config, self.settings
        if not config.diffuses:
            return None, None
        count = settings.batch_size
        last = rng.random(count) < settings.last_step
        t = np.where(last, config.train_steps - 1, rng.integers(config.train_steps, size=count))
        noise = rng.standard_normal((count, config.latents, config.latent_dim), np.float32)
        return tuple(torch.from_numpy(part[self.rows]).to(self.device) for part in (t, noise))  # type: ignore[return-value]

    def _reconstruction(self, predicted: Tensor, start: Tensor | None, batch: Batch, t: Tensor | None) -> Tensor:
        decoder, config = self.decoder, self.decoder.config
        pose = decoder.denormalise_pose(decoder.vae.decode(decoder.denormalise_latents(predicted, start)))
        if t is None:
            return distances(pose, batch)
        return distances(pose, batch, (1 - noise_schedule(config).to(pose.device)[t]).to(pose.dtype))

    def _set_statistics(self) -> None:
        decoder, windows = self.decoder, self.windows
        features = windows.inputs[:, : decoder.config.feature_dim].double()
        decoder.set_statistics(
            feature_mean=features.mean(0).float().to(self.device),
            feature_std=features.std(0, unbiased=False).float().to(self.device),
            latent_mean=torch.zeros((), device=self.device),
            latent_std=torch.ones((), device=self.device),
        )
        plain = TimeSettings(reverse=0.5, warp=0.0, every=1.0, holes=0.0, short=0.0)
        rng = np.random.default_rng(np.random.SeedSequence([self.settings.seed, 1 << 40]))
        frames, found = decoder.config.frames, []
        for _ in range(0, STATISTICS_WINDOWS, 32):
            batch = windows.draw(rng, 32, frames, plain, slice(0, 32))
            batch = Batch(*(part.to(self.device) for part in batch))
            found.append(self._latents(batch, decoder.condition(batch.inputs, batch.known, batch.valid).start))
        mean, std = latent_statistics(torch.cat(found))
        if decoder.config.readout:
            # The mean of what a read-out gets wrong is that of a few bad clips: added, it makes held-out clips worse.
            mean, std = torch.zeros_like(mean), torch.cat(found).square().mean().sqrt()
        decoder.set_statistics(latent_mean=mean, latent_std=std)


def distances(pose: Tensor, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """Mean distance of pose numbers (B,T,133) from the truth over joints, frames and windows, in decimetres; `weights`
    (B,) of the windows."""
    apart = (pose - batch.pose)[..., :LOCATIONS].unflatten(-1, (-1, 3)).norm(dim=-1) * METRES_TO_UNITS
    return over_frames(apart if weights is None else apart * weights[:, None, None], batch.valid)


class Windows:
    """Frames of all clips in one table, and windows of time drawn from it. Frames across a gap never share a window."""

    def __init__(
        self, clips: Sequence[ClipFeatures], codec: PoseCodec, config: DecoderConfig, device: torch.device
    ) -> None:
        poses, inputs, lengths = [], [], []
        for clip in clips:
            read = clip_inputs(clip, codec, config, device)
            for run in clip.runs():
                if run.stop - run.start < SHORTEST_RUN:
                    continue
                poses.append(codec_rows(clip, run, codec, device))
                inputs.append(read[run])
                lengths.append(run.stop - run.start)
        if not lengths:
            raise UserError(f"no clip has {SHORTEST_RUN} frames that follow each other", "--data", "Give longer clips")
        self.poses, self.inputs = torch.cat(poses), torch.cat(inputs)
        self.lengths = np.array(lengths)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.chances = self.lengths / self.lengths.sum()

    def draw(self, rng: np.random.Generator, count: int, frames: int, settings: TimeSettings, rows: slice) -> Batch:
        """`count` windows of `frames` frames, of which those in `rows` are given, on the CPU."""
        times, first = np.zeros((count, frames)), np.zeros(count, np.int64)
        known, valid = np.zeros((count, frames), bool), np.zeros((count, frames), bool)
        for row, clip in enumerate(rng.choice(len(self.lengths), size=count, p=self.chances)):
            drawn = draw_times(rng, int(self.lengths[clip]), frames, settings)
            first[row], times[row, : len(drawn)], valid[row, : len(drawn)] = self.starts[clip], drawn, True
            known[row, : len(drawn)] = draw_known(rng, len(drawn), settings)
        where = torch.from_numpy(first[rows])[:, None].expand(-1, frames), torch.from_numpy(times[rows])
        pose = read_at(self.poses, *where)
        twists = F.normalize(pose[..., LOCATIONS:].unflatten(-1, (-1, 2)), dim=-1).flatten(-2)
        return Batch(
            torch.cat([pose[..., :LOCATIONS], twists], -1),
            read_at(self.inputs, *where),
            torch.from_numpy(known[rows]),
            torch.from_numpy(valid[rows]),
        )


@torch.no_grad()
def clip_inputs(clip: ClipFeatures, codec: PoseCodec, config: DecoderConfig, device: torch.device) -> Tensor:
    """What a decoder reads of the frames of a clip: (T, config.input_dim) float32, on the CPU."""
    features = torch.from_numpy(clip.features).to(device)
    return decoder_inputs(config, codec, features, clip.prediction.to(device)).cpu()


@torch.no_grad()
def codec_rows(clip: ClipFeatures, run: slice, codec: PoseCodec, device: torch.device) -> Tensor:
    """The true pose numbers (T,133) float32 of a run of a clip's frames, on the CPU."""
    truth = clip.truth.to(device)
    return codec.encode(type(truth)(truth.global_orient[run], truth.body_pose[run], truth.betas[run])).cpu()
