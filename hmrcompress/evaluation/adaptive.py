"""What adaptive token counts come to on data: crops by bucket, mean tokens and MACs, person tokens lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from hmrcompress.merging.adaptive import AdaptiveTokens
from hmrcompress.merging.describe import network_cost
from hmrcompress.metrics.pose import Outputs, network_outputs
from hmrcompress.records import FrameBatch, HMROutput

ADAPTIVE = "adaptive_tokens"
FORCED_EVERY = 8
"""Forced merges are counted on every so many batches: counting runs the merging layers once more."""


@dataclass
class AdaptiveTally:
    """How many crops ran in each bucket, and how many person tokens were lost where that was counted."""

    network: AdaptiveTokens
    frames: Counter[int] = field(default_factory=Counter)
    batches: int = 0
    counted: int = 0
    forced: int = 0

    def count(self, person_mask: torch.Tensor | None) -> None:
        """Takes a batch's crops into account. person_mask (B,rows,columns) bool. Raises UserError without masks."""
        for keep, rows in self.network.groups(person_mask):
            self.frames[keep] += len(rows)

    def to_json(self) -> dict[str, Any]:
        """{buckets: {kept: frames}, how, mean_kept, mean_macs, mean_macs_with_attention[,
        forced_person_merges_per_frame, forced_counted_on_frames]}; MACs of one crop, averaged over the crops seen."""
        total = sum(self.frames.values())
        costs = {keep: network_cost(self.network.config, self.network.settings_of(keep)) for keep in self.frames}

        def mean(values: dict[int, int]) -> float:
            return sum(values[keep] * count for keep, count in self.frames.items()) / total

        figures: dict[str, Any] = {
            "buckets": {str(keep): self.frames[keep] for keep in self.network.buckets},
            "how": "drop_background" if self.network.dropping else "merge",
        }
        if total:
            figures["mean_kept"] = mean({keep: keep for keep in self.frames})
            figures["mean_macs"] = mean({keep: found.macs for keep, found in costs.items()})
            figures["mean_macs_with_attention"] = mean(
                {keep: found.macs_with_attention for keep, found in costs.items()}
            )
        if self.counted:
            figures["forced_person_merges_per_frame"] = self.forced / self.counted
            figures["forced_counted_on_frames"] = self.counted
        return figures


def adaptive_outputs(network: AdaptiveTokens, tally: AdaptiveTally, *, dtype: torch.dtype = torch.float32) -> Outputs:
    """How the network runs on a batch, counting what it does."""
    outputs = network_outputs(network, dtype=dtype)
    device = next(network.parameters()).device

    def counting(batch: FrameBatch) -> HMROutput:
        tally.count(batch.person_mask)
        tally.batches += 1
        if tally.batches % FORCED_EVERY == 1 and batch.person_mask is not None:
            with torch.no_grad():
                lost = network.forced_merges(batch.images.to(device), batch.person_mask.to(device))
            tally.forced += int(lost.sum())
            tally.counted += len(lost)
        return outputs(batch)

    return counting
