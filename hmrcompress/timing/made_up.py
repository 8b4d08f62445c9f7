"""Networks and crops that were made up to be timed and weighed: neither speed nor memory depends on their values."""

from __future__ import annotations

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.models.families.registry import network_class
from hmrcompress.models.network import HMR2, NetworkConfig, build, from_state
from hmrcompress.records import BodyParams, FrameBatch

PERSON_TOKENS = 70
"""Of 192: about what a person covers in crops of the usual scale."""
FILL = 0.01
CONDITION = (0.0, 0.0, 0.5)
"""A box in the middle of the picture, half as high as it is far away in focal lengths."""


def constant_network(config: NetworkConfig, device: torch.device, dtype: torch.dtype) -> HMR2:
    """A network of these sizes in which every weight is the same; made in a moment, and its memory is really there."""
    like = build(config, "meta").state_dict()
    return from_state(
        config, {name: torch.full(tensor.shape, FILL, device=device, dtype=dtype) for name, tensor in like.items()}
    )


def ellipse_mask(grid: tuple[int, int], count: int) -> Tensor:
    """(rows,columns) bool: the `count` tokens nearest the middle, as far apart as if the grid were a unit square."""
    rows, columns = ((torch.arange(side) + 0.5) / side - 0.5 for side in grid)
    distance = (rows[:, None].square() + columns[None].square()).flatten()
    mask = torch.zeros(len(distance), dtype=torch.bool)
    mask[distance.argsort(stable=True)[:count]] = True
    return mask.view(grid)


def made_up_batch(config: NetworkConfig, size: int, dtype: torch.dtype = torch.float32) -> FrameBatch:
    """`size` crops of seeded noise, each with a person of `PERSON_TOKENS` tokens in the middle, and a box in the middle
    of its picture where the family is told of boxes; no ground truth."""
    if size < 1:
        raise UserError(f"got {size}, expected at least 1", "--batch-sizes")
    height, width = (config.patch * side for side in config.grid)
    images = torch.randn(size, 3, height, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = round(PERSON_TOKENS / 192 * config.grid[0] * config.grid[1])
    mask = ellipse_mask(config.grid, tokens).expand(size, -1, -1).contiguous()
    nothing = torch.zeros(size, 0, 3, 3)
    order = torch.arange(size)
    condition = torch.tensor(CONDITION).expand(size, -1) if network_class(config.family).conditioned else None
    return FrameBatch(images, mask, BodyParams(nothing, nothing, torch.zeros(size, 0)), order * 0, order, condition)
