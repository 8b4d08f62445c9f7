"""One step of training the starter network: stochastic depth by whole layers, losses, gradients shared by processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmrcompress.body.model import BodyModel
from hmrcompress.models.network import HMR2
from hmrcompress.models.vit import Block, ViT
from hmrcompress.runtime import autocast, fast_dtype
from hmrcompress.starter.losses import (
    BODY_WEIGHTS,
    DENSE_WEIGHTS,
    DenseReadout,
    Targets,
    body_losses,
    dense_losses,
    weighted,
)
from hmrcompress.starter.recipe import Stage

ALL_TOKENS_EVERY = 8
"""One batch in so many keeps all of its tokens even in a stage that thins them out, so that the network knows both."""


def choose_tokens(target: Targets, count: int | None, generator: torch.Generator) -> Tensor | None:
    """Which tokens (B,count) of every crop to train on: those that show the person first, the others at random.

    None: all of them. Background teaches little, and a step costs in proportion to its tokens (the random half of
    masked autoencoders, He et al. 2022, guided by what is known here).
    """
    if count is None or not int(torch.randint(ALL_TOKENS_EVERY, (1,), generator=generator)):
        return None
    person = target.parts[..., -1].cpu() < 1
    order = person + torch.rand(person.shape, generator=generator)
    return order.topk(count, dim=1).indices.sort(dim=1).values.to(target.parts.device)


def survivors(
    batch: int, drops: Sequence[float], spare: Collection[int], generator: torch.Generator
) -> list[Tensor | None]:
    """For every layer the samples that pass through it (None: all), when a share `drops` of them is to skip it.

    The number is fixed (stochastic depth, Huang et al. 2016) but for the `spare` layers. There every sample has a
    share of its own, spread evenly around the layer's, as widely as 0 and 1 allow: so it meets any number of them
    missing equally often, where independent draws would hardly ever leave out all of them, as a network does that
    merged them all away. Above a half the samples that keep them all become rare: what one layer adds counts less.
    """
    place = (torch.randperm(batch, generator=generator) + 0.5) / batch
    chosen: list[Tensor | None] = []
    for layer, drop in enumerate(drops):
        if layer in spare:
            share = drop + min(drop, 1 - drop) * (2 * place - 1)
            chosen.append((torch.rand(batch, generator=generator) >= share).nonzero()[:, 0])
        else:
            kept = batch - round(batch * drop)
            chosen.append(None if kept == batch else torch.randperm(batch, generator=generator)[:kept])
    return chosen


def encode_with_layer_drop(vit: ViT, images: Tensor, chosen: Tensor | None, stay: Sequence[Tensor | None]) -> Tensor:
    """The chosen tokens (B,M') after the last norm, each layer applied to the samples `stay` names (None: all).

    A sample skips the whole layer (attention and MLP together), which also saves its arithmetic. Nothing is scaled up
    for those that stay (LayerDrop, Fan et al. 2019): a layer is met as it is in the full network, or not at all, as
    where it was merged away.
    """
    tokens = vit.embed(images)
    if chosen is not None:
        tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
    for layer, samples in enumerate(stay):
        block = cast(Block, vit.blocks[layer])
        if samples is None:
            tokens = block(tokens)
        elif len(samples):
            rows = samples.to(tokens.device)
            entering = tokens[rows]
            change = block(entering) - entering
            tokens = tokens.index_add(0, rows, change.to(tokens.dtype))
    return vit.last_norm(tokens)


@torch.no_grad()
def fade(vit: ViT, shares: Mapping[int, float]) -> None:
    """Scale down, in place, what the attention and the MLP of these layers add to the tokens.

    Afterwards the norm of the last matrix of either is at most the layer's share of the mean norm in the layers that
    are not named. A layer that is below it stays as it is, so doing it again changes nothing.
    """
    for last in ("attn.proj", "mlp.fc2"):
        linear = [cast(nn.Linear, block.get_submodule(last)) for block in vit.blocks]
        norms = [float(module.weight.norm()) for module in linear]
        usual = fmean(norm for layer, norm in enumerate(norms) if layer not in shares)
        for layer, share in shares.items():
            factor = min(1.0, share * usual / norms[layer])
            for parameter in linear[layer].parameters():
                parameter.mul_(factor)


def losses_of(
    network: HMR2,
    dense: DenseReadout,
    body: BodyModel,
    images: Tensor,
    target: Targets,
    stage: Stage,
    stay: Sequence[Tensor | None],
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts; stay: see `encode_with_layer_drop`."""
    device = images.device
    # On one CPU thread unfused attention trains faster: 1.3x at 48 tokens, 1.25x at 192.
    backends = [SDPBackend.MATH] if device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    chosen = choose_tokens(target, stage.tokens, generator)
    target = target.at(chosen)
    with autocast(device, fast_dtype(device)), sdpa_kernel(backends):
        with torch.no_grad() if stage.frozen else nullcontext():
            tokens = encode_with_layer_drop(network.backbone, images, chosen, stay)
        readout = dense(tokens)
        output = network.smpl_head(_braked(tokens, stage.head_gradient)) if stage.head else None
    parts = dense_losses(readout, target)
    total = stage.dense_weight * weighted(parts, DENSE_WEIGHTS)
    if output is not None:
        of_body = body_losses(output, target, body)
        total = total + weighted(of_body, BODY_WEIGHTS)
        parts |= of_body
    return total, parts


def _braked(tokens: Tensor, share: float) -> Tensor:
    """The same tokens, through which only a share of the gradient flows back."""
    return tokens if share == 1.0 else share * tokens + (1 - share) * tokens.detach()


def share_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over all processes, in place (one flat all-reduce). Nothing in a single process."""
    if not dist.is_initialized():
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


@torch.no_grad()
def follow(average: list[Tensor], parameters: list[nn.Parameter], decay: float) -> None:
    """Exponential moving average of the weights, in place."""
    torch._foreach_lerp_(average, [p.detach() for p in parameters], 1.0 - decay)
