"""The losses of healing against slow loops in float64, and the way of patches through token merging."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hmrcompress.body.model import BodyModel
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.network import HMR2
from hmrcompress.plan import TokenSettings
from hmrcompress.records import HMROutput
from hmrcompress.training.heal_losses import (
    BACKGROUND_WEIGHT,
    WEIGHTS,
    Encoded,
    output_losses,
    token_loss,
    total,
    traced_encode,
)

RANDOM = torch.Generator().manual_seed(0)


def predicted(batch: int = 3) -> HMROutput:
    rotations = axis_angle_to_matrix(0.5 * torch.randn(batch, 24, 3, generator=RANDOM))
    numbers = (torch.randn(batch, size, generator=RANDOM) for size in (10, 3, 8))
    return HMROutput(rotations[:, :1], rotations[:, 1:], *numbers)


def slow_token_loss(tokens: Tensor, person: Tensor, routes: Tensor, teacher: Tensor) -> float:
    """Sums over crops, tokens, patches and channels, one number at a time."""
    above = below = 0.0
    for crop in range(len(tokens)):
        for m in range(tokens.shape[1]):
            weight = 1.0 if person[crop, m] else BACKGROUND_WEIGHT
            target = [0.0] * tokens.shape[2]
            for n in range(teacher.shape[1]):
                for c in range(tokens.shape[2]):
                    target[c] += float(routes[crop, m, n]) * float(teacher[crop, n, c])
            for c in range(tokens.shape[2]):
                above += weight * (float(tokens[crop, m, c]) - target[c]) ** 2
                below += weight * target[c] ** 2
    return above / below


def test_token_loss() -> None:
    tokens, teacher = torch.randn(2, 3, 4, generator=RANDOM), torch.randn(2, 6, 4, generator=RANDOM)
    routes = torch.rand(2, 3, 6, generator=RANDOM).softmax(-1)
    person = torch.tensor([[True, False, False], [False, True, True]])
    fast = token_loss(Encoded(tokens, None, person, routes), teacher)
    assert float(fast) == pytest.approx(slow_token_loss(tokens, person, routes, teacher), rel=1e-5)
    assert float(token_loss(Encoded(teacher, None), teacher)) == 0.0
    itself = slow_token_loss(tokens, person, torch.eye(3).expand(2, -1, -1), teacher[:, :3])
    assert float(token_loss(Encoded(tokens, None, person, routes), teacher[:, :3])) == pytest.approx(itself, rel=1e-5)


def test_output_losses(tiny_body: BodyModel) -> None:
    one, other = predicted(), predicted()
    losses = {name: float(loss) for name, loss in output_losses(one, other, tiny_body).items()}
    assert {"tokens", *losses} == set(WEIGHTS)
    exact = [one.to(torch.float64), other.to(torch.float64)]
    frobenius = []
    for a, b in zip(exact[0].params.rotations.flatten(0, 1), exact[1].params.rotations.flatten(0, 1), strict=True):
        angle = math.acos(max(-1.0, min(1.0, (float(torch.trace(a.T @ b)) - 1) / 2)))
        frobenius.append(4 - 4 * math.cos(angle))
    by_joint = torch.tensor(frobenius).view(3, 24)
    assert losses["root"] == pytest.approx(float(by_joint[:, 0].mean()), rel=1e-4)
    assert losses["pose"] == pytest.approx(float(by_joint[:, 1:].mean()), rel=1e-4)
    posed = [tiny_body(output.params) for output in (one, other)]
    for kind in ("joints", "vertices"):
        gaps: list[float] = []
        for crop in range(3):
            a, b = ((getattr(body, kind) - body.joints[:, :1])[crop] for body in posed)
            gaps += [math.dist(p.tolist(), q.tolist()) for p, q in zip(a, b, strict=True)]
        assert losses[kind] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    difference = (exact[0].features - exact[1].features).square().sum() / exact[1].features.square().sum()
    assert losses["features"] == pytest.approx(float(difference), rel=1e-4)
    for name in ("betas", "cam"):
        gap = (getattr(exact[0], name) - getattr(exact[1], name)).square().mean()
        assert losses[name] == pytest.approx(float(gap), rel=1e-4)


def test_equal_predictions_cost_nothing_and_have_a_gradient(tiny_body: BodyModel) -> None:
    one = predicted()
    read = {name: tensor for name, tensor in vars(one).items() if tensor is not None}
    moving = HMROutput(**{name: tensor.clone().requires_grad_() for name, tensor in read.items()})
    parts = output_losses(moving, one, tiny_body)
    loss = total(parts)
    loss.backward()
    assert float(loss.detach()) < 1e-9
    assert all(torch.isfinite(getattr(moving, name).grad).all() for name in read)


def test_total_weighs() -> None:
    parts = {"tokens": torch.tensor(2.0), "joints": torch.tensor(0.5)}
    assert float(total(parts)) == pytest.approx(2 * WEIGHTS["tokens"] + 0.5 * WEIGHTS["joints"])


SETTINGS: list[dict[str, Any]] = [
    {"keep": 100},
    {"keep": 90, "metric": "features", "size_weighted": True, "attention_bias": True},
    {"keep": 90, "protect": 5},
    {"keep": 90, "drop_background": {"ring": 1, "coarse": 4}},
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: "-".join(map(str, options)))
@torch.no_grad()
def test_tracing_changes_nothing_and_follows_the_patches(tiny_network: HMR2, options: dict[str, Any]) -> None:
    network = with_token_merging(tiny_network, TokenSettings.model_validate(options)).eval()
    images = torch.randn(2, 3, 256, 192, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 16, 12, dtype=torch.bool)
    mask[:, 4:9, 3:8] = True
    tokens, bias = network.backbone.encode(images, mask)
    traced = traced_encode(network, images, mask)
    assert torch.equal(traced.tokens, tokens) and (bias is None) == (traced.bias is None)
    routes, person = traced.routes, traced.person
    assert routes is not None and person is not None
    assert routes.shape == (2, options["keep"], 192)
    assert torch.allclose(routes.sum(-1), torch.ones(2, options["keep"]), atol=1e-6) and (routes >= 0).all()
    assert ((routes > 0).sum(1) <= 1).all(), "no patch is in two tokens"
    holds = ((routes > 0) & mask.flatten(1)[:, None]).any(-1)
    assert torch.equal(holds, person), "a token is of the person where one of its patches is"
    if not options.get("drop_background"):
        assert ((routes > 0).sum(1) == 1).all(), "no patch is lost"
    if options.get("size_weighted"):
        parts = (routes > 0).sum(-1, keepdim=True)
        assert torch.allclose(routes, (routes > 0) / parts, atol=1e-6), "weighted by size, patches count alike"


@torch.no_grad()
def test_without_merging_there_is_nothing_to_follow(tiny_network: HMR2) -> None:
    images = torch.randn(1, 3, 256, 192, generator=torch.Generator().manual_seed(1))
    traced = traced_encode(tiny_network, images, None)
    assert traced.routes is None and traced.person is None
    assert torch.equal(traced.tokens, tiny_network.backbone(images))
