"""Training of the starter network: augmentation, targets, stochastic depth, schedule, resuming."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from hmrcompress.api.opening import STARTER_MODEL
from hmrcompress.body.files import starter_body
from hmrcompress.errors import Notice, UserError
from hmrcompress.io import keys
from hmrcompress.models.network import NetworkConfig, build, from_state
from hmrcompress.records import BodyParams
from hmrcompress.starter.data.batches import Pool, mirror, to_tensors
from hmrcompress.starter.data.rendering import _remove_others, schedule, shard_home, shard_range
from hmrcompress.starter.data.shards import ShardSettings, make_shard, shard_path, write_shard
from hmrcompress.starter.network import course as course_module
from hmrcompress.starter.network import validate
from hmrcompress.starter.network.book import StarterBook
from hmrcompress.starter.network.course import CropCourse
from hmrcompress.starter.network.log import LOG_FILE
from hmrcompress.starter.network.losses import DenseReadout, body_losses, dense_losses, joint_spots
from hmrcompress.starter.network.recipe import Recipe, Stage
from hmrcompress.starter.network.step import choose_tokens, encode_with_layer_drop, survivors, wake
from hmrcompress.starter.network.task import StarterFit
from hmrcompress.starter.network.train import TrainOptions, _seen, check_train, train, training_key
from hmrcompress.starter.scene.filming import surface_of
from hmrcompress.training.book import STATE_FILE, write_state
from hmrcompress.training.distributed import Team
from hmrcompress.training.loop import run
from hmrcompress.training.muon import Muon, orthogonalised
from hmrcompress.training.optimisers import Optimisers, follow

TINY = NetworkConfig(
    dim=32, depth=3, num_heads=2, mlp_dim=48, head_width=32, head_depth=1, head_heads=2, head_dim=16, head_mlp_dim=32
)
TINY_RECIPE = Recipe(
    stages=(
        Stage("dense", 80, (128, 96), head=False, rate=1e-3, rate_end=1e-3, batch=8),
        Stage("body", 160, (128, 96), head=True, rate=1e-3, rate_end=0.0, head_gradient=0.5, batch=8),
    ),
    warmup_images=16,
    shard_crops=24,
    reuse=4.0,
    window=2,
    config=TINY,
)


@pytest.fixture(scope="module", autouse=True)
def few_clips_for_the_mean_pose():
    """Any start will do here, and that of 128 clips takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "MEAN_CLIPS", 2)
        validate.mean_state.cache_clear()
        yield
    validate.mean_state.cache_clear()


def fit_of(recipe, start=None, seed=0):
    return StarterFit(CropCourse(recipe), seed, torch.device("cpu"), start=start)


def snapshot_of(fit, folder, path, seen=0, **options):
    """What a validation after `seen` crops writes."""
    book = StarterBook(folder, fit, {}, snapshot=path, **options)
    book.validation(seen, {}, 0.1)
    return book


def state_of(fit, seen, factor=1.0):
    """What the loop gives a book to save, the average being so many times the weights."""
    parameters = {name: p.detach() for group in fit.groups for name, p in group.parameters.items()}
    average = {name: factor * p for name, p in parameters.items()}
    return {
        "step": seen, "minutes": 1.0, "parameters": parameters, "average": average, "best": None,
        "optimisers": Optimisers(fit.groups, (0.9, 0.98), fused=True).state_dict(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def body():
    return starter_body()


@pytest.fixture(scope="module")
def shard(body):
    return make_shard(3, 0, body, surface_of(body), [], ShardSettings(crops=48))


def test_a_shard_is_the_same_for_the_same_seed(body, shard):
    again = make_shard(3, 0, body, surface_of(body), [], ShardSettings(crops=48))
    assert all((shard[name] == again[name]).all() for name in shard)
    other = make_shard(4, 0, body, surface_of(body), [], ShardSettings(crops=48))
    assert not (shard["rotations"] == other["rotations"]).all()


def test_keypoints_lie_on_the_visible_parts_they_belong_to(shard):
    """The token that holds a visible joint shows that body part or a neighbour of it."""
    grid = joint_spots(torch.from_numpy(shard["keypoints"]), (8, 6)).argmax(-1).numpy()
    parts = shard["parts"].reshape(len(grid), 48, 24).astype(float)
    wrist, forearm, hand = 20, 18, 22
    shown = parts[..., [forearm, wrist, hand]].sum(-1)
    held = shown[np.arange(len(grid)), grid[:, wrist]]
    visible = parts[..., wrist].sum(-1) > 0
    assert (held[visible] > 0).mean() > 0.85
    assert (shown[np.arange(len(grid)), (grid[:, wrist] + 17) % 48] > 0).mean() < 0.5


def test_mirroring_twice_changes_nothing_and_keeps_kinematics(body, shard):
    everywhere = np.ones(len(shard["betas"]), bool)
    once = mirror(shard, everywhere)
    twice = mirror(once, everywhere)
    assert all((twice[name] == shard[name]).all() for name in shard)
    assert all((mirror(shard, ~everywhere)[name] == shard[name]).all() for name in shard)
    rotations = torch.from_numpy(once["rotations"])
    neutral = torch.zeros(len(rotations), 10)
    posed = body.joints(BodyParams(rotations[:, :1], rotations[:, 1:], neutral))
    original = torch.from_numpy(shard["rotations"])
    reference = body.joints(BodyParams(original[:, :1], original[:, 1:], neutral))
    reference = (reference - reference[:, :1]).numpy()
    expected = mirror({**shard, "joints": reference}, everywhere)["joints"]
    # The body is symmetric to within millimetres, so its mirrored pose reaches the mirrored joints.
    assert np.abs((posed - posed[:, :1]).numpy() - expected).max() < 0.02


def test_spots_are_bilinear_weights():
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(-0.6, 0.6, (5, 24, 2)).astype(np.float32)
    spots = joint_spots(torch.from_numpy(keypoints), (16, 12)).numpy()
    for b in range(5):
        for j in range(24):
            x = (keypoints[b, j, 0] * 256 + 96) / 16 - 0.5
            y = (keypoints[b, j, 1] * 256 + 128) / 16 - 0.5
            if not (-0.5 < x < 11.5 and -0.5 < y < 15.5):
                assert spots[b, j].sum() == 0
                continue
            x, y = min(max(x, 0), 11), min(max(y, 0), 15)
            expected = np.zeros((16, 12))
            for row in range(16):
                for col in range(12):
                    expected[row, col] = max(0, 1 - abs(row - y)) * max(0, 1 - abs(col - x))
            assert np.abs(spots[b, j].reshape(16, 12) - expected).max() < 1e-5
            assert spots[b, j].sum() == pytest.approx(1, abs=1e-5)


def test_losses_vanish_at_the_truth(body, shard):
    _, target = to_tensors(shard, None)
    perfect_places = target.joints[:, None].expand(-1, 48, -1, -1)
    readout = (torch.zeros(48, 24, 48), target.parts.clamp(min=1e-9).log(), target.points, perfect_places)
    parts = dense_losses(readout, target)
    entropy = -(target.parts * target.parts.clamp(min=1e-9).log()).sum(-1).mean()
    assert float(parts["part"]) == pytest.approx(float(entropy), abs=1e-4)
    assert float(parts["point"]) == 0 and float(parts["place"]) < 1e-6
    assert float(parts["spot"]) == pytest.approx(np.log(48), abs=1e-4)
    logits = target.spots.clamp(min=1e-9).log()
    hit = dense_losses((logits, *readout[1:]), target)
    expected = -(target.spots * logits).sum() / target.spots.sum()
    assert float(hit["spot"]) == pytest.approx(float(expected), abs=1e-4)
    from hmrcompress.records import HMROutput

    rotations = target.rotations
    camera = torch.tensor([[0.9, 0.0, 0.0]]).expand(48, -1)
    truth = HMROutput(rotations[:, :1], rotations[:, 1:], target.betas, camera, torch.zeros(48, 1))
    losses = body_losses(truth, target, body)
    assert float(losses["joint"]) < 1e-5 and float(losses["pose"]) < 1e-9 and float(losses["betas"]) == 0


def test_layer_drop_leaves_the_network_alone_at_zero_and_skips_whole_layers_else():
    vit = build(TINY, seed=1).backbone
    images = torch.randn(8, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    everyone = survivors(8, (0.0,) * vit.depth, torch.Generator())
    assert torch.equal(encode_with_layer_drop(vit, images, None, everyone), vit(images))
    stay = survivors(8, (0.0, 0.25, 0.5), torch.Generator().manual_seed(3))
    dropped = encode_with_layer_drop(vit, images, None, stay)
    assert stay[0] is None and 0 < len(stay[1]) < 8 and 0 < len(stay[2]) < 8
    kept = {1: stay[1], 2: stay[2]}
    tokens = vit.blocks[0](vit.embed(images))
    for layer, chosen in kept.items():
        slow = []
        for sample in range(8):
            one = tokens[sample : sample + 1]
            stays = sample in chosen.tolist()
            slow.append(vit.blocks[layer](one) if stays else one)
        tokens = torch.cat(slow)
    assert torch.allclose(dropped, vit.last_norm(tokens), atol=1e-5)


def test_samples_skip_each_layer_by_its_share_and_independently():
    drops, batch = (0.0, 0.02, 0.2, 0.5), 40_000
    stay = survivors(batch, drops, torch.Generator().manual_seed(0))
    assert stay[0] is None
    skipped = torch.ones(4, batch, dtype=torch.bool)
    for layer in range(1, 4):
        assert stay[layer].tolist() == sorted(set(stay[layer].tolist()))
        skipped[layer, stay[layer]] = False
        # Five standard deviations of a binomial share.
        assert abs(float(skipped[layer].float().mean()) - drops[layer]) < 5 * (0.25 / batch) ** 0.5
    both = float((skipped[2] & skipped[3]).float().mean())
    assert abs(both - 0.1) < 5 * (0.25 / batch) ** 0.5


def test_drop_rates_rise_linearly_with_depth_and_single_out_no_layer():
    rates = Recipe(layer_drop=0.22).drop_rates
    assert rates == pytest.approx([0.02 * layer for layer in range(12)])
    assert Recipe.going_on().drop_rates == Recipe().drop_rates


def test_thinned_out_batches_keep_the_person_and_their_targets(shard):
    _, target = to_tensors(shard, None)
    shows = target.parts[..., -1].numpy() < 1
    for seed in range(40):
        chosen = choose_tokens(target, 32, seed, torch.Generator().manual_seed(seed))
        assert (chosen is None) == (seed % 2 == 0)
        if chosen is None:
            continue
        thinned = target.at(chosen)
        for b, rows in enumerate(chosen.tolist()):
            assert rows == sorted(set(rows)) and len(rows) == 32
            assert shows[b, rows].sum() == min(32, shows[b].sum())
            for place, row in enumerate(rows):
                assert torch.equal(thinned.parts[b, place], target.parts[b, row])
                assert torch.equal(thinned.points[b, place], target.points[b, row])
                assert torch.equal(thinned.spots[b, :, place], target.spots[b, :, row])
    assert choose_tokens(target, None, 1, torch.Generator()) is None and target.at(None) is target


def test_tokens_of_a_thinned_out_crop_are_those_of_the_network_on_these_patches():
    vit = build(TINY, seed=1).backbone
    images = torch.randn(4, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([[0, 3, 7], [1, 2, 40], [5, 6, 47], [9, 10, 11]])
    tokens = torch.stack([vit.embed(images)[b, rows] for b, rows in enumerate(chosen.tolist())])
    expected = vit.last_norm(vit.run_blocks(tokens)[0])
    everyone = [None] * vit.depth
    assert torch.allclose(encode_with_layer_drop(vit, images, chosen, everyone), expected, atol=1e-6)


def test_layers_that_add_next_to_nothing_are_brought_back_to_the_usual_scale():
    vit = build(TINY, seed=1).backbone
    tokens = torch.randn(2, 5, TINY.dim, generator=torch.Generator().manual_seed(0))
    block, other = vit.blocks[1], vit.blocks[0]
    with torch.no_grad():
        for last in ("attn.proj", "mlp.fc2"):
            block.get_submodule(last).bias.normal_(generator=torch.Generator().manual_seed(2))
    mixed, added, whole = block.attn(tokens)[0], block.mlp(tokens), other(tokens)
    norms = {
        last: [float(b.get_submodule(last).weight.detach().double().square().sum().sqrt()) for b in vit.blocks]
        for last in ("attn.proj", "mlp.fc2")
    }
    assert wake(vit) == []
    with torch.no_grad():
        for last in norms:
            for parameter in block.get_submodule(last).parameters():
                parameter.mul_(0.1)
    usual = {last: np.median([0.1 * n if i == 1 else n for i, n in enumerate(each)]) for last, each in norms.items()}
    assert wake(vit) == [1]
    assert torch.allclose(block.attn(tokens)[0], usual["attn.proj"] / norms["attn.proj"][1] * mixed, atol=1e-6)
    assert torch.allclose(block.mlp(tokens), usual["mlp.fc2"] / norms["mlp.fc2"][1] * added, atol=1e-6)
    assert torch.equal(other(tokens), whole)
    woken = block(tokens)
    assert wake(vit) == [] and torch.equal(block(tokens), woken)


def test_orthogonalised_matrices_have_the_singular_vectors_of_the_originals_and_values_near_one():
    rng = np.random.default_rng(0)
    for rows, columns in ((24, 40), (40, 24), (16, 16)):
        left, _ = np.linalg.qr(rng.normal(size=(rows, rows)))
        right, _ = np.linalg.qr(rng.normal(size=(columns, columns)))
        count = min(rows, columns)
        spectrum = np.geomspace(1, 0.02, count)
        matrix = (left[:, :count] * spectrum) @ right[:, :count].T
        found = orthogonalised(torch.from_numpy(matrix[None]))[0].numpy()
        polar = left[:, :count].T @ found @ right[:, :count]
        assert np.abs(polar - np.diag(np.diag(polar))).max() < 1e-6
        assert 0.85 < np.diag(polar).min() and np.diag(polar).max() < 1.15


def test_orthogonalised_in_bfloat16_is_the_polar_factor_to_within_its_precision():
    """Singular values over three orders of magnitude, where squares of the small ones are lost in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(2, 24, 40, generator=generator), full_matrices=False)
    matrices = left @ torch.diag_embed(torch.logspace(0, -3, 24).expand(2, 24)) @ right
    found = orthogonalised(matrices, torch.bfloat16)
    assert found.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), (left @ right).flatten(1))
    assert cosine.min() > 0.95 and torch.linalg.svdvals(found).max() < 1.25


def test_muon_takes_the_step_of_its_formula(monkeypatch):
    monkeypatch.setattr("hmrcompress.training.muon.fast_dtype", lambda device: torch.float32)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(6, 10, generator=generator)) for _ in range(3)]
    before = [weight.detach().clone() for weight in weights]
    optimiser = Muon(weights, lr=0.01, weight_decay=0.1)
    momenta = [torch.zeros(6, 10) for _ in weights]
    for _ in range(2):
        for number, weight in enumerate(weights):
            weight.grad = torch.randn(6, 10, generator=generator)
            momenta[number] = 0.95 * momenta[number] + 0.05 * weight.grad
            update = orthogonalised((0.05 * weight.grad + 0.95 * momenta[number])[None])[0]
            before[number] = before[number] * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 10**0.5 * update
        optimiser.step()
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights, before, strict=True))


def test_training_goes_on_from_the_shipped_network():
    fit = fit_of(Recipe.going_on(), STARTER_MODEL)
    config = json.loads((STARTER_MODEL / "config.json").read_text())
    assert fit.before == config["provenance"]["images"]
    shipped = safetensors.torch.load_file(STARTER_MODEL / "model.safetensors")
    found = fit.network.state_dict()
    assert found.keys() == shipped.keys()
    expected = from_state(Recipe().config, {name: tensor.float() for name, tensor in shipped.items()})
    wake(expected.backbone)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    with pytest.raises(UserError, match="has other sizes than the recipe"):
        fit_of(TINY_RECIPE, STARTER_MODEL)


def test_a_training_writes_over_nothing_of_others_nor_what_it_began_with(tmp_path):
    start, out, snapshot = tmp_path / "start.safetensors", tmp_path / "out", tmp_path / "snapshot.safetensors"
    (tmp_path / LOG_FILE).write_text('{"seen": 1, "minutes": 0.1}\n')
    snapshot_of(fit_of(TINY_RECIPE), tmp_path, start)
    check_train(TrainOptions(out, start=start, snapshot=snapshot))
    for bad in (start, tmp_path / "link.safetensors", tmp_path / "start.other"):
        (tmp_path / "link.safetensors").unlink(missing_ok=True)
        (tmp_path / "link.safetensors").symlink_to(start)
        for overwrite in (False, True):
            with pytest.raises(UserError, match="is an input"):
                check_train(TrainOptions(out, start=start, snapshot=bad, overwrite=overwrite))
    for mine in (out / STATE_FILE, out / LOG_FILE, snapshot, snapshot.with_suffix(".jsonl")):
        mine.parent.mkdir(exist_ok=True)
        mine.write_text('{"minutes": "of the meeting"}\n')
        with pytest.raises(UserError, match=re.escape(mine.name)):
            train(TINY_RECIPE, TrainOptions(out, start=start, snapshot=snapshot))
        if mine.parent == tmp_path:
            check_train(TrainOptions(out, start=start, snapshot=snapshot, overwrite=True))
        mine.unlink()


def test_training_goes_on_from_a_snapshot(tmp_path):
    first = fit_of(TINY_RECIPE)
    first.before = 10
    snapshot_of(first, tmp_path, tmp_path / "s.safetensors", seen=32)
    assert (tmp_path / "s.jsonl").read_text() == (tmp_path / LOG_FILE).read_text()
    assert json.loads((tmp_path / LOG_FILE).read_text())["seen"] == 42
    second = fit_of(TINY_RECIPE, tmp_path / "s.safetensors", seed=1)
    assert second.before == 42
    for ours, theirs in zip(second.network.parameters(), first.network.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is no snapshot"):
        fit_of(TINY_RECIPE, tmp_path / "other.safetensors")


class Cheap(StarterFit):
    """Everything but the network's losses, which are a parabola: what the loop makes of course and book."""

    def __init__(self, course, **options):
        super().__init__(course, 0, torch.device("cpu"), **options)
        self.at_all, self.seen_by = [], []
        self.validator = lambda network, size: {"mpjpe_mm": self._sum(network), "pa_mpjpe_mm": size[0]}

    @staticmethod
    def _sum(network):
        assert not network.training
        return float(sum(p.detach().double().abs().sum() for p in network.parameters()))

    def losses(self, step):
        self.at = step
        self.at_all.append(step)
        learn = [p for group in self.groups for p in group.parameters.values()]
        loss = sum((p - 0.01 * (step % 7)).square().sum() for p in learn)
        return loss, {"spot": loss / 2}


def test_the_loop_trains_it_as_its_recipe_says(tmp_path, monkeypatch):
    """Rates, clipping, average, log and state of a whole run and of one that was cut, against a loop of a few lines."""
    monkeypatch.setattr(course_module, "LOG_STEPS", 10)
    stages = (replace(TINY_RECIPE.stages[0], images=80), replace(TINY_RECIPE.stages[1], images=80, adam_rate=0.25))
    recipe = replace(TINY_RECIPE, clip_norm=0.5, stages=stages)
    slow = Cheap(CropCourse(recipe))
    learn = [*slow.network.parameters(), *slow.dense.parameters()]
    inside = [*slow.network.backbone.blocks.parameters(), *slow.network.smpl_head.transformer.transformer.parameters()]
    matrices = [p for p in inside if p.ndim == 2]
    beside = [p for p in learn if not any(p is each for each in matrices)]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in beside if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in beside if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=(0.9, 0.98),
        fused=True,
    )
    muon = Muon(matrices, lr=0.0, weight_decay=recipe.weight_decay)
    average = [p.detach().clone() for p in learn]
    for seen in range(0, recipe.images, 8):
        stage = recipe.stages[recipe.at(seen)[0]]
        adam.param_groups[0]["lr"] = adam.param_groups[1]["lr"] = stage.adam_rate * recipe.rate(seen)
        muon.param_groups[0]["lr"] = recipe.rate(seen)
        slow.losses(seen)[0].backward()
        torch.nn.utils.clip_grad_norm_(learn, 0.5)
        for optimiser in (adam, muon):
            optimiser.step()
            optimiser.zero_grad()
        if (seen + 8) // 8 % 4 == 0:
            decay = min(0.999, 1 - 160 / (seen + 8 + 160)) ** 4
            for mean, p in zip(average, learn, strict=True):
                mean += (1 - decay) * (p.detach() - mean)

    def go(folder, **options):
        course = CropCourse(recipe, validate_every=48, **options)
        fit = Cheap(course)
        book = StarterBook(folder, fit, {"recipe": "tiny"}, snapshot=folder / "s.safetensors")
        return fit, book, run(fit, course, book)

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, book, result = go(tmp_path / "whole")
    assert result.finished and whole.at_all == list(range(0, recipe.images, 8))
    state = torch.load(tmp_path / "whole" / STATE_FILE, weights_only=True)
    assert state["seen"] == recipe.images and state["inputs"] == {"recipe": "tiny"} and state["before"] == 0
    found = [*(state["network"][n] for n, _ in slow.network.named_parameters()), *state["dense"].values()]
    assert all(torch.equal(a, b) for a, b in zip(found, learn, strict=True))
    bound = 1e-6  # a few float32 roundings of numbers below 1, of an average in one formula and in another
    assert max(float((a - b).abs().max()) for a, b in zip(state["average"], average, strict=True)) < bound
    for saved, optimiser in zip(state["optimisers"], (adam, muon), strict=True):
        wanted = optimiser.state_dict()
        assert [group["params"] for group in saved["param_groups"]] == [g["params"] for g in wanted["param_groups"]]
        for number, of in wanted["state"].items():
            assert all(torch.equal(of[name], saved["state"][number][name]) for name in of)
    records = [json.loads(line) for line in (tmp_path / "whole" / LOG_FILE).read_text().splitlines()]
    assert [record["seen"] for record in records] == [80, 96, 144, 160, 160], "where there is a head, and last"
    assert records[0].keys() == {"seen", "stage", "minutes", "rate", "loss"} and records[0]["stage"] == "dense"
    assert records[0]["loss"].keys() == {"spot"} and records[0]["rate"] == 1e-3
    assert records[1].keys() == {"seen", "minutes", "val"} and book.last == records[-1]
    with torch.no_grad():
        total = float(sum(p.double().abs().sum() for p in average[: -len([*slow.dense.parameters()])]))
    assert records[-1]["val"]["mpjpe_mm"] == pytest.approx(total, rel=1e-6), "the average is measured"
    cut, _, result = go(tmp_path / "parts", max_minutes=0.0)
    assert not result.finished and cut.at_all == [0] and len(result.validations) == 1
    rest, _, result = go(tmp_path / "parts")
    assert result.finished and rest.at_all == whole.at_all[1:]
    again = torch.load(tmp_path / "parts" / STATE_FILE, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(again["average"], state["average"], strict=True))
    assert (tmp_path / "parts" / "s.safetensors").read_bytes() == (tmp_path / "whole" / "s.safetensors").read_bytes()


def test_every_weight_gets_a_gradient(body, shard):
    network, dense = build(TINY, seed=0), DenseReadout(TINY.dim)
    images, target = to_tensors(shard, np.random.default_rng(0))
    stay = survivors(len(images), (0.0, 0.1, 0.2), torch.Generator().manual_seed(0))
    tokens = encode_with_layer_drop(network.backbone, images, None, stay)
    losses = dense_losses(dense(tokens), target) | body_losses(network.smpl_head(tokens), target, body)
    sum(losses.values()).backward()
    missing = [n for n, p in [*network.named_parameters(), *dense.named_parameters()] if p.grad is None]
    assert missing == []


def test_the_moving_average_is_the_textbook_one():
    weights = [torch.nn.Parameter(torch.tensor([2.0]))]
    average = [torch.tensor([1.0])]
    follow(average, weights, 0.9)
    assert float(average[0]) == pytest.approx(0.9 * 1 + 0.1 * 2)


def test_rates_warm_up_and_fall_at_the_end():
    recipe = TINY_RECIPE
    assert recipe.images == 240 and recipe.at(0) == (0, 0) and recipe.at(80) == (1, 0) and recipe.at(240)[0] == 2
    assert recipe.rate(0) == pytest.approx(1e-3 * 0.5) and recipe.rate(40) == pytest.approx(1e-3)
    assert recipe.rate(239) == pytest.approx(1e-3 / 160) and recipe.rate(160) == pytest.approx(0.5e-3)
    assert recipe.with_images({"body": 16}).images == 96
    course = CropCourse(recipe, validate_every=32)
    looks = [course.looks(seen, 0.0) for seen in range(0, 241, 8)]
    passed = [8 * step for step in range(1, 31) if looks[step] > looks[step - 1]]
    assert passed == [96, 128, 160, 192, 224], "without the first stage, which has no head"
    assert CropCourse(recipe, processes=3).after(80) == 86, "two crops of eight for each of three"


def test_the_schedule_covers_every_shard_that_a_batch_draws_from():
    recipe = TINY_RECIPE
    for resumed in (0, 40, 120):
        wanted = set(schedule(recipe, resumed))
        for seen in range(resumed, recipe.images, 8):
            stage, within = recipe.at(seen)
            first, newest = shard_range(recipe, stage, within)
            assert {(stage, index) for index in range(first, newest + 1)} <= wanted


def test_batches_depend_on_the_step_alone(shard):
    make = lambda: Pool(lambda index: shard, 2, seed=5)  # noqa: E731
    fresh = make()
    fresh.draw(0, 4, 0, 1)
    first, _ = fresh.draw(8, 4, 0, 1)
    again, _ = make().draw(8, 4, 0, 1)
    assert all((first[name] == again[name]).all() for name in first)
    assert not (first["images"] == make().draw(8, 4, 1, 1)[0]["images"]).all()


@pytest.mark.slow
def test_a_shipped_network_is_gone_on_with(tmp_path, monkeypatch):
    """Two processes share the work of the optimiser; the log and the count of crops are taken over."""
    from dataclasses import replace

    from hmrcompress.api.opening import STARTER_MODEL, load
    from hmrcompress.starter.network.book import averaged_state

    monkeypatch.setenv("HMRCOMPRESS_HOME", str(tmp_path / "home"))
    stages = tuple(replace(stage, rate=0.0, rate_end=0.0, batch=8, images=16) for stage in Recipe.going_on().stages[:2])
    recipe = replace(Recipe.going_on(), stages=stages, shard_crops=24, window=2, weight_decay=0.0)
    result = train(recipe, TrainOptions(tmp_path / "on", start=STARTER_MODEL, processes=2, validate_every=10**9))
    shipped = load("starter")
    assert result["seen"] == shipped.source["images"] + 32
    state = torch.load(tmp_path / "on" / STATE_FILE, weights_only=True)
    ours = averaged_state(from_state(recipe.config, state["network"]), state["average"])
    expected = from_state(recipe.config, {name: tensor.float() for name, tensor in shipped.state().items()})
    wake(expected.backbone)
    assert all(torch.allclose(ours[name], tensor, atol=1e-6) for name, tensor in expected.state_dict().items())
    lines = (tmp_path / "on" / LOG_FILE).read_text().splitlines()
    assert len(lines) > len((STARTER_MODEL / "training_log.jsonl").read_text().splitlines())


def test_a_state_of_other_code_is_gone_on_from_and_of_another_recipe_refused(tmp_path, monkeypatch):
    options, fit = TrainOptions(tmp_path, seed=1), fit_of(TINY_RECIPE, seed=1)
    book = StarterBook(tmp_path, fit, training_key(TINY_RECIPE, options).inputs)

    def seen(**changes):
        """What a training with these settings makes of the state that is there."""
        recipe = replace(TINY_RECIPE, **{name: changes[name] for name in changes if name == "layer_drop"})
        rest = {name: value for name, value in changes.items() if name != "layer_drop"}
        return _seen(tmp_path / STATE_FILE, training_key(recipe, replace(options, **rest)))

    assert seen() == 0
    book.keep(state_of(fit, 48))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seen() == seen(processes=2, out=tmp_path / "moved") == 48
    for changes, name in (({"layer_drop": 0.2}, "recipe"), ({"seed": 2}, "seed")):
        with pytest.raises(UserError, match=rf"was made with other inputs \({name}\)"):
            seen(**changes)
    with monkeypatch.context() as patch:
        patch.setattr(keys, "code_sha256", lambda *names: "another")
        with pytest.warns(Notice, match="another version of hmrcompress, torch or numpy; it goes on"):
            assert seen() == 48
    saved = torch.load(tmp_path / STATE_FILE, weights_only=True)
    write_state({name: value for name, value in saved.items() if name != "inputs"}, tmp_path / STATE_FILE)
    with pytest.warns(Notice, match="did not note what it used; it goes on"):
        assert seen(layer_drop=0.2) == 48
    team = Team(torch.device("cpu"))
    assert StarterBook(tmp_path, fit, {}).open(team)["step"] == 48
    with pytest.raises(UserError, match="made with another network or seed"):
        StarterBook(tmp_path, fit_of(TINY_RECIPE, seed=2), {}).open(team)


def test_shards_that_other_code_rendered_are_removed_and_nothing_else(tmp_path):
    own, other = (shard_home(tmp_path, seed, None) for seed in (1, 2))
    kept, gone = [own, tmp_path, other], [tmp_path, other]
    shard = shard_path(tmp_path, 3, ShardSettings()).name
    for folder in {*kept, *gone}:
        write_shard(folder / shard, {"images": np.zeros(1)})
        (folder / "mine.npz").write_text("mine")
    (tmp_path / "folder").mkdir()
    write_shard(tmp_path / "folder" / shard, {"images": np.zeros(1)})
    like_ours = tmp_path / shard_path(tmp_path, 4, ShardSettings()).name
    like_ours.write_text("not ours")
    _remove_others(tmp_path, own)
    assert [(folder / shard).exists() for folder in gone] == [False, False] and (own / shard).exists()
    assert all((folder / "mine.npz").exists() for folder in kept) and (tmp_path / "folder" / shard).exists()
    assert like_ours.read_text() == "not ours"


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends_like_one_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HMRCOMPRESS_HOME", str(tmp_path / "home"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(TINY_RECIPE, TrainOptions(whole, seed=1, validate_every=10**9))
    train(TINY_RECIPE, TrainOptions(parts, seed=1, validate_every=10**9, max_minutes=0.0))
    stopped = torch.load(parts / STATE_FILE, weights_only=True)
    assert 0 < stopped["seen"] < TINY_RECIPE.images
    result = train(TINY_RECIPE, TrainOptions(parts, seed=1, validate_every=10**9))
    ends = [torch.load(folder / STATE_FILE, weights_only=True) for folder in (whole, parts)]
    assert ends[0]["seen"] == ends[1]["seen"] == TINY_RECIPE.images
    assert all(torch.equal(ends[0]["network"][name], ends[1]["network"][name]) for name in ends[0]["network"])
    records = [json.loads(line) for line in (parts / LOG_FILE).read_text().splitlines()]
    assert records[-1] == result and result["val"]["mpjpe_mm"] > 0
