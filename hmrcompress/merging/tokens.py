"""Mask-guided token merging (Mask-ToMe): matching and averaging of tokens. Pure tensors; knows no model.

Tokens at even places (A) are each matched to their most similar token at an odd place (B), as in ToMe (arXiv
2210.09461); the most similar pairs are averaged into their B token. A pair in which either token belongs to the person
comes after all pairs of background, by similarity among themselves, so it is merged only where the number of tokens
asks for it. Protected tokens are in no pair at all. Of equal similarities the lowest index wins, both for A and for B.
What remains: the A tokens that were not merged, in their order, then B. Every shape depends on input shapes alone, so
graphs can be traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hmrcompress.errors import ShapeError, UserError


class Matching(NamedTuple):
    """Which A tokens (places 0, 2, …) go where; Na of them, Nb B tokens (places 1, 3, …), r merged.

    target (B,Na) int64: the B token, 0 … Nb-1, that each A token is matched to; merged (B,Na) bool, r true in every
    row; kept (B,Na-r) int64: the A tokens that stay, rising; forced (B,Na) bool: those merged although they or their
    target belong to the person.
    """

    target: Tensor
    merged: Tensor
    kept: Tensor
    forced: Tensor


class Merged(NamedTuple):
    """After a merge: tokens (B,M-r,D), person (B,M-r) bool (any of the parts was), sizes (B,M-r) patches in each."""

    tokens: Tensor
    person: Tensor
    sizes: Tensor


def merge_count(tokens: int, keep: int, per_layer: int, protect: int = 0) -> int:
    """How many of `tokens` a layer merges away: at most `per_layer`, never below `keep`, and at most half of them less
    `protect`, so that there are pairs enough even where all protected tokens lie on one side."""
    return max(0, min(per_layer, tokens - keep, tokens // 2 - protect))


def layer_count(tokens: int, keep: int, per_layer: int | Sequence[int], layer: int, protect: int = 0) -> int:
    """How many of `tokens` the layer merges away, with `per_layer` in every layer or listed for the first layers."""
    if isinstance(per_layer, int):
        return merge_count(tokens, keep, per_layer, protect)
    return merge_count(tokens, keep, per_layer[layer] if layer < len(per_layer) else 0, protect)


def schedule(tokens: int, keep: int, per_layer: int | Sequence[int], protect: int = 0) -> list[int]:
    """Tokens merged away by layer, first layer first: (192, 90, 40) -> [40, 40, 22]; empty where none need to go.

    A listed `per_layer` may hold zeros, for layers that merge nothing. UserError where `keep` is never reached.
    """
    if keep < 1 or (isinstance(per_layer, int) and per_layer < 1):
        raise UserError(f"got keep {keep} and per_layer {per_layer}, expected at least 1", "tokens")
    counts: list[int] = []
    while (left := tokens - sum(counts)) > keep:
        removed = layer_count(left, keep, per_layer, len(counts), protect)
        if not isinstance(per_layer, int) and len(counts) >= len(per_layer):
            raise UserError(
                f"a schedule of {len(per_layer)} layers leaves {left} of {tokens} tokens, expected {keep}",
                "tokens.schedule",
                "Merge more, or raise keep",
            )
        if not removed and isinstance(per_layer, int):
            raise UserError(
                f"with {protect} protected tokens {left} cannot become fewer, expected {keep}",
                "tokens.protect",
                "Protect fewer, or raise keep",
            )
        counts.append(removed)
    return counts


def highest_norms(tokens: Tensor, count: int) -> Tensor:
    """Marks the `count` tokens of greatest norm in each sample, of equals the lowest index: (B,M,D) -> (B,M) bool."""
    exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    squares = (exact * exact).sum(-1)
    return _rank(squares, torch.zeros_like(squares, dtype=torch.int64)) < count


def match(metric: Tensor, person: Tensor, removed: int, protected: Tensor | None = None) -> Matching:
    """Matches A tokens to B tokens by the cosine of `metric` and picks the `removed` pairs to merge.

    metric (B,M,C) float, person (B,M) bool, protected (B,M) bool (tokens that stay as they are) or None for none;
    1 <= removed <= M // 2 less the number protected. Raises ShapeError.
    """
    if metric.ndim != 3 or tuple(person.shape) != tuple(metric.shape[:2]) or person.dtype != torch.bool:
        got = f"{tuple(metric.shape)} and {tuple(person.shape)} {person.dtype}"
        raise ShapeError(f"got {got}, expected (B, M, C) and (B, M) torch.bool", "metric and person")
    if not 1 <= removed <= metric.shape[1] // 2:
        raise ShapeError(f"got {removed} of {metric.shape[1]} tokens, expected 1 … {metric.shape[1] // 2}", "removed")
    exact = metric.to(torch.promote_types(metric.dtype, torch.float32))
    unit = torch.nn.functional.normalize(exact, dim=-1)
    similarity = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    background_a, background_b = ~person[:, 0::2], ~person[:, 1::2]
    if protected is not None:
        similarity = similarity.masked_fill(protected[:, None, 1::2], -torch.inf)
        background_b = background_b & ~protected[:, 1::2]
    apart = background_a & background_b.any(1, keepdim=True)

    free = similarity.masked_fill(~background_b[:, None], -torch.inf)
    free_score, free_target = _best(free)
    any_score, any_target = _best(similarity)
    target = torch.where(apart, free_target, any_target)
    turn = (~apart).to(torch.int64)
    if protected is not None:
        turn = turn.masked_fill(protected[:, 0::2], 2)
    merged = _rank(torch.where(apart, free_score, any_score), turn) < removed

    places = torch.arange(merged.shape[1], device=merged.device)
    late = places + merged * merged.shape[1]
    kept = torch.topk(late.float(), merged.shape[1] - removed, dim=1, largest=False, sorted=True).indices
    return Matching(target, merged, kept, merged & ~apart)


def destinations(matching: Matching, tokens: int) -> Tensor:
    """Where each of `tokens` (M) tokens went: (B,M) int64 places 0 … M-r-1 among those that remain."""
    stayed, kept = ~matching.merged, matching.kept.shape[1]
    places = torch.empty(len(stayed), tokens, dtype=torch.int64, device=stayed.device)
    places[:, 0::2] = torch.where(stayed, stayed.cumsum(1) - 1, kept + matching.target)
    places[:, 1::2] = kept + torch.arange(tokens // 2, device=stayed.device)
    return places


def merge(matching: Matching, tokens: Tensor, person: Tensor, sizes: Tensor, *, size_weighted: bool = False) -> Merged:
    """Averages merged tokens into their targets. tokens (B,M,D), person (B,M) bool, sizes (B,M) float.

    A target becomes the plain mean of itself and what was merged into it, or, `size_weighted`, their mean weighted
    by sizes. Sizes add up either way. Raises nothing: `matching` must come from the same tokens.
    """
    a, b = tokens[:, 0::2], tokens[:, 1::2]
    size_a, size_b = sizes[:, 0::2], sizes[:, 1::2]
    person_a, person_b = person[:, 0::2], person[:, 1::2]
    columns = torch.arange(b.shape[1], device=tokens.device)
    arrivals = (matching.target[:, None] == columns[None, :, None]) & matching.merged[:, None]  # (B,Nb,Na)
    routes = arrivals.to(tokens.dtype)

    weight_a = size_a if size_weighted else torch.ones_like(size_a)
    weight_b = size_b if size_weighted else torch.ones_like(size_b)
    weight_a, weight_b = weight_a.to(tokens.dtype)[..., None], weight_b.to(tokens.dtype)[..., None]
    total = weight_b + routes @ weight_a
    mixed = (b * weight_b + routes @ (a * weight_a)) / total
    untouched = ~arrivals.any(-1, keepdim=True)
    b = torch.where(untouched, b, mixed)

    kept = matching.kept
    return Merged(
        tokens=torch.cat([a.gather(1, kept[..., None].expand(-1, -1, a.shape[-1])), b], dim=1),
        person=torch.cat([person_a.gather(1, kept), person_b | (arrivals & person_a[:, None]).any(-1)], dim=1),
        sizes=torch.cat([size_a.gather(1, kept), size_b + (arrivals * size_a[:, None]).sum(-1)], dim=1),
    )


def _best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest value over the last dimension and the lowest place that has it: (B,Na,Nb) -> (B,Na), (B,Na) int64."""
    best = scores.amax(-1)
    places = torch.arange(scores.shape[-1], device=scores.device)
    return best, torch.where(scores == best[..., None], places, scores.shape[-1]).amin(-1)


def _rank(scores: Tensor, turn: Tensor) -> Tensor:
    """Place of each entry (0 is best) when those of a lower `turn` come first, then by falling score, then by index.

    scores (B,N) float, turn (B,N) int64 -> (B,N) int64, by counting who comes before whom.
    """
    places = torch.arange(scores.shape[1], device=scores.device)
    equal_score = scores[:, None] == scores[..., None]
    ahead = (scores[:, None] > scores[..., None]) | (equal_score & (places[None, None] < places[None, :, None]))
    # Written with `and`, `or` alone: onnxruntime has no selection between booleans.
    same_turn = turn[:, None] == turn[..., None]
    return ((same_turn & ahead) | (turn[:, None] < turn[..., None])).sum(-1)
