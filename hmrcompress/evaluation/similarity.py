"""How alike the layers of a network are on data: CKA between the inputs of all blocks and the output of the last, and
how much each block adds to what enters it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import MaskSource
from hmrcompress.errors import UserError
from hmrcompress.metrics.similarity import SMALLEST_BATCH, LayerSimilarity
from hmrcompress.models.network import HMR2
from hmrcompress.runtime import Progress, autocast, no_progress


@torch.no_grad()
def layer_similarity(
    network: HMR2,
    crops: CropSet,
    *,
    frames: int = 256,
    batch_size: int = 32,
    masks: MaskSource | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Progress = no_progress,
) -> np.ndarray:
    """CKA (L+1,L+1) of `network` (evaluation mode) on at most `frames` crops, evenly spread over the data.

    Row 0 is the input of block 0, row i the output of block i-1. Frames that do not fill a last batch of four are left
    out. Raises UserError for fewer than four crops a batch.
    """
    chosen = evenly(crops.stretches(), frames)
    if min(len(chosen), batch_size) < SMALLEST_BATCH:
        raise UserError(
            f"got {len(chosen)} crops in batches of {batch_size}, expected at least {SMALLEST_BATCH}", "cka"
        )
    device = next(network.parameters()).device
    similarity, done = LayerSimilarity(), 0
    for batch in crops.batches(chosen, batch_size, masks, truth=False):
        if len(batch.images) >= SMALLEST_BATCH:
            mask = None if batch.person_mask is None else batch.person_mask.to(device)
            with autocast(device, dtype):
                similarity.add(list(network.backbone.layer_inputs(batch.images.to(device), mask)))
        done += len(batch.images)
        progress("layer similarity", done, len(chosen))
    return similarity.matrix().numpy()


@torch.no_grad()
def residual_shares(network: HMR2, crops: CropSet, *, frames: int = 64, batch_size: int = 32) -> np.ndarray:
    """How much each block changes its tokens: the mean over the tokens of at most `frames` crops, evenly spread over
    the data, of |block(x) - x| / |x| (L,) float64. Where one is far below the others, its layer has little to lose."""
    chosen, device = evenly(crops.stretches(), frames), next(network.parameters()).device
    total = np.zeros(network.config.depth)
    tokens = 0
    for batch in crops.batches(chosen, batch_size, None, truth=False):
        inputs = list(network.backbone.layer_inputs(batch.images.to(device)))
        for layer, (before, after) in enumerate(pairwise(inputs)):
            shares = (after - before).double().norm(dim=-1) / before.double().norm(dim=-1)
            total[layer] += float(shares.sum())
        tokens += inputs[0].shape[0] * inputs[0].shape[1]
    return total / tokens
