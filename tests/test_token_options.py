"""Options of token merging against slow transcriptions with loops, and on a network."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.errors import UserError
from hmrcompress.merging.apply import delayed, forced_merges, token_counts, with_token_merging
from hmrcompress.merging.tokens import destinations, highest_norms, layer_count, match, merge, schedule
from hmrcompress.models.network import build
from hmrcompress.plan import DropBackground, TokenSettings

Sample = tuple[np.ndarray, np.ndarray, np.ndarray, list[list[int]]]

# --- matching and merging, many layers in a row ---------------------------------------------------------------------


def slow_count(tokens: int, keep: int, rates: list[int] | int, layer: int, protect: int) -> int:
    """The most that a layer may merge, found by trying one after the other."""
    wanted = rates if isinstance(rates, int) else rates[layer] if layer < len(rates) else 0
    count = 0
    while count < wanted and tokens - count > keep and count + 1 + protect <= tokens // 2:
        count += 1
    return count


def slow_layer(sample: Sample, channels: int, removed: int, protect: int, weighted: bool) -> tuple[Sample, int]:
    """One layer on one sample, pair by pair. tokens (M,D) whose first `channels` are compared; which patches each token
    holds comes last. -> the same after merging, and how many pairs were forced."""
    tokens, person, sizes, patches = sample
    count = len(tokens)
    norms = sorted(range(count), key=lambda k: (-sum(float(x) * float(x) for x in tokens[k]), k))
    protected = set(norms[:protect])

    def cosine(i: int, j: int) -> float:
        a, b = tokens[i][:channels], tokens[j][:channels]
        lengths = max(np.sqrt((a * a).sum()), 1e-12), max(np.sqrt((b * b).sum()), 1e-12)
        return float(sum((x / lengths[0]) * (y / lengths[1]) for x, y in zip(a, b, strict=True)))

    pairs = []
    for i in range(0, count, 2):
        if i in protected:
            continue
        candidates = [j for j in range(1, count, 2) if j not in protected]
        background = [] if person[i] else [j for j in candidates if not person[j]]
        best = max(background or candidates, key=lambda j: (cosine(i, j), -j))
        pairs.append((0 if background else 1, -cosine(i, best), i, best))
    chosen = sorted(pairs)[:removed]
    assert len(chosen) == removed
    groups = {k: [k] for k in range(count)}
    for _, _, i, j in sorted(chosen, key=lambda pair: pair[2]):
        groups[j].append(i)
        del groups[i]
    rows, flags, totals, held = [], [], [], []
    for k in [k for k in groups if k % 2 == 0] + [k for k in groups if k % 2]:
        members = groups[k]
        weights = [float(sizes[m]) if weighted else 1.0 for m in members]
        rows.append(sum(w * tokens[m] for w, m in zip(weights, members, strict=True)) / sum(weights))
        flags.append(any(bool(person[m]) for m in members))
        totals.append(sum(float(sizes[m]) for m in members))
        held.append(sorted(patch for m in members for patch in patches[m]))
    return (np.array(rows), np.array(flags), np.array(totals), held), sum(pair[0] for pair in chosen)


EXACT = [np.array(sign) * 0.5 for sign in np.ndindex(2, 2, 2, 2)]
# Unit vectors of four channels with entries 0, ±1/2, ±1: cosines of them and of their doubles are exact, full of ties.
UNITS = [2 * half - np.array([0.5] * 4) for half in EXACT] + [s * np.eye(4)[k] for k in range(4) for s in (1, -1)]


def random_sample(rng: np.random.Generator, ties: bool) -> np.ndarray:
    """Tokens (M,7): four channels that are compared and three of payload, all multiples of 1/8 where there are ties."""
    count = int(rng.integers(4, 40))
    if not ties:
        return rng.normal(size=(count, 7))
    compared = np.stack([UNITS[rng.integers(len(UNITS))] * 2.0 ** rng.integers(-2, 2) for _ in range(count)])
    return np.concatenate([compared, rng.integers(-2, 3, (count, 3)) / 8], axis=1)


@pytest.mark.parametrize("block", range(6))
def test_layers_in_a_row_equal_the_slow_transcription(block: int) -> None:
    """300 cases: nobody or everybody a person, ties, odd counts, rates too large, protection, weights, schedules."""
    for seed in range(50 * block, 50 * block + 50):
        rng = np.random.default_rng(seed)
        ties = bool(seed % 2)
        start = random_sample(rng, ties)
        count = len(start)
        person = rng.random(count) < rng.choice([0.0, 0.3, 0.6, 1.0])
        protect, weighted = int(rng.integers(0, max(1, count // 4))), bool(rng.integers(2))
        keep = int(rng.integers(1, count + 2))
        rates: int | list[int] = int(rng.integers(1, count + 5))
        if rng.integers(2):
            rates = [int(rate) for rate in rng.integers(0, count // 2 + 3, 4)]
        slow: Sample = (start, person, np.ones(count), [[k] for k in range(count)])
        tokens, flags = torch.from_numpy(start)[None], torch.from_numpy(person)[None]
        sizes, owner = torch.ones(1, count, dtype=torch.float64), torch.arange(count)[None]
        for layer in range(4):
            removed = layer_count(tokens.shape[1], keep, rates, layer, protect)
            assert removed == slow_count(len(slow[0]), keep, rates, layer, protect), f"seed {seed}"
            # Means of earlier layers are no longer exact, and an exact tie could fall either way: one layer is enough.
            if not removed or (ties and layer):
                break
            protected = highest_norms(tokens, protect) if protect else None
            pairs = match(tokens[..., :4], flags, removed, protected)
            slow, forced = slow_layer(slow, 4, removed, protect, weighted)
            owner = destinations(pairs, tokens.shape[1]).gather(1, owner)
            tokens, flags, sizes = merge(pairs, tokens, flags, sizes, size_weighted=weighted)
            assert int(pairs.forced.sum()) == forced, f"seed {seed}"
            np.testing.assert_allclose(tokens[0], slow[0], atol=1e-12, err_msg=f"seed {seed}")
            np.testing.assert_array_equal(flags[0], slow[1], err_msg=f"seed {seed}")
            np.testing.assert_array_equal(sizes[0], slow[2], err_msg=f"seed {seed}")
            held = [sorted(torch.nonzero(owner[0] == k).flatten().tolist()) for k in range(tokens.shape[1])]
            assert held == slow[3], f"seed {seed}"


def test_highest_norms_take_the_lowest_index_of_equals() -> None:
    tokens = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [0.0, -2.0], [1.0, 0.0], [-2.0, 0.0]]])
    assert highest_norms(tokens, 2).tolist() == [[False, True, True, False, False]]
    assert highest_norms(tokens, 4).tolist() == [[True, True, True, False, True]]
    assert highest_norms(tokens.half() * 60000, 2).tolist() == [[False, True, True, False, False]]


def test_schedules() -> None:
    assert schedule(192, 90, [10] * 12) == [10] * 10 + [2]
    assert schedule(192, 90, (0, 60, 0, 60)) == [0, 60, 0, 42]
    assert schedule(192, 90, (500, 500)) == [96, 6]
    assert schedule(90, 90, ()) == []
    assert schedule(192, 90, 40, protect=34) == [40, 40, 22]
    assert schedule(192, 90, 40, protect=40) == [40, 36, 18, 8]
    with pytest.raises(UserError, match="a schedule of 3 layers leaves 162 of 192 tokens, expected 90"):
        schedule(192, 90, (10, 10, 10))
    with pytest.raises(UserError, match="tokens.protect: with 60 protected tokens 121 cannot become fewer"):
        schedule(192, 90, 40, protect=60)
    assert token_counts(TokenSettings(schedule=(0, 60, 0, 60)), 192) == [192, 192, 132, 132, 90]
    assert token_counts(TokenSettings(drop_background=DropBackground()), 192) == [192, 90]
    assert token_counts(TokenSettings(drop_background=DropBackground()), 48) == [48]


# --- on the network -------------------------------------------------------------------------------------------------


def crops(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(count, 3, 256, 192, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(count, 16, 12, dtype=torch.bool)
    mask[:, 4:12, 3:9] = True
    return images, mask


@torch.no_grad()
@pytest.mark.parametrize("where", ["self", "cross"])
def test_either_attention_can_have_the_bias(where: str) -> None:
    """Blocks written out once more: the bias reaches the backbone's logits, the head's, but not both."""
    settings = TokenSettings(keep=100, per_layer=50, attention_bias=where, schedule=(40, 0, 52), protect=4)
    network = build(tiny.CONFIG, seed=2).double().eval()
    for parameter in network.backbone.blocks.parameters():
        parameter.data.mul_(3)
    images, mask = crops(2)
    images = images.double()
    merging = with_token_merging(network, settings)
    assert [tap.shape[1] for tap in merging.backbone.layer_inputs(images, mask)] == [192, 152, 152, 100, 100]

    tokens, sizes, person = network.backbone.embed(images), torch.ones(2, 192), mask.flatten(1)
    for removed, block in zip((40, 0, 52, 0), network.backbone.blocks, strict=True):
        qkv = block.attn.qkv(block.norm1(tokens)).view(2, -1, 3, 2, 16)
        query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        bias = sizes.double().log()[:, None, None] if where == "self" else 0.0
        logits = query @ key.transpose(2, 3) / 4 + bias
        tokens = tokens + block.attn.proj((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))
        if removed:
            high = tokens.norm(dim=-1).argsort(descending=True)[:, :4]
            protected = torch.zeros(2, tokens.shape[1], dtype=torch.bool).scatter(1, high, True)
            pairs = match(key.mean(1), person, removed, protected)
            kept = [row[flag] for row, flag in zip(tokens, protected, strict=True)]
            tokens, person, sizes = merge(pairs, tokens, person, sizes)
            for row, wanted in zip(tokens, kept, strict=True):
                assert all((row == token).all(-1).any() for token in wanted)
        tokens = tokens + block.mlp(block.norm2(tokens))
    expected = network.backbone.last_norm(tokens)
    bias = sizes.double().log()[:, None, None] if where == "cross" else None
    got, head_bias = merging.backbone.encode(images, mask)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    assert (head_bias is None) == (bias is None)
    torch.testing.assert_close(merging(images, mask).cam, network.smpl_head(expected, bias).cam, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        TokenSettings(schedule=(0, 50, 0, 60), protect=5),
        TokenSettings(schedule=(60, 60), metric="features", size_weighted=True, attention_bias="self"),
        TokenSettings(drop_background=DropBackground()),
    ],
)
def test_forced_merges_are_counted_with_every_option(settings: TokenSettings) -> None:
    """Nobody forced on an ordinary crop; of a crop full of person exactly the tokens that went; none without people."""
    few = with_token_merging(tiny.network(), settings)
    images, mask = crops(3)
    mask[:, :, 6:] = False
    mask[1], mask[2] = True, False
    assert forced_merges(few, images, mask).tolist() == [0, 102, 0]
    assert forced_merges(few, images, None).tolist() == [0, 0, 0]


@torch.no_grad()
def test_the_number_of_tokens_does_not_depend_on_the_mask() -> None:
    images, _ = crops(1)
    rng = np.random.default_rng(0)
    for settings in (TokenSettings(protect=8), TokenSettings(drop_background=DropBackground(ring=2, coarse=3))):
        few = with_token_merging(tiny.network(), settings)
        for share in (0.0, 0.1, 0.5, 0.9, 1.0):
            mask = torch.from_numpy(rng.random((1, 16, 12)) < share)
            assert few.backbone(images, mask).shape[1] == 90
        assert few.backbone(images).shape[1] == 90


def test_settings_that_contradict_each_other() -> None:
    settings = TokenSettings()
    with pytest.raises(UserError, match="tokens: drop_background merges nothing"):
        settings.changed(drop_background={}, protect=2)
    with pytest.raises(UserError, match=r"tokens: schedule\.1: got -1"):
        settings.changed(schedule=[1, -1])
    with pytest.raises(UserError, match=r"tokens: attention_bias.*got 'all'"):
        settings.changed(attention_bias="all")
    assert settings.changed(drop_background={"ring": 2}).drop_background == DropBackground(ring=2, coarse=4)
    assert settings.changed(schedule=[3, 4]) == TokenSettings(schedule=(3, 4))


def test_the_published_setting() -> None:
    paper = TokenSettings.paper()
    assert paper.model_dump() == {
        "keep": 90,
        "per_layer": 40,
        "size_weighted": False,
        "attention_bias": False,
        "metric": "keys",
        "schedule": None,
        "protect": 0,
        "drop_background": None,
        "read": "native",
    }
    assert not paper.biases_backbone and not paper.biases_head
    both = TokenSettings(attention_bias=True)
    assert both.biases_backbone and both.biases_head


@pytest.mark.parametrize(
    ("listed", "layer", "wanted"),
    [
        (None, 0, None),
        (None, 1, (0, 40, 40, 22)),
        (None, 3, (0, 0, 0, 40, 40, 22)),
        ((0, 40, 40, 22), 0, (0, 40, 40, 22)),
        ((0, 40, 40, 22), 1, (0, 40, 40, 22)),
        ((0, 40, 40, 22), 2, (0, 0, 40, 40, 22)),
        ((0, 0, 80, 22), 1, (0, 0, 80, 22)),
    ],
)
def test_merging_waits_for_the_probe_and_no_longer(
    listed: tuple[int, ...] | None, layer: int, wanted: tuple[int, ...] | None
) -> None:
    """Nothing below the layer that finds the person; zeros that a schedule begins with count."""
    assert delayed(TokenSettings(keep=90, per_layer=40, schedule=listed), 192, layer).schedule == wanted
