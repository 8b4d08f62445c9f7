"""`hmrcompress eval`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

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
    complain,
    write_record,
)

COLUMNS = ("stage", "MPJPE mm", "PA-MPJPE mm", "PVE mm", "Accel mm/frame²", "MPJPE, 95 %", "increase", "95 %")


def evaluate(
    model: Annotated[str, typer.Argument(help="A compressed folder, starter, random:FAMILY or a checkpoint.")],
    data: DataOption = "starter:test",
    masks: MasksOption = "data",
    protocol: Annotated[str, typer.Option("--protocol", help="Joints, pelvis and units by name.")] = "starter24",
    against: Annotated[
        str | None, typer.Option("--against", help="The checkpoint before compression.", show_default=False)
    ] = None,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    batch_size: BatchSizeOption = 32,
    body: BodyOption = "starter",
    limit: LimitOption = None,
    frames_per_clip: Annotated[
        int | None,
        typer.Option("--frames-per-clip", min=1, help="Frames taken evenly from each clip.", show_default=False),
    ] = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure a network beside the mean pose: MPJPE, PA-MPJPE, PVE and acceleration error, by stage."""
    from hmrcompress import api
    from hmrcompress.evaluation.evaluate import LEAK_WARNING
    from hmrcompress.evaluation.sizes import sizes
    from hmrcompress.runtime import pick_device, pick_dtype, progress_bar

    checkpoint = api.load(model, seed=seed)
    reference = None if against is None else api.load(against, seed=seed)
    if reference and checkpoint.plan and checkpoint.plan.checkpoint.sha256 != reference.sha256:
        complain(f"warning: {against} is not the checkpoint that {model} was made from")
    with progress_bar(quiet=quiet) as progress:
        result = api.evaluate(
            checkpoint,
            data,
            against=reference,
            masks=masks,
            protocol=protocol,
            body=body,
            limit=limit,
            frames_per_clip=frames_per_clip,
            batch_size=batch_size,
            device=device,
            dtype=pick_dtype(dtype),
            progress=progress,
        )
    figures = result.to_json(seed) | sizes(checkpoint.config, checkpoint.plan)
    write_record(json, "eval", figures, device=pick_device(device), seed=seed)
    if result.leak:
        complain(f"warning: {LEAK_WARNING}")
    printer = Printer(quiet)
    scores = next(iter(result.stages.values()))
    title = f"{scores.n_frames} frames of {scores.n_clips} clips of {data}, protocol {scores.protocol}"
    rows = [
        (name.replace("_", " "), each.mpjpe_mm, each.pa_mpjpe_mm, each.pve_mm, each.accel_mm_per_frame2, *sure)
        for name, each in result.stages.items()
        for sure in [_intervals(figures["stages"][name])]
    ]
    printer.table(title, COLUMNS, rows)


def _intervals(stage: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Columns that say how sure the MPJPE is: bootstrap intervals over clips."""
    own, above = stage.get("mpjpe_ci95_mm"), stage.get("mpjpe_increase_ci95_mm")
    return (
        None if own is None else f"{own[0]:.1f} to {own[1]:.1f}",
        f"{stage['mpjpe_increase_mm']:+.2f}" if "mpjpe_increase_mm" in stage else None,
        None if above is None else f"{above[0]:+.2f} to {above[1]:+.2f}",
    )
