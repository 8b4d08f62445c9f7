"""What saves work in a search and must change nothing: the cache, in memory and on the disk, and early rejection."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_search import DEPTH, TOKENS, deep_network, entries, probe_of, run

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import mask_source
from hmrcompress.errors import UserError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.layers import merge_layers
from hmrcompress.metrics.pose import network_predict, score
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.models.vit import Attention
from hmrcompress.plan import TokenSettings
from hmrcompress.searching.cache import LayerCache, evenly_spread
from hmrcompress.searching.eclm import grouping
from hmrcompress.searching.error import Measured, below
from hmrcompress.searching.settings import as_cache_dtype

LAYER_BYTES = 4 * 6 * 192 * 32


@pytest.fixture(scope="module")
def network() -> HMR2:
    return deep_network()


class Applications:
    """Counts the frames that go through the attention of any block."""

    def __init__(self) -> None:
        self.frames = 0

    def forward(self, attention: Attention, tokens: torch.Tensor, *more: Any) -> Any:
        self.frames += len(tokens)
        return self.real(attention, tokens, *more)

    real = staticmethod(Attention.forward)


@pytest.fixture
def applications(monkeypatch: pytest.MonkeyPatch) -> Iterator[Applications]:
    counter = Applications()
    monkeypatch.setattr(Attention, "forward", lambda *arguments: counter.forward(*arguments))
    yield counter


@pytest.mark.parametrize("tokens", [None, TOKENS])
def test_the_cache_changes_no_bit(
    network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path, tokens: TokenSettings | None
) -> None:
    given = with_token_merging(network, tokens)
    masks = mask_source("data") if tokens else None
    groupings = [grouping(DEPTH, []), grouping(DEPTH, [(5, 6)]), grouping(DEPTH, [(2, 4)]), grouping(DEPTH, [(0, 6)])]
    plain = probe_of(given, tiny_crops, tiny_body, masks=masks)
    expected = [plain(groups) for groups in groupings]
    assert plain.cache.layers == ()
    for kept, spill in [(1, None), (3, None), (6, None), (0, tmp_path), (2, tmp_path)]:
        probe = probe_of(given, tiny_crops, tiny_body, masks=masks, cache_bytes=kept * LAYER_BYTES, spill=spill)
        assert len(probe.cache.layers) == (DEPTH - 1 if spill else kept)
        assert [probe(groups) for groups in groupings] == expected
        assert [probe(groups) for groups in reversed(groupings)] == expected[::-1]
    assert list(tmp_path.iterdir()) == []  # what is on the disk has no name
    assert not tokens or expected != [probe_of(network, tiny_crops, tiny_body)(groups) for groups in groupings]


def test_the_error_is_that_of_the_accumulator(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    probe = probe_of(network, tiny_crops, tiny_body)
    scores = score(network_predict(network), tiny_crops.batches(tiny_crops.sample(3), 4), body=tiny_body)
    assert probe(grouping(DEPTH, [])).error_mm == scores.mpjpe_mm
    assert probe.base is not None
    np.testing.assert_array_equal(probe.base, scores.per_frame)


def test_counted_applications_are_the_real_ones_and_the_fewest(
    network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path, applications: Applications
) -> None:
    """Prefix caching saves the layers below the lowest merged one, which only the untouched network has to compute."""
    cached = run(network, tiny_crops, tiny_body, tmp_path / "cached", reject_early=False)
    assert applications.frames == cached.counts.applications
    asked = [entry["groups"] for entry in entries(tmp_path / "cached")]
    fewest = sum(len(groups) - next((g[0] for g in groups if len(g) > 1), 0) for groups in asked)
    assert cached.counts.applications == 6 * fewest
    assert cached.counts.without_cache == cached.counts.without_either == 6 * sum(map(len, asked))
    for name, changes in {"none": {"cache": False}, "disk": {"cache_gb": 0.0}, "some": {"cache_gb": 0.0005}}.items():
        applications.frames = 0
        other = run(network, tiny_crops, tiny_body, tmp_path / name, reject_early=False, **changes)
        assert applications.frames == other.counts.applications and other.plan == cached.plan
        assert (tmp_path / name).read_bytes() == (tmp_path / "cached").read_bytes()
        full = cached.counts.without_cache if name == "none" else cached.counts.applications
        assert other.counts.applications == full


@pytest.mark.parametrize("target", ["truth", pytest.param("teacher", marks=pytest.mark.slow)])
def test_no_saving_changes_the_plan(
    network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path, target: str
) -> None:
    plans = []
    for cache, early in itertools.product([True, False], repeat=2):
        result = run(
            network, tiny_crops, tiny_body, tmp_path / f"{cache} {early}", target=target, batch_size=1,
            cache=cache, reject_early=early, tau_mm=0.02 if target == "truth" else 80.0,
        )  # fmt: skip
        plans.append(result.plan.to_yaml())
        assert (result.counts.frames < result.counts.all_frames) == early
        assert any(step["at_least"] for step in result.to_json()["search"]["candidates"]) == early
    assert len(set(plans)) == 1
    killed = (tmp_path / "True True").read_bytes().splitlines(keepends=True)[:6]
    (tmp_path / "resumed").write_bytes(b"".join(killed))
    resumed = run(
        network, tiny_crops, tiny_body, tmp_path / "resumed", target=target, batch_size=1,
        tau_mm=0.02 if target == "truth" else 80.0,
    )  # fmt: skip
    assert resumed.plan.to_yaml() == plans[0]
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "True True").read_bytes()


def test_rejection_comes_as_soon_as_it_is_certain(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    probe = probe_of(network, tiny_crops, tiny_body, batch_size=1)
    probe(grouping(DEPTH, []))
    groups, by_frame = grouping(DEPTH, [(1, 5)]), []
    for index in tiny_crops.sample(3):  # one frame after the other, each by a probe of its own
        alone = CropSet({name: values[[index]] for name, values in tiny_crops.arrays.items()}, tiny_crops.meta)
        by_frame.append(probe_of(network, alone, tiny_body, batch_size=1)(groups).error_mm)
    assert probe.base is not None
    sums = np.cumsum(np.array(by_frame)[np.argsort(-probe.base, kind="stable")]) / 6
    for needed in range(1, 6):
        ran: list[int] = []
        bound = (sums[needed - 1] + (sums[needed - 2] if needed > 1 else 0)) / 2
        found = probe(groups, below(bound), ran.append)
        assert sum(ran) == needed and not found.exact
        assert bound < found.error_mm <= sums[needed - 1] == pytest.approx(found.error_mm, rel=1e-6)
    whole = probe(groups)
    assert whole == Measured(pytest.approx(sums[-1], rel=1e-6))
    assert probe(groups, below(np.nextafter(whole.error_mm, np.inf))) == whole  # what passes is never rejected early
    assert probe(groups, below(whole.error_mm)).error_mm == whole.error_mm  # and the bound itself is no sooner


def test_the_teacher_needs_no_truth(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path) -> None:
    arrays = {name: values for name, values in tiny.crop_arrays().items() if name not in ("poses", "betas")}
    bare = CropSet(arrays, tiny.crop_meta() | {"sha256": tiny_crops.sha256})
    with pytest.raises(UserError, match="without ground truth.*--set search.target=teacher"):
        run(network, bare, tiny_body, tmp_path / "never")
    given, without = (
        run(network, crops, tiny_body, tmp_path / name, target="teacher", tau_mm=80.0)
        for crops, name in ((tiny_crops, "given"), (bare, "without"))
    )
    assert given.plan == without.plan
    record = without.plan.search
    assert record is not None and record.target == "teacher" and record.base_mpjpe_mm == 0
    assert 0 < record.final_mpjpe_mm < 80 and len(without.plan.groups) < DEPTH and without.to_json()["stages"] == {}


def test_the_distance_to_the_teacher(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    groups = grouping(DEPTH, [(3, 5)])
    merged = from_state(replace(network.config, depth=len(groups)), merge_layers(network.state_dict(), groups))
    (batch,) = tiny_crops.batches(tiny_crops.sample(3), 12)
    ours, theirs = (tiny_body(each(batch.images).params) for each in (merged, network))
    moved = [each.vertices.double() - each.joints[:, :1].double() for each in (ours, theirs)]
    expected = 1000 * (moved[0] - moved[1]).norm(dim=-1).mean()
    probe = probe_of(network, tiny_crops, tiny_body, target="teacher")
    assert probe(groups).error_mm == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("early", "tau_mm", "since"),
    [(False, -1000.0, 0.0), (True, -1000.0, 0.6), (False, 1000.0, 0.9)],
    ids=["full evaluations", "rejected early", "all merged"],
)
def test_the_time_left_is_told(
    tiny_crops: CropSet,
    tiny_body: BodyModel,
    tmp_path: Path,
    applications: Applications,
    early: bool,
    tau_mm: float,
    since: float,
) -> None:
    """By a clock that advances with every frame in a layer, and as much with every frame in the head: what is left by
    the speed so far is right within a fifth of all; from the start where evaluations run to the end and nothing is
    merged, else late."""
    network, told, frames = deep_network(16), [], 0
    head = type(network.smpl_head).forward

    def counting(module: Any, tokens: torch.Tensor, *more: Any) -> Any:
        nonlocal frames
        frames += len(tokens)
        return head(module, tokens, *more)

    def note(what: str, done: int, total: int) -> None:
        told.append((applications.frames + frames, done, total))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(network.smpl_head), "forward", counting)
        run(network, tiny_crops, tiny_body, tmp_path / "j", progress=note, reject_early=early, tau_mm=tau_mm,
            batch_size=1)  # fmt: skip
    end = told[-1][0]
    assert told[-1][1] == told[-1][2]
    off = [abs((total - done) * now / done - (end - now)) for now, done, total in told if now > since * end]
    assert max(off) < 0.2 * end
    evaluations = [abs((len(told) - number) / number * now - (end - now)) for number, (now, _, _) in enumerate(told, 1)]
    assert since or max(evaluations) > 0.2 * end  # which counting evaluations would not be


def test_a_trial_shares_the_networks_weights(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    """Only the layer that a merge makes is new; all else is the network's own memory, not a copy."""
    probe = probe_of(network, tiny_crops, tiny_body)
    given = {tensor.data_ptr() for tensor in network.state_dict().values()}
    for windows, rule, made in (([(2, 4)], "eq4", {2}), ([(2, 4)], "keep_last", set()), ([], "eq4", set())):
        probe.merge_rule = rule
        trial = probe._merged(grouping(DEPTH, windows)).state_dict()
        own = {name for name, tensor in trial.items() if tensor.data_ptr() not in given}
        assert {int(name.split(".")[2]) for name in own} == made
    with torch.no_grad():
        network.state_dict()["backbone.pos_embed"].add_(1)
        assert torch.equal(trial["backbone.pos_embed"], network.backbone.pos_embed)
        network.state_dict()["backbone.pos_embed"].sub_(1)


def test_a_cache_in_bfloat16(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path) -> None:
    """The same bits whatever is kept, near those of float32; twice the layers in the same memory; a journal apart."""
    groupings = [grouping(DEPTH, []), grouping(DEPTH, [(5, 6)]), grouping(DEPTH, [(2, 4)]), grouping(DEPTH, [(0, 6)])]
    exact = [probe_of(network, tiny_crops, tiny_body)(groups).error_mm for groups in groupings]
    half, found = torch.bfloat16, []
    for kept, spill in [(0, None), (2, None), (3, None), (0, tmp_path)]:
        probe = probe_of(
            network, tiny_crops, tiny_body, cache_bytes=kept * LAYER_BYTES, spill=spill, cache_dtype=half
        )  # fmt: skip
        assert len(probe.cache.layers) == (DEPTH - 1 if spill else 2 * kept)
        found += [[probe(groups) for groups in order] for order in (groupings, groupings[::-1])]
        found[-1].reverse()
    assert all(each == found[0] for each in found)
    rounded = [measured.error_mm for measured in found[0]]
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
    run(network, tiny_crops, tiny_body, tmp_path / "j")
    assert run(network, tiny_crops, tiny_body, tmp_path / "j", cache_dtype=half).set_aside is not None
    with pytest.raises(UserError, match="search.cache_dtype: got torch.float16"):
        run(network, tiny_crops, tiny_body, tmp_path / "j", cache_dtype=torch.float16)
    with pytest.raises(UserError, match="expected one of float32, bfloat16"):
        as_cache_dtype("int8")


def test_layers_kept_are_spread_evenly(tmp_path: Path) -> None:
    assert evenly_spread(range(6), 0) == () and evenly_spread(range(6), 3) == (0, 2, 4)
    assert LayerCache(range(6), 100, 399, None).layers == (0, 2, 4)
    assert LayerCache(range(6), 100, 10**6, tmp_path).layers == tuple(range(6))
    assert LayerCache(range(3), 1 << 60, 0, tmp_path).layers == ()  # no disk is that large


@pytest.mark.parametrize("memory", [0, 10**6])
def test_what_is_kept_comes_back(memory: int, tmp_path: Path) -> None:
    """From the disk and from memory, where it is a copy and lies in one piece with the rest."""
    cache = LayerCache(range(2), 4 * 2 * 3 * 5, memory, tmp_path / "new")
    for dtype in (torch.bfloat16, torch.float32):
        batch = 0 if dtype == torch.bfloat16 else 1
        tokens = torch.randn(1, 3, 5).to(dtype)
        cache.put(batch, 1, tokens, None)
        back, state = cache.get(batch, 1, torch.device("cpu"))
        assert back.dtype == dtype and torch.equal(back, tokens) and state is None
        before = tokens.clone()
        tokens += 1
        again, _ = cache.get(batch, 1, torch.device("cpu"))
        assert torch.equal(again, before)
    assert cache.nearest(0, 0) is None and cache.nearest(0, 5) == 1
    if memory:
        pieces = [kept for kept, _, _ in cache._memory.values()]
        assert len({piece.untyped_storage().data_ptr() for piece in pieces}) == 1
    else:
        assert list((tmp_path / "new").iterdir()) == []
