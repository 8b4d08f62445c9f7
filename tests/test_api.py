"""Strings become objects in one place; objects pass through it unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import hmrcompress as hc
from hmrcompress.api import opening
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.errors import UserError
from hmrcompress.evaluation.similarity import layer_similarity
from hmrcompress.models.network import HMR2
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.report.plots import check_picture, draw_similarity
from hmrcompress.report.table import caption, stage_table
from hmrcompress.starter.data import dataset


def test_models(tiny_model: Path, tiny_network: HMR2) -> None:
    loaded = hc.load(tiny_model)
    assert loaded.config == tiny.CONFIG and hc.load(loaded) is loaded
    for name, tensor in tiny_network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor)
    with pytest.raises(UserError, match="expected one of hmr2"):
        hc.load("random:nothing")


def test_bodies(tiny_body_file: Path, tiny_body: BodyModel) -> None:
    assert opening.open_body(tiny_body) is tiny_body
    assert opening.open_body(str(tiny_body_file)).name == "tiny"
    assert opening.open_body("starter").num_joints == 24


def test_data_by_path_and_prefix(tiny_crops_file: Path, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    assert opening.open_data(tiny_crops, body=tiny_body) is tiny_crops
    for text in (str(tiny_crops_file), f"crops:{tiny_crops_file}", tiny_crops_file):
        assert opening.open_data(text, body=tiny_body).sha256 == tiny_crops.sha256
    with pytest.raises(UserError, match="only starter splits"):
        opening.open_data(tiny_crops_file, body=tiny_body, clips=1)


@pytest.mark.parametrize(
    ("text", "default", "wanted"),
    [("starter", "calib", "calib"), ("starter", "val", "val"), ("starter:dev", "val", "dev")],
)
def test_starter_splits(
    text: str, default: str, wanted: str, tiny_body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int | None]] = []
    monkeypatch.setattr(dataset, "open_split", lambda name, body, clips, size, progress: asked.append((name, clips)))
    opening.open_data(text, body=tiny_body, split=default, clips=3)
    assert asked == [(wanted, 3)]


def test_names_of_protocols_and_masks() -> None:
    assert opening.open_protocol("starter24").pelvis == (0,)
    with pytest.raises(UserError, match="expected one of starter24"):
        opening.open_protocol("3dpw")
    assert opening.open_masks("none").name == "none"
    with pytest.raises(UserError, match="expected data, self, none, auto, files:DIR or onnx:FILE"):
        opening.open_masks("somewhere")


def test_modules_are_copied_only_where_they_move(tiny_network: HMR2) -> None:
    assert opening.on_device(tiny_network, torch.device("cpu")) is tiny_network
    moved = opening.on_device(tiny_network, torch.device("meta"))
    assert next(moved.parameters()).is_meta and not next(tiny_network.parameters()).is_meta


def test_a_compressed_model_merges_its_tokens(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = hc.load(tiny_model)
    plan = Plan(
        checkpoint=checkpoint.reference, groups=((0,), (1,), (2, 3)), tokens=TokenSettings(keep=152, per_layer=40)
    )
    hc.merge(checkpoint, plan, tmp_path / "merged")
    merged = hc.load(tmp_path / "merged")
    images = torch.zeros(1, 3, 256, 192)
    assert merged.network.backbone(images).shape[1] == 192
    assert opening.compressed_network(merged).backbone(images).shape[1] == 152


def test_layer_similarity(tiny_network: HMR2, tmp_path: Path) -> None:
    """A block that adds nothing puts out what it got; one whose MLP is turned up does not."""
    arrays = tiny.crop_arrays(clips=2, frames=8)
    write_crops(tmp_path / "crops.npz", arrays, tiny.crop_meta())
    crops = CropSet.open(tmp_path / "crops.npz")
    state = {name: tensor.clone() for name, tensor in tiny_network.state_dict().items()}
    for kind in ("fc1.weight", "fc2.weight"):
        state[f"backbone.blocks.3.mlp.{kind}"] *= 40
    for part in ("attn.proj", "mlp.fc2"):
        for kind in ("weight", "bias"):
            state[f"backbone.blocks.1.{part}.{kind}"].zero_()
    network = tiny.network()
    network.load_state_dict(state)
    matrix = layer_similarity(network, crops, batch_size=8)
    assert matrix.shape == (5, 5) and np.allclose(np.diag(matrix), 1) and np.allclose(matrix, matrix.T)
    assert matrix[1, 2] == pytest.approx(1.0, abs=1e-9)
    assert matrix[3, 4] < 0.99
    with pytest.raises(UserError, match="at least 4"):
        layer_similarity(network, crops, frames=3)
    draw_similarity(matrix, tmp_path / "cka.png", title="tiny", groups=[[0], [1, 2], [3]])
    assert (tmp_path / "cka.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"end in \.png"):
        check_picture(tmp_path / "cka.svg")


def test_the_table_shows_what_was_measured_and_a_gap_for_what_was_not() -> None:
    scores = {"pa_mpjpe_mm": 50.0, "n_frames": 9, "n_clips": 2, "protocol": "starter24"}
    summary = {
        "stages": {"mean_pose": {"mpjpe_mm": 240.0, **scores}, "merged": {"mpjpe_mm": 99.0, **scores}},
        "costs": {"merged": {"layers": 9, "tokens": 192, "macs": 1_234_000_000}},
        "bench": {"fps": {"merged": 21.5}, "batch_size": 4, "threads": 2},
        "device": "cpu",
        "data": {"name": "starter", "split": "val"},
    }
    table = stage_table(summary)
    assert table.rows == [
        ("mean pose", 240.0, 50.0, None, None, None, None, None, None),
        ("merged layers", 99.0, 50.0, None, None, 9, 192, "1.234", 21.5),
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert caption(summary) == (
        "9 frames of 2 clips of starter:val, protocol starter24, errors in mm; frames/s on cpu at batch 4, 2 threads"
    )
    assert caption({}) == "" and stage_table({}).rows == []
