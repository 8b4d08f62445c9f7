"""What healing minimises: distances between a compressed network (the student) and the one it was made from.

Tokens. Merging averages patches, so a merged token has no single counterpart. It is compared with the average of the
teacher's final tokens over the same patches, in the proportions in which the student averaged them (`traced_encode`
follows them through the layers); where background is dropped both see the same patches. Tokens with a person in them
count more. Everything else is compared as it is.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from hmrcompress.body.model import BodyModel
from hmrcompress.merging.apply import TokenMerger
from hmrcompress.merging.tokens import merge
from hmrcompress.models.network import HMR2
from hmrcompress.models.vit import Block
from hmrcompress.records import HMROutput

WEIGHTS = {
    "tokens": 1.0,
    "features": 1.0,
    "root": 2.0,
    "pose": 2.0,
    "joints": 10.0,
    "vertices": 10.0,
    "betas": 0.05,
    "cam": 1.0,
}
"""How much each term counts in the sum."""
BACKGROUND_WEIGHT = 0.25
"""What a background token counts where a token of the person counts 1."""


class Encoded(NamedTuple):
    """tokens (B,M,D) after the last norm; bias (B,1,1,M) for the head or None; person (B,M) bool or None where no
    tokens are merged; routes (B,M,N) the share of each of the N patches in every token, rows sum to 1, or None."""

    tokens: Tensor
    bias: Tensor | None
    person: Tensor | None = None
    routes: Tensor | None = None


def traced_encode(network: HMR2, images: Tensor, person_mask: Tensor | None) -> Encoded:
    """The backbone's `encode`, which also tells what became of each patch."""
    backbone = network.backbone
    reducer = backbone.reducer
    tokens, state = backbone.begin(images, person_mask)
    if state is None or not isinstance(reducer, TokenMerger):
        tokens, state = backbone.run_blocks(tokens, state=state)
        return Encoded(*backbone.finish(tokens, state))
    rows, columns = backbone.grid_of(images)
    routes = torch.eye(rows * columns, device=images.device).expand(len(images), -1, -1)
    if tokens.shape[1] != rows * columns:
        if person_mask is None:
            person_mask = torch.zeros(len(images), rows, columns, dtype=torch.bool, device=images.device)
        places = cast(Tensor, reducer.kept_places(person_mask))
        routes = routes.gather(1, places[..., None].expand(-1, -1, rows * columns))
    for layer in range(backbone.depth):
        block = cast(Block, backbone.blocks[layer])
        attended, keys = block.attend(tokens, reducer.attention_bias(state))
        found = reducer.located(layer, attended, state)
        if found.places is not None:
            routes = routes.gather(1, found.places[..., None].expand(-1, -1, rows * columns))
        with torch.no_grad():
            matching = reducer.matching(layer, found.tokens, keys, found.state)
            if matching is not None:
                routes = merge(matching, routes, *found.state, size_weighted=reducer.settings.size_weighted).tokens
        tokens, state = reducer.reduce(layer, attended, keys, state)
        tokens = block.feed(tokens)
    return Encoded(*backbone.finish(tokens, state), state.person, routes)


def token_loss(student: Encoded, teacher: Tensor) -> Tensor:
    """Squared distance of the student's tokens to the teacher's (B,N,D), relative to the size of the latter.

    sum_m w_m |s_m - t_m|^2 / sum_m w_m |t_m|^2 over batch and tokens, t_m the routed average of the teacher's tokens,
    w_m 1 for tokens of the person and BACKGROUND_WEIGHT for others (1 for all where nobody knows). A teacher that was
    shown the student's patches alone (B,M,D) is compared token by token.
    """
    tokens = student.tokens.float()
    target = teacher.float()
    if student.routes is not None and target.shape[1] != tokens.shape[1]:
        target = student.routes @ target
    weight = tokens.new_ones(tokens.shape[:2])
    if student.person is not None:
        weight = torch.where(student.person, weight, BACKGROUND_WEIGHT * weight)
    error = (tokens - target).square().sum(-1)
    return (weight * error).sum() / (weight * target.square().sum(-1)).sum()


def output_losses(student: HMROutput, teacher: HMROutput, body: BodyModel) -> dict[str, Tensor]:
    """Distances between predictions, each a mean over the batch.

    features: squared distance relative to the squared size of the teacher's; root, pose: squared Frobenius distance of
    rotation matrices (4 - 4 cos of the angle between them); joints, vertices: mean distance in metres, root joint on
    root joint; betas, cam: mean squared difference.
    """
    student, teacher = student.to(torch.float32), teacher.to(torch.float32)
    features = (student.features - teacher.features).square().sum() / teacher.features.square().sum()
    turned = (student.params.rotations - teacher.params.rotations).square().sum((-1, -2))
    posed, target = body(student.params), body(teacher.params)
    shift = (posed.joints - target.joints)[:, :1]
    distances = {
        name: torch.linalg.vector_norm(getattr(posed, name) - getattr(target, name) - shift, dim=-1).mean()
        for name in ("joints", "vertices")
    }
    return {
        "features": features,
        "root": turned[:, 0].mean(),
        "pose": turned[:, 1:].mean(),
        **distances,
        "betas": (student.betas - teacher.betas).square().mean(),
        "cam": (student.cam - teacher.cam).square().mean(),
    }


def total(losses: dict[str, Tensor]) -> Tensor:
    """Their sum with `WEIGHTS`."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
