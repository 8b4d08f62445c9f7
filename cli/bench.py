"""`hmrcompress bench`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hmrcompress_cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
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
    token_settings,
)

COLUMNS = ("", "batch", "before fps", "after fps", "speed-up", "middle half", "MAC ratio", "of it reached")


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
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", help="Crops in a call, such as 1,8.")] = "1,8",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds at every batch size.")] = 9,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0, help="Begin no further round after this long a batch size.")
    ] = 300.0,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the CPU; torch's choice by default.")
    ] = None,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure memory.")] = False,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Time original against compressed by turns on made-up crops, and weigh both: memory, parameters, MACs."""
    from hmrcompress import api
    from hmrcompress.evaluation.bench import BenchSettings, parse_sizes
    from hmrcompress.runtime import fast_dtype, pick_device, pick_dtype, progress_bar

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
    where, wanted = pick_device(device), pick_dtype(dtype)
    settings = BenchSettings(
        batch_sizes=parse_sizes(batch_sizes),
        rounds=rounds,
        max_seconds=max_seconds,
        threads=threads,
        dtype=wanted,
        memory=not no_memory,
    )
    if where.type == "cpu" and dtype != "float32" and fast_dtype(where) != wanted:
        complain(f"warning: this CPU has no units for {dtype}, which is emulated: expect it to be slower than float32")
    with progress_bar(quiet=quiet) as progress:
        result = api.bench(
            model,
            against=against,
            layers=layers,
            tokens=token_settings(**given) if asked else None,
            settings=settings,
            device=device,
            seed=seed,
            progress=progress,
        )
    figures = result.to_json()
    write_record(json, "bench", figures, device=where, seed=seed)
    _show(Printer(quiet), figures, str(where))


def _show(printer: Printer, figures: dict[str, Any], device: str) -> None:
    measured, layers, tokens = figures["bench"], figures["layers"], figures["tokens"]
    count = measured["threads"]
    threads = f", {count} thread{'s' if count > 1 else ''}" if device == "cpu" else ""
    rows = [
        (
            part,
            size,
            found[part]["fps"]["before"],
            found[part]["fps"]["after"],
            f"{found[part]['speedup']:.2f}x",
            "–".join(f"{ratio:.2f}" for ratio in found[part]["speedup_quartiles"]),
            f"{found[part]['macs_ratio']:.2f}",
            f"{found[part]['share_of_macs_ratio']:.0%}",
        )
        for size, found in measured["batch_sizes"].items()
        for part in ("network", "backbone")
    ]
    title = (
        f"{measured['names']['after']} against {measured['names']['before']}: {measured['dtype']} on {device}{threads}"
    )
    printer.table(title, COLUMNS, rows)
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
