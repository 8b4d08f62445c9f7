"""Low-rank adapters: nothing at first, folded equal to unfolded, and only where they belong."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from hmrcompress.models.network import from_state
from hmrcompress.training.adapters import LowRank, adapt, folded_state, layers_beside_cuts


def images() -> torch.Tensor:
    return torch.randn(2, 3, 256, 192, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_fresh_adapters_change_nothing() -> None:
    network, adapted = tiny.network(), tiny.network()
    adapt(adapted, [1, 3], rank=4, seed=0)
    assert torch.equal(network(images()).features, adapted(images()).features)
    state = folded_state(adapted)
    assert set(state) == set(network.state_dict())
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state.items())


def test_every_layer_draws_its_own_numbers_from_the_seed() -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        network = tiny.network()
        adapt(network, range(4), rank=16, seed=seed)
        return {name: module.down.detach() for name, module in network.named_modules() if isinstance(module, LowRank)}

    first, same, other = drawn(3), drawn(3), drawn(4)
    assert len(first) == 16 and all(torch.equal(first[name], same[name]) for name in first)
    everything = [*first.values(), *other.values()]
    for number, one in enumerate(everything):
        for another in everything[:number]:
            assert one.shape != another.shape or not torch.equal(one, another)
        assert abs(float(one.std()) * one.shape[1] ** 0.5 - 1) < 4 / (2 * one.numel()) ** 0.5


@torch.no_grad()
def test_folded_equals_unfolded() -> None:
    network = tiny.network()
    adapt(network, [0, 2], rank=4, seed=1)
    random = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, LowRank):
            module.up.normal_(0, 0.1, generator=random)
    folded = from_state(tiny.CONFIG, folded_state(network))
    before, after = network.backbone(images()), folded.backbone(images())
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    assert (before - tiny.network().backbone(images())).abs().max() > 1e-2, "the adapters do something"
    # The matrix of one layer, by hand.
    layer = network.backbone.blocks[2].mlp.fc1
    own = tiny.network().backbone.blocks[2].mlp.fc1.weight
    by_hand = own + torch.einsum("or,ri->oi", layer.up, layer.down)
    assert torch.allclose(folded.backbone.blocks[2].mlp.fc1.weight, by_hand, atol=1e-7)


def test_the_rank_ends_at_the_size_of_the_matrix() -> None:
    adapter = LowRank(nn.Linear(6, 4), 3, torch.Generator().manual_seed(0))
    assert adapter.down.shape == (3, 6) and adapter.up.shape == (4, 3)
    network = tiny.network()
    adapt(network, [0], rank=1000, seed=0)
    assert network.backbone.blocks[0].attn.proj.down.shape == (32, 32)


@pytest.mark.parametrize(
    ("groups", "merging", "reach", "wanted"),
    [
        ([[0], [1], [2, 3, 4], [5], [6]], [], 0, [2]),
        ([[0], [1], [2, 3, 4], [5], [6]], [], 1, [1, 2, 3]),
        ([[0], [1], [2, 3, 4], [5], [6]], [0, 1], 0, [0, 1, 2]),
        ([[0, 1], [2], [3], [4], [5, 6]], [], 1, [0, 1, 3, 4]),
        ([[0], [1], [2]], [], 1, [0, 1, 2]),
        ([[0], [1, 2]], [], 9, [0, 1]),
    ],
)
def test_layers_beside_cuts(groups: list[list[int]], merging: list[int], reach: int, wanted: list[int]) -> None:
    assert layers_beside_cuts(groups, merging, reach) == wanted


def test_layers_beside_what_was_removed() -> None:
    assert layers_beside_cuts([[0], [1], [4], [5]], [], 0, 6) == [1, 2]
    assert layers_beside_cuts([[1], [2], [3]], [], 0, 4) == [0], "the lowest layer was removed"
    assert layers_beside_cuts([[0], [1], [2]], [], 0, 4) == [2], "the highest layer was removed"
    assert layers_beside_cuts([[0], [1], [2]], [1], 0, 3) == [1], "half of it is missing"
