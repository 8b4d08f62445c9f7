"""From shards to training batches: a moving pool of crops, mirrored and recoloured at random."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmrcompress.body.joints import MIRROR
from hmrcompress.records import IMAGENET_MEAN, IMAGENET_STD
from hmrcompress.starter.network.losses import Targets, joint_spots

Shard = dict[str, NDArray]


class Pool:
    """The last `window` shards of a run. Batches are drawn by (seed, step): a resumed run sees what it would have seen.

    load(index) gives a shard.
    """

    def __init__(self, load: Callable[[int], Shard], window: int, seed: int) -> None:
        self.load, self.window, self.seed = load, window, seed
        self.shards: dict[int, Shard] = {}

    def draw(self, step: int, count: int, rank: int, newest: int) -> tuple[Shard, np.random.Generator]:
        """`count` crops for one process of one step (arrays as in `shards.make_shard`), and the generator in use.
        newest: the last shard that the step may reach."""
        wanted = range(max(0, newest - self.window + 1), newest + 1)
        self.shards = {index: self.shards.get(index) or self.load(index) for index in wanted}
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, step, rank]))
        which = rng.integers(len(wanted), size=count)
        pools = [self.shards[index] for index in wanted]
        rows = [(pools[k], int(rng.integers(len(pools[k]["betas"])))) for k in which]
        return {name: np.stack([pool[name][row] for pool, row in rows]) for name in pools[0]}, rng


def mirror(crops: Shard, flip: NDArray[np.bool_]) -> Shard:
    """Mirror the crops where flip (N,) is set: pixels, tokens, joints and rotations alike."""
    order = np.asarray(MIRROR)
    sign = np.array([-1.0, 1.0, 1.0], np.float32)
    rows = np.flatnonzero(flip)
    chosen = {name: values[rows] for name, values in crops.items()}
    mirrored = {
        "images": chosen["images"][:, :, ::-1],
        "parts": chosen["parts"][:, :, ::-1][..., order],
        "points": chosen["points"][:, :, ::-1] * sign.astype(np.float16),
        "keypoints": chosen["keypoints"][:, order] * sign[:2],
        "joints": chosen["joints"][:, order] * sign,
        "rotations": chosen["rotations"][:, order] * (sign[:, None] * sign),
        "betas": chosen["betas"],
    }
    out = {name: values.copy() for name, values in crops.items()}
    for name, values in mirrored.items():
        out[name][rows] = values
    return out


def recolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A gain and an offset a channel and image, in place. images (N,3,H,W) in 0..1 -> the same, clipped."""
    count = len(images)
    gain = torch.from_numpy((1 + 0.12 * rng.normal(size=(count, 3, 1, 1))).astype(np.float32))
    offset = torch.from_numpy((0.04 * rng.normal(size=(count, 3, 1, 1))).astype(np.float32))
    return images.mul_(gain).add_(offset).clamp_(0, 1)


def to_tensors(crops: Shard, rng: np.random.Generator | None) -> tuple[Tensor, Targets]:
    """A batch for the network: images (N,3,H,W) ImageNet-normalised and their targets. With rng, augmented."""
    if rng is not None:
        crops = mirror(crops, rng.random(len(crops["betas"])) < 0.5)
    pixels = torch.from_numpy(np.ascontiguousarray(crops["images"])).permute(0, 3, 1, 2)
    images = pixels.float().div_(255).contiguous()
    if rng is not None:
        images = recolour(images, rng)
    images.sub_(torch.tensor(IMAGENET_MEAN)[:, None, None]).div_(torch.tensor(IMAGENET_STD)[:, None, None])
    grid = crops["parts"].shape[1:3]
    parts = torch.from_numpy(np.ascontiguousarray(crops["parts"])).float().flatten(1, 2) / 255
    keypoints = torch.from_numpy(np.ascontiguousarray(crops["keypoints"]))
    targets = Targets(
        parts=torch.cat([parts, (1 - parts.sum(-1, keepdim=True)).clamp(min=0)], dim=-1),
        points=torch.from_numpy(crops["points"].astype(np.float32)).flatten(1, 2),
        spots=joint_spots(keypoints, (int(grid[0]), int(grid[1]))),
        rotations=torch.from_numpy(np.ascontiguousarray(crops["rotations"])),
        betas=torch.from_numpy(crops["betas"]),
        joints=torch.from_numpy(np.ascontiguousarray(crops["joints"])),
        keypoints=keypoints,
    )
    return images, targets
