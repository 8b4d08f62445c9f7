"""Dropping background straight after the patch embedding, instead of merging it. Pure tensors; knows no model.

Every crop keeps the same number of tokens. Who stays is decided by a fixed order: tokens of the person; then a coarse
grid over the whole crop, so that every region is seen; then rings around the person, the nearest first; then the rest.
Within each of these classes tokens follow a spread-out order (that of ordered dithering, which is unique, so there are
no ties): where a class is cut, what stays of it is spread evenly rather than missing at one end.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spread_order(rows: int, columns: int, coarse: int = 0, device: torch.device | None = None) -> Tensor:
    """Rank of each token of a grid, row by row, in the order of a Bayer matrix: any first n are spread evenly.

    The matrix is shifted so that a grid of spacing `coarse` (a power of two) around the middle comes first. (rows *
    columns,) int64, computed on `device`: a CUDA graph cannot hold numbers that come from the host.
    """
    bits = max(rows - 1, columns - 1, 1).bit_length()
    shift, side = coarse // 2, 1 << bits
    down = ((torch.arange(rows, device=device) - shift) % side)[:, None]
    across = ((torch.arange(columns, device=device) - shift) % side)[None]
    value = torch.zeros(rows, columns, dtype=torch.int64, device=device)
    for bit in range(bits):
        i, j = down // (1 << bit) % 2, across // (1 << bit) % 2
        value = 4 * value + 2 * ((i + j) % 2) + i
    value = value.flatten()
    return (value[None] < value[:, None]).sum(1)


def kept_places(person: Tensor, keep: int, *, ring: int = 1, coarse: int = 4) -> Tensor:
    """The tokens that stay: person (B,rows,columns) bool -> (B,keep) int64 places in the grid, rising.

    A ring of width `ring` is everything within so many rows and columns of a person token; the coarse grid holds the
    tokens whose row and column are `coarse // 2` modulo `coarse` (0: no grid). 1 <= keep <= rows * columns.
    """
    rows, columns = person.shape[1:]
    device = person.device
    turn = torch.full((rows, columns), ring + 2, dtype=torch.int64, device=device).expand_as(person)
    near = person.float()[:, None]
    for width in range(ring, 0, -1):
        reached = torch.nn.functional.max_pool2d(near, 2 * width + 1, stride=1, padding=width)[:, 0] > 0
        turn = torch.where(reached, width + 1, turn)
    if coarse:
        on_row = torch.arange(rows, device=device) % coarse == coarse // 2
        on_column = torch.arange(columns, device=device) % coarse == coarse // 2
        turn = torch.where(on_row[:, None] & on_column, 1, turn)
    turn = torch.where(person, 0, turn).flatten(1)
    rank = spread_order(rows, columns, coarse, device)
    # Whole numbers far below 2**24, so that single precision holds them exactly.
    urgency = (turn * (rows * columns) + rank).float()
    chosen = torch.topk(urgency, keep, dim=1, largest=False).indices
    return chosen.sort(dim=1).values


def nearest_kept(person: Tensor, places: Tensor) -> Tensor:
    """Which kept token stands for each patch: person (B,rows,columns) bool, places (B,K) of `kept_places` -> (B,M).

    It is the nearest of its own kind (person or background) where there is one, else the nearest; of equally near ones
    the lowest place. int64 values 0 … K-1; a kept token stands for itself.
    """
    rows, columns = person.shape[1:]
    count = places.shape[1]
    place = torch.arange(rows * columns, device=person.device)
    kind = person.flatten(1)
    down = place[:, None] // columns - places[:, None] // columns
    across = place[:, None] % columns - places[:, None] % columns
    other_kind = kind[:, :, None] ^ kind.gather(1, places)[:, None]
    distance = down * down + across * across + other_kind.to(torch.int64) * (rows * rows + columns * columns)
    return (distance * count + torch.arange(count, device=person.device)).amin(-1) % count


def patches_of(owner: Tensor, count: int) -> Tensor:
    """How many patches each of `count` tokens stands for: owner (B,M) int64 in 0 … count-1 -> (B,count) float32."""
    return (owner[:, None] == torch.arange(count, device=owner.device)[:, None]).sum(-1).float()
