"""The networks of the temporal decoder: layers against torch's own, masks, sizes, and settings that are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hmrcompress.decoder.config import PAPER, PRESETS, STARTER, DecoderConfig
from hmrcompress.decoder.denoiser import Denoiser, time_waves
from hmrcompress.decoder.files import decoder_part
from hmrcompress.decoder.layers import Layer, SkipStack, attention_mask
from hmrcompress.decoder.model import SMALLEST_STD, TemporalDecoder, decoder_cost, latent_statistics
from hmrcompress.decoder.vae import MotionVAE
from hmrcompress.errors import ShapeError, UserError

TINY = DecoderConfig(
    frames=12, pose_dim=133, feature_dim=8, latents=3, latent_dim=8, vae_width=16, vae_layers=2, vae_heads=2,
    vae_mlp=32, width=16, layers=3, heads=2, mlp=24,
)  # fmt: skip


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def every(batch: int, frames: int) -> torch.Tensor:
    return torch.ones(batch, frames, dtype=torch.bool)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_layer_is_torchs_encoder_layer(pre_norm: bool) -> None:
    """In float64, with some tokens hidden; torch's takes the negated mask."""
    torch.manual_seed(0)
    layer = Layer(16, 4, 24, dropout=0.1, pre_norm=pre_norm).double().eval()
    theirs = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True, norm_first=pre_norm)
    theirs = theirs.double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    names = {
        "self_attn.in_proj_weight": "attention.qkv.weight", "self_attn.in_proj_bias": "attention.qkv.bias",
        "self_attn.out_proj.weight": "attention.out.weight", "self_attn.out_proj.bias": "attention.out.bias",
        "linear1.weight": "mlp.0.weight", "linear1.bias": "mlp.0.bias",
        "linear2.weight": "mlp.3.weight", "linear2.bias": "mlp.3.bias",
    }  # fmt: skip
    ours = layer.state_dict()
    theirs.load_state_dict({name: ours[names.get(name, name)] for name in theirs.state_dict()})
    tokens, valid = draw(3, 7, 16).double(), torch.rand(3, 7) < 0.6
    valid[:, 2] = True
    expected = theirs(tokens, src_key_padding_mask=~valid)
    torch.testing.assert_close(layer(tokens, attention_mask(valid)), expected, rtol=1e-12, atol=1e-12)


def test_long_skips_join_mirror_images() -> None:
    stack = SkipStack(5, 8, 2, 16, dropout=0.0)
    a, b, middle, c, d = stack.layers
    inner, outer = stack.skips
    x = draw(2, 4, 8)
    first, second = a(x), b(a(x))
    back = c(inner(torch.cat([middle(second), second], -1)))
    torch.testing.assert_close(stack(x), d(outer(torch.cat([back, first], -1))))
    assert len(SkipStack(4, 8, 2, 16, dropout=0.0).skips) == 2


def test_waves_of_a_timestep_by_a_loop() -> None:
    waves = time_waves(torch.tensor([0, 7, 999]), 7)
    for row, t in enumerate((0, 7, 999)):
        rates = [10_000 ** (-index / 3) for index in range(3)]
        expected = [math.sin(t * rate) for rate in rates] + [math.cos(t * rate) for rate in rates] + [0.0]
        torch.testing.assert_close(waves[row], torch.tensor(expected), rtol=0, atol=2e-4)


def test_the_vae_never_reads_what_is_not_valid() -> None:
    """A clip padded with anything encodes as the clip alone, and fewer frames decode as the beginning of all."""
    vae = MotionVAE(TINY).eval()
    x, valid = draw(2, 12, 133), every(2, 12)
    valid[:, 7:] = False
    padded = x.masked_fill(~valid[..., None], float("nan"))
    mean, logvar = vae.encode(padded, valid)
    alone = vae.encode(x[:, :7], every(2, 7))
    assert mean.shape == logvar.shape == (2, 3, 8)
    torch.testing.assert_close((mean, logvar), alone, rtol=1e-4, atol=1e-5)
    moved = vae.encode(x[:, :7] + torch.eye(7)[6][:, None], every(2, 7))[0]
    assert (moved - mean).abs().max() > 1e-3
    vae, mean = vae.double(), mean.double()  # products of other sizes are summed in another order
    torch.testing.assert_close(vae.decode(mean, 5), vae.decode(mean)[:, :5], rtol=1e-12, atol=1e-12)
    assert vae.decode(mean).shape == (2, 12, 133)


def test_the_denoiser_reads_known_and_valid_frames_only() -> None:
    denoiser = Denoiser(TINY).eval()
    z, t, features = draw(2, 3, 8), torch.tensor([5, 900]), draw(2, 12, 8, seed=1)
    known, valid = torch.rand(2, 12, generator=torch.Generator().manual_seed(2)) < 0.5, every(2, 12)
    valid[:, 9:] = False
    known[:, 0], known[:, 1] = True, False
    holes = features.masked_fill(~(known & valid)[..., None], float("nan"))
    out = denoiser(z, t, holes, known, valid)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.parameters())
    torch.testing.assert_close(out, denoiser(z, t, features[:, :9], known[:, :9], valid[:, :9]), rtol=1e-4, atol=1e-5)
    filled = known.clone()
    filled[:, 1] = True
    assert (denoiser(z, t, features, filled, valid) - out).abs().max() > 1e-4
    assert (denoiser(z, t + 50, features, known, valid) - out).abs().max() > 1e-4
    order = features.clone()
    order[:, [0, 2]] = order[:, [2, 0]]
    assert (
        denoiser(z, t, order, every(2, 12), valid) - denoiser(z, t, features, every(2, 12), valid)
    ).abs().max() > 1e-4


def test_statistics_are_applied_around_the_networks() -> None:
    """Other units of features, poses and latents give the same poses in those units."""
    decoder = TemporalDecoder(TINY).eval()
    features, noise = draw(2, 12, 8), draw(3, 8, seed=1)
    plain = decoder(features, every(2, 12), every(2, 12), noise=noise)
    scaled = TemporalDecoder(TINY).eval()
    scaled.set_statistics(
        feature_mean=torch.full((8,), 5.0), feature_std=torch.tensor(3.0),
        pose_mean=torch.arange(133.0), pose_std=torch.tensor(0.5),
    )  # fmt: skip
    other = scaled(3.0 * features + 5.0, every(2, 12), every(2, 12), noise=noise)
    torch.testing.assert_close(other, 0.5 * plain + torch.arange(133.0), rtol=1e-4, atol=1e-4)
    scaled.set_statistics(latent_mean=draw(3, 8), latent_std=torch.tensor(2.0))
    z = draw(4, 3, 8)
    torch.testing.assert_close(scaled.denormalise_latents(scaled.normalise_latents(z)), z)
    torch.testing.assert_close(scaled.normalise_latents(z), (z - draw(3, 8)) / 2.0)
    scaled.set_statistics(pose_std=torch.zeros(133))
    assert scaled.pose_std.min() == torch.tensor(SMALLEST_STD)


def test_latents_share_one_scale() -> None:
    means = draw(500, 3, 8) * torch.tensor([4.0] * 4 + [0.01] * 4) + 7.0
    mean, scale = latent_statistics(means)
    assert mean.shape == (3, 8) and scale.ndim == 0
    assert abs(float(scale) - math.sqrt(8.0)) < 0.1 and (mean - 7.0).abs().max() < 0.8


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = TemporalDecoder(TINY, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = TemporalDecoder(TINY, seed=3).state_dict(), TemporalDecoder(TINY, seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["denoiser.latent_in.weight"], other["denoiser.latent_in.weight"])


def test_a_frozen_vae_stays_frozen() -> None:
    """Dropout of the VAE is off while the denoiser is trained."""
    decoder = TemporalDecoder(replace(TINY, dropout=0.5)).train()
    assert decoder.denoiser.training and not any(module.training for module in decoder.vae.modules())
    x = draw(1, 12, 133)
    assert torch.equal(decoder.vae.encode(x, every(1, 12))[0], decoder.vae.encode(x, every(1, 12))[0])
    decoder.vae.train()
    assert not torch.equal(decoder.vae.encode(x, every(1, 12))[0], decoder.vae.encode(x, every(1, 12))[0])


def linear(tokens: int, *sizes: tuple[int, int]) -> int:
    return sum(tokens * a * b for a, b in sizes)


def test_cost_by_hand() -> None:
    """Linear layers at their tokens, norms at four an element, and the products of attention apart."""
    cost, c = decoder_cost(TINY), TINY
    tokens, w, v = c.latents + 1 + c.frames, c.width, c.vae_width
    layers = c.layers * (linear(tokens, (w, 3 * w), (w, w), (w, c.mlp), (c.mlp, w)) + 2 * 4 * tokens * w)
    denoiser = layers + linear(tokens, (2 * w, w)) + linear(c.latents, (c.latent_dim, w), (w, c.latent_dim))
    denoiser += linear(c.frames, (c.feature_dim, w)) + linear(1, (w, w), (w, w))
    seen = c.latents + c.frames
    vae = c.vae_layers * (linear(seen, (v, 3 * v), (v, v), (v, c.vae_mlp), (c.vae_mlp, v)) + 2 * 4 * seen * v)
    vae += 4 * seen * v + linear(c.latents, (c.latent_dim, v)) + linear(c.frames, (v, c.pose_dim))
    assert cost.macs == denoiser + vae
    assert cost.attention_macs == 2 * (c.layers * tokens**2 * w + c.vae_layers * seen**2 * v)
    pieces = c.latents * c.latent_dim * -(-c.frames // c.latents) * c.pose_dim
    assert cost.other_macs == pieces, "the linear map back from latents, which is no module"


def test_presets() -> None:
    """The starter decoder can be shipped; the paper's is near its 6.8 GMACs (its VAE's insides are not published)."""
    assert PRESETS == {"paper": PAPER, "starter": STARTER} and PAPER == DecoderConfig()
    assert decoder_cost(STARTER).parameters <= 3_000_000
    half = decoder_part(TemporalDecoder(STARTER)).half()
    assert sum(tensor.numel() * tensor.element_size() for tensor in half.tensors.values()) <= 6_000_000
    assert 6e9 < decoder_cost(PAPER).macs < 9e9
    for config in PRESETS.values():
        assert DecoderConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames: got 0, expected a whole number from 1"),
        ({"latents": 2.5}, "latents: got 2.5"),
        ({"layers": True}, "layers: got True"),
        ({"heads": 5}, "heads: got 5, expected a divisor of width = 16"),
        ({"vae_heads": 3}, "vae_heads: got 3, expected a divisor of vae_width"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"beta_end": 0.0001}, "expected 0 < beta_start < beta_end < 1"),
        ({"beta_end": float("nan")}, "beta_end"),
        ({"objective": "score"}, "objective: got 'score', expected one of both, velocity, noise, regress"),
        ({"objective": "noise"}, "objective: noise cannot be .* zero signal-to-noise ratio.*zero_snr"),
    ],
)
def test_settings_that_make_no_decoder(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(TINY, **change)
    with pytest.raises(UserError, match="config.json"):
        DecoderConfig.from_dict(TINY.to_dict() | change, "config.json")


def test_fields_are_all_there() -> None:
    values = TINY.to_dict()
    del values["mlp"]
    with pytest.raises(UserError, match="here: unknown or missing fields: mlp, wdith"):
        DecoderConfig.from_dict(values | {"wdith": 3}, "here")


def test_shapes_are_checked() -> None:
    decoder = TemporalDecoder(TINY).eval()
    good = draw(2, 12, 8), every(2, 12), every(2, 12)
    for bad, message in (
        ((draw(2, 12, 9), *good[1:]), r"features: got \(2, 12, 9\), expected \(B,T,8\)"),
        ((draw(2, 13, 8), every(2, 13), every(2, 13)), "13 frames, expected 1 to 12"),
        ((good[0], every(2, 11), good[2]), "known: got"),
        ((good[0], good[1], good[2].float()), "valid: got"),
    ):
        with pytest.raises(ShapeError, match=message):
            decoder(*bad)
