"""Healing tiny networks: what learns, what it brings, how it goes on, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress.api import finetune as tuning
from hmrcompress.api import opening
from hmrcompress.body.model import BodyModel
from hmrcompress.data.conditions import bbox_info
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.data.masks import mask_source
from hmrcompress.errors import UserError
from hmrcompress.models.files.convert import convert_checkpoint
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.files.load import Checkpoint, load_checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.models.probe import SaliencyProbe, reads
from hmrcompress.plan import DropBackground, Plan, TokenSettings
from hmrcompress.records import IMAGENET_STD
from hmrcompress.training import loop as training_loop
from hmrcompress.training.finetune import work_folder
from hmrcompress.training.heal import Healing, HealSettings, Pair, Validation
from hmrcompress.training.loop import LoopSettings
from hmrcompress.training.streams import Crops, CropStream, augmented, held_out
from hmrcompress_cli.main import app

GROUPS = ((0,), (1, 2), (3,))
TOKENS = TokenSettings(keep=100, per_layer=50)
FEW = LoopSettings(steps=None, rate=2e-3, clip_norm=10.0, validations=2)


def strong_network() -> HMR2:
    """A tiny network whose layers and images matter: the matrices of the random one are too small for that."""
    network = tiny.network()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 2 and ("blocks." in name or "to_" in name):
                parameter.mul_(5)
    return network


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, the model that a plan made of it, and crops."""
    home = tmp_path_factory.mktemp("world")
    made = Checkpoint(network=strong_network(), family="hmr2", name="teacher", known_sha256="0" * 64)
    teacher = convert_checkpoint(made, home / "teacher").weights
    reference = load_checkpoint(teacher).reference
    hc.merge(teacher, Plan(checkpoint=reference, groups=GROUPS, merge_rule="mean", tokens=TOKENS), home / "merged")
    write_crops(home / "crops.npz", tiny.crop_arrays(clips=5, frames=6), tiny.crop_meta())
    return {"teacher": teacher, "merged": home / "merged", "crops": home / "crops.npz"}


def heal(world: dict[str, Path], out: Path, body: Path, **options: Any) -> tuning.Healed:
    given: dict[str, Any] = {"images": 48, "batch_size": 4, "loop": FEW, "body": body, "device": "cpu", **options}
    return tuning.heal(world["merged"], out, world["crops"], **given)


def test_healing_brings_the_network_back_to_its_teacher(
    world: dict[str, Path], tiny_body_file: Path, tmp_path: Path
) -> None:
    healed = heal(world, tmp_path / "healed", tiny_body_file, images=80)
    figures = healed.to_json()["heal"]
    assert figures["finished"] and figures["images"] == 80 and figures["n_frames"] == 6
    assert figures["after"]["to_teacher_mm"] < 0.7 * figures["before"]["to_teacher_mm"]
    assert figures["after"]["teacher_mpjpe_mm"] == figures["before"]["teacher_mpjpe_mm"]

    before, after = load_checkpoint(world["merged"]), load_checkpoint(tmp_path / "healed")
    assert after.config == before.config and after.plan == before.plan
    changed = {name for name, tensor in after.state().items() if not torch.equal(tensor, before.state()[name])}
    assert {name: tensor.shape for name, tensor in after.state().items()} == {
        name: tensor.shape for name, tensor in before.state().items()
    }
    assert changed and all(name.startswith("backbone.") for name in changed), "the head is frozen"
    assert "backbone.pos_embed" not in changed and "backbone.blocks.1.mlp.fc1.weight" in changed
    provenance = after.source
    assert provenance["checkpoint"] == before.source["checkpoint"] and provenance["command"] == "finetune"
    assert provenance["heal"]["teacher"]["sha256"] == load_checkpoint(world["teacher"]).sha256
    assert provenance["heal"]["after"] == figures["after"]
    assert "healed | 80 crops of tiny:test" in (tmp_path / "healed" / "README.md").read_text()
    assert not work_folder(tmp_path / "healed").exists()

    # What was measured while training is what the written model does, on the frames that were held out.
    crops = CropSet.open(world["crops"])
    rest = held_out(crops)[1]
    body = opening.open_body(tiny_body_file)
    measure = Validation(crops, rest, mask_source("data"), load_checkpoint(world["teacher"]).network, body)
    again = measure(opening.compressed_network(after))
    assert again["to_teacher_mm"] == pytest.approx(figures["after"]["to_teacher_mm"], abs=2e-3)


@pytest.mark.parametrize("settings", [HealSettings(), HealSettings(full=True)], ids=["adapters", "muon"])
def test_interrupted_and_resumed_gives_the_same_bytes(
    world: dict[str, Path],
    tiny_body_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: HealSettings,
) -> None:
    heal(world, tmp_path / "a" / "model", tiny_body_file, settings=settings)
    monkeypatch.setattr(training_loop._Loop, "_out_of_time", lambda self: self.step == 7)
    paused = heal(world, tmp_path / "b" / "model", tiny_body_file, settings=settings)
    assert paused.folder is None and not paused.run.finished and not (tmp_path / "b" / "model").exists()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"unfinished run with other settings \(rank\)"):
        heal(world, tmp_path / "b" / "model", tiny_body_file, settings=replace(settings, rank=4))
    assert heal(world, tmp_path / "b" / "model", tiny_body_file, settings=settings).run.steps_now == 5
    files = sorted(path.name for path in (tmp_path / "a" / "model").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors", "plan.yaml"]
    for name in files:
        assert (tmp_path / "a" / "model" / name).read_bytes() == (tmp_path / "b" / "model" / name).read_bytes(), name


def task(world: dict[str, Path], body: BodyModel, settings: HealSettings, **options: Any) -> Healing:
    crops = CropSet.open(world["crops"])
    masks = mask_source("data")
    merged, teacher = load_checkpoint(world["merged"]), load_checkpoint(world["teacher"]).network
    stream = CropStream(crops, crops.stretches(), masks, batch_size=2)
    measure = Validation(crops, crops.stretches()[:2], masks, teacher, body)
    pair = Pair(merged.network, teacher, merged.plan.groups, merged.tokens, **options)  # type: ignore[union-attr]
    return Healing(pair, stream, measure, body, settings)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (HealSettings(rank=4), "adapters and norms"),
        (HealSettings(full=True), "the backbone"),
        (HealSettings(rank=4, with_head=True), "the head too"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_learns(world: dict[str, Path], tiny_body: BodyModel, settings: HealSettings, wanted: str) -> None:
    healing = task(world, tiny_body, settings)
    learning = {name for group in healing.groups for name in group.parameters}
    asked = {name for name, p in healing.network.named_parameters() if p.requires_grad}
    assert learning == asked and not any(p.requires_grad for p in healing.teacher.parameters())
    assert any(name.startswith("smpl_head.") for name in learning) == settings.with_head
    assert any(name.endswith(".up") for name in learning) != settings.full
    assert ("backbone.pos_embed" in learning) == settings.full
    assert "backbone.last_norm.weight" in learning
    matrices = {name for group in healing.groups if group.muon for name in group.parameters}
    assert matrices == {
        name for name in learning if settings.full and name.startswith("backbone.blocks.") and name.endswith(".weight")
        and "norm" not in name
    }  # fmt: skip
    loss, parts = healing.losses(0)
    loss.backward()
    # One layer of the head attends to itself with a single token, so its queries and keys have no gradient.
    silent = {n for group in healing.groups for n, p in group.parameters.items() if p.grad is None}
    assert not silent and set(parts) == {
        "tokens", "features", "root", "pose", "joints", "vertices", "betas", "cam",
    }  # fmt: skip
    own = load_checkpoint(world["merged"]).state()
    assert all(torch.equal(tensor, own[name]) for name, tensor in healing.state().items()), "nothing learned yet"


@torch.no_grad()
def test_dropped_background_is_hidden_from_the_teacher_too(world: dict[str, Path], tiny_body: BodyModel) -> None:
    """Where nothing was merged, the student is its teacher, so nothing is left to learn, merged tokens apart."""
    crops, masks = CropSet.open(world["crops"]), mask_source("data")
    teacher = load_checkpoint(world["teacher"]).network
    stream = CropStream(crops, crops.stretches(), masks, batch_size=2)
    measure = Validation(crops, crops.stretches()[:2], masks, teacher, tiny_body)
    alone = [[layer] for layer in range(teacher.config.depth)]
    for drop, nothing in ((DropBackground(), True), (None, False)):
        pair = Pair(teacher, teacher, alone, TokenSettings(keep=100, drop_background=drop))
        loss, parts = Healing(pair, stream, measure, tiny_body, HealSettings(full=True)).losses(0)
        assert (float(loss) < 1e-4) == nothing and (float(parts["tokens"]) < 1e-6) == nothing


def test_what_a_probe_reads_does_not_change(world: dict[str, Path], tiny_body: BodyModel) -> None:
    for settings, layer in ((HealSettings(full=True), 0), (HealSettings(full=True), 1), (HealSettings(rank=4), 0)):
        probe = SaliencyProbe(torch.zeros(1, 32), 0.0, layer=layer)
        healing = task(world, tiny_body, settings, kept_probe=probe)
        learning = {name for group in healing.groups for name in group.parameters}
        frozen = (
            "backbone.pos_embed",
            "backbone.patch_embed.",
            f"backbone.blocks.{layer}.attn.",
            f"backbone.blocks.{layer}.norm1.",
        )
        frozen += ("backbone.blocks.0.",) * layer
        assert learning and not any(name.startswith(frozen) for name in learning)
        if settings.full:
            assert f"backbone.blocks.{layer}.mlp.fc1.weight" in learning


def test_a_model_with_a_probe_is_healed_with_its_own_masks(
    world: dict[str, Path], tiny_body_file: Path, tmp_path: Path
) -> None:
    options = {"data": world["crops"], "body": tiny_body_file}
    _, fit = tuning.fit_probe(world["merged"], tmp_path / "probed", images=40, **options)
    heal({**world, "merged": tmp_path / "probed"}, tmp_path / "healed", tiny_body_file, images=8, masks="self",
         teacher=world["teacher"])  # fmt: skip
    healed = load_checkpoint(tmp_path / "healed")
    assert healed.probe is not None and torch.equal(healed.probe.weight, fit.probe.weight)
    before = load_checkpoint(tmp_path / "probed").state()
    for name, tensor in healed.state().items():
        assert not name.startswith(reads(fit.probe.layer)) or torch.equal(tensor, before[name]), name


def test_crops_are_those_of_the_step(world: dict[str, Path]) -> None:
    crops = CropSet.open(world["crops"])
    streams = [CropStream(crops, crops.stretches(), mask_source("data"), batch_size=3, seed=s) for s in (0, 0, 1)]
    first, again, other = (stream.batch(7) for stream in streams)
    assert torch.equal(first.images, again.images) and first.person_mask is not None
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, streams[0].batch(8).images)


def test_augmented_crops_and_masks_are_mirrored_together() -> None:
    """The mask is painted into the picture, so each must still lie on the other."""
    mask = torch.zeros(40, 16, 12, dtype=torch.bool)
    mask[:, 3:7, 1:4] = True
    images = mask.float().repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand(-1, 3, -1, -1)
    images = images / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    before = images.clone()
    out = augmented(Crops(images, mask), np.random.default_rng(0))
    assert out.person_mask is not None and torch.equal(images, before)
    sides = out.person_mask[:, :, 1:4].all(-1).any(-1)
    assert 8 < int(sides.sum()) < 32, "about half are mirrored"
    painted = out.images[:, 0, 8::16, 8::16]
    inside = torch.where(out.person_mask, painted, torch.inf).amin((1, 2))
    outside = torch.where(out.person_mask, -torch.inf, painted).amax((1, 2))
    assert (inside > outside).all()
    gains = (inside - outside) * IMAGENET_STD[0]
    assert 0.03 < gains.std() < 0.3 and abs(float(gains.mean()) - 1) < 0.1


def test_conditions_are_those_of_the_mirrored_pictures() -> None:
    """A box at x of a picture W wide lies at W - x of its mirror image."""
    rng = np.random.default_rng(1)
    centres, sides = rng.uniform(100, 900, (40, 2)), rng.uniform(50, 300, 40)
    mirrored = np.stack([1280 - centres[:, 0], centres[:, 1]], 1)
    there, back = (bbox_info(each, sides, (1280, 960), 900.0) for each in (centres, mirrored))
    images = torch.zeros(40, 3, 4, 4)
    images[..., :2] = 100.0
    out = augmented(Crops(images, None, there), np.random.default_rng(0))
    flipped = out.images[..., 0].mean((1, 2)) < out.images[..., -1].mean((1, 2))
    assert 8 < int(flipped.sum()) < 32 and out.condition is not None
    torch.testing.assert_close(out.condition, torch.where(flipped[:, None], back, there))


def test_held_out(world: dict[str, Path], tmp_path: Path) -> None:
    crops = CropSet.open(world["crops"])
    train, rest = held_out(crops)
    assert set(crops.clip[rest]) == {4} and set(crops.clip[train]) == {0, 1, 2, 3}
    write_crops(tmp_path / "one.npz", tiny.crop_arrays(clips=1, frames=20), tiny.crop_meta())
    train, rest = held_out(CropSet.open(tmp_path / "one.npz"))
    assert train.tolist() == list(range(18)) and rest.tolist() == [18, 19]


def test_the_teacher_is_found_by_its_hash(world: dict[str, Path], tmp_path: Path) -> None:
    merged = load_checkpoint(world["merged"])
    assert tuning.find_teacher(merged).sha256 == load_checkpoint(world["teacher"]).sha256
    with pytest.raises(UserError, match="nothing to heal"):
        tuning.find_teacher(load_checkpoint(world["teacher"]))
    elsewhere = replace(merged, path=tmp_path / "merged")
    with pytest.raises(UserError, match=r"was made from teacher\.safetensors .*which is not here. Give --teacher"):
        tuning.find_teacher(elsewhere)


def test_a_teacher_of_other_sizes_is_refused(world: dict[str, Path], tiny_body_file: Path, tmp_path: Path) -> None:
    config = replace(tiny.CONFIG, mlp_dim=96)
    state = tiny.build(config).state_dict()
    write_model_folder(tmp_path / "wide", state, config)
    with pytest.raises(UserError, match="has other sizes than merged"):
        heal(world, tmp_path / "out", tiny_body_file, teacher=tmp_path / "wide")
    assert not list(tmp_path.glob("out*"))


def test_the_command(world: dict[str, Path], tiny_body_file: Path, tmp_path: Path) -> None:
    common = ["--data", str(world["crops"]), "--body", str(tiny_body_file), "--device", "cpu"]
    out, record = tmp_path / "healed", tmp_path / "record.json"
    arguments = ["finetune", str(world["merged"]), "-o", str(out), "--images", "8", "--batch-size", "4", *common]
    done = CliRunner().invoke(app, [*arguments, "--json", str(record)])
    assert done.exit_code == 0, done.output
    assert "mm from the teacher" in done.output and str(out) in done.output
    figures = json.loads(record.read_text())
    assert figures["command"] == "finetune" and figures["heal"]["steps"] == 2
    probed = tmp_path / "probed"
    arguments = [
        "finetune",
        str(out),
        "--stage",
        "probe",
        "-o",
        str(probed),
        "--images",
        "40",
        *common,
        "--json",
        str(record),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "AUC" in done.output
    assert json.loads(record.read_text())["probe"]["macs"] == 3 * 192 * tiny.CONFIG.dim
    assert load_checkpoint(probed).source["heal"]["images"] == 8
    for stage, message in {
        "magic": "magic is not a stage, expected one of heal, probe, vae, decoder, all",
        "vea": "vea is not a stage",
    }.items():
        done = CliRunner().invoke(app, ["finetune", str(out), "--stage", stage, "-o", str(tmp_path / "x")])
        assert done.exit_code == 2 and message in done.output and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("stage", "flag", "more"),
    [
        ("heal", "--vae", ["--vae", "starter-fast"]),
        ("heal", "--set finetune.steps", ["--set", "finetune.steps=3"]),
        ("heal", "--set finetune.motions", ["--set", "finetune.motions=starter"]),
        ("probe", "--teacher", ["--teacher", "starter"]),
        ("probe", "--set finetune.max_minutes", ["--set", "finetune.max_minutes=1"]),
        ("probe", "--set finetune.rank", ["--set", "finetune.rank=3"]),
        ("vae", "--limit", ["--limit", "3"]),
        ("decoder", "--images", ["--images", "3"]),
        ("all", "--dtype", ["--dtype", "bfloat16"]),
        ("all", "--set finetune.full", ["--set", "finetune.full=true"]),
    ],
)
def test_options_of_other_stages_are_refused(stage: str, flag: str, more: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["finetune", "starter", "--stage", stage, "-o", str(tmp_path / "x"), *more])
    assert done.exit_code == 2 and f"{flag}: has no effect on --stage {stage}" in done.output, done.output
