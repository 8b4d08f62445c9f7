"""The rule `lstsq`: the ridge regression against numpy, the fitting against slow loops, and networks that it can
reproduce exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_search import DEPTH, deep_network, reference, run
from torch import Tensor

import hmrcompress as hc
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import mask_source
from hmrcompress.errors import UserError
from hmrcompress.merging.fit import FitBatch, StreamedTokens, embedded, fit_batches, fit_patches, fit_plan, plain
from hmrcompress.merging.layers import merge_layers
from hmrcompress.merging.lstsq import RIDGES, NormalEquations, fit, no_patch, solve
from hmrcompress.merging.merge import merge_network
from hmrcompress.metrics.pose import mpjpe
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.network import HMR2, build, from_state
from hmrcompress.plan import Plan
from hmrcompress.searching.eclm import Groups, grouping
from hmrcompress.searching.search import SearchSettings

HIDDEN, DIM = 7, 4
MASKS = mask_source("data")


def drawn(seed: int, count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (n,H), missing (n,D) mostly linear in it, weights (n,), float64."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(1.0, 1.0, (count, HIDDEN)) @ rng.normal(size=(HIDDEN, HIDDEN))
    missing = hidden @ rng.normal(size=(HIDDEN, DIM)) + rng.normal(size=DIM) + 0.3 * rng.normal(size=(count, DIM))
    weights = rng.choice([0.0, 0.1, 1.0], count)
    return torch.from_numpy(hidden), torch.from_numpy(missing), torch.from_numpy(weights)


def equations(hidden: Tensor, missing: Tensor, weights: Tensor, parts: int = 3) -> NormalEquations:
    made = NormalEquations(hidden.shape[1], missing.shape[1])
    for rows in torch.arange(len(hidden)).chunk(parts):
        made.add(hidden[rows], missing[rows], weights[rows])
    return made


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2, 1.0])
def test_equals_least_squares_with_extra_rows(ridge: float) -> None:
    """numpy solves the weighted problem with the penalty as H further rows, which the bias does not see."""
    for seed in range(20):
        hidden, missing, weights = drawn(seed)
        patch = solve(equations(hidden, missing, weights), ridge)
        assert patch is not None and patch.weight.dtype == torch.float64
        w = weights.numpy()[:, None]
        mean = (w * hidden.numpy()).sum(0) / w.sum()
        penalty = ridge * (w * (hidden.numpy() - mean) ** 2).sum(0).mean()
        rows = np.concatenate(
            [np.sqrt(w) * np.hstack([hidden, np.ones_like(w)]), np.sqrt(penalty) * np.eye(HIDDEN, HIDDEN + 1)]
        )
        goal = np.concatenate([np.sqrt(w) * missing.numpy(), np.zeros((HIDDEN, DIM))])
        expected = np.linalg.lstsq(rows, goal, rcond=None)[0]
        np.testing.assert_allclose(patch.weight, expected[:-1].T, atol=1e-7)
        np.testing.assert_allclose(patch.bias, expected[-1], atol=1e-7)


def test_the_loss_is_the_weighted_sum_of_squares() -> None:
    hidden, missing, weights = drawn(1)
    sums = equations(hidden, missing, weights)
    for patch in (solve(sums, 1e-3), no_patch(sums)):
        assert patch is not None
        left = missing - hidden @ patch.weight.T - patch.bias
        assert sums.loss(patch) == pytest.approx((weights * left.square().sum(1)).sum().item(), rel=1e-9)
    both = sums.plus(equations(*drawn(2)))
    whole = equations(*(torch.cat(pair) for pair in zip(drawn(1), drawn(2), strict=True)))
    assert torch.allclose(both.gram, whole.gram) and torch.allclose(both.cross, whole.cross)


def test_the_ridge_is_what_carries_over() -> None:
    """Twenty rows for seven unknowns and much noise: the ridge chosen loses least on the rows left out."""
    chosen = set()
    for seed in range(40):
        hidden, missing, weights = drawn(seed, 30)
        missing = missing + 3 * seed / 10 * torch.randn(missing.shape, generator=torch.Generator().manual_seed(seed))
        fitted, left_out = (equations(*(part[rows] for part in (hidden, missing, weights)))
                            for rows in (slice(0, 12), slice(12, 30)))  # fmt: skip
        patch = fit(fitted, left_out)
        losses = {ridge: left_out.loss(solved) for ridge in RIDGES if (solved := solve(fitted, ridge)) is not None}
        losses[math.inf] = left_out.loss(no_patch(fitted))
        assert patch.ridge == min(losses, key=lambda ridge: (losses[ridge], ridge))
        chosen.add(patch.ridge)
        if math.isfinite(patch.ridge):
            again = solve(fitted.plus(left_out), patch.ridge)
            assert again is not None and torch.equal(again.weight, patch.weight)
    assert len(chosen) > 2
    worse = equations(torch.eye(HIDDEN), -torch.ones(HIDDEN, DIM), torch.ones(HIDDEN))
    assert fit(equations(torch.eye(HIDDEN), torch.ones(HIDDEN, DIM), torch.ones(HIDDEN)), worse).ridge == math.inf


def test_degenerate_data() -> None:
    nothing = NormalEquations(HIDDEN, DIM)
    assert not fit(nothing, nothing).weight.any()
    constant = equations(torch.ones(9, HIDDEN), torch.full((9, DIM), 2.0), torch.ones(9))
    patch = fit(constant, nothing)  # nothing varies: at most the bias can be fitted
    assert not patch.weight.any() and patch.bias.isfinite().all()
    broken = equations(torch.full((9, HIDDEN), math.nan), torch.ones(9, DIM), torch.ones(9))
    assert solve(broken, 1e-3) is None and not fit(broken, nothing).weight.any()


@torch.no_grad()
def slow_patches(
    network: HMR2, groups: Groups, crops: CropSet, indices: np.ndarray, weights: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Bottom upwards in float64, one full design matrix a group, with numpy's least squares (ridge 0)."""
    network = from_state(network.config, {name: value.double() for name, value in network.state_dict().items()})
    (batch,) = crops.batches(indices, len(indices))
    original = [tokens.clone() for tokens in network.backbone.layer_inputs(batch.images.double())]
    tokens, found = original[0], {}
    scale = np.sqrt(weights.reshape(-1, 1))
    for group in groups:
        block = network.backbone.blocks[group[0]]
        attended = block.attend(tokens)[0]
        hidden = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(attended)))
        tokens = attended + block.mlp.fc2(hidden)
        if len(group) > 1:
            missing = (original[group[-1] + 1] - tokens).flatten(0, 1).numpy()
            rows = np.hstack([hidden.flatten(0, 1).numpy(), np.ones((len(missing), 1))])
            solution = np.linalg.lstsq(scale * rows, scale * missing, rcond=None)[0]
            found[group[0]] = (solution[:-1].T, solution[-1])
            tokens = tokens + torch.from_numpy(rows @ solution).view(tokens.shape)
    return found


def test_fitting_follows_the_slow_way(tiny_crops: CropSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups, so that the second has to be fitted on what the first makes of its inputs."""
    monkeypatch.setattr("hmrcompress.merging.lstsq.RIDGES", (1e-12,))
    network, indices = deep_network(), tiny_crops.sample(4)
    groups = grouping(DEPTH, [(1, 2), (4, 6)])
    batches = fit_batches(tiny_crops, indices, MASKS)
    weights = torch.cat([batch.weights for batch in batches])
    patches = fit_patches(network, groups, batches, StreamedTokens(network, tiny_crops, batches))
    expected = slow_patches(network, groups, tiny_crops, indices, weights.double().numpy())
    assert set(patches) == set(expected) == {1, 4}
    for layer, patch in patches.items():
        weight, bias = expected[layer]
        np.testing.assert_allclose(patch.weight, weight, atol=2e-3 * np.abs(weight).max())
        np.testing.assert_allclose(patch.bias, bias, atol=2e-3 * np.abs(bias).max())


def test_weights_of_tokens(tiny_crops: CropSet) -> None:
    (batch,) = fit_batches(tiny_crops, tiny_crops.sample(2), MASKS)
    pixels = np.pad(tiny_crops.pixel_masks(batch.indices), ((0, 0), (2, 2), (2, 2)))  # type: ignore[arg-type]
    for frame in range(4):
        for row in range(16):
            for column in range(12):
                share = pixels[frame, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].mean()
                assert batch.weights[frame, 12 * row + column].item() == pytest.approx(0.1 + 0.9 * share, abs=1e-6)
    assert batch.left_out.tolist() == [False, False, True, True]  # of two clips the second
    assert (fit_batches(tiny_crops, tiny_crops.sample(2), None)[0].weights == 1).all()
    bare = CropSet({k: v for k, v in tiny.crop_arrays().items() if k != "masks"}, tiny.crop_meta())
    with pytest.raises(UserError, match="--masks none"):
        fit_batches(bare, bare.sample(1), MASKS)


class Linear(torch.nn.Module):
    """In place of a layer: adds a linear function of what last went into another layer's second MLP matrix."""

    def __init__(self, second: torch.nn.Linear, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(second.out_features, second.in_features, generator=draw)
        self.bias = torch.randn(second.out_features, generator=draw)
        second.register_forward_pre_hook(lambda _, inputs: setattr(self, "hidden", inputs[0]))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.hidden @ self.weight.T + self.bias


class Rerun:
    """The tokens of a network as it is, from the images each time."""

    def __init__(self, network: HMR2, crops: CropSet, batches: list[FitBatch]) -> None:
        self.network, self.crops, self.batches = network, crops, batches

    def at(self, batch: int, layer: int) -> Tensor:
        tokens = embedded(self.network, self.crops, self.batches[batch].indices)
        return self.network.backbone.run_blocks(tokens, 0, layer)[0]


def test_layers_linear_in_the_hidden_activations_are_reproduced(tiny_crops: CropSet) -> None:
    network = build(replace(tiny.CONFIG, depth=5), seed=2).eval().requires_grad_(False)
    state, groups = dict(network.state_dict()), grouping(5, [(1, 3)])
    second = network.backbone.blocks[1].mlp.fc2
    network.backbone.blocks[2], network.backbone.blocks[3] = Linear(second, 1), Linear(second, 2)
    batches = fit_batches(tiny_crops, tiny_crops.sample(6), MASKS)
    patches = fit_patches(network, groups, batches, Rerun(network, tiny_crops, batches))
    (batch,) = tiny_crops.batches(tiny_crops.sample(6), 12)
    expected = network.backbone(batch.images)
    small = replace(network.config, depth=3)
    merged = from_state(small, merge_layers(state, groups, "lstsq", patches=patches))
    dropped = from_state(small, merge_layers(state, groups, "keep_first"))
    assert (merged.backbone(batch.images) - expected).abs().max() < 1e-5
    assert (dropped.backbone(batch.images) - expected).abs().max() > 0.1


def test_it_beats_dropping_layers_where_it_was_fitted(tiny_crops: CropSet) -> None:
    network, indices = deep_network(), tiny_crops.sample(6)
    groups = grouping(DEPTH, [(1, 3), (5, 6)])
    (batch,) = tiny_crops.batches(indices, len(indices))
    *_, expected = network.backbone.layer_inputs(batch.images)

    def left(rule: str) -> float:
        patches = fit_plan(network, groups, tiny_crops, None) if rule == "lstsq" else None
        state = merge_layers(network.state_dict(), groups, rule, patches=patches)
        merged = from_state(replace(network.config, depth=len(groups)), state)
        *_, tokens = merged.backbone.layer_inputs(batch.images)
        return (tokens - expected).square().mean().item()

    assert left("lstsq") < 0.8 * min(left("keep_first"), left("keep_last"), left("eq4"))


def test_a_patch_costs_nothing_and_changes_nothing_else() -> None:
    network = deep_network()
    state, groups = network.state_dict(), grouping(DEPTH, [(2, 4)])
    hidden, dim = tiny.CONFIG.mlp_dim, tiny.CONFIG.dim
    sums = equations(torch.randn(99, hidden).double(), torch.randn(99, dim).double(), torch.ones(99))
    patch = solve(sums, 1e-3)
    assert patch is not None
    merged, kept = merge_layers(state, groups, "lstsq", patches={2: patch}), merge_layers(state, groups, "keep_first")
    for name, tensor in merged.items():
        added = {"backbone.blocks.2.mlp.fc2.weight": patch.weight, "backbone.blocks.2.mlp.fc2.bias": patch.bias}
        assert tensor.shape == kept[name].shape and tensor.dtype == kept[name].dtype
        np.testing.assert_allclose(tensor.double(), kept[name].double() + added.get(name, 0), atol=1e-6)
    with pytest.raises(UserError, match="no patch for layer 2"):
        merge_layers(state, groups, "lstsq")


def test_search_and_merge(
    tiny_crops: CropSet, tiny_crops_file: Path, tiny_body: BodyModel, tiny_body_file: Path, tmp_path: Path
) -> None:
    """The merged network has the error that the search stated, on every second clip, which it was not fitted on;
    twice the same bytes, and says what it was fitted on."""
    network = deep_network()
    write_model_folder(tmp_path / "model", network.state_dict(), network.config)
    checkpoint = hc.load(tmp_path / "model")
    settings = SearchSettings(tau_mm=2.0, frames_per_clip=3, batch_size=4, merge_rule="lstsq")
    result = hc.search(
        checkpoint, tiny_crops_file, journal=tmp_path / "journal", settings=settings, body=tiny_body_file, device="cpu"
    )
    plan = result.plan
    assert plan.search is not None and plan.search.data.source == str(tiny_crops_file) and plan.search.masks == "data"
    assert len(plan.groups) < DEPTH and result.counts.fitting > 0
    for name in ("one", "two"):
        hc.merge(checkpoint, plan, tmp_path / name, body=tiny_body_file, device="cpu")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    folder = hc.load(tmp_path / "one")
    others = np.concatenate([tiny_crops.frames_of(clip) for clip in tiny_crops.clip_ids[1::2]])
    sampled = np.intersect1d(tiny_crops.sample(3), others)
    assert 0 < len(sampled) < len(tiny_crops.sample(3)) == plan.search.frames
    (batch,) = tiny_crops.batches(sampled, 12)
    error = mpjpe(tiny_body.joints(folder.network(batch.images).params), tiny_body.joints(batch.params)).mean().item()
    assert error == pytest.approx(plan.search.final_mpjpe_mm, rel=1e-6)
    assert '"ridges"' in (tmp_path / "one" / "config.json").read_text()
    nowhere = plan.model_copy(update={"search": None})
    with pytest.raises(UserError, match="Give --data"):
        hc.merge(checkpoint, nowhere, tmp_path / "never", body=tiny_body_file, device="cpu")
    hc.merge(checkpoint, nowhere, tmp_path / "given", data=tiny_crops_file, body=tiny_body_file, device="cpu")
    with pytest.raises(UserError, match="no patch"):
        merge_network(network, plan)
    assert not (tmp_path / "never").exists()


def test_the_cache_changes_no_figure_of_a_search(tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path) -> None:
    network = deep_network()
    for name, changes in {"cached": {}, "plain": {"cache": False}, "disk": {"cache_gb": 0.0}}.items():
        run(network, tiny_crops, tiny_body, tmp_path / name, merge_rule="lstsq", masks=MASKS, tau_mm=1.0, **changes)
    assert (tmp_path / "cached").read_bytes() == (tmp_path / "plain").read_bytes() == (tmp_path / "disk").read_bytes()


def test_nothing_given_is_changed(tiny_crops: CropSet) -> None:
    network = deep_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plan = Plan.from_dict(
        {
            "schema": 1,
            "checkpoint": reference().model_dump(),
            "groups": grouping(DEPTH, [(0, 6)]),
            "merge_rule": "lstsq",
        }
    )
    merge_network(network, plan, fit_plan(network, plan.groups, tiny_crops, MASKS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert plain(network) is not network
