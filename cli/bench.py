"""`hmrcompress bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hmrcompress_cli.common import (
    BodyOption,
    CompileOption,
    DebugOption,
    DeviceOption,
    FastDtypeOption,
    FastOption,
    GraphsOption,
    JsonOption,
    Printer,
    QuietOption,
    SeedOption,
    complain,
    write_record,
)
from hmrcompress_cli.tokens import (
    AttentionBiasOption,
    BackgroundCoarseOption,
    BackgroundRingOption,
    DropBackgroundOption,
    KeepTokensOption,
    MergePerLayerOption,
    PaperOption,
    ProtectOption,
    SizeWeightedOption,
    TokenMetricOption,
    TokenScheduleOption,
    TokensOption,
    token_buckets,
    token_settings,
)

COLUMNS = ("", "batch", "before fps", "after fps", "speed-up", "middle half", "MAC ratio", "of it reached")
CLIP_COLUMNS = ("", "frames run", "frames/s", "speed-up", "middle half", "network s", "decoder s", "rotations s")


def bench(
    model: Annotated[
        str | None,
        typer.Argument(help="A compressed folder, or with --layers or --keep-tokens a checkpoint.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="The original; by default one of its size with random weights."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="Cut to so many layers from the top, for speed only.")
    ] = None,
    keep_tokens: KeepTokensOption = None,
    merge_per_layer: MergePerLayerOption = None,
    paper: PaperOption = False,
    token_metric: TokenMetricOption = None,
    size_weighted: SizeWeightedOption = None,
    attention_bias: AttentionBiasOption = None,
    protect: ProtectOption = None,
    token_schedule: TokenScheduleOption = None,
    drop_background: DropBackgroundOption = False,
    background_ring: BackgroundRingOption = None,
    background_coarse: BackgroundCoarseOption = None,
    tokens: TokensOption = "plan",
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", help="Crops in a call, such as 1,8.")] = "1,8",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds at every batch size.")] = 9,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0, help="Begin no further round after this long a batch size.")
    ] = 300.0,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the CPU; torch's choice by default.")
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", help="Time one of random weights: paper, starter.", show_default="the model's own"),
    ] = None,
    strides: Annotated[
        str, typer.Option("--strides", help="With a decoder: networks run on every k-th frame of a clip.")
    ] = "1,2,4",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps of the decoder.")] = 1,
    measured_frames: Annotated[
        int | None,
        typer.Option(
            "--measured-frames", min=1, help="Time networks on so many frames of a clip.", show_default="the whole clip"
        ),
    ] = None,
    baseline: Annotated[
        Literal["ours", "original"],
        typer.Option("--baseline", help="Run the original by our network, or as its authors do (attention unfused)."),
    ] = "ours",
    fast: FastOption = False,
    compiled: CompileOption = False,
    graphs: GraphsOption = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="Measure the runs of a file, or of the shipped benchmarks, into -o; then: report."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the suite's results.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this run of the suite (repeatable).", show_default=False)
    ] = None,
    body: BodyOption = "starter",
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure memory.")] = False,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: FastDtypeOption = "float32",
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Time original against compressed by turns on made-up crops, and weigh both: memory, parameters, MACs.

    With a temporal decoder whole clips are timed, too, networks running on every k-th frame.
    """
    from hmrcompress import api
    from hmrcompress.evaluation.bench import BenchSettings, parse_sizes
    from hmrcompress.evaluation.pipeline_bench import PipelineSettings
    from hmrcompress.models.running import RunPath
    from hmrcompress.runtime import fast_dtype, pick_device, pick_fast_dtype, progress_bar

    if suite is not None or out is not None or only:
        _run_suite(suite, out, only or [], quiet)
        return
    buckets = token_buckets(tokens)
    given = {
        "keep_tokens": keep_tokens,
        "merge_per_layer": merge_per_layer,
        "paper": paper,
        "token_metric": token_metric,
        "size_weighted": size_weighted,
        "attention_bias": attention_bias,
        "protect": protect,
        "token_schedule": token_schedule,
        "drop_background": drop_background,
        "background_ring": background_ring,
        "background_coarse": background_coarse,
    }
    asked = any(value is not None and value is not False for value in given.values())
    where = pick_device(device)
    wanted, int8 = pick_fast_dtype(dtype, where)
    settings = BenchSettings(
        batch_sizes=parse_sizes(batch_sizes),
        rounds=rounds,
        max_seconds=max_seconds,
        threads=threads,
        dtype=wanted,
        memory=not no_memory,
        baseline=baseline,
        path=RunPath(fast=fast, int8=int8, compiled=compiled, graphs=graphs),
    )
    if where.type == "cpu" and dtype not in ("float32", "int8") and fast_dtype(where) != wanted:
        complain(f"warning: this CPU has no units for {dtype}, which is emulated: expect it to be slower than float32")
    if buckets is not None:
        with progress_bar(quiet=quiet) as progress:
            adaptive = api.bench_adaptive(
                model or "starter",
                tokens=token_settings(**given) if asked else None,
                buckets=buckets,
                settings=settings,
                device=device,
                seed=seed,
                progress=progress,
            ).to_json()
        write_record(json, "bench", {"adaptive": adaptive}, device=where, seed=seed)
        _show_adaptive(Printer(quiet), adaptive, f"{dtype} on {where}")
        return
    with progress_bar(quiet=quiet) as progress:
        result = api.bench(
            model,
            against=against,
            layers=layers,
            tokens=token_settings(**given) if asked else None,
            decoder=decoder,
            clips=PipelineSettings(parse_sizes(strides, "--strides"), measured_frames, steps),
            body=body,
            settings=settings,
            device=device,
            seed=seed,
            progress=progress,
        )
    figures = result.to_json()
    write_record(json, "bench", figures, device=where, seed=seed)
    _show(Printer(quiet), figures, str(where))


def _run_suite(suite: str | None, out: Path | None, only: list[str], quiet: bool) -> None:
    """Measures what is not there yet, a line for each run."""
    from hmrcompress.errors import UserError
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
        written = run_suite(read_suite(suite), out, only=only, on_run=done, progress=progress)
    printer.say(f"{out}: {len(written)} runs; `hmrcompress report {out} -o FILE.md` shows them")


def _show(printer: Printer, figures: dict[str, Any], device: str) -> None:
    measured = figures["bench"]
    count = measured["threads"]
    threads = f", {count} thread{'s' if count > 1 else ''}" if device == "cpu" else ""
    place = f"{measured['dtype']} on {device}{threads}"
    for key, words in (("fast", "fast path"), ("compiled", "compiled"), ("cuda_graphs", "CUDA graphs")):
        place += f", {words}" if measured[key] else ""
    if measured["batch_sizes"]:
        _show_networks(printer, figures, place)
    if "pipeline" in figures:
        _show_pipeline(printer, figures["pipeline"], place)


def _show_adaptive(printer: Printer, found: dict[str, Any], place: str) -> None:
    """The untouched network, a fixed number of tokens, and as many as each person needs."""
    named = {"plain": "all tokens", "fixed": f"{found['keep']} tokens", "adaptive": "adaptive tokens"}
    macs = found["macs"] | {"adaptive": found["adaptive"]["mean_macs_with_attention"]}
    rows = [
        (
            named[name],
            size,
            measured["fps"][name],
            f"{measured['speedup'][name]:.2f}x" if name in measured["speedup"] else None,
            _range(measured["speedup_quartiles"][name]) if name in measured["speedup"] else None,
            f"{macs['plain'] / macs[name]:.2f}",
        )
        for size, measured in found["batch_sizes"].items()
        for name in named
    ]
    columns = ("", "batch", "frames/s", "speed-up", "middle half", "MAC ratio")
    printer.table(f"people of every size: {place}", columns, rows)
    buckets = ", ".join(f"{count} at {keep}" for keep, count in found["adaptive"]["buckets"].items())
    printer.say(f"crops by kept tokens: {buckets}; mean {found['adaptive']['mean_kept']:.1f}")


def _show_networks(printer: Printer, figures: dict[str, Any], place: str) -> None:
    measured, layers, tokens = figures["bench"], figures["layers"], figures["tokens"]
    rows = [
        (
            part,
            size,
            found[part]["fps"]["before"],
            found[part]["fps"]["after"],
            f"{found[part]['speedup']:.2f}x",
            _range(found[part]["speedup_quartiles"]),
            f"{found[part]['macs_ratio']:.2f}",
            f"{found[part]['share_of_macs_ratio']:.0%}",
        )
        for size, found in measured["batch_sizes"].items()
        for part in ("network", "backbone")
    ]
    printer.table(f"{measured['names']['after']} against {measured['names']['before']}: {place}", COLUMNS, rows)
    weighed = [
        f"{layers['before']} -> {layers['after']} layers",
        f"{tokens['before']} -> {tokens['after']} tokens",
        f"{figures['params']['before'] / 1e6:.1f} -> {figures['params']['after'] / 1e6:.1f} M parameters",
        "{before:.2f} -> {after:.2f} GMACs".format(**{k: v / 1e9 for k, v in figures["macs_with_attention"].items()}),
    ]
    if peak := figures.get("peak_memory_bytes"):
        weighed.append(f"{peak['before'] / 1e6:.0f} -> {peak['after'] / 1e6:.0f} MB at most")
    printer.say(", ".join(weighed))
    last = list(measured["batch_sizes"])[-1]
    backbone = measured["batch_sizes"][last]["backbone"]
    printer.say(
        f"{figures['speedup']:.2f}x the frames/s at batch {last}, the backbone {backbone['speedup']:.2f}x: "
        f"{backbone['share_of_macs_ratio']:.0%} of what its MACs promise"
    )


def _show_pipeline(printer: Printer, clips: dict[str, Any], place: str) -> None:
    """Whole clips by stride, and what the decoder costs."""
    before, decoder = clips["before"], clips["decoder"]
    rows = [("uncompressed network", clips["clip_frames"], before["fps"], None, None, before["seconds"], None, None)]
    for stride, found in clips["strides"].items():
        spent = found["seconds"]
        rows.append(
            (
                f"stride {stride}",
                found["network_frames"],
                found["fps"],
                f"{found['speedup']:.2f}x",
                _range(found["speedup_quartiles"]),
                *(f"{spent[part]:.3f}" for part in ("network", "decoder", "pose")),
            )
        )
    title = f"clips of {clips['clip_frames']} frames, networks at batch {clips['batch_size']}: {place}"
    printer.table(title, CLIP_COLUMNS, rows)
    if before["timed_on"] < clips["clip_frames"]:
        printer.say(f"networks were timed on {before['timed_on']} frames at most, and their times scaled to the clip")
    printer.say(
        f"the decoder ({decoder['name']}, {decoder['params'] / 1e6:.1f} M parameters, {decoder['windows']} x "
        f"{decoder['window_frames']} frames) takes {decoder['seconds']:.3f} s for a clip, "
        f"{decoder['share_of_backbone']:.3%} of the uncompressed backbone's {decoder['backbone_seconds']:.1f} s"
    )


def _range(quartiles: list[float]) -> str:
    return "–".join(f"{ratio:.2f}" for ratio in quartiles)
