"""The patches of the rule `lstsq` for one candidate after the other, on crops whose original tokens are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource
from hmrcompress.merging.fit import Patches, embedded, fit_batches, fit_patches, plain
from hmrcompress.models.network import HMR2
from hmrcompress.searching.cache import LayerCache, PrefixTokens, layer_bytes
from hmrcompress.searching.eclm import Groups


class CandidateFitter:
    """Gives the patches of any grouping: the same as `merging.fit.fit_plan` on the same frames.

    The original network's tokens are computed once per layer and kept (memory and folder as of `LayerCache`).
    """

    def __init__(
        self,
        network: HMR2,
        crops: CropSet,
        indices: np.ndarray,
        masks: MaskSource | None,
        *,
        dtype: torch.dtype,
        cache_bytes: int,
        spill: Path | None,
        cache_dtype: torch.dtype = torch.float32,
    ) -> None:
        """UserError where the data have no usable masks."""
        self.network, self.dtype = plain(network), dtype
        self.batches = fit_batches(crops, indices, masks)
        frames, depth = sum(len(batch.indices) for batch in self.batches), network.config.depth
        size = layer_bytes(network, frames, cache_dtype)
        cache = LayerCache(range(depth + 1), size, cache_bytes, spill, cache_dtype)
        self._prefix = PrefixTokens(
            self.network,
            lambda number: (embedded(self.network, crops, self.batches[number].indices), None),
            cache,
            dtype=dtype,
        )
        self._frames = frames
        self._merged_applications = 0

    def __call__(self, groups: Groups) -> Patches:
        """By the first layer of each group of several layers."""
        several = [group for group in groups if len(group) > 1]
        if several:
            kept = [group for group in groups if several[0][0] <= group[0] <= several[-1][0]]
            self._merged_applications += len(kept) * self._frames
        return fit_patches(self.network, groups, self.batches, self, dtype=self.dtype)

    def at(self, batch: int, layer: int) -> Tensor:
        """See `merging.fit.OriginalTokens`."""
        return self._prefix.at(batch, layer)[0]

    @property
    def applications(self) -> int:
        """Layers times frames computed for the fits, original and patched."""
        return self._prefix.applications + self._merged_applications
