"""Person tokens that a frame loses because too little background is left: counted on every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hmrcompress.io.together import shared
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import autocast

Count = Callable[[Tensor, Tensor | None], Tensor]
"""images (B,3,H,W), person_mask (B,rows,columns) bool or None -> (B,) int64, as `merging.apply.forced_merges`."""
Place = tuple[int, int]
"""Clip and frame."""


@dataclass
class ForcedMerges:
    """`taken`: person tokens that token merging took from each frame that was counted."""

    taken: dict[Place, int] = field(default_factory=dict)

    def count(self, batch: FrameBatch, counted: Count, *, device: torch.device, dtype: torch.dtype) -> None:
        """Counts the frames of a batch, on `device` in the `dtype` that the network computes in. Those that are known
        are not counted again."""
        places = places_of(batch)
        if all(place in self.taken for place in places):
            return
        mask = None if batch.person_mask is None else batch.person_mask.to(device)
        with torch.no_grad(), autocast(device, dtype):
            found = counted(batch.images.to(device), mask)
        self.taken |= dict(zip(places, found.tolist(), strict=True))

    def join(self) -> None:
        """Takes in what other processes counted."""
        for taken in shared(lambda: self.taken):
            self.taken = self.taken | taken

    def to_json(self, wanted: Iterable[Place]) -> dict[str, Any]:
        """{forced_person_merges_per_frame, forced_counted_on_frames} of these frames; empty where none was counted."""
        found = [self.taken[place] for place in wanted if place in self.taken]
        if not found:
            return {}
        return {"forced_person_merges_per_frame": sum(found) / len(found), "forced_counted_on_frames": len(found)}


def places_of(batch: FrameBatch) -> list[Place]:
    """Clip and frame of each crop."""
    return list(zip(batch.clip.tolist(), batch.frame.tolist(), strict=True))
