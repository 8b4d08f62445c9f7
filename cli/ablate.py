"""`hmrcompress ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress.io.texts import MOST_SEED
from hmrcompress_cli.common import (
    DebugOption,
    DeviceOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    Printer,
    QuietOption,
    outputs_here,
)


def ablate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.", show_default=False)],
    recipe: Annotated[str, typer.Argument(help="A file of tables, or the name of the shipped one.")] = "ablations",
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this table (repeatable).", show_default=False)
    ] = None,
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Leave speed-ups to a later run.")] = False,
    retime: Annotated[bool, typer.Option("--retime", help="Measure all speed-ups anew.")] = False,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    limit: LimitOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MOST_SEED, help="Instead of the recipe's.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure tables of settings against one baseline; rows that are there already are kept. Then: `report`."""
    from hmrcompress.recipe.ablate import Ablation
    from hmrcompress.recipe.ablations import read_ablations
    from hmrcompress.runtime import progress_bar

    wanted = read_ablations(recipe)
    if seed is not None:
        wanted = wanted.model_copy(update={"seed": seed})
    printer, rule = Printer(quiet), outputs_here()

    def row_done(table: str, name: str, row: dict[str, Any], reused: bool) -> None:
        speed = f", {row['speedup']:.2f}x" if "speedup" in row else ""
        printer.say(
            f"{table}: {name}: {row['layers']} layers, {row['tokens']} tokens, {row['increase_mm']:+.2f} mm{speed}"
            f"{' (known)' if reused else ''}"
        )

    with progress_bar(quiet=quiet) as progress:
        run = Ablation(
            wanted,
            out,
            only=only or (),
            limit=limit,
            timed=not no_bench,
            retimed=retime,
            device=device,
            overwrite=rule,
            progress=progress,
        )
        written = run.run(row_done)
    if json is not None:
        rule.write_json(json, {"schema": 1, "command": "ablate", "tables": [str(path) for path in written]}, "ablate")
    printer.say(f"{out}: {', '.join(path.name for path in written)}; `hmrcompress report {out} -o FILE.md` shows them")
