"""Buckets of kept tokens: the rule against exhaustive merging, the order of tokens against a plain loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from typer.testing import CliRunner

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.merging.adaptive import AdaptiveTokens
from hmrcompress.merging.apply import forced_merges, with_token_merging
from hmrcompress.merging.buckets import bucket_of, check_buckets, group, split_order
from hmrcompress.merging.describe import network_cost
from hmrcompress.merging.tokens import layer_count, match, merge
from hmrcompress.plan import TokenSettings
from hmrcompress_cli.main import app


def persons(generator: np.random.Generator, tokens: int, count: int) -> torch.Tensor:
    """(tokens,) bool with `count` true entries anywhere."""
    return torch.from_numpy(generator.permutation(tokens) < count)


def order_by_loop(person: list[bool], removed: int) -> list[int]:
    """`split_order` in words: how many of each kind are sources, dealt out one by one."""
    count = len(person)
    background = count - sum(person)
    given = max((background + 1) // 2, removed)
    given = min(given, max(background - 1, 0), (count + 1) // 2)
    given = max(given, background - count // 2)
    share = {False: given, True: (count + 1) // 2 - given}
    total = {False: background, True: count - background}
    seen, dealt = {False: 0, True: 0}, {False: 0, True: 0}
    sources, targets = [], []
    for token, kind in enumerate(person):
        seen[kind] += 1
        if dealt[kind] < seen[kind] * share[kind] // total[kind]:
            dealt[kind] += 1
            sources.append(token)
        else:
            targets.append(token)
    order = [0] * count
    order[0::2], order[1::2] = sources, targets
    return order


@pytest.mark.parametrize("tokens", [2, 7, 16, 31])
def test_the_order_is_that_of_a_plain_loop(tokens: int) -> None:
    generator = np.random.default_rng(tokens)
    for count in range(tokens + 1):
        person = persons(generator, tokens, count)
        for removed in range(1, tokens // 2 + 1):
            assert split_order(person[None], removed)[0].tolist() == order_by_loop(person.tolist(), removed)


@pytest.mark.parametrize("tokens", [12, 31])
def test_even_places_get_the_background_that_is_merged(tokens: int) -> None:
    """Wherever it is possible at all: `removed` sources of background and one target, in a permutation."""
    generator = np.random.default_rng(0)
    for count in range(tokens + 1):
        person = persons(generator, tokens, count)
        for removed in range(1, tokens // 2 + 1):
            order = split_order(person[None], removed)[0]
            assert order.sort().values.tolist() == list(range(tokens))
            assert (order[0::2].diff() > 0).all() and (order[1::2].diff() > 0).all()
            placed = person[order]
            if tokens - count >= removed + 1:
                assert int((~placed[0::2]).sum()) >= removed and int((~placed[1::2]).sum()) >= 1


def forced_by_merging(person: torch.Tensor, keep: int, per_layer: int, generator: torch.Generator) -> int:
    """Person tokens lost when tokens of random features are merged down to `keep`, layer after layer."""
    state = person[None]
    sizes = torch.ones(state.shape)
    forced = 0
    while state.shape[1] > keep:
        removed = layer_count(state.shape[1], keep, per_layer, 0)
        order = split_order(state, removed)
        features = torch.randn(1, state.shape[1], 4, generator=generator)
        state, sizes = state.gather(1, order), sizes.gather(1, order)
        matching = match(features, state, removed)
        forced += int(matching.forced.sum())
        merged = merge(matching, features, state, sizes)
        state, sizes = merged.person, merged.sizes
    return forced


def test_the_bucket_is_the_smallest_without_a_forced_merge() -> None:
    """Every number of person tokens in a grid of 24: none is lost in the bucket, at least one in the one below."""
    buckets = tuple(range(2, 25))
    generator, drawn = np.random.default_rng(1), torch.Generator().manual_seed(1)
    for count in range(24):
        for _ in range(3):
            person = persons(generator, 24, count)
            keep = buckets[int(bucket_of(person[None], buckets)[0])]
            assert forced_by_merging(person, keep, 5, drawn) == 0
            if keep > buckets[0]:
                assert forced_by_merging(person, keep - 1, 5, drawn) > 0


def test_dropping_needs_no_target() -> None:
    person = torch.zeros(4, 192, dtype=torch.bool)
    for row, count in enumerate((63, 64, 65, 192)):
        person[row, :count] = True
    assert bucket_of(person, (64, 90, 192)).tolist() == [0, 1, 1, 2]
    assert bucket_of(person, (64, 90, 192), dropping=True).tolist() == [0, 0, 1, 2]


def test_groups_hold_every_row_once_in_order() -> None:
    person = torch.arange(192) < torch.tensor([100, 3, 190, 80, 10])[:, None]
    found = group(person, (64, 90, 128, 192))
    assert [(keep, rows.tolist()) for keep, rows in found] == [(64, [1, 4]), (90, [3]), (128, [0]), (192, [2])]


@pytest.mark.parametrize("wrong", [(), (64, 64), (0, 5), (64, 300)])
def test_wrong_buckets_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="buckets: got"):
        check_buckets(wrong, 192)
    with pytest.raises(ShapeError):
        bucket_of(torch.zeros(1, 100, dtype=torch.bool), (64, 192))


def batch_of(counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(2)
    images = torch.randn(len(counts), 3, 256, 192, generator=torch.Generator().manual_seed(0))
    masks = torch.stack([persons(generator, 192, count) for count in counts]).view(-1, 16, 12)
    return images, masks


@pytest.mark.parametrize("drop", [None, {}])
def test_the_network_loses_no_person_and_keeps_the_order(drop: dict[str, int] | None) -> None:
    """Each crop comes out as if it had been run alone in its bucket's network; nothing is changed in `network`."""
    network = tiny.network()
    settings = TokenSettings().changed(drop_background=drop)
    images, masks = batch_of([120, 20, 70, 189, 63, 64, 90])
    adaptive = AdaptiveTokens(network, settings)
    with torch.no_grad():
        out = adaptive(images, masks)
        for row in range(len(images)):
            (found,) = adaptive.groups(masks[row : row + 1])
            alone = adaptive.networks[str(found.keep)](images[row : row + 1], masks[row : row + 1])
            assert torch.allclose(out.body_pose[row], alone.body_pose[0], atol=1e-5)
            assert torch.allclose(out.features[row], alone.features[0], atol=1e-5)
    assert adaptive.forced_merges(images, masks).tolist() == [0] * 7
    assert network.backbone.reducer is None
    whole = with_token_merging(network, None)(images[3:4], masks[3:4])
    assert torch.allclose(out.features[3], whole.features[0], atol=1e-5)


def test_even_and_odd_places_would_lose_some() -> None:
    """What the buckets are for: 80 person tokens at even places, merged in the order of the grid, are not safe."""
    network = tiny.network()
    images, _ = batch_of([1])
    mask = torch.zeros(1, 192, dtype=torch.bool)
    mask[0, 0:160:2] = True
    adaptive = AdaptiveTokens(network, TokenSettings())
    plain = with_token_merging(network, TokenSettings(keep=90))
    assert int(forced_merges(plain, images, mask.view(1, 16, 12))) > 0
    assert int(adaptive.forced_merges(images, mask.view(1, 16, 12))) == 0


def test_what_cannot_go_with_buckets_is_refused() -> None:
    with pytest.raises(UserError, match="protect"):
        AdaptiveTokens(tiny.network(), TokenSettings(protect=2))
    with pytest.raises(UserError, match="person masks"):
        AdaptiveTokens(tiny.network(), TokenSettings())(torch.zeros(1, 3, 256, 192))


def test_eval_measures_adaptive_tokens_beside_the_others(
    tmp_path: Path, tiny_model: Path, tiny_body_file: Path, tiny_crops: CropSet, tiny_crops_file: Path
) -> None:
    """Kept tokens and MACs are means over the crops, each counted by itself here."""
    common = ["eval", str(tiny_model), "--data", f"crops:{tiny_crops_file}", "--body", str(tiny_body_file)]
    figures = tmp_path / "figures.json"
    done = CliRunner().invoke(app, [*common, "--set", "eval.buckets=[56,70,90]", "--json", str(figures)])
    assert done.exit_code == 0 and "adaptive tokens" in done.output, done.output
    made = json.loads(figures.read_text())
    assert list(made["stages"]) == ["mean_pose", "baseline", "adaptive_tokens"]
    found = made["tokens"]["adaptive"]
    masks = DataMasks().person(tiny_crops, np.arange(12))
    assert masks is not None
    kept = [next(keep for keep in (56, 70, 90, 192) if keep > count) for count in masks.flatten(1).sum(1).tolist()]
    assert found["buckets"] == {str(keep): kept.count(keep) for keep in (56, 70, 90, 192)}
    assert found["mean_kept"] == pytest.approx(np.mean(kept)) and found["forced_person_merges_per_frame"] == 0
    macs = [
        network_cost(tiny.CONFIG, TokenSettings(keep=keep, schedule=None) if keep < 192 else None).macs for keep in kept
    ]
    assert found["mean_macs"] == pytest.approx(np.mean(macs))
    done = CliRunner().invoke(app, [*common, "--set", "eval.buckets=auto", "--masks", "none"])
    assert done.exit_code == 2 and "masks before the network runs" in done.output


def test_bench_times_adaptive_tokens_on_people_of_every_size(tmp_path: Path, tiny_model: Path) -> None:
    figures = tmp_path / "figures.json"
    flags = ["--set", "bench.buckets=auto", "--keep-tokens", "90", "--batch-sizes", "4", "--rounds", "1"]
    flags += ["--json", str(figures)]
    for flag, more in (("--against", ["--against", "starter"]), ("--threads", ["--threads", "1"]),
                       ("--set bench.strides", ["--set", "bench.strides=[2]"])):  # fmt: skip
        done = CliRunner().invoke(app, ["bench", str(tiny_model), *flags, *more])
        assert done.exit_code == 2 and f"{flag}: has no effect on timing adaptive" in done.output, done.output
    done = CliRunner().invoke(app, ["bench", str(tiny_model), "--device", "cpu", *flags])
    assert done.exit_code == 0 and "adaptive tokens" in done.output, done.output
    found = json.loads(figures.read_text())["adaptive"]
    # The sixteen sizes by hand: 8 below 64 tokens, 7 below 90, one above.
    assert found["adaptive"]["buckets"] == {"64": 8, "90": 7, "128": 1, "192": 0}
    assert set(found["batch_sizes"]["4"]["fps"]) == {"plain", "fixed", "adaptive"}
    assert found["macs"]["plain"] > found["macs"]["fixed"]
