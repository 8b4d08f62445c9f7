"""The linear patch in place of whatever a plan removes: fitted on calibration crops, folded into the matrix below each
cut.

A network is a row of halves, attention and MLP by turns. A cut is a longest run of halves that are removed; below it is
its host, the last half that stays, and above it the place where the network goes on. With u the activations that the
host's output projection reads (of an MLP behind the GELU, of attention the mixed heads) and r what the tokens lack
there of those of the original network, the patch minimises `sum_i w_i |r_i - (W u_i + b)|^2 + lambda |W|^2`
(`merging.lstsq`), and `W`, `b` are added to that projection, which costs nothing at run time. Cuts are fitted from the
bottom upwards, each on what the network patched below really produces. The ridge of each is chosen on clips left out of
its fit, where leaving the patch away competes; the strength of a plan, by which all are multiplied, is for a search to
choose by the error itself. A cut that begins at layer 0 has no host and no patch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hmrcompress.merging.fit import FitBatch, OriginalTokens
from hmrcompress.merging.layers import BLOCKS, patched
from hmrcompress.merging.lstsq import NormalEquations, Patch, fit
from hmrcompress.models.network import HMR2
from hmrcompress.models.vit import Block
from hmrcompress.plan import ATTENTION, MLP, Plan
from hmrcompress.runtime import Progress, autocast, no_progress

PROJECTIONS = {ATTENTION: "attn.proj", MLP: "mlp.fc2"}


class Host(NamedTuple):
    """The half that takes a patch up: number of the layer in the compressed network, and which half."""

    layer: int
    part: str


CutPatches = dict[Host, Patch]


class Cut(NamedTuple):
    """`host` takes the patch up; `goes_on` is the half of the original network before which its tokens are what the
    patch aims at: 2 l for the attention of layer l, 2 l + 1 for its MLP, twice the number of layers for the end."""

    host: Host
    goes_on: int


def halves(plan: Plan) -> list[tuple[Host, int, int]]:
    """The halves that a plan keeps, from the bottom upwards: each with the half of the original network that it begins
    before, and the one before which it ends (see `Cut.goes_on`); for a merged layer those of its group."""
    kept = []
    for number, group in enumerate(plan.kept_groups):
        part = plan.removed_parts.get(group[0])
        if part != ATTENTION:
            kept.append((Host(number, ATTENTION), 2 * group[0], 2 * group[0] + 1))
        if part != MLP:
            kept.append((Host(number, MLP), 2 * group[0] + 1, 2 * group[-1] + 2))
    return kept


def cuts(plan: Plan) -> list[Cut]:
    """Where a plan removes something that a half below can make up for, from the bottom upwards."""
    kept = halves(plan)
    nexts = [begins for _, begins, _ in kept[1:]] + [2 * plan.layers]
    return [Cut(host, after) for (host, _, ends), after in zip(kept, nexts, strict=True) if after != ends]


@torch.no_grad()
def fit_cuts(
    original: HMR2,
    merged: HMR2,
    plan: Plan,
    batches: Sequence[FitBatch],
    originals: OriginalTokens,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress = no_progress,
) -> CutPatches:
    """The patches of all cuts of a plan at full strength.

    original: the network that the plan is for; merged: what the plan makes of it without a patch. Both in evaluation
    mode on one device, without token merging, and left as they are. originals: the tokens of `original` on the batches.
    Tokens are computed in `dtype`, sums in float64.
    """
    todo = {cut.host: cut.goes_on for cut in cuts(plan)}
    made: CutPatches = {}
    if not todo:
        return made
    kept = halves(plan)
    lowest = _lowest(kept, todo)
    start = next(place for place, (_, begins, _) in enumerate(kept) if begins >= 2 * lowest)
    with autocast(next(original.parameters()).device, dtype):
        tokens = [originals.at(number, lowest) for number in range(len(batches))]
        for host, _, _ in kept[start:]:
            block = cast(Block, merged.backbone.blocks[host.layer])
            read = [_activations(block, host.part, each) for each in tokens]
            weight, bias = _projection(block, host.part)
            if host in todo:
                patch = _fit(read, tokens, weight, bias, todo[host], batches, original, originals)
                made[host] = patch
                weight, bias = patched(weight, patch.weight), patched(bias, patch.bias)
                progress("fitting patches", len(made), len(todo))
                if len(made) == len(todo):
                    break
            tokens = [each + F.linear(u, weight, bias) for each, u in zip(tokens, read, strict=True)]
    return made


def _lowest(kept: Sequence[tuple[Host, int, int]], hosts: Collection[Host]) -> int:
    """The layer up to whose input both networks are alike: that of the first host or merged layer, or 0 where the
    lowest halves of all are removed."""
    if kept[0][1]:
        return 0
    return next(begins // 2 for host, begins, ends in kept if host in hosts or ends > 2 * (begins // 2) + 2)


def _activations(block: Block, part: str, tokens: Tensor) -> Tensor:
    """What the output projection of a half reads: (n,M,H) for tokens (n,M,D)."""
    if part == MLP:
        return F.gelu(block.mlp.fc1(block.norm2(tokens)))
    attention = block.attn
    qkv = attention.qkv(block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _projection(block: Block, part: str) -> tuple[Tensor, Tensor]:
    layer = block.mlp.fc2 if part == MLP else block.attn.proj
    return layer.weight, layer.bias


def _fit(
    read: Sequence[Tensor],
    tokens: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    goes_on: int,
    batches: Sequence[FitBatch],
    original: HMR2,
    originals: OriginalTokens,
) -> Patch:
    """read: activations of the host by batch, tokens: what enters it."""
    fitted, left_out = (NormalEquations(weight.shape[1], weight.shape[0], weight.device) for _ in range(2))
    for number, (activations, entering, batch) in enumerate(zip(read, tokens, batches, strict=True)):
        wanted = originals.at(number, goes_on // 2)
        if goes_on % 2:
            wanted = cast(Block, original.backbone.blocks[goes_on // 2]).attend(wanted)[0]
        missing = wanted - (entering + F.linear(activations, weight, bias))
        weights = batch.weights.to(missing.device).expand(missing.shape[:2])
        for equations, rows in ((fitted, ~batch.left_out), (left_out, batch.left_out)):
            rows = rows.to(missing.device)
            equations.add(activations[rows].flatten(0, 1), missing[rows].flatten(0, 1), weights[rows].flatten())
    return fit(fitted, left_out)


def with_patches(
    state: Mapping[str, Tensor], patches: Mapping[Host, Patch], strength: float, prefix: str = BLOCKS
) -> dict[str, Tensor]:
    """The state dict of a compressed network with patches, multiplied by `strength`, added to the projections of their
    hosts; the other tensors are handed on as they are."""
    changed = dict(state)
    for host, patch in patches.items():
        name = f"{prefix}{host.layer}.{PROJECTIONS[host.part]}"
        for part, value in (("weight", patch.weight), ("bias", patch.bias)):
            changed[f"{name}.{part}"] = patched(changed[f"{name}.{part}"], strength * value)
    return changed
