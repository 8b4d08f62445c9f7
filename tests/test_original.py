"""Compressed networks in the original layout: identity padding, the files, the card, the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import hmrcompress as hc
from hmrcompress.errors import UserError
from hmrcompress.io.outputs import OutputRule
from hmrcompress.models.files.original import check_original, padded, write_original
from hmrcompress.models.network import HMR2, build
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress_cli.main import app

GROUPS = ((0,), (1, 2, 3))


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def plan(tiny_model: Path, tmp_path: Path) -> Path:
    reference = hc.load(tiny_model).reference
    path = tmp_path / "plan.yaml"
    Plan(checkpoint=reference, groups=GROUPS, merge_rule="mean", tokens=TokenSettings(keep=150)).write(path)
    return path


def strictly_loaded(state: dict[str, torch.Tensor], depth: int) -> HMR2:
    """The state dict in a network of that depth with random weights, every key required."""
    network = build(replace(tiny.CONFIG, depth=depth), seed=5)
    network.load_state_dict(state, strict=True)
    return network.eval()


def outputs(network: HMR2) -> torch.Tensor:
    images = torch.randn(3, 3, 256, 192, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = network(images)
    return torch.cat([found.body_pose.flatten(1), found.global_orient.flatten(1), found.betas, found.cam], dim=1)


def test_identities_leave_any_input_as_it_is() -> None:
    state = padded(tiny.network().state_dict(), build(tiny.CONFIG.whole(7), "meta").state_dict())
    deep = strictly_loaded(state, 7)
    tokens = 100 * torch.randn(2, 192, tiny.CONFIG.dim)
    for block in deep.backbone.blocks[tiny.CONFIG.depth :]:
        assert torch.equal(block(tokens), tokens)
    assert torch.equal(outputs(deep), outputs(tiny.network()))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_padded_and_short_files_predict_what_the_merged_network_does(
    tiny_model: Path, plan: Path, tmp_path: Path, suffix: str
) -> None:
    merged = hc.load(hc.merge(tiny_model, plan, tmp_path / "merged").path)
    for pad, depth in ((True, 4), (False, 2)):
        out = tmp_path / f"original{pad}{suffix}"
        done = hmr("merge", tiny_model, "--plan", plan, "-o", out, "--format", "original",
                   "--pad-identity" if pad else "--no-pad-identity")  # fmt: skip
        assert done.exit_code == 0, done.output
        if suffix == ".ckpt":
            read = torch.load(out, weights_only=True)
            assert read["pytorch-lightning_version"]
            state = read["state_dict"]
        else:
            state = load_file(out)
        assert torch.equal(outputs(strictly_loaded(state, depth)), outputs(merged.network))
        heads = {"num_heads": 2, "head_heads": 2} if suffix == ".ckpt" else {}
        again = hc.load(out, **heads)
        assert again.config == replace(tiny.CONFIG, depth=depth)
        numbers = sum(tensor.numel() for tensor in state.values())
        assert out.stat().st_size < 4 * numbers + 100_000, "weights are stored once"
        assert ("identities" in done.output) is pad
        converted = tmp_path / f"converted{suffix}"
        line = ("convert", tmp_path / "merged", "-o", converted, "--format", "original", "--quiet")
        assert hmr(*line, "--pad-identity" if pad else "--no-pad-identity").exit_code == 0
        assert torch.equal(outputs(hc.load(converted, **heads).network), outputs(merged.network))
        converted.unlink()
        converted.with_suffix(".md").unlink()
        card = out.with_suffix(".md").read_text()
        assert "hmrcompress.apply(model, plan)" in card and "down to 150" in card
        assert ("vit.py" in card and "`depth=2`" in card) is not pad
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["merged", "plan.yaml", *(f"original{pad}{end}" for pad in (True, False) for end in (suffix, ".md"))]
    )


def test_the_same_weights_give_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    model = hc.load(tiny_model)
    first, second = (write_original(model, tmp_path / name / "a.ckpt") for name in ("one", "two"))
    assert first.weights.read_bytes() == second.weights.read_bytes() and first.padded == 0
    assert "all 4 layers" in first.card.read_text()


def test_another_suffix_is_refused_before_anything_is_done(tiny_model: Path, plan: Path, tmp_path: Path) -> None:
    done = hmr("merge", tiny_model, "--plan", plan, "-o", tmp_path / "x.pth", "--format", "original")
    assert done.exit_code == 2 and "expected .ckpt or .safetensors" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
    with pytest.raises(UserError):
        check_original("folder", OutputRule())
