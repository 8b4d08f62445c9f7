"""CKA: invariances, independence, and a slow reference of the unbiased estimator; what blocks add to their tokens."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch import Tensor

import hmrcompress as hc
from hmrcompress.body.files import starter_body
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.errors import ShapeError
from hmrcompress.evaluation.similarity import residual_shares
from hmrcompress.metrics.similarity import LayerSimilarity, gram, hsic
from hmrcompress.models.network import HMR2
from hmrcompress.starter.data.dataset import open_split


def features(seed: int, frames: int = 64, size: int = 20) -> Tensor:
    return torch.randn(frames, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_hsic(one: Tensor, other: Tensor) -> float:
    """The U-statistic by its definition, a sum over all four-tuples of distinct frames (Song et al. 2012)."""
    k, m = one @ one.T, other @ other.T
    total, count = 0.0, 0
    for i, j, q, r in itertools.permutations(range(len(one)), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
        count += 1
    return total / count


def similarity(*layers: Tensor, batch: int = 64) -> Tensor:
    measure = LayerSimilarity()
    for start in range(0, len(layers[0]), batch):
        measure.add([layer[start : start + batch] for layer in layers])
    return measure.matrix()


def test_hsic_equals_its_definition() -> None:
    one, other = features(0, frames=8), features(1, frames=8) + features(0, frames=8)
    estimate = hsic(torch.stack([gram(one), gram(other)]))
    for i, j in itertools.product(range(2), range(2)):
        assert estimate[i, j].item() == pytest.approx(slow_hsic([one, other][i], [one, other][j]), rel=1e-9)


def test_rotation_scale_and_shift_do_not_matter() -> None:
    base = features(2)
    rotation = torch.from_numpy(ortho_group.rvs(20, random_state=0))
    matrix = similarity(base, 3.5 * base @ rotation + 7, batch=16)
    torch.testing.assert_close(matrix, torch.ones(2, 2, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_independent_layers_score_about_zero_and_mixtures_in_between() -> None:
    base, noise = features(3, 512), features(4, 512)
    matrix = similarity(base, noise, base + noise, batch=32)
    assert abs(matrix[0, 1]) < 0.05 and 0.3 < matrix[0, 2] < 0.8
    torch.testing.assert_close(matrix, matrix.T)


def test_the_batch_size_hardly_matters() -> None:
    base = features(5, 512)
    other = torch.tanh(base) + 0.5 * features(6, 512)
    small, large = similarity(base, other, batch=16)[0, 1], similarity(base, other, batch=512)[0, 1]
    assert abs(small - large) < 0.02


def test_layers_of_tokens_may_have_other_sizes() -> None:
    tokens = features(7, 32, 60).unflatten(1, (6, 10))
    assert similarity(tokens, tokens[:, ::2])[0, 1] > 0.5


def test_small_batches_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least 4"):
        LayerSimilarity().add([features(0, 3)])
    with pytest.raises(ShapeError, match="no batches"):
        LayerSimilarity().matrix()


def test_residual_shares_equal_a_loop_over_tokens(tiny_network: HMR2, tiny_crops: CropSet) -> None:
    network = copy.deepcopy(tiny_network)
    torch.nn.init.zeros_(network.backbone.blocks[2].attn.proj.weight)
    torch.nn.init.zeros_(network.backbone.blocks[2].attn.proj.bias)
    network.backbone.blocks[1].mlp.fc2.weight.mul_(5)
    found = residual_shares(network, tiny_crops, frames=3, batch_size=2)
    (batch,) = tiny_crops.batches(evenly(tiny_crops.stretches(), 3), 3)
    expected = []
    with torch.no_grad():
        x = network.backbone.embed(batch.images)
        for block in network.backbone.blocks:
            y = block(x)
            each = [float((b - a).norm() / a.norm()) for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)]
            expected.append(sum(each) / len(each))
            x = y
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == 4


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="the shipped network still is the one with planted layers; see docs/evidence.md")
def test_no_layer_of_the_shipped_network_was_planted() -> None:
    shares = residual_shares(hc.load("starter").network, open_split("calib", starter_body()), frames=64)
    assert shares.min() > np.median(shares) / 3, shares.round(3).tolist()
