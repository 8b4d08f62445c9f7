"""Counting parameters and multiply-accumulates: the published figures, and small ones by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.describe import field_of_view_cost, network_cost
from hmrcompress.metrics.cost import Cost, cost
from hmrcompress.models.families.camerahmr import CameraHMRConfig
from hmrcompress.models.network import NetworkConfig, build
from hmrcompress.plan import TokenSettings


def full_size(layers: int, tokens: TokenSettings | None) -> Cost:
    network = with_token_merging(build(replace(NetworkConfig(), depth=layers), "meta"), tokens)
    images = torch.empty(1, 3, 256, 192, device="meta")
    return cost(network, images, torch.empty(1, 16, 12, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize(
    ("layers", "tokens", "macs", "with_attention", "parameters"),
    [
        (32, None, 122.590, 125.6, 670.5),
        (28, None, 107.483, 110.1, 591.7),
        (28, TokenSettings(keep=90, per_layer=40), 52.821, 53.5, 591.7),
        (26, TokenSettings(keep=90, per_layer=40), 49.280, 49.9, 552.4),
    ],
)
def test_figures_of_the_paper(
    layers: int, tokens: TokenSettings | None, macs: float, with_attention: float, parameters: float
) -> None:
    counted = full_size(layers, tokens)
    assert round(counted.macs / 1e9, 3) == macs
    assert round(counted.macs_with_attention / 1e9, 1) == with_attention
    assert round(counted.parameters / 1e6, 1) == parameters
    assert counted.other_macs < 1e-3 * counted.macs


@pytest.mark.parametrize(
    ("layers", "tokens", "macs"), [(32, None, 143.989), (26, None, 121.328), (26, TokenSettings.paper(), 70.679)]
)
def test_figures_of_the_paper_with_the_field_of_view_network(
    layers: int, tokens: TokenSettings | None, macs: float
) -> None:
    """CameraHMR's, counted once a crop."""
    config = replace(CameraHMRConfig(), depth=layers)
    assert round((network_cost(config, tokens).macs + field_of_view_cost().macs) / 1e9, 3) == macs
    assert round(field_of_view_cost().macs / 1e9, 3) == 21.399


def test_layers_by_hand() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Upsample(scale_factor=2, mode="nearest"), nn.Flatten(2),
        nn.Linear(24, 5), nn.LayerNorm(5), nn.LayerNorm(5, elementwise_affine=False),
    )  # fmt: skip
    counted = cost(layers, torch.zeros(2, 3, 4, 6))
    assert counted.macs == 2 * (4 * 6 * (3 * 2 * 2) + 4 * 4 * 6 + 4 * 24 + 4 * 5 * 24 + 4 * 4 * 5 + 2 * 4 * 5)
    assert (counted.attention_macs, counted.other_macs) == (0, 0)
    assert counted.parameters == 4 * 12 + 4 + 8 + 5 * 24 + 5 + 10


def test_products_by_hand() -> None:
    class Products(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = x[:, None]
            mixed = torch.nn.functional.scaled_dot_product_attention(q[:, :, :2], q, q, attn_mask=None)
            return mixed[:, 0] @ x.transpose(1, 2)

    counted = cost(Products(), torch.zeros(1, 7, 5))
    assert counted.attention_macs == 2 * 7 * 5 * 2
    assert counted.other_macs == 2 * 7 * 5
    assert counted.to_dict()["macs_with_attention"] == counted.attention_macs


def test_counting_leaves_no_hooks_and_is_the_same_on_every_device() -> None:
    config = NetworkConfig(
        dim=32, depth=3, num_heads=2, mlp_dim=64, head_width=16, head_depth=1, head_heads=2, head_dim=4
    )
    settings = TokenSettings(keep=150, attention_bias=True)
    counts = []
    for device in ("meta", "cpu"):
        network = with_token_merging(build(config, device), settings)
        counts.append(cost(network, torch.zeros(1, 3, 256, 192, device=device), None))
        assert not any(module._forward_hooks for module in network.modules())
    assert counts[0] == counts[1]
