"""Original against compressed: frames per second, memory, parameters and multiply-accumulates, in one table.

The original is this package's network with nothing merged, run eagerly (`baseline` ours: the arithmetic of the
published code, with fused attention where that code multiplies its attention matrices out, so the original is not the
slower for being measured here), or that code's way of running it (`baseline` original: `timing.reference`). Both
networks take turns (A B A B …) on the same made-up crops, the backbones by themselves as well; so does a rival, where
there is one: the compressed network run by something else than torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from hmrcompress.errors import UserError
from hmrcompress.merging.apply import token_counts, with_token_merging
from hmrcompress.metrics.cost import Cost
from hmrcompress.models.fast.running import RunPath, backbone_of
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, dtype_name, no_progress
from hmrcompress.timing.contenders import AFTER, BACKBONE, BEFORE, NETWORK, Contender, Rival
from hmrcompress.timing.made_up import PERSON_TOKENS, made_up_batch
from hmrcompress.timing.memory import Memory, peak_memory
from hmrcompress.timing.pipeline_bench import Pipeline, PipelineTiming, time_pipeline
from hmrcompress.timing.reference import reference
from hmrcompress.timing.rounds import Timing, time_interleaved

Baseline = Literal["ours", "original"]
BASELINES: tuple[Baseline, ...] = ("ours", "original")


@dataclass(frozen=True)
class BenchSettings:
    """`rounds` are run at every batch size after `warmup` uncounted ones, fewer where `max_seconds` are over (three at
    least). `threads`: of the CPU, None for torch's own choice. `baseline`: what the original is run by. `path`: how the
    compressed network is run; its batch sizes give way to those timed. Where `dtype` or `path` are not given, whoever
    opens the model says what its plan says, else float32 and plain."""

    batch_sizes: tuple[int, ...] = (1, 8)
    rounds: int = 9
    warmup: int = 2
    max_seconds: float = 300.0
    threads: int | None = None
    dtype: torch.dtype | None = None
    memory: bool = True
    baseline: Baseline = "ours"
    path: RunPath | None = None

    @property
    def computed_in(self) -> torch.dtype:
        """`dtype`, or float32."""
        return self.dtype or torch.float32

    @property
    def way(self) -> RunPath:
        """`path`, or the plain one."""
        return self.path or RunPath()


@dataclass(frozen=True)
class BenchResult:
    """Of two networks, `before` and `after`. `timings` by batch size, of the candidates `network before`, `network
    after`, `backbone before`, …, empty where both are the same network; `costs` by part and network; `memory` is empty
    where it was not measured."""

    timings: dict[int, Timing]
    costs: dict[str, dict[str, Cost]]
    memory: dict[str, Memory]
    layers: dict[str, int]
    tokens: dict[str, list[int]]
    settings: BenchSettings
    threads: int
    device: torch.device
    names: dict[str, str]
    pipeline: PipelineTiming | None = None
    rival: Rival | None = None

    def macs_ratio(self, part: str = NETWORK) -> float:
        """MACs before over after, products of attention included."""
        costs = self.costs[part]
        return costs[BEFORE].macs_with_attention / costs[AFTER].macs_with_attention

    def speedup(self, batch_size: int, part: str = NETWORK) -> float:
        """Measured frames per second after over before: the median of the ratios within each round."""
        return self.timings[batch_size].speedup(f"{part} {AFTER}", over=f"{part} {BEFORE}")

    def part(self, batch_size: int, part: str) -> dict[str, Any]:
        """{fps, fps_quartiles: {before, after}, speedup, speedup_quartiles, macs_ratio, share_of_macs_ratio}."""
        timing = self.timings[batch_size]
        names = {when: f"{part} {when}" for when in (BEFORE, AFTER)}
        speedup, ratio = self.speedup(batch_size, part), self.macs_ratio(part)
        return {
            "fps": {when: timing.fps(name) for when, name in names.items()},
            "fps_quartiles": {when: list(timing.fps_quartiles(name)) for when, name in names.items()},
            "speedup": speedup,
            "speedup_quartiles": list(timing.speedup_quartiles(names[AFTER], over=names[BEFORE])),
            "macs_ratio": ratio,
            "share_of_macs_ratio": speedup / ratio,
        }

    def rivals(self, batch_size: int) -> dict[str, Any]:
        """By the rival's name, if there is one: {fps, fps_quartiles, speedup, speedup_quartiles (over the original),
        over_torch, over_torch_quartiles (over the compressed network)}, whole networks."""
        if self.rival is None:
            return {}
        timing, name, torch_name = self.timings[batch_size], f"{NETWORK} {self.rival.name}", f"{NETWORK} {AFTER}"
        over_torch = {
            "over_torch": timing.speedup(name, over=torch_name),
            "over_torch_quartiles": list(timing.speedup_quartiles(name, over=torch_name)),
        }
        return {self.rival.name: timing.figures(name, over=f"{NETWORK} {BEFORE}") | over_torch}

    def to_json(self) -> dict[str, Any]:
        """The record of the command; `fps` and `speedup` are of the whole network at the last batch size."""
        last = self.part(list(self.timings)[-1], NETWORK) if self.timings else None
        whole = self.costs[NETWORK]
        memory = {when: asdict(found) for when, found in self.memory.items()}
        sizes = {
            str(size): {
                "rounds": len(next(iter(timing.seconds.values()))),
                **{part: self.part(size, part) for part in (NETWORK, BACKBONE)},
                **self.rivals(size),
            }
            for size, timing in self.timings.items()
        }
        return {
            "layers": self.layers,
            "tokens": {when: counts[-1] for when, counts in self.tokens.items()} | {"counts": self.tokens[AFTER]},
            "params": {when: found.parameters for when, found in whole.items()},
            "macs": {when: found.macs for when, found in whole.items()},
            "macs_with_attention": {when: found.macs_with_attention for when, found in whole.items()},
            "macs_of_merging": whole[AFTER].other_macs,
            **({"fps": last["fps"], "speedup": last["speedup"]} if last else {}),
            **({"peak_memory_bytes": {when: found["peak"] for when, found in memory.items()}} if memory else {}),
            "bench": {
                "names": self.names,
                "dtype": "int8" if self.settings.way.int8 else dtype_name(self.settings.computed_in),
                "baseline": self.settings.baseline,
                "fast": self.settings.way.lays_out,
                "compiled": self.settings.way.compiled,
                "cuda_graphs": self.settings.way.graphed(self.device),
                "threads": self.threads,
                "warmup": self.settings.warmup,
                "person_tokens": PERSON_TOKENS,
                **({"memory": {"batch_size": max(self.timings), **memory}} if memory else {}),
                **({self.rival.name: self.rival.to_json()} if self.rival else {}),
                "batch_sizes": sizes,
            },
            **({"pipeline": self.pipeline.to_json()} if self.pipeline else {}),
        }


def bench(
    before: Contender,
    after: Contender,
    *,
    settings: BenchSettings | None = None,
    pipeline: Pipeline | None = None,
    rival: Rival | None = None,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
) -> BenchResult:
    """Weighs and times two networks against each other. Weights that both share stay shared.

    Whole networks run in `settings.dtype`, weights included (not under autocast, which would convert the weights anew
    in every pass). Memory is measured at the largest batch size. `pipeline`, on the device already, is timed over both
    networks too; where it is given both may be one and the same, of which nothing else is then timed or weighed. Raises
    UserError for sizes that make no sense.
    """
    settings, device = settings or BenchSettings(), torch.device(device)
    if not settings.batch_sizes:
        raise UserError("got none, expected at least one", "--batch-sizes")
    alone = before is after
    contenders = {BEFORE: before, AFTER: after}
    batches = {
        size: made_up_batch(before.config, size, settings.computed_in).to(device) for size in settings.batch_sizes
    }
    with bench_threads(settings.threads) as threads:
        memory = {}
        if settings.memory and not alone:
            for number, (when, contender) in enumerate(contenders.items()):
                progress(f"memory {when}", number, len(contenders))
                memory[when] = peak_memory(
                    contender.config,
                    contender.tokens,
                    batch_size=max(batches),
                    dtype=settings.computed_in,
                    device=device,
                    threads=threads,
                    path=_path(settings, when),
                    original=when == BEFORE and settings.baseline == "original",
                )
        networks: dict[str, nn.Module] = {
            when: _prepared(with_token_merging(each, contenders[when].tokens), settings, when)
            for when, each in _converted(contenders, device, settings.computed_in).items()
        }
        if alone:
            networks[AFTER] = networks[BEFORE]
        timings = {
            size: time_interleaved(
                _candidates(networks) | ({f"{NETWORK} {rival.name}": rival.runner(batch)} if rival else {}),
                batch,
                rounds=settings.rounds,
                warmup=settings.warmup,
                max_seconds=settings.max_seconds,
                clock=clock,
                progress=progress,
                what=f"batch {size}",
            )
            for size, batch in batches.items()
            if not alone
        }
        clips = None
        if pipeline is not None:
            clips = time_pipeline(
                networks,
                pipeline,
                batch_size=settings.batch_sizes[-1],
                dtype=settings.computed_in,
                device=device,
                rounds=settings.rounds,
                warmup=1,
                max_seconds=settings.max_seconds,
                clock=clock,
                progress=progress,
            )
    counted = {when: contender.costs() for when, contender in contenders.items()}
    grid = before.config.grid[0] * before.config.grid[1]
    return BenchResult(
        timings=timings,
        costs={part: {when: counted[when][part] for when in contenders} for part in (NETWORK, BACKBONE)},
        memory=memory,
        layers={when: contender.config.depth for when, contender in contenders.items()},
        tokens={when: list(token_counts(contender.tokens, grid)) for when, contender in contenders.items()},
        settings=settings,
        threads=threads,
        device=device,
        names={when: contender.name for when, contender in contenders.items()},
        pipeline=clips,
        rival=rival,
    )


def _converted(contenders: dict[str, Contender], device: torch.device, dtype: torch.dtype) -> dict[str, HMR2]:
    """Both networks there and in that dtype; a tensor that both hold is converted once."""
    known: dict[tuple[int, torch.Size], torch.Tensor] = {}
    made = {}
    for when, contender in contenders.items():
        state = {}
        for name, tensor in contender.network.state_dict().items():
            key = (tensor.data_ptr(), tensor.shape)
            if key not in known:
                known[key] = tensor.to(device=device, dtype=dtype)
            state[name] = known[key]
        made[when] = from_state(contender.config, state)
    return made


def _path(settings: BenchSettings, when: str) -> RunPath:
    """How one of our networks is run: the original always plainly."""
    path = settings.way if when == AFTER else RunPath()
    return replace(path, batch_sizes=settings.batch_sizes)


def _prepared(network: HMR2, settings: BenchSettings, when: str) -> nn.Module:
    """The network as it is to be run; its weights are shared where they need not be laid out anew."""
    if when == BEFORE and settings.baseline == "original":
        return reference(network)
    return _path(settings, when).prepare(network, settings.computed_in)


def _candidates(networks: Mapping[str, nn.Module]) -> dict[str, Callable[[FrameBatch], object]]:
    """Whole networks first, then the backbones, before and after by turns."""

    def whole(network: nn.Module) -> Callable[[FrameBatch], object]:
        return lambda batch: network(*batch.inputs())

    def backbone(network: nn.Module) -> Callable[[FrameBatch], object]:
        part = backbone_of(network)
        return lambda batch: part(batch.images, batch.person_mask)

    made = {f"{NETWORK} {when}": whole(network) for when, network in networks.items()}
    return made | {f"{BACKBONE} {when}": backbone(network) for when, network in networks.items()}


@contextmanager
def bench_threads(count: int | None) -> Iterator[int]:
    """Torch on that many threads while the block runs; gives the number."""
    old = torch.get_num_threads()
    if count is not None and count < 1:
        raise UserError(f"got {count}, expected at least 1", "--threads")
    torch.set_num_threads(count or old)
    try:
        yield count or old
    finally:
        torch.set_num_threads(old)


def parse_sizes(text: str, where: str = "--batch-sizes") -> tuple[int, ...]:
    """`1,8` -> (1, 8), in that order, each once. Raises UserError naming the flag `where`."""
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise UserError(f"got {text!r}, expected numbers such as 1,8", where)
    return tuple(dict.fromkeys(map(int, sizes)))
