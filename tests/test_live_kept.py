"""Live networks kept and brought back, healed, and timed; plans written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from live_networks import DEPTH, GRID, pictures, stranger
from test_live_search import map_distance
from test_live_structures import SETTINGS, compress, plan
from torch import Tensor

import hmrcompress as hc
from hmrcompress.errors import UserError
from hmrcompress.plan import TokenSettings

NAME = "SAM 3D Body, DINOv3"
GROUPS = ((0,), (1, 2), (3,))
TOKENS = TokenSettings(keep=14, per_layer=10, attention_bias="cross")


@torch.no_grad()
def test_saved_and_restored(tmp_path: Path) -> None:
    """Plan and changed weights only, by hashes; a fresh model of theirs then gives the same bits."""
    images, mask = pictures()
    model = stranger(NAME)
    before = model(images)
    hc.live.save(model, plan(TOKENS, GROUPS), tmp_path / "fast", network=hc.live.network(model, grid=GRID))
    assert torch.equal(model(images)[0], before[0])
    compress(model, NAME, plan(TOKENS, GROUPS))
    with pytest.raises(UserError, match="compressed by another plan"):
        hc.live.save(model, plan(TOKENS), tmp_path / "fast")
    with hc.person_mask(model, mask):
        wanted = model(images)
    whole = sum(tensor.numel() for tensor in stranger(NAME).list[0].state_dict().values()) * 8
    assert (tmp_path / "fast" / "weights.safetensors").stat().st_size == pytest.approx(whole, rel=0.1)

    fresh = stranger(NAME)
    assert hc.live.restore(fresh, tmp_path / "fast") is fresh
    with hc.person_mask(fresh, mask):
        assert all(torch.equal(a, b) for a, b in zip(fresh(images), wanted, strict=True))
    assert torch.equal(hc.unapply(fresh)(images)[0], before[0])

    with pytest.raises(UserError, match="was made from other blocks"):
        hc.live.restore(stranger(NAME, seed=1), tmp_path / "fast")
    weights = tmp_path / "fast" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="weights.safetensors: is missing or was changed"):
        hc.live.restore(fresh, tmp_path / "fast")
    with pytest.raises(UserError, match="holds no live.json"):
        hc.live.restore(fresh, tmp_path)
    assert torch.equal(fresh(images)[0], before[0])


@torch.no_grad()
def test_plans_written_by_hand_need_no_hash(tmp_path: Path) -> None:
    path, images = tmp_path / "plan.yaml", pictures()[0]
    path.write_text(
        "groups: [[0], [1, 2], [3]]\nmerge_rule: mean\ntokens: {keep: 14, per_layer: 10, attention_bias: cross}\n"
    )
    one, other, third = (stranger(NAME) for _ in range(3))
    hc.apply(one, path, grid=GRID)
    hc.live.apply(other, {"tokens": {"keep": 14, "per_layer": 10, "attention_bias": "cross"}}, grid=GRID)
    compress(third, NAME, plan(TOKENS, GROUPS))
    assert torch.equal(one(images)[0], third(images)[0]) and not torch.equal(other(images)[0], third(images)[0])
    found = hc.live.network(stranger(NAME, seed=1))
    made = hc.live.plan_for({"groups": GROUPS}, found)
    with pytest.raises(UserError, match="checkpoint.sha256: the plan was made for"):
        hc.live.apply(stranger(NAME), made)
    named = made.to_dict()
    named["checkpoint"]["family"] = "live:Wrapper"  # the same weights in another class have the same hash
    with pytest.raises(UserError, match="checkpoint.sha256: the plan was made for"):
        hc.live.apply(stranger(NAME), named)
    hc.live.apply(stranger(NAME, seed=1), named)
    hc.live.apply(stranger(NAME), made, force=True)
    with pytest.raises(UserError, match="does not say how many rows and columns"):
        hc.live.apply(stranger(NAME), {"tokens": {"keep": 14, "attention_bias": "cross"}})
    with pytest.raises(UserError, match="groups: got 2 layers, expected the 4"):
        hc.live.apply(stranger(NAME), {"groups": [[0], [1]]})


def healed(seed: int = 0, steps: int = 40, **changes: Any) -> tuple[Any, Any, Any]:
    model = stranger("WiLoR").float()
    network = hc.live.network(model, grid=GRID, prefix=5)
    hc.live.apply(model, plan(TOKENS, GROUPS, "mean"), network=network)
    batches = [pictures(2, number)[0].float() for number in range(4)]
    mask = pictures()[1]
    result = hc.live.heal(
        model, batches, steps=steps, rate=3e-3, rank=4, reach=0, seed=seed, masks=lambda batch: mask,
        distance=map_distance, **changes,
    )  # fmt: skip
    return model, result, batches


def test_healing_comes_nearer_to_the_untouched_network(tmp_path: Path) -> None:
    model, result, batches = healed()
    assert result.after["tokens"] < 0.9 * result.before["tokens"] and result.finished
    assert result.after["to_teacher_mm"] < result.before["to_teacher_mm"]
    assert result.layers == (0, 1) and result.trained > 0
    keys = set(stranger("WiLoR").state_dict())
    assert set(model.state_dict()) < keys  # folded in: no key is new
    again = healed()[0]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with torch.no_grad(), hc.person_mask(model, pictures()[1]):
        wanted = model(batches[0])
    hc.live.save(model, None, tmp_path / "healed")
    hc.unapply(model)
    untouched = stranger("WiLoR").float()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), untouched.state_dict().values(), strict=True)
    )
    hc.live.restore(model, tmp_path / "healed")
    with torch.no_grad(), hc.person_mask(model, pictures()[1]):
        assert all(torch.equal(a, b) for a, b in zip(model(batches[0]), wanted, strict=True))


def test_healing_leaves_layers_alone_that_a_rule_kept() -> None:
    """By `keep_last` the block of a group is an original, which healing must not touch."""
    model, images = stranger("WiLoR").float(), pictures()[0].float()
    with torch.no_grad():
        before = model(images)
    network = hc.live.network(model, grid=GRID, prefix=5)
    hc.live.apply(model, {"groups": GROUPS, "merge_rule": "keep_last"}, network=network)
    result = hc.live.heal(model, [images], steps=5, rank=2, rate=1e-2)
    assert result.layers == (0, 1, 3) and result.after["tokens"] < result.before["tokens"]
    hc.unapply(model)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(images), before, strict=True))


def test_healing_is_refused_where_it_cannot_be() -> None:
    batches = [pictures()[0]]
    with pytest.raises(UserError, match="not compressed"):
        hc.live.heal(stranger("WiLoR"), batches, steps=1)
    with pytest.raises(UserError, match="neither steps nor minutes"):
        hc.live.heal(stranger("WiLoR"), batches)
    with pytest.raises(UserError, match="computes no gradients"):
        healed(steps=1, run=torch.no_grad()(lambda model, batch: model(batch)))


def test_timed_by_turns() -> None:
    model = stranger(NAME)
    mask, order = pictures()[1], []

    def run(which: Any, batch: Tensor) -> Any:
        order.append(len([m for m in which.list if list(m.parameters())]))
        return which(batch)

    network = hc.live.network(model, grid=GRID)
    found = hc.live.bench(network, plan(TOKENS, GROUPS), pictures()[0], run=run, masks=lambda b: mask, rounds=3)
    figures = found.to_json()
    assert list(figures["contenders"]) == ["original", "layers", "tokens", "compressed"] and figures["frames"] == 2
    assert order == [4, 3, 4, 3] * 4
    contenders = figures["contenders"]
    assert contenders["original"]["macs_ratio"] == contenders["original"]["speedup"] == 1
    assert contenders["layers"]["macs_ratio"] == pytest.approx(4 / 3)
    # 35 tokens; 25 after the attention of layer 0, 19 after that of layer 1. A token takes 4 d^2 + 2 M d, then 6 d^2.
    d = 24
    block = lambda into, out: into * (4 * d * d + 2 * into * d) + out * 6 * d * d  # noqa: E731
    merged = block(35, 25) + block(25, 19) + 2 * block(19, 19)
    assert contenders["tokens"]["macs"] == merged and contenders["original"]["macs"] == 4 * block(35, 35)
    assert "forward" not in model.list[0].__dict__ and len(model.list) == DEPTH
    assert json.loads(json.dumps(figures)) == figures and SETTINGS
