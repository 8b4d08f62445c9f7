"""Removed layers and halves, and the patch below a cut: against loops, zeroed projections and numpy's least squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress.errors import Notice, UserError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.fit import FitBatch
from hmrcompress.merging.merge import merge_network
from hmrcompress.merging.patch import Cut, Host, cuts, fit_cuts
from hmrcompress.models.families.registry import read_config
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.network import HMR2, build, from_state
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress_cli.main import app

IMAGES = torch.randn(3, 3, 256, 192, generator=torch.Generator().manual_seed(0))
REMOVED = ({"layer": 1, "part": "attention"}, {"layer": 2}, {"layer": 3, "part": "mlp"})
FITTED_ON = {"name": "tiny", "split": "calib", "sha256": "0" * 64, "frames_per_clip": 8}


def plan(*removed: dict[str, object], layers: int = 4, **more: object) -> Plan:
    return Plan.from_dict({"groups": [[layer] for layer in range(layers)], "removed": list(removed), **more})


def outputs(network: HMR2) -> Tensor:
    with torch.no_grad():
        found = network(IMAGES)
    return torch.cat([found.body_pose.flatten(1), found.global_orient.flatten(1), found.betas, found.cam], dim=1)


def zeroed(network: HMR2) -> HMR2:
    """The network with what `REMOVED` names silenced by output projections of zeros."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for half in ("1.attn.proj", "2.attn.proj", "2.mlp.fc2", "3.mlp.fc2"):
        for part in ("weight", "bias"):
            state[f"backbone.blocks.{half}.{part}"].zero_()
    return from_state(network.config, state)


def test_what_is_removed_adds_nothing_in_every_path(tmp_path: Path, tiny_model: Path) -> None:
    network = hc.load(tiny_model).network
    expected = outputs(zeroed(network))
    merged = merge_network(network, plan(*REMOVED))
    assert (merged.config.depth, merged.config.without_attention, merged.config.without_mlp) == (3, (1,), (2,))
    assert not any(".2.mlp" in name or ".1.attn" in name or ".1.norm1" in name for name in merged.state_dict())
    assert torch.equal(outputs(merged), expected)
    torch.testing.assert_close(outputs(make_fast(merged)), expected, rtol=1e-4, atol=1e-5)
    path = tmp_path / "plan.yaml"
    tokens = {"keep": 150, "metric": "features"}
    plan(*REMOVED, tokens=tokens, run={"stride": 4}).write(path)
    line = ["merge", str(tiny_model), "--plan", str(path), "-o"]
    for out, more in (("folder", []), ("padded.ckpt", ["--format", "original"])):
        done = CliRunner().invoke(app, [*line, str(tmp_path / out), *more])
        assert done.exit_code == 0, done.output
        left = "run: stride, runtime is left to the original's own code" in done.output
        assert left == ("--format" in more), "a folder of ours is followed by the commands that run it"
    folder = hc.load(tmp_path / "folder")
    with pytest.raises(UserError, match=r"has layers of one half .1, 2., and whole layers become one with whole ones"):
        hc.search(folder, journal=tmp_path / "journal")
    assert torch.equal(outputs(folder.network), expected) and folder.config == merged.config
    assert folder.plan is not None and folder.plan.checkpoint is not None, "the folder's plan names the checkpoint"
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "3 of 4" in card and "| layers removed | 2 |" in card and "attention of 1, mlp of 3" in card
    original = hc.load(tmp_path / "padded.ckpt", num_heads=2, head_heads=2)
    assert original.config == tiny.CONFIG and torch.equal(outputs(original.network), expected)
    assert "Half of layers 1, 2 was removed" in (tmp_path / "padded.md").read_text()


def test_a_folder_with_halves_can_be_merged_again() -> None:
    network = merge_network(tiny.network(), plan(*REMOVED))
    again = merge_network(network, plan({"layer": 0}, layers=3))
    assert (again.config.depth, again.config.without_attention, again.config.without_mlp) == (2, (0,), (1,))
    for bad, message in (
        (plan({"layer": 1, "part": "attention"}, layers=3), "layer 1 has no attention to remove"),
        (plan({"layer": 1, "part": "mlp"}, layers=3), "layer 1 has nothing but its mlp; part: all removes it"),
        (Plan(groups=((0, 1), (2,))), "layers 0 and 1 do not have the same halves"),
    ):
        with pytest.raises(UserError, match=message):
            merge_network(network, bad)


def test_tokens_are_not_merged_by_keys_that_are_gone() -> None:
    merged = merge_network(tiny.network(), plan(*REMOVED))
    with pytest.raises(UserError, match=r"tokens.metric: layer 1 merges tokens by the keys of its attention"):
        with_token_merging(merged, TokenSettings(keep=120))
    for settings in (TokenSettings(keep=120, metric="features"), TokenSettings(keep=152)):
        assert outputs(with_token_merging(merged, settings)).isfinite().all()


def test_sizes_that_a_file_may_claim() -> None:
    known = tiny.CONFIG.to_dict()
    assert "without_mlp" not in known, "networks without removed halves are written as before"
    halved = read_config({**known, "without_mlp": [1, 3]})
    assert read_config(halved.to_dict()) == halved and halved.whole(4) == tiny.CONFIG
    for bad in ({"without_mlp": [4]}, {"without_mlp": [1, 1]}, {"without_mlp": "1"}, {"without_attention": [-1]},
                {"without_mlp": [1], "without_attention": [1]}):  # fmt: skip
        with pytest.raises(UserError):
            read_config({**known, **bad})


def test_live_networks_leave_whole_layers_out_and_refuse_halves() -> None:
    network, whole = tiny.network(), plan({"layer": 2}, tokens={"keep": 150, "read": "restored"}, run={})
    expected = outputs(merge_network(network, whole))
    with pytest.warns(Notice, match="run: runtime is left to the code that calls a live network"):
        live = hc.apply(tiny.network(), whole)
    torch.testing.assert_close(outputs(live), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs(hc.unapply(live)), outputs(network))
    with pytest.raises(UserError, match="half of layer 1 is removed"):
        hc.apply(tiny.network(), plan(*REMOVED))
    with pytest.raises(UserError, match="the patch is fitted on data"):
        hc.apply(tiny.network(), plan({"layer": 2}, patch={"strength": 1.0, "fitted_on": FITTED_ON}))


def test_a_head_that_reads_restored_tokens_counts_each_patch() -> None:
    native = TokenSettings(keep=100, size_weighted=True)
    person = torch.zeros(3, 16, 12, dtype=torch.bool)
    person[:, 4:10, 4:8] = True
    found = {}
    for name, change in (("native", {}), ("restored", {"read": "restored"}), ("cross", {"attention_bias": "cross"})):
        settings = native.changed(**change)
        with torch.no_grad():
            network = with_token_merging(tiny.network(), settings)
            found[name] = network(IMAGES, person).features
            torch.testing.assert_close(make_fast(network)(IMAGES, person).features, found[name], rtol=1e-4, atol=1e-6)
    assert torch.equal(found["restored"], found["cross"]) and not torch.equal(found["restored"], found["native"])


def test_cuts_and_their_hosts() -> None:
    assert cuts(plan({"layer": 2})) == [Cut(Host(1, "mlp"), 6)]
    assert cuts(plan({"layer": 3}, {"layer": 1, "part": "mlp"})) == [
        Cut(Host(1, "attention"), 4),
        Cut(Host(2, "mlp"), 8),
    ]
    assert cuts(plan({"layer": 0}, {"layer": 1, "part": "attention"})) == [], "nothing is below to make up for it"
    grouped = Plan.from_dict({"groups": [[0], [1, 2], [3]], "removed": [{"layer": 3}]})
    assert cuts(grouped) == [Cut(Host(1, "mlp"), 8)]
    assert cuts(plan()) == []


class Kept:
    """The original network's tokens before each layer, by a plain loop."""

    def __init__(self, network: HMR2, images: Tensor) -> None:
        with torch.no_grad():
            self.layers = list(network.backbone.layer_inputs(images))

    def at(self, batch: int, layer: int) -> Tensor:
        return self.layers[layer]


@pytest.mark.parametrize(
    ("removed", "host", "target"),
    [({"layer": 2}, "backbone.blocks.1.mlp.fc2", 3), ({"layer": 3, "part": "mlp"}, "backbone.blocks.3.attn.proj", 4)],
)
def test_the_patch_is_the_least_squares_map_from_what_the_host_reads(
    removed: dict[str, object], host: str, target: int
) -> None:
    network = build(tiny.CONFIG, seed=3).eval().requires_grad_(False)
    wanted = plan(removed)
    kept = Kept(network, IMAGES)
    batches = [FitBatch(np.arange(3), torch.ones(3, 192), torch.tensor([False, False, False]))]
    (patch,) = fit_cuts(network, merge_network(network, wanted), wanted, batches, kept).values()
    read: list[Tensor] = []
    handle = network.get_submodule(host).register_forward_pre_hook(lambda module, args: read.append(args[0]))
    layer = int(host.split(".")[2])
    entering = kept.at(0, layer)
    block = network.backbone.blocks[layer]
    reached = block(entering) if "mlp" in host else block.attend(entering)[0]
    handle.remove()
    hidden = read[0].flatten(0, 1).double()
    missing = (kept.at(0, target) - reached).flatten(0, 1).double()
    rows, wanted_rows = (each - each.mean(0) for each in (hidden, missing))
    penalty = patch.ridge * rows.square().sum(0).mean()  # ridge regression as least squares with rows more
    more = torch.sqrt(penalty) * torch.eye(hidden.shape[1]).double()
    solution, *_ = np.linalg.lstsq(
        torch.cat([rows, more]).numpy(), F.pad(wanted_rows, (0, 0, 0, len(more))).numpy(), rcond=None
    )
    np.testing.assert_allclose(patch.weight.T.numpy(), solution, rtol=0, atol=1e-5 * np.abs(solution).max())
    means = missing.mean(0).numpy(), hidden.mean(0).numpy()
    np.testing.assert_allclose(patch.bias.numpy(), means[0] - means[1] @ solution, atol=1e-7)


def test_half_the_strength_is_half_the_way() -> None:
    network = build(tiny.CONFIG, seed=3).eval().requires_grad_(False)
    batches = [FitBatch(np.arange(3), torch.ones(3, 192), torch.tensor([False, True, False]))]
    bare = plan({"layer": 2})
    patches = fit_cuts(network, merge_network(network, bare), bare, batches, Kept(network, IMAGES))
    weights = {}
    for strength in (0.5, 1.0):
        patched = plan({"layer": 2}, patch={"strength": strength, "fitted_on": FITTED_ON})
        weights[strength] = merge_network(network, patched, cut_patches=patches).backbone.blocks[1].mlp.fc2.weight
    own = network.backbone.blocks[1].mlp.fc2.weight
    torch.testing.assert_close(weights[0.5] - own, (weights[1.0] - own) / 2, rtol=1e-4, atol=1e-6)
    assert not torch.equal(weights[1.0], own)
    with pytest.raises(UserError, match="patch: the patch is not fitted"):
        merge_network(network, plan({"layer": 2}, patch={"strength": 1.0, "fitted_on": FITTED_ON}))


def test_merging_a_plan_with_a_patch_fits_it_again_to_the_same_bytes(
    tiny_model: Path, tiny_crops_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.yaml"
    plan({"layer": 2}, patch={"strength": 0.5, "fitted_on": FITTED_ON}).write(path)
    line = ["merge", str(tiny_model), "--plan", str(path)]
    done = [
        CliRunner().invoke(app, [*line, "--data", str(tiny_crops_file), "-o", str(tmp_path / name)])
        for name in "ab"
    ]  # fmt: skip
    assert [each.exit_code for each in done] == [0, 0], done[0].output
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    unfitted = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "c")])
    assert unfitted.exit_code == 2 and "the patch is fitted on data" in " ".join(unfitted.output.split())
