"""`hmrcompress finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli import adapter
from hmrcompress_cli.adapter import PlanOption, for_adapters, plan_given
from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    BatchSizeOption,
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
    complain,
    outputs_here,
    refuse_unused,
    write_record,
)
from hmrcompress_cli.settings import takes_settings

DECODER_STAGES = ("vae", "decoder", "all")
STAGES = ("heal", "probe", *DECODER_STAGES)
IMAGES = 200_000
OF_DECODER = ("clips", "clip_frames", "preset", "readout", "steps", "rate", "workers")
"""Settings that the stages of the decoder take under the names that they have in recipes."""

OF_OUR_NETWORKS = (
    "data", "validation", "motions", "vae", "masks", "teacher", "images", "device", "dtype", "batch_size", "body",
    "limit",
)  # fmt: skip
KEYS_OF_OURS = (
    "data", "val", "motions", "preset", "decoder", "clips", "images", "clip_frames", "readout", "workers", "full",
    "with_head", "probe_layer",
)  # fmt: skip
"""Options and settings that healing by an adapter does without: its file says it, or it is not there."""
_DECODER_KEYS = ("motions", "preset", "decoder", "clips", "clip_frames", "readout", "steps")
_HEAL_KEYS = ("rank", "reach", "full", "with_head")
_OF_DECODER = (("teacher", "images", "limit", "dtype"), ("images", "probe_layer", *_HEAL_KEYS))
NOT_FOR = {
    "heal": (("motions", "vae"), ("probe_layer", *_DECODER_KEYS)),
    "probe": (("motions", "vae", "teacher", "max_minutes", "dtype"),
              ("max_minutes", "rate", *_HEAL_KEYS, *_DECODER_KEYS)),
    **dict.fromkeys(DECODER_STAGES, _OF_DECODER),
}  # fmt: skip
"""Options and settings that a stage does without."""


def _option(*names: str, help: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, **limits)


@takes_checkpoints("model", "teacher", "vae")
@takes_settings(
    "finetune",
    flags={
        "data": "data",
        "validation": "val",
        "motions": "motions",
        "images": "images",
        "max_minutes": "max_minutes",
    },
    without={"stages": "Give --stage; a recipe trains several one after the other"},
)
def finetune(
    model: Annotated[str, typer.Argument(help="A compressed folder; for the probe, any model; or adapter:FILE.py.")],
    out: OutOption,
    plan: PlanOption = None,
    stage: Annotated[str, typer.Option("--stage", help=f"{', '.join(STAGES[:-1])} or {STAGES[-1]}.")] = "heal",
    data: Annotated[str | None, _option("--data", help="Crops to train on (starter:train).")] = None,
    validation: Annotated[
        str | None,
        _option("--validation", "--val", help="Crops to validate on: by default starter:dev, or a part of --data."),
    ] = None,
    motions: Annotated[
        str, typer.Option("--motions", help="What the motion VAE learns: starter, or amass:DIR beside it.")
    ] = "starter",
    vae: Annotated[str | None, _option("--vae", help="--stage decoder: the model whose motion VAE to take.")] = None,
    masks: MasksOption = "data",
    teacher: Annotated[
        str | None, _option("--teacher", help="The network to learn from: by default the one the model was made from.")
    ] = None,
    images: Annotated[
        int | None,
        _option("--images", min=1, help=f"Crops to see ({IMAGES}, for the probe 2048)."),
    ] = None,
    max_minutes: Annotated[
        float | None,
        _option(
            "--max-minutes",
            min=0.01,
            help="Train each part this long; with --images or steps, stop then and go on when run again.",
        ),
    ] = None,
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
    settings: Any = None,
) -> None:
    """Train a compressed model: on what the original predicts (heal), to find the person (probe), or give it a temporal
    decoder (vae, decoder, all).
    """
    if stage not in STAGES:
        raise UserError(f"{stage} is not a stage, expected one of {', '.join(STAGES)}", "--stage")
    if for_adapters(model, OF_OUR_NETWORKS, settings, KEYS_OF_OURS):
        if stage != "heal":
            raise UserError(f"got {stage}, and networks of other code can be healed alone", "--stage")
        if settings.steps is None and max_minutes is None:
            raise UserError("healing an adapter needs an end", "--max-minutes", "Give it, or --set finetune.steps=N")
        options = {name: getattr(settings, name) for name in ("steps", "rate", "rank", "reach")}
        options = {name: value for name, value in options.items() if value is not None}
        options |= {"max_minutes": max_minutes, "seed": seed}
        adapter.heal(model, plan_given(plan), out, options, json=json, quiet=quiet)
        return
    if plan is not None:
        raise UserError("is for adapters; a compressed folder has its own plan", "--plan", "Leave it out")
    refuse_unused(f"has no effect on --stage {stage}", "Leave it out", NOT_FOR[stage][0], settings, NOT_FOR[stage][1])
    if stage in DECODER_STAGES:
        from hmrcompress_cli.finetune_decoder import run

        given = {"stage": stage, "motions": motions, "validation": validation, "masks": masks, "vae": vae}
        given |= {"objective": settings.decoder, "max_minutes": max_minutes}
        given |= {name: getattr(settings, name) for name in OF_DECODER}
        given |= {"batch_size": batch_size, "body": body, "device": device, "seed": seed}
        run(model, out, data, given | {"overwrite": outputs_here()}, json=json, quiet=quiet)
        return
    import hmrcompress as hc
    from hmrcompress.api import finetune as tuning
    from hmrcompress.recipe.chosen import heal_loop, heal_settings
    from hmrcompress.runtime import fast_dtype, pick_device, pick_dtype, progress_bar
    from hmrcompress.training.finetune import PROBE_FRAMES, probe_macs

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
                layer=settings.probe_layer,
                limit=limit,
                workers=settings.workers,
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
            settings=heal_settings(
                settings, dtype=fast_dtype(where) if dtype == "auto" else pick_dtype(dtype), seed=seed
            ),
            loop=heal_loop(settings, max_minutes),
            body=body,
            device=device,
            limit=limit,
            workers=settings.workers,
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
