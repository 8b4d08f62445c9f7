"""`hmrcompress bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli import adapter
from hmrcompress_cli.adapter import PlanOption, for_adapters, plan_given
from hmrcompress_cli.bench_tables import show, show_adaptive
from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    BodyOption,
    DebugOption,
    DeviceOption,
    FastDtypeOption,
    FastOption,
    JsonOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    complain,
    options_given,
    outputs_here,
    refuse_unused,
    write_record,
)
from hmrcompress_cli.settings import takes_settings
from hmrcompress_cli.tokens import KeepTokensOption, changed_tokens

if TYPE_CHECKING:
    from hmrcompress.io.outputs import OutputRule


OF_OUR_NETWORKS = (
    "against", "layers", "keep_tokens", "batch_sizes", "threads", "baseline", "fast", "suite", "out", "body",
    "no_memory", "device", "dtype", "seed",
)  # fmt: skip
"""What timing an adapter's model does without."""
OF_SUITES = ("suite", "out", "json", "overwrite", "quiet", "debug", "overrides")
"""All that a suite takes; its file says the rest."""
NOT_ADAPTIVE = ("against", "layers", "baseline", "body", "no_memory", "threads")
NOT_ADAPTIVE_KEYS = ("decoder", "strides", "measured_frames", "steps")
"""What timing adaptive tokens does without."""


@takes_checkpoints("model", "against")
@takes_settings(
    "bench",
    flags={"keep_tokens": "tokens.keep", "rounds": "rounds", "fast": "fast"},
    without={"batch_size": "Give --batch-sizes"},
)
def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A compressed folder, or with --layers or --keep-tokens a checkpoint, or adapter:FILE.py.",
            show_default=False,
        ),
    ] = None,
    plan: PlanOption = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="The original; by default one of its size with random weights."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="Cut to so many layers from the top, for speed only.")
    ] = None,
    keep_tokens: KeepTokensOption = None,
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", help="Crops in a call, such as 1,8.")] = "1,8",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds at every batch size.")] = 9,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the CPU; torch's choice by default.")
    ] = None,
    baseline: Annotated[
        Literal["ours", "original"],
        typer.Option("--baseline", help="Run the original by our network, or as its authors do (attention unfused)."),
    ] = "ours",
    fast: FastOption = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="Measure the runs of a file, or of the shipped benchmarks, into -o; then: report."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the suite's results.", show_default=False)
    ] = None,
    body: BodyOption = "starter",
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure memory.")] = False,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: FastDtypeOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    settings: Any = None,
) -> None:
    """Time original against compressed by turns on made-up crops, and weigh both: memory, parameters, MACs.

    With a temporal decoder whole clips are timed, too, networks running on every k-th frame.
    """
    import hmrcompress as hc
    from hmrcompress.api import bench
    from hmrcompress.api.running import planned_buckets
    from hmrcompress.plan import TokenSettings
    from hmrcompress.recipe.chosen import asked_path, buckets_of
    from hmrcompress.runtime import fast_dtype, pick_device, pick_fast_dtype, progress_bar
    from hmrcompress.timing.bench import BenchSettings, parse_sizes
    from hmrcompress.timing.pipeline_bench import PipelineSettings

    if for_adapters(model, OF_OUR_NETWORKS, settings, sorted(settings.model_fields_set - {"rounds", "max_seconds"})):
        seconds = settings.max_seconds
        adapter.bench(str(model), plan_given(plan), rounds=rounds, max_seconds=seconds, json=json, quiet=quiet)
        return
    if plan is not None:
        raise UserError("is for adapters; a compressed folder has its own plan", "--plan", "Leave it out")
    buckets, runtime, of_suite = buckets_of(settings), settings.runtime, suite is not None or out is not None
    if runtime != "torch" and (of_suite or buckets is not None):
        raise UserError(
            "takes part neither in a suite nor with adaptive tokens",
            f"bench.runtime={runtime}",
            "Leave one of them out",
        )
    if of_suite or settings.only:
        flags, keys = options_given().keys() - set(OF_SUITES), settings.model_fields_set - {"only"}
        told = "is for the suite's file to say", "Leave it out, or leave --suite out"
        refuse_unused(*told, sorted(flags), settings, sorted(keys))
        _run_suite(suite, out, list(settings.only), json, quiet, outputs_here())
        return
    tokens = settings.tokens
    if keep_tokens is not None:
        tokens = changed_tokens(tokens or TokenSettings(), keep_tokens)
    where = pick_device(device)
    wanted, int8 = (None, False) if dtype is None else pick_fast_dtype(dtype, where)
    how = BenchSettings(
        batch_sizes=parse_sizes(batch_sizes),
        rounds=rounds,
        max_seconds=settings.max_seconds,
        threads=threads,
        dtype=wanted,
        memory=not no_memory,
        baseline=baseline,
        path=asked_path(settings, fast=fast, int8=int8),
    )
    if where.type == "cpu" and dtype not in (None, "float32", "int8") and fast_dtype(where) != wanted:
        complain(f"warning: this CPU has no units for {dtype}, which is emulated: expect it to be slower than float32")
    opened = None if model is None else hc.load(model, seed=seed, exported=True)
    other = {*NOT_ADAPTIVE} & options_given().keys() or {*NOT_ADAPTIVE_KEYS, "buckets"} & settings.model_fields_set
    if opened is not None and not other and runtime == "torch":
        buckets = planned_buckets(opened)
    if buckets is not None:
        told = "has no effect on timing adaptive tokens", "Leave it out"
        refuse_unused(*told, NOT_ADAPTIVE, settings, NOT_ADAPTIVE_KEYS)
        with progress_bar(quiet=quiet) as progress:
            adaptive = bench.bench_adaptive(
                opened or "starter",
                tokens=tokens,
                buckets=buckets,
                settings=how,
                device=device,
                seed=seed,
                progress=progress,
            ).to_json()
        write_record(json, "bench", {"adaptive": adaptive}, device=where, seed=seed)
        show_adaptive(Printer(quiet), adaptive, f"{dtype} on {where}" if dtype else str(where))
        return
    with progress_bar(quiet=quiet) as progress:
        result = hc.bench(
            opened,
            against=against,
            layers=layers,
            tokens=tokens,
            decoder=settings.decoder,
            clips=PipelineSettings(settings.strides, settings.measured_frames, settings.steps),
            body=body,
            runtime=runtime,
            settings=how,
            device=device,
            seed=seed,
            progress=progress,
        )
    figures = result.to_json()
    write_record(json, "bench", figures, device=where, seed=seed)
    show(Printer(quiet), figures, str(where))


def _run_suite(
    suite: str | None, out: Path | None, only: list[str], json: Path | None, quiet: bool, rule: OutputRule
) -> None:
    """Measures what is not there yet, a line for each run."""
    from hmrcompress.recipe.benchmarks import read_suite, run_suite
    from hmrcompress.runtime import progress_bar

    if suite is None or out is None:
        raise UserError("a suite needs its name and a folder", "--suite and -o", "Try --suite benchmarks -o runs/bench")
    printer = Printer(quiet)

    def done(name: str, record: dict[str, Any] | None, known: bool) -> None:
        if record is None:
            printer.say(f"{name}: left out, there is no such device")
            return
        best = max(record["rows"], key=lambda row: row["speedup"])
        printer.say(f"{name}: {best['variant']} {best['speedup']:.2f}x{' (known)' if known else ''}")

    with progress_bar(quiet=quiet) as progress:
        written = run_suite(read_suite(suite), out, only=only, overwrite=rule, on_run=done, progress=progress)
    if json is not None:
        rule.write_json(json, {"schema": 1, "command": "bench", "runs": [str(path) for path in written]}, "bench")
    printer.say(f"{out}: {len(written)} runs; `hmrcompress report {out} -o FILE.md` shows them")
