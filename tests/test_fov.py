"""The field-of-view network: key names, a slow transcription in float64, letterboxing, focal lengths once a shot."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from slow_hmr2 import Arrays, linear
from test_families import keys_of

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.models.families.fov import (
    FieldOfView,
    FovConfig,
    focal_length,
    focal_lengths,
    fov_config,
    letterboxed,
    load_fov,
)

TINY = FovConfig(width=2, stem=3, first_blocks=2, blocks=1, modules=(1, 1, 1), heatmaps=2, hidden=5)


def test_a_file_with_the_published_keys_loads_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors without numbers are refused in files; here they stand for hundreds of megabytes.
    monkeypatch.setattr("hmrcompress.io.checkpoints.check_plain", lambda name, tensor, path: None)
    shapes = keys_of("camerahmr_fov")
    state = {
        key: torch.empty(shape, device="meta", dtype=torch.int64 if key.endswith("tracked") else torch.float32)
        for key, shape in shapes.items()
    }
    torch.save({"state_dict": state}, tmp_path / "cam.ckpt")
    network = load_fov(tmp_path / "cam.ckpt")
    assert network.config == FovConfig() and len(shapes) == 1874
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes
    del state["fc2.weight"]
    torch.save({"state_dict": state}, tmp_path / "cut.ckpt")
    with pytest.raises(UserError, match="1 keys missing: fc2.weight"):
        load_fov(tmp_path / "cut.ckpt")


def convolve(x: np.ndarray, state: Arrays, key: str, stride: int = 1) -> np.ndarray:
    """x (C,H,W) -> (O,H/stride,W/stride), zeros beyond the edges."""
    weight = state[f"{key}.weight"]
    full = [sum(correlate2d(plane, tap, mode="same") for plane, tap in zip(x, taps, strict=True)) for taps in weight]
    return np.array(full)[:, ::stride, ::stride]


def normed(x: np.ndarray, state: Arrays, key: str) -> np.ndarray:
    mean, variance, weight, bias = (
        state[f"{key}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def step(x: np.ndarray, state: Arrays, key: str, stride: int = 1) -> np.ndarray:
    return normed(convolve(x, state, f"{key}.0", stride), state, f"{key}.1")


def fused(branches: list[np.ndarray], state: Arrays, key: str) -> list[np.ndarray]:
    """A module with one block a branch: blocks, then every branch the sum of all, brought to its size."""
    seen = []
    for index, x in enumerate(branches):
        place = f"{key}.branches.{index}.0"
        y = relu(normed(convolve(x, state, f"{place}.conv1"), state, f"{place}.bn1"))
        seen.append(relu(x + normed(convolve(y, state, f"{place}.conv2"), state, f"{place}.bn2")))
    out = []
    for target in range(len(seen)):
        total = np.zeros_like(seen[target])
        for source, x in enumerate(seen):
            place = f"{key}.fuse_layers.{target}.{source}"
            if source > target:
                x = step(x, state, place).repeat(2 ** (source - target), 1).repeat(2 ** (source - target), 2)
            for down in range(target - source):
                x = step(x, state, f"{place}.{down}", 2)
                x = x if down == target - source - 1 else relu(x)
            total = total + x
        out.append(relu(total))
    return out


def slow(image: np.ndarray, state: Arrays) -> np.ndarray:
    """image (3,S,S) -> (2,)."""
    x = image
    for number in (1, 2):
        x = relu(normed(convolve(x, state, f"backbone.conv{number}", 2), state, f"backbone.bn{number}"))
    for block in range(2):
        place, y = f"backbone.layer1.{block}", x
        for number in (1, 2, 3):
            y = normed(convolve(y, state, f"{place}.conv{number}"), state, f"{place}.bn{number}")
            y = y if number == 3 else relu(y)
        x = relu((step(x, state, f"{place}.downsample") if block == 0 else x) + y)
    branches = [
        relu(step(x, state, "backbone.transition1.0")),
        relu(step(x, state, "backbone.transition1.1.0", 2)),
    ]
    branches = fused(branches, state, "backbone.stage2.0")
    branches.append(relu(step(branches[-1], state, "backbone.transition2.2.0", 2)))
    branches = fused(branches, state, "backbone.stage3.0")
    branches.append(relu(step(branches[-1], state, "backbone.transition3.3.0", 2)))
    branches = fused(branches, state, "backbone.stage4.0")
    pooled = []
    for index, y in enumerate(branches):
        for down in range(3 - index):
            y = relu(
                normed(
                    convolve(y, state, f"backbone.downsample_stage_{index + 1}.{3 * down}", 2),
                    state,
                    f"backbone.downsample_stage_{index + 1}.{3 * down + 1}",
                )
            )
        pooled.append(y.mean((1, 2)))
    return linear(linear(np.concatenate(pooled), state, "fc1"), state, "fc3")


def test_it_equals_the_slow_transcription() -> None:
    generator = torch.Generator().manual_seed(0)
    network = FieldOfView(TINY).double().eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.5
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    images = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    found = network(images)
    for row in range(2):
        np.testing.assert_allclose(found[row], slow(images[row].numpy(), state), rtol=1e-9, atol=1e-9)
    assert fov_config(network.state_dict()) == TINY


def test_letterboxing_is_the_mean_over_areas() -> None:
    source = np.random.default_rng(0)
    wide = source.integers(0, 256, (512, 1024, 3), dtype=np.uint8)  # four to one: whole pixels
    found = letterboxed(wide)
    wanted = np.rint(wide.reshape(128, 4, 256, 4, 3).astype(float).mean((1, 3)))
    assert (found[:64] == 255).all() and (found[192:] == 255).all()
    np.testing.assert_array_equal(found[64:192], wanted)
    tall = source.integers(0, 256, (384, 300, 3), dtype=np.uint8)  # 1.5 to one: pixels are shared
    found = letterboxed(tall)
    assert (found[:, :28] == 255).all() and (found[:, 228:] == 255).all()
    weights = np.zeros((256, 384))
    for place in range(256):
        for pixel in range(384):
            weights[place, pixel] = max(0.0, min((place + 1) * 1.5, pixel + 1) - max(place * 1.5, pixel)) / 1.5
    first = weights @ (tall[:, 0] + 0.5 * tall[:, 1]) / 1.5
    assert np.abs(found[:, 28] - first).max() <= 0.5 + 1e-9
    with pytest.raises(ShapeError):
        letterboxed(np.zeros((4, 4), np.uint8))


def fixed(angle: float) -> FieldOfView:
    """A network that sees the same angle in every picture."""
    network = FieldOfView(TINY).eval().requires_grad_(False)
    network.fc3.weight.zero_()
    network.fc3.bias.copy_(torch.tensor([0.1, angle]))
    return network


def test_focal_lengths_once_a_shot() -> None:
    asked = []

    def picture(frame: int) -> np.ndarray:
        asked.append(frame)
        return np.full((100 if frame < 4 else 300, 160, 3), 80, np.uint8)

    found = focal_lengths(fixed(0.8), picture, [0, 0, 0, 0, 7, 7, 7])
    assert asked == [2, 5]
    tangent = 2 * math.tan(0.4)
    np.testing.assert_allclose(found, [100 / tangent] * 4 + [300 / tangent] * 3, rtol=1e-6)
    for angle in (-0.2, 3.5, math.nan):
        with pytest.raises(UserError, match="Give the focal length"):
            focal_length(fixed(angle), picture(0))
