"""Which token each patch became: counted, and followed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import UserError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.background import kept_places
from hmrcompress.merging.owners import patch_owners
from hmrcompress.plan import DropBackground, TokenSettings
from hmrcompress.records import FrameBatch
from hmrcompress.report.seen import with_tokens


@pytest.fixture(scope="module")
def batch(tiny_crops: CropSet) -> FrameBatch:
    return next(iter(tiny_crops.batches(batch_size=4, masks=DataMasks())))


@torch.no_grad()
def test_merged_patches_are_those_whose_tokens_were_averaged(batch: FrameBatch) -> None:
    """Where blocks do nothing, a token is the mean of what entered in its patches, weighted by sizes."""
    network = tiny.network()
    for block in network.backbone.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    merged = with_token_merging(network, TokenSettings(schedule=(40, 62), protect=5, size_weighted=True))
    owners = patch_owners(merged, batch)
    tokens, state = merged.backbone.begin(batch.images, batch.person_mask)
    entered = tokens.clone()
    tokens, state = merged.backbone.run_blocks(tokens, 0, state=state)
    assert state is not None and owners.shape == (4, 192) and tokens.shape[1] == 90
    for row in range(4):
        counts = np.bincount(owners[row].numpy(), minlength=90)
        assert (counts == state.sizes[row].numpy()).all() and counts.max() > 1
        for token in range(90):
            mean = entered[row, owners[row] == token].double().mean(0)
            assert (mean - tokens[row, token]).abs().max() < 1e-5


def test_dropped_patches_have_no_token(batch: FrameBatch) -> None:
    settings = TokenSettings(keep=90, drop_background=DropBackground(), attention_bias=True)
    owners = patch_owners(with_token_merging(tiny.network(), settings), batch)
    assert batch.person_mask is not None
    places = kept_places(batch.person_mask, 90, ring=1, coarse=settings.drop_background.coarse)  # type: ignore[union-attr]
    for row in range(4):
        kept = np.flatnonzero(owners[row].numpy() >= 0)
        assert kept.tolist() == sorted(places[row].tolist()) and sorted(owners[row][kept].tolist()) == list(range(90))


def test_a_network_without_merging_is_refused(batch: FrameBatch) -> None:
    with pytest.raises(UserError, match="merges no tokens"):
        patch_owners(tiny.network(), batch)


def test_the_picture_of_tokens() -> None:
    """Two patches in one token share a colour, a third is alone, a fourth is dark; lines part them."""
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :2], picture[:, 2:4], picture[:, 4:6], picture[:, 6:] = 100, 200, 60, 80
    drawn = with_tokens(picture, np.array([0, 0, 1, -1]), 1, 4)
    assert (drawn[:, :4] == 150).all() and (drawn[:, 5] == 60).all() and (drawn[:, 7] == 20).all()
    assert (drawn[:, [4, 6]] == 255).all()
