"""The search on a tiny random network: what an evaluation is, the plan, the journal, and what SIGKILL leaves."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data import provenance
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import mask_source
from hmrcompress.errors import UserError
from hmrcompress.metrics.pose import STARTER24, mpjpe
from hmrcompress.models.network import HMR2, build
from hmrcompress.plan import CheckpointRef, TokenSettings
from hmrcompress.searching.eclm import Groups, grouping
from hmrcompress.searching.error import CandidateError, Measured
from hmrcompress.searching.journal import Journal
from hmrcompress.searching.search import SearchResult, SearchSettings, search

DEPTH = 7
TOKENS = TokenSettings(keep=150, per_layer=20, size_weighted=True, attention_bias=True, metric="keys")
SETTINGS = SearchSettings(tau_mm=0.02, frames_per_clip=3, batch_size=4)


@pytest.fixture(scope="module")
def network() -> HMR2:
    return deep_network()


def deep_network(depth: int = DEPTH) -> HMR2:
    """Seven layers; weights larger than random ones usually are, so that each layer matters to the result."""
    made = build(replace(tiny.CONFIG, depth=depth), seed=1).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if parameter.ndim == 2 or "decpose" in name:
            parameter.mul_(6)
    return made


def reference(depth: int = DEPTH) -> CheckpointRef:
    return CheckpointRef(family="hmr2", sha256="a" * 64, layers=depth)


def run(network: HMR2, crops: CropSet, body: BodyModel, journal: Path, **changes: Any) -> SearchResult:
    masks = changes.pop("masks", None)
    progress = changes.pop("progress", lambda what, done, total: None)
    settings = replace(SETTINGS, **changes)
    return search(
        network,
        reference(network.config.depth),
        crops,
        body=body,
        journal=journal,
        masks=masks,
        settings=settings,
        progress=progress,
    )


def probe_of(network: HMR2, crops: CropSet, body: BodyModel, **changes: Any) -> CandidateError:
    options: dict[str, Any] = {"merge_rule": "eq4", "masks": None, "batch_size": 4, "cache_bytes": 0} | changes
    frames = crops.sample(3)
    return CandidateError(network, crops, frames, body=body, protocol=STARTER24, dtype=torch.float32, **options)


def entries(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()][1:]


def test_an_evaluation_is_the_error_of_the_merged_network(
    network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel
) -> None:
    """By equation 4 layers 2 and 3 become layer 3, and 4..6 become 5 + 6 - 4; all of it done here by hand."""
    by_hand = build(replace(tiny.CONFIG, depth=4), seed=9).eval().requires_grad_(False)
    own = network.state_dict()
    state = {name: value for name, value in own.items() if "blocks." not in name}
    for name in own:
        if name.startswith("backbone.blocks.0."):
            rest = name.removeprefix("backbone.blocks.0.")
            layers = [own[f"backbone.blocks.{layer}.{rest}"] for layer in range(DEPTH)]
            for place, value in enumerate((layers[0], layers[1], layers[3], layers[5] + layers[6] - layers[4])):
                state[f"backbone.blocks.{place}.{rest}"] = value
    by_hand.load_state_dict(state)
    (batch,) = tiny_crops.batches(tiny_crops.sample(3), batch_size=12)
    expected = mpjpe(tiny_body.joints(by_hand(batch.images).params), tiny_body.joints(batch.params)).mean().item()
    untouched = mpjpe(tiny_body.joints(network(batch.images).params), tiny_body.joints(batch.params)).mean().item()
    probe = probe_of(network, tiny_crops, tiny_body)
    assert probe(((0,), (1,), (2, 3), (4, 5, 6))).error_mm == pytest.approx(expected, rel=1e-5)
    assert probe(grouping(DEPTH, [])).error_mm == pytest.approx(untouched, rel=1e-5)
    assert abs(expected - untouched) > 1


def test_networks_too_shallow_for_the_tokens_are_not_measured(
    network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path
) -> None:
    """192 tokens become 40 in four layers, so that fewer are no plan, however large the errors may be."""
    tokens, journal = TokenSettings(keep=40), tmp_path / "plan.journal"
    options: dict[str, Any] = {"tokens": tokens, "tau_mm": 1e6, "frames_per_clip": 1}
    plan = run(network, tiny_crops, tiny_body, journal, **options).plan
    assert plan.groups is not None and len(plan.groups) == min(len(e["groups"]) for e in entries(journal)) == 4
    with pytest.raises(UserError, match="search.layers: got 3, but 40 tokens need 4 layers"):
        run(network, tiny_crops, tiny_body, tmp_path / "other", **options, layers=3)


def test_the_plan_and_the_journal(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path) -> None:
    journal = tmp_path / "plan.journal"
    told: list[tuple[int, int]] = []
    result = run(
        network, tiny_crops, tiny_body, journal, progress=lambda what, done, total: told.append((done, total)),
        tokens=TOKENS, seed=5,
    )  # fmt: skip
    assert result.evaluated == DEPTH and len(entries(journal)) == DEPTH
    # What ran in the layers, and as much as a layer for head and body on every frame.
    spent = result.counts.applications + result.counts.frames
    assert told[-1] == (spent, spent) and [done for done, _ in told] == sorted(done for done, _ in told)
    plan, record = result.plan, result.plan.search
    assert record is not None and plan.tokens == TOKENS and plan.merge_rule == "eq4"
    assert (record.evaluations, record.frames, record.seed, record.tau_mm) == (DEPTH - 1, 6, 5, 0.02)
    assert record.data.model_dump() == {
        "name": "tiny", "split": "test", "sha256": tiny_crops.sha256, "source": None,
        "frames": provenance.record(tiny_crops, tiny_crops.sample(3))["frames"],
    }  # fmt: skip
    assert record.base_mpjpe_mm == entries(journal)[0]["error_mm"]
    by_groups = {json.dumps(entry["groups"]): entry["error_mm"] for entry in entries(journal)}
    assert record.final_mpjpe_mm == by_groups[json.dumps(plan.groups)]
    assert 1 < len(plan.groups) < DEPTH  # this network, at this tau, is worth a search
    plan.write(tmp_path / "plan.yaml")
    assert type(plan).read(tmp_path / "plan.yaml") == plan
    figures = result.to_json()
    assert figures["layers"] == {"before": DEPTH, "after": len(plan.groups)}
    assert figures["stages"]["merged"] == {
        "mpjpe_mm": record.final_mpjpe_mm, "n_frames": 6, "n_clips": 2, "protocol": "starter24",
    }  # fmt: skip
    assert len(figures["search"]["steps"]) == DEPTH - 1


@pytest.fixture(scope="module")
def whole(
    network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SearchResult, bytes]:
    """A search that nothing stopped, and its journal."""
    journal = tmp_path_factory.mktemp("whole") / "journal"
    return run(network, tiny_crops, tiny_body, journal), journal.read_bytes()


@pytest.mark.parametrize("lines", [1, 2, 4, DEPTH, DEPTH + 1])
@pytest.mark.parametrize("torn", [b"", b'{"groups": [[0], [1', b"\x00" * 40])
def test_resuming_repeats_nothing_and_gives_the_same_bytes(
    network: HMR2,
    tiny_crops: CropSet,
    tiny_body: BodyModel,
    whole: tuple[SearchResult, bytes],
    tmp_path: Path,
    lines: int,
    torn: bytes,
) -> None:
    (tmp_path / "part").write_bytes(b"".join(whole[1].splitlines(keepends=True)[:lines]) + torn)
    resumed = run(network, tiny_crops, tiny_body, tmp_path / "part")
    assert resumed.evaluated == DEPTH + 1 - lines and resumed.set_aside is None
    assert resumed.plan.to_yaml() == whole[0].plan.to_yaml()
    assert (tmp_path / "part").read_bytes() == whole[1]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny, torch, test_search
from hmrcompress.body.files import load_body
from hmrcompress.data.crops import CropSet
torch.set_num_threads(1)

journal, told = Path({journal!r}), set()

def kill(what, done, total):
    written = len(test_search.entries(journal)) if journal.exists() else 0
    if written >= {at} and what not in told:
        os.kill(os.getpid(), signal.SIGKILL)
    told.add(what)

result = test_search.run(
    test_search.deep_network(), CropSet.open(Path({crops!r})), load_body({body!r}), journal, progress=kill
)
result.plan.write({plan!r})
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_of_an_evaluation(
    network: HMR2,
    tiny_crops_file: Path,
    tiny_body_file: Path,
    tiny_crops: CropSet,
    tiny_body: BodyModel,
    tmp_path: Path,
) -> None:
    """Killed in the fourth evaluation (after its first batch), then in the sixth, then left alone."""
    paths = {"tests": str(Path(__file__).parent), "crops": str(tiny_crops_file), "body": str(tiny_body_file)}
    outs = {"journal": str(tmp_path / "journal"), "plan": str(tmp_path / "plan.yaml")}
    seen = []
    for at in (3, 5, 10**9):
        code = KILLED.format(**paths, **outs, at=at)
        ended = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert ended.returncode == (-signal.SIGKILL if at < 10**9 else 0), ended.stderr
        assert (tmp_path / "plan.yaml").exists() == (at == 10**9)
        seen.append([json.dumps(entry["groups"]) for entry in entries(tmp_path / "journal")])
    assert [len(asked) for asked in seen] == [3, 5, DEPTH]
    assert len(set(seen[-1])) == DEPTH
    undisturbed = run(network, tiny_crops, tiny_body, tmp_path / "other")
    assert re.fullmatch(re.escape(undisturbed.plan.to_yaml()) + "sha256: .*\n", (tmp_path / "plan.yaml").read_text())
    assert (tmp_path / "journal").read_bytes() == (tmp_path / "other").read_bytes()


def test_another_tau_shares_the_journal(
    network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    run(network, tiny_crops, tiny_body, journal, tau_mm=1e6)
    again = run(network, tiny_crops, tiny_body, journal, tau_mm=-1e6)
    assert again.set_aside is None and again.evaluated < DEPTH - 1
    assert len({json.dumps(entry["groups"]) for entry in entries(journal)}) == len(entries(journal))
    fresh = run(network, tiny_crops, tiny_body, tmp_path / "fresh", tau_mm=-1e6)
    more = run(network, tiny_crops, tiny_body, tmp_path / "fresh", tau_mm=1e6)  # bounds that reject are not enough now
    exact = run(network, tiny_crops, tiny_body, tmp_path / "exact", tau_mm=1e6)
    assert fresh.counts.frames < fresh.counts.all_frames and more.plan == exact.plan


@pytest.mark.parametrize("changes", [{"merge_rule": "mean"}, {"frames_per_clip": 2}, {"batch_size": 3}, {"limit": 4}])
def test_a_journal_for_other_settings_is_set_aside(
    network: HMR2,
    tiny_crops: CropSet,
    tiny_body: BodyModel,
    whole: tuple[SearchResult, bytes],
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    journal = tmp_path / "journal"
    journal.write_bytes(whole[1])
    result = run(network, tiny_crops, tiny_body, journal, **changes)
    assert result.set_aside == tmp_path / "journal.1" and result.evaluated == DEPTH
    assert result.set_aside.read_bytes() == whole[1]


def test_journals_that_are_none(tmp_path: Path) -> None:
    one, two, three = grouping(3, []), grouping(3, [(1, 2)]), grouping(3, [(0, 1)])
    journal = Journal(tmp_path / "journal", {"a": 1})
    journal.add(one, Measured(5.25), [5.0, 5.5]), journal.add(two, Measured(math.inf))
    journal.add(three, Measured(5.75, exact=False))
    again = Journal(tmp_path / "journal", {"a": 1})
    failed = again.get(two)
    assert again.get(one) == (5.25, True) and again.get(three) == (5.75, False) and len(again) == 3
    assert failed is not None and math.isnan(failed.error_mm) and again.frames_mm == [5.0, 5.5]
    assert again.get(grouping(3, [(0, 2)])) is None
    text = (tmp_path / "journal").read_bytes()
    (tmp_path / "damaged").write_bytes(text.replace(b"[1, 2]", b"[1, 2"))
    with pytest.raises(UserError, match="damaged: line 3 is damaged"):
        Journal(tmp_path / "damaged", {"a": 1})
    for content in (b"dear diary", b"{}\n", b"dear\ndiary\n", b"[1]\n"):
        (tmp_path / "diary").write_bytes(content)
        with pytest.raises(UserError):
            Journal(tmp_path / "diary", {"a": 1})
        assert (tmp_path / "diary").read_bytes() == content
    (tmp_path / "torn").write_bytes(text[:20])  # killed while the first line was written
    assert len(Journal(tmp_path / "torn", {"a": 1})) == 0 and not (tmp_path / "torn").exists()


def test_searching_with_tokens(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path) -> None:
    masks = mask_source("data")
    plain = run(network, tiny_crops, tiny_body, tmp_path / "plain", tokens=TOKENS)
    tokens = run(network, tiny_crops, tiny_body, tmp_path / "tokens", tokens=TOKENS, with_tokens=True, masks=masks)
    assert plain.trace.base_mm != tokens.trace.base_mm
    with pytest.raises(UserError, match="--keep-tokens"):
        run(network, tiny_crops, tiny_body, tmp_path / "never", with_tokens=True)
    bare = CropSet({k: v for k, v in tiny.crop_arrays().items() if k != "masks"}, tiny.crop_meta())
    with pytest.raises(UserError, match="--masks none"):
        run(network, bare, tiny_body, tmp_path / "never", tokens=TOKENS, with_tokens=True, masks=masks)
    assert not (tmp_path / "never").exists()


def test_faults_leave_nothing_behind(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["smpl_head.decshape.bias"][0] = torch.nan
    broken = deep_network()
    broken.load_state_dict(state)
    other_body = CropSet(tiny.crop_arrays(), tiny.crop_meta() | {"body": {"faces_sha256": "0" * 64}})
    with pytest.raises(UserError, match="NaN"):
        run(broken, tiny_crops, tiny_body, tmp_path / "journal")
    with pytest.raises(UserError, match="ground truth"):
        run(network, other_body, tiny_body, tmp_path / "journal")
    for changes in ({"method": "magic"}, {"merge_rule": "magic"}, {"tau_mm": math.nan}, {"limit": 0}):
        with pytest.raises(UserError):
            run(network, tiny_crops, tiny_body, tmp_path / "journal", **changes)
    assert list(tmp_path.iterdir()) == []


def test_nothing_given_is_changed(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = np.array(tiny_crops.arrays["images"])
    run(network, tiny_crops, tiny_body, tmp_path / "journal", tokens=TOKENS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.backbone.reducer is None and not network.training
    np.testing.assert_array_equal(tiny_crops.arrays["images"], images)


def test_groups_are_what_the_probe_is_asked(network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    frames: list[int] = []
    groups: Groups = grouping(DEPTH, [(3, 4)])
    probe_of(network, tiny_crops, tiny_body)(groups, on_frames=frames.append)
    assert frames == [4, 2]
