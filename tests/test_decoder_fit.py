"""Time augmentation, windows of clips, and training of the denoiser."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoder
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import NoMasks
from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import UserError
from hmrcompress.models.network import HMR2
from hmrcompress.training import loop
from hmrcompress.training.augment_time import TimeSettings, draw_known, draw_times, read_at
from hmrcompress.training.decoder_fit import DecoderFit, DecoderSettings, Windows
from hmrcompress.training.features import ClipFeatures, CropClips, clip_features
from hmrcompress.training.loop import LoopSettings, train
from hmrcompress.training.vae_fit import LOCATIONS

PLAIN = TimeSettings(reverse=0.0, warp=0.0, every=1.0, holes=0.0, short=0.0)
HALF = replace(PLAIN, every=0.5)


def test_times() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        times = draw_times(rng, 40, 12, PLAIN)
        assert np.array_equal(times, times[0] + np.arange(12)) and times[0] % 1 == 0 and 0 <= times[0] <= 28
        back = draw_times(rng, 40, 12, replace(PLAIN, reverse=1.0))
        assert np.array_equal(np.diff(back), -np.ones(11))
        warped = np.diff(times := draw_times(rng, 40, 12, replace(PLAIN, warp=1.0)))
        assert times.min() >= 0 and times.max() <= 39
        assert (0.75 * 0.6 - 1e-9 <= warped).all() and (warped <= 1.33 * 1.4 + 1e-9).all()
        short = draw_times(rng, 40, 12, replace(PLAIN, short=1.0))
        assert 8 <= len(short) <= 12
        assert len(draw_times(rng, 5, 12, replace(PLAIN, warp=0.5))) >= 3, "a clip shorter than a window"
    means = [np.diff(draw_times(rng, 40, 12, replace(PLAIN, warp=1.0))).mean() for _ in range(400)]
    assert 0.9 < np.median(means) < 1.1 and np.std(means) > 0.1


def test_frames_left_out() -> None:
    rng = np.random.default_rng(0)
    gaps = [np.diff(np.flatnonzero(draw_known(rng, 60, HALF))) for _ in range(600)]
    assert all(len(set(gap.tolist())) == 1 for gap in gaps), "every k-th frame, nothing else"
    strides = np.array([gap[0] for gap in gaps])
    counts = np.bincount(strides, minlength=9)
    assert 250 <= counts[1] <= 350 and all(20 <= count <= 75 for count in counts[2:9]) and counts[0] == 0
    phases = {
        (int(np.diff(at)[0]), int(at[0])) for at in (np.flatnonzero(draw_known(rng, 60, HALF)) for _ in range(1500))
    }
    assert phases == {(1, 0)} | {(stride, phase) for stride in range(2, 9) for phase in range(stride)}, "any phase"
    assert all(draw_known(rng, 3, TimeSettings(every=0.0, holes=1.0)).any() for _ in range(200))
    holes = np.mean([draw_known(rng, 60, replace(PLAIN, holes=1.0)).mean() for _ in range(300)])
    assert 0.6 < holes < 0.9


def test_reading_between_frames_is_linear() -> None:
    rng = np.random.default_rng(0)
    values, times = rng.normal(size=(30, 3)).astype(np.float32), rng.uniform(0, 9, size=(4, 7))
    times[0, 0] = 9.0
    found = read_at(torch.from_numpy(values), torch.tensor(20)[None, None].expand(4, 7), torch.from_numpy(times))
    for channel in range(3):
        wanted = np.interp(times, np.arange(10), values[20:, channel])
        assert np.abs(found[..., channel].numpy() - wanted).max() < 1e-5


@pytest.fixture(scope="module")
def clips(tiny_crops: CropSet, tiny_network: HMR2) -> list[ClipFeatures]:
    """Clips of 40 frames whose features are noisy random projections of their poses: two to train on, one held out."""
    rng = np.random.default_rng(3)
    found = [clip_features(tiny_network, clip) for clip in CropClips(tiny_crops, NoMasks()).clips([0])][0]
    made = []
    basis = rng.normal(size=(24 * 6, tiny_decoder.CONFIG.feature_dim)).astype(np.float32)
    for clip in range(3):
        phase = np.linspace(0, 6, 40)[:, None, None] + rng.uniform(0, 6, size=(1, 24, 1))
        angles = 0.6 * np.sin(phase + np.arange(3))
        rotations = torch.tensor(angles, dtype=torch.float32)
        sixd = torch.cat([torch.linalg.matrix_exp(_skew(rotations))[..., i] for i in (0, 1)], -1).numpy()
        features = (sixd.reshape(40, -1) @ basis + 0.1 * rng.normal(size=(40, basis.shape[1]))).astype(np.float16)
        betas = np.repeat(rng.normal(size=(1, 10)), 40, axis=0).astype(np.float32)
        made.append(
            ClipFeatures(
                clip,
                np.arange(40),
                features,
                sixd,
                betas,
                np.repeat(found.predicted[:1], 40, axis=0),
                betas,
                np.zeros((40, 3), np.float32),
            )  # fmt: skip
        )
    return made


def _skew(v: torch.Tensor) -> torch.Tensor:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def test_windows_are_stretches_of_the_clips(clips: list[ClipFeatures], tiny_body: BodyModel) -> None:
    gap = replace(clips[0], frame=np.concatenate([np.arange(20), np.arange(25, 45)]))
    codec = PoseCodec(tiny_body)
    windows = Windows([gap, clips[1]], codec, tiny_decoder.CONFIG, torch.device("cpu"))
    assert windows.lengths.tolist() == [20, 20, 40]
    batch = windows.draw(np.random.default_rng(0), 64, 12, PLAIN, slice(0, 64))
    assert batch.known.all() and batch.valid.all()
    poses = [codec.encode(gap.truth), codec.encode(clips[1].truth)]
    pieces = [poses[0][:20], poses[0][20:], poses[1]]
    features = [
        torch.from_numpy(gap.features[:20]),
        torch.from_numpy(gap.features[20:]),
        torch.tensor(clips[1].features),
    ]
    for pose, feature in zip(batch.pose, batch.inputs, strict=True):
        hits = [
            (piece, start)
            for piece in range(3)
            for start in range(len(pieces[piece]) - 11)
            if torch.allclose(pieces[piece][start : start + 12], pose, atol=1e-5)
        ]
        assert len(hits) == 1
        piece, start = hits[0]
        assert torch.equal(features[piece][start : start + 12].float(), feature)
    part = windows.draw(np.random.default_rng(0), 64, 12, PLAIN, slice(16, 32))
    assert torch.equal(part.pose, batch.pose[16:32])


def test_too_short(clips: list[ClipFeatures], tiny_body: BodyModel) -> None:
    scattered = replace(clips[0], frame=2 * np.arange(40))
    with pytest.raises(UserError, match="frames that follow each other"):
        Windows([scattered], PoseCodec(tiny_body), tiny_decoder.CONFIG, torch.device("cpu"))


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("objective", ["both", "velocity", "regress", "noise"])
def test_it_learns_and_the_vae_stays(
    objective: str,
    readout: bool,
    clips: list[ClipFeatures],
    tiny_body: BodyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(tiny_decoder.CONFIG, objective=objective, zero_snr=objective != "noise", readout=readout)
    decoder = TemporalDecoder(config, seed=1)
    decoder.set_statistics(pose_std=torch.tensor(0.3))
    frozen = {name: p.clone() for name, p in decoder.vae.named_parameters()}
    task = DecoderFit(decoder, PoseCodec(tiny_body), clips[:2], clips[2:], DecoderSettings(batch_size=8))
    batch = task.windows.draw(np.random.default_rng(5), 64, 12, PLAIN, slice(0, 64))
    z0 = task._latents(batch, decoder.condition(batch.inputs, batch.known, batch.valid).start)
    assert abs(float(z0.mean())) < 0.2 and 0.7 < float(z0.std()) < 1.3, "latents of unit scale"
    inputs = task.windows.inputs[:, : config.feature_dim]
    features = (inputs - decoder.feature_mean) / decoder.feature_std
    assert features.mean(0).abs().max() < 1e-2 and (features.std(0) - 1).abs().max() < 0.05
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    run = train(task, LoopSettings(20, rate=3e-3, ema=0.9, validations=1), tmp_path)
    assert all(torch.equal(p, frozen[name]) for name, p in decoder.vae.named_parameters())
    losses = [r["losses"][objective] for r in map(json.loads, (tmp_path / "log.jsonl").open()) if "losses" in r]
    assert np.isfinite(losses).all()
    assert set(run.validations[-1]) == {
        "step", "mpjpe_mm", "mpjpe_stride4_mm", "accel_mm_per_frame2", "linear_mpjpe_mm",
    }  # fmt: skip
    if objective != "noise":
        assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.fixture
def fit(clips: list[ClipFeatures], tiny_body: BodyModel) -> Callable[[DecoderSettings], DecoderFit]:
    """Makes a task over an untrained decoder whose VAE gives poses of about the right size."""

    def make(settings: DecoderSettings) -> DecoderFit:
        decoder = TemporalDecoder(tiny_decoder.CONFIG, seed=1)
        decoder.set_statistics(pose_std=torch.tensor(0.3))
        return DecoderFit(decoder, PoseCodec(tiny_body), clips[:2], clips[2:], settings)

    return make


def test_half_of_the_samples_are_pure_noise_and_the_others_at_any_step(
    fit: Callable[[DecoderSettings], DecoderFit],
) -> None:
    assert abars(tiny_decoder.CONFIG)[-1] == 0
    rng, steps = np.random.default_rng(0), tiny_decoder.CONFIG.train_steps
    t, noise = fit(DecoderSettings(batch_size=64, last_step=1.0))._draw_noise(rng)
    assert t is not None and t.tolist() == [steps - 1] * 64, "the one step that a single step of sampling sees"
    assert noise is not None and noise.shape == (64, 3, 16) and 0.9 < float(noise.std()) < 1.1
    t, _ = fit(DecoderSettings(batch_size=6000, last_step=0.5))._draw_noise(rng)
    assert t is not None and abs(int((t == steps - 1).sum()) - 3003) < 4 * 6000**0.5 / 2
    others = t[t < steps - 1].double() / steps
    assert others.min() < 0.01 and others.max() > 0.99 and abs(float(others.mean()) - 0.5) < 4 * (12 * 3000) ** -0.5


def abars(config: DecoderConfig) -> np.ndarray:
    """The share of signal at every step: betas linear in their roots, roots of abar shifted and scaled so that the
    last is 0 and the first stays (Lin et al. 2023, algorithm 1)."""
    betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.train_steps) ** 2
    roots = np.sqrt(np.cumprod(1 - betas))
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def test_locations_weigh_as_much_as_there_is_noise_by_a_loop(
    fit: Callable[[DecoderSettings], DecoderFit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distances of joints in decimetres, times 1 - abar, over each window's frames and then over windows."""
    task = fit(DecoderSettings(batch_size=6, last_step=0.3, time=TimeSettings(short=0.5)))
    drawn: list[Any] = []

    def compare(denoiser: Any, z0: torch.Tensor, t: torch.Tensor, *rest: Any, **more: Any) -> tuple[torch.Tensor, ...]:
        drawn.extend([z0, t, rest[3]])
        return z0.new_zeros(()), z0 + 0.5

    monkeypatch.setattr("hmrcompress.training.decoder_fit.compared", compare)
    total, parts = task.losses(3)
    z0, t, valid = drawn
    assert not valid.all() and len(set(t.tolist())) > 2
    rng = np.random.default_rng(np.random.SeedSequence([0, 3]))
    batch = task.windows.draw(rng, 6, 12, task.settings.time, slice(0, 6))
    decoder, shares = task.decoder, abars(tiny_decoder.CONFIG)
    with torch.no_grad():
        pose = decoder.denormalise_pose(decoder.vae.decode(decoder.denormalise_latents(z0 + 0.5))).double()
    apart = []
    for row in range(6):
        off = [
            float((pose[row, frame, 3 * joint :] - batch.pose[row, frame, 3 * joint :].double())[:3].norm())
            for frame in np.flatnonzero(valid[row].numpy())
            for joint in range(LOCATIONS // 3)
        ]
        apart.append(10 * (1 - shares[t[row]]) * np.mean(off))
    assert float(parts["reconstruction"]) == pytest.approx(np.mean(apart), rel=1e-4)
    assert float(total) == pytest.approx(3 * np.mean(apart), rel=1e-4)


def test_validation_of_a_perfect_decoder(
    clips: list[ClipFeatures], tiny_body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that gives the truth, shifted in one joint by 24 mm at every frame: 1 mm before inverse kinematics."""
    codec = PoseCodec(tiny_body)
    task = DecoderFit(TemporalDecoder(tiny_decoder.CONFIG), codec, clips[:2], clips[2:], DecoderSettings(batch_size=4))
    asked: list[Any] = []

    def decode(decoder: TemporalDecoder, features: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        asked.append(known)
        return codec.encode(clips[2].truth)

    monkeypatch.setattr("hmrcompress.training.decoder_fit.decode_clip", decode)
    figures = task.validate()
    assert figures["mpjpe_mm"] < 0.05 and figures["accel_mm_per_frame2"] < 0.1
    assert asked[0].all() and asked[1].nonzero().flatten().tolist() == list(range(0, 40, 4))
    assert figures["linear_mpjpe_mm"] > 10
