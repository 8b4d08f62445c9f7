"""The network as its authors run it: equal to ours, over the same tensors, and without any fused operator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.network import HMR2, NetworkConfig, build
from hmrcompress.plan import TokenSettings
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress.timing.reference import attend, reference

IEF = replace(tiny.CONFIG, token_input="mean_shape", iterations=3)


def awake(config: NetworkConfig) -> HMR2:
    """A random network in float64 whose norms, biases and positions are random too."""
    network = build(config, seed=1).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 or "pos" in name:
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return network


@pytest.mark.parametrize("config", [tiny.CONFIG, IEF], ids=["zero", "ief"])
def test_it_is_our_network(config: NetworkConfig) -> None:
    network = awake(config)
    images = made_up_batch(config, 3, torch.float64).images
    ours, theirs = network(images), reference(network)(images)
    assert ours.keypoints is None and theirs.keypoints is None
    names = set(vars(ours)) - {"keypoints"}
    for mine, other in ((getattr(ours, name), getattr(theirs, name)) for name in sorted(names)):
        assert isinstance(mine, Tensor) and torch.allclose(mine, other, rtol=1e-9, atol=1e-9)
    assert ours.body_pose.std() > 0.05  # not one pose for all


def test_nothing_is_copied_fused_or_merged(tiny_network: HMR2, monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(*args: object, **kwargs: object) -> None:
        raise AssertionError("scaled_dot_product_attention was called")

    plain = reference(with_token_merging(tiny_network, TokenSettings(keep=90)))
    own = tiny_network.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in plain.state_dict().items()} == {
        name: tensor.data_ptr() for name, tensor in own.items()
    }
    batch = made_up_batch(tiny.CONFIG, 1)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
    assert plain.backbone(batch.images, batch.person_mask).shape == (1, 192, tiny.CONFIG.dim)


def test_attention_by_hand() -> None:
    """Two keys whose logits differ by log 3: weights of 1/4 and 3/4."""
    query, key = torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.0], [1.0]]]])
    value = torch.tensor([[[[4.0], [8.0]]]])
    assert attend(query, key, value, scale=float(torch.log(torch.tensor(3.0))) / 2).item() == pytest.approx(7.0)
