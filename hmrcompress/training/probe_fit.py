"""Fitting the saliency probe: logistic regression on an early layer's attended tokens, deterministic, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.models.network import HMR2
from hmrcompress.models.probe import REACH, SaliencyProbe, surroundings
from hmrcompress.models.vit import Block
from hmrcompress.runtime import Progress, generator, no_progress
from hmrcompress.training.streams import Crops

RIDGE = 1e-4
"""Weight of the squared norm of the weights, which are those of standardised tokens."""
MAX_ROUNDS = 200
NUMBERS_AT_MOST = 1 << 27
"""That a fit reads, tokens times channels: a gigabyte in float64."""
LAYERS_TRIED = 5
GOOD_AUC = 0.985
"""The first layer that reaches this is read: a later one knows the person better, but all tokens have to get there."""


@dataclass(frozen=True)
class ProbeFit:
    """The probe, and how it does on crops that were held out: recall, precision, balanced accuracy, area under the ROC
    curve of tokens, each in 0..1. `labels`: `masks`, or `attention` of the head. `frames`: crops it was fitted on."""

    probe: SaliencyProbe
    labels: str
    frames: int
    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """{labels, frames, layer, recall, precision, balanced_accuracy, auc}."""
        return {"labels": self.labels, "frames": self.frames, "layer": self.probe.layer, **self.figures}


def fit_logistic(tokens: Tensor, person: Tensor) -> tuple[Tensor, float]:
    """Class-balanced logistic regression. tokens (N,D), person (N,) bool -> weight (D,) float64 and bias.

    Minimises the mean over the two classes of their mean log-loss, plus RIDGE/2 times the squared norm of the weights
    of standardised tokens; L-BFGS to convergence. UserError where there is one class only.
    """
    count = int(person.sum())
    if not 0 < count < len(person):
        raise UserError(f"{count} of {len(person)} tokens show a person, expected some that do and some that do not")
    exact = tokens.double()
    mean, scale = exact.mean(0), exact.std(0, unbiased=False).clamp(min=1e-12)
    exact = (exact - mean) / scale
    sign = torch.where(person, 1.0, -1.0).double()
    balance = torch.where(person, 0.5 / count, 0.5 / (len(person) - count)).double()
    weight = torch.zeros(exact.shape[1], dtype=torch.float64, device=exact.device, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, device=exact.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ROUNDS,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        loss = -(balance * F.logsigmoid(sign * (exact @ weight + bias))).sum() + 0.5 * RIDGE * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(objective)
    plain = weight.detach() / scale
    return plain, float(bias.detach() - plain @ mean)


@torch.no_grad()
def tokens_read(network: HMR2, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """What probes of these layers read: images (B,3,H,W) -> (B,M,R*D), after each one's attention, tokens and the means
    around them (`models.probe.REACH`)."""
    grid = network.backbone.grid_of(images)
    tokens, found = network.backbone.embed(images), {}
    for layer in range(max(layers) + 1):
        block = cast(Block, network.backbone.blocks[layer])
        found[layer] = block.attend(tokens)[0]
        tokens = block.feed(found[layer])
    return [torch.cat([surroundings(found[layer], grid, reach) for reach in REACH], dim=-1) for layer in layers]


def fit_probe(
    network: HMR2,
    known: Iterable[Crops],
    held: Iterable[Crops],
    *,
    frames: int,
    layer: int | None = None,
    progress: Progress = no_progress,
) -> ProbeFit:
    """Fits the probe of a network (without token merging) on the first `frames` crops of `known`; `held` judge it.

    layer: whose tokens it reads; None: the first of LAYERS_TRIED that gets to GOOD_AUC on `held`, else the best. Labels
    are the crops' masks, or where they come without, what the head attends to (`attended_tokens`). At most
    NUMBERS_AT_MOST numbers are used, a random part of every crop. Raises UserError where the masks show nobody.
    """
    network = network.eval()
    depth = network.config.depth
    if layer is not None and not 0 <= layer < depth:
        raise UserError(f"got {layer}, expected 0 … {depth - 1}", "finetune.probe_layer")
    layers = range(min(LAYERS_TRIED, depth)) if layer is None else [layer]
    random = generator(0)
    tokens_at_most = NUMBERS_AT_MOST // (network.config.dim * len(REACH))
    kept_share = max(1, min(network.config.grid[0] * network.config.grid[1], tokens_at_most // frames))
    tokens: dict[int, list[Tensor]] = {each: [] for each in layers}
    person, seen, labels = [], 0, "masks"
    for crops in known:
        crops = Crops(*(None if part is None else part[: frames - seen] for part in crops))  # type: ignore[arg-type]
        labels = "attention" if crops.person_mask is None else labels
        read, found = _labelled(network, crops, layers)
        chosen = torch.rand(found.shape, generator=random).topk(kept_share, dim=1).indices.to(found.device)
        for each, its in zip(layers, read, strict=True):
            tokens[each].append(its.gather(1, chosen[..., None].expand(-1, -1, its.shape[-1])).flatten(0, 1))
        person.append(found.gather(1, chosen).flatten())
        seen += len(found)
        progress("probe: reading tokens", seen, frames)
        if seen >= frames:
            break
    judged = [_labelled(network, crops, layers) for crops in held]
    truth = torch.cat([found.flatten() for _, found in judged])
    fits = []
    for number, each in enumerate(layers):
        weight, bias = fit_logistic(torch.cat(tokens[each]), torch.cat(person))
        probe = SaliencyProbe(weight.float().cpu().view(len(REACH), -1), bias, layer=each)
        scores = torch.cat([(read[number].double() @ weight + bias).float().flatten() for read, _ in judged])
        fits.append(ProbeFit(probe, labels, seen, quality(scores, truth, probe.threshold)))
        if fits[-1].figures["auc"] >= GOOD_AUC:
            return fits[-1]
    return max(fits, key=lambda fit: fit.figures["auc"])


def _labelled(network: HMR2, crops: Crops, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """What probes of these layers read (see `tokens_read`), and which tokens belong to the person (B,M) bool."""
    images = crops.images.to(network.backbone.pos_embed.device)
    read = tokens_read(network, images, layers)
    if crops.person_mask is None:
        condition = None if crops.condition is None else crops.condition.to(images.device)
        return read, attended_tokens(network, images, condition)
    return read, crops.person_mask.to(images.device).flatten(1)


def quality(scores: Tensor, person: Tensor, threshold: float) -> dict[str, float]:
    """scores (N,), person (N,) bool -> {recall, precision, balanced_accuracy, auc} of `scores > threshold`.

    auc is the chance that a token of the person scores above one of background (Mann-Whitney; ties count as order).
    """
    found = scores > threshold
    hit = float((found & person).sum())
    positive, negative = float(person.sum()), float((~person).sum())
    recall = hit / positive if positive else 0.0
    rejected = float((~found & ~person).sum()) / negative if negative else 0.0
    ranks = torch.empty_like(scores, dtype=torch.float64)
    ranks[scores.argsort(stable=True)] = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)
    above = float(ranks[person].sum()) - positive * (positive + 1) / 2
    figures = {
        "recall": recall,
        "precision": hit / max(1.0, float(found.sum())),
        "balanced_accuracy": (recall + rejected) / 2,
        "auc": above / (positive * negative) if positive and negative else 0.5,
    }
    return {name: round(value, 4) for name, value in figures.items()}


@torch.no_grad()
def attended_tokens(network: HMR2, images: Tensor, condition: Tensor | None = None) -> Tensor:
    """The tokens that the head's query attends to: images (B,3,H,W), condition as of the network -> (B,M) bool.

    Attention is averaged over heads, layers and iterations of the head; a token counts where it gets at least the
    average share, 1/M.
    """
    shares: list[Tensor] = []
    with _cross_attention(network, shares):
        network.read(network.backbone(images), condition=condition)
    mass = torch.stack(shares).mean(0)
    return mass >= 1 / mass.shape[1]


@contextmanager
def _cross_attention(network: HMR2, shares: list[Tensor]) -> Iterator[None]:
    """While the block runs, every cross-attention of the head appends its shares (B,M), averaged over its heads."""
    handles = []
    for layer in network.head.transformer.transformer.layers:
        attention = cast(Any, layer)[1].fn
        seen: dict[str, Tensor] = {}

        def keep_query(module: Any, args: Any, out: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen["query"] = out

        def keep_keys(module: Any, args: Any, out: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen["keys"] = out.chunk(2, dim=-1)[0]

        def collect(module: Any, args: Any, out: Tensor, seen: dict[str, Tensor] = seen) -> None:
            query, keys = (seen[name].unflatten(-1, (module.heads, -1)) for name in ("query", "keys"))
            logits = torch.einsum("bqhc,bmhc->bhqm", query, keys) * query.shape[-1] ** -0.5
            shares.append(logits.softmax(-1).mean((1, 2)))

        handles += [
            attention.to_q.register_forward_hook(keep_query),
            attention.to_kv.register_forward_hook(keep_keys),
            attention.register_forward_hook(collect),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
