"""CameraHMR, TokenHMR and HaMeR, small, through the whole line from their files to ONNX and back to their code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_families import HAND, TOKENS, WHOLE
from test_model_commands import run

import hmrcompress as hc
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.models.families.camerahmr import CameraHMRConfig
from hmrcompress.models.families.registry import network_class, read_config
from hmrcompress.models.families.tokenhmr import TOKENIZER
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.models.network import NetworkConfig, build
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.timing.bench import BenchSettings

pytest.importorskip("onnxruntime")

SIZES = {
    "dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48,
    "head_width": 32, "head_depth": 1, "head_heads": 2, "head_dim": 8, "head_mlp_dim": 32,
}  # fmt: skip
CAMERA = CameraHMRConfig(**SIZES, keypoints=3)


def small(config: NetworkConfig) -> NetworkConfig:
    """The configuration with the sizes of these tests, whatever its family has beside."""
    values = {name: value for name, value in config.to_dict().items() if name not in SIZES}
    return read_config(values | SIZES)


CONFIGS = [CAMERA, small(WHOLE), small(TOKENS), small(HAND)]


def write_checkpoint(config: NetworkConfig, folder: Path) -> Path:
    """A Lightning file as the family's code base leaves it, and TokenHMR's tokenizer beside it."""
    state = build(config, seed=1).state_dict()
    for name, tensor in state.items():
        if ".dec" in name and name.endswith("weight"):
            tensor.mul_(5)  # large enough that layers matter
    apart = {name: tensor for name, tensor in state.items() if name.startswith(TOKENIZER.prefix)}
    path = folder / "model.ckpt"
    torch.save({"state_dict": {name: tensor for name, tensor in state.items() if name not in apart}}, path)
    if apart:
        net = {name.removeprefix(TOKENIZER.prefix): tensor for name, tensor in apart.items()}
        torch.save({"hparams": {"ARCH": {"DILATION_RATE": 2}}, "net": net}, folder / "tokenizer.pth")
    return path


def write_data(config: NetworkConfig, path: Path, boxes: bool = True) -> Path:
    """Crops, for hands and SMPL-X without ground truth."""
    arrays, meta = tiny.crop_arrays(), tiny.crop_meta()
    arrays["conditions"] = np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)
    gone = (("poses", "betas") if config.num_joints != 24 else ()) + (() if boxes else ("conditions",))
    write_crops(path, {name: array for name, array in arrays.items() if name not in gone}, meta)
    return path


def told(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.family)
def test_the_whole_line(config: NetworkConfig, tmp_path: Path, tiny_body_file: Path) -> None:
    data = write_data(config, tmp_path / "crops.npz")
    searched, scores = (tmp_path / f"{name}.json" for name in ("search", "eval"))
    heads = ("--num-heads", 2, "--head-heads", 2)
    raw = write_checkpoint(config, tmp_path)
    assert run("convert", raw, "-o", tmp_path / "model", *heads).exit_code == 0
    model, unscored = tmp_path / "model.safetensors", config.num_joints != 24
    body = () if unscored else ("--body", tiny_body_file)

    seen = run("inspect", raw, *heads)
    assert seen.exit_code == 0 and f"family                        {config.family} (" in seen.output
    assert ("tokenizer.pth" in seen.output) == (config.family == "tokenhmr")
    assert ("box and focal length" in seen.output) == network_class(config.family).conditioned
    assert ("stacked as rows" in seen.output) == (config.family == "tokenhmr")

    plan, target = tmp_path / "plan.yaml", "teacher" if unscored else "truth"
    wanted = ("--keep-tokens", 160, "--merge-per-layer", 40, "--data", data)
    wanted += ("--set", "search.layers=1", "--set", f"search.target={target}")
    found = run("search", model, *wanted, "-o", plan, *body, "--json", searched, "--quiet")
    assert found.exit_code == 0, found.output
    assert told(searched)["layers"] == {"before": 2, "after": 1}

    merged = run("merge", model, "--plan", plan, "-o", tmp_path / "out")
    assert merged.exit_code == 0 and "2 -> 1 layers" in merged.output, merged.output
    record = told(tmp_path / "out" / "config.json")
    assert record["family"] == record["network"]["family"] == config.family
    assert record["body"]["sixd_layout"] == ("rows" if config.family == "tokenhmr" else "columns")
    assert load_checkpoint(tmp_path / "out").config.to_dict() == config.to_dict() | {"depth": 1}

    scored = run("eval", tmp_path / "out", "--data", data, "--against", model, *body, "--json", scores, "--quiet")
    if unscored:
        what = "hands" if config.num_joints == 16 else "such bodies"
        assert scored.exit_code == 2 and f"no data set of {what} is read" in scored.stderr
    else:
        assert scored.exit_code == 0, scored.output
        assert list(told(scores)["stages"]) == ["mean_pose", "baseline", "merged", "tokens_alone", "merged_tokens"]

    settings = BenchSettings(batch_sizes=(2,), rounds=1, memory=False)
    timed = hc.bench(tmp_path / "out", settings=settings, body="starter" if unscored else tiny_body_file)
    assert timed.layers == {"before": 2, "after": 1} and timed.speedup(2, "network") > 0

    back = run("merge", model, "--plan", plan, "--format", "original", "-o", tmp_path / "theirs.ckpt")
    assert back.exit_code == 0, back.output
    state = torch.load(tmp_path / "theirs.ckpt", weights_only=True)["state_dict"]
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in torch.load(raw, weights_only=True)["state_dict"].items()
    }
    again = load_checkpoint(tmp_path / "theirs.ckpt", num_heads=2, head_heads=2).network
    ours, batch = load_checkpoint(tmp_path / "out").network, next(CropSet.open(data).batches([0, 5], truth=False))
    with torch.no_grad():
        torch.testing.assert_close(
            again(*batch.inputs()).features, ours(*batch.inputs()).features, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("config", [small(WHOLE), small(HAND)], ids=lambda config: config.family)
def test_healing_needs_no_truth_of_the_body(config: NetworkConfig, tmp_path: Path) -> None:
    """The data hold poses of SMPL, which say nothing of other bodies: the network heals towards its teacher."""
    data, figures = tmp_path / "crops.npz", tmp_path / "heal.json"
    arrays = tiny.crop_arrays() | {"conditions": np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)}
    write_crops(data, arrays, tiny.crop_meta())
    write_model_folder(tmp_path / "whole", build(config, seed=1).state_dict(), config)
    hc.merge(tmp_path / "whole", Plan(groups=((0, 1),), merge_rule="mean"), tmp_path / "out", force=True)
    wanted = ("--images", 8, "--batch-size", 4, "--data", data, "--masks", "none", "--teacher", tmp_path / "whole")
    wanted += ("-o", tmp_path / "healed", "--json", figures, "--quiet")
    healed = run("finetune", tmp_path / "out", "--stage", "heal", *wanted)
    assert healed.exit_code == 0, healed.output
    found = told(figures)
    assert "mpjpe_mm" not in str(found) and "to_teacher_mm" in str(found)


@pytest.mark.parametrize(
    "config",
    [CAMERA, *(pytest.param(config, marks=pytest.mark.slow) for config in CONFIGS[1:])],  # as HMR2 but for their heads
    ids=lambda config: config.family,
)
@pytest.mark.usefixtures("graphs")
def test_export(config: NetworkConfig, tmp_path: Path, tiny_body_file: Path) -> None:
    data, written = write_data(config, tmp_path / "crops.npz"), tmp_path / "export.json"
    body = () if config.num_joints != 24 else ("--body", tiny_body_file)
    network, tokens = build(config, seed=1), TokenSettings(keep=160, per_layer=40)
    checkpoint = write_model_folder(tmp_path / "whole", network.state_dict(), config, body="tiny")
    plan = Plan(checkpoint=load_checkpoint(checkpoint.path).reference, groups=((0, 1),), tokens=tokens)
    hc.merge(checkpoint.path, plan, tmp_path / "out")
    made = run(
        "export", tmp_path / "out", "-o", tmp_path / "m.onnx", "--data", data, *body, "--json", written, "--quiet"
    )
    assert made.exit_code == 0, made.output
    assert told(written)["onnx_max_abs_diff"] < 1e-4 and told(written)["onnx_joints_mm"] < 0.05
    inputs = told(tmp_path / "m.onnx.json")["inputs"]
    assert set(inputs) == {"images", "person_mask"} | ({"condition"} if network.conditioned else set())


def test_data_without_boxes_are_refused(tmp_path: Path, tiny_body_file: Path) -> None:
    data = write_data(CAMERA, tmp_path / "crops.npz", boxes=False)
    heads = ("--num-heads", 2, "--head-heads", 2)
    assert run("convert", write_checkpoint(CAMERA, tmp_path), "-o", tmp_path / "model", *heads).exit_code == 0
    model, body = tmp_path / "model.safetensors", ("--body", tiny_body_file)
    before = sorted(tmp_path.iterdir())
    cases = [
        ("search", model, "--data", data, "--set", "search.tokens=null", "-o", tmp_path / "plan.yaml", *body),
        ("eval", model, "--data", data, *body),
        ("export", model, "-o", tmp_path / "m.onnx", "--data", data, *body),
    ]
    for arguments in cases:
        ended = run(*arguments, "--quiet")
        assert ended.exit_code == 2 and "box and the focal length" in ended.stderr, (arguments, ended.output)
        assert ended.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
