"""One step of training the starter network: stochastic depth by whole layers, and the losses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from statistics import median
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmrcompress.body.model import BodyModel
from hmrcompress.models.network import HMR2
from hmrcompress.models.vit import Block, ViT
from hmrcompress.runtime import autocast, fast_dtype
from hmrcompress.starter.network.losses import (
    BODY_WEIGHTS,
    DENSE_WEIGHTS,
    DenseReadout,
    Targets,
    body_losses,
    dense_losses,
    weighted,
)
from hmrcompress.starter.network.recipe import Stage

ALL_TOKENS_EVERY = 2
"""One step in so many keeps all of a crop's tokens even in a stage that thins them out: a network that mostly saw the
person's tokens is better with fewer, and merging them away would then look like a gift."""
DORMANT = 1 / 3


def choose_tokens(target: Targets, count: int | None, step: int, generator: torch.Generator) -> Tensor | None:
    """Which tokens (B,count) of every crop to train on: those that show the person first, the others at random.

    None: all of them, as in every second step. Background teaches little, and a step costs in proportion to its tokens
    (the random half of masked autoencoders, He et al. 2022, guided by what is known here).
    """
    if count is None or step % ALL_TOKENS_EVERY == 0:
        return None
    person = target.parts[..., -1].cpu() < 1
    order = person + torch.rand(person.shape, generator=generator)
    return order.topk(count, dim=1).indices.sort(dim=1).values.to(target.parts.device)


def survivors(batch: int, drops: Sequence[float], generator: torch.Generator) -> list[Tensor | None]:
    """For every layer the samples that pass through it (None: all), when a share `drops` of them is to skip it.

    Stochastic depth (Huang et al. 2016). How many skip a layer is drawn too, so that the share is right on average even
    where it is less than one sample of a small batch; which ones is independent from layer to layer.
    """
    chosen: list[Tensor | None] = []
    for drop in drops:
        stays = torch.rand(batch, generator=generator) >= drop
        chosen.append(None if bool(stays.all()) else stays.nonzero()[:, 0])
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
def wake(vit: ViT) -> list[int]:
    """Bring layers that add next to nothing back to the usual scale, in place; returns their numbers.

    Where the norm of the last matrix of the attention or of the MLP is under a third of the median over the layers, it
    is scaled up (with its bias) to that median. Other layers stay as they are, so doing it again changes nothing.
    """
    woken: set[int] = set()
    for last in ("attn.proj", "mlp.fc2"):
        linear = [cast(nn.Linear, block.get_submodule(last)) for block in vit.blocks]
        norms = [float(module.weight.norm()) for module in linear]
        usual = median(norms)
        for layer, (module, norm) in enumerate(zip(linear, norms, strict=True)):
            if 0 < norm < DORMANT * usual:
                for parameter in module.parameters():
                    parameter.mul_(usual / norm)
                woken.add(layer)
    return sorted(woken)


def losses_of(
    network: HMR2,
    dense: DenseReadout,
    body: BodyModel,
    images: Tensor,
    target: Targets,
    stage: Stage,
    stay: Sequence[Tensor | None],
    step: int,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts; stay: see `encode_with_layer_drop`, step: see `choose_tokens`."""
    device = images.device
    # On one CPU thread unfused attention trains faster: 1.3x at 48 tokens, 1.25x at 192.
    backends = [SDPBackend.MATH] if device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    chosen = choose_tokens(target, stage.tokens, step, generator)
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
