"""The fast path: what the plain path gives, in every layout of weights that this machine has."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from bounds import GELU_SLOPE, int8_bound, network_bound, product_bound, rounding_bound, unit
from test_families import CAMERA, HAND, TOKENS, WHOLE
from test_reference import awake
from torch import Tensor, nn

import hmrcompress as hc
from hmrcompress.api import opening
from hmrcompress.errors import UserError
from hmrcompress.io.safetensors_file import write_safetensors
from hmrcompress.merging.apply import forced_merges, with_token_merging
from hmrcompress.models.families.registry import FAMILIES
from hmrcompress.models.fast import linear as fast_linear
from hmrcompress.models.fast.linear import Int8Linear, Kind, MklLinear, folded, kind_for, linear
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import pick_fast_dtype
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress.timing.reference import reference

CONFIG = replace(tiny.CONFIG, dim=64, mlp_dim=128, head_width=48)
IEF = replace(CONFIG, token_input="mean_shape", iterations=3)
WEIGHTED = TokenSettings(keep=90, attention_bias=True, size_weighted=True)
CPU = torch.device("cpu")


def single(config: object = CONFIG, tokens: TokenSettings | None = None) -> tuple[HMR2, FrameBatch]:
    network = awake(config).float().requires_grad_(False)
    return with_token_merging(network, tokens), made_up_batch(config, 3)


def numbers(output: object) -> list[torch.Tensor]:
    """What an HMROutput holds; read-outs that the family does not have are None."""
    return [tensor for tensor in vars(output).values() if tensor is not None]


def largest(ours: object, theirs: object) -> float:
    pairs = zip(numbers(ours), numbers(theirs), strict=True)
    return max(float((mine.double() - other.double()).abs().max().detach()) for mine, other in pairs)


def deviation(ours: object, theirs: object) -> float:
    """Root mean square of the differences, each output relative to its own size."""
    pairs = [(mine.double(), other.double()) for mine, other in zip(numbers(ours), numbers(theirs), strict=True)]
    apart = torch.cat([((mine - other) / other.square().mean().sqrt()).flatten() for mine, other in pairs])
    return float(apart.square().mean().sqrt())


@pytest.mark.parametrize("tokens", [None, WEIGHTED], ids=["all tokens", "merged"])
@pytest.mark.parametrize("config", [CONFIG, IEF], ids=["zero", "ief"])
def test_float32_is_the_network_in_float64(config: object, tokens: TokenSettings | None) -> None:
    """Against float64 arithmetic; without merging that is the network as its authors run it."""
    network, batch = single(config, tokens)
    exact = from_state(config, {name: tensor.double() for name, tensor in network.state_dict().items()})
    exact.requires_grad_(False)
    exact.backbone.reducer = network.backbone.reducer
    images = batch.images.double()
    wanted = reference(exact)(images) if tokens is None else exact(images, batch.person_mask)
    found = make_fast(network)(batch.images, batch.person_mask)
    assert largest(found, wanted) < network_bound(network, wanted)
    assert float(wanted.body_pose.std()) > 0.05


@pytest.mark.parametrize("tokens", [None, WEIGHTED], ids=["all tokens", "merged"])
@pytest.mark.parametrize("config", [CONFIG, IEF], ids=["zero", "ief"])
def test_bfloat16_errs_no_more_than_the_plain_path(config: object, tokens: TokenSettings | None) -> None:
    """In the mean over all numbers, of which there are enough to leave chance a few per cent."""
    network, batch = single(config, tokens)
    wanted = network(batch.images, batch.person_mask)
    plain = from_state(config, {name: tensor.bfloat16() for name, tensor in network.state_dict().items()})
    plain.backbone.reducer = network.backbone.reducer
    off = deviation(plain(batch.images.bfloat16(), batch.person_mask), wanted)
    fast = make_fast(network, torch.bfloat16)
    found = fast(batch.images, batch.person_mask)
    assert network_bound(network, wanted) < deviation(found, wanted) < 1.5 * off
    assert {tensor.dtype for tensor in numbers(found)} == {torch.float32}


def of_family(name: str) -> HMR2:
    """A small network of a family, whose read-outs, norms, biases and positions all matter."""
    like = {"camerahmr": CAMERA, "camerahmr_smplx": WHOLE, "tokenhmr": TOKENS, "hamer": HAND}.get(name, CONFIG)
    return awake(like).float().requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [None, WEIGHTED.changed(per_layer=60)], ids=["all tokens", "merged"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_its_network_in_float64(name: str, tokens: TokenSettings | None) -> None:
    """All that comes out, keypoints too; the family's head is still its own."""
    network = with_token_merging(of_family(name), tokens)
    config, batch = network.config, made_up_batch(network.config, 3)
    assert config.family == name
    exact = from_state(config, {key: tensor.double() for key, tensor in network.state_dict().items()})
    exact.backbone.reducer = network.backbone.reducer
    condition = None if batch.condition is None else batch.condition.double()
    wanted = exact(batch.images.double(), batch.person_mask, condition)
    fast = make_fast(network)
    found = fast(batch.images, batch.person_mask, batch.condition)
    assert largest(found, wanted) < network_bound(network, wanted) and len(numbers(found)) == len(numbers(wanted))
    assert float(wanted.body_pose.std()) > 0.05
    assert type(fast.head) is type(network.head) and "keys" not in fast.state_dict()
    again = network(batch.images, batch.person_mask, batch.condition)
    assert largest(again, wanted) < network_bound(network, wanted), "the network that it was made from is as it was"


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_reads_out_in_float32(name: str) -> None:
    """In bfloat16 no further off than the plain path whose read-outs are kept in float32."""
    network = of_family(name)
    batch = made_up_batch(network.config, 3)
    wanted = network(batch.images, batch.person_mask, batch.condition)
    kept = network.full_precision
    state = {key: value if key.startswith(kept) else value.bfloat16() for key, value in network.state_dict().items()}
    plain = from_state(network.config, state)
    off = deviation(plain(batch.images.bfloat16(), batch.person_mask, batch.condition), wanted)
    found = make_fast(network, torch.bfloat16)(batch.images, batch.person_mask, batch.condition)
    assert network_bound(network, wanted) < deviation(found, wanted) < 1.5 * off
    assert {tensor.dtype for tensor in numbers(found)} == {torch.float32}


def test_the_methods_of_a_network_stay(tiny_network: HMR2) -> None:
    network = with_token_merging(tiny_network, TokenSettings(keep=60))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fast, batch = make_fast(network), made_up_batch(tiny.CONFIG, 2)
    assert torch.equal(
        forced_merges(fast, batch.images, batch.person_mask), forced_merges(network, batch.images, batch.person_mask)
    )
    inputs = zip(fast.backbone.layer_inputs(batch.images), network.backbone.layer_inputs(batch.images), strict=True)
    assert all(float((mine - other).abs().max()) < network_bound(network, other) for mine, other in inputs)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_every_batch_size_gives_the_same(tiny_network: HMR2) -> None:
    """MKL packs for the rows that come first; others go past the packed weights."""
    fast, batch = make_fast(tiny_network), made_up_batch(tiny.CONFIG, 3)
    three = fast(batch.images, batch.person_mask)
    one = fast(batch.images[:1], batch.person_mask[:1])
    again = fast(batch.images, batch.person_mask)
    assert float((three.body_pose[:1] - one.body_pose).abs().max()) < network_bound(tiny_network, one.body_pose)
    assert torch.equal(three.body_pose, again.body_pose)


def test_weights_that_are_consumed_are_gone() -> None:
    network = tiny.network()
    block = weakref.ref(network.backbone.blocks[0])
    fast = make_fast(network, torch.bfloat16, consume=True)
    assert fast is network and block() is None and not fast.state_dict().keys() & {"backbone.blocks.0.attn.qkv.weight"}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("plain", torch.float32), ("mkl", torch.float32), ("onednn", torch.bfloat16), ("int8", torch.float32)],
)
def test_layers_against_float64(kind: Kind, dtype: torch.dtype) -> None:
    if kind != "int8" and kind_for(CPU, dtype) != kind and kind != "plain":
        pytest.skip(f"no {kind} here")
    seeded = torch.Generator().manual_seed(0)
    weight, bias, x, residual = (
        torch.randn(*shape, generator=seeded).to(dtype) for shape in ((24, 40), (24,), (2, 9, 40), (2, 9, 24))
    )
    layer = linear(kind, weight / 40**0.5, bias)
    exact = nn.functional.linear(x.double(), (weight / 40**0.5).double(), bias.double())
    bound = product_bound(x, weight / 40**0.5, bias, dtype)
    if kind == "int8":
        bound = bound + rounding_bound(x, weight / 40**0.5)
    through_gelu = exact * 0.5 * (1 + torch.erf(exact / 2**0.5))
    added = exact + residual.double()
    for found, wanted, allowed in (
        (layer(x.clone()), exact, bound),
        (layer(x.clone(), gelu=True), through_gelu, GELU_SLOPE * bound + 4 * unit(dtype) * exact.abs()),
        (layer(x.clone(), residual=residual.clone()), added, bound + unit(dtype) * added.abs()),
    ):
        assert bool(((found.double() - wanted).abs() <= allowed).all())


def test_rounding_to_8_bits_by_hand() -> None:
    """Whole numbers up to 127 are their own 8-bit values, so the product is exact; zeros stay zeros."""
    weight = torch.tensor([[127.0, -3.0], [0.5, 127 * 0.5]])
    layer = Int8Linear(weight, None)
    assert layer.scale.tolist() == [1.0, 0.5]
    x = torch.tensor([[127.0, 2.0], [-5.0, 0.0]])
    assert torch.equal(layer(x.clone()), x @ weight.T)
    assert torch.equal(layer(torch.zeros(3, 2)), torch.zeros(3, 2))


@pytest.mark.parametrize("rows", [1, 3, 192])
def test_8_bits_do_not_saturate(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest numbers, of either sign, add up exactly: with the 8-bit units of the processor where they can that,
    and else without them."""
    seeded = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (24, 64), generator=seeded) * 254.0 - 127
    x = torch.cat([torch.full((rows, 64), 127.0), signs[:rows]])
    weight = torch.cat([torch.full((1, 64), 127.0), signs])
    for forced in (False, True):
        if forced:
            monkeypatch.setattr(fast_linear, "has_exact_int8", lambda: False)
        layer = Int8Linear(weight, torch.arange(25.0))
        assert torch.equal(layer(x.clone()), x @ weight.T + torch.arange(25.0))


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, IEF], ids=["zero", "ief"])
def test_int8_is_near(config: object) -> None:
    network, batch = single(config)
    wanted = network(batch.images)
    off = largest(make_fast(network, int8=True)(batch.images), wanted)
    assert network_bound(network, wanted) < off < int8_bound(network, wanted)


def test_folding_a_norm() -> None:
    norm, layer = nn.LayerNorm(8), nn.Linear(8, 5)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(4, 8)
    weight, bias = folded(norm, layer.weight, layer.bias)
    plain: Tensor = nn.functional.layer_norm(x, (8,))
    apart = (nn.functional.linear(plain, weight, bias) - layer(norm(x))).abs()
    each = (product_bound(*of, torch.float32) for of in ((plain, weight, bias), (norm(x), layer.weight, layer.bias)))
    assert bool((apart <= sum(each)).all())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_loading_for_the_fast_path(tmp_path: Path, stored: torch.dtype) -> None:
    """From a compressed folder, weights in half precision included: what loading and transforming by hand gives."""
    network, batch = single()
    state = {name: tensor.to(stored) for name, tensor in network.state_dict().items()}
    write_safetensors(tmp_path / "w.safetensors", state, {"hmrcompress": json.dumps({"network": CONFIG.to_dict()})})
    plan = Plan(checkpoint=hc.load(tmp_path / "w.safetensors").reference, groups=((0,), (1,), (2, 3)), tokens=WEIGHTED)
    folder = hc.merge(tmp_path / "w.safetensors", plan, tmp_path / "folder").path
    plain = hc.load(folder)
    exact = opening.compressed_network(plain)(batch.images, batch.person_mask)
    loaded = hc.load(folder, fast=True)
    assert loaded.plan == plain.plan and loaded.sha256 == plain.sha256
    bound = network_bound(plain.network, exact)
    assert largest(loaded.network(batch.images, batch.person_mask), exact) < bound
    half = hc.load(folder, fast=True, dtype=torch.bfloat16).network(batch.images, batch.person_mask)
    by_hand = make_fast(opening.compressed_network(plain), torch.bfloat16)(batch.images, batch.person_mask)
    assert largest(half, by_hand) == 0
    kept = opening.compressed_network(plain).state_dict()
    assert largest(hc.load(plain, fast=True).network(batch.images, batch.person_mask), exact) < bound
    assert all(torch.equal(kept[name], tensor) for name, tensor in plain.network.state_dict().items())


def test_which_layout() -> None:
    assert kind_for(torch.device("cuda"), torch.bfloat16) == "plain" and kind_for(CPU, torch.float64) == "plain"
    assert kind_for(CPU, torch.float32, int8=True) == "int8"
    assert pick_fast_dtype("float16", CPU) == (torch.float16, False) and pick_fast_dtype("int8", CPU)[1]
    with pytest.raises(UserError, match="int8 runs on the CPU"):
        pick_fast_dtype("int8", torch.device("cuda"))


def test_packed_for_the_rows_that_come_first() -> None:
    if kind_for(CPU, torch.float32) != "mkl":
        pytest.skip("torch has no MKL here")
    layer = MklLinear(torch.randn(4, 6), None)
    layer(torch.randn(7, 6))
    assert layer.rows == 7 and layer(torch.randn(3, 6)).shape == (3, 4) and layer.rows == 7


def test_nothing_is_packed_while_a_network_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """inductor cannot lower MKL's product; `test_running` compiles it."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    layer, x = MklLinear(torch.randn(4, 6), torch.randn(4)), torch.randn(7, 6)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias)) and layer._packed is None
