"""`hmrcompress search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli.adapter import for_adapters
from hmrcompress_cli.checkpoints import takes_checkpoints
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
    OverwriteOption,
    Printer,
    QuietOption,
    RegressorOption,
    SeedOption,
    outputs_here,
    write_record,
)
from hmrcompress_cli.settings import takes_settings
from hmrcompress_cli.tokens import KeepTokensOption, MergePerLayerOption, changed_tokens

if TYPE_CHECKING:
    from hmrcompress.searching.search import SearchResult


OF_OUR_NETWORKS = (
    "data", "masks", "frames_per_clip", "regressor", "device", "dtype", "batch_size", "body", "limit",
)  # fmt: skip
"""What an adapter's file says instead."""


@takes_checkpoints("checkpoint")
@takes_settings(
    "search",
    flags={
        "tau": "tau_mm",
        "frames_per_clip": "frames_per_clip",
        "method": "method",
        "merge_rule": "merge_rule",
        "keep_tokens": "tokens.keep",
        "merge_per_layer": "tokens.per_layer",
        "with_tokens": "with_tokens",
        "limit": "limit",
    },
)
def search(
    checkpoint: Annotated[str, typer.Argument(help="starter, random:FAMILY, a checkpoint file, or adapter:FILE.py.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the plan.", show_default=False)],
    data: DataOption = "starter:calib",
    masks: MasksOption = "data",
    tau: Annotated[
        float,
        typer.Option(
            "--tau", help="Increase in MPJPE over the untouched network that all merges together may cost, mm."
        ),
    ] = 0.1,
    frames_per_clip: Annotated[
        int, typer.Option("--frames-per-clip", min=1, help="Frames taken evenly from each clip.")
    ] = 80,
    method: Annotated[str, typer.Option("--method", help="How to search: eclm.")] = "eclm",
    merge_rule: Annotated[
        str, typer.Option("--merge-rule", help="How layers become one: eq4, keep_last, keep_first, mean, lstsq.")
    ] = "eq4",
    keep_tokens: KeepTokensOption = None,
    merge_per_layer: MergePerLayerOption = None,
    with_tokens: Annotated[bool, typer.Option("--with-tokens", help="Merge tokens already while searching.")] = False,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", help="Evaluations done; by default beside the plan.", show_default=False),
    ] = None,
    regressor: RegressorOption = None,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    batch_size: BatchSizeOption = 32,
    body: BodyOption = "starter",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    settings: Any = None,
) -> None:
    """Choose the layers to merge by what merging them costs in MPJPE; goes on where a stopped search ended."""
    import hmrcompress as hc
    from hmrcompress.plan import KIND as PLAN
    from hmrcompress.recipe.chosen import search_settings
    from hmrcompress.runtime import pick_device, pick_dtype, progress_bar
    from hmrcompress.searching.journal import KIND as JOURNAL

    theirs = for_adapters(checkpoint, OF_OUR_NETWORKS, settings, ("target", "protocol", "limit", "frames_per_clip"))
    outputs, kept = outputs_here(), _journal(out, journal)
    outputs.check_file(out, PLAN, "plan")
    outputs.check_file(kept, JOURNAL, "jsonl")
    tokens = changed_tokens(settings.tokens, keep_tokens, merge_per_layer)
    given = settings.model_copy(
        update={
            "tau_mm": tau,
            "frames_per_clip": frames_per_clip,
            "limit": limit,
            "method": method,
            "merge_rule": merge_rule,
            "tokens": tokens,
            "with_tokens": with_tokens,
        }
    )
    chosen = search_settings(given, batch_size=batch_size, dtype=pick_dtype(dtype), seed=seed)
    with progress_bar(quiet=quiet) as progress:
        if theirs:
            from hmrcompress.api.adapter import search_adapter
            from hmrcompress.io.together import process_of

            if process_of()[1] > 1:
                raise UserError("is searched in one process", checkpoint, "Launch one")

            result = search_adapter(checkpoint, journal=kept, settings=chosen, overwrite=outputs, progress=progress)
        else:
            result = hc.search(
                checkpoint,
                data,
                journal=kept,
                overwrite=outputs,
                settings=chosen,
                masks=masks,
                protocol=given.protocol,
                regressor=regressor,
                body=body,
                device=device,
                progress=progress,
            )
    result.plan.write(out, overwrite=outputs)
    figures = result.to_json()
    write_record(json, "search", figures, device=pick_device(device), seed=seed)
    printer = Printer(quiet)
    _tell(printer, result, figures)
    if result.plan.tokens is not None and not with_tokens:
        printer.say("The plan's tokens are as set; this search did not measure what they cost (--with-tokens does).")
    printer.say(f"{out}")


def _journal(out: Path, journal: Path | None) -> Path:
    """The journal's name. UserError where there is none, since the plan goes to no file that it could lie beside."""
    from hmrcompress.io.places import is_stream

    if journal is None and is_stream(out):
        raise UserError("is no file that a journal could lie beside", out, "Give --journal FILE")
    return journal or out.with_suffix(".journal.jsonl")


def _tell(printer: Printer, result: SearchResult, figures: dict[str, Any]) -> None:
    """The steps of ECLM, its plan, and what it all took."""
    record, counts, trace = figures["search"], result.counts, result.trace
    what = "MPJPE" if record["target"] == "truth" else "distance"
    rows: list[tuple[str | None, ...]] = []
    for step in trace.steps:
        at_least = "from " if step.at_least else ""
        layers, increase = f"{step.low}-{step.high}", f"{at_least}{step.error_mm - trace.base_mm:+.2f}"
        if step.error_mm == float("inf"):
            rows.append((layers, None, None, "too few layers for the tokens"))
            continue
        rows.append((layers, f"{at_least}{step.error_mm:.2f}", increase, "merge" if step.accepted else "no"))
    printer.table(f"untouched: {trace.base_mm:.2f} mm", ("layers", f"{what} mm", "increase", ""), rows)
    if trace.open_window:
        low, high = trace.open_window
        fate = "is merged" if trace.open_window_merged else "is lost, as printed"
        printer.say(f"The window of layers {low}-{high} was still open at the end; it {fate}.")
    printer.say(
        f"{figures['layers']['before']} -> {figures['layers']['after']} layers, {record['base_mpjpe_mm']:.2f} -> "
        f"{record['final_mpjpe_mm']:.2f} mm on {record['frames']} frames, {record['evaluations']} evaluations "
        f"and the baseline ({result.evaluated} of them now)."
    )
    if counts.evaluations:
        printer.say(
            f"{counts.applications} layer applications in {counts.seconds:.1f} s; without the cache "
            f"{counts.without_cache} ({counts.without_cache / max(counts.applications, 1):.2f} times), without early "
            f"rejection as well {counts.without_either}. Early rejection saved {counts.all_frames - counts.frames} of "
            f"{counts.all_frames} frames." + (f" Fitting took {counts.fitting} more." if counts.fitting else "")
        )
