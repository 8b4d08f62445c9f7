"""Training of the motion VAE: windows of motion as pose numbers, in through the encoder and out of the decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import JOINTS, PoseCodec
from hmrcompress.io.hashes import sha256_arrays
from hmrcompress.io.together import process_of
from hmrcompress.metrics.points import mpjpe
from hmrcompress.records import BodyParams
from hmrcompress.training.distributed import own_rows
from hmrcompress.training.motions import MotionBank, augmented
from hmrcompress.training.optimisers import ParameterGroup

LOCATIONS = 3 * JOINTS
STATISTICS_WINDOWS = 512
LINEAR_RATE = 0.1
"""The rate of the linear map over that of the rest: it begins where it is good, and its numbers are small."""
FIRST_LOGVAR = -8.0
"""The posterior begins narrow: with a deviation of one there is nothing but noise to learn from."""
WINDOWS_AT_ONCE = 32


@dataclass(frozen=True)
class VAESettings:
    """The loss is |x^ - x|^2 of joint locations + velocity |dx^ - dx|^2 of their differences in time + |x^ - x|^2 of
    twists + kl KL(q | N(0,1)), each a mean over its numbers. x is normalised by one deviation for all joint locations,
    so that a millimetre counts the same at every joint, and one for all twists that makes them weigh `twists`.

    short: share of windows cut to a random length. steps_a_shard: how soon windows may come from one shard more.
    """

    batch_size: int = 32
    velocity: float = 1.0
    twists: float = 0.25
    kl: float = 3e-5
    short: float = 0.15
    shortest: int = 8
    steps_a_shard: int = 30
    seed: int = 0


class VAEFit:
    """The `Task` of the training loop. Trains `decoder.vae` and sets the decoder's pose statistics.

    held: motions to validate on, each a clip with its own number of frames.
    """

    name = "vae"

    def __init__(
        self,
        decoder: TemporalDecoder,
        codec: PoseCodec,
        bank: MotionBank,
        held: Sequence[BodyParams],
        settings: VAESettings,
    ) -> None:
        self.decoder, self.codec, self.bank, self.settings = decoder, codec, bank, settings
        self.rows = own_rows(settings.batch_size)
        self.identity = {
            "task": self.name,
            **asdict(settings),
            "config": decoder.config.to_dict(),
            "start": sha256_arrays(decoder.state_dict()),
            "body": codec.body.sha256,
            "motions": bank.identity,
            "held": [sha256_arrays(vars(motion)) for motion in held],
            "device": self.device.type,
        }
        self._begin()
        decoder.vae.requires_grad_(True)
        named = {f"vae.{name}": p for name, p in decoder.vae.named_parameters()}
        linear = {"vae.pieces": named.pop("vae.pieces")}
        self.groups = [ParameterGroup(named), ParameterGroup(linear, rate_factor=LINEAR_RATE)]
        self.held = HeldMotions(held, codec, decoder)

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.decoder.pose_mean.device

    def losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's rows of the step's batch, and its parts."""
        rng = np.random.default_rng(np.random.SeedSequence([self.settings.seed, step]))
        x, valid = self._batch(rng, self.settings.batch_size, step // self.settings.steps_a_shard)
        config, settings = self.decoder.config, self.settings
        noise = rng.standard_normal((settings.batch_size, config.latents, config.latent_dim), np.float32)
        with seeded_dropout(settings.seed, step, self.device):
            self.decoder.vae.train()
            mean, logvar = self.decoder.vae.encode(x, valid)
            z = mean + (0.5 * logvar).exp() * torch.from_numpy(noise[self.rows]).to(mean)
            decoded = self.decoder.vae.decode(z)
            self.decoder.vae.eval()
        error = (decoded - x).square()
        steps = (decoded.diff(dim=1) - x.diff(dim=1))[..., :LOCATIONS].square()
        parts = {
            "joints": over_frames(error[..., :LOCATIONS], valid),
            "velocity": over_frames(steps, valid[:, 1:]),
            "twists": over_frames(error[..., LOCATIONS:], valid),
            "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        }
        loss = parts["joints"] + settings.velocity * parts["velocity"] + parts["twists"]
        return loss + settings.kl * parts["kl"], parts

    def validate(self) -> dict[str, float]:
        """{mpjpe_mm}: of the held-out motions, after encoding, decoding and inverse kinematics on their own shape."""
        return {"mpjpe_mm": self.held.mpjpe_mm(self.decoder)}

    @torch.no_grad()
    def _batch(self, rng: np.random.Generator, count: int, newest: int, whole: bool = False) -> tuple[Tensor, Tensor]:
        """Normalised windows (b,T,133) and which frames there are (b,T), this process's rows of `count`."""
        frames = self.decoder.config.frames
        params = augmented(self.bank.draw(rng, count, frames, newest), rng)
        lengths = np.where(
            rng.random(count) < self.settings.short,
            rng.integers(min(self.settings.shortest, frames), frames + 1, size=count),
            frames,
        )
        rows = slice(0, count) if whole else self.rows
        mine = slice(rows.start * frames, rows.stop * frames)
        part = BodyParams(params.global_orient[mine], params.body_pose[mine], params.betas[mine]).to(self.device)
        pose = self.codec.encode(part).unflatten(0, (-1, frames))
        valid = torch.arange(frames)[None] < torch.from_numpy(lengths[rows])[:, None]
        return self.decoder.normalise_pose(pose), valid.to(self.device)

    @torch.no_grad()
    def _begin(self) -> None:
        """Sets the statistics (means of all numbers, one deviation of all joint locations, one of all twists), and has
        the VAE begin with the principal components of pieces of motion."""
        decoder, config = self.decoder, self.decoder.config
        decoder.set_statistics(
            pose_mean=torch.zeros((), device=self.device), pose_std=torch.ones((), device=self.device)
        )
        rng = np.random.default_rng(np.random.SeedSequence([self.settings.seed, 1 << 40]))
        drawn = [self._batch(rng, WINDOWS_AT_ONCE, 0, whole=True) for _ in range(STATISTICS_WINDOWS // WINDOWS_AT_ONCE)]
        pose = torch.cat([pose[valid.all(1)] for pose, valid in drawn]).double()
        mean = pose.mean((0, 1))
        spread = (pose - mean).square()
        joints, twists = (spread[..., part].mean().sqrt() for part in (slice(LOCATIONS), slice(LOCATIONS, None)))
        counts = torch.tensor([LOCATIONS, config.pose_dim - LOCATIONS], device=self.device)
        std = torch.stack([joints, twists / self.settings.twists**0.5]).repeat_interleave(counts)
        decoder.set_statistics(pose_mean=mean, pose_std=std)
        pieces = decoder.vae.cut((pose - mean) / std).flatten(0, 1)
        values, vectors = torch.linalg.eigh(pieces.mT @ pieces)
        components = vectors.flip(1)[:, : config.latent_dim].mT
        components = components * values.flip(0)[: config.latent_dim, None].gt(0)
        decoder.vae.begin_linear(_filled(components, config.latent_dim), logvar=FIRST_LOGVAR)


def _filled(components: Tensor, count: int) -> Tensor:
    """With rows of zeros added, where pieces have fewer numbers than latents."""
    return torch.cat([components, components.new_zeros(count - len(components), components.shape[1])])


class HeldMotions:
    """Held-out motions in windows as long as the VAE's, the last window of a clip ending with it."""

    def __init__(self, clips: Sequence[BodyParams], codec: PoseCodec, decoder: TemporalDecoder) -> None:
        device, frames = decoder.pose_mean.device, decoder.config.frames
        self.codec, self.windows = codec, []
        for clip in clips:
            total = len(clip.betas)
            starts = sorted({*range(0, max(1, total - frames + 1), frames), max(0, total - frames)})
            for start in starts:
                part = slice(start, start + frames)
                found = BodyParams(clip.global_orient[part], clip.body_pose[part], clip.betas[part]).to(device)
                self.windows.append((codec.encode(found), found))
        self.frames = frames

    @torch.no_grad()
    def mpjpe_mm(self, decoder: TemporalDecoder) -> float:
        """MPJPE over the body's joints, pelvis on pelvis, mean over frames, mm."""
        errors = []
        for first in range(0, len(self.windows), WINDOWS_AT_ONCE):
            group = self.windows[first : first + WINDOWS_AT_ONCE]
            poses = torch.stack([_padded(pose, self.frames) for pose, _ in group])
            lengths = torch.tensor([len(pose) for pose, _ in group], device=poses.device)
            valid = torch.arange(self.frames, device=poses.device)[None] < lengths[:, None]
            mean, _ = decoder.vae.encode(decoder.normalise_pose(poses), valid)
            decoded = decoder.denormalise_pose(decoder.vae.decode(mean))
            errors += [
                joint_errors_mm(self.codec, self.codec.decode(pose[: len(truth.betas)], truth.betas), truth)
                for pose, (_, truth) in zip(decoded, group, strict=True)
            ]
        return float(torch.cat(errors).double().mean())


@torch.no_grad()
def joint_errors_mm(codec: PoseCodec, predicted: BodyParams, truth: BodyParams) -> Tensor:
    """MPJPE of every frame in mm, (N,), over the body's joints, pelvis on pelvis."""
    return mpjpe(codec.body.joints(predicted), codec.body.joints(truth))


def over_frames(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid frames of each window, then over windows: values (B,T,C), valid (B,T) -> scalar."""
    per_frame = values.mean(-1) * valid
    return (per_frame.sum(1) / valid.sum(1).clamp(min=1)).mean()


@contextmanager
def seeded_dropout(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Dropout in the block is told by seed, step and process, and torch's own generators stay as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rank, count = process_of()
        torch.manual_seed((seed << 32) + step * count + rank)
        yield


def _padded(pose: Tensor, frames: int) -> Tensor:
    return torch.cat([pose, pose.new_zeros(frames - len(pose), pose.shape[1])]) if len(pose) < frames else pose
