"""The speed table of a full-size network: every variant by turns with the original, in one dtype and at one batch size.

A run is one dtype and batch size. In each of its rounds every candidate runs once on the same crops: the original as
its authors run it, then what this package makes of it, plain and on the fast path; in another dtype than float32 the
original in float32 too, so that the gain of dtype and compression together is a ratio within rounds. The compressed
network may take part as other runtimes run it, and so may its matrix products alone (`timing.bare`). The temporal
decoder and the conversion of its poses take part, so that clips at strides are sums of times of one round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from hmrcompress.merging.apply import token_counts, with_token_merging
from hmrcompress.models.fast.running import RunPath, unwrapped
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.plan import TokenSettings
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, dtype_name, no_progress
from hmrcompress.timing.bare import bare_products
from hmrcompress.timing.bench import bench_threads
from hmrcompress.timing.contenders import NETWORK, Contender, Rival, cut
from hmrcompress.timing.made_up import PERSON_TOKENS, made_up_batch
from hmrcompress.timing.memory import peak_memory
from hmrcompress.timing.pipeline_bench import POSE, Pipeline, decoding, posing
from hmrcompress.timing.reference import reference
from hmrcompress.timing.rounds import Predict, time_interleaved

ORIGINAL, ORIGINAL_FLOAT32 = "original", "original float32"


@dataclass(frozen=True)
class Variant:
    """A row of the table: which layers and tokens are merged, and whether on the fast path, which on CUDA means
    graphs too; `original`: as its authors run it."""

    name: str
    layers: bool = False
    tokens: bool = False
    fast: bool = True
    int8: bool = False
    original: bool = False

    def path(self, batch_size: int) -> RunPath:
        """How our network is run in it."""
        return RunPath(fast=self.fast, int8=self.int8, batch_sizes=(batch_size,))


VARIANTS = (
    Variant(ORIGINAL, fast=False, original=True),
    Variant("plain network, fast path"),
    Variant("layers", layers=True, fast=False),
    Variant("layers, fast path", layers=True),
    Variant("layers + tokens", layers=True, tokens=True, fast=False),
    Variant("layers + tokens, fast path", layers=True, tokens=True),
)
INT8 = Variant("layers + tokens, fast path, int8", layers=True, tokens=True, int8=True)
DECODED = (VARIANTS[-1].name, INT8.name)
"""Variants that clips at strides are given for."""
BARE = "its matrix products alone"
Rivals = Callable[[HMR2], AbstractContextManager[Mapping[str, Rival]]]
"""A network with token merging, float32 on the CPU -> what else runs it, by name, open in the block."""


def no_rivals(network: HMR2) -> AbstractContextManager[Mapping[str, Rival]]:
    """Nothing else runs it."""
    return nullcontext({})


@dataclass(frozen=True)
class RunSettings:
    """One run. `memory`: also the peak memory of each variant, in processes of their own; `bare`: also the products of
    each number of layers and tokens by themselves."""

    dtype: torch.dtype
    batch_size: int
    rounds: int
    warmup: int = 1
    threads: int | None = None
    int8: bool = False
    float32: bool = False
    memory: bool = False
    bare: bool = False
    strides: tuple[int, ...] = (1, 2, 4)


@dataclass
class _Made:
    """Networks by candidate, and what each is."""

    networks: dict[str, nn.Module] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)
    contenders: dict[str, Contender] = field(default_factory=dict)
    bases: dict[tuple[bool, bool], nn.Module] = field(default_factory=dict)
    """Networks as torch has them, by whether layers and tokens are merged."""


def run_suite_row(
    network: HMR2,
    settings: RunSettings,
    *,
    layers: int,
    tokens: TokenSettings,
    pipeline: Pipeline | None = None,
    rivals: Rivals = no_rivals,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Measures one run over the weights of `network` (float32, nothing merged), of which `layers` layers stay.

    -> {dtype, batch_size, threads, rounds, person_tokens, cuda_graphs, rows: [{variant, layers, tokens, fps,
    fps_quartiles, speedup, speedup_quartiles, spread, over_float32, macs_with_attention, macs_ratio,
    share_of_macs_ratio[, share_of_bare][, peak_memory_bytes, program_bytes][, strides: {k: {fps, speedup,
    over_float32}}][, run: what a rival says of itself]}]}. Ratios are medians of those within each round, over the
    original in the same dtype and (over_float32) in float32; share_of_bare: the time of the bare products over the
    row's; spread: of the middle half of its times over their median. Raises UserError.
    """
    device = torch.device(device)
    made = _candidates(network, settings, layers, tokens, device)
    batch = made_up_batch(network.config, settings.batch_size).to(device)
    runs: dict[str, Predict] = {name: _runner(each, batch) for name, each in made.networks.items()}
    if pipeline is not None:
        runs |= {f"decoder {stride}": decoding(pipeline, stride, device) for stride in settings.strides}
        runs[POSE] = posing(pipeline, device)
    if settings.bare:
        for (fewer, merged), base in made.bases.items():
            runs[_bare(fewer, merged)] = bare_products(base, batch)
    whole = VARIANTS[-1]
    compressed = with_token_merging(cut(network, layers), tokens).eval()
    with bench_threads(settings.threads) as threads, rivals(compressed) as opened:
        for called, rival in opened.items():
            name = f"layers + tokens, {called}"
            made.variants[name] = replace(whole, name=name)
            made.contenders[name] = made.contenders[whole.name]
            runs[name] = rival.runner(batch)
        timing = time_interleaved(
            runs, batch, rounds=settings.rounds, warmup=settings.warmup, clock=clock, progress=progress,
            what=f"{dtype_name(settings.dtype)}, batch {settings.batch_size}",
        )  # fmt: skip
        about = {f"layers + tokens, {called}": rival.to_json() for called, rival in opened.items()}
    # What was timed takes several times a network's size, and memory is measured in processes beside this one.
    del compressed
    runs.clear()
    made.networks.clear()
    made.bases.clear()
    taken = {name: np.array(seconds) for name, seconds in timing.seconds.items()}
    rows: list[dict[str, Any]] = []
    for name, variant in made.variants.items():
        row = _row(name, variant, made, taken, settings)
        if name in about:
            row["run"] = about[name]
        if pipeline is not None and name in DECODED:
            row["strides"] = _strides(name, taken, settings, pipeline.settings.clip_frames)
        if settings.memory and name not in about:
            progress(f"memory of {name}", len(rows), len(made.variants))
            row |= _memory(name, variant, made, settings, device, threads)
        rows.append(row)
    if settings.bare:
        alone = taken | {whole.name: taken[_bare(whole.layers, whole.tokens)]}
        rows.append(_row(whole.name, whole, made, alone, settings) | {"variant": f"layers + tokens, {BARE}"})
    return {
        "dtype": dtype_name(settings.dtype),
        "batch_size": settings.batch_size,
        "threads": threads,
        "rounds": len(next(iter(taken.values()))),
        "warmup": settings.warmup,
        "person_tokens": PERSON_TOKENS,
        "cuda_graphs": RunPath(fast=True).graphed(device),
        **({"decoder": pipeline.sizes()} if pipeline else {}),
        "rows": rows,
    }


def _candidates(
    network: HMR2, settings: RunSettings, layers: int, tokens: TokenSettings, device: torch.device
) -> _Made:
    """All of them over as few copies of the weights as their layouts allow."""
    state = {name: tensor.to(device, settings.dtype) for name, tensor in network.state_dict().items()}
    whole = from_state(network.config, state)
    fewer = cut(whole, layers)
    made = _Made()
    for variant in (*VARIANTS, *((INT8,) if settings.int8 else ())):
        base = with_token_merging(fewer if variant.layers else whole, tokens if variant.tokens else None)
        made.variants[variant.name] = variant
        made.bases.setdefault((variant.layers, variant.tokens), base)
        made.contenders[variant.name] = Contender(base, tokens if variant.tokens else None)
        path = variant.path(settings.batch_size)
        made.networks[variant.name] = reference(base) if variant.original else path.prepare(base, settings.dtype)
    if settings.float32 and settings.dtype != torch.float32:
        full = {name: tensor.to(device) for name, tensor in network.state_dict().items()}
        made.networks[ORIGINAL_FLOAT32] = reference(from_state(network.config, full))
    return made


def _runner(network: nn.Module, batch: FrameBatch) -> Predict:
    """Runs a network on the crops in the dtype that its patch embedding computes in; converting them is not timed."""
    images = batch.images.to(cast(Any, unwrapped(network)).backbone.pos_embed.dtype)
    return lambda _: network(images, batch.person_mask)


def _row(
    name: str, variant: Variant, made: _Made, taken: dict[str, np.ndarray], settings: RunSettings
) -> dict[str, Any]:
    contender, before = made.contenders[name], made.contenders[ORIGINAL]
    rows, columns = contender.config.grid
    macs = contender.costs()[NETWORK].macs_with_attention
    ratio = before.costs()[NETWORK].macs_with_attention / macs
    found = {
        "variant": name,
        "layers": contender.config.depth,
        "tokens": token_counts(contender.tokens, rows * columns)[-1],
        **_speed(taken[name], settings.batch_size, taken),
        "macs_with_attention": macs,
        "macs_ratio": ratio,
    }
    found["share_of_macs_ratio"] = found["speedup"] / ratio
    if (bare := taken.get(_bare(variant.layers, variant.tokens))) is not None:
        found["share_of_bare"] = float(np.median(bare / taken[name]))
    return found


def _bare(layers: bool, tokens: bool) -> str:
    return f"{BARE}, {layers}, {tokens}"


def _speed(seconds: np.ndarray, frames: int, taken: dict[str, np.ndarray], scale: float = 1.0) -> dict[str, Any]:
    """Frames/s and the ratios to the originals, whose times count `scale` times."""
    ratios = taken[ORIGINAL] * scale / seconds
    found: dict[str, Any] = {
        "fps": float(frames / np.median(seconds)),
        "fps_quartiles": [float(value) for value in np.percentile(frames / seconds, (25, 75))],
        "speedup": float(np.median(ratios)),
        "speedup_quartiles": [float(value) for value in np.percentile(ratios, (25, 75))],
        "spread": float(np.subtract(*np.percentile(seconds, (75, 25))) / np.median(seconds)),
    }
    if ORIGINAL_FLOAT32 in taken:
        found["over_float32"] = float(np.median(taken[ORIGINAL_FLOAT32] * scale / seconds))
    return found


def _strides(name: str, taken: dict[str, np.ndarray], settings: RunSettings, frames: int) -> dict[str, Any]:
    """Whole clips: the network on every k-th frame, the decoder and the poses on all of them."""
    return {
        str(stride): _speed(
            taken[name] * (-(-frames // stride) / settings.batch_size) + taken[f"decoder {stride}"] + taken[POSE],
            frames,
            taken,
            frames / settings.batch_size,
        )
        for stride in settings.strides
    }


def _memory(
    name: str, variant: Variant, made: _Made, settings: RunSettings, device: torch.device, threads: int
) -> dict[str, int]:
    contender = made.contenders[name]
    found = asdict(
        peak_memory(
            contender.config, contender.tokens, batch_size=settings.batch_size, dtype=settings.dtype, device=device,
            threads=threads, path=variant.path(settings.batch_size), original=variant.original,
        )
    )  # fmt: skip
    return {"peak_memory_bytes": found["peak"], "program_bytes": found["program"]}
