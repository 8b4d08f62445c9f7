"""Motions for the motion VAE, its loss, and how well it reconstructs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roma
import tiny_decoder
import torch
from torch import Tensor

from hmrcompress.body.model import BodyModel
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import Notice, UserError
from hmrcompress.motion.clip import Motion
from hmrcompress.records import BodyParams
from hmrcompress.starter.motion import procedural
from hmrcompress.training import motions
from hmrcompress.training.loop import LoopSettings, train
from hmrcompress.training.motions import (
    MotionBank,
    MotionSettings,
    augmented,
    make_shard,
    motion_files,
    random_views,
    read_captured,
)
from hmrcompress.training.vae_fit import LOCATIONS, HeldMotions, VAEFit, VAESettings

CONFIG = replace(tiny_decoder.CONFIG, dropout=0.0)


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MotionBank:
    tiny_decoder.fill_bank(tmp_path, monkeypatch)
    return MotionBank(tmp_path / "motions", MotionSettings(frames=18), generate=procedural.generate, workers=0)


def held(body: BodyModel, frames: int = 30) -> list[BodyParams]:
    """A motion that nobody trains on."""
    poses = procedural.generate(99, frames).poses[None]
    return [augmented(torch.from_numpy(poses), np.random.default_rng(0))]


def fit(body: BodyModel, bank: MotionBank, **settings: Any) -> VAEFit:
    decoder = TemporalDecoder(CONFIG)
    return VAEFit(decoder, PoseCodec(body), bank, held(body), VAESettings(batch_size=8, **settings))


def test_cameras_stand_upright_and_look_from_everywhere() -> None:
    views = random_views(np.random.default_rng(0), 400, 5).double()
    eye = torch.eye(3, dtype=torch.float64)
    assert (views @ views.mT - eye).abs().max() < 1e-5 and (torch.linalg.det(views) - 1).abs().max() < 1e-5
    up, forward = views[..., 1], views[..., 2]
    assert (up[..., 1] < -0.5).all(), "y up becomes y down, tilted by less than 60 degrees"
    heading = torch.atan2(forward[:, 0, 0], forward[:, 0, 2])
    counts = torch.histc(heading.float(), 8, -torch.pi, torch.pi)
    assert counts.min() > 25, "eight directions, 50 views each on average"


def test_augmentation_keeps_bodies_whole() -> None:
    """Local rotations stay, or are mirrored: (x, y, z) of a joint becomes (x, -y, -z) of its twin."""
    poses = torch.from_numpy(np.random.default_rng(1).normal(scale=0.5, size=(64, 4, 24, 3)).astype(np.float32))
    params = augmented(poses, np.random.default_rng(2))
    found = params.body_pose.unflatten(0, (64, 4))
    plain = roma.rotvec_to_rotmat(poses[:, :, 1:])
    twins = [2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22]
    mirrored = roma.rotvec_to_rotmat(poses[:, :, twins] * torch.tensor([1.0, -1.0, -1.0]))
    kinds = []
    for window in range(64):
        wanted = {
            "plain": plain[window],
            "mirror": mirrored[window],
            "back": plain[window].flip(0),
            "both": mirrored[window].flip(0),
        }
        kinds.append([name for name, value in wanted.items() if torch.allclose(value, found[window], atol=1e-5)])
    assert all(len(kind) == 1 for kind in kinds)
    for name in ("plain", "mirror", "back", "both"):
        assert 6 <= sum(kind == [name] for kind in kinds) <= 30
    betas = params.betas.unflatten(0, (64, 4))
    assert (betas == betas[:, :1]).all() and betas.abs().max() <= motions.LIMIT and 0.8 < betas.std() < 1.1


def test_shards_are_told_by_seed_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motions, "MOTIONS_A_SHARD", 3)
    settings = MotionSettings(frames=10)
    first = make_shard(1, 0, settings, (), procedural.generate)
    assert first.shape == (3, 10, 24, 3) and first.dtype == np.float32
    assert np.array_equal(first, make_shard(1, 0, settings, (), procedural.generate))
    assert not np.array_equal(first, make_shard(1, 1, settings, (), procedural.generate))
    assert not np.array_equal(first, make_shard(2, 0, settings, (), procedural.generate))


def test_captured_motion_is_cut_and_its_speed_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A joint that turns steadily, 0.01 rad a frame, turns 0.8 to 1.25 times as fast afterwards."""
    monkeypatch.setattr(motions, "MOTIONS_A_SHARD", 12)
    for chance in ("SWAPPED", "JITTERED"):
        monkeypatch.setattr(motions, chance, 0.0)
    poses = np.zeros((80, 24, 3), np.float32)
    poses[:, 4, 0] = 0.01 * np.arange(80)
    steady = Motion(poses, np.zeros((80, 3), np.float32), 30.0, "steady")
    made = make_shard(0, 0, MotionSettings(frames=20, captured=1.0), [steady], procedural.generate)
    speed = np.diff(made[:, :, 4, 0], axis=1)
    assert np.abs(speed - speed[:, :1]).max() < 1e-5
    assert 0.008 - 1e-5 <= speed.min() < 0.0095 and 0.0105 < speed.max() <= 0.0125 + 1e-5


def test_nobody_makes_motions(bank: MotionBank) -> None:
    with pytest.raises(UserError, match="no process makes motions, and this one is missing"):
        bank.draw(np.random.default_rng(0), 64, 12, newest=1)


def test_files(tmp_path: Path) -> None:
    short, long = MotionSettings(frames=20), MotionSettings(frames=60)
    assert motion_files("starter", short) == []
    with pytest.raises(UserError, match="expected starter or amass:DIR"):
        motion_files("cmu", short)
    with pytest.raises(UserError, match="no .npz file"):
        motion_files(f"amass:{tmp_path}", short)
    for name in ("a", "b"):
        poses, trans = np.zeros((40, 156)), np.zeros((40, 3))
        np.savez(tmp_path / f"{name}.npz", poses=poses, trans=trans, mocap_framerate=30.0)
    with pytest.warns(Notice, match=r"left out 1 of 2 files: 1 held out \(b.npz\)"):
        files = motion_files(f"amass:{tmp_path}", short, held_out=("b",))
    assert [file.stem for file in files] == ["a"] and len(read_captured(files, short)) == 1
    with pytest.raises(UserError, match=r"no file .* can be used: 2 shorter than 2.53 s \(a.npz, b.npz\)"):
        motion_files(f"amass:{tmp_path}", long)
    with pytest.raises(UserError, match="no motion is"):
        read_captured(files, long)


def test_the_loss_is_the_one_written_down(tiny_body: BodyModel, bank: MotionBank) -> None:
    """Against a loop over windows, frames and numbers in float64."""
    task = fit(tiny_body, bank, short=1.0, seed=3)
    vae, settings = task.decoder.vae, task.settings
    seen: dict[str, Any] = {}
    encode, decode = vae.encode, vae.decode

    def watch_encode(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        seen["x"], seen["valid"] = x, valid
        seen["mean"], seen["logvar"] = encode(x, valid)
        return seen["mean"], seen["logvar"]

    def watch_decode(z: Tensor) -> Tensor:
        seen["z"], seen["decoded"] = z, decode(z)
        return seen["decoded"]

    vae.encode, vae.decode = watch_encode, watch_decode  # type: ignore[method-assign,assignment]
    loss, parts = task.losses(5)
    x, valid, y, mean, logvar = (
        seen[name].detach().double().numpy() for name in ("x", "valid", "decoded", "mean", "logvar")
    )
    sums = {"joints": 0.0, "velocity": 0.0, "twists": 0.0}
    for window in range(8):
        frames = [t for t in range(12) if valid[window, t]]
        assert 8 <= len(frames) <= 12
        for t in frames:
            error = (y[window, t] - x[window, t]) ** 2
            sums["joints"] += error[:LOCATIONS].mean() / len(frames) / 8
            sums["twists"] += error[LOCATIONS:].mean() / len(frames) / 8
            if t > 0:
                moved = (y[window, t] - y[window, t - 1]) - (x[window, t] - x[window, t - 1])
                sums["velocity"] += (moved[:LOCATIONS] ** 2).mean() / (len(frames) - 1) / 8
    divergence = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean()
    for name, value in sums.items():
        assert float(parts[name].detach()) == pytest.approx(value, rel=1e-4)
    wanted = sums["joints"] + settings.velocity * sums["velocity"] + sums["twists"]
    assert float(loss.detach()) == pytest.approx(wanted + settings.kl * divergence, rel=1e-4)
    noise = (seen["z"] - seen["mean"]) / (0.5 * seen["logvar"]).exp()
    assert abs(float(noise.mean().detach())) < 0.2 and 0.8 < float(noise.std().detach()) < 1.2


def test_a_millimetre_counts_the_same_at_every_joint(tiny_body: BodyModel, bank: MotionBank) -> None:
    task = fit(tiny_body, bank)
    std = task.decoder.pose_std
    assert len(std[:LOCATIONS].unique()) == 1 and len(std[LOCATIONS:].unique()) == 1
    x, _ = task._batch(np.random.default_rng(7), 64, 0, whole=True)
    for part, weight in ((x[..., :LOCATIONS], 1.0), (x[..., LOCATIONS:], task.settings.twists)):
        assert 0.7 * weight < float(part.square().mean()) < 1.4 * weight


def test_validation_is_after_inverse_kinematics(tiny_body: BodyModel) -> None:
    """What is handed back unchanged costs nothing; a pose seen turned by a known angle costs its chords."""
    decoder, codec = TemporalDecoder(CONFIG), PoseCodec(tiny_body)
    clips = held(tiny_body)
    measure = HeldMotions(clips, codec, decoder)
    assert sum(len(pose) for pose, _ in measure.windows) == 12 * 3, "two whole windows, and one that ends the clip"
    given: dict[str, Tensor] = {}

    def encode(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        given["x"] = x
        return x, x

    decoder.vae.encode, decoder.vae.decode = encode, lambda z: z  # type: ignore[method-assign,assignment]
    assert measure.mpjpe_mm(decoder) < 0.05
    turn = roma.rotvec_to_rotmat(torch.tensor([0.0, 0.2, 0.0]))

    def turned(z: Tensor) -> Tensor:
        joints = z[..., :LOCATIONS].unflatten(-1, (-1, 3)) @ turn.mT
        return torch.cat([joints.flatten(-2), z[..., LOCATIONS:]], -1)

    decoder.vae.decode = turned  # type: ignore[method-assign,assignment]
    joints = [pose[:, :72].unflatten(1, (24, 3)) for pose, _ in measure.windows]
    chords = torch.cat([(j @ turn.mT - j).norm(dim=-1).mean(1) for j in joints])
    assert measure.mpjpe_mm(decoder) == pytest.approx(1000 * float(chords.mean()), rel=1e-3)


def test_it_learns(tiny_body: BodyModel, bank: MotionBank, tmp_path: Path) -> None:
    """Transformers alone, from random weights: the linear map begins at zero."""
    task = fit(tiny_body, bank, steps_a_shard=1000)
    vae = task.decoder.vae
    vae.load_state_dict(TemporalDecoder(CONFIG).vae.state_dict())
    vae.latent_out.bias.data[CONFIG.latent_dim :] = -8.0
    run = train(task, LoopSettings(60, rate=5e-3, ema=0.9, validations=1), tmp_path / "run")
    before, after = run.validations[0]["mpjpe_mm"], run.validations[-1]["mpjpe_mm"]
    assert after < 0.5 * before


def test_it_begins_with_principal_components(tiny_body: BodyModel, bank: MotionBank) -> None:
    """At the first step encoder and decoder are one projection, as good as numpy's singular vectors of the pieces."""
    task = fit(tiny_body, bank)
    x, _ = task._batch(np.random.default_rng(11), 512, 0, whole=True)
    with torch.no_grad():
        mean, logvar = task.decoder.vae.encode(x, torch.ones(512, 12, dtype=torch.bool))
        decoded = task.decoder.vae.decode(mean)
    assert (logvar == -8).all()
    pieces = x.reshape(512 * 3, 4 * 133).double().numpy()
    _, _, vectors = np.linalg.svd(pieces, full_matrices=False)
    best = ((pieces @ vectors[:16].T @ vectors[:16] - pieces) ** 2).mean()
    found = float((decoded - x).double().square().mean())
    assert best < found < 1.3 * best, "fitted on other windows of the same motions"
    again = task.decoder.vae.encode(decoded, torch.ones(512, 12, dtype=torch.bool))[0]
    assert torch.allclose(again, mean, atol=1e-4), "a projection done twice is done once"
