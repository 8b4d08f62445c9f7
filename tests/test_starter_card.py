"""What the card of the starter network states: errors in parts, what layers are worth; the split of motion capture."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.body.files import starter_body
from hmrcompress.data.crops import CropSet
from hmrcompress.errors import UserError
from hmrcompress.metrics.pose import Scores, network_predict, score
from hmrcompress.motion.clip import Motion
from hmrcompress.starter.data import captured
from hmrcompress.starter.data.captured import held_out, load_captured, stretches
from hmrcompress.starter.data.dataset import open_split
from hmrcompress.starter.network.breakdown import by_joint, by_kind, by_occlusion, drop_costs, without_layer
from hmrcompress.starter.network.card import Figures, network_card
from hmrcompress.starter.network.freeze import better_on_val


def made_up(crops, rng):
    """Scores of the crops' frames in another order."""
    order = rng.permutation(len(crops))
    errors = rng.uniform(10, 200, (len(order), 24))
    empty = np.empty(0)
    scores = Scores(
        "starter24", crops.clip[order], crops.frame[order], errors, errors.mean(1) / 2, None, empty, empty.astype(int)
    )
    return order, scores


def test_errors_in_parts_are_means_over_their_frames(tiny_crops):
    rng = np.random.default_rng(0)
    columns = {
        "occluded": rng.uniform(0, 1, len(tiny_crops)).astype(np.float32),
        "kind": (np.arange(len(tiny_crops)) % 2).astype(np.int16),
    }
    crops = CropSet({**tiny_crops.arrays, **columns}, {**tiny_crops.meta, "kinds": ["walk", "sit", "fly"]})
    order, scores = made_up(crops, rng)
    for number, name in enumerate(("walk", "sit")):
        rows = [row for row, index in enumerate(order) if crops.arrays["kind"][index] == number]
        part = next(part for part in by_kind(scores, crops) if part.name == name)
        assert part.frames == len(rows)
        assert part.mpjpe_mm == pytest.approx(np.mean([scores.per_joint[row].mean() for row in rows]))
        assert part.pa_mpjpe_mm == pytest.approx(np.mean([scores.per_frame_pa[row] for row in rows]))
    parts = by_occlusion(scores, crops)
    assert sum(part.frames for part in parts) == len(crops)
    hidden = crops.arrays["occluded"][order]
    wide = next(part for part in parts if part.name == "50% – 100%")
    assert wide.mpjpe_mm == pytest.approx(np.mean([scores.per_joint[r].mean() for r in np.flatnonzero(hidden >= 0.5)]))
    assert by_joint(scores)["left_hip"] == pytest.approx(scores.per_joint[:, 1].mean())


def test_the_network_without_a_layer_is_the_network_that_skips_it(tiny_network):
    images = torch.randn(2, 3, 256, 192, generator=torch.Generator().manual_seed(0))
    backbone = tiny_network.backbone
    for layer in range(backbone.depth):
        tokens = backbone.embed(images)
        for number, block in enumerate(backbone.blocks):
            tokens = tokens if number == layer else block(tokens)
        rest = without_layer(tiny_network, layer)
        assert torch.equal(rest.backbone(images), backbone.last_norm(tokens))


def test_leaving_out_a_layer_that_does_nothing_costs_nothing(tiny_crops, tiny_body):
    network = tiny.network(seed=3)
    block = network.backbone.blocks[1]
    with torch.no_grad():
        for linear in (block.attn.proj, block.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    indices = np.arange(len(tiny_crops))
    costs = drop_costs(network, tiny_crops, indices, tiny_body)
    assert costs[1] == 0 and len(costs) == network.config.depth
    whole, without = (
        score(network_predict(n), tiny_crops.batches(indices), body=tiny_body, pve=False).mpjpe_mm
        for n in (network, without_layer(network, 0))
    )
    assert costs[0] == pytest.approx(without - whole) and abs(costs[0]) > 1e-3


def test_the_card_states_the_figures(tiny_network, tiny_crops):
    _, scores = made_up(tiny_crops, np.random.default_rng(1))
    row = {"mpjpe_mm": 123.44, "pa_mpjpe_mm": 77.7, "pve_mm": 150.0, "accel_mm_per_frame2": 9.0}
    row |= {"n_frames": 12, "protocol": "starter24"}
    figures = Figures({"starter:val": {"mean_pose": row, "baseline": row}}, by_joint(scores), [], [], [0.5, -0.25], 720)
    provenance = {"command": "train it", "note": "", "seed": 0, "images": 1000, "minutes": 1.5, "log": "log.jsonl"}
    provenance["weights"] = "average"
    provenance["environment"] = {"cpu": "a CPU", "device": "cpu"}
    records = [{"seen": 500, "minutes": 1.0, "val": {"mpjpe_mm": 99.5, "pa_mpjpe_mm": 66.5}}]
    card = network_card(tiny_network.config, provenance, figures, records, 5)
    assert "| this network | 123.4 | 77.7 | 150.0 | 9.0 | 12 | starter24 |" in card
    assert "| 0 | +0.50 |\n| 1 | -0.25 |" in card and "on 720 frames" in card and "| 500 | 99.5 | 66.5 |" in card


def test_the_weights_that_are_better_on_val_are_kept(tiny_network):
    class ByNorm:
        def __call__(self, network, size):
            return {"mpjpe_mm": float(network.smpl_head.decshape.weight.detach().abs().sum())}

    parameters = [p.detach() for p in tiny_network.parameters()]
    for factor, expected in ((0.5, "average"), (2.0, "last")):
        state = {"network": tiny_network.state_dict(), "average": [factor * p for p in parameters]}
        name, half, network = better_on_val(tiny_network.config, state, ByNorm())
        wanted = min(factor, 1.0) * tiny_network.smpl_head.decshape.weight
        assert name == expected and torch.allclose(half["smpl_head.decshape.weight"].float(), wanted, atol=1e-3)
        assert torch.equal(network.smpl_head.decshape.weight, half["smpl_head.decshape.weight"].float())


def still(frames):
    poses = np.zeros((frames, 24, 3), np.float32)
    poses[:, 0, 1] = np.linspace(0, 1, frames)
    return Motion(poses, np.zeros((frames, 3), np.float32), 30.0, "turn")


@pytest.mark.parametrize("frames", [59, 60, 243, 244, 800])
def test_stretches_are_consecutive_and_no_longer_than_a_clip(frames):
    parts = stretches(still(frames))
    if frames < 60:
        assert parts == []
        return
    assert (np.concatenate([part.poses for part in parts]) == still(frames).poses).all()
    assert max(len(part.poses) for part in parts) <= 243 and len(parts) == -(-frames // 243)


def test_the_split_of_motion_capture(tmp_path, monkeypatch):
    """It is made of the held-out files, which training does not get, and needs them only once."""
    monkeypatch.setattr(captured, "HELD_OUT", ("02_06",))
    for name, frames in (("02_06", 60), ("02_07", 40)):
        motion = still(frames)
        poses = np.zeros((frames, 156), np.float32)
        poses[:, :72] = motion.poses.reshape(frames, 72)
        np.savez(tmp_path / f"{name}.npz", poses=poses, trans=motion.trans, mocap_framerate=np.float64(30))
    assert [motion.kind for motion in load_captured(tmp_path)] == ["02_07"]
    assert [motion.kind for motion in held_out(tmp_path)] == ["02_06"]
    body, home = starter_body(), tmp_path / "home"
    with pytest.raises(UserError, match="--motions amass:DIR"):
        open_split("test-mocap", body, home=home)
    with pytest.raises(UserError, match=r"02_06\.npz is not below"):
        open_split("test-mocap", body, home=home, motions=home)
    made = open_split("test-mocap", body, home=home, motions=tmp_path)
    again = open_split("test-mocap", body, home=home)
    assert len(made) == len(again) == 60 and again.split == "test-mocap" and again.meta["kinds"] == ["02_06"]
    assert np.asarray(again.arrays["masks"]).any()
