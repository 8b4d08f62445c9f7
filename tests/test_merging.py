"""Layer merging against its formula, token merging against a slow transcription with loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.merging.apply import TokenMerger, forced_merges, token_counts, with_token_merging
from hmrcompress.merging.layers import FITTED, RULES, merge_layers
from hmrcompress.merging.tokens import match, merge, merge_count, schedule
from hmrcompress.models.network import build, from_state
from hmrcompress.plan import TokenSettings

# --- layers ---------------------------------------------------------------------------------------------------------


def layered_state(layers: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {"backbone.pos_embed": torch.randn(1, 5, 4, generator=generator)}
    for layer in range(layers):
        for name in ("norm1.weight", "mlp.fc1.weight"):
            state[f"backbone.blocks.{layer}.{name}"] = torch.randn(4, 4, generator=generator)
    state["smpl_head.deccam.bias"] = torch.randn(3, generator=generator)
    return state


def test_eq4_of_two_layers_is_exactly_the_upper_one() -> None:
    state = layered_state()
    eq4 = merge_layers(state, [[0], [1, 2], [3], [4, 5]], "eq4")
    last = merge_layers(state, [[0], [1, 2], [3], [4, 5]], "keep_last")
    assert list(eq4) == list(last) and all(torch.equal(eq4[name], last[name]) for name in eq4)
    assert torch.equal(eq4["backbone.blocks.1.mlp.fc1.weight"], state["backbone.blocks.2.mlp.fc1.weight"])


@pytest.mark.parametrize("rule", sorted(set(RULES) - {FITTED}))  # lstsq: tests/test_lstsq.py
def test_rules_follow_their_formulas(rule: str) -> None:
    state = layered_state()
    merged = merge_layers(state, [[0], [1, 2, 3], [4], [5]], rule)
    for name in ("norm1.weight", "mlp.fc1.weight"):
        a, b, c = (state[f"backbone.blocks.{layer}.{name}"].double().numpy() for layer in (1, 2, 3))
        expected = {"eq4": a + (b - a) + (c - a), "keep_last": c, "keep_first": a, "mean": (a + b + c) / 3}[rule]
        got = merged[f"backbone.blocks.1.{name}"]
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.double(), expected, atol=1e-6)


def test_other_layers_are_renumbered_and_not_copied() -> None:
    state = layered_state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    merged = merge_layers(state, [[0], [1, 2, 3], [4], [5]])
    assert merged["backbone.blocks.2.norm1.weight"] is state["backbone.blocks.4.norm1.weight"]
    assert merged["smpl_head.deccam.bias"] is state["smpl_head.deccam.bias"]
    assert len(merged) == len(state) - 4
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("groups", [[[0], [1]], [[1], [0], [2, 3, 4, 5]], [[0, 1, 2], [2, 3, 4, 5]], []])
def test_groups_that_do_not_fit(groups: list) -> None:
    with pytest.raises(UserError, match="groups: got .* expected 0 … 5"):
        merge_layers(layered_state(), groups)
    with pytest.raises(UserError, match="merge_rule: got 'slm', expected one of eq4"):
        merge_layers(layered_state(), [[n] for n in range(6)], "slm")


# --- tokens ---------------------------------------------------------------------------------------------------------


def slow_merge(
    metric: np.ndarray, tokens: np.ndarray, person: np.ndarray, sizes: np.ndarray, removed: int, weighted: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """One sample, by loops: metric (M,C), tokens (M,D), person (M,), sizes (M,) -> the merged three, forced pairs."""
    unit = [row / max(np.linalg.norm(row), 1e-12) for row in metric]
    evens, odds = range(0, len(tokens), 2), range(1, len(tokens), 2)
    pairs = []
    for i in evens:
        background = [j for j in odds if not person[i] and not person[j]]
        best = None
        for j in background or odds:
            similarity = float(sum(x * y for x, y in zip(unit[i], unit[j], strict=True)))
            if best is None or similarity > best[0]:
                best = (similarity, j)
        assert best is not None
        pairs.append((not background, -best[0], i, best[1]))
    chosen = sorted(pairs)[:removed]
    into: dict[int, list[int]] = {j: [] for j in odds}
    for _, _, i, j in sorted(chosen, key=lambda pair: pair[2]):
        into[j].append(i)
    gone = {pair[2] for pair in chosen}
    new_tokens, new_person, new_sizes = [], [], []
    for i in evens:
        if i not in gone:
            new_tokens.append(tokens[i])
            new_person.append(person[i])
            new_sizes.append(sizes[i])
    for j in odds:
        members = [j, *into[j]]
        weights = np.array([sizes[k] if weighted else 1.0 for k in members])
        new_tokens.append(sum(w * tokens[k] for w, k in zip(weights, members, strict=True)) / weights.sum())
        new_person.append(any(person[k] for k in members))
        new_sizes.append(sum(sizes[k] for k in members))
    return np.array(new_tokens), np.array(new_person), np.array(new_sizes), sum(pair[0] for pair in chosen)


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, bool]:
    """Random inputs; every other one is made of one-hot metrics, so that similarities are full of exact ties."""
    rng = np.random.default_rng(seed)
    batch, count, channels = rng.integers(1, 4), int(rng.integers(2, 30)), int(rng.integers(1, 6))
    if seed % 2:
        metric = np.eye(channels)[rng.integers(0, channels, (batch, count))]
    else:
        metric = rng.normal(size=(batch, count, channels))
    person = rng.random((batch, count)) < rng.choice([0.0, 0.2, 0.5, 0.9, 1.0])
    tokens = rng.integers(-16, 17, (batch, count, 3)) / 8
    sizes = rng.integers(1, 5, (batch, count)).astype(float)
    removed = int(rng.integers(1, count // 2 + 1))
    values = (torch.from_numpy(value) for value in (metric, tokens, person, sizes))
    return *values, removed, bool(rng.integers(2))  # type: ignore[return-value]


@pytest.mark.parametrize("block", range(8))
def test_equals_the_slow_transcription(block: int) -> None:
    for seed in range(50 * block, 50 * block + 50):
        metric, tokens, person, sizes, removed, weighted = case(seed)
        inputs = [metric.clone(), tokens.clone(), person.clone(), sizes.clone()]
        matching = match(metric, person, removed)
        merged = merge(matching, tokens, person, sizes, size_weighted=weighted)
        assert all(torch.equal(a, b) for a, b in zip(inputs, (metric, tokens, person, sizes), strict=True))
        for index in range(len(metric)):
            sample = (metric[index].numpy(), tokens[index].numpy(), person[index].numpy(), sizes[index].numpy())
            expected = slow_merge(*sample, removed, weighted)
            np.testing.assert_allclose(merged.tokens[index], expected[0], atol=1e-12, err_msg=f"seed {seed}")
            np.testing.assert_array_equal(merged.person[index], expected[1], err_msg=f"seed {seed}")
            np.testing.assert_array_equal(merged.sizes[index], expected[2], err_msg=f"seed {seed}")
            assert int(matching.forced[index].sum()) == expected[3], f"seed {seed}"


def test_ties_go_to_the_lowest_index() -> None:
    metric = torch.ones(1, 8, 2, dtype=torch.float64)
    matching = match(metric, torch.zeros(1, 8, dtype=torch.bool), 2)
    assert matching.target[0].tolist() == [0, 0, 0, 0]
    assert matching.merged[0].tolist() == [True, True, False, False] and matching.kept[0].tolist() == [2, 3]


def test_person_tokens_stay_while_background_lasts() -> None:
    generator = torch.Generator().manual_seed(0)
    person = torch.zeros(1, 16, dtype=torch.bool)
    person[:, 4:10] = True
    metric = torch.randn(1, 16, 4, generator=generator)
    metric[:, 4:10] = torch.ones(4)  # the most similar pairs of all, but the person's
    tokens = torch.randn(1, 16, 4, generator=generator)
    spared = merge(match(metric, person, 5), tokens, person, torch.ones(1, 16))
    for place in range(4, 10):
        assert (spared.tokens[0] == tokens[0, place]).all(-1).any(), f"person token {place} is gone"
    matching = match(metric, person, 6)
    assert int(matching.forced.sum()) == 1  # five even places are background, so the sixth pair is the person's
    assert matching.target[0, 2:5].tolist() == [2, 2, 2]


def test_weighted_means_keep_the_sum_over_patches() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 20, 3, generator=generator, dtype=torch.float64)
    person, sizes = torch.zeros(2, 20, dtype=torch.bool), torch.ones(2, 20, dtype=torch.float64)
    total = tokens.sum(1)
    for removed in (8, 5, 3):
        out = merge(match(tokens, person, removed), tokens, person, sizes, size_weighted=True)
        tokens, person, sizes = out
        torch.testing.assert_close((tokens * sizes[..., None]).sum(1), total)
        assert sizes.sum(1).tolist() == [20, 20]


def test_schedule() -> None:
    assert schedule(192, 90, 40) == [40, 40, 22]
    assert token_counts(TokenSettings(), 192) == [192, 152, 112, 90] and token_counts(None, 192) == [192]
    assert schedule(48, 90, 40) == [] and schedule(90, 90, 40) == [] and schedule(91, 90, 40) == [1]
    assert schedule(192, 10, 500) == [96, 48, 24, 12, 2]
    assert merge_count(3, 1, 5) == 1
    with pytest.raises(UserError, match="expected at least 1"):
        schedule(192, 0, 40)


def test_impossible_requests_are_refused() -> None:
    metric, person = torch.zeros(1, 7, 2), torch.zeros(1, 7, dtype=torch.bool)
    for removed in (0, 4, -1):
        with pytest.raises(ShapeError, match="removed: got .* of 7 tokens, expected 1 … 3"):
            match(metric, person, removed)
    with pytest.raises(ShapeError, match="metric and person"):
        match(metric, person[:, :6], 1)
    with pytest.raises(ShapeError, match="metric and person"):
        match(metric, person.float(), 1)


# --- on the network -------------------------------------------------------------------------------------------------


def crops(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, 256, 192, generator=generator)
    mask = torch.zeros(count, 16, 12, dtype=torch.bool)
    mask[:, 4:12, 3:9] = True
    return images, mask


@torch.no_grad()
@pytest.mark.parametrize("metric", ["keys", "features"])
def test_the_network_merges_between_attention_and_mlp(metric: str) -> None:
    settings = TokenSettings(keep=100, per_layer=50, size_weighted=True, attention_bias=True, metric=metric)
    network = build(tiny.CONFIG, seed=2).double().eval()
    merging = with_token_merging(network, settings)
    images, mask = crops(2)
    images = images.double()
    taps = [tap.shape[1] for tap in merging.backbone.layer_inputs(images, mask)]
    assert taps == [192, 142, 100, 100, 100]

    tokens, sizes = network.backbone.embed(images), torch.ones(2, 192)
    person = mask.flatten(1)
    for block in network.backbone.blocks:
        qkv = block.attn.qkv(block.norm1(tokens)).view(2, -1, 3, 2, 16)
        query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        logits = query @ key.transpose(2, 3) / 4 + sizes.double().log()[:, None, None]
        mixed = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
        tokens = tokens + block.attn.proj(mixed)
        if tokens.shape[1] > 100:
            what = key.mean(1) if metric == "keys" else tokens
            pairs = match(what, person, min(50, tokens.shape[1] - 100))
            tokens, person, sizes = merge(pairs, tokens, person, sizes, size_weighted=True)
        tokens = tokens + block.mlp(block.norm2(tokens))
    expected = network.backbone.last_norm(tokens)
    torch.testing.assert_close(merging.backbone(images, mask), expected, atol=1e-6, rtol=1e-6)
    bias = sizes.double().log()[:, None, None]
    torch.testing.assert_close(merging(images, mask).cam, network.smpl_head(expected, bias).cam, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_models_do_not_disturb_each_other() -> None:
    plain = tiny.network()
    images, mask = crops(2)
    before = plain(images, mask).features
    few = with_token_merging(plain, TokenSettings(keep=60, per_layer=60))
    fewer = with_token_merging(plain, TokenSettings(keep=20, per_layer=90))
    first, second = few(images, mask).features, fewer(images, mask).features
    assert not torch.equal(first, second) and not torch.equal(first, before)
    assert torch.equal(plain(images, mask).features, before)
    assert torch.equal(few(images, mask).features, first)
    assert plain.backbone.reducer is None and isinstance(few.backbone.reducer, TokenMerger)
    assert torch.equal(with_token_merging(few, None)(images, mask).features, before)
    torch.testing.assert_close(few(images[1:], mask[1:]).features, first[1:])


@torch.no_grad()
def test_no_mask_means_nobody() -> None:
    few = with_token_merging(tiny.network(), TokenSettings(keep=60, per_layer=60))
    images, mask = crops(1)
    assert torch.equal(few(images).features, few(images, torch.zeros_like(mask)).features)
    assert not torch.equal(few(images).features, few(images, mask).features)


@torch.no_grad()
def test_small_inputs_have_nothing_to_merge() -> None:
    few = with_token_merging(tiny.network(), TokenSettings())
    small = crops(2)[0][:, :, :128, :96]
    assert torch.equal(few(small).features, tiny.network()(small).features)


@torch.no_grad()
def test_forced_merges_are_counted() -> None:
    few = with_token_merging(tiny.network(), TokenSettings())
    images, mask = crops(3)
    mask[1] = True
    mask[2] = False
    assert forced_merges(few, images, mask).tolist() == [0, 102, 0]
    assert forced_merges(tiny.network(), images, mask).tolist() == [0, 0, 0]


def test_too_few_layers_for_the_tokens() -> None:
    shallow = replace(tiny.CONFIG, depth=2)
    network = from_state(shallow, build(shallow).state_dict())
    with pytest.raises(UserError, match="90 tokens need 3 merging layers, the network has 2"):
        with_token_merging(network, TokenSettings())
