"""The HMR2.0 network: key names, conventions, and its figures against a slow transcription in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import slow_hmr2
import torch

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.models.network import (
    HMR2,
    NetworkConfig,
    build,
    config_from_state,
    from_state,
    random_sha256,
    random_state,
    share,
)

KEYS = Path(__file__).parent / "data" / "hmr2_keys.txt"
SMALL = NetworkConfig(
    dim=24, depth=3, num_heads=3, mlp_dim=40,
    head_width=20, head_depth=2, head_heads=2, head_dim=6, head_mlp_dim=28,
)  # fmt: skip


def lively(config: NetworkConfig, seed: int = 0) -> HMR2:
    """A float64 network none of whose parameters is zero or one, so that no term can be forgotten unseen."""
    generator = torch.Generator().manual_seed(seed)
    state = build(config, "meta").state_dict()
    return from_state(
        config,
        {
            name: torch.randn(like.shape, generator=generator, dtype=torch.float64) * 0.3 + ("norm" in name)
            for name, like in state.items()
        },
    )


def images(count: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, 256, 192, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("changes", [{}, {"token_input": "mean_shape", "iterations": 3}, {"iterations": 2}])
def test_equals_the_slow_transcription(changes: dict) -> None:
    config = replace(SMALL, **changes)
    network = lively(config)
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    crops = images(2)
    with torch.no_grad():
        out = network(crops)
        tokens = network.backbone(crops)
    for index in range(2):
        expected_tokens = slow_hmr2.backbone(crops[index].numpy(), arrays, config.depth, config.num_heads)[-1]
        expected = slow_hmr2.head(expected_tokens, arrays, config)
        np.testing.assert_allclose(tokens[index], expected_tokens, atol=1e-11)
        rotations = torch.cat([out.global_orient, out.body_pose], 1)[index]
        np.testing.assert_allclose(rotations, expected["rotations"], atol=1e-10)
        np.testing.assert_allclose(out.betas[index], expected["betas"], atol=1e-10)
        np.testing.assert_allclose(out.cam[index], expected["cam"], atol=1e-10)
        np.testing.assert_allclose(out.features[index], expected["features"], atol=1e-10)


def test_layer_inputs_and_partial_runs_agree_with_the_transcription() -> None:
    network = lively(SMALL)
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    expected = slow_hmr2.backbone(images(1)[0].numpy(), arrays, SMALL.depth, SMALL.num_heads)
    with torch.no_grad():
        taps = list(network.backbone.layer_inputs(images(1)))
        middle, _ = network.backbone.run_blocks(taps[0], 0, 2)
        last, _ = network.backbone.run_blocks(middle, 2)
    assert len(taps) == SMALL.depth + 1
    # Neither the last output before the norm nor the one after it has a counterpart in the other.
    for tap, wanted in zip(taps[:-1], expected[:-1], strict=True):
        np.testing.assert_allclose(tap[0], wanted, atol=1e-11)
    assert torch.equal(middle, taps[2]) and torch.equal(last, taps[3])


def test_keys_and_shapes_of_the_published_checkpoint() -> None:
    listed = dict(line.split("\t")[:2] for line in KEYS.read_text().splitlines())
    network = build(NetworkConfig(), "meta")
    assert {name: str(tuple(tensor.shape)) for name, tensor in network.state_dict().items()} == listed
    state = {
        name: torch.empty([int(n) for n in shape.strip("()").split(",") if n], device="meta")
        for name, shape in listed.items()
    }
    assert config_from_state(state) == NetworkConfig()
    network.load_state_dict(state, strict=True, assign=True)


def test_published_parameter_counts() -> None:
    network = build(NetworkConfig(), "meta")
    assert sum(p.numel() for p in network.backbone.parameters()) == 630_912_000
    assert sum(p.numel() for p in network.backbone.blocks[0].parameters()) == 19_677_440
    assert sum(p.numel() for p in network.smpl_head.parameters()) == 39_547_037


@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 7), (15, 11)])
def test_a_token_sees_its_window_and_nothing_else(row: int, column: int) -> None:
    network = lively(SMALL)
    crops = images(1)
    with torch.no_grad():
        base = network.backbone.embed(crops)[0]
        for pixel_row in (16 * row - 3, 16 * row - 2, 16 * row + 13, 16 * row + 14):
            if not 0 <= pixel_row < 256:
                continue
            moved = crops.clone()
            moved[0, :, pixel_row, max(16 * column - 2, 0)] += 1
            changed = (network.backbone.embed(moved)[0] != base).any(-1).view(16, 12)
            assert bool(changed[row, column]) == (16 * row - 2 <= pixel_row <= 16 * row + 13)
            assert changed.sum() == (1 if pixel_row < 254 else 0)
    # The last two rows and columns fall off: (256 + 2*2 - 16) is not a whole number of strides.


def test_positions_are_the_shared_one_plus_their_own() -> None:
    network = lively(SMALL)
    own = network.state_dict()["backbone.pos_embed"]
    assert torch.equal(network.backbone.positions((16, 12)), own[:, 1:] + own[:, :1])


def test_smaller_images_get_interpolated_positions() -> None:
    network = lively(SMALL)
    position = network.state_dict()["backbone.pos_embed"]
    rows = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None, None].expand(16, 12, 24)
    position[:, 1:] = rows.reshape(1, 192, 24)  # a ramp stays a ramp away from the border, at the middle of two rows
    position[:, 0] = 0
    network = from_state(SMALL, network.state_dict() | {"backbone.pos_embed": position})
    small = network.backbone.positions((8, 6)).view(8, 6, 24)
    expected = (rows[0::2] + rows[1::2]) / 2
    torch.testing.assert_close(small[1:-1], expected[1:-1, ::2])
    assert network(images(2)[:, :, :128, :96]).cam.shape == (2, 3)


def test_batch_and_inputs() -> None:
    network = lively(SMALL)
    crops = images(3)
    before = crops.clone()
    mask = torch.zeros(3, 16, 12, dtype=torch.bool)
    with torch.no_grad():
        together = network(crops, mask)
        alone = network(crops[1:2])
    assert torch.equal(crops, before)
    torch.testing.assert_close(together.body_pose[1:2], alone.body_pose)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 8, 6, dtype=torch.bool), r"got shape \(2, 8, 6\), expected \(B, 16, 12\)"),
        (torch.zeros(2, 16, 12), r"got torch.float32, expected torch.bool"),
        (torch.zeros(1, 16, 12, dtype=torch.bool), r"got 1 masks for 2 images"),
        (torch.zeros(2, 192, dtype=torch.bool), r"got shape \(2, 192\), expected \(B, 16, 12\)"),
    ],
)
def test_a_wrong_mask_is_named(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        lively(SMALL)(images(2), wrong)


@pytest.mark.parametrize("shape", [(3, 256, 192), (1, 3, 250, 192), (1, 1, 256, 192)])
def test_wrong_images_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"images: got shape .* expected \(B, 3, 256, 192\)"):
        lively(SMALL)(torch.zeros(shape, dtype=torch.float64))


def test_sizes_are_read_off_a_state_dict() -> None:
    for config in (SMALL, replace(SMALL, token_input="mean_shape")):
        state = build(config, "meta").state_dict()
        assert config_from_state(state, num_heads=3, head_heads=2) == config
    with pytest.raises(UserError, match="Give num_heads"):
        config_from_state(state, head_heads=2)
    with pytest.raises(UserError, match="num_heads: got 5, expected a divisor of 24"):
        config_from_state(state, num_heads=5, head_heads=2)
    del state["backbone.pos_embed"]
    with pytest.raises(UserError, match="no key backbone.pos_embed"):
        config_from_state(state, num_heads=3, head_heads=2)


def test_random_weights_are_seeded_and_start_at_the_mean_pose() -> None:
    first, again, other = (random_state(SMALL, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.blocks.0.mlp.fc1.weight"], other["backbone.blocks.0.mlp.fc1.weight"])
    network = from_state(SMALL, first | {"smpl_head.decpose.weight": torch.zeros(144, 20)})
    with torch.no_grad():
        out = network(images(1, dtype=torch.float32))
    assert torch.equal(out.body_pose[0], torch.eye(3).expand(23, 3, 3))
    assert random_sha256("hmr2", 0) != random_sha256("hmr2", 1)


def test_sharing_keeps_weights_and_separates_the_rest() -> None:
    network = lively(SMALL)
    other = share(network)
    other.train()
    assert not network.training and not network.backbone.blocks[0].training
    mine, theirs = network.backbone.blocks[0].mlp.fc1.weight, other.backbone.blocks[0].mlp.fc1.weight
    assert mine.data_ptr() == theirs.data_ptr()


def test_networks_of_one_size_share_no_module() -> None:
    """They are copies of one: nothing that is done to one is seen in the next, and other keys or shapes are refused."""
    weights = random_state(SMALL, 0)
    first = from_state(SMALL, weights)
    first.backbone.blocks[0].register_forward_hook(lambda *given: torch.zeros(1))
    first.backbone.reducer = object()  # type: ignore[assignment]
    del first.backbone.blocks[1]
    first.train().requires_grad_(False)
    second = from_state(SMALL, weights)
    assert len(second.backbone.blocks) == SMALL.depth and second.backbone.reducer is None and not second.training
    assert not any(module._forward_hooks for module in second.modules())
    assert all(each.requires_grad for each in second.parameters())
    assert not {*map(id, first.modules())} & {*map(id, second.modules())}
    assert all(tensor.data_ptr() == weights[name].data_ptr() for name, tensor in second.state_dict().items())
    for wrong in (
        {name: tensor for name, tensor in weights.items() if name != "smpl_head.init_cam"},
        weights | {"more": torch.zeros(1)},
        weights | {"smpl_head.init_cam": torch.zeros(1, 4)},
    ):
        with pytest.raises(RuntimeError, match="init_cam|more"):
            from_state(SMALL, wrong)
