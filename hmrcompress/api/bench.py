"""`hmrcompress.bench`: from names and paths to two networks that are timed against each other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

import torch

from hmrcompress.api.opening import Body, Model, body_for, load
from hmrcompress.api.opening_decoder import pipeline_of
from hmrcompress.api.running import device_for, running
from hmrcompress.errors import UserError
from hmrcompress.exporting.parity import BATCH_SIZES
from hmrcompress.exporting.rival import check_rival, made_rival, rival_of
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.buckets import BUCKETS
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import build
from hmrcompress.plan import TokenSettings
from hmrcompress.runtime import Progress, dtype_name, no_progress, pick_device
from hmrcompress.timing.adaptive_bench import AdaptiveTiming, time_adaptive
from hmrcompress.timing.bench import BenchResult, BenchSettings, bench_threads
from hmrcompress.timing.bench import bench as bench_networks
from hmrcompress.timing.contenders import Contender, Rival, contenders
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress.timing.pipeline_bench import PipelineSettings

Runtime = Literal["torch", "onnxruntime", "openvino"]
CROPS_COMPARED = max(BATCH_SIZES)
"""Made-up crops on which a graph is compared with torch before it is timed."""


def bench(
    model: Model | None = None,
    *,
    against: Model | None = None,
    layers: int | None = None,
    tokens: TokenSettings | None = None,
    decoder: str | None = None,
    clips: PipelineSettings | None = None,
    body: Body = "starter",
    runtime: Runtime = "torch",
    settings: BenchSettings | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
) -> BenchResult:
    """Times and weighs a model against its original (`against`, or a network of its size with random weights).

    `layers` and `tokens` cut a model that nothing was merged in, for speed only; `model` may then be left out where
    `against` is given. A model that holds a temporal decoder, or any model with one of random weights (`decoder`: its
    preset, `paper` or `starter`), is timed over whole clips too, as `clips` says, networks at the last batch size.
    `runtime` onnxruntime or openvino: the compressed network's exported graph takes its turns, too, as an exported
    network does that is given as `model`; beside it random weights of the same sizes run in torch. See
    `timing.bench`, `timing.pipeline_bench`, `exporting.onnx_runtime`, `exporting.rival`. Raises UserError.
    """
    given = model if model is not None else against
    if given is None:
        raise UserError("there is no model to time", "bench", "Give a model, or --against with --layers")
    checkpoint = load(given, seed=seed, exported=True)
    where, exported = device_for(checkpoint, device), checkpoint if checkpoint.exported is not None else None
    if exported is not None:
        if runtime != "torch":
            raise UserError("is for a model that is not exported yet", f"bench.runtime={runtime}", "Leave it out")
        # Speed does not depend on weights, so the network in torch beside it has random ones.
        checkpoint = replace(checkpoint, network=build(checkpoint.config, seed=seed).eval(), exported=None)
    settings = _settled(settings or BenchSettings(), checkpoint, where)
    precision = "int8" if settings.way.int8 else dtype_name(settings.computed_in)
    if runtime != "torch":
        check_rival(runtime, precision)
    pipeline = pipeline_of(checkpoint, body_for(checkpoint, body), where, decoder=decoder, clips=clips, seed=seed)
    original = None if against is None or against is given else load(against, seed=seed)
    if exported is not None and checkpoint.plan is None and original is None:
        before, after = (Contender(checkpoint.network, None, "random weights") for _ in range(2))
    else:
        before, after = contenders(
            checkpoint, original, layers=layers, tokens=tokens, seed=seed, alone=pipeline is not None
        )
    if (runtime != "torch" or exported is not None) and before is after:
        raise UserError(
            "there is no compressed network in this model to run", f"bench.runtime {runtime}", "Give --layers or a plan"
        )
    with ExitStack() as while_timed:
        rival: Rival | None = None
        threads = while_timed.enter_context(bench_threads(settings.threads))
        if exported is not None:
            rival = while_timed.enter_context(rival_of(exported, threads, where))
        elif runtime != "torch":
            progress(f"export for {runtime}", 0, 1)
            rival = while_timed.enter_context(
                made_rival(
                    runtime,
                    with_token_merging(after.network, after.tokens).eval(),
                    made_up_batch(after.config, CROPS_COMPARED),
                    body_for(checkpoint, body),
                    precision=precision,
                    device=where,
                    threads=threads,
                )
            )
        return bench_networks(
            before, after, settings=settings, pipeline=pipeline, rival=rival, device=where, progress=progress
        )


def _settled(settings: BenchSettings, checkpoint: Checkpoint, device: torch.device) -> BenchSettings:
    """The settings with what was left to the model's plan."""
    run = running(checkpoint, device, dtype=settings.dtype, path=settings.path, clips=False)
    return replace(settings, dtype=run.dtype, path=run.path)


def bench_adaptive(
    model: Model,
    *,
    tokens: TokenSettings | None = None,
    buckets: Sequence[int] = BUCKETS,
    settings: BenchSettings | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
) -> AdaptiveTiming:
    """Times a model with as many tokens as each person needs beside the same model with all of them and with a fixed
    number. tokens: how they are merged, by default as the model's plan says. See `timing.adaptive_bench`. Raises
    UserError."""
    checkpoint = load(model, seed=seed)
    settings = _settled(settings or BenchSettings(), checkpoint, pick_device(device))
    return time_adaptive(
        checkpoint.network,
        tokens or checkpoint.tokens,
        buckets,
        batch_sizes=settings.batch_sizes,
        dtype=settings.computed_in,
        device=pick_device(device),
        rounds=settings.rounds,
        max_seconds=settings.max_seconds,
        path=settings.way,
        seed=seed,
        progress=progress,
    )
