"""`hmrcompress compress` and `hmrcompress pick`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli import adapter
from hmrcompress_cli.adapter import for_adapters
from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    BodyOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    MasksOption,
    OutOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    outputs_here,
    write_record,
)

BudgetOption = Annotated[
    float | None, typer.Option("--budget-mm", help="How many mm more the error may be.", show_default=False)
]
FpsOption = Annotated[
    float | None, typer.Option("--fps", help="Frames a second to reach.", show_default=False, rich_help_panel="How")
]


OF_OUR_NETWORKS = ("data", "target", "masks", "costs", "heal", "strides", "batch_size", "body", "device")
"""What the search in an adapter's model does without."""


@takes_checkpoints("checkpoint")
def compress(
    checkpoint: Annotated[
        str, typer.Argument(help="starter, random:FAMILY, a checkpoint file, or adapter:FILE.py.", show_default=False)
    ],
    out: OutOption,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Clips to search on: starter[:SPLIT], FORMAT:PATH or a path.", show_default=False),
    ] = None,
    budget_mm: BudgetOption = None,
    fps: FpsOption = None,
    speedup: Annotated[
        float | None, typer.Option("--speedup", help="How many times faster it is to be.", show_default=False)
    ] = None,
    preset: Annotated[Literal["quick", "full"], typer.Option("--preset", help="How much is looked at.")] = "full",
    target: Annotated[
        Literal["truth", "teacher"],
        typer.Option("--target", help="Errors from the data's truth, or mm from the uncompressed network's bodies."),
    ] = "truth",
    masks: MasksOption = "data",
    costs: Annotated[
        Path | None,
        typer.Option("--costs", help="A cost table of this device, or where to write it.", show_default=False),
    ] = None,
    strides: Annotated[
        str, typer.Option("--strides", help="Of videos: run on every so manieth frame, such as 1,2,4.")
    ] = "1",
    heal: Annotated[
        float | None,
        typer.Option("--heal", help="Minutes to train what just misses the budget.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Crops that it runs on at a time.")] = 8,
    json: JsonOption = None,
    body: BodyOption = "starter",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Find the fastest model within a budget on this device, and write it with a report; goes on where it was stopped.

    Layers and tokens are searched together and confirmed on clips that the search did not see. Of adapter:FILE.py the
    budget is of its own distance.
    """
    printer = Printer(quiet)
    if for_adapters(checkpoint, OF_OUR_NETWORKS):
        asked = {"budget_mm": budget_mm, "fps": fps, "speedup": speedup}
        found = adapter.compress(checkpoint, out, asked, preset=preset, seed=seed, json=json, quiet=quiet)
        printer.say(found["sentence"])
        printer.say(f"{out}: hc.live.restore(model, folder) makes the model; {out / 'report.html'}: every point")
        return
    if data is None:
        raise UserError("there are no clips to search on", "--data", "Give starter:calib, FORMAT:PATH or a path")
    from hmrcompress.api.compress import compress as run
    from hmrcompress.runtime import pick_device, progress_bar
    from hmrcompress.timing.bench import parse_sizes

    with progress_bar(quiet=quiet) as progress:
        done = run(
            checkpoint,
            data,
            out,
            budget_mm=budget_mm,
            fps=fps,
            speedup=speedup,
            preset=preset,
            target=target,
            masks=masks,
            costs=costs,
            heal=heal,
            strides=parse_sizes(strides, "--strides"),
            body=body,
            device=device,
            batch_size=batch_size,
            seed=seed,
            overwrite=outputs_here(),
            progress=progress,
        )
    write_record(json, "compress", {"frontier": done.frontier}, device=pick_device(device), seed=seed)
    printer.say(done.frontier["sentence"])
    printer.say(f"{out}: the model; {out / 'report.html'}: every point")


def pick(
    frontier: Annotated[Path, typer.Argument(help="frontier.json, or the folder it is in.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the plan.", show_default=False)],
    budget_mm: BudgetOption = None,
    fps: FpsOption = None,
    layers: Annotated[
        float | None, typer.Option("--layers", help="The best that leaves so many layers.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Take another point of a frontier that was searched before, as a plan for `hmrcompress merge`."""
    from hmrcompress.api.pick import pick as take

    point = take(frontier, out, budget_mm=budget_mm, fps=fps, layers=layers, overwrite=outputs_here())
    printer = Printer(quiet)
    printer.say(f"{point['words']}, {point['fps']:.1f} frames/s predicted")
    printer.say(f"{out}")
