"""CameraHMR, TokenHMR and HaMeR: key names, sizes, and their heads against slow transcriptions in float64."""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import slow_families
import torch
from slow_hmr2 import Arrays
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.models.families.camerahmr import CameraHMRConfig
from hmrcompress.models.families.camerahmr_smplx import CameraHMRXConfig
from hmrcompress.models.families.hamer import HaMeRConfig
from hmrcompress.models.families.registry import FAMILIES, network_class, read_config, recognise
from hmrcompress.models.families.tokenhmr import TokenHMRConfig, places_between
from hmrcompress.models.files.load import load_checkpoint, random_checkpoint
from hmrcompress.models.heads import SMPLHead
from hmrcompress.models.network import HMR2, NetworkConfig, build, config_from_state, from_state

DATA = Path(__file__).parent / "data"
SIZES = {
    "dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40,
    "head_width": 20, "head_depth": 2, "head_heads": 2, "head_dim": 6, "head_mlp_dim": 28,
}  # fmt: skip
CAMERA = CameraHMRConfig(**SIZES, keypoints=5)
HAND = HaMeRConfig(**SIZES)
WHOLE = CameraHMRXConfig(**SIZES)
TOKENS = TokenHMRConfig(
    **SIZES, pose_tokens=46, token_dim=4, mixer_depth=2, mixer_tokens=5, mixer_channels=7,
    codes=11, code_dim=6, decoder_width=8, decoder_steps=3, decoder_depth=3, dilation=2,
)  # fmt: skip


def keys_of(name: str) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a published file; `{0..31}` in a list stands for each of these numbers."""
    found = {}
    for line in (DATA / f"{name}_keys.txt").read_text().splitlines():
        key, shape = line.split("\t")[:2]
        parts = re.split(r"\{(\d+)\.\.(\d+)\}", key)
        ranges = [range(int(low), int(high) + 1) for low, high in zip(parts[1::3], parts[2::3], strict=True)]
        for numbers in itertools.product(*ranges):
            name = parts[0] + "".join(f"{n}{rest}" for n, rest in zip(numbers, parts[3::3], strict=True))
            found[name] = tuple(map(int, re.findall(r"\d+", shape)))
    return found


def published(name: str) -> dict[str, Tensor]:
    """Tensors without values, with the keys and shapes of a published file."""
    return {key: torch.empty(shape, device="meta") for key, shape in keys_of(name).items()}


@pytest.mark.parametrize(
    "name, count", [("camerahmr", 505), ("camerahmr_smplx", 506), ("tokenhmr", 563), ("hamer", 503), ("hmr2", 503)]
)
def test_a_file_with_the_published_keys_loads_strictly(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors without numbers are refused in files; here they stand for gigabytes.
    monkeypatch.setattr("hmrcompress.io.checkpoints.check_plain", lambda name, tensor, path: None)
    state, path = published(name), tmp_path / "checkpoints" / "last.ckpt"
    assert len(state) == count
    path.parent.mkdir()
    left_over = {"initialized": torch.zeros((), dtype=torch.bool), "discriminator.D_conv1.weight": torch.zeros(1)}
    torch.save({"state_dict": state | left_over}, path)
    if name == "tokenhmr":
        hyper = {"ARCH": {"DILATION_RATE": 3, "ROT_TYPE": "rot6d"}}
        torch.save({"hparams": hyper, "net": published("tokenhmr_tokenizer")}, tmp_path / "tokenizer.pth")
    checkpoint = load_checkpoint(path)
    assert checkpoint.family == name and type(checkpoint.network) is network_class(name)
    assert checkpoint.config == network_class(name).config_class()
    assert next(checkpoint.network.parameters()).device.type == "meta"
    loaded = {key: tuple(tensor.shape) for key, tensor in checkpoint.state().items()}
    assert set(checkpoint.ignored) == set(left_over)
    parts = {key for key in loaded if key.startswith("smpl_head.decpose.tokenizer.")}
    assert set(loaded) - parts == set(state) and all(loaded[key] == tuple(state[key].shape) for key in state)
    if name == "tokenhmr":
        wanted = {key: shape for key, shape in keys_of("tokenhmr_tokenizer").items() if not key.startswith("encoder.")}
        assert {key.removeprefix("smpl_head.decpose.tokenizer."): loaded[key] for key in parts} == wanted


def lively(config: NetworkConfig, seed: int = 0) -> HMR2:
    """A float64 network none of whose parameters is zero or one, so that no term can be forgotten unseen."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(like.shape, generator=generator, dtype=torch.float64) * 0.3
        for name, like in build(config, "meta").state_dict().items()
    }
    return from_state(config, state).requires_grad_(False)


def arrays(network: HMR2) -> Arrays:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("config", [CAMERA, WHOLE, TOKENS, HAND], ids=lambda config: config.family)
def test_the_head_equals_the_slow_transcription(config: NetworkConfig) -> None:
    network, generator = lively(config), torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 9, config.dim, generator=generator, dtype=torch.float64)
    condition = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    found, state = network.read(tokens, condition=condition), arrays(network)
    for row in range(2):
        if config is CAMERA:
            wanted = slow_families.camera_head(tokens[row].numpy(), condition[row].numpy(), state, config)
        elif config is WHOLE:
            wanted = slow_families.whole_head(tokens[row].numpy(), condition[row].numpy(), state, config)
        elif config is TOKENS:
            wanted = slow_families.token_head(tokens[row].numpy(), state, config, [37, 29, 21], [4, 2, 1])
        else:
            wanted = slow_families.mano_head(tokens[row].numpy(), state, config)
        np.testing.assert_allclose(found.params.rotations[row], wanted.pop("rotations"), rtol=1e-9, atol=1e-9)
        for name, value in wanted.items():
            np.testing.assert_allclose(getattr(found, name)[row], value, rtol=1e-9, atol=1e-9, err_msg=name)
    assert (found.keypoints is None) == (config is not CAMERA)


def test_the_decoder_s_places() -> None:
    assert places_between(160, 21, 4) == [125, 90, 55, 21]  # numpy.linspace(21, 160, 4, endpoint=False), rounded down
    for tokens, steps in ((80, 2), (40, 1), (320, 6)):
        wanted = np.linspace(21, tokens, steps, endpoint=False, dtype=int)[::-1].tolist()
        assert places_between(tokens, 21, steps) == wanted


@pytest.mark.parametrize("config", [CAMERA, WHOLE, TOKENS, HAND], ids=lambda config: config.family)
def test_sizes_are_read_off_the_state(config: NetworkConfig) -> None:
    state = build(config, "meta").state_dict()
    known = {"dilation": 2} if config is TOKENS else {}
    kind = network_class(config.family)
    assert recognise(state.keys()).name == config.family
    assert config_from_state(state, num_heads=3, head_heads=2, kind=kind, known=known) == config
    assert read_config(config.to_dict()) == config


def test_the_condition_is_honoured_and_asked_for() -> None:
    network = lively(CAMERA)
    images = torch.randn(2, 3, 256, 192, dtype=torch.float64)
    condition = torch.tensor([[0.1, -0.2, 0.5], [0.1, -0.2, 0.5]], dtype=torch.float64)
    first = network(images, None, condition)
    moved = network(images, None, condition + torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0]], dtype=torch.float64))
    assert torch.equal(first.cam[0], moved.cam[0]) and not torch.allclose(first.cam[1], moved.cam[1])
    with pytest.raises(UserError, match="box and the focal length"):
        network(images)
    # Networks that are told nothing leave it aside.
    assert torch.equal(lively(HAND)(images, None, condition).cam, lively(HAND)(images).cam)


def test_the_tokenizer_is_found_asked_for_and_checked(tmp_path: Path) -> None:
    whole, prefix = build(TOKENS).state_dict(), "smpl_head.decpose.tokenizer."
    tokenizer = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
    own = {key: value for key, value in whole.items() if not key.startswith(prefix)}
    path, heads = tmp_path / "run" / "checkpoints" / "a.ckpt", {"num_heads": 3, "head_heads": 2}
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": own}, path)
    with pytest.raises(UserError, match=r"needs its tokenizer.*tokenizer\.pth"):
        load_checkpoint(path, **heads)

    hyper = {"ARCH": {"DILATION_RATE": 2, "ROT_TYPE": "rot6d"}}
    torch.save({"hparams": hyper, "net": tokenizer | {"encoder.x": torch.zeros(1)}}, tmp_path / "other.pth")
    given = load_checkpoint(path, **heads, part=tmp_path / "other.pth")
    assert given.config == TOKENS and all(torch.equal(value, whole[key]) for key, value in given.state().items())
    named = {"MODEL": {"TOKENIZER_CHECKPOINT_PATH": "data/other.pth"}}
    (tmp_path / "run" / "other.pth").write_bytes((tmp_path / "other.pth").read_bytes())
    torch.save({"state_dict": own, "hyper_parameters": {"cfg": named}}, path)
    found = load_checkpoint(path, **heads)
    assert found.config == TOKENS and found.origins["tokenizer"] == str(tmp_path / "run" / "other.pth")

    torch.save({"hparams": {"ARCH": {"ROT_TYPE": "rotmat"}}, "net": tokenizer}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="'rotmat', expected 'rot6d'"):
        load_checkpoint(path, **heads, part=tmp_path / "odd.pth")
    with pytest.raises(UserError, match="so this is no tokenizer"):
        load_checkpoint(path, **heads, part=path)


def test_head_settings_come_from_the_family_s_section(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "hand.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": build(HAND).state_dict() | {"mano.faces": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match="Give head_heads"):
        load_checkpoint(path, num_heads=3)
    (tmp_path / "model_config.yaml").write_text("MODEL: {MANO_HEAD: {TRANSFORMER_DECODER: {heads: 2}}}\n")
    checkpoint = load_checkpoint(path, num_heads=3)
    assert checkpoint.config == HAND and checkpoint.ignored == ("mano.faces",)


def test_the_guide_s_family_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/families.md, registered as it says."""
    text = (Path(__file__).parent.parent / "docs" / "families.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class NewConfig" in block)
    guide = ModuleType("guide")
    guide.__dict__.update(
        {"dataclass": dataclass, "ClassVar": ClassVar, "Any": Any, "nn": nn, "HMR2": HMR2},
        NetworkConfig=NetworkConfig,
        SMPLHead=SMPLHead,
    )
    monkeypatch.setitem(sys.modules, "guide", guide)
    exec(code, guide.__dict__)
    entry = replace(FAMILIES["hmr2"], name="new", network=guide.New, has=("smpl_head.decthing.weight",))
    monkeypatch.setitem(FAMILIES, "new", entry)
    config = guide.NewConfig(**SIZES, things=3)
    network = build(config)
    state = network.state_dict()
    assert state["smpl_head.decthing.weight"].shape == (3, 20)
    assert config_from_state(state, num_heads=3, head_heads=2, kind=network_class("new")) == config
    assert read_config(config.to_dict()) == config
    assert network(torch.zeros(1, 3, 256, 192)).cam.shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_random_networks_of_full_size(name: str) -> None:
    checkpoint = random_checkpoint(name)
    network, images = checkpoint.network, torch.zeros(1, 3, 256, 192)
    found = network(images, None, torch.tensor([[0.0, 0.0, 0.5]]))
    eye = torch.eye(3).expand_as(found.params.rotations)
    assert (found.params.rotations - eye).abs().max() < 0.9  # about the mean pose, which is the identity
