"""The search on live networks: plan, figures and block applications of the native one, and what the replay needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_networks import GRID, given, pictures, stranger
from test_search import DEPTH, SETTINGS, TOKENS, deep_network, entries, run
from torch import Tensor, nn

import hmrcompress as hc
from hmrcompress.body.files import starter_body
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import mask_source
from hmrcompress.errors import Notice, UserError
from hmrcompress.live.searching import called, search_key
from hmrcompress.metrics.points import joint_errors
from hmrcompress.metrics.pose import STARTER24, Measure
from hmrcompress.models.network import HMR2
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import DropBackground, TokenSettings
from hmrcompress.searching.search import SearchSettings, search
from hmrcompress.starter.data.dataset import open_split


class Wrapped(nn.Module):
    """Our network as somebody else's: it is called with a dictionary and gives one back."""

    def __init__(self, ours: HMR2) -> None:
        super().__init__()
        self.encoder = ours.backbone
        self.head = ours

    def forward(self, batch: Any) -> dict[str, Any]:
        return {"params": self.head(batch.images).params}


def truth(body: BodyModel) -> Any:
    measure = Measure(body, STARTER24)

    def distance(outputs: Any, teacher: Any, batch: Any) -> Tensor:
        joints = measure.joints(outputs["params"].to(torch.float32))
        return torch.from_numpy(joint_errors(joints, measure.true_joints(batch), STARTER24).numpy().mean(1))

    return distance


@pytest.mark.parametrize(
    ("tokens", "changes"),
    [
        (None, {}),
        (None, {"layers": 4}),
        (TOKENS, {"with_tokens": True}),
        (TokenSettings(attention_bias=True, drop_background=DropBackground()), {"with_tokens": True}),
        (None, {"reject_early": False, "merge_rule": "mean", "cache": False}),
    ],
)
def test_it_is_the_native_search(
    tokens: TokenSettings | None, changes: dict[str, Any], tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path
) -> None:
    network = deep_network()
    masks = mask_source("data") if tokens else None
    native = run(network, tiny_crops, tiny_body, tmp_path / "native", tokens=tokens, masks=masks, **changes)
    batches = list(tiny_crops.batches(tiny_crops.sample(SETTINGS.frames_per_clip), SETTINGS.batch_size, masks))
    live = hc.live.search(
        hc.live.network(Wrapped(network), "encoder.blocks"),
        batches,
        truth(tiny_body),
        journal=tmp_path / "live",
        settings=replace(SETTINGS, tokens=tokens, **changes),
        masks=lambda batch: batch.person_mask,
    )
    assert live.plan.groups == native.plan.groups and len(native.plan.groups) < DEPTH
    assert list(live.candidates) == list(native.candidates)
    assert live.clips == len(batches) and native.clips == len(set(tiny_crops.clip))
    assert (native.plan.search.frames_per_clip, live.plan.search.frames_per_clip) == (SETTINGS.frames_per_clip, None)
    assert replace(live.counts, seconds=0) == replace(native.counts, seconds=0)
    errors = [each.error_mm for each in live.candidates.values()]
    wanted = [each.error_mm for each in native.candidates.values()]
    assert errors == pytest.approx(wanted, rel=1e-5)
    assert [each["groups"] for each in entries(tmp_path / "live")] == [
        each["groups"] for each in entries(tmp_path / "native")
    ]


@pytest.mark.slow
def test_the_starter_network_as_a_stranger(tmp_path: Path) -> None:
    """The shipped network wrapped: plan, groups and count of block applications of `hmrcompress search`."""
    model, body = hc.load("starter"), starter_body()
    crops = open_split("calib", body)
    settings = SearchSettings(frames_per_clip=2, tau_mm=2.0)
    native = search(model.network, model.reference, crops, body=body, journal=tmp_path / "native", settings=settings)
    live = hc.live.search(
        hc.live.network(Wrapped(model.network), "encoder.blocks"),
        list(crops.batches(crops.sample(2), settings.batch_size, None)),
        truth(body),
        journal=tmp_path / "live",
        settings=settings,
    )
    assert json.dumps(live.plan.groups) == json.dumps(native.plan.groups) and 1 < len(native.plan.groups) < 12
    assert list(live.candidates) == list(native.candidates)
    assert replace(live.counts, seconds=0) == replace(native.counts, seconds=0)


def live_search(name: str, journal: Path | None = None, **changes: Any) -> Any:
    model = stranger(name, depth=5)
    batches = [pictures(2, seed)[0] for seed in range(3)]
    network = hc.live.network(model, **given(name), example=lambda: model(batches[0]))
    settings = SearchSettings(tau_mm=changes.pop("tau", 400.0), **changes)
    return hc.live.search(network, batches, map_distance, journal=journal, settings=settings)


def map_distance(outputs: Any, teacher: Any, batch: Any) -> Tensor:
    return 1000 * (outputs[0] - teacher[0]).flatten(1).abs().mean(1)


@pytest.mark.parametrize("name", ["SAM 3D Body, DINOv3", "transformers ViT, old", "DINOv3 called with lists"])
def test_saved_work_changes_nothing(name: str) -> None:
    saved, plain = live_search(name), live_search(name, cache=False, reject_early=False)
    assert saved.plan.groups == plain.plan.groups and 1 < len(plain.plan.groups) < 5
    assert saved.counts.applications < plain.counts.applications == plain.counts.without_either
    for groups, found in saved.candidates.items():
        wanted = plain.candidates[groups].error_mm
        assert found.error_mm == pytest.approx(wanted, rel=1e-9) if found.exact else found.error_mm <= wanted


def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = live_search("WiLoR", tmp_path / "whole")
    lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
    (tmp_path / "part").write_text("".join(lines[:4]) + lines[4][:20])
    rest = live_search("WiLoR", tmp_path / "part")
    assert rest.plan.to_yaml() == whole.plan.to_yaml() and rest.evaluated == whole.evaluated - 3
    assert (tmp_path / "part").read_text() == (tmp_path / "whole").read_text()
    with pytest.warns(Notice, match="merge rule changed since"):
        other = live_search("WiLoR", tmp_path / "part", merge_rule="mean")
    assert other.set_aside is not None and other.evaluated == len(other.candidates) + 1


class Twice(nn.Module):
    """A second pass on a crop that depends on the first, as with hands found by the body's pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = stranger("HMR2, ViTPose", depth=5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = self.inner(images)[0]
        return first, self.inner(images + first.mean((1, 2, 3))[:, None, None, None])[0]


class Middle(nn.Module):
    """Reads a layer in the middle beside the last."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = stranger("HMR2, ViTPose", depth=5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens, taken = self.inner.embed(images), []
        for block in self.inner.list:
            tokens = block(tokens)
            taken.append(tokens)
        return taken[1] + taken[-1], tokens


def both(outputs: Any, teacher: Any, batch: Any) -> Tensor:
    return 1000 * sum((a - b).flatten(1).abs().mean(1) for a, b in zip(outputs, teacher, strict=True))


@pytest.mark.parametrize("kind", [Twice, Middle])
def test_what_cannot_be_replayed_is_computed(kind: type[nn.Module]) -> None:
    model = kind().eval()
    batches = [pictures(2, seed)[0] for seed in range(2)]
    found = []
    for cache in (True, False):
        settings = SearchSettings(tau_mm=900.0, cache=cache)
        if kind is Middle and cache:
            with pytest.warns(Notice, match="reads more of its backbone than the last layer"):
                found.append(hc.live.search(model, batches, both, settings=settings))
        else:
            found.append(hc.live.search(model, batches, both, settings=settings))
    one, other = ({g: e.error_mm for g, e in each.candidates.items()} for each in found)
    assert one.keys() == other.keys() and list(one.values()) == pytest.approx(list(other.values()), rel=1e-9)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_everything_that_an_error_depends_on_is_in_the_key() -> None:
    model, other = (hc.live.network(stranger("WiLoR", seed), grid=GRID, prefix=5) for seed in range(2))
    one, two = ([pictures(1, seed)[0]] for seed in range(2))
    tokens = TokenSettings(keep=14, per_layer=10, read="restored")
    plain, merging = SearchSettings(), SearchSettings(tokens=tokens, with_tokens=True)
    keys = [
        search_key(model, one, map_distance, called, plain, None, None),
        search_key(other, one, map_distance, called, plain, None, None),
        search_key(hc.live.network(model.model, grid=GRID, prefix=4), one, map_distance, called, plain, None, None),
        search_key(model, two, map_distance, called, plain, None, None),
        search_key(model, one, both, called, plain, None, None),
        search_key(model, one, hc.live.vertices(), called, plain, None, None),
        search_key(model, one, hc.live.vertices(root=0), called, plain, None, None),
        search_key(model, one, map_distance, lambda m, b: m(b), plain, None, None),
        search_key(model, one, map_distance, called, plain, None, None, "a file's hash"),
        search_key(model, one, map_distance, called, replace(plain, merge_rule="mean"), None, None),
        search_key(model, one, map_distance, called, replace(plain, cache_dtype=torch.bfloat16), None, None),
        search_key(model, one, map_distance, called, merging, None, None),
        search_key(model, one, map_distance, called, merging, lambda b: pictures(1)[1], None),
        search_key(model, one, map_distance, called, merging, lambda b: ~pictures(1)[1], None),
        search_key(model, one, map_distance, called, merging, lambda b: [~pictures(1)[1], None], None),
        search_key(model, one, map_distance, called, merging, None, SaliencyProbe(torch.zeros(1, 24), 0.0)),
    ]
    assert len({key.sha256 for key in keys}) == len(keys)
    same = search_key(model, one, map_distance, called, replace(plain, tau_mm=3.0), lambda b: pictures(1)[1], None)
    assert same.sha256 == keys[0].sha256


def test_ours_from_vertices_and_joints() -> None:
    points = torch.randn(2, 7, 3)
    moved = points + torch.tensor([1.0, 2, 3])
    batch: Any = None
    distance = hc.live.joints("a.points", root=(0, 1))
    assert distance({"a": {"points": moved}}, distance.kept({"a": {"points": points}}), batch).max() < 1e-3
    off = points.clone()
    off[:, 3, 0] += 0.07
    vertices = hc.live.vertices(lambda outputs: outputs[0])
    assert torch.allclose(vertices((off,), vertices.kept((points,)), batch), torch.tensor([10.0, 10.0]), atol=1e-3)
    with pytest.raises(UserError, match="outputs, a.joints: holds no joints"):
        hc.live.joints("a.joints").kept({"a": {}})


def test_wrong_searches_are_refused() -> None:
    model = stranger("WiLoR").train()
    batches = [pictures()[0]]
    for distance, message in (
        (lambda outputs, teacher, batch: torch.zeros(3), "gave .3,., expected a number for each of 2"),
        (lambda outputs, teacher, batch: torch.tensor([1.0, -1.0]), "gave -1 mm"),
        (lambda outputs, teacher, batch: torch.full((2,), torch.nan), "error is not finite"),
    ):
        with pytest.raises(UserError, match=message):
            hc.live.search(hc.live.network(model, grid=GRID, prefix=5), batches, distance, tau=1.0)
        assert all(module.training for module in model.modules())
        assert all("forward" not in module.__dict__ for module in model.modules())
    with pytest.raises(UserError, match="no batches"):
        hc.live.search(model, [], map_distance, tau=1.0)
    with pytest.raises(UserError, match="holds no tensor"):
        hc.live.search(hc.live.network(model, grid=GRID, prefix=5), [{"name": "x"}], map_distance, tau=1.0)
