"""Fitting the patches of the rule `lstsq` on calibration crops, group by group from the bottom upwards.

Each group is fitted on the inputs that the network already patched below really produces, towards the tokens that the
original network has behind the group's last layer. So what a lower patch got wrong is among what the next one is to
make up for; inputs from the original network would be inputs that the merged network never sees. Token merging is off:
the tokens of both networks have to correspond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import DataMasks, MaskSource, coverage_grid
from hmrcompress.errors import UserError
from hmrcompress.merging.layers import patched
from hmrcompress.merging.lstsq import NormalEquations, Patch, fit
from hmrcompress.models.network import HMR2, share
from hmrcompress.models.vit import Block
from hmrcompress.runtime import Progress, autocast, no_progress

FIT_FRAMES = 256
"""Crops that a patch is fitted on, at most: 49152 tokens, of which ViT-H has 5121 unknowns for each channel."""
FIT_BATCH = 32
DEFAULT_FRAMES_PER_CLIP = 80
"""What the frames to fit on are chosen from, where no search says."""
BACKGROUND_WEIGHT = 0.1
"""What a token without any person in it weighs; one that is all person weighs 1."""
LEFT_OUT = 4
"""Every fourth clip only chooses the ridge."""
Patches = dict[int, Patch]
"""By the first layer of the group."""


@dataclass(frozen=True)
class FitBatch:
    """Crops to fit on: indices (n,) of frames; weights (n,M) of their tokens; left_out (n,) bool, of their clips."""

    indices: np.ndarray
    weights: Tensor
    left_out: Tensor


class OriginalTokens(Protocol):
    """The tokens of the original network."""

    def at(self, batch: int, layer: int) -> Tensor:
        """(n,M,D) entering `layer` for a batch by its number; the number of layers itself for what the last puts out"""


class StreamedTokens:
    """The original network's tokens, computed as they are asked for; going back to a lower layer starts over."""

    def __init__(self, network: HMR2, crops: CropSet, batches: Sequence[FitBatch]) -> None:
        self.network, self.crops, self.batches = plain(network), crops, batches
        self.device = next(network.parameters()).device
        self._reached: dict[int, tuple[int, Tensor]] = {}

    def at(self, batch: int, layer: int) -> Tensor:
        """See `OriginalTokens`."""
        reached, tokens = self._reached.get(batch, (layer + 1, torch.empty(0)))
        with torch.no_grad():
            if reached > layer:
                reached, tokens = 0, embedded(self.network, self.crops, self.batches[batch].indices)
            tokens, _ = self.network.backbone.run_blocks(tokens, reached, layer)
        self._reached[batch] = (layer, tokens)
        return tokens


def plain(network: HMR2) -> HMR2:
    """Another network over the same weights without token merging, in evaluation mode."""
    other = share(network).eval()
    other.backbone.reducer = None
    return other


def embedded(network: HMR2, crops: CropSet, indices: np.ndarray) -> Tensor:
    """The tokens (n,M,D) of these frames before the first layer."""
    (batch,) = crops.batches(indices, len(indices), truth=False)
    return network.backbone.begin(batch.images.to(next(network.parameters()).device))[0]


def fit_batches(crops: CropSet, indices: np.ndarray, masks: MaskSource | None) -> list[FitBatch]:
    """At most 256 of the frames, evenly, with the weights of their tokens: 0.1 + 0.9 times the person's share.

    Sources that know only whole tokens give shares of 0 and 1; without masks all tokens weigh the same. UserError
    where the source has no usable masks.
    """
    chosen = evenly(indices, FIT_FRAMES)
    if masks is not None:
        masks.check(crops, chosen)
    clips = np.unique(crops.clip[chosen])
    apart = clips[1::LEFT_OUT]
    made = []
    for start in range(0, len(chosen), FIT_BATCH):
        part = chosen[start : start + FIT_BATCH]
        share_of_person = _coverage(crops, part, masks)
        weights = BACKGROUND_WEIGHT + (1 - BACKGROUND_WEIGHT) * share_of_person.flatten(1)
        made.append(FitBatch(part, weights, torch.from_numpy(np.isin(crops.clip[part], apart))))
    return made


def _coverage(crops: CropSet, indices: np.ndarray, masks: MaskSource | None) -> Tensor:
    """(n,*grid) float in 0..1; ones without masks."""
    if isinstance(masks, DataMasks):
        pixels = crops.pixel_masks(indices)
        assert pixels is not None  # checked when the batches were made
        return coverage_grid(torch.from_numpy(pixels), crops.size)
    person = None if masks is None else masks.person(crops, indices)
    return torch.ones(len(indices), 1, 1) if person is None else person.float()


@torch.no_grad()
def fit_patches(
    network: HMR2,
    groups: Sequence[Sequence[int]],
    batches: Sequence[FitBatch],
    originals: OriginalTokens,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress = no_progress,
) -> Patches:
    """The patches of all groups of several layers. `network`, original and in evaluation mode, is left as it is.

    Tokens are computed in `dtype`, sums in float64. One group costs one pass over the batches.
    """
    several = [group for group in groups if len(group) > 1]
    patches: Patches = {}
    if not several:
        return patches
    device = next(network.parameters()).device
    lowest, highest = several[0][0], several[-1][0]
    with autocast(device, dtype):
        tokens = [originals.at(number, lowest) for number in range(len(batches))]
        for group in groups:
            if not lowest <= group[0] <= highest:
                continue
            block = cast(Block, network.backbone.blocks[group[0]])
            if len(group) == 1:
                tokens = [block(each) for each in tokens]
                continue
            tokens = [block.attend(each)[0] for each in tokens]
            patches[group[0]] = patch = _fit_group(block, group, tokens, batches, originals)
            progress("fitting patches", len(patches), len(several))
            if group[0] < highest:
                tokens = [_feed(block, patch, each) for each in tokens]
    return patches


def _fit_group(
    block: Block, group: Sequence[int], attended: list[Tensor], batches: Sequence[FitBatch], originals: OriginalTokens
) -> Patch:
    """attended: tokens behind the attention of the group's first layer, by batch."""
    sizes = block.mlp.fc1.out_features, block.mlp.fc2.out_features
    fitted, left_out = (NormalEquations(*sizes, attended[0].device) for _ in range(2))
    for number, (tokens, batch) in enumerate(zip(attended, batches, strict=True)):
        hidden = F.gelu(block.mlp.fc1(block.norm2(tokens)))
        missing = originals.at(number, group[-1] + 1) - (tokens + block.mlp.fc2(hidden))
        weights = batch.weights.to(tokens.device).expand(tokens.shape[:2])
        for equations, rows in ((fitted, ~batch.left_out), (left_out, batch.left_out)):
            rows = rows.to(tokens.device)
            equations.add(hidden[rows].flatten(0, 1), missing[rows].flatten(0, 1), weights[rows].flatten())
    return fit(fitted, left_out)


def _feed(block: Block, patch: Patch, tokens: Tensor) -> Tensor:
    """The MLP half of a patched layer: (n,M,D) -> (n,M,D)."""
    hidden = F.gelu(block.mlp.fc1(block.norm2(tokens)))
    second = block.mlp.fc2
    return tokens + F.linear(hidden, patched(second.weight, patch.weight), patched(second.bias, patch.bias))


def fitted_and_measured(crops: CropSet, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frames (indices) that patches are fitted on, and those that a search measures their error on: clips by turns.

    An error on the frames of the fit says little about others: on the starter world patches that cost 1 mm there cost
    18 mm elsewhere. Where there is one clip only, both are all of it.
    """
    clips = np.unique(crops.clip[indices])
    if len(clips) < 2:
        return indices, indices
    fitted = np.isin(crops.clip[indices], clips[::2])
    return indices[fitted], indices[~fitted]


def fit_plan(
    network: HMR2,
    groups: Sequence[Sequence[int]],
    crops: CropSet,
    masks: MaskSource | None,
    *,
    frames_per_clip: int = DEFAULT_FRAMES_PER_CLIP,
    frames: int | None = None,
    progress: Progress = no_progress,
) -> Patches:
    """The patches of a plan's groups from the frames that its search fitted on: the same call, the same bits.

    `frames_per_clip` and `frames` are those of the search (see `fitted_and_measured`). UserError where `crops` are
    fewer than one frame.
    """
    indices = crops.sample(frames_per_clip)
    if frames is not None:
        indices = evenly(indices, frames)
    if not len(indices):
        raise UserError("there are no frames to fit on", crops.name)
    batches = fit_batches(crops, fitted_and_measured(crops, indices)[0], masks)
    original = plain(network)
    return fit_patches(original, groups, batches, StreamedTokens(original, crops, batches), progress=progress)
