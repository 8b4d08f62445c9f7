"""`hmrcompress finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    BatchSizeOption,
    BodyOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    MasksOption,
    MaskValueOption,
    OutOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    complain,
    masks_of_value,
    outputs_here,
    write_record,
)

DECODER_STAGES = ("vae", "decoder", "all")
STAGES = ("heal", "probe", *DECODER_STAGES)
IMAGES = 200_000
RATE = 3e-4
"""Of healing, where none is given."""


def _option(*names: str, help: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, **limits)


@takes_checkpoints("model", "teacher", "vae")
def finetune(
    model: Annotated[str, typer.Argument(help="A compressed folder; for the probe, any model.")],
    out: OutOption,
    stage: Annotated[str, typer.Option("--stage", help=f"{', '.join(STAGES[:-1])} or {STAGES[-1]}.")] = "heal",
    data: Annotated[str | None, _option("--data", help="Crops to train on (starter:train).")] = None,
    validation: Annotated[
        str | None,
        _option("--validation", "--val", help="Crops to validate on: by default starter:dev, or a part of --data."),
    ] = None,
    motions: Annotated[
        str, typer.Option("--motions", help="What the motion VAE learns: starter, or amass:DIR beside it.")
    ] = "starter",
    clips: Annotated[
        int | None, _option("--clips", min=1, help="Clips of --data for the decoder (500 of the starter).")
    ] = None,
    clip_frames: Annotated[
        int | None, _option("--clip-frames", min=1, help="Frames of a clip of starter:train (a window and a fifth).")
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="Size of the decoder: starter or paper.")] = "starter",
    objective: Annotated[
        str, typer.Option("--objective", "--decoder", help="Of the decoder: both, velocity, noise or regress.")
    ] = "both",
    readout: Annotated[
        bool | None,
        _option("--readout/--no-readout", help="The decoder starts from the network's own read-out (as the preset)."),
    ] = None,
    vae: Annotated[str | None, _option("--vae", help="--stage decoder: the model whose motion VAE to take.")] = None,
    steps: Annotated[int | None, _option("--steps", min=1, help="Steps of the VAE and of the decoder (2000).")] = None,
    masks: MasksOption = "data",
    mask_value: MaskValueOption = None,
    teacher: Annotated[
        str | None, _option("--teacher", help="The network to learn from: by default the one the model was made from.")
    ] = None,
    images: Annotated[
        int | None,
        _option("--images", min=1, help=f"Crops to see ({IMAGES}, for the probe 2048)."),
    ] = None,
    probe_layer: Annotated[
        int | None,
        _option("--probe-layer", min=0, help="Whose tokens the probe reads (the first of five that know the person)."),
    ] = None,
    max_minutes: Annotated[
        float | None,
        _option(
            "--max-minutes",
            min=0.01,
            help="Train each part this long; with --images or --steps, stop then and go on when run again.",
        ),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rank of the adapters.")] = 16,
    reach: Annotated[int, typer.Option("--reach", min=0, help="Layers adapted on both sides of a cut.")] = 1,
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights of the backbone, the matrices by Muon; no adapters.")
    ] = False,
    with_head: Annotated[bool, typer.Option("--with-head", help="Train the head too.")] = False,
    rate: Annotated[
        float | None, _option("--rate", min=0, help="Highest learning rate (0.0003, VAE 0.001, decoder 0.0001).")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that render starter:train.")] = 1,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (bfloat16 where it is fast), float32, bfloat16 or float16.")
    ] = "auto",
    batch_size: BatchSizeOption = 32,
    body: BodyOption = "starter",
    limit: Annotated[int | None, _option("--limit", min=1, help="At most this many frames of --data.")] = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a compressed model: on what the original predicts (heal), to find the person (probe), or give it a temporal
    decoder (vae, decoder, all).
    """
    if stage not in STAGES:
        raise UserError(f"{stage} is not a stage, expected one of {', '.join(STAGES)}", "--stage")
    masks = masks_of_value(masks, mask_value)
    if stage in DECODER_STAGES:
        from hmrcompress_cli.finetune_decoder import run

        given = {"stage": stage, "motions": motions, "validation": validation, "clips": clips, "masks": masks}
        given |= {"readout": readout, "vae": vae, "clip_frames": clip_frames}
        given |= {"preset": preset, "objective": objective, "steps": steps, "max_minutes": max_minutes, "rate": rate}
        given |= {"batch_size": batch_size, "body": body, "device": device, "workers": workers, "seed": seed}
        run(model, out, data, given | {"overwrite": outputs_here()}, json=json, quiet=quiet)
        return
    import hmrcompress as hc
    from hmrcompress.api import finetune as tuning
    from hmrcompress.runtime import fast_dtype, pick_device, pick_dtype, progress_bar
    from hmrcompress.training.finetune import PROBE_FRAMES, probe_macs
    from hmrcompress.training.heal import HealSettings
    from hmrcompress.training.loop import LoopSettings

    checkpoint = hc.load(model, seed=seed)
    where, printer = pick_device(device), Printer(quiet)
    if stage == "probe":
        with progress_bar(quiet=quiet) as progress:
            _, fit = tuning.fit_probe(
                checkpoint,
                out,
                data or tuning.TRAIN,
                validation=validation,
                masks=masks,
                images=images or PROBE_FRAMES,
                layer=probe_layer,
                limit=limit,
                workers=workers,
                batch_size=batch_size,
                body=body,
                device=device,
                seed=seed,
                overwrite=outputs_here(),
                progress=progress,
            )
        about = fit.to_json() | {"macs": probe_macs(checkpoint.network)}
        write_record(json, "finetune", {"probe": about}, device=where, seed=seed)
        printer.say(
            f"probe of layer {fit.probe.layer} fitted on {fit.frames} frames ({fit.labels}): finds "
            f"{fit.figures['recall']:.1%} of the person's tokens, {fit.figures['precision']:.1%} of what it finds is "
            f"person, AUC {fit.figures['auc']:.3f}"
        )
        printer.say(f"{out}")
        return
    taught = None if teacher is None else hc.load(teacher, seed=seed)
    made_for = checkpoint.plan.checkpoint if checkpoint.plan else None
    if taught and made_for and made_for.sha256 != taught.sha256:
        complain(f"warning: {teacher} is not the checkpoint that {model} was made from")
    if images is None and max_minutes is None:
        images = IMAGES
    with progress_bar(quiet=quiet) as progress:
        healed = tuning.heal(
            checkpoint,
            out,
            data or tuning.TRAIN,
            teacher=taught,
            validation=validation,
            masks=masks,
            images=images,
            batch_size=batch_size,
            settings=HealSettings(
                rank=rank,
                reach=reach,
                full=full,
                with_head=with_head,
                dtype=fast_dtype(where) if dtype == "auto" else pick_dtype(dtype),
                seed=seed,
            ),
            loop=LoopSettings(None, max_minutes=max_minutes, rate=rate or RATE),
            body=body,
            device=device,
            limit=limit,
            workers=workers,
            overwrite=outputs_here(),
            progress=progress,
            report=lambda record: printer.say(_line(record)),
        )
    figures = healed.to_json()
    write_record(json, "finetune", figures, device=where, seed=seed)
    _tell(figures["heal"], out, printer)


def _line(record: dict[str, Any]) -> str:
    """A validation in one line."""
    figures = record["val"]
    truth = f", {figures['mpjpe_mm']:.2f} mm to the truth" if "mpjpe_mm" in figures else ""
    return (
        f"{record['fraction']:4.0%}  {record['minutes']:5.1f} min  step {record['step']}: "
        f"{figures['to_teacher_mm']:.2f} mm to the teacher{truth}"
    )


def _tell(figures: dict[str, Any], out: Path, printer: Printer) -> None:
    before, after = figures["before"], figures["after"]
    if not figures["finished"]:
        printer.say(f"interrupted after {figures['images']} crops; the same command goes on from there")
        return
    line = f"{before['to_teacher_mm']:.2f} -> {after['to_teacher_mm']:.2f} mm from the teacher"
    if "mpjpe_mm" in after:
        line += (
            f", MPJPE {before['mpjpe_mm']:.2f} -> {after['mpjpe_mm']:.2f} mm (teacher {after['teacher_mpjpe_mm']:.2f})"
        )
    printer.say(f"{line}, on {figures['n_frames']} held-out frames after {figures['images']} crops")
    printer.say(f"{out}")
