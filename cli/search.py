"""`hmrcompress search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli.common import (
    BatchSizeOption,
    BodyOption,
    DataOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LimitOption,
    MasksOption,
    Printer,
    QuietOption,
    SeedOption,
    write_record,
)


def search(
    checkpoint: Annotated[str, typer.Argument(help="starter, random:FAMILY, or a checkpoint file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the plan.", show_default=False)],
    data: DataOption = "starter:calib",
    masks: MasksOption = "data",
    tau: Annotated[float, typer.Option("--tau", help="Increase in MPJPE that a merge may cost, mm.")] = 0.1,
    frames_per_clip: Annotated[
        int, typer.Option("--frames-per-clip", min=1, help="Frames taken evenly from each clip.")
    ] = 80,
    method: Annotated[str, typer.Option("--method", help="How to search: eclm.")] = "eclm",
    merge_rule: Annotated[
        str, typer.Option("--merge-rule", help="How layers become one: eq4, keep_last, keep_first, mean.")
    ] = "eq4",
    keep_tokens: Annotated[int, typer.Option("--keep-tokens", min=1, help="Tokens left by token merging.")] = 90,
    merge_per_layer: Annotated[
        int, typer.Option("--merge-per-layer", min=1, help="Tokens merged away in each of the first layers.")
    ] = 40,
    no_tokens: Annotated[bool, typer.Option("--no-tokens", help="A plan without token merging.")] = False,
    with_tokens: Annotated[bool, typer.Option("--with-tokens", help="Merge tokens already while searching.")] = False,
    as_printed: Annotated[
        bool, typer.Option("--as-printed", help="Lose the last open window, as the published algorithm does.")
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", help="Evaluations done; by default beside the plan.", show_default=False),
    ] = None,
    protocol: Annotated[str, typer.Option("--protocol", help="What the error is measured on.")] = "starter24",
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    batch_size: BatchSizeOption = 32,
    body: BodyOption = "starter",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Choose the layers to merge by what merging them costs in MPJPE; goes on where a stopped search ended."""
    from hmrcompress import api
    from hmrcompress.plan import TokenSettings
    from hmrcompress.runtime import pick_device, pick_dtype, progress_bar
    from hmrcompress.searching.search import SearchSettings

    if out.is_dir():
        raise UserError("is a folder, expected the name of the plan", out)
    settings = SearchSettings(
        tau_mm=tau,
        frames_per_clip=frames_per_clip,
        limit=limit,
        method=method,
        merge_rule=merge_rule,
        tokens=None if no_tokens else TokenSettings(keep=keep_tokens, per_layer=merge_per_layer),
        with_tokens=with_tokens,
        as_printed=as_printed,
        batch_size=batch_size,
        dtype=pick_dtype(dtype),
        seed=seed,
    )
    with progress_bar(quiet=quiet) as progress:
        result = api.search(
            checkpoint,
            data,
            journal=journal or out.with_suffix(".journal.jsonl"),
            settings=settings,
            masks=masks,
            protocol=protocol,
            body=body,
            device=device,
            progress=progress,
        )
    result.plan.write(out)
    figures = result.to_json()
    write_record(json, "search", figures, device=pick_device(device), seed=seed)
    printer = Printer(quiet)
    if result.set_aside:
        printer.say(f"The journal was of other settings; it is now {result.set_aside}.")
    rows = [
        (f"{step.low}-{step.high}", step.error_mm, f"{step.error_mm - result.trace.base_mm:+.2f}", verdict)
        for step in result.trace.steps
        for verdict in ["merge" if step.accepted else "no"]
    ]
    printer.table(f"untouched: {result.trace.base_mm:.2f} mm", ("layers", "MPJPE mm", "increase", ""), rows)
    if result.trace.open_window:
        low, high = result.trace.open_window
        fate = "is merged" if result.trace.open_window_merged else "is lost, as printed"
        printer.say(f"The window of layers {low}-{high} was still open at the end; it {fate}.")
    layers, measured = figures["layers"], figures["search"]
    printer.say(
        f"{layers['before']} -> {layers['after']} layers, {measured['base_mpjpe_mm']:.2f} -> "
        f"{measured['final_mpjpe_mm']:.2f} mm on {measured['frames']} frames, {measured['evaluations']} evaluations "
        f"and the baseline ({result.evaluated} of them now)."
    )
    printer.say(f"{out}")
