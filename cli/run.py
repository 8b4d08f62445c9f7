"""`hmrcompress run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress.io.texts import MOST_SEED
from hmrcompress_cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    Printer,
    QuietOption,
    outputs_here,
)
from hmrcompress_cli.settings import SetOption, list_option


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one: starter, ci.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder.", show_default="runs/RECIPE")
    ] = None,
    overrides: SetOption = None,
    list_settings: list_option() = False,  # type: ignore[valid-type]
    earlier: Annotated[
        Path | None,
        typer.Option("--baseline", help="The summary.json of an earlier run to compare with.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished stages whose inputs are the same.")] = False,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, show_default=False)] = None,
    body: Annotated[str | None, typer.Option("--body", help="Instead of the recipe's.", show_default=False)] = None,
    limit: LimitOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MOST_SEED, help="Instead of the recipe's.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a recipe from search to gates; RUN/summary.json holds every figure. Exit code 3 where a gate fails."""
    from hmrcompress.recipe.gates import require, unjudged
    from hmrcompress.recipe.reading import read_recipe
    from hmrcompress.recipe.runner import run_recipe
    from hmrcompress.runtime import pick_dtype, progress_bar

    given = {"batch_size": batch_size, "body": body, "seed": seed}
    chosen = [f"{name}={value}" for name, value in given.items() if value is not None]
    line = read_recipe(recipe, [*(overrides or []), *chosen])
    if limit is not None:
        line = line.limited(limit)
    printer, rule = Printer(quiet), outputs_here()

    def stage_done(name: str, seconds: float, reused: bool) -> None:
        printer.say(f"{name:<8}{'taken over' if reused else f'{seconds:.1f} s'}")

    with progress_bar(quiet=quiet) as progress:
        result = run_recipe(
            line,
            out or Path("runs") / Path(recipe).stem,
            resume=resume,
            baseline=earlier,
            device=device,
            dtype=pick_dtype(dtype),
            overwrite=rule,
            progress=progress,
            stage_done=stage_done,
        )
    _report(printer, result.summary)
    for gate in result.gates:
        printer.say(f"gate {'held' if gate.passed else 'BROKEN'}: {gate}")
    for name in unjudged(line.gates, result.summary):
        printer.say(f"gate left out: {name} needs an earlier run, --baseline OLD/summary.json")
    printer.say(f"{result.folder}: {', '.join(result.written)}")
    if json is not None:
        rule.write_json(json, result.summary, "run")
    require(result.gates)


def _report(printer: Printer, summary: dict[str, Any]) -> None:
    """What was gained: the table, and one line for what does not fit in it."""
    from hmrcompress.report.table import caption, stage_table

    if not summary.get("stages") and not summary.get("costs"):
        return
    table = stage_table(summary, title=caption(summary))
    printer.table(table.title, table.columns, table.rows)
    facts = []
    if "speedup" in summary:
        facts.append(f"{summary['speedup']:.2f}x the frames/s")
    if "macs" in summary:
        facts.append(f"{summary['macs']['before'] / summary['macs']['after']:.2f}x fewer MACs")
    if "params" in summary:
        facts.append(f"{summary['params']['after'] / summary['params']['before']:.0%} of the parameters")
    if "onnx_max_abs_diff" in summary:
        facts.append(f"ONNX within {summary['onnx_max_abs_diff']:.0e} of torch, {summary['onnx_joints_mm']:.0e} mm")
    if facts:
        printer.say(", ".join(facts))
    if summary.get("leak"):
        printer.say("warning: the plan was searched on the data that it is scored on")
