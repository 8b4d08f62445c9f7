"""`hmrcompress eval`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    AS_PLANNED,
    BatchSizeOption,
    BodyOption,
    DataOption,
    DebugOption,
    DeviceOption,
    FastDtypeOption,
    FastOption,
    JsonOption,
    LimitOption,
    MasksOption,
    OverwriteOption,
    Printer,
    ProtocolOption,
    QuietOption,
    RegressorOption,
    SeedOption,
    complain,
    write_record,
)
from hmrcompress_cli.settings import takes_settings

COLUMNS = (
    "stage",
    "MPJPE mm",
    "PA-MPJPE mm",
    "PVE mm",
    "Accel mm/frame²",
    "95 %",
    "increase",
    "95 %",
    "distance",
    "95th",
)


@takes_checkpoints("model", "against")
@takes_settings(
    "eval",
    flags={
        "protocol": "protocol",
        "limit": "limit",
        "stride": "stride",
        "frames_per_clip": "frames_per_clip",
        "fast": "fast",
    },
)
def evaluate(
    model: Annotated[str, typer.Argument(help="A compressed folder, starter, random:FAMILY or a checkpoint.")],
    data: DataOption = "starter:val",
    masks: MasksOption = "data",
    protocol: ProtocolOption = None,
    regressor: RegressorOption = None,
    against: Annotated[
        str | None, typer.Option("--against", help="The checkpoint before compression.", show_default=False)
    ] = None,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: FastDtypeOption = None,
    fast: FastOption = None,
    batch_size: BatchSizeOption = 32,
    body: BodyOption = "starter",
    limit: LimitOption = None,
    frames_per_clip: Annotated[
        int | None,
        typer.Option("--frames-per-clip", min=1, help="Frames taken evenly from each clip.", show_default=False),
    ] = None,
    stride: Annotated[
        str | None,
        typer.Option(
            "--stride",
            help="Decode clips from every k-th frame; several, such as 1,2,4, for a table.",
            show_default=AS_PLANNED.format("1"),
        ),
    ] = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    settings: Any = None,
) -> None:
    """Measure a network beside the mean pose: MPJPE, PA-MPJPE, PVE and acceleration error, by stage.

    A model that holds a temporal decoder is measured with it, too. Strides and filters need none: in between, poses are
    then interpolated.
    """
    import hmrcompress as hc
    from hmrcompress.api import opening_decoder
    from hmrcompress.evaluation.sizes import sizes
    from hmrcompress.io.together import leads
    from hmrcompress.recipe.chosen import asked_path, buckets_of, sequence_settings
    from hmrcompress.runtime import pick_device, pick_fast_dtype, progress_bar
    from hmrcompress.timing.bench import parse_sizes

    wanted, int8 = (None, False) if dtype is None else pick_fast_dtype(dtype, pick_device(device))
    checkpoint = hc.load(model, seed=seed, exported=True)
    if settings.steps > 1:
        opening_decoder.decoder_for(checkpoint)
    sequences = sequence_settings(settings, () if stride is None else parse_sizes(stride, "--stride"), seed=seed)
    reference = None if against is None else hc.load(against, seed=seed)
    with progress_bar(quiet=quiet) as progress:
        result = hc.evaluate(
            checkpoint,
            data,
            against=reference,
            masks=masks,
            protocol=protocol,
            regressor=regressor,
            body=body,
            limit=limit,
            frames_per_clip=frames_per_clip,
            batch_size=batch_size,
            device=device,
            dtype=wanted,
            path=asked_path(settings, fast=fast, int8=int8),
            sequences=sequences,
            buckets=buckets_of(settings),
            seed=seed,
            progress=progress,
        )
    if not leads():
        return
    figures = result.to_json(seed) | sizes(checkpoint.config, checkpoint.plan)
    write_record(json, "eval", figures, device=pick_device(device), seed=seed)
    if result.leak:
        complain(f"warning: {result.leak_warning}")
    printer = Printer(quiet)
    scores = next(iter(result.stages.values()))
    title = f"{scores.n_frames} frames of {scores.n_clips} clips of {data}, protocol {scores.protocol}"
    rows = [
        (name.replace("_", " "), each.mpjpe_mm, each.pa_mpjpe_mm, each.pve_mm, each.accel_mm_per_frame2, *sure)
        for name, each in result.stages.items()
        for sure in [_intervals(figures["stages"][name])]
    ]
    printer.table(title, COLUMNS, rows)
    if adaptive := result.tokens.get("adaptive"):
        printer.say(_buckets(adaptive))
    if result.sequence:
        printer.say(_how(result.sequence, checkpoint.decoder is not None))


def _how(sequence: dict[str, Any], decodes: bool) -> str:
    """How whole clips were looked at, in one line."""
    parts = [f"clips from every {_ordinals(sequence['strides'])} frame"]
    if decodes:
        parts.append(f"{sequence['steps']} denoising step{'s' if sequence['steps'] > 1 else ''}")
    if sequence["lookahead"] is not None:
        parts.append(f"{sequence['lookahead']} frames late ({sequence['latency_ms']:.0f} ms)")
    if sequence["median_shape"]:
        parts.append("one shape a clip")
    return ", ".join(parts)


def _buckets(found: dict[str, Any]) -> str:
    """What adaptive tokens came to, in one line."""
    frames = ", ".join(f"{count} at {keep}" for keep, count in found["buckets"].items())
    lost = found.get("forced_person_merges_per_frame")
    forced = f", {lost:g} person tokens lost a frame" if lost is not None else ""
    return f"adaptive tokens: {frames}; mean {found['mean_kept']:.1f}, {found['mean_macs'] / 1e9:.4g} GMACs{forced}"


def _ordinals(strides: list[int]) -> str:
    names = {1: "single", 2: "2nd", 3: "3rd"}
    return ", ".join(names.get(stride, f"{stride}th") for stride in strides)


def _intervals(stage: dict[str, Any]) -> tuple[str | None, ...]:
    """Columns that say how sure the MPJPE is (bootstrap intervals over clips), and how far the joints are from those of
    the baseline (mean and 95th percentile over frames, mm)."""
    own, above = stage.get("mpjpe_ci95_mm"), stage.get("mpjpe_increase_ci95_mm")
    return (
        None if own is None else f"{own[0]:.1f} to {own[1]:.1f}",
        f"{stage['mpjpe_increase_mm']:+.2f}" if "mpjpe_increase_mm" in stage else None,
        None if above is None else f"{above[0]:+.2f} to {above[1]:+.2f}",
        *(f"{stage[name]:.1f}" if name in stage else None for name in ("distance_mm", "distance_p95_mm")),
    )
