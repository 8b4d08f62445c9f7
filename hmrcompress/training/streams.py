"""Where training crops come from: batches that are told by the number of the step alone, so that runs can go on."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.crops import CropSet, normalise
from hmrcompress.data.masks import MaskSource, masks_sha256
from hmrcompress.data.provenance import record
from hmrcompress.io.hashes import sha256_json
from hmrcompress.records import IMAGENET_STD

GAIN, OFFSET = 0.12, 0.04
"""Deviations of the random gain (relative) and offset (of a range of 0..1) of each colour channel."""


class Crops(NamedTuple):
    """A batch without labels: images (B,3,H,W) ImageNet-normalised, person_mask (B,*grid) bool or None, condition
    (B,3) float32 or None (`data.conditions`)."""

    images: Tensor
    person_mask: Tensor | None
    condition: Tensor | None = None


class Stream(Protocol):
    """An endless source of training crops. `name` is that of the data, `identity` all that the crops depend on."""

    name: str
    identity: dict[str, Any]
    seen: dict[str, str] | None
    """Which frames of which data it draws from (`data.provenance`); None for crops that are made for it alone."""

    def batch(self, step: int) -> Crops:
        """The crops of a step, on the CPU: the same at every call, in every run."""


class CropStream:
    """Crops drawn from a data set, mirrored and recoloured at random. UserError where masks are missing."""

    def __init__(
        self, crops: CropSet, indices: np.ndarray, masks: MaskSource, *, batch_size: int, seed: int = 0
    ) -> None:
        masks.check(crops, indices)
        self.crops, self.indices, self.masks = crops, np.asarray(indices), masks
        self.batch_size, self.seed = batch_size, seed
        self.name = f"{crops.name}:{crops.split}" if crops.split else crops.name
        self.identity: dict[str, Any] = {
            "data": crops.contents_sha256(self.indices),
            "frames": sha256_json(self.indices.tolist()),
            "masks": masks_sha256(masks, crops, self.indices),
            "batch_size": batch_size,
            "seed": seed,
        }
        self.seen: dict[str, str] | None = record(crops, self.indices)

    def batch(self, step: int) -> Crops:
        """`batch_size` crops, drawn by (seed, step)."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, step]))
        rows = self.indices[rng.integers(len(self.indices), size=self.batch_size)]
        images = normalise(self.crops.arrays["images"][rows])
        drawn = Crops(images, self.masks.person(self.crops, rows), self.crops.condition(rows))
        return augmented(drawn, rng)


def augmented(crops: Crops, rng: np.random.Generator) -> Crops:
    """Mirrors half of the crops with their masks and boxes, and changes gain and offset of every channel."""
    count = len(crops.images)
    flip = torch.from_numpy(rng.random(count) < 0.5)
    gain, offset = (
        torch.from_numpy(rng.normal(scale=scale, size=(count, 3, 1, 1)).astype(np.float32)) for scale in (GAIN, OFFSET)
    )
    images = torch.where(flip[:, None, None, None], crops.images.flip(-1), crops.images)
    images = images * (1 + gain) + offset / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    mask = crops.person_mask
    if mask is not None:
        mask = torch.where(flip[:, None, None], mask.flip(-1), mask)
    condition = crops.condition
    if condition is not None:
        mirrored = condition * torch.tensor([-1.0, 1.0, 1.0])
        condition = torch.where(flip[:, None], mirrored, condition)
    return Crops(images, mask, condition)


def held_out(crops: CropSet, share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """(indices to train on, indices held out): of several clips the last ones, at least one, else the clip's last part.

    Neighbouring frames look alike, so whole clips are held out where there is more than one. A single frame is both.
    """
    clips = crops.clip_ids
    order = crops.stretches()
    if len(clips) > 1:
        kept = clips[: -max(1, round(share * len(clips)))]
        inside = np.isin(crops.clip[order], kept)
        return order[inside], order[~inside]
    cut = max(1, len(order) - max(1, round(share * len(order))))
    return order[:cut], order[cut:] if cut < len(order) else order
