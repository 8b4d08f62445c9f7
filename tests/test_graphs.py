"""Networks on static shapes: what the network itself gives at every batch size, and what a capture may not hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from bounds import network_bound
from test_families import CAMERA, HAND
from test_families import TOKENS as FAMILY_TOKENS
from test_fast import CONFIG, WEIGHTED, largest, single
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.merging.adaptive import AdaptiveTokens
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.fast import graphs
from hmrcompress.models.fast.graphs import StaticBatches, batch_buckets
from hmrcompress.models.fast.linear import Int8Linear
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.network import HMR2, NetworkConfig, build
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import DropBackground, TokenSettings
from hmrcompress.records import FrameBatch, HMROutput
from hmrcompress.timing.made_up import made_up_batch

CPU = torch.device("cpu")


def different(config: NetworkConfig, size: int) -> FrameBatch:
    """Crops whose people differ too."""
    batch = made_up_batch(config, size)
    assert batch.person_mask is not None
    masks = torch.stack([mask.roll(row, 0) for row, mask in enumerate(batch.person_mask)])
    return replace(batch, person_mask=masks)


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("tokens", [None, WEIGHTED], ids=["all tokens", "merged"])
def test_every_batch_size_gives_what_the_network_gives(fast: bool, tokens: TokenSettings | None) -> None:
    """Below, at and above the largest size, growing and shrinking, so that buffers hold older crops."""
    network, _ = single(CONFIG, tokens)
    batch = different(CONFIG, 11)
    ready = make_fast(network) if fast else network
    static = StaticBatches(ready, (1, 2, 4))
    for size in (3, 1, 11, 2, 5, 4, 8, 3):
        inputs = batch.images[-size:], batch.person_mask[-size:]
        found, wanted = static(*inputs), network(*inputs)
        assert largest(found, wanted) < network_bound(network, wanted) and len(found.betas) == size
    assert sorted(key[0] for key in static._made) == [1, 2, 4]


def test_int8_reads_no_padding() -> None:
    """Its scales are found in the whole call, so padding must not be larger than what is there. Whole numbers of which
    the largest is 127 are their own 8-bit values: their products are exact, unless something larger is beside them."""
    whole = torch.randint(-126, 127, (3, 40), generator=torch.Generator().manual_seed(0)).float()
    whole[:, 7] = 127.0
    weight = whole.roll(1, 0)
    static = StaticBatches(Int8Linear(weight, None), (8,))
    assert not torch.equal(Int8Linear(weight, None)(torch.cat([whole, 100 * whole]))[:3], whole @ weight.T)
    static(100 * whole)
    assert torch.equal(static(whole), whole @ weight.T)


def test_int8_at_another_batch_size() -> None:
    """Roundings of float32 may take a number to the next step of 8 bits, which costs far less than 8 bits do."""
    network, batch = single()
    fast = make_fast(network, int8=True)
    wanted = fast(batch.images)
    off = largest(wanted, network(batch.images))
    assert largest(StaticBatches(fast, (8,))(batch.images), wanted) < off / 2


def test_outputs_are_copies() -> None:
    network, batch = single()
    static = StaticBatches(network, (4,))
    first = static(batch.images)
    kept = first.mapped(torch.clone)
    static(batch.images.flip(0))
    assert largest(first, kept) == 0
    with torch.inference_mode():
        static(batch.images)
    assert largest(static(batch.images), kept) == 0


def test_other_inputs() -> None:
    """With and without masks, conditions, other dtypes, autocast; what is wrong is told by the network."""
    network, batch = single(CONFIG, WEIGHTED)
    static = StaticBatches(network, (4,))
    for inputs in ((batch.images,), (batch.images, batch.person_mask)):
        exact = network(*inputs)
        assert largest(static(*inputs), exact) < network_bound(network, exact)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half, wanted = static(batch.images, batch.person_mask), network(batch.images, batch.person_mask)
    assert largest(half, wanted) < largest(wanted, exact), "no further than bfloat16 is from float32"
    assert largest(half, exact) > network_bound(network, exact)
    with pytest.raises(ShapeError, match="2 masks for 3 images"):
        static(batch.images, batch.person_mask[:2])
    with pytest.raises(ShapeError, match="images"):
        static(batch.images[:, :, :100])
    told = made_up_batch(CAMERA, 3)
    camera = build(CAMERA, seed=3).eval().requires_grad_(False)
    found, wanted = StaticBatches(camera, (4,))(*told.inputs()), camera(*told.inputs())
    assert wanted.keypoints is not None and largest(found, wanted) < network_bound(camera, wanted)
    with pytest.raises(UserError, match="box and the focal length"):
        StaticBatches(camera, (4,))(told.images)


def test_a_part_runs_in_the_same_way() -> None:
    network, batch = single(CONFIG, WEIGHTED)
    found = StaticBatches(network, (1, 4)).part("backbone")(batch.images, batch.person_mask)
    wanted = network.backbone(batch.images, batch.person_mask)
    assert float((found - wanted).abs().max()) < network_bound(network, wanted) and len(found) == 3


def test_buckets() -> None:
    assert batch_buckets() == (1, 2, 4, 8, 16, 32) and batch_buckets((1,)) == (1,)
    assert batch_buckets((12, 3)) == (1, 2, 3, 4, 8, 12) and batch_buckets((33,)) == (1, 2, 4, 8, 16, 32, 33)
    for wrong in ((), (0,)):
        with pytest.raises(UserError, match="numbers from 1"):
            batch_buckets(wrong)
    with pytest.raises(UserError, match="rising"):
        StaticBatches(tiny.network(), (4, 2))


class Recording:
    """Stands for a CUDA graph: reads the static inputs and writes the static outputs in place, and nothing else."""

    def __init__(self, run: Any, inputs: tuple[Tensor | None, ...]) -> None:
        self.run, self.inputs, self.replays = run, inputs, 0
        self.outputs: HMROutput = run(*inputs)

    def replay(self) -> None:
        self.replays += 1
        for name, part in vars(self.run(*self.inputs)).items():
            if part is not None:
                getattr(self.outputs, name).copy_(part)


def test_a_capture_is_made_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the graph: one a size, one pool, inputs and outputs at the same addresses throughout."""
    made, pools = [], []

    def captured(run: Any, inputs: Any, device: torch.device, pool: object) -> tuple[Recording, HMROutput]:
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        made.append(Recording(run, inputs))
        pools.append(pool)
        return made[-1], made[-1].outputs

    monkeypatch.setattr(graphs, "_captured", captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    network, _ = single(CONFIG, WEIGHTED)
    batch = different(CONFIG, 6)
    static = StaticBatches(network, (1, 2, 4), capture=True)
    assert batch.person_mask is not None
    for size in (4, 3, 1, 6):
        wanted = network(batch.images[:size], batch.person_mask[:size])
        with torch.inference_mode():
            found = static(batch.images[:size], batch.person_mask[:size])
        assert largest(found, wanted) < network_bound(network, wanted)
    assert [each.replays for each in made] == [3, 1, 1] and len(set(map(id, pools))) == 1

    def full(*arguments: object) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(graphs, "_captured", full)
    with pytest.raises(UserError, match=r"graphs: no CUDA graph \(CUDA out of memory\)\. Try to set graphs to false"):
        static(batch.images[:2])
    assert len(static._made) == 3


def test_adaptive_tokens_on_static_batches(tiny_network: HMR2) -> None:
    plain = AdaptiveTokens(tiny_network, TokenSettings(size_weighted=True))
    static = AdaptiveTokens(tiny_network, TokenSettings(size_weighted=True), prepare=lambda n: StaticBatches(n, (2,)))
    batch = made_up_batch(tiny.CONFIG, 7)
    person = torch.arange(192) < torch.tensor([100, 3, 190, 80, 10, 5, 7])[:, None]
    masks = person.view(7, 16, 12)
    wanted = plain(batch.images, masks)
    assert largest(static(batch.images, masks), wanted) < network_bound(tiny_network, wanted)


class Uncapturable(TorchDispatchMode):
    """Notes operators whose shapes depend on data, that hand numbers to the host or that bring some from it."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        index = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index)
        if by_mask or any(name.startswith(each) for each in self.NAMES):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


TOKENS = {
    "none": None,
    "paper": TokenSettings.paper(),
    "weighted": WEIGHTED,
    "protected": TokenSettings(keep=90, protect=4, metric="features"),
    "scheduled": TokenSettings(keep=90, schedule=(34, 34, 34)),
    "dropped": TokenSettings(keep=90, drop_background=DropBackground(), attention_bias=True),
}


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_nothing_depends_on_data(tokens: TokenSettings | None) -> None:
    batch = made_up_batch(CONFIG, 2)
    network = with_token_merging(build(CONFIG).eval(), tokens)
    for ready in (network, make_fast(network)):
        with torch.no_grad(), Uncapturable() as watch:
            ready(batch.images, batch.person_mask)
        assert watch.found == []


def test_nothing_depends_on_data_elsewhere() -> None:
    """With a saliency probe, in adaptive buckets, in the other families; and the watch sees what it looks for."""
    batch = made_up_batch(CONFIG, 2)
    network = build(CONFIG).eval()
    probe = SaliencyProbe(torch.randn(2, CONFIG.dim), 0.0, layer=1)
    runs = [with_token_merging(network, TokenSettings(keep=112), probe)]
    runs += [each for keep, each in AdaptiveTokens(network, TokenSettings()).plain.items() if keep >= 90]
    others = [(build(config).eval(), made_up_batch(config, 2)) for config in (CAMERA, HAND, FAMILY_TOKENS)]
    with torch.no_grad(), Uncapturable() as watch:
        for each in runs:
            each(batch.images, None if each is runs[0] else batch.person_mask)
        for other, crops in others:
            other(*crops.inputs())
    assert watch.found == []
    with Uncapturable() as watch:
        torch.tensor([1, 0])[torch.tensor([True, False])].item()
    assert {"lift_fresh", "index", "_local_scalar_dense"} <= set(watch.found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_graphs_on_cuda(tokens: TokenSettings | None, dtype: torch.dtype) -> None:
    """What the same network gives without them, at every batch size."""
    network, _ = single(CONFIG, tokens)
    ready = make_fast(network.to("cuda"), dtype)
    batch = different(CONFIG, 11).to("cuda")
    static = StaticBatches(ready, (1, 2, 4))
    assert batch.person_mask is not None
    for size in (3, 1, 11, 2, 5, 4, 3):
        inputs = batch.images[-size:], batch.person_mask[-size:]
        assert largest(static(*inputs), ready(*inputs)) < (1e-4 if dtype == torch.float32 else 0.05)
    assert all(bucket.graph is not None for bucket in static._made.values())
