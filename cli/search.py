"""`hmrcompress search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmrcompress.errors import UserError
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
    MaskValueOption,
    OverwriteOption,
    Printer,
    ProtocolOption,
    QuietOption,
    RegressorOption,
    SeedOption,
    masks_of_value,
    outputs_here,
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

if TYPE_CHECKING:
    from hmrcompress.searching.search import SearchResult


@takes_checkpoints("checkpoint")
def search(
    checkpoint: Annotated[str, typer.Argument(help="starter, random:FAMILY, or a checkpoint file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the plan.", show_default=False)],
    data: DataOption = "starter:calib",
    masks: MasksOption = "data",
    mask_value: MaskValueOption = None,
    tau: Annotated[float, typer.Option("--tau", help="Increase in MPJPE that a merge may cost, mm.")] = 0.1,
    frames_per_clip: Annotated[
        int, typer.Option("--frames-per-clip", min=1, help="Frames taken evenly from each clip.")
    ] = 80,
    layers: Annotated[
        int | None,
        typer.Option("--layers", help="Reach this number of layers, whatever it costs, instead of --tau."),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="How to search: eclm, or from its plan on beam or evolve.")
    ] = "eclm",
    beam_width: Annotated[int, typer.Option("--beam-width", min=1, help="Plans that beam keeps.")] = 4,
    evaluations: Annotated[
        int | None,
        typer.Option(
            "--evaluations", min=1, help="What evolve (by default 200) or beam (no bound) may evaluate beyond ECLM."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option("--target", help="Errors from the data's truth, or from the untouched teacher's vertices."),
    ] = "truth",
    merge_rule: Annotated[
        str, typer.Option("--merge-rule", help="How layers become one: eq4, keep_last, keep_first, mean, lstsq.")
    ] = "eq4",
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
    no_tokens: Annotated[bool, typer.Option("--no-tokens", help="A plan without token merging.")] = False,
    with_tokens: Annotated[bool, typer.Option("--with-tokens", help="Merge tokens already while searching.")] = False,
    as_printed: Annotated[
        bool, typer.Option("--as-printed", help="Lose the last open window, as the published algorithm does.")
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", help="Evaluations done; by default beside the plan.", show_default=False),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Run every evaluation from the images on; the plan is the same.")
    ] = False,
    cache_gb: Annotated[
        float | None,
        typer.Option("--cache-gb", min=0, help="Memory for the cache; the rest goes to the disk, beside the journal."),
    ] = None,
    cache_dtype: Annotated[
        str,
        typer.Option("--cache-dtype", help="float32, or bfloat16: half as large, decisions near the bound may change."),
    ] = "float32",
    no_early_rejection: Annotated[
        bool, typer.Option("--no-early-rejection", help="Measure every candidate to the end; the plan is the same.")
    ] = False,
    protocol: ProtocolOption = None,
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
) -> None:
    """Choose the layers to merge by what merging them costs in MPJPE; goes on where a stopped search ended.

    Beam and evolve start from ECLM's plan and are never worse on these data.
    """
    import hmrcompress as hc
    from hmrcompress.plan import KIND as PLAN
    from hmrcompress.runtime import pick_device, pick_dtype, progress_bar
    from hmrcompress.searching.journal import KIND as JOURNAL
    from hmrcompress.searching.search import SearchSettings
    from hmrcompress.searching.settings import as_cache_dtype, as_target

    outputs, kept = outputs_here(), _journal(out, journal)
    outputs.check_file(out, PLAN, "plan")
    outputs.check_file(kept, JOURNAL, "jsonl")
    tokens = token_settings(
        keep_tokens=keep_tokens,
        merge_per_layer=merge_per_layer,
        paper=paper,
        token_metric=token_metric,
        size_weighted=size_weighted,
        attention_bias=attention_bias,
        protect=protect,
        token_schedule=token_schedule,
        drop_background=drop_background,
        background_ring=background_ring,
        background_coarse=background_coarse,
    )
    settings = SearchSettings(
        tau_mm=tau,
        frames_per_clip=frames_per_clip,
        limit=limit,
        method=method,
        merge_rule=merge_rule,
        tokens=None if no_tokens else tokens,
        with_tokens=with_tokens,
        as_printed=as_printed,
        batch_size=batch_size,
        dtype=pick_dtype(dtype),
        seed=seed,
        layers=layers,
        beam_width=beam_width,
        evaluations=evaluations,
        target=as_target(target),
        cache=not no_cache,
        cache_gb=cache_gb,
        cache_dtype=as_cache_dtype(cache_dtype),
        reject_early=not no_early_rejection,
    )
    with progress_bar(quiet=quiet) as progress:
        result = hc.search(
            checkpoint,
            data,
            journal=kept,
            overwrite=outputs,
            settings=settings,
            masks=masks_of_value(masks, mask_value),
            protocol=protocol,
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
    printer.say(f"{out}")


def _journal(out: Path, journal: Path | None) -> Path:
    """The journal's name. UserError where there is none, since the plan goes to no file that it could lie beside."""
    from hmrcompress.io.places import is_stream

    if journal is None and is_stream(out):
        raise UserError("is no file that a journal could lie beside", out, "Give --journal FILE")
    return journal or out.with_suffix(".journal.jsonl")


def _tell(printer: Printer, result: SearchResult, figures: dict[str, Any]) -> None:
    """The steps of ECLM, what the method made of its plan, and what it all took."""
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
    start = result.start
    if record["method"] != "eclm" or record["layers"]:
        printer.say(
            f"ECLM: {start.layers} layers, {start.error_mm:.2f} mm after {result.start_evaluations} evaluations; "
            f"{record['method']}: {figures['layers']['after']} layers, {record['final_mpjpe_mm']:.2f} mm "
            f"after {record['evaluations']}."
        )
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
