"""Every structure of other code: nothing merged, layers dropped, background dropped, tokens merged, undone, threads."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import pytest
import torch
from live_networks import DEPTH, DIM, GRID, SPECS, Stranger, given, pictures, rows, stranger
from torch import Tensor, nn

import hmrcompress as hc
from hmrcompress.errors import UserError
from hmrcompress.live.structure import Network
from hmrcompress.merging.background import kept_places, nearest_kept
from hmrcompress.merging.tokens import destinations, layer_count, match, merge
from hmrcompress.plan import CheckpointRef, DropBackground, Plan, TokenSettings

PATCHES = GRID[0] * GRID[1]
NAMES = list(SPECS)


def plan(tokens: TokenSettings | None, groups: Any = None, rule: str = "mean", depth: int = DEPTH) -> Plan:
    tokens = None if tokens is None else tokens.changed(read="restored")  # their heads are not known
    groups = groups or tuple((layer,) for layer in range(depth))
    reference = CheckpointRef(family="other", sha256="0" * 64, layers=depth)
    return Plan(checkpoint=reference, groups=groups, merge_rule=rule, tokens=tokens)


def compress(model: Stranger, name: str, made: Plan) -> Network:
    network = hc.live.network(model, grid=GRID, **given(name))
    hc.live.apply(model, made, network=network)
    return network


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_it_is_found(name: str) -> None:
    model, spec = stranger(name), SPECS[name]
    network = hc.live.network(model, example=lambda: model(pictures()[0]))
    assert network.name == spec.path and network.refusal is None and network.depth == DEPTH
    assert (network.grid, network.prefix + network.suffix) == (GRID, spec.prefix + spec.behind)
    untold = hc.live.network(model, grid=GRID)
    assert (untold.prefix == spec.prefix) == (spec.told or spec.prefix == 0)
    assert f"{spec.path}: 4 of" in str(network) and "layers and tokens can be merged" in str(network)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_that_merges_nothing_changes_no_bit(name: str) -> None:
    images, mask = pictures()
    for tokens in (None, TokenSettings(keep=PATCHES), TokenSettings(keep=PATCHES, drop_background=DropBackground())):
        model = stranger(name)
        before = model(images)
        compress(model, name, plan(tokens))
        with hc.person_mask(model, mask):
            assert all(torch.equal(a, b) for a, b in zip(model(images), before, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", ["keep_first", "keep_last"])
def test_dropping_layers_is_deleting_them(name: str, rule: str) -> None:
    images, _ = pictures()
    model, other = stranger(name), stranger(name)
    compress(model, name, plan(None, ((0,), (1, 2), (3,)), rule))
    del other.list[2 if rule == "keep_first" else 1]
    assert all(torch.equal(a, b) for a, b in zip(model(images), other(images), strict=True))


def table_for(model: Stranger, places: Tensor) -> tuple[Tensor, Tensor] | None:
    if not model.spec.rope:
        return None
    return tuple(part[places] for part in model.angles())  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("few", [False, True])
def test_dropping_background_is_a_forward_on_the_kept_tokens(name: str, few: bool) -> None:
    """Their own blocks on the kept tokens alone, each with its position."""
    images, mask = pictures()
    model, drop = stranger(name), DropBackground(ring=0, coarse=0) if few else DropBackground()
    keep, spec = (7 if few else 16), SPECS[name]
    places = kept_places(mask, keep, ring=drop.ring, coarse=drop.coarse)
    tokens = model.embed(images)
    stop = tokens.shape[1] - spec.behind
    patches = tokens[:, spec.prefix : stop].gather(1, places[..., None].expand(-1, -1, DIM))
    kept = torch.cat([tokens[:, : spec.prefix], patches, tokens[:, stop:]], 1)
    wanted = []
    for sample, place in zip(kept, places, strict=True):
        x, table = sample[None], table_for(model, place)
        for block in model.list:
            x = block.whole(x, None if table is None else (rows(table[0]), rows(table[1])))
        wanted.append(model.norm(x)[0])
    expected = torch.stack(wanted)
    owner = nearest_kept(mask, places)
    grid = expected[:, spec.prefix : spec.prefix + keep].gather(1, owner[..., None].expand(-1, -1, DIM))
    rest = torch.cat([expected[:, : spec.prefix], expected[:, spec.prefix + keep :]], 1)

    plain = model(images)
    compress(model, name, plan(TokenSettings(keep=keep, drop_background=drop)))
    with hc.person_mask(model, mask):
        found = model(images)
    assert (found[0] - grid.transpose(1, 2).reshape_as(found[0])).abs().max() < 1e-9
    assert found[1].numel() == 0 or (found[1] - rest).abs().max() < 1e-9
    assert (found[0] - plain[0]).abs().max() > 1e-3


SETTINGS = {
    "paper": TokenSettings(keep=14, per_layer=7),
    "sizes": TokenSettings(keep=12, per_layer=9, size_weighted=True, attention_bias=True),
    "features": TokenSettings(keep=18, metric="features", schedule=(5, 0, 7), protect=2),
}


def slowly(model: Stranger, images: Tensor, mask: Tensor, settings: TokenSettings) -> tuple[Tensor, Tensor]:
    """Map and other tokens, one crop at a time, by the halves of their own blocks."""
    spec = model.spec
    grids, others = [], []
    for image, person_mask in zip(images, mask, strict=True):
        x = model.embed(image[None])
        person, sizes = person_mask.flatten()[None], torch.ones(1, PATCHES)
        place, owner = torch.arange(PATCHES), torch.arange(PATCHES)
        for layer, block in enumerate(model.list):
            bias = torch.zeros(1, x.shape[1])
            if settings.biases_backbone:
                bias[:, spec.prefix : spec.prefix + len(place)] = sizes.log()
            table = table_for(model, place)
            x, keys = block.attended(x, None if table is None else (table[0][None], table[1][None]), bias)
            front, patches, behind = x.split([spec.prefix, len(place), spec.behind], 1)
            keys = keys[:, :, spec.prefix : spec.prefix + len(place)]
            removed = layer_count(
                len(place), settings.keep, settings.schedule or settings.per_layer, layer, settings.protect
            )
            if removed:
                metric = keys.mean(1) if settings.metric == "keys" else patches
                norms = patches.norm(dim=-1)[0]
                protected = torch.zeros(1, len(place), dtype=torch.bool)
                protected[0, norms.argsort(descending=True)[: settings.protect]] = True
                found = match(metric, person, removed, protected if settings.protect else None)
                owner = destinations(found, len(place))[0][owner]
                place = torch.cat([place[0::2][found.kept[0]], place[1::2]])
                patches, person, sizes = merge(found, patches, person, sizes, size_weighted=settings.size_weighted)
            x = block.fed(torch.cat([front, patches, behind], 1))
        x = model.norm(x)
        front, patches, behind = x.split([spec.prefix, len(place), spec.behind], 1)
        grids.append(patches[0, owner].T.reshape(DIM, *GRID))
        others.append(torch.cat([front, behind], 1)[0])
    return torch.stack(grids), torch.stack(others)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_merging_is_what_a_slow_transcription_does(name: str, setting: str) -> None:
    images, mask = pictures()
    settings, model = SETTINGS[setting], stranger(name)
    grid, others = slowly(model, images, mask, settings)
    plain = model(images)
    compress(model, name, plan(settings))
    with hc.person_mask(model, mask):
        found = model(images)
    bound = 1e-6 if settings.biases_backbone else 1e-9  # logs of sizes are float32
    assert (found[0] - grid).abs().max() < bound
    assert found[1].numel() == 0 or (found[1] - others).abs().max() < bound
    assert (found[0] - plain[0]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_undone_bit_for_bit_and_copies_apart(name: str) -> None:
    images, mask = pictures()
    model = stranger(name)
    before, modules = model(images), dict(model.named_modules())
    values = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    compress(model, name, plan(SETTINGS["paper"], ((0,), (1, 2), (3,))))
    with hc.person_mask(model, mask):
        changed = model(images)
    assert not torch.equal(changed[0], before[0])
    assert len(model.list) == DEPTH and type(model.list[2]).__name__ == type(model.list[1]).__name__
    assert isinstance(model.list[2], type(modules[f"{SPECS[name].path}.2"]))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    # A whole module, pickled by this very test: nothing untrusted is read.
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        with hc.person_mask(other, mask):
            assert torch.equal(other(images)[0], changed[0])
        assert torch.equal(hc.unapply(other)(images)[0], before[0])
    hc.unapply(model)
    assert all(torch.equal(a, b) for a, b in zip(model(images), before, strict=True))
    assert all(found is modules[key] for key, found in model.named_modules())
    assert all(torch.equal(tensor, values[key]) for key, tensor in model.state_dict().items())
    assert all("forward" not in module.__dict__ for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_two_models_in_two_threads_do_not_mix(name: str) -> None:
    images, mask = pictures()
    models = [stranger(name, seed) for seed in range(2)]
    jobs = []
    for model, settings in zip(models, ("paper", "features"), strict=True):
        compress(model, name, plan(SETTINGS[settings]))
        jobs += [(model, mask), (model, ~mask)]
    expected = []
    for model, own in jobs:
        with hc.person_mask(model, own):
            expected.append(model(images)[0])
    got: dict[int, list[Tensor]] = {}
    start = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        model, own = jobs[number]
        start.wait()
        with torch.no_grad(), hc.person_mask(model, own):
            got[number] = [model(images)[0] for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found, expected[number]) for number in got for found in got[number]) and len(got) == 4


@torch.no_grad()
@pytest.mark.parametrize("rule", ["mean", "eq4"])
@pytest.mark.parametrize("name", ["SAM 3D Body, DINOv3", "timm EVA", "transformers DINOv3", "HMR2, ViTPose"])
def test_rules_take_every_tensor(name: str, rule: str) -> None:
    """Of three layers; what a layer scale multiplies is one map with it, so it is folded in first."""
    model = stranger(name)
    states = [block.state_dict() for block in model.list]
    compress(model, name, plan(None, ((0,), (1, 2, 3)), rule))
    merged = model.list[1].state_dict()
    weights = (1 / 3, 1 / 3, 1 / 3) if rule == "mean" else (-1.0, 1.0, 1.0)
    scaled = {"attn.proj": 0, "attention.o_proj": 0, "mlp.w3": 1, "mlp.down_proj": 1}
    scales = SPECS[name].scale
    for key, tensor in merged.items():
        linear, what = key.rpartition(".")[::2]
        parts = [state[key] for state in states[1:]]
        if scales and linear in scaled:
            names = [n for n in states[0] if n.startswith(scales[scaled[linear]])]
            gammas = [state[names[0]] for state in states[1:]]
            parts = [p * (g[:, None] if what == "weight" else g) for p, g in zip(parts, gammas, strict=True)]
        wanted = sum(w * p for w, p in zip(weights, parts, strict=True))
        if scales and key.startswith(scales):
            wanted = torch.ones_like(tensor)
        assert torch.allclose(tensor, wanted, rtol=0, atol=1e-12), key
    again = stranger(name)
    twice = plan(None, ((0,), (1, 2), (3,)), "eq4")  # of two layers it is the upper one, folded or not
    compress(again, name, twice)
    other = stranger(name)
    del other.list[1]
    assert (again(pictures()[0])[0] - other(pictures()[0])[0]).abs().max() < 1e-9


@torch.no_grad()
def test_masks_by_pass_and_by_picture() -> None:
    images, mask = pictures()
    name = "SAM 3D Body, DINOv3"
    model = stranger(name)
    compress(model, name, plan(SETTINGS["paper"]))
    wanted = []
    for own in (mask, ~mask, None):
        with hc.person_mask(model, own):
            wanted.append(model(images)[0])
    with hc.person_mask(model, iter([mask, ~mask, None])):
        assert all(torch.equal(model(images)[0], each) for each in wanted)
        with pytest.raises(UserError, match="fewer masks than passes"):
            model(images)
    seen = []

    def of(given_: Tensor) -> Tensor:
        seen.append(given_)
        return mask

    with hc.person_mask(model, of):
        assert torch.equal(model(images)[0], wanted[0])
    assert seen[0] is images


@torch.no_grad()
def test_lists_of_several_sizes() -> None:
    """DINOv3 hands a block all sizes of crop at once: each is a pass of its own."""
    images, _ = pictures()
    model = stranger("DINOv3 called with lists")
    alone = [model.blocks_on(model.embed(part)) for part in (images[:1], images)]
    compress(model, "DINOv3 called with lists", plan(SETTINGS["paper"]))
    merged = [model.blocks_on(model.embed(part)) for part in (images[:1], images)]
    both = [model.embed(part) for part in (images[:1], images)]
    for block in model.list:
        both = block(both, [model.angles()] * 2)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(both, merged, strict=True))
    assert (both[0] - alone[0]).abs().max() > 1e-3


@torch.no_grad()
def test_half_precision_blocks_with_norms_in_float32() -> None:
    """SAM 3D Body's own conversion; layers that were out come back in their own dtypes."""
    model = stranger("HMR2, ViTPose").float()
    for block in model.list:
        block.attn.qkv.weight.div_(6)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.bfloat16()
    model.positions.data = model.positions.data.bfloat16()

    class Norm32(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float()).to(x.dtype)

    for block in model.list:
        block.norm1.__class__ = block.norm2.__class__ = Norm32
    dtypes = {key: tensor.dtype for key, tensor in model.state_dict().items()}
    images, mask = pictures()
    compress(model, "HMR2, ViTPose", plan(SETTINGS["paper"], ((0,), (1, 2), (3,))))
    tokens = model.embed(images.bfloat16())
    with hc.person_mask(model, mask):
        assert model.blocks_on(tokens.bfloat16()).dtype == torch.bfloat16
    hc.unapply(model.to("cpu"))
    assert {key: tensor.dtype for key, tensor in model.state_dict().items()} == dtypes


def test_what_is_refused_is_refused_at_once() -> None:
    model = stranger("WiLoR")
    with pytest.raises(UserError, match="got 35 tokens, expected 6 x 5 patches and no others"), torch.no_grad():
        hc.live.apply(model, plan(SETTINGS["paper"]), grid=GRID)
        model(pictures()[0])
    hc.unapply(model)
    with pytest.raises(UserError, match="got 35 tokens, expected 6 x 5 patches, 2 tokens in front"):
        hc.live.network(model, prefix=2, example=lambda: model(pictures()[0]))
    two = nn.ModuleDict({"body": stranger("WiLoR"), "hand": stranger("WiLoR")})
    with pytest.raises(UserError, match=r"several stacks.*body.backbone.blocks \(4\), hand.backbone.blocks \(4\)"):
        hc.live.network(two)
    assert hc.live.network(two, blocks="hand.backbone.blocks").depth == DEPTH
    with pytest.raises(UserError, match="there is no encoder.blocks"):
        hc.live.network(two, blocks="encoder.blocks")
    odd = stranger("WiLoR")
    odd.list[2].window = nn.Linear(2, 2)
    network = hc.live.network(odd, blocks="backbone.blocks", grid=GRID, prefix=5)
    assert "layers can be merged, tokens cannot (backbone.blocks.2: has window" in str(network)
    hc.live.apply(odd, plan(None, ((0, 1), (2,), (3,))), network=network)
    hc.unapply(odd)
    with pytest.raises(UserError, match="has window"):
        hc.live.apply(odd, plan(SETTINGS["paper"]), network=network)
    masked = stranger("timm EVA")
    compress(masked, "timm EVA", plan(SETTINGS["paper"]))
    with pytest.raises(UserError, match="blocks.0: is called with attn_mask"), torch.no_grad():
        masked.list[0](masked.embed(pictures()[0]), torch.zeros(30, 24).double(), torch.zeros(31, 31))
