"""The compressed-model folder: what merge writes, load reads; damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from hmrcompress.errors import UserError
from hmrcompress.merging.layers import merge_layers
from hmrcompress.merging.merge import merge_checkpoint, merge_network
from hmrcompress.models.files.convert import convert_checkpoint
from hmrcompress.models.files.folder import as_half, read_model_folder, write_model_folder
from hmrcompress.models.files.load import Checkpoint, load_checkpoint, random_checkpoint
from hmrcompress.plan import Plan, TokenSettings

GROUPS = ((0,), (1,), (2, 3))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    made = Checkpoint(network=tiny.network(), family="hmr2", name="tiny", known_sha256="0" * 64)
    return load_checkpoint(convert_checkpoint(made, tmp_path / "source" / "tiny").weights)


@pytest.fixture
def plan(checkpoint: Checkpoint) -> Plan:
    return Plan(checkpoint=checkpoint.reference, groups=GROUPS, tokens=TokenSettings(keep=100))


@torch.no_grad()
def test_merge_then_load(tmp_path: Path, checkpoint: Checkpoint, plan: Plan) -> None:
    folder = merge_checkpoint(checkpoint, plan, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "plan.yaml",
    ]  # fmt: skip
    assert Plan.read(tmp_path / "out" / "plan.yaml") == plan
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.config.depth == 3 and loaded.tokens == plan.tokens and loaded.plan == plan
    assert loaded.sha256 == folder.sha256 == read_model_folder(tmp_path / "out").sha256
    assert loaded.source["checkpoint"]["sha256"] == checkpoint.sha256
    expected = merge_layers(tiny.network().state_dict(), GROUPS, "eq4")
    assert all(torch.equal(loaded.state()[name], expected[name]) for name in expected)

    images = torch.randn(2, 3, 256, 192, generator=torch.Generator().manual_seed(0))
    direct = merge_network(checkpoint.network, plan)
    assert direct.backbone.reducer is not None and loaded.network.backbone.reducer is None
    assert [tap.shape[1] for tap in direct.backbone.layer_inputs(images)] == [192, 152, 112, 100]
    direct.backbone.reducer = None
    assert torch.equal(loaded.network(images).features, direct(images).features)
    assert "3 of 4" in (tmp_path / "out" / "README.md").read_text()


def test_same_plan_same_bytes(tmp_path: Path, checkpoint: Checkpoint, plan: Plan) -> None:
    for name in ("a", "b"):
        merge_checkpoint(checkpoint, plan, tmp_path / name / "model")
    for file in (tmp_path / "a" / "model").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "model" / file.name).read_bytes(), file.name


def test_a_plan_that_does_not_fit_writes_nothing(tmp_path: Path, checkpoint: Checkpoint, plan: Plan) -> None:
    out = tmp_path / "out"
    other = plan.model_copy(update={"checkpoint": plan.checkpoint.model_copy(update={"sha256": "f" * 64})})
    with pytest.raises(UserError, match="--force"):
        merge_checkpoint(checkpoint, other, out)
    few = plan.model_copy(update={"groups": ((0,), (1, 2, 3)), "tokens": TokenSettings()})
    with pytest.raises(UserError, match="90 tokens need 3 merging layers, the network has 2"):
        merge_checkpoint(checkpoint, few, out)
    assert not out.exists() and not list(tmp_path.glob("*.part"))
    merge_checkpoint(checkpoint, other, out, force=True)
    assert load_checkpoint(out).config.depth == 3


def test_only_our_own_folders_are_replaced(tmp_path: Path, checkpoint: Checkpoint, plan: Plan) -> None:
    out = tmp_path / "out"
    out.mkdir()
    merge_checkpoint(checkpoint, plan, out)  # an empty folder
    merge_checkpoint(checkpoint, plan.model_copy(update={"tokens": None}), out)
    assert load_checkpoint(out).tokens is None
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    with pytest.raises(UserError, match=r"is no model that this command wrote, and holds chapter1\.tex"):
        merge_checkpoint(checkpoint, plan, tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    again = load_checkpoint(out)
    once_more = Plan(checkpoint=again.reference, groups=((0,), (1, 2)))
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is an input, and would be written over"):
            merge_checkpoint(again, once_more, out, overwrite=overwrite)
    assert load_checkpoint(out).config.depth == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", r"model\.safetensors: the file was truncated: it has \d+ bytes, config\.json says \d+"),
        ("flip", r"model\.safetensors: the file was changed: its hash"),
        ("remove", r"model\.safetensors: the file is missing"),
        ("plan", r"plan\.yaml: the file was changed"),
        ("config", r"config\.json: .*not JSON"),
        ("field", r"config\.json: was edited since it was written"),
        ("family", r"config\.json: was edited since it was written"),
        ("none", r"not a compressed model: there is no readable config\.json"),
    ],
)
def test_damage_is_noticed(tmp_path: Path, checkpoint: Checkpoint, plan: Plan, damage: str, message: str) -> None:
    out = tmp_path / "out"
    merge_checkpoint(checkpoint, plan, out)
    weights, config = out / "model.safetensors", out / "config.json"
    data = bytearray(weights.read_bytes())
    if damage == "truncate":
        weights.write_bytes(data[:-100])
    elif damage == "flip":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "remove":
        weights.unlink()
    elif damage == "plan":
        (out / "plan.yaml").write_text((out / "plan.yaml").read_text().replace("keep: 100", "keep: 101"))
    elif damage == "config":
        config.write_text(config.read_text()[:50])
    elif damage == "field":
        config.write_text(config.read_text().replace('"depth"', '"depht"'))
    elif damage == "family":
        config.write_text(
            config.read_text().replace('"family": "hmr2",\n  "network"', '"family": "hmr9",\n  "network"')
        )
    else:
        config.unlink()
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(out)
    assert "\n" not in str(caught.value)


def test_half_precision_folder_without_a_plan(tmp_path: Path) -> None:
    state = tiny.network().state_dict()
    folder = write_model_folder(
        tmp_path / "small", as_half(state), tiny.CONFIG, provenance={"command": "train"}, body="tiny"
    )
    assert folder.plan is None and folder.config.dtype == "float16"
    assert json.loads((tmp_path / "small" / "config.json").read_text())["groups"] == [[0], [1], [2], [3]]
    loaded = load_checkpoint(tmp_path / "small")
    assert loaded.stored_dtype == "float16" and loaded.body == "tiny" and loaded.source == {"command": "train"}
    assert all(torch.equal(tensor, state[name].half().float()) for name, tensor in loaded.state().items())


def test_unknown_random_family() -> None:
    with pytest.raises(UserError, match="family: got 'vit', expected one of hmr2"):
        random_checkpoint("vit")
