"""Kind A: live, merged, fast, folder and original are one network, for every family, plan and token setting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bounds import network_bound
from test_families import CAMERA, HAND, TOKENS
from test_fast import largest
from test_model_commands import run
from test_reference import awake
from their_network import GRID, TheirHMR, TheirNetwork
from torch import Tensor, nn

import hmrcompress as hc
from hmrcompress.api import opening
from hmrcompress.api.opening import STARTER_FAST
from hmrcompress.body.model import BodyModel
from hmrcompress.errors import UserError
from hmrcompress.exporting.onnx import export_onnx
from hmrcompress.exporting.parity import OnnxNetwork
from hmrcompress.merging.merge import merge_network
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.network import HMR2, NetworkConfig
from hmrcompress.plan import CheckpointRef, DropBackground, Plan, TokenSettings
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress.timing.reference import reference

GROUPS = ((0,), (1, 2), (3,))
SHARP = 10
"""How much larger queries and keys are than at random, so that attention is far from uniform."""
DROP = DropBackground()
SETTINGS = {
    "default": TokenSettings(),
    "paper": TokenSettings.paper(),
    "size-weighted": TokenSettings(size_weighted=True),
    "self": TokenSettings(attention_bias="self"),
    "cross": TokenSettings(attention_bias="cross"),
    "both": TokenSettings(attention_bias=True),
    "size-weighted, self": TokenSettings(size_weighted=True, attention_bias="self"),
    "size-weighted, both": TokenSettings(size_weighted=True, attention_bias=True),
    "features": TokenSettings(keep=100, metric="features", schedule=(30, 0, 62)),
    "protected": TokenSettings(keep=70, per_layer=60, protect=3),
    "few": TokenSettings(keep=40, per_layer=80, attention_bias="self"),
    "nothing merged": TokenSettings(keep=192),
    "dropped": TokenSettings(drop_background=DROP),
    "dropped, self": TokenSettings(drop_background=DROP, attention_bias="self"),
    "dropped, cross": TokenSettings(drop_background=DROP, attention_bias="cross"),
    "dropped, few": TokenSettings(keep=20, drop_background=DropBackground(ring=0, coarse=0)),
    "restored": TokenSettings(read="restored"),
    "restored, size-weighted, self": TokenSettings(read="restored", size_weighted=True, attention_bias="self"),
    "restored, dropped": TokenSettings(read="restored", drop_background=DROP),
}


def plan(tokens: TokenSettings | None, groups: tuple[tuple[int, ...], ...] = GROUPS, family: str = "hmr2") -> Plan:
    layers = sum(map(len, groups))
    reference_ = CheckpointRef(family=family, sha256="0" * 64, layers=layers)
    return Plan(checkpoint=reference_, groups=groups, merge_rule="mean", tokens=tokens)


@pytest.fixture(scope="module")
def ours() -> HMR2:
    """Double precision, norms and biases random, and attention far from uniform."""
    network = awake(tiny.CONFIG)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2 and ("attn.qkv" in name or "to_kv" in name):
            parameter.mul_(SHARP)
    return network


def crops(count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 256, 192, generator=generator, dtype=torch.float64)
    mask = torch.zeros(count, *GRID, dtype=torch.bool)
    for index in range(count):
        mask[index, 3 : 13 - index, 2 + index : 9] = True
    return images, mask


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_every_path_is_one_function(name: str, ours: HMR2) -> None:
    """The network that the plan makes; ours and theirs patched live; the fast path."""
    settings, (images, mask) = SETTINGS[name], crops()
    merged = merge_network(ours, plan(settings))
    wanted = merged(images, mask)
    scale = float(wanted.features.abs().max())
    exact = scale * (1e-6 if settings.biases_head else 1e-9)  # logs of sizes are float32

    live = copy.deepcopy(ours)
    hc.apply(live, plan(settings))
    with hc.person_mask(live, mask):
        assert largest(live(images), wanted) < exact
    assert largest(live(images, mask), wanted) < exact, "the mask as an argument, as ours takes it"

    theirs = TheirHMR(tiny.CONFIG).double().eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    plain = theirs(images)[3]
    assert float((plain - ours(images).features).abs().max()) < 1e-9 * scale
    hc.apply(theirs, plan(settings))
    with hc.person_mask(theirs, mask):
        pose, betas, cam, features = theirs(images)
    found = replace(wanted, betas=betas, cam=cam, features=features)
    assert largest(found, wanted) < exact and pose.shape == (3, 144)
    hc.unapply(theirs)
    assert torch.equal(theirs(images)[3], plain)

    single = merge_network(copy.deepcopy(ours).float(), plan(settings))
    amplified = SHARP * network_bound(single, wanted)  # roundings of keys, as those of logits
    assert largest(make_fast(single)(images.float(), mask), wanted) < amplified
    if name != "nothing merged":
        assert float((plain - wanted.features).abs().max()) > 1e-3 * scale, "the setting matters"


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "half"),
    [*((name, False) for name in SETTINGS), *((name, True) for name in ("default", "dropped", "restored"))],
)
def test_exported_graphs_are_the_same_function(
    name: str, half: bool, ours: HMR2, tiny_body: BodyModel, tmp_path: Path
) -> None:
    """What `export` writes, on crops and at a batch size that it did not see. Half layers have no keys to merge by."""
    settings = SETTINGS[name] if not half else SETTINGS[name].changed(metric="features")
    removed = [{"layer": 1, "part": "attention"}, {"layer": 3, "part": "mlp"}] if half else []
    groups = [[layer] for layer in range(4)] if half else [list(group) for group in GROUPS]
    made = Plan.from_dict(plan(settings).to_dict() | {"groups": groups, "removed": removed, "merge_rule": "mean"})
    single = merge_network(copy.deepcopy(ours).float(), made)
    export_onnx(single, tmp_path / "a.onnx", made_up_batch(tiny.CONFIG, 5), tiny_body)
    images, mask = (part[:3] for part in crops())
    wanted = single(images.float(), mask)
    found = OnnxNetwork(tmp_path / "a.onnx")(images.float(), mask)
    for part in ("global_orient", "body_pose", "betas", "cam", "features"):
        assert float((found[part] - getattr(wanted, part)).abs().max()) < 1e-4 * float(wanted.features.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("config", [CAMERA, TOKENS, HAND], ids=lambda config: config.family)
@pytest.mark.parametrize("tokens", [TokenSettings(per_layer=60), TokenSettings(drop_background=DROP)])
def test_other_families_of_ours(config: NetworkConfig, tokens: TokenSettings) -> None:
    network, batch = awake(config), made_up_batch(config, 2, torch.float64)
    condition = None if batch.condition is None else batch.condition.double()
    wanted_plan = plan(tokens, ((0,), (1,)), config.family)
    wanted = merge_network(network, wanted_plan)(batch.images, batch.person_mask, condition)
    plain = network(batch.images, batch.person_mask, condition)
    hc.apply(network, wanted_plan)
    assert largest(network(batch.images, batch.person_mask, condition), wanted) < 1e-9
    hc.unapply(network)
    assert largest(network(batch.images, batch.person_mask, condition), plain) == 0 < largest(plain, wanted)


@torch.no_grad()
def test_the_shipped_plan_live_and_merged(tmp_path: Path) -> None:
    """Case B28: the starter network, whose shipped plan has no bias in the head."""
    path = STARTER_FAST / "plan.yaml"
    assert Plan.read(path).tokens is not None and not Plan.read(path).tokens.biases_head
    images, mask = (part[:2] for part in crops())
    hc.merge("starter", path, tmp_path / "merged")
    wanted = hc.load(tmp_path / "merged", fast=True).network(images.float(), mask)
    network = hc.load("starter").network
    hc.apply(network, path)
    with hc.person_mask(network, mask):
        assert largest(network(images.float()), wanted) < 1e-5 * float(wanted.features.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("padded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_original_format_live_in_their_class(tmp_path: Path, padded: bool) -> None:
    """A checkpoint for their code, tokens merged there by a plan that merges no layers."""
    settings, (images, mask) = TokenSettings(), crops()
    source = tmp_path / "a.pt"
    torch.save(tiny.network().state_dict(), source)
    layers = hc.load(source, num_heads=2, head_heads=2)
    made = Plan(checkpoint=layers.reference, groups=GROUPS, merge_rule="mean", tokens=settings)
    made.write(tmp_path / "plan.yaml")
    hc.merge(layers, made, tmp_path / "native")
    flag = "--pad-identity" if padded else "--no-pad-identity"
    line = ["merge", source, "--num-heads", 2, "--head-heads", 2, "--plan", tmp_path / "plan.yaml"]
    run(*line, "--format", "original", flag, "-o", tmp_path / "theirs.ckpt")
    theirs = TheirHMR(tiny.CONFIG)
    theirs.backbone.blocks = theirs.backbone.blocks[: 4 if padded else 3]
    theirs.load_state_dict(torch.load(tmp_path / "theirs.ckpt", weights_only=True)["state_dict"], strict=True)
    theirs.backbone.forward = _any_depth(theirs.backbone)
    count = len(theirs.backbone.blocks)
    hc.apply(theirs.eval(), plan(settings, tuple((layer,) for layer in range(count))))
    wanted = opening.compressed_network(hc.load(tmp_path / "native"))(images.float(), mask)
    with hc.person_mask(theirs, mask):
        features = theirs(images.float())[3]
    assert float((features - wanted.features).abs().max()) < 1e-5 * float(wanted.features.abs().max())


def _any_depth(backbone: nn.Module) -> Callable[[Tensor], Tensor]:
    """Their forward, for as many blocks as there are."""

    def forward(x: Tensor) -> Tensor:
        rows, columns = GRID
        x = backbone.patch_embed(x)[0] + backbone.pos_embed[:, 1:] + backbone.pos_embed[:, :1]
        for block in backbone.blocks:
            x = block(x)
        return backbone.last_norm(x).permute(0, 2, 1).reshape(len(x), -1, rows, columns)

    return forward


class Pooled(nn.Module):
    """A network whose head is not known: it averages the map."""

    def __init__(self, ours: HMR2) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(TheirNetwork(ours).backbone).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).mean((2, 3))


@torch.no_grad()
def test_unknown_heads_are_refused_and_told_what_to_do(ours: HMR2) -> None:
    images, mask = crops()
    model = Pooled(ours)
    for unbiased in ("default", "self", "dropped"):
        with pytest.raises(UserError, match="Pooled: has no head that can be told .* attention_bias .* to cross"):
            hc.apply(model, plan(SETTINGS[unbiased]))
    assert "forward" not in model.backbone.blocks[0].__dict__
    with pytest.raises(UserError, match="has no head that can be told"):
        hc.apply(TheirHMR(tiny.CONFIG).double().backbone, plan(TokenSettings()))
    hc.apply(model, plan(SETTINGS["cross"]))
    tokens, bias = merge_network(ours, plan(SETTINGS["cross"])).backbone.encode(images, mask)
    assert bias is not None
    share = bias[:, 0, 0, :, None].exp().to(tokens)
    with hc.person_mask(model, mask):
        assert torch.allclose(model(images), (tokens * share).sum(1) / share.sum(1), rtol=0, atol=1e-6)
    hc.apply(Pooled(ours), plan(SETTINGS["nothing merged"]))
    hc.apply(Pooled(ours), plan(None))


@torch.no_grad()
def test_what_lies_between_backbone_and_head_is_noticed(ours: HMR2) -> None:
    """A module that tells patches of one token apart, as a temporal one may."""
    images, mask = crops()
    theirs = TheirHMR(tiny.CONFIG).double().eval()
    theirs.load_state_dict(ours.state_dict())
    grid = torch.randn(1, tiny.CONFIG.dim, *GRID, dtype=torch.float64)
    head = theirs.smpl_head.forward
    theirs.smpl_head.forward = lambda x: head(x + 1e-9 * grid)
    hc.apply(theirs, plan(TokenSettings()))
    with (
        pytest.raises(UserError, match="smpl_head.*handed something else than the tokens"),
        hc.person_mask(theirs, mask),
    ):
        theirs(images)


@torch.no_grad()
def test_heads_may_lag_behind_and_be_called_alone(ours: HMR2) -> None:
    """Crops and their mirror images first, then the head on each, as WHAM does."""
    images, mask = crops()
    theirs = TheirHMR(tiny.CONFIG).double().eval()
    theirs.load_state_dict(ours.state_dict())
    hc.apply(theirs, plan(TokenSettings()))
    with hc.person_mask(theirs, mask):
        one = theirs.backbone(images)
    with hc.person_mask(theirs, mask.flip(2)):
        two = theirs.backbone(images.flip(3))
    merged = merge_network(ours, plan(TokenSettings()))
    for grid, wanted in ((one, merged(images, mask)), (two, merged(images.flip(3), mask.flip(2)))):
        assert float((theirs.smpl_head(grid)[3] - wanted.features).abs().max()) < 1e-9
    with pytest.raises(UserError, match="handed something else"):
        theirs.smpl_head(torch.randn(3, tiny.CONFIG.dim, *GRID, dtype=torch.float64))


@torch.no_grad()
def test_networks_that_are_compressed_otherwise_are_refused(tmp_path: Path) -> None:
    network = tiny.network()
    with pytest.raises(UserError, match="merges tokens already"):
        hc.apply(merge_network(network, plan(TokenSettings(), ((0,), (1,), (2,), (3,)))), plan(None))
    for tokens in (None, TokenSettings()):
        with pytest.raises(UserError, match="is on the fast path"):
            hc.apply(make_fast(network), plan(tokens))


@torch.no_grad()
def test_hamer_on_the_fast_path(cases: Callable[[str], Path]) -> None:
    """Case D12: the hand's checkpoint, fast and plain."""
    path = cases("checkpoints") / "hand.ckpt"
    images = torch.randn(2, 3, 256, 192, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"num_heads": 3, "head_heads": 6}
    plain, fast = (hc.load(path, fast=way, **given).network(images) for way in (False, True))
    assert plain.body_pose.shape == (2, 15, 3, 3) and largest(fast, plain) < 1e-4


@pytest.mark.slow
def test_hamer_on_the_fast_path_is_timed(cases: Callable[[str], Path]) -> None:
    """Case D12, at the size of the small checkpoint."""
    heads = ["--num-heads", 3, "--head-heads", 6]
    line = [
        "bench",
        cases("checkpoints") / "hand.ckpt",
        *heads,
        "--layers",
        1,
        "--rounds",
        1,
        "--batch-sizes",
        1,
        "--no-memory",
        "--fast",
    ]
    assert "fast path" in run(*line).output


@pytest.mark.parametrize("config", [CAMERA, TOKENS, HAND], ids=lambda config: config.family)
def test_the_authors_way_is_told_to_be_hmr2s(config: NetworkConfig) -> None:
    with pytest.raises(UserError, match="HMR2.0 alone is. Use --baseline ours"):
        reference(awake(config))
