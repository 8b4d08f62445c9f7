"""Compressing a network that is not ours, in place: it equals ours, keeps to itself, and comes back as it was."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import tiny
import torch
from their_network import DEPTH, DIM, GRID, TheirBackbone, TheirNetwork, TimmBlock
from torch import Tensor, nn

import hmrcompress as hc
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.merge import merge_network
from hmrcompress.models.network import HMR2
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import CheckpointRef, DropBackground, Plan, TokenSettings

GROUPS = ((0,), (1, 2), (3,))


@pytest.fixture
def ours() -> HMR2:
    """Double precision, and weights so large that attention is far from uniform: small mistakes show."""
    network = tiny.network(seed=4).double()
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2 and ("blocks" in name or "transformer" in name):
            parameter.mul_(10)
    return network


@pytest.fixture
def theirs(ours: HMR2) -> TheirNetwork:
    return TheirNetwork(ours).eval().requires_grad_(False)


def plan(tokens: TokenSettings | None, groups: tuple[tuple[int, ...], ...] = GROUPS, rule: str = "mean") -> Plan:
    reference = CheckpointRef(family="hmr2", sha256="0" * 64, layers=DEPTH)
    return Plan(checkpoint=reference, groups=groups, merge_rule=rule, tokens=tokens)


def crops(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 256, 192, generator=generator, dtype=torch.float64)
    mask = torch.zeros(count, *GRID, dtype=torch.bool)
    for index in range(count):
        mask[index, 3 : 13 - index, 2 + index : 9] = True
    return images, mask


SETTINGS = {
    "default": TokenSettings(attention_bias="cross"),
    "everything": TokenSettings(keep=70, per_layer=60, size_weighted=True, attention_bias=True, protect=3),
    "features": TokenSettings(keep=100, metric="features", attention_bias="cross", schedule=(30, 0, 62)),
    "dropped": TokenSettings(keep=90, attention_bias="cross", drop_background=DropBackground()),
    "dropped, few": TokenSettings(keep=20, attention_bias=True, drop_background=DropBackground(ring=0, coarse=0)),
    "layers only": None,
}


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_it_equals_our_network(name: str, ours: HMR2, theirs: TheirNetwork) -> None:
    """A head that attends to the restored grid reads what ours reads from merged tokens with a bias of log-sizes."""
    settings = SETTINGS[name]
    images, mask = crops(3)
    tokens, bias = merge_network(ours, plan(settings)).backbone.encode(images, mask)
    expected = ours.smpl_head(tokens, bias).features
    share = torch.ones_like(tokens[..., :1]) if bias is None else bias[:, 0, 0, :, None].exp().to(tokens)
    pooled = (tokens * share).sum(1) / share.sum(1)

    before = theirs(images)[0]
    assert hc.apply(theirs, plan(settings)) is theirs
    with hc.person_mask(theirs, mask):
        features, mean = theirs(images)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(mean, pooled, rtol=0, atol=1e-7)
    assert (features - before).abs().max() > 0.01
    if settings is not None:
        nobody = ours.smpl_head(*merge_network(ours, plan(settings)).backbone.encode(images)).features
        torch.testing.assert_close(theirs(images)[0], nobody, rtol=0, atol=1e-7)
        assert (nobody - expected).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("dropped", [None, DropBackground()])
def test_merging_waits_for_a_probe_as_in_our_network(layer: int, dropped: DropBackground | None, ours: HMR2) -> None:
    settings = TokenSettings(keep=120, per_layer=40, attention_bias=True, drop_background=dropped)
    weight = torch.randn(2, ours.config.dim, generator=torch.Generator().manual_seed(layer))
    probe = SaliencyProbe(weight, 0.0, layer=layer)
    images, mask = crops(3)
    network = with_token_merging(ours, settings, probe)
    expected, with_mask = network(images).features, network(images, mask).features
    assert (with_token_merging(ours, settings)(images).features - expected).abs().max() > 0.01
    live = hc.live.apply(ours, {"tokens": settings.model_dump(mode="json")}, probe=probe)
    torch.testing.assert_close(live(images).features, expected, rtol=0, atol=1e-7)
    with hc.person_mask(live, mask):
        torch.testing.assert_close(live(images).features, with_mask, rtol=0, atol=1e-7)


def test_a_probe_too_far_up_is_told(ours: HMR2) -> None:
    probe = SaliencyProbe(torch.zeros(1, ours.config.dim), 0.0, layer=2)
    with pytest.raises(UserError, match="90 tokens need 5 merging layers, the network has 4"):
        hc.live.apply(ours, {"tokens": {"attention_bias": True}}, probe=probe)
    assert all("forward" not in module.__dict__ for module in ours.modules())


@torch.no_grad()
def test_every_patch_gets_the_token_it_was_merged_into(theirs: TheirNetwork) -> None:
    images, mask = crops(2)
    mask[:, 10:] = False  # few enough for background to suffice
    hc.apply(theirs, plan(TokenSettings()))
    with hc.person_mask(theirs, mask):
        grid = theirs.backbone(images)
    for sample, person in zip(grid, mask, strict=True):
        patches = sample.flatten(1).T
        assert len({tuple(patch.tolist()) for patch in patches}) == 90
        of_person = {tuple(patch.tolist()) for patch in patches[person.flatten()]}
        assert len(of_person) == int(person.sum())  # nobody was merged


@torch.no_grad()
def test_unapply_restores_every_bit(theirs: TheirNetwork) -> None:
    images, mask = crops(2)
    before = theirs(images)[0]
    parameters = dict(theirs.named_parameters())
    values = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    hc.apply(theirs, plan(TokenSettings()))
    assert set(theirs.state_dict()) == {name for name in values if not name.startswith("backbone.blocks.2.")}
    with hc.person_mask(theirs, mask):
        assert not torch.equal(theirs(images)[0], before)
    assert hc.unapply(theirs) is theirs
    assert torch.equal(theirs(images)[0], before)
    after = dict(theirs.named_parameters())
    assert list(after) == list(parameters) and all(after[name] is parameters[name] for name in parameters)
    assert all(torch.equal(tensor, values[name]) for name, tensor in theirs.state_dict().items())
    assert all("forward" not in module.__dict__ for module in theirs.modules())
    assert set(theirs.backbone.__dict__) == set(TheirBackbone().__dict__)


@torch.no_grad()
def test_layers_that_were_out_follow_the_model_home(theirs: TheirNetwork) -> None:
    hc.apply(theirs, plan(TokenSettings()))
    theirs.float().train()
    hc.unapply(theirs)
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.float32}
    assert all(module.training for module in theirs.modules())


@torch.no_grad()
def test_two_models_and_two_threads(ours: HMR2) -> None:
    """Four threads over two models, each with masks of its own, give what each gives alone."""
    few, fewer = TheirNetwork(ours).eval(), TheirNetwork(ours).eval()
    hc.apply(few, plan(TokenSettings()))
    hc.apply(fewer, plan(TokenSettings(keep=40, per_layer=70)))
    images, mask = crops(2)
    jobs = [(model, given) for model in (few, fewer) for given in (mask, ~mask)]
    expected = []
    for model, given in jobs:
        with hc.person_mask(model, given):
            expected.append(model(images)[0])
    assert all(not torch.equal(a, b) for n, a in enumerate(expected) for b in expected[:n])
    got: dict[int, list[Tensor]] = {}
    start = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        model, given = jobs[number]
        start.wait()
        with torch.no_grad():
            results = []
            for _ in range(5):
                with hc.person_mask(model, given):
                    results.append(model(images)[0])
            got[number] = results

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate(expected):
        assert len(got[number]) == 5 and all(torch.equal(result, wanted) for result in got[number])


@torch.no_grad()
def test_masks_nest_and_end(theirs: TheirNetwork) -> None:
    images, mask = crops(2)
    hc.apply(theirs, plan(TokenSettings()))
    nobody = theirs(images)[0]
    with hc.person_mask(theirs, mask):
        outer = theirs(images)[0]
        with pytest.raises(ZeroDivisionError), hc.person_mask(theirs, None):
            assert torch.equal(theirs(images)[0], nobody)
            raise ZeroDivisionError
        assert torch.equal(theirs(images)[0], outer)
    assert torch.equal(theirs(images)[0], nobody) and not torch.equal(nobody, outer)


@torch.no_grad()
def test_copies_are_independent(theirs: TheirNetwork) -> None:
    images, mask = crops(1)
    plain = theirs(images)[0]
    hc.apply(theirs, plan(TokenSettings()))
    stream = io.BytesIO()
    torch.save(theirs, stream)
    stream.seek(0)
    # A whole module, pickled by this very test: nothing untrusted is read.
    for other in (copy.deepcopy(theirs), torch.load(stream, weights_only=False)):
        with hc.person_mask(theirs, mask):
            with_mask, without = theirs(images)[0], other(images)[0]
        assert not torch.equal(with_mask, without)
        with hc.person_mask(other, mask):
            assert torch.equal(other(images)[0], with_mask)
        assert torch.equal(hc.unapply(other)(images)[0], plain)
        with hc.person_mask(theirs, mask):
            assert torch.equal(theirs(images)[0], with_mask)


@torch.no_grad()
def test_ours_can_be_patched_too(ours: HMR2) -> None:
    images, mask = crops(2)
    settings = TokenSettings(attention_bias="cross")
    expected = merge_network(ours, plan(settings))(images, mask).features
    hc.apply(ours, plan(settings))
    with hc.person_mask(ours, mask):
        torch.testing.assert_close(ours(images).features, expected, rtol=0, atol=1e-7)


def test_training_goes_through_it(theirs: TheirNetwork) -> None:
    images, mask = crops(2)
    hc.apply(theirs.requires_grad_(True), plan(TokenSettings()))
    theirs.backbone.train()
    torch.manual_seed(0)
    with hc.person_mask(theirs, mask):
        theirs(images)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in theirs.backbone.blocks[1].parameters())
    assert all(parameter.grad is not None for parameter in theirs.backbone.patch_embed.parameters())


@torch.no_grad()
def test_layer_scale_and_norms_of_queries_and_keys() -> None:
    """Blocks in a Sequential, without a backbone around it; no token is merged, so it has to compute what it did."""
    model = nn.Module()
    model.blocks = nn.Sequential(*[TimmBlock() for _ in range(3)]).double().eval()
    tokens = torch.randn(2, 192, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = model.blocks(tokens)
    reference = CheckpointRef(family="other", sha256="0" * 64, layers=3)
    hc.apply(model, Plan(checkpoint=reference, groups=((0,), (1,), (2,)), tokens=TokenSettings(keep=192)))
    torch.testing.assert_close(model.blocks(tokens), expected, rtol=0, atol=1e-12)


def broken(fault: str, theirs: TheirNetwork) -> nn.Module:
    backbone, block = theirs.backbone, theirs.backbone.blocks[3]
    if fault == "no blocks":
        del backbone.blocks
    elif fault == "no norm2":
        del block.norm2
    elif fault == "gamma_1":
        block.gamma_1 = nn.Parameter(torch.ones(DIM))
    elif fault == "relative positions":
        block.attn.register_buffer("relative_position_index", torch.zeros(3))
    elif fault == "window":
        block.window = nn.Linear(2, 2)
    elif fault == "no heads":
        del block.attn.num_heads
    elif fault == "parallel":
        block.forward = lambda x: x + block.attn(block.norm1(x)) + block.mlp(block.norm2(x))
    elif fault == "arguments":
        block.forward = lambda x, height: x
    return theirs


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no blocks", "TheirNetwork: there is neither backbone.blocks nor blocks"),
        ("no norm2", "blocks.3: there is no norm2"),
        ("gamma_1", "blocks.3: has gamma_1, which token merging would leave out"),
        ("relative positions", "blocks.3.attn: has relative_position_index"),
        ("window", "blocks.3: has window"),
        ("no heads", "blocks.3.attn: there is no num_heads"),
        ("parallel", r"blocks.3: does not compute x \+ attn"),
        ("arguments", "blocks.3: does not run on tokens alone"),
    ],
)
def test_modules_that_do_not_fit_are_refused_and_untouched(theirs: TheirNetwork, fault: str, message: str) -> None:
    model = broken(fault, theirs)
    before = dict(model.named_modules())
    with pytest.raises(UserError, match=message):
        hc.apply(model, plan(TokenSettings()))
    after = dict(model.named_modules())
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    with pytest.raises(UserError, match="not compressed|neither"):
        hc.unapply(model)


@torch.no_grad()
def test_wrong_calls_are_refused(theirs: TheirNetwork) -> None:
    images, mask = crops(2)
    five = Plan(
        checkpoint=CheckpointRef(family="hmr2", sha256="0" * 64, layers=5), groups=((0,), (1,), (2,), (3,), (4,))
    )
    with pytest.raises(UserError, match="the plan is for 5 layers, the model has 4"):
        hc.apply(theirs, five)
    with pytest.raises(UserError, match="90 tokens need 3 merging layers, the network has 2"):
        hc.apply(theirs, plan(TokenSettings(), groups=((0, 1), (2, 3))))
    with pytest.raises(UserError, match="lstsq has no patch for layer 1"):
        hc.apply(theirs, plan(TokenSettings(), rule="lstsq"))
    with pytest.raises(UserError, match="the model is not compressed"), hc.person_mask(theirs, mask):
        pass
    hc.apply(theirs, plan(TokenSettings()))
    with pytest.raises(UserError, match="compressed already"):
        hc.apply(theirs, plan(TokenSettings()))
    for wrong in (mask.float(), mask[0]):
        with pytest.raises(ShapeError, match="expected torch.bool"), hc.person_mask(theirs, wrong):
            pass
    with pytest.raises(ShapeError, match="1 masks for 2 crops"), hc.person_mask(theirs, mask[:1]):
        theirs(images)
    with pytest.raises(ShapeError, match="192 tokens, expected 12 x 12"), hc.person_mask(theirs, mask[:, :12]):
        theirs(images)
    with pytest.raises(UserError, match="layer 1 was not called after layer 0"):
        theirs.backbone.blocks[1](torch.zeros(2, 192, DIM, dtype=torch.float64))
