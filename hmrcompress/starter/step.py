"""One step of training the starter network: stochastic depth by whole layers, losses, gradients shared by processes."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmrcompress.body.model import BodyModel
from hmrcompress.models.network import HMR2
from hmrcompress.models.vit import Block, ViT
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


def encode_with_layer_drop(vit: ViT, images: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Tokens after the last norm, each layer skipped by a share of the samples that rises linearly to `drop`.

    A sample skips the whole layer (attention and MLP together), which also saves its arithmetic; the residual of those
    that stay is scaled up, so that expectations match the full network (stochastic depth, Huang et al. 2016, with a
    fixed number of survivors).
    """
    tokens = vit.embed(images)
    batch = tokens.shape[0]
    for layer in range(vit.depth):
        block = cast(Block, vit.blocks[layer])
        kept = batch - round(batch * drop * layer / max(vit.depth - 1, 1))
        if kept == batch:
            tokens = block(tokens)
            continue
        chosen = torch.randperm(batch, generator=generator)[:kept].to(tokens.device)
        entering = tokens[chosen]
        change = (block(entering) - entering) * (batch / kept)
        tokens = tokens.index_add(0, chosen, change.to(tokens.dtype))
    return vit.last_norm(tokens)


def losses_of(
    network: HMR2,
    dense: DenseReadout,
    body: BodyModel,
    images: Tensor,
    target: Targets,
    stage: Stage,
    drop: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts."""
    device = images.device.type
    # On one CPU thread unfused attention trains faster: 1.3x at 48 tokens, 1.25x at 192.
    backends = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with torch.autocast(device, torch.bfloat16), sdpa_kernel(backends):
        tokens = encode_with_layer_drop(network.backbone, images, drop, generator)
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
