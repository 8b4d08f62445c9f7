"""What adaptive token counts come to on data: crops by bucket, mean tokens and MACs, person tokens lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from hmrcompress.evaluation.forced import ForcedMerges, Place, places_of
from hmrcompress.io.together import shared
from hmrcompress.merging.adaptive import AdaptiveTokens
from hmrcompress.merging.describe import network_cost
from hmrcompress.metrics.pose import Outputs, network_outputs
from hmrcompress.records import FrameBatch, HMROutput

ADAPTIVE = "adaptive_tokens"


@dataclass
class AdaptiveTally:
    """Which bucket every frame ran in, and how many person tokens it lost."""

    network: AdaptiveTokens
    buckets: dict[Place, int] = field(default_factory=dict)
    forced: ForcedMerges = field(default_factory=ForcedMerges)

    def count(self, batch: FrameBatch) -> None:
        """Takes a batch's crops into account. Raises UserError where it comes without masks."""
        places = places_of(batch)
        for keep, rows in self.network.groups(batch.person_mask):
            self.buckets |= {places[row]: keep for row in rows.tolist()}

    def join(self) -> None:
        """Takes in what other processes counted."""
        for buckets in shared(lambda: self.buckets):
            self.buckets = self.buckets | buckets
        self.forced.join()

    def to_json(self, wanted: Iterable[Place]) -> dict[str, Any]:
        """{buckets: {kept: frames}, how, mean_kept, mean_macs, mean_macs_with_attention[,
        forced_person_merges_per_frame, forced_counted_on_frames]} of these frames; MACs of one crop on average."""
        wanted = list(wanted)
        frames = Counter(self.buckets[place] for place in wanted if place in self.buckets)
        total = sum(frames.values())
        costs = {keep: network_cost(self.network.config, self.network.settings_of(keep)) for keep in frames}

        def mean(values: dict[int, int]) -> float:
            return sum(values[keep] * count for keep, count in frames.items()) / total

        figures: dict[str, Any] = {
            "buckets": {str(keep): frames[keep] for keep in self.network.buckets},
            "how": "drop_background" if self.network.dropping else "merge",
        }
        if total:
            figures["mean_kept"] = mean({keep: keep for keep in frames})
            figures["mean_macs"] = mean({keep: found.macs for keep, found in costs.items()})
            figures["mean_macs_with_attention"] = mean(
                {keep: found.macs_with_attention for keep, found in costs.items()}
            )
        return figures | self.forced.to_json(wanted)


def adaptive_outputs(network: AdaptiveTokens, tally: AdaptiveTally, *, dtype: torch.dtype = torch.float32) -> Outputs:
    """How the network runs on a batch, counting what it does."""
    outputs = network_outputs(network, dtype=dtype)
    device = next(network.parameters()).device

    def counting(batch: FrameBatch) -> HMROutput:
        tally.count(batch)
        tally.forced.count(batch, network.forced_merges, device=device, dtype=dtype)
        return outputs(batch)

    return counting
