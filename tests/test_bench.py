"""`bench`: who takes turns, what is counted and weighed, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import torch
from typer.testing import CliRunner, Result

import hmrcompress as hc
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.models.network import HMR2, NetworkConfig
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.records import FrameBatch
from hmrcompress.timing import bench as room
from hmrcompress.timing.bench import BenchSettings, bench, parse_sizes
from hmrcompress.timing.contenders import Contender, cut, cut_from_the_top
from hmrcompress.timing.made_up import PERSON_TOKENS, constant_network, ellipse_mask, made_up_batch
from hmrcompress.timing.memory import Memory, measure, peak_memory
from hmrcompress_cli.main import app

TOKENS = TokenSettings(keep=90, per_layer=40)
QUICK = BenchSettings(batch_sizes=(1, 2), rounds=3, warmup=1, memory=False)
MIB = 2**20


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--device", "cpu")])


def norm_macs(tokens: int) -> int:
    """As thop's `count_normalization`: two an element, and twice that where there are a scale and a shift."""
    return 2 * (2 * tokens * tiny.CONFIG.dim)


def block_macs(tokens_in: int, tokens_out: int) -> int:
    """One block of the tiny network by hand: norm, qkv, QK^T and AV, proj, then norm and MLP of what merging leaves."""
    dim, hidden = tiny.CONFIG.dim, tiny.CONFIG.mlp_dim
    attention = tokens_in * dim * 3 * dim + 2 * tokens_in * tokens_in * dim + tokens_in * dim * dim
    return norm_macs(tokens_in) + attention + norm_macs(tokens_out) + 2 * tokens_out * dim * hidden


def test_mac_ratio_of_the_backbone_by_hand(tiny_network: HMR2) -> None:
    result = bench(Contender(tiny_network), Contender(cut(tiny_network, 3), TOKENS), settings=QUICK)
    patches = 192 * tiny.CONFIG.dim * 3 * 16 * 16
    before = patches + 4 * block_macs(192, 192) + norm_macs(192)
    after = patches + block_macs(192, 152) + block_macs(152, 112) + block_macs(112, 90) + norm_macs(90)
    assert result.costs["backbone"]["before"].macs_with_attention == before
    assert result.costs["backbone"]["after"].macs_with_attention == after
    assert result.macs_ratio("backbone") == before / after
    figures = result.to_json()
    assert figures["layers"] == {"before": 4, "after": 3}
    assert figures["tokens"] == {"before": 192, "after": 90, "counts": [192, 152, 112, 90]}
    assert figures["params"]["before"] == sum(p.numel() for p in tiny_network.parameters())
    assert (
        figures["fps"] == figures["bench"]["batch_sizes"]["2"]["network"]["fps"] and "peak_memory_bytes" not in figures
    )


def test_the_ratio_of_the_issue_at_full_size() -> None:
    from hmrcompress.merging.describe import network_cost

    before, after = network_cost(NetworkConfig()), network_cost(NetworkConfig(depth=26), TOKENS)
    assert round(before.macs_with_attention / after.macs_with_attention, 2) == 2.52


class Clock:
    """Stands still but for the forward passes of networks, which take a time by their depth and their head."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, []
        whole, encode = HMR2.forward, type(tiny.network().backbone).forward

        def run_whole(network: HMR2, images: torch.Tensor, mask: torch.Tensor) -> object:
            self.pass_time(f"network {network.backbone.depth}", len(images) * (network.backbone.depth + 1))
            return whole(network, images, mask)

        def run_backbone(network: torch.nn.Module, images: torch.Tensor, mask: torch.Tensor) -> object:
            self.pass_time(f"backbone {network.depth}", len(images) * network.depth)
            return encode(network, images, mask)

        monkeypatch.setattr(HMR2, "forward", run_whole)
        monkeypatch.setattr(type(tiny.network().backbone), "forward", run_backbone)

    def pass_time(self, name: str, seconds: float) -> None:
        self.calls.append(name)
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def test_turns_and_figures_with_a_clock_of_our_own(tiny_network: HMR2, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    result = bench(Contender(tiny_network), Contender(cut(tiny_network, 1)), settings=QUICK, clock=clock)
    turn = ["network 4", "network 1", "backbone 4", "backbone 1"]
    assert clock.calls[: 2 * 4 * 4] == turn * 4 * 2  # a warm-up and three rounds, at two batch sizes
    for size in (1, 2):
        whole, backbone = result.part(size, "network"), result.part(size, "backbone")
        assert whole["fps"] == pytest.approx({"before": 1 / 5, "after": 1 / 2})
        assert whole["fps_quartiles"]["before"] == pytest.approx([1 / 5, 1 / 5])
        assert whole["speedup"] == pytest.approx(2.5) and backbone["speedup"] == pytest.approx(4.0)
        assert backbone["share_of_macs_ratio"] == pytest.approx(4.0 / result.macs_ratio("backbone"))


def test_a_rival_takes_its_turn(tiny_network: HMR2, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: 5 s a crop for the original, 2 s for the compressed network, 1 s for the rival."""
    clock = Clock(monkeypatch)

    class Rival:
        name = "other"

        def runner(self, batch: FrameBatch) -> Callable[[FrameBatch], object]:
            return lambda _: clock.pass_time("other", len(batch.images))

        def to_json(self) -> dict[str, Any]:
            return {"version": "1"}

    before, after = Contender(tiny_network), Contender(cut(tiny_network, 1))
    figures = bench(before, after, settings=QUICK, rival=Rival(), clock=clock).to_json()["bench"]
    assert clock.calls[:10] == ["network 4", "network 1", "backbone 4", "backbone 1", "other"] * 2
    assert figures["other"] == {"version": "1"}
    for found in figures["batch_sizes"].values():
        for name, expected in {"fps": 1, "speedup": 5, "over_torch": 2}.items():
            assert found["other"][name] == pytest.approx(expected)
            assert found["other"][f"{name}_quartiles"] == pytest.approx([expected, expected])


def test_weights_are_shared_and_converted_once(tiny_network: HMR2) -> None:
    smaller = cut(tiny_network, 2)
    for dtype in (torch.float32, torch.float64):
        contenders = {"before": Contender(tiny_network), "after": Contender(smaller)}
        made = room._converted(contenders, torch.device("cpu"), dtype)
        first, last = (made[when].backbone.blocks[0].attn.proj.weight for when in ("before", "after"))
        assert first.dtype == dtype and first.data_ptr() == last.data_ptr()
        assert torch.equal(
            made["after"].backbone.blocks[1].mlp.fc1.bias, made["before"].backbone.blocks[3].mlp.fc1.bias
        )
    kept = made["before"].backbone.pos_embed
    assert kept.data_ptr() != tiny_network.backbone.pos_embed.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_whole_networks_run_in_every_dtype(tiny_network: HMR2, dtype: torch.dtype) -> None:
    settings = replace(QUICK, batch_sizes=(1,), rounds=1, warmup=0, dtype=dtype)
    tokens = TOKENS.changed(size_weighted=True, attention_bias=True)
    found = bench(Contender(tiny_network), Contender(cut(tiny_network, 3), tokens), settings=settings).to_json()
    assert found["bench"]["dtype"] == str(dtype).removeprefix("torch.")


def test_the_made_up_person() -> None:
    mask = ellipse_mask((16, 12), PERSON_TOKENS)
    far = [((i - 7.5) / 16) ** 2 + ((j - 5.5) / 12) ** 2 for i in range(16) for j in range(12)]
    inside = [distance for distance, person in zip(far, mask.flatten().tolist(), strict=True) if person]
    outside = [distance for distance, person in zip(far, mask.flatten().tolist(), strict=True) if not person]
    assert len(inside) == 70 and max(inside) <= min(outside) + 1e-6
    batch = made_up_batch(tiny.CONFIG, 3)
    assert batch.images.shape == (3, 3, 256, 192) and batch.person_mask is not None
    assert batch.person_mask.sum((1, 2)).tolist() == [70] * 3


@pytest.mark.slow
def test_memory_is_that_of_the_child_alone() -> None:
    """64 MiB more weights show in the child; 400 MiB that the parent holds beside its libraries do not."""
    ballast = torch.ones(100 * MIB)
    config = replace(tiny.CONFIG, dim=256, mlp_dim=1024, num_heads=4)
    large = replace(config, depth=4 + 64 * MIB // (4 * (12 * 256 * 256)))
    small, more = (peak_memory(each, TOKENS, batch_size=1, threads=1) for each in (config, large))
    assert ballast.sum() > 0
    assert small.peak < psutil.Process().memory_info().rss - 250 * MIB
    assert 50 * MIB < more.peak - small.peak < 90 * MIB
    assert 0 < small.program <= small.peak


def test_the_child_does_what_it_is_told() -> None:
    wanted = {"config": tiny.CONFIG.to_dict(), "tokens": TOKENS.model_dump(mode="json"), "batch_size": 2,
              "dtype": "float32", "device": "cpu", "threads": None}  # fmt: skip
    found = measure(wanted)
    assert isinstance(found, Memory) and found.peak >= found.program > 0
    network = constant_network(tiny.CONFIG, torch.device("cpu"), torch.float32)
    assert {p.min().item() for p in network.parameters()} == {p.max().item() for p in network.parameters()}


def test_what_ended_a_child_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **options: object) -> None:
        assert command[0] == sys.executable and options["check"] and options["timeout"]
        raise subprocess.CalledProcessError(1, command, stderr="Traceback\nMemoryError: none is left\n")

    monkeypatch.setattr("hmrcompress.timing.memory.subprocess.run", fails)
    with pytest.raises(HMRCompressError, match="^the memory could not be measured: MemoryError: none is left$"):
        peak_memory(tiny.CONFIG, TOKENS, batch_size=1)


def test_cuts() -> None:
    assert cut_from_the_top(4, 4) == ((0,), (1,), (2,), (3,)) and cut_from_the_top(5, 2) == ((0,), (1, 2, 3, 4))
    for layers in (0, 5):
        with pytest.raises(UserError, match="--layers"):
            cut_from_the_top(4, layers)
    assert parse_sizes("8, 1,8") == (8, 1)
    for text in ("", "1,", "0", "1.5", "a"):
        with pytest.raises(UserError, match="--batch-sizes"):
            parse_sizes(text)


def test_the_command(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def remembered(config: NetworkConfig, tokens: TokenSettings | None, **options: Any) -> Memory:
        asked.append((config.depth, None if tokens is None else tokens.keep, options["batch_size"], options["threads"]))
        return Memory(peak=100 * config.depth, program=50)

    monkeypatch.setattr(room, "peak_memory", remembered)
    base = ("--batch-sizes", "1", "--rounds", 1, "--json", tmp_path / "b.json")
    done = hmr("bench", "--against", tiny_model, "--layers", 3, "--keep-tokens", 100, *base, "--threads", 1)
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "b.json").read_text())
    assert figures["command"] == "bench" and figures["tokens"]["counts"] == [192, 152, 112, 100]
    assert figures["peak_memory_bytes"] == {"before": 400, "after": 300} and figures["bench"]["threads"] == 1
    assert asked == [(4, None, 1, 1), (3, 100, 1, 1)]
    assert figures["speedup"] == figures["bench"]["batch_sizes"]["1"]["network"]["speedup"]
    assert "4 -> 3 layers, 192 -> 100 tokens" in done.stdout and "of what its MACs promise" in done.stdout
    assert "tiny, cut against tiny: float32 on cpu, 1 thread\n" in done.stdout

    plan = Plan(checkpoint=hc.load(tiny_model).reference, groups=((0,), (1,), (2, 3)), tokens=TOKENS)
    folder = hc.merge(tiny_model, plan, tmp_path / "merged").path
    for against in ((), ("--against", tiny_model)):
        done = hmr("bench", folder, *against, *base, "--no-memory", "--dtype", "float16")
        assert done.exit_code == 0, done.output
        assert ("random weights" in done.stdout) is not against and "4 -> 3 layers, 192 -> 90" in done.stdout
    assert "peak_memory_bytes" not in json.loads((tmp_path / "b.json").read_text())


def test_what_the_command_refuses(tiny_model: Path, tmp_path: Path) -> None:
    plan = Plan(checkpoint=hc.load(tiny_model).reference, groups=((0,), (1,), (2, 3)))
    folder = hc.merge(tiny_model, plan, tmp_path / "merged").path
    for arguments, sentence in {
        (): "there is no model to time",
        (tiny_model,): "Give --layers or --keep-tokens",
        (folder, "--layers", 2): "cannot be cut",
        (tiny_model, "--layers", 9): "--layers: got 9, expected 1 … 4",
        (tiny_model, "--layers", 1, "--keep-tokens", 90): "tokens.keep",
        (folder, "--against", "starter"): "their sizes differ",
        (tiny_model, "--layers", 2, "--batch-sizes", "0"): "--batch-sizes",
    }.items():
        done = hmr("bench", *arguments, "--no-memory")
        assert done.exit_code == 2 and sentence in done.stderr, (arguments, done.output)
