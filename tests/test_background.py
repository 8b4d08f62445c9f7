"""Dropping background: who stays, and which kept token stands for a patch, against slow loops; and on a network."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.background import kept_places, nearest_kept, patches_of, spread_order
from hmrcompress.merging.describe import network_cost
from hmrcompress.metrics.cost import cost
from hmrcompress.models.network import build
from hmrcompress.plan import DropBackground, TokenSettings


def slow_kept(person: np.ndarray, keep: int, ring: int, coarse: int) -> list[int]:
    """One sample: person (rows,columns) -> the places that stay, rising."""
    rows, columns = person.shape
    rank = spread_order(rows, columns, coarse).tolist()
    everyone = [(i, j) for i in range(rows) for j in range(columns) if person[i, j]]
    order = []
    for i in range(rows):
        for j in range(columns):
            away = min((max(abs(i - a), abs(j - b)) for a, b in everyone), default=10**6)
            if person[i, j]:
                turn = 0
            elif coarse and i % coarse == coarse // 2 and j % coarse == coarse // 2:
                turn = 1
            elif away <= ring:
                turn = 1 + away
            else:
                turn = 2 + ring
            order.append((turn, rank[i * columns + j], i * columns + j))
    return sorted(place for _, _, place in sorted(order)[:keep])


def slow_nearest(person: np.ndarray, places: list[int]) -> list[int]:
    """One sample: for every patch the index in `places` of the token that stands for it."""
    columns = person.shape[1]
    flat = person.flatten()
    found = []
    for place in range(person.size):
        alike = [k for k, other in enumerate(places) if flat[other] == flat[place]]

        def away(k: int, place: int = place) -> int:
            down, across = (a - b for a, b in zip(divmod(place, columns), divmod(places[k], columns), strict=True))
            return down * down + across * across

        found.append(min(alike or range(len(places)), key=lambda k: (away(k), k)))
    return found


def people(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A blob, several, noise, nobody or everybody."""
    kind = rng.integers(5)
    if kind < 2:
        return np.full((rows, columns), bool(kind))
    if kind == 2:
        return rng.random((rows, columns)) < 0.2
    mask = np.zeros((rows, columns), bool)
    for _ in range(int(rng.integers(1, 4))):
        top, left = int(rng.integers(rows)), int(rng.integers(columns))
        mask[top : top + int(rng.integers(1, rows + 1)), left : left + int(rng.integers(1, columns + 1))] = True
    return mask


def test_equals_the_slow_transcription() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows, columns = (16, 12) if seed % 40 == 0 else (int(rng.integers(2, 8)), int(rng.integers(2, 8)))
        person = np.stack([people(rng, rows, columns) for _ in range(2)])
        keep, ring, coarse = int(rng.integers(1, rows * columns + 1)), int(rng.integers(0, 4)), int(rng.integers(0, 6))
        given = torch.from_numpy(person)
        places = kept_places(given, keep, ring=ring, coarse=coarse)
        owner = nearest_kept(given, places)
        for sample in range(2):
            expected = slow_kept(person[sample], keep, ring, coarse)
            assert places[sample].tolist() == expected, f"seed {seed}"
            nearest = slow_nearest(person[sample], expected)
            assert owner[sample].tolist() == nearest, f"seed {seed}"
            assert patches_of(owner, keep)[sample].tolist() == [nearest.count(k) for k in range(keep)], f"seed {seed}"
        assert torch.equal(given, torch.from_numpy(person))


@pytest.mark.parametrize(("rows", "columns", "coarse"), [(16, 12, 4), (16, 12, 0), (5, 7, 2), (1, 1, 0), (8, 8, 8)])
def test_the_spread_order_is_a_permutation_and_even(rows: int, columns: int, coarse: int) -> None:
    ranks = spread_order(rows, columns, coarse).numpy()
    assert sorted(ranks) == list(range(rows * columns))
    if (rows, columns, coarse) == (16, 12, 4):
        first = np.flatnonzero(ranks < 12)
        assert [divmod(place, 12) for place in first] == [(i, j) for i in (2, 6, 10, 14) for j in (2, 6, 10)]
        quarters = [(ranks.reshape(16, 12)[i : i + 8, j : j + 6] < 96).sum() for i in (0, 8) for j in (0, 6)]
        assert quarters == [24, 24, 24, 24]


def test_the_order_of_classes() -> None:
    """A person of four tokens, a grid of twelve, a ring of twelve (none on the grid), then the rest."""
    person = torch.zeros(1, 16, 12, dtype=torch.bool)
    person[0, 7:9, 7:9] = True
    kept = {keep: set(kept_places(person, keep)[0].tolist()) for keep in (4, 16, 28, 90, 192)}
    grid = {12 * i + j for i in (2, 6, 10, 14) for j in (2, 6, 10)}
    ring = {12 * i + j for i in range(6, 10) for j in range(6, 10)} - {12 * i + j for i in (7, 8) for j in (7, 8)}
    assert kept[4] == {91, 92, 103, 104}
    assert kept[16] == kept[4] | grid
    assert kept_places(person, 28)[0].numel() == 28 and ring <= kept[28]
    assert kept[28] < kept[90] and kept[192] == set(range(192))


def test_a_person_too_large_is_thinned_evenly() -> None:
    """Of a crop full of person every 4 x 4 square keeps about its share."""
    places = kept_places(torch.ones(1, 16, 12, dtype=torch.bool), 90)[0]
    stays = torch.zeros(192).index_fill(0, places, 1.0).view(16, 12)
    shares = torch.nn.functional.avg_pool2d(stays[None], 4)[0] * 16
    assert shares.min() >= 7 and shares.max() <= 8


@torch.no_grad()
def test_the_network_sees_the_kept_patches_alone() -> None:
    """It equals running the blocks on those tokens, positions included, picked by hand."""
    network = tiny.network(seed=3)
    settings = TokenSettings(keep=50, drop_background=DropBackground(ring=2, coarse=0))
    images = torch.randn(2, 3, 256, 192, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 16, 12, dtype=torch.bool)
    mask[0, 5:9, 4:8], mask[1, 1:4, 0:3] = True, True
    embedded = network.backbone.embed(images)
    rows = []
    for sample in range(2):
        places = slow_kept(mask[sample].numpy(), 50, 2, 0)
        tokens = embedded[sample : sample + 1, places]
        for block in network.backbone.blocks:
            tokens = block(tokens)
        rows.append(network.backbone.last_norm(tokens))
    few = with_token_merging(network, settings)
    torch.testing.assert_close(few.backbone(images, mask), torch.cat(rows), atol=1e-5, rtol=1e-5)
    assert few.backbone.encode(images, mask)[1] is None
    assert [tap.shape[1] for tap in few.backbone.layer_inputs(images, mask)] == [50] * 5
    small = images[:, :, :64, :64]
    assert torch.equal(few(small).features, network(small).features)


@torch.no_grad()
def test_a_bias_counts_the_patches_that_a_token_stands_for() -> None:
    settings = TokenSettings(keep=60, attention_bias=True, drop_background=DropBackground())
    few = with_token_merging(tiny.network(), settings)
    images = torch.randn(1, 3, 256, 192, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 16, 12, dtype=torch.bool)
    mask[0, 5:9, 4:8] = True
    bias = few.backbone.encode(images, mask)[1]
    assert bias is not None
    places = slow_kept(mask[0].numpy(), 60, 1, 4)
    nearest = slow_nearest(mask[0].numpy(), places)
    np.testing.assert_allclose(bias.exp().flatten(), [nearest.count(k) for k in range(60)], rtol=1e-5)


def test_costs() -> None:
    """Of 192 tokens 90 go through all layers: fewer MACs than merging, and no matching."""
    drop = TokenSettings(drop_background=DropBackground())
    full, merged, dropped = (network_cost(tiny.CONFIG, tokens) for tokens in (None, TokenSettings(), drop))
    assert dropped.macs < merged.macs and dropped.other_macs == 0 < merged.other_macs
    block = (3 + 1 + 2 + 2) * 32 * 32 + 2 * 4 * 32  # qkv, proj, MLP twice as wide, two norms at four an element
    head = 4 * 32 + 2 * 2 * 32 * 16  # the last norm, keys and values of two layers of two heads of eight
    assert full.macs - dropped.macs == 102 * (4 * block + head)
    network = with_token_merging(build(tiny.CONFIG), drop)
    assert cost(network, torch.zeros(1, 3, 256, 192), None) == dropped
