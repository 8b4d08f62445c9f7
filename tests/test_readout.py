"""The decoder that starts from the network's own read-out: what it reads, what it is before training, what it finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_decoder_nets import TINY, draw, every

from hmrcompress.body.model import BodyModel
from hmrcompress.decoder.clips import decode_clip
from hmrcompress.decoder.diffusion import clean, noise_schedule, noisy, velocity
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.readout import Blend, decoder_inputs, filled
from hmrcompress.geometry.rotations import sixd_to_matrix
from hmrcompress.records import BodyParams

# Pieces of one frame and as many latents as numbers, so that the linear map can keep everything.
WHOLE = replace(TINY, latents=12, latent_dim=133, readout=True)


def transparent(**changes: object) -> TemporalDecoder:
    """An untrained decoder that averages over no time and whose VAE is an orthonormal map of each frame's pose, with
    statistics of all kinds."""
    decoder = TemporalDecoder(replace(WHOLE, **changes), seed=2).eval()  # type: ignore[arg-type]
    turn = torch.linalg.qr(draw(133, 133, seed=4))[0]
    decoder.vae.begin_linear(turn, logvar=-8.0)
    with torch.no_grad():
        decoder.denoiser.blend.log_spans.fill_(-5.0)
    decoder.set_statistics(
        pose_mean=draw(133, seed=5), pose_std=torch.tensor(0.3), feature_mean=draw(8), latent_std=torch.tensor(2.0)
    )
    return decoder


def inputs(batch: int, frames: int = 12, seed: int = 0) -> torch.Tensor:
    return draw(batch, frames, WHOLE.input_dim, seed=seed)


def test_rows_in_between_are_those_of_numpys_interp() -> None:
    random = torch.Generator().manual_seed(0)
    for share in (0.1, 0.5, 0.9):
        known = torch.rand(6, 20, generator=random) < share
        known[0] = False
        values = draw(6, 20, 3, seed=1)
        holes = values.masked_fill(~known[..., None], float("nan"))
        found = filled(holes, known).numpy()
        assert not found[0].any(), "nothing is known: zeros"
        for row in range(1, 6):
            at = np.flatnonzero(known[row].numpy())
            for channel in range(3) if len(at) else ():
                wanted = np.interp(np.arange(20), at, values[row, at, channel].numpy())
                np.testing.assert_allclose(found[row, :, channel], wanted, atol=1e-5)
            assert torch.equal(filled(holes, known)[row, at], values[row, at]), "what is known stays as it is"


@torch.no_grad()
def test_what_a_decoder_reads(tiny_body: BodyModel) -> None:
    turned = sixd_to_matrix(draw(5, 24, 6))
    params = BodyParams(turned[:, :1], turned[:, 1:], draw(5, 10, seed=1))
    codec, features = PoseCodec(tiny_body), draw(5, 8, seed=2)
    read = decoder_inputs(WHOLE, codec, features.half(), params)
    assert read.shape == (5, WHOLE.input_dim) and read.dtype == torch.float32
    assert torch.equal(read[:, :8], features.half().float())
    joints = tiny_body.joints(params)
    relative = (joints - joints[:, :1]).flatten(1)
    torch.testing.assert_close(read[:, 8 : 8 + relative.shape[1]], relative, rtol=1e-4, atol=1e-5)
    assert torch.equal(decoder_inputs(replace(WHOLE, readout=False), codec, features, params), features)


@torch.no_grad()
def test_what_a_window_is_conditioned_on_by_a_loop() -> None:
    """Features less their mean over the frames that are read, which are fewer than the valid ones; read-outs, between
    those frames interpolated, less their average; the latents that the average projects to."""
    decoder = TemporalDecoder(replace(TINY, readout=True), seed=1).eval()
    decoder.vae.pieces.copy_(draw(*decoder.vae.pieces.shape, seed=3))
    decoder.set_statistics(
        feature_mean=draw(8, seed=4),
        feature_std=draw(8, seed=5).abs(),
        pose_mean=draw(133, seed=6),
        pose_std=torch.tensor(0.3),
    )
    given, known, valid = inputs(2), every(2, 12), every(2, 12)
    known[0, [1, 2, 6]], known[1, 1:9], valid[0, 9:], valid[1, 11:] = False, False, False, False
    found = decoder.condition(given.masked_fill(~(known & valid)[..., None], float("nan")), known, valid)
    assert found.readout is not None and found.start is not None and found.blended is not None
    scale = decoder.feature_std.double().numpy()
    for row in range(2):
        at = [t for t in range(12) if known[row, t] and valid[row, t]]
        assert len(at) < int(valid[row].sum()) < 12
        values = given[row].double().numpy()
        mean = sum(values[t, :8] for t in at) / len(at)
        for t in at:
            np.testing.assert_allclose(
                found.features[row, t].numpy(), (values[t, :8] - mean) / scale, rtol=1e-5, atol=1e-4
            )
        blended = found.blended[row].double().numpy()
        for t in range(12):
            wanted = np.array([np.interp(t, at, values[at, 8 + n]) for n in range(133)]) - blended[t]
            wanted = wanted / 0.3 if valid[row, t] else np.zeros(133)
            np.testing.assert_allclose(found.readout[row, t].numpy(), wanted, atol=1e-4)
        frames = np.zeros((3, 4 * 133))
        for t in np.flatnonzero(valid[row].numpy()):
            frames[t // 4, 133 * (t % 4) :][:133] = (blended[t] - decoder.pose_mean.double().numpy()) / 0.3
        np.testing.assert_allclose(
            found.start[row], frames @ decoder.vae.pieces.double().numpy().T, rtol=1e-4, atol=1e-2
        )


@torch.no_grad()
@pytest.mark.parametrize("objective", ["both", "velocity", "regress"])
def test_untrained_it_gives_the_read_out(objective: str) -> None:
    """On known frames, and in between what interpolation gives, whatever the noise; the first frames of a clip alone
    too. So training begins where the network is, not at the mean pose."""
    decoder = transparent(objective=objective)
    given = inputs(2)
    known, valid = every(2, 12), every(2, 12)
    known[1] = torch.arange(12) % 4 == 0
    valid[0, 9:] = False
    pose = decoder(given, known, valid, noise=draw(12, 133, seed=8))
    torch.testing.assert_close(pose[0, :9], given[0, :9, 8:], rtol=1e-4, atol=1e-4)
    between = torch.from_numpy(
        np.stack([np.interp(range(12), range(0, 12, 4), given[1, ::4, 8 + i].numpy()) for i in range(133)], -1)
    ).float()
    torch.testing.assert_close(pose[1], between, rtol=1e-4, atol=1e-4)
    clip = inputs(1, 30, seed=3)[0]
    torch.testing.assert_close(decode_clip(decoder, clip), clip[:, 8:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_predicting_noise_cannot_start_there() -> None:
    """An untrained network says that there is no noise, and the latents are then noise over almost no signal."""
    decoder = transparent(objective="noise", zero_snr=False)
    given = inputs(1)
    pose = decoder(given, every(1, 12), every(1, 12), noise=draw(12, 133, seed=8))
    signal = float(noise_schedule(decoder.config)[-1]) ** 0.5
    away = (pose - given[..., 8:]).square().mean().sqrt()
    assert away == pytest.approx(0.3 * 2.0 / signal, rel=0.05), "deviations of poses and latents, by 1 / signal"


@torch.no_grad()
@pytest.mark.parametrize("t", [0, 400, 998, 999])
def test_the_true_velocity_gives_the_true_pose_at_any_noise(t: int) -> None:
    """The difference from the read-out is diffused: exact at both ends of the schedule."""
    decoder = transparent()
    given, truth = inputs(2), draw(2, 12, 133, seed=6)
    start = decoder.condition(given, every(2, 12), every(2, 12)).start
    assert start is not None
    z0 = decoder.normalise_latents(decoder.vae.encode(decoder.normalise_pose(truth), every(2, 12))[0], start)
    noise, abar = draw(2, 12, 133, seed=7), float(noise_schedule(decoder.config)[t])
    found, eps = clean(noisy(z0, noise, abar), velocity(z0, noise, abar), abar, decoder.config)
    torch.testing.assert_close(eps, noise, rtol=1e-4, atol=1e-4)
    pose = decoder.denormalise_pose(decoder.vae.decode(decoder.denormalise_latents(found, start)))
    torch.testing.assert_close(pose, truth, rtol=1e-4, atol=1e-4)


def test_unknown_frames_are_never_read_and_the_read_out_matters() -> None:
    decoder = TemporalDecoder(replace(TINY, readout=True), seed=1).eval()
    decoder.denoiser.latent_out.reset_parameters()
    with torch.no_grad():
        decoder.vae.pieces.copy_(draw(*decoder.vae.pieces.shape, seed=3))
    given, known, valid = inputs(2), every(2, 12), every(2, 12)
    known[:, 3:6], valid[:, 10:] = False, False
    noise = draw(3, 8)
    pose = decoder(given.masked_fill(~(known & valid)[..., None], float("nan")), known, valid, noise=noise)
    pose[:, :10].sum().backward()
    assert pose.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())
    for name in ("pose_in", "feature_in"):
        grad = getattr(decoder.denoiser, name).weight.grad
        assert grad is not None and grad.abs().max() > 0, name
    moved = given.clone()
    moved[:, 0, 8:] += 1.0
    assert (decoder(moved, known, valid, noise=noise) - pose).abs().max() > 1e-4


@torch.no_grad()
def test_the_average_over_time_by_a_loop() -> None:
    blend, random = Blend(8, 5).double(), torch.Generator().manual_seed(1)
    for parameter in blend.parameters():
        parameter.add_(0.5 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    pose, features = draw(2, 9, 5).double(), draw(2, 9, 8, seed=1).double()
    read, valid = torch.rand(2, 9, generator=random) < 0.6, every(2, 9)
    read[:, 0] = read[:, 8] = True
    valid[1, 6:] = False
    found = blend(pose, features.masked_fill(~(read & valid)[..., None], float("nan")), read & valid, valid)
    spans, mixture = blend.log_spans.exp().numpy(), blend.mixture.exp().numpy()
    for row in range(2):
        frames = [t for t in range(9) if valid[row, t]]
        at = [t for t in frames if read[row, t]]
        sure = features[row, at].numpy() @ blend.confidence.weight.numpy().T + blend.confidence.bias.numpy()
        for t in frames:
            for number in range(5):
                total = 0.0
                for kernel, span in enumerate(spans):
                    logit = [np.interp(s, at, sure[:, kernel]) - 0.5 * ((t - s) / span) ** 2 for s in frames]
                    weights = np.exp(logit) / np.exp(logit).sum()
                    share = mixture[kernel, number] / mixture[:, number].sum()
                    total += share * (weights @ pose[row, frames, number].numpy())
                assert found[row, t, number] == pytest.approx(total, abs=1e-9)


def test_the_average_learns_from_its_own_loss_alone() -> None:
    """The denoiser is measured from the latents that the average projects to; none of its losses gets there."""
    decoder = TemporalDecoder(replace(TINY, readout=True), seed=1)
    decoder.vae.requires_grad_(False)
    given = decoder.condition(inputs(2), every(2, 12), every(2, 12))
    assert given.start is not None and given.blended is not None and not given.start.requires_grad
    given.blended.square().sum().backward()
    grads = [p.grad for p in decoder.denoiser.blend.parameters()]
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)
