"""What a forward pass costs on one device: times of the patch embedding, half a block, the head and the merging of
tokens, at each number of tokens, from which the time of any candidate follows.

Parts are timed as they run: all blocks of the network one after the other, so that weights come from where they come
from in a forward pass, and by turns with some blocks on the whole grid. These tie runs at different numbers of tokens
together however the machine drifts meanwhile (`timing.rounds`): they are of the parts' own kind, and take long enough
that no neighbour's burst falls on them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from hmrcompress.data.conditions import CONDITION
from hmrcompress.errors import UserError
from hmrcompress.frontier.candidates import Candidate, Dtype
from hmrcompress.io.jsons import read_json
from hmrcompress.io.keys import Key
from hmrcompress.merging.apply import token_counts, with_token_merging
from hmrcompress.merging.merge import merge_network
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.network import HMR2, share
from hmrcompress.plan import ALL, ATTENTION, MLP
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import Progress, dtype_name, environment, no_progress
from hmrcompress.timing.rounds import time_interleaved

ROUNDS, WARMUP = 9, 2
EMBED, HEAD, TIE = "embed", "head", "tie"
TIED = 4
"""The blocks that tie runs together are a network's first fourth, two at least."""


@dataclass(frozen=True)
class CostTable:
    """Seconds of a batch. `attention`, `mlp` (of one layer) and `head` by number of tokens, `reducing` by way and
    tokens kept: what dropping or merging adds itself."""

    device: str
    dtype: str
    batch: int
    grid: int
    embed: float
    attention: dict[int, float]
    mlp: dict[int, float]
    head: dict[int, float]
    reducing: dict[str, float]
    key: str
    also: tuple[CostTable, ...] = ()
    """The same in other dtypes that the device computes in faster."""

    def seconds(self, candidate: Candidate, depth: int) -> float:
        """Of a forward pass of a batch with the candidate's network, by every frame that it stands for."""
        if candidate.dtype != self.dtype:
            return self.of(candidate.dtype).seconds(candidate, depth)
        counts = list(token_counts(candidate.tokens, self.grid))
        if candidate.way == "drop" and len(counts) > 1:
            counts = counts[1:]
        gone = dict(candidate.removed)
        total, layer = self.embed + self.reducing.get(way_of(candidate), 0.0), 0
        for number in range(depth):
            part = gone.get(number)
            if part == ALL:
                continue
            entering, leaving = (counts[min(each, len(counts) - 1)] for each in (layer, layer + 1))
            total += 0.0 if part == ATTENTION else _at(self.attention, entering)
            total += 0.0 if part == MLP else _at(self.mlp, leaving)
            layer += 1
        return (total + _at(self.head, counts[min(layer, len(counts) - 1)])) / candidate.stride

    def of(self, dtype: str) -> CostTable:
        """The table of another dtype. UserError where there is none."""
        found = next((each for each in (self, *self.also) if each.dtype == dtype), None)
        if found is None:
            raise UserError(f"has no times in {dtype}", self.device, "Measure the device again")
        return found

    @property
    def dtypes(self) -> list[Dtype]:
        """What there are times in, its own first."""
        return cast(list[Dtype], [each.dtype for each in (self, *self.also)])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: value for name, value in asdict(self).items() if name != "also"}
        plain |= {name: _named(getattr(self, name)) for name in ("attention", "mlp", "head")}
        return plain | ({"also": [each.to_json() for each in self.also]} if self.also else {})

    @classmethod
    def from_json(cls, values: Any, where: object) -> CostTable:
        """The inverse of `to_json`. UserError where it is something else."""
        try:
            numbers: dict[str, Any] = {
                name: {int(count): float(value) for count, value in values[name].items()}
                for name in ("attention", "mlp", "head")
            }
            plain = {name: values[name] for name in ("device", "dtype", "batch", "grid", "embed", "reducing", "key")}
            also = tuple(cls.from_json(each, where) for each in values.get("also", []))
            return cls(**plain, **numbers, also=also)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"holds no cost table ({error})", where, "Leave --costs out to measure the device"
            ) from error


def _named(values: dict[int, float]) -> dict[str, float]:
    return {str(count): value for count, value in values.items()}


def way_of(candidate: Candidate) -> str:
    """The name of a candidate's way of having fewer tokens, as `CostTable.reducing` has it."""
    return f"{candidate.way} {candidate.keep}{'' if candidate.weighted else ' unweighted'}"


def _at(seconds: dict[int, float], tokens: int) -> float:
    """Between numbers of tokens that were timed, on a straight line."""
    counts = sorted(seconds)
    return float(np.interp(tokens, counts, [seconds[count] for count in counts]))


def cost_key(network: HMR2, batch: int, dtype: torch.dtype, candidates: Sequence[Candidate]) -> Key:
    """What a cost table depends on: sizes, device, versions, threads; not the weights."""
    device = next(network.parameters()).device
    return Key.of(
        "costs",
        ("frontier.costs",),
        network=network.config.whole(network.config.depth).to_dict(),
        device_name=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        batch=batch,
        dtype=dtype,
        ways=sorted({way_of(each) for each in candidates if each.keep is not None}),
    )


def read_costs(path: Path, keys: Sequence[Key]) -> CostTable:
    """A table that was written before, and those beside it. keys: of those that may be in it, its own first. UserError
    where it is another device's, or of another network's sizes."""
    table = CostTable.from_json(read_json(path), path)
    if table.key != keys[0].sha256 or {each.key for each in table.also} - {key.sha256 for key in keys}:
        raise UserError(
            "was measured for another device, network, version or number of threads", path, "Leave --costs out"
        )
    return table


def measure_costs(
    network: HMR2,
    candidates: Sequence[Candidate],
    *,
    batch: int,
    dtype: torch.dtype = torch.float32,
    rounds: int = ROUNDS,
    progress: Progress = no_progress,
) -> CostTable:
    """Times what these candidates are made of. network: in evaluation mode, on its device, without token merging."""
    device, config = next(network.parameters()).device, network.config
    rows, columns = config.grid
    everything = rows * columns
    kept = sorted({each.keep for each in candidates if each.keep is not None and each.keep < everything})
    counts = [everything, *reversed(kept)]
    crops = _crops(network, batch, device)
    blank = torch.zeros(batch, rows, columns, dtype=torch.bool, device=device)
    parts: dict[str, dict[int, float]] = {name: {} for name in (ATTENTION, MLP, HEAD)}
    ties: list[float] = []
    embeds: list[float] = []
    reducing: dict[str, float] = {}
    tie = _tie(network, everything, batch, dtype, device)
    for number, count in enumerate(counts):
        fast = make_fast(share(network), dtype)  # anew: weights are laid out for the number of rows that comes first
        runs = {TIE: tie} | _runs(fast, count, batch, dtype, device)
        ways = [each for each in _distinct(candidates) if each.keep == count]
        for each in ways:
            runs[way_of(each)] = _reducing(network, each, dtype, crops, blank)
        timing = time_interleaved(runs, crops, rounds=rounds, warmup=WARMUP)
        ties += timing.seconds[TIE]
        # Round by round against the blocks of the same round, which saw the same machine.
        relative = {
            name: median(a / b for a, b in zip(taken, timing.seconds[TIE], strict=True))
            for name, taken in timing.seconds.items()
        }
        embeds.append(relative[EMBED])
        for name in parts:
            parts[name][count] = relative[name] / (1 if name == HEAD else config.depth)
        for each in ways:
            reducing[way_of(each)] = max(relative[way_of(each)] - relative[EMBED], 0.0)
        progress("timing the device", number + 1, len(counts))
    unit = median(ties)
    return CostTable(
        device=device_name(device),
        dtype=dtype_name(dtype),
        batch=batch,
        grid=everything,
        embed=unit * median(embeds),
        attention={count: unit * found for count, found in parts[ATTENTION].items()},
        mlp={count: unit * found for count, found in parts[MLP].items()},
        head={count: unit * found for count, found in parts[HEAD].items()},
        reducing={name: unit * found for name, found in reducing.items()},
        key=cost_key(network, batch, dtype, candidates).sha256,
    )


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    found = {way_of(each): replace(each, removed=(), strength=0.0) for each in candidates if each.keep is not None}
    return [found[name] for name in sorted(found)]


def _crops(network: HMR2, batch: int, device: torch.device) -> FrameBatch:
    rows, columns = network.config.grid
    patch = network.config.patch
    images = torch.randn(batch, 3, rows * patch, columns * patch, generator=torch.Generator().manual_seed(0))
    nobody = BodyParams(*(torch.zeros(batch, 1) for _ in range(3)))
    numbers = torch.zeros(batch, dtype=torch.int64)
    return FrameBatch(images=images.to(device), person_mask=None, params=nobody, clip=numbers, frame=numbers)


def _tie(
    network: HMR2, count: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Callable[[FrameBatch], object]:
    """Some blocks on the whole grid."""
    depth = network.config.depth
    rest = tuple((layer, ALL) for layer in range(min(max(2, depth // TIED), depth), depth))
    fast = make_fast(merge_network(network, Candidate(rest).plan(None, depth)), dtype)
    drawn = torch.randn(batch, count, network.config.dim, generator=torch.Generator().manual_seed(count))
    drawn = drawn.to(device, dtype)
    blocks: list[Any] = list(fast.backbone.blocks)

    def run(_: FrameBatch) -> None:
        tokens = drawn
        for block in blocks:
            tokens = block.feed(block.attend(tokens)[0])

    return run


def _runs(
    fast: HMR2, count: int, batch: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[FrameBatch], object]]:
    """The parts of a network that was made fast, on so many tokens."""
    blocks: list[Any] = list(fast.backbone.blocks)
    width = fast.config.dim
    drawn = torch.randn(batch, count, width, generator=torch.Generator().manual_seed(count)).to(device, dtype)
    condition = torch.zeros(batch, CONDITION, device=device) if fast.conditioned else None

    def attention(_: FrameBatch) -> None:
        tokens = drawn
        for block in blocks:
            tokens = block.attend(tokens)[0]

    def mlp(_: FrameBatch) -> None:
        tokens = drawn
        for block in blocks:
            tokens = block.feed(tokens)

    def head(_: FrameBatch) -> None:
        fast.read(*fast.backbone.finish(drawn), condition)

    def embed(crops: FrameBatch) -> None:
        fast.backbone.embed(crops.images)

    return {EMBED: embed, ATTENTION: attention, MLP: mlp, HEAD: head}


def _reducing(
    network: HMR2, candidate: Candidate, dtype: torch.dtype, crops: FrameBatch, blank: torch.Tensor
) -> Callable[[FrameBatch], object]:
    """Patch embedding, and the dropping or merging of tokens without any block."""
    reduced = make_fast(with_token_merging(share(network), candidate.tokens), dtype)
    backbone, depth = reduced.backbone, network.config.depth
    heads = network.config.num_heads

    def run(batch: FrameBatch) -> None:
        tokens, state = backbone.begin(batch.images, blank)
        merging = len(token_counts(candidate.tokens, tokens.shape[1])) - 1 if candidate.way == "merge" else 0
        for layer in range(min(merging, depth)):
            assert backbone.reducer is not None and state is not None
            backbone.reducer.attention_bias(state)
            keys = tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
            tokens, state = backbone.reducer.reduce(layer, tokens, keys, state)

    return run


def device_name(device: torch.device) -> str:
    """Of the processor or the accelerator that computes."""
    found = environment(device)
    return str(found["cpu"] if device.type == "cpu" else found["device"])
