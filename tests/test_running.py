"""How networks are made ready to run: fast path, static batches, torch.compile; in eval, bench and predict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from bounds import network_bound
from test_fast import CONFIG, WEIGHTED, largest, numbers, single
from test_graphs import different
from typer.testing import CliRunner

from hmrcompress.errors import UserError
from hmrcompress.evaluation.evaluate import stages_of
from hmrcompress.merging.adaptive import AdaptiveTokens
from hmrcompress.merging.apply import forced_merges
from hmrcompress.models.fast.compiled import Compiled
from hmrcompress.models.fast.graphs import StaticBatches
from hmrcompress.models.fast.linear import PlainLinear
from hmrcompress.models.fast.running import RunPath, backbone_of, unwrapped
from hmrcompress.models.network import HMR2, build
from hmrcompress.plan import TokenSettings
from hmrcompress.timing.adaptive_bench import time_adaptive
from hmrcompress.timing.suite import VARIANTS
from hmrcompress_cli.main import app

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_where_graphs_are_used() -> None:
    """By default with the fast path on CUDA, if asked for without it, never on the CPU; so in all fast suite rows."""
    assert RunPath(fast=True).graphed(CUDA) and not RunPath(fast=True).graphed(CPU) and not RunPath().graphed(CUDA)
    assert RunPath(graphs=True).graphed(CUDA) and not RunPath(graphs=True).graphed(CPU)
    assert not RunPath(fast=True, graphs=False).graphed(CUDA)
    assert [variant.path(8).graphed(CUDA) for variant in VARIANTS] == ["fast path" in each.name for each in VARIANTS]
    assert VARIANTS[-1].path(12) == RunPath(fast=True, batch_sizes=(12,))


def test_what_is_prepared() -> None:
    network, batch = single(CONFIG, WEIGHTED)
    assert RunPath().prepare(network, torch.float32) is network and unwrapped(network) is network
    assert isinstance(RunPath(fast=True).prepare(network, torch.float32), HMR2)
    static = StaticBatches(network)
    assert unwrapped(static) is network and isinstance(backbone_of(static), StaticBatches)
    assert backbone_of(network) is network.backbone
    made = RunPath(compiled=True, batch_sizes=(3, 12)).prepare(network, torch.float32)
    assert isinstance(made, StaticBatches) and made.compiled and made.buckets == (1, 2, 3, 4, 8, 12)
    assert RunPath(fast=True).left_to_autocast(torch.bfloat16) == torch.float32
    assert RunPath(compiled=True).left_to_autocast(torch.bfloat16) == torch.bfloat16


def test_buckets_of_tokens_share_what_was_laid_out(tiny_network: HMR2) -> None:
    """Adaptive tokens on the fast path: the same bodies, one copy of the weights, each bucket with its own merging."""
    settings = TokenSettings(size_weighted=True, attention_bias=True)
    batch = different(tiny.CONFIG, 7)
    person = torch.arange(192) < torch.tensor([100, 3, 190, 80, 10, 5, 7])[:, None]
    masks = person.view(7, 16, 12)
    plain = AdaptiveTokens(tiny_network, settings)
    fast = AdaptiveTokens(tiny_network, settings, prepare=RunPath(fast=True).prepare_alike(torch.float32))
    wanted = plain(batch.images, masks)
    assert largest(fast(batch.images, masks), wanted) < network_bound(tiny_network, wanted)
    assert torch.equal(fast.forced_merges(batch.images, masks), plain.forced_merges(batch.images, masks))
    made = list(fast.networks.values())
    assert len({id(each.backbone.blocks) for each in made}) == 1 and len({id(each.backbone) for each in made}) == 4
    assert [each.backbone.reducer.settings.keep for each in made[:3]] == [64, 90, 128]
    assert forced_merges(made[0], batch.images, masks).sum() > forced_merges(made[2], batch.images, masks).sum()


def test_the_stages_of_an_evaluation_run_as_told(tiny_network: HMR2) -> None:
    batch = different(tiny.CONFIG, 3)
    wanted = stages_of(tiny_network, None).outputs(batch)
    found = stages_of(tiny_network, None, dtype=torch.bfloat16, path=RunPath(fast=True)).outputs(batch)
    bounds = [network_bound(tiny_network, wanted, dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert bounds[0] < largest(found, wanted) < bounds[1] and {each.dtype for each in numbers(found)} == {torch.float32}


def test_adaptive_tokens_are_timed_on_the_fast_path(tiny_network: HMR2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the two that merge tokens go through the fast path's layers."""
    ran: list[int] = []
    forward = PlainLinear.forward

    def counted(self: PlainLinear, x: torch.Tensor, **more: object) -> torch.Tensor:
        ran.append(1)
        return forward(self, x, **more)

    monkeypatch.setattr(PlainLinear, "forward", counted)
    for path, used in ((None, False), (RunPath(fast=True), True)):
        ran.clear()
        found = time_adaptive(tiny_network, TokenSettings(), batch_sizes=(8,), rounds=1, path=path).to_json()
        assert bool(ran) == used and set(found["batch_sizes"]["8"]["fps"]) == {"plain", "fixed", "adaptive"}


def test_bench_says_how_it_ran(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    options = "--layers 3 --keep-tokens 90 --batch-sizes 1 --rounds 1 --no-memory --device cpu --fast --json".split()
    done = CliRunner().invoke(app, ["bench", str(tiny_model), *options, str(out)])
    assert done.exit_code == 0 and "fast path" in done.output and "CUDA graphs" not in done.output, done.output
    measured = json.loads(out.read_text())["bench"]
    assert (measured["fast"], measured["compiled"], measured["cuda_graphs"]) == (True, False, False)


class Broken(torch.nn.Module):
    """What no compiler takes whole: Python reads a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 0 else -x


def test_what_cannot_be_compiled_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^compile: torch.compile failed \(.+\)\. It needs a C\+\+ compiler"):
        Compiled(Broken())(torch.ones(3))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_a_compiled_network_gives_the_same(fast: bool) -> None:
    """One layer, in a batch that is padded; wrong inputs are still told by the network."""
    config = tiny.NetworkConfig(**{**vars(tiny.CONFIG), "depth": 1, "head_depth": 1})
    network = build(config, seed=4).eval().requires_grad_(False)
    batch = different(config, 3)
    compiled = StaticBatches(RunPath(fast=fast).prepare(network, torch.float32), (4,), compiled=True)
    for count in (3, 2):
        inputs = batch.images[:count], batch.person_mask[:count]
        wanted = network(*inputs)
        assert largest(compiled(*inputs), wanted) < network_bound(network, wanted)
    with pytest.raises(UserError, match="3 images"):
        compiled(batch.images, batch.person_mask[:2])
