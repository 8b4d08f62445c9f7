"""Numbers that float16 has no room for are found before a file is written."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import HMRCompressError
from hmrcompress.exporting.onnx import export_onnx
from hmrcompress.exporting.overflow import LARGEST, LOGITS, PRODUCTS, SQUARES, largest_numbers, require_room
from hmrcompress.records import FrameBatch


@pytest.fixture(scope="module")
def batch(tiny_crops: CropSet) -> FrameBatch:
    return next(iter(tiny_crops.batches(batch_size=6, masks=DataMasks())))


def test_the_largest_numbers_are_found(batch: FrameBatch) -> None:
    """Those of the first layer by hand, with weights so large there that no other layer has larger ones."""
    network = tiny.network(config=tiny.SHALLOW)
    attention, norm = network.backbone.blocks[0].attn, network.backbone.blocks[0].norm1
    attention.qkv.weight.data.mul_(1e3)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        norm.register_forward_pre_hook(lambda _, given: seen.update(x=given[0])),
        attention.qkv.register_forward_hook(lambda _, __, out: seen.update(qkv=out)),
    ]
    found = largest_numbers(network, batch)
    for hook in hooks:
        hook.remove()
    query, key, _ = seen["qkv"].double().unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    logits = torch.einsum("bmhd,bnhd->bhmn", query, key)
    assert found[LOGITS] == pytest.approx(logits.abs().max().item(), rel=1e-4)
    assert found[PRODUCTS] == pytest.approx(seen["qkv"].abs().max().item())
    assert found[SQUARES] >= seen["x"].square().mean(-1).max().item() * (1 - 1e-5)
    with torch.no_grad():
        assert torch.isfinite(network(batch.images).features).all()


def test_what_has_no_room_is_not_written(batch: FrameBatch, tiny_body: BodyModel, tmp_path: Path) -> None:
    network = tiny.network(config=tiny.SHALLOW)
    told = require_room(network, batch)
    assert told["limit"] == LARGEST == 65504.0 and all(0 < each < 65504 for each in told["largest"].values())
    for scale, what in ((1e3, LOGITS), (1e9, PRODUCTS)):
        hot = copy.deepcopy(network)
        attention = hot.backbone.blocks[1].attn
        (attention.qkv if what == LOGITS else attention.proj).weight.data.mul_(scale)
        with pytest.raises(HMRCompressError, match=f"float16: {what} reach .* export in float32"):
            export_onnx(hot, tmp_path / "a.onnx", batch, tiny_body, dtype=torch.float16)
    network.backbone.blocks[0].attn.qkv.weight.data[0, 0] = float("nan")
    with pytest.raises(HMRCompressError, match="reach"):
        require_room(network, batch)
    assert list(tmp_path.iterdir()) == []
