"""Which number of tokens a crop needs so that no token of its person is merged, exactly, from its mask alone. Pure
tensors; knows no model.

What a mask alone decides: merging M tokens down to K < M without touching P tokens of the person leaves those P and, as
whatever is merged needs a target, at least one token of background, so K >= P + 1 is necessary. It is sufficient only
if every layer can choose enough sources: where even places are sources and odd places targets (`merging.tokens`), it
depends on the similarities of earlier layers how much background stands at even places. So tokens are put in an order
of our own before each matching (their order means nothing to the network): `split_order` gives even places as much
background as the layer merges away and leaves some at odd places. Then K >= P + 1 is sufficient as well. Dropping
background needs no target: there K >= P.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hmrcompress.errors import ShapeError, UserError

BUCKETS = (64, 90, 128, 192)
"""Kept tokens of a grid of 192, fewest first. The last one merges nothing, so that every crop has its bucket."""


class Group(NamedTuple):
    """The samples of a batch that keep `keep` tokens: rows (n,) int64, rising."""

    keep: int
    rows: Tensor


def check_buckets(buckets: Sequence[int], tokens: int) -> tuple[int, ...]:
    """The buckets of a grid of `tokens` tokens, rising, the whole grid last (added where it is missing). UserError for
    none, for repeated ones, and for those outside of 1 … `tokens`."""
    found = sorted(buckets)
    if not found or len(set(found)) < len(found) or found[0] < 1 or found[-1] > tokens:
        raise UserError(f"got {', '.join(map(str, buckets)) or 'none'}, expected numbers 1 … {tokens}", "buckets")
    return tuple(found) if found[-1] == tokens else (*found, tokens)


def bucket_of(person: Tensor, buckets: Sequence[int], *, dropping: bool = False) -> Tensor:
    """The smallest bucket of each sample in which no person token is merged (with `dropping`: dropped).

    person (B,M) bool; buckets rising, the last one M (see `check_buckets`) -> (B,) int64 places in `buckets`. Raises
    ShapeError.
    """
    if person.ndim != 2 or person.dtype != torch.bool or buckets[-1] != person.shape[1]:
        raise ShapeError(f"got {tuple(person.shape)} {person.dtype}, expected (B, {buckets[-1]}) torch.bool", "person")
    needed = person.sum(1) + (0 if dropping else 1)
    edges = torch.tensor(buckets, device=person.device)
    return torch.searchsorted(edges, needed.clamp(max=buckets[-1]))


def group(person: Tensor, buckets: Sequence[int], *, dropping: bool = False) -> list[Group]:
    """A batch by bucket, smallest first, empty ones left out; every row is in exactly one group. As `bucket_of`."""
    places = bucket_of(person, buckets, dropping=dropping)
    found = ((keep, torch.nonzero(places == place).flatten()) for place, keep in enumerate(buckets))
    return [Group(keep, rows) for keep, rows in found if len(rows)]


def split_order(person: Tensor, removed: int) -> Tensor:
    """An order (B,M) int64 of the tokens for the next matching: entry i is the token that goes to place i.

    person (B,M) bool. Even places, the sources, get half of the background, or `removed` of it where that is more, but
    never all of it; both kinds are dealt out evenly over the grid, and each side keeps the order that its tokens had.
    """
    batch, count = person.shape
    sources = (count + 1) // 2
    background = (~person).sum(1, keepdim=True)
    # Half of it, rounded up, is never so little that the other half overflows the odd places.
    wanted = torch.clamp((background + 1) // 2, min=removed)
    given = torch.minimum(wanted, (background - 1).clamp(min=0)).clamp(max=sources)
    first = torch.where(person, _dealt(person, sources - given), _dealt(~person, given))
    place = torch.where(first, 2 * (first.cumsum(1) - 1), 2 * ((~first).cumsum(1) - 1) + 1)
    return place.argsort(1)


def _dealt(kind: Tensor, share: Tensor) -> Tensor:
    """Marks `share` (B,1) of each row's true entries of `kind` (B,M), spread evenly over them."""
    rank, total = kind.cumsum(1), kind.sum(1, keepdim=True).clamp(min=1)
    return kind & (rank * share // total > (rank - 1) * share // total)
