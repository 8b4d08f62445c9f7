"""Checkpoint files of other code, compressed as they lie: what they then compute is what the live network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from live_networks import DEPTH, GRID, SPECS, pictures, stranger
from safetensors.torch import load_file, save_file
from test_live_structures import compress, plan
from torch import Tensor
from typer.testing import CliRunner, Result

import hmrcompress as hc
from hmrcompress.errors import UserError
from hmrcompress.live.files import merged_blocks, stacks_in
from hmrcompress.models.families.registry import is_known
from hmrcompress.models.network import HMR2
from hmrcompress.plan import CheckpointRef, Plan, Removed, TokenSettings
from hmrcompress_cli.main import app

NAMES = list(SPECS)
GROUPS = ((0,), (1, 2), (3,))
FEW = ((0, 1, 2), (3,))


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def written(path: Path, name: str = "HMR2, ViTPose", prefix: str = "", **around: Any) -> Path:
    """A checkpoint of a stand-in, with whatever is around its weights."""
    state = {f"{prefix}{key}": tensor for key, tensor in stranger(name).state_dict().items()}
    torch.save({**around, "network": state} if around else state, path)
    return path


def outputs_of(name: str, file: Path, prefix: str = "", key: str | None = None) -> tuple[Tensor, ...]:
    """What the stand-in computes with the weights of a file, which its own class loads strictly."""
    state = torch.load(file, weights_only=True)
    state = state if key is None else state[key]
    model = stranger(name, seed=1)
    model.load_state_dict({each.removeprefix(prefix): tensor for each, tensor in state.items()})
    with torch.no_grad():
        return tuple(model(pictures()[0]))


@pytest.mark.parametrize("rule", ["keep_first", "keep_last", "mean", "eq4"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_computes_what_the_live_network_does(name: str, rule: str, tmp_path: Path) -> None:
    file = written(tmp_path / "theirs.pth", name)
    groups = FEW if rule in ("mean", "eq4") else GROUPS  # of two layers eq4 is the upper one
    made = hc.live.merge_file(file, plan(None, groups, rule), tmp_path / "ours.pth", force=True)
    assert (made.stack, made.before, made.layers, made.padded) == (SPECS[name].path, DEPTH, DEPTH, DEPTH - len(groups))
    model = stranger(name)
    compress(model, name, plan(None, groups, rule))
    with torch.no_grad():
        wanted = model(pictures()[0])
    for got, want in zip(outputs_of(name, tmp_path / "ours.pth"), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)  # the stand-ins are in float64


@pytest.mark.parametrize("name", NAMES)
def test_fewer_layers_are_renumbered(name: str, tmp_path: Path) -> None:
    file = written(tmp_path / "theirs.pth", name)
    made = hc.live.merge_file(
        file, plan(None, GROUPS, "keep_last"), tmp_path / "ours.pth", force=True, pad_identity=False
    )
    assert (made.layers, made.padded) == (3, 0)
    state, model = torch.load(tmp_path / "ours.pth", weights_only=True), stranger(name)
    old, path = model.state_dict(), SPECS[name].path
    for layer, source in enumerate((0, 2, 3)):
        for key, tensor in old.items():
            if key.startswith(f"{path}.{source}."):
                assert torch.equal(state[key.replace(f"{path}.{source}.", f"{path}.{layer}.")], tensor)
    assert not any(key.startswith(f"{path}.3.") for key in state)
    assert {key for key in state if not key.startswith(path)} == {key for key in old if not key.startswith(path)}


def test_wrappers_and_all_else_stay(tmp_path: Path) -> None:
    """SMPLest-X's file: `network` with `module.` before every name, an epoch and an optimiser beside."""
    file = written(
        tmp_path / "snapshot.pth.tar",
        "SMPLest-X",
        "module.",
        epoch=7,
        optimizer={"state": {0: torch.ones(2)}, "param_groups": []},
    )
    plan_file = tmp_path / "plan.yaml"
    plan_file.write_text("schema: 2\ngroups: [[0], [1, 2], [3]]\nmerge_rule: keep_last\ntokens: {keep: 20}\n")
    made = hc.live.merge_file(file, plan_file, tmp_path / "fast.pth.tar", force=True)
    assert made.stack == "encoder.blocks" and made.left_out == ("optimizer",)
    content = torch.load(made.weights, weights_only=True)
    assert set(content) == {"epoch", "network"} and content["epoch"] == 7
    before = torch.load(file, weights_only=True)["network"]
    assert list(content["network"]) == list(before)
    for name, tensor in before.items():
        if not name.startswith("module.encoder.blocks"):
            assert torch.equal(content["network"][name], tensor)
    card = made.card.read_text()
    assert (
        "optimizer" in card
        and "down to 20" in card
        and "the other one is an identity" in card
        and "`encoder.blocks`" in card
    )
    with pytest.raises(UserError, match="is there already"):
        (tmp_path / "theirs.pth").write_bytes(b"theirs")
        hc.live.merge_file(file, plan_file, tmp_path / "theirs.pth")
    assert hc.live.merge_file(file, plan_file, made.weights, force=True).weights == made.weights  # ours may be replaced


def test_a_plan_of_other_blocks_is_refused(tmp_path: Path) -> None:
    name = "SAM 3D Body, DINOv3"
    file = written(tmp_path / "theirs.pth", name)
    network = hc.live.network(stranger(name), grid=GRID)
    fitting = Plan(checkpoint=network.reference, groups=GROUPS, merge_rule="keep_last")
    hc.live.merge_file(file, fitting, tmp_path / "ours.pth")
    other = hc.live.network(stranger(name, seed=1), grid=GRID)
    wrong = Plan(checkpoint=other.reference, groups=GROUPS, merge_rule="keep_last")
    with pytest.raises(UserError, match="checkpoint.sha256: the plan was made for"):
        hc.live.merge_file(file, wrong, tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()
    hc.live.merge_file(file, wrong, tmp_path / "other.pth", force=True)
    with pytest.raises(UserError, match="the plan is for 3 layers"):
        hc.live.merge_file(file, plan(None, depth=3), tmp_path / "third.pth", force=True)
    with pytest.raises(UserError, match="lstsq is fitted on what the network computes"):
        hc.live.merge_file(file, plan(None, GROUPS, "lstsq"), tmp_path / "third.pth", force=True)


def test_removed_halves_and_layers(tmp_path: Path) -> None:
    """A half that goes adds nothing; a layer that goes is an identity."""
    name = "timm ViT"
    file = written(tmp_path / "theirs.pth", name)
    made = plan(None).model_copy(update={"removed": (Removed(layer=1), Removed(layer=2, part="mlp"))})
    hc.live.merge_file(file, made, tmp_path / "ours.pth", force=True)
    model = stranger(name)
    with torch.no_grad():
        for layer, halves in ((1, ("attn.proj", "mlp.fc2")), (2, ("mlp.fc2",))):
            for half in halves:
                linear = model.list[layer].get_submodule(half)
                linear.weight.zero_(), linear.bias.zero_()
        wanted = model(pictures()[0])
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(name, tmp_path / "ours.pth"), wanted, strict=True))


def test_safetensors_keep_their_header(tmp_path: Path) -> None:
    state = {key: tensor.contiguous() for key, tensor in stranger("PromptHMR").state_dict().items()}
    save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    out = tmp_path / "ours.safetensors"
    hc.live.merge_file(tmp_path / "theirs.safetensors", plan(None, GROUPS, "mean"), out, force=True)
    from safetensors import safe_open

    with safe_open(out, "pt") as opened:
        assert opened.metadata()["format"] == "pt"
    assert set(load_file(out)) == set(state)
    with pytest.raises(UserError, match="expected .safetensors, as the checkpoint"):
        hc.live.merge_file(tmp_path / "theirs.safetensors", plan(None, GROUPS), tmp_path / "ours.pth")


def test_several_stacks(tmp_path: Path) -> None:
    """An encoder and a decoder of the same length: the plan's blocks tell, else the name does."""
    one, two = stranger("HMR2, ViTPose").state_dict(), stranger("HMR2, ViTPose", seed=1).state_dict()
    state = {f"a.{key}": tensor for key, tensor in one.items()} | {f"b.{key}": tensor for key, tensor in two.items()}
    torch.save(state, tmp_path / "theirs.pth")
    assert {each.name for each in stacks_in(state)} == {"a.backbone.blocks", "b.backbone.blocks"}
    with pytest.raises(UserError, match="several stacks fit the plan: "):
        hc.live.merge_file(tmp_path / "theirs.pth", plan(None, GROUPS), tmp_path / "ours.pth", force=True)
    found = hc.live.network(stranger("HMR2, ViTPose", seed=1), grid=GRID)
    told = Plan(checkpoint=found.reference, groups=GROUPS)
    assert hc.live.merge_file(tmp_path / "theirs.pth", told, tmp_path / "ours.pth").stack == "b.backbone.blocks"
    named = hc.live.merge_file(
        tmp_path / "theirs.pth", plan(None, GROUPS), tmp_path / "ours.pth", stack="a.backbone.blocks", force=True
    )
    assert named.stack == "a.backbone.blocks"
    with pytest.raises(UserError, match="there is no stack c"):
        hc.live.merge_file(tmp_path / "theirs.pth", plan(None, GROUPS), tmp_path / "o.pth", stack="c", force=True)
    torch.save({"head.weight": torch.ones(3)}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="holds no stack"):
        hc.live.merge_file(tmp_path / "none.pth", plan(None, GROUPS), tmp_path / "o.pth", force=True)


def test_heads_are_no_stacks() -> None:
    """The decoder layers of HMR2.0's head, lists in lists, are left alone."""
    state = hc.load("starter").network.state_dict()
    assert [each.name for each in stacks_in(state)] == ["backbone.blocks"]


def test_half_precision_and_unknown_names(tmp_path: Path) -> None:
    layers = stacks_in({key: tensor.half() for key, tensor in stranger("HMR2, ViTPose").state_dict().items()})[0]
    made = merged_blocks(layers, plan(None, FEW, "mean"))
    slow = torch.stack([each["mlp.fc1.weight"].double() for each in layers.layers[:3]]).mean(0)
    assert made[0]["mlp.fc1.weight"].dtype == torch.float16
    assert (made[0]["mlp.fc1.weight"].double() - slow).abs().max() <= 2**-11 * slow.abs().max()


def block(size: int = 4, **more: Tensor) -> dict[str, Tensor]:
    """A block by the usual names, and what it has beside."""
    usual = {
        **{f"{name}.{end}": torch.randn(size) for name in ("norm1", "norm2") for end in ("weight", "bias")},
        "attn.qkv.weight": torch.randn(3 * size, size),
        "attn.proj.weight": torch.randn(size, size),
        "mlp.fc1.weight": torch.randn(2 * size, size),
        "mlp.fc2.weight": torch.randn(size, 2 * size),
    }
    return usual | {name.replace("__", "."): tensor for name, tensor in more.items()}


def stack_of(count: int = 3, start: str = "blocks", **more: Tensor) -> dict[str, Tensor]:
    blocks = [block(**{name: tensor.clone() for name, tensor in more.items()}) for _ in range(count)]
    return {f"{start}.{number}.{name}": tensor for number, each in enumerate(blocks) for name, tensor in each.items()}


DROPPED = Plan(groups=((0,), (1, 2)), merge_rule="keep_first")


def merged(state: Any, tmp_path: Path, made: Plan = DROPPED, **options: Any) -> tuple[Any, Any]:
    torch.save(state, tmp_path / "theirs.pth")
    found = hc.live.merge_file(tmp_path / "theirs.pth", made, tmp_path / "ours.pth", force=True, **options)
    return torch.load(tmp_path / "ours.pth", weights_only=True), found


def test_nothing_of_a_removed_block_is_left(tmp_path: Path) -> None:
    """Cross-attention, experts, norms behind a half: whatever a residual block has, it adds nothing."""
    state = stack_of(3, cross_attn__proj__weight=torch.ones(4, 4), mlp__experts__0__weight=torch.ones(4, 4))
    new, _ = merged(state, tmp_path)
    assert set(new) == set(state)
    assert not any(tensor.any() for name, tensor in new.items() if name.startswith("blocks.2."))
    half = Plan(groups=((0,), (1,), (2,)), removed=(Removed(layer=1, part="mlp"),))
    with pytest.raises(UserError, match=r"blocks.1: cross_attn.proj.weight belongs to neither half"):
        merged(state, tmp_path, half)


def test_what_lies_around_the_numbers_stays(tmp_path: Path) -> None:
    state = stack_of(3, "encoder") | {"encoder.norm.weight": torch.ones(4), "encoder.pos_embed": torch.ones(1, 4)}
    new, found = merged(state | {"epoch": 3, "ema": {"a": torch.ones(2)}}, tmp_path)
    assert torch.equal(new["encoder.norm.weight"], torch.ones(4)) and "encoder.pos_embed" in new
    assert new["epoch"] == 3 and torch.equal(new["ema"]["a"], torch.ones(2)) and found.left_out == ()


def test_numbers_with_leading_zeros_are_no_stack(tmp_path: Path) -> None:
    state = {name.replace("blocks.", "blocks.0"): tensor for name, tensor in stack_of().items()}
    with pytest.raises(UserError, match="holds no stack"):
        merged(state, tmp_path)


def test_of_several_sets_one_has_to_be_named(tmp_path: Path) -> None:
    one, two = stack_of(), stack_of()
    content = {"student": one, "teacher": two}
    with pytest.raises(UserError, match=r"several stacks fit the plan: blocks .3 layers in student.*--weights"):
        merged(content, tmp_path)
    new, found = merged(content, tmp_path, weights="teacher")
    assert set(new) == {"teacher"} and found.left_out == ("student",)
    assert torch.equal(new["teacher"]["blocks.1.attn.proj.weight"], two["blocks.1.attn.proj.weight"])
    with pytest.raises(UserError, match="holds no stack in 'ema'"):
        merged(content, tmp_path, weights="ema")
    reference = CheckpointRef(family="live:Model", sha256=stacks_in(content)[1].sha256, layers=3)
    plan_of_second = DROPPED.model_copy(update={"checkpoint": reference})
    torch.save(content, tmp_path / "theirs.pth")
    chosen = hc.live.merge_file(tmp_path / "theirs.pth", plan_of_second, tmp_path / "ours.pth")
    assert chosen.left_out == ("student",)


def test_plain_values_beside_the_weights_stay_and_others_are_named(tmp_path: Path) -> None:
    """Modules in dictionaries of their own, settings, lists and tuples; an optimiser does not fit the new blocks."""
    weights, head = stack_of(), {f"head.{number}": torch.randn(2) for number in range(99)}
    content = {
        "backbone": weights, "again": weights, "head": head, "hyper_parameters": {"dim": 4, "rates": [0.1, (1, None)]},
        "optimizer_states": [{"state": {0: torch.ones(2)}, "param_groups": [{"lr": 0.1}]}], 7: "seven",
    }  # fmt: skip
    new, found = merged(content, tmp_path)
    assert set(new) == {"backbone", "again", "head", "hyper_parameters", 7} and found.left_out == ("optimizer_states",)
    assert new["hyper_parameters"] == content["hyper_parameters"] and new[7] == "seven"
    assert all(torch.equal(new["head"][name], tensor) for name, tensor in head.items())
    assert not new["again"]["blocks.2.attn.proj.weight"].any()
    pair, _ = merged((stack_of(), 5), tmp_path)
    assert isinstance(pair, tuple) and pair[1] == 5 and "blocks.0.attn.proj.weight" in pair[0]


def test_blocks_under_two_names_are_changed_under_both(tmp_path: Path) -> None:
    state = stack_of(3, "model.blocks")
    state |= {name.replace("model.", "backbone."): tensor for name, tensor in state.items()}
    new, found = merged(state, tmp_path)
    assert found.stack in ("model.blocks", "backbone.blocks")
    for start in ("model", "backbone"):
        assert not new[f"{start}.blocks.2.attn.proj.weight"].any()
    assert new["model.blocks.0.attn.proj.weight"].data_ptr() == new["backbone.blocks.0.attn.proj.weight"].data_ptr()


def test_complex_tensors_and_scales_without_a_layer(tmp_path: Path) -> None:
    turns = torch.polar(torch.ones(3, dtype=torch.float64), torch.arange(3.0, dtype=torch.float64))
    mean = Plan(groups=((0, 1, 2),), merge_rule="mean")
    for rule in ("mean", "eq4"):
        new, _ = merged(stack_of(3, attn__freqs_cis=turns), tmp_path, mean.model_copy(update={"merge_rule": rule}))
        torch.testing.assert_close(new["blocks.0.attn.freqs_cis"], turns)
    scales = {"ls1__gamma": torch.randn(4), "ls2__gamma": torch.randn(4)}
    strange = {name.replace("attn.proj", "attn.out_proj"): each for name, each in stack_of(3, **scales).items()}
    with pytest.raises(UserError, match=r"blocks.0: has a layer scale, and the last layer of its attention"):
        merged(strange, tmp_path, mean)


def test_options_of_families_are_refused(tmp_path: Path) -> None:
    torch.save(stack_of(), tmp_path / "theirs.pth")
    (tmp_path / "plan.yaml").write_text("schema: 2\ngroups: [[0], [1, 2]]\n")
    line = ("merge", tmp_path / "theirs.pth", "--plan", tmp_path / "plan.yaml", "--format", "original")
    ended = hmr(*line, "--num-heads", 3, "-o", tmp_path / "ours.pth")
    assert ended.exit_code == 2 and "--num-heads: has no effect on a file of other code" in ended.output
    ended = hmr("inspect", tmp_path / "theirs.pth", "--num-heads", 3)
    assert ended.exit_code == 2 and "--num-heads: has no effect on a file of other code" in ended.output


def test_tokens_alone_change_no_weight(tmp_path: Path) -> None:
    file = written(tmp_path / "theirs.pth")
    hc.live.merge_file(file, plan(TokenSettings(keep=20)), tmp_path / "ours.pth", force=True)
    old, new = (torch.load(tmp_path / name, weights_only=True) for name in ("theirs.pth", "ours.pth"))
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())


def test_temporal_modules_are_carried_from_the_command_line(tmp_path: Path, tiny_network: HMR2) -> None:
    """TRAM's file is HMR2.0's network and two modules more: read natively it would be another network."""
    state = tiny_network.state_dict()
    more = {f"{name}.l1.weight": torch.randn(4, 3) for name in ("st_module", "motion_module")}
    file, plan_file, out = tmp_path / "vimo.pth.tar", tmp_path / "plan.yaml", tmp_path / "fast.pth.tar"
    torch.save({"model": {**state, **more}}, file)
    depth = tiny_network.config.depth
    groups = [[0, 1], *([number] for number in range(2, depth))]
    plan_file.write_text(f"schema: 2\ngroups: {groups}\nmerge_rule: mean\n")
    told = hmr("inspect", file)
    assert (
        told.exit_code == 0
        and f"backbone.blocks in model: {depth} layers" in told.output
        and "of no family" in told.output
    )
    done = hmr("merge", file, "--plan", plan_file, "--format", "original", "-o", out)
    assert done.exit_code == 0, done.output
    assert f"backbone.blocks: {depth} -> {depth - 1} layers" in done.output
    new = torch.load(out, weights_only=True)["model"]
    assert all(torch.equal(new[name], tensor) for name, tensor in more.items())
    first = (state["backbone.blocks.0.attn.qkv.weight"].double() + state["backbone.blocks.1.attn.qkv.weight"]) / 2
    assert torch.equal(new["backbone.blocks.0.attn.qkv.weight"], first.float())
    assert not new["backbone.blocks.1.mlp.fc2.weight"].any()
    native = hmr("merge", file, "--plan", plan_file, "-o", tmp_path / "folder")
    assert native.exit_code == 2 and "merge --format original takes their files" in native.output
    unused = hmr("merge", file, "--plan", plan_file, "--format", "original", "--data", "starter", "-o", out)
    assert unused.exit_code == 2 and "--data: has no effect on a file of other code" in unused.output


@pytest.mark.parametrize("name", ["st_module", "motion_module"])
def test_a_network_with_a_temporal_module_is_not_hmr2(name: str, tiny_network: HMR2) -> None:
    keys = set(tiny_network.state_dict())
    assert is_known(keys) and not is_known(keys | {f"{name}.l1.weight"})


def test_a_live_plan_of_a_known_network(tmp_path: Path, tiny_network: HMR2) -> None:
    """GVHMR and WHAM search HMR2.0 as it lies in their own class; the plan then fits the checkpoint itself."""
    torch.save({"state_dict": tiny_network.state_dict()}, tmp_path / "hmr2.ckpt")
    network = hc.live.network(tiny_network)
    groups = ((0,), (1, 2), *((number,) for number in range(3, network.depth)))
    Plan(checkpoint=network.reference, groups=groups, merge_rule="keep_first").write(tmp_path / "plan.yaml")
    out = tmp_path / "fast.ckpt"
    done = hmr("merge", tmp_path / "hmr2.ckpt", "--plan", tmp_path / "plan.yaml", "--format", "original", "-o", out)
    assert done.exit_code == 0, done.output
    sizes = tiny_network.config
    again = hc.load(out, num_heads=sizes.num_heads, head_heads=sizes.head_heads).network
    images = torch.randn(2, 3, *(again.config.patch * side for side in again.config.grid))
    hc.live.apply(tiny_network, Plan.read(tmp_path / "plan.yaml"), network=network)
    try:
        with torch.no_grad():
            wanted, got = tiny_network(images).features, again(images).features
    finally:
        hc.unapply(tiny_network)
    torch.testing.assert_close(got, wanted)
