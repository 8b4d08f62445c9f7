"""Frames per second of adaptive token counts, beside the untouched network and the same number for every crop.

Crops are made up, but their people are as large as in `starter:val`: how fast buckets are depends on that alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hmrcompress.evaluation.forced import places_of
from hmrcompress.evaluation.tally import AdaptiveTally
from hmrcompress.merging.adaptive import AdaptiveTokens
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.buckets import BUCKETS
from hmrcompress.merging.describe import network_cost
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.plan import TokenSettings
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.timing.made_up import ellipse_mask, made_up_batch
from hmrcompress.timing.rounds import Timing, time_interleaved

PERSON_SHARES = tuple(tokens / 192 for tokens in (35, 42, 49, 52, 54, 57, 59, 62, 64, 66, 69, 73, 76, 81, 86, 106))
"""Sixteen equally frequent sizes of people in starter:val, as the share of the crop's tokens."""
PLAIN, FIXED, ADAPTIVE = "plain", "fixed", "adaptive"


@dataclass(frozen=True)
class AdaptiveTiming:
    """Rounds by batch size of the candidates `plain` (nothing merged), `fixed` (`keep` tokens) and `adaptive`; what the
    buckets came to, and the MACs of the other two."""

    timings: dict[int, Timing]
    adaptive: dict[str, Any]
    keep: int
    macs: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """{keep, macs, adaptive, batch_sizes: {n: {fps: {…}, speedup: {fixed, adaptive}, speedup_quartiles, adaptive_
        over_fixed}}}; speed-ups are over `plain`."""
        sizes = {}
        for size, timing in self.timings.items():
            sizes[str(size)] = {
                "fps": {name: timing.fps(name) for name in (PLAIN, FIXED, ADAPTIVE)},
                "speedup": {name: timing.speedup(name, over=PLAIN) for name in (FIXED, ADAPTIVE)},
                "speedup_quartiles": {
                    name: list(timing.speedup_quartiles(name, over=PLAIN)) for name in (FIXED, ADAPTIVE)
                },
                "adaptive_over_fixed": timing.speedup(ADAPTIVE, over=FIXED),
            }
        return {"keep": self.keep, "macs": self.macs, "adaptive": self.adaptive, "batch_sizes": sizes}


def crops_of_all_sizes(network: HMR2, dtype: torch.dtype, seed: int = 0) -> FrameBatch:
    """Sixteen made-up crops, one for each of `PERSON_SHARES`, in a seeded order."""
    config = network.config
    batch = made_up_batch(config, len(PERSON_SHARES), dtype)
    tokens = config.grid[0] * config.grid[1]
    order = torch.randperm(len(PERSON_SHARES), generator=torch.Generator().manual_seed(seed)).tolist()
    masks = torch.stack([ellipse_mask(config.grid, round(PERSON_SHARES[place] * tokens)) for place in order])
    return replace(batch, person_mask=masks)


def time_adaptive(
    network: HMR2,
    settings: TokenSettings | None = None,
    buckets: Sequence[int] = BUCKETS,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rounds: int = 9,
    max_seconds: float | None = None,
    path: RunPath | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
) -> AdaptiveTiming:
    """Times the three by turns on the same sixteen crops, in batches of each size. path: how the two that merge tokens
    are run; its batch sizes give way to those timed. Raises UserError."""
    settings = settings or TokenSettings()
    state = {name: tensor.to(device=device, dtype=dtype) for name, tensor in network.state_dict().items()}
    converted = from_state(network.config, state)
    prepare = replace(path or RunPath(), batch_sizes=tuple(batch_sizes)).prepare_alike(dtype)
    adaptive = AdaptiveTokens(converted, settings, buckets, prepare=prepare).eval()
    candidates: dict[str, nn.Module] = {
        PLAIN: with_token_merging(converted, None).eval(),
        FIXED: prepare(with_token_merging(converted, settings).eval()),
        ADAPTIVE: adaptive,
    }
    batch = crops_of_all_sizes(network, dtype, seed)
    tally = AdaptiveTally(adaptive)
    tally.count(batch)

    def in_batches(run: nn.Module, size: int) -> Callable[[FrameBatch], object]:
        def over(crops: FrameBatch) -> object:
            assert crops.person_mask is not None
            pairs = zip(crops.images.split(size), crops.person_mask.split(size), strict=True)
            return [run(images, masks) for images, masks in pairs]

        return over

    timings = {
        size: time_interleaved(
            {name: in_batches(run, size) for name, run in candidates.items()},
            batch.to(device),
            rounds=rounds,
            warmup=1,
            max_seconds=max_seconds,
            clock=clock,
            progress=progress,
            what=f"batch {size}",
        )
        for size in batch_sizes
    }
    macs = {
        name: network_cost(network.config, how).macs_with_attention for name, how in ((PLAIN, None), (FIXED, settings))
    }
    return AdaptiveTiming(timings, tally.to_json(places_of(batch)), settings.keep, macs)
