"""What a grouping of layers costs: the MPJPE of the network with these layers merged, on the calibration frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource
from hmrcompress.merging.layers import merge_layers
from hmrcompress.metrics.pose import Protocol, ScoringBody, score
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.models.vit import TokenState
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import autocast
from hmrcompress.searching.eclm import Groups

CACHE_BYTES = 4 << 30
"""Most memory that the cache takes; it also leaves three quarters of what is free."""

Inputs = tuple[Tensor, TokenState | None]


class ErrorProbe:
    """MPJPE in mm of `network` (on its device, in evaluation mode) with groups of layers merged by `merge_rule`.

    Layers below the lowest merged one compute what they always do, so the tokens that enter some of the layers are
    kept in memory (at most `cache_bytes`) and later evaluations start there. The figures are the same, bit for bit.
    """

    def __init__(
        self,
        network: HMR2,
        crops: CropSet,
        indices: np.ndarray,
        *,
        body: ScoringBody,
        protocol: Protocol,
        merge_rule: str,
        masks: MaskSource | None,
        batch_size: int,
        dtype: torch.dtype,
        cache_bytes: int | None = None,
    ) -> None:
        self.network, self.crops, self.indices = network, crops, indices
        self.body, self.protocol, self.merge_rule = body, protocol, merge_rule
        self.masks, self.batch_size, self.dtype = masks, batch_size, dtype
        self.device = next(network.parameters()).device
        bound = _free_bytes() if cache_bytes is None else cache_bytes
        self.cached_layers = cached_layers(network, len(indices), bound)
        self._inputs: dict[tuple[int, int], dict[int, Inputs]] = {}
        self._batches: list[FrameBatch] = []

    def __call__(self, groups: Groups, on_frames: Callable[[int], None] = lambda frames: None) -> float:
        """The error of this grouping; `on_frames(n)` is called after every batch with its number of frames."""
        config = replace(self.network.config, depth=len(groups))
        merged = from_state(config, merge_layers(self.network.state_dict(), groups, self.merge_rule))
        merged.backbone.reducer = self.network.backbone.reducer
        untouched = next((group[0] for group in groups if len(group) > 1), self.network.config.depth)

        def predict(batch: FrameBatch) -> BodyParams:
            layer, (tokens, state) = self._nearest(batch, untouched)
            with torch.no_grad(), autocast(self.device, self.dtype):
                params = _finish(merged, tokens, state, layer)
            on_frames(len(batch.clip))
            return params

        batches = self._batches or self.crops.batches(self.indices, self.batch_size, self.masks)
        kept: list[FrameBatch] = []
        watched = (_without_images(batch, kept) if 0 in self.cached_layers else batch for batch in batches)
        scores = score(predict, watched, body=self.body, protocol=self.protocol, device=self.device, pve=False)
        self._batches = self._batches or kept
        return scores.mpjpe_mm

    def _nearest(self, batch: FrameBatch, layer: int) -> tuple[int, Inputs]:
        """The deepest cached layer not above `layer`, and what enters it; without a cache layer 0."""
        key = (int(batch.clip[0]), int(batch.frame[0]))
        if key not in self._inputs:
            first, inputs = self._run_prefix(batch)
            if not inputs:
                return 0, first
            self._inputs[key] = inputs
        start = max(cached for cached in self.cached_layers if cached <= layer)
        tokens, state = self._inputs[key][start]
        moved = None if state is None else TokenState(*(part.to(self.device) for part in state))
        return start, (tokens.to(self.device), moved)

    def _run_prefix(self, batch: FrameBatch) -> tuple[Inputs, dict[int, Inputs]]:
        """The tokens entering layer 0 of the untouched network, and copies of those entering the cached layers."""
        mask = None if batch.person_mask is None else batch.person_mask.to(self.device)
        backbone, inputs = self.network.backbone, {}
        with torch.no_grad(), autocast(self.device, self.dtype):
            first = tokens, state = backbone.begin(batch.images.to(self.device), mask)
            done = 0
            for layer in self.cached_layers:
                tokens, state = backbone.run_blocks(tokens, done, layer, state)
                done = layer
                inputs[layer] = (tokens.cpu(), None if state is None else TokenState(*(part.cpu() for part in state)))
        return first, inputs


def cached_layers(network: HMR2, frames: int, cache_bytes: int) -> tuple[int, ...]:
    """The layers, 0 among them, whose inputs fit in `cache_bytes` for so many frames; evenly spread, () for none."""
    config = network.config
    each = 4 * frames * config.grid[0] * config.grid[1] * config.dim
    useful = max(config.depth - 1, 0)
    count = min(useful, cache_bytes // max(each, 1))
    return tuple(number * useful // count for number in range(count))


def _finish(network: HMR2, tokens: Tensor, state: TokenState | None, layer: int) -> BodyParams:
    """Layers from `layer` on and the head: tokens (B,M,D) -> the prediction."""
    backbone = network.backbone
    tokens, state = backbone.run_blocks(tokens, layer, state=state)
    bias = None if backbone.reducer is None or state is None else backbone.reducer.attention_bias(state)
    return network.smpl_head(backbone.last_norm(tokens), bias).params


def _without_images(batch: FrameBatch, kept: list[FrameBatch]) -> FrameBatch:
    """The batch as it is now; a copy without its images, which the cache makes unnecessary, goes to `kept`."""
    kept.append(replace(batch, images=batch.images[:0].clone()))
    return batch


def _free_bytes() -> int:
    import psutil

    return min(CACHE_BYTES, psutil.virtual_memory().available // 4)
