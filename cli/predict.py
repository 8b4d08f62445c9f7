"""`hmrcompress predict`, and the options that `hmrcompress profile` shares with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    AS_PLANNED,
    BatchSizeOption,
    BodyOption,
    DebugOption,
    DeviceOption,
    FastDtypeOption,
    FastOption,
    JsonOption,
    LimitOption,
    OutOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    outputs_here,
    write_record,
)
from hmrcompress_cli.predict_many import run_many
from hmrcompress_cli.settings import takes_settings

ModelArgument = Annotated[str, typer.Argument(help="A compressed folder, starter, random:FAMILY or a checkpoint.")]
InputArgument = Annotated[Path, typer.Argument(help="A picture, a folder of pictures, or a video.")]
InputsArgument = Annotated[
    list[str],
    typer.Argument(help="A picture, a folder of pictures, a video, or camera:0; or many, also as 'patterns/**/*.mp4'."),
]
BoxesOption = Annotated[
    str, typer.Option("--boxes", help="full, auto (the packaged detector), onnx:FILE (YOLO), or a .json or .npz file.")
]
PersonMasksOption = Annotated[
    str, typer.Option("--masks", help="auto, self, files:DIR, onnx:FILE, none or a plug-in: where tokens are merged.")
]
StrideOption = Annotated[
    int | None,
    typer.Option("--stride", min=1, help="Run the network on every k-th frame.", show_default=AS_PLANNED.format("1")),
]
FpsOption = Annotated[
    float | None, typer.Option("--fps", help="A folder is a sequence of so many frames a second.", show_default=False)
]
FocalOption = Annotated[
    float | None,
    typer.Option("--focal", help="Focal length in pixels.", show_default="5000/256 of the longer side"),
]
NoOverlayOption = Annotated[bool, typer.Option("--no-overlay", help="Do not draw the overlay.")]
NoGlbOption = Annotated[bool, typer.Option("--no-glb", help="Do not write track.glb.")]

OnOption = Annotated[
    str | None,
    typer.Option("--on", help="ray[:ADDRESS]: inputs are spread over a Ray cluster.", show_default="this process"),
]


@takes_checkpoints("model")
@takes_settings("predict", flags={"fast": "fast"})
def predict(
    model: ModelArgument,
    sources: InputsArgument,
    out: OutOption,
    boxes: BoxesOption = "full",
    masks: PersonMasksOption = "auto",
    stride: StrideOption = None,
    fps: FpsOption = None,
    focal: FocalOption = None,
    no_overlay: NoOverlayOption = False,
    no_glb: NoGlbOption = False,
    on: OnOption = None,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: FastDtypeOption = None,
    fast: FastOption = None,
    batch_size: BatchSizeOption = 32,
    body: BodyOption = "starter",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    settings: Any = None,
) -> None:
    """Bodies in pictures and videos: SMPL parameters (npz), an overlay (mp4, png), an animated mesh (glb)."""
    from hmrcompress.api import predict as predicting
    from hmrcompress.pipeline.inputs import find_inputs
    from hmrcompress.runtime import pick_device, progress_bar

    asked = asked_of(locals())
    inputs = find_inputs(sources)
    if on is not None or not inputs.single:
        from hmrcompress.api.on_ray import cluster_of
        from hmrcompress.api.predict_job import PredictJob

        job = PredictJob(model, **asked)
        cluster = None if on is None else cluster_of(on, workers=settings.workers, cpus=settings.worker_cpus)
        run_many(job, inputs, out, on=cluster, json=json, quiet=quiet)
        return
    with progress_bar(quiet=quiet) as progress:
        summary = predicting.predict(model, inputs.paths[0], out, **asked, overwrite=outputs_here(), progress=progress)
    figures = {"predict": summary.to_json()}
    write_record(json, "predict", figures, device=pick_device(device), seed=seed)
    _show(Printer(quiet), figures["predict"], out)


def asked_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `api.predict` is to be given of the parameters of `predict` or `profile`, by name, `settings` among them."""
    from hmrcompress.pipeline.predict import PredictSettings
    from hmrcompress.recipe.chosen import asked_path, buckets_of
    from hmrcompress.runtime import pick_device, pick_fast_dtype

    settings, dtype = given["settings"], given["dtype"]
    wanted, int8 = (None, False) if dtype is None else pick_fast_dtype(dtype, pick_device(given["device"]))
    how = PredictSettings(
        **{name: given[name] for name in ("batch_size", "stride", "limit", "focal", "seed")},
        **{name: getattr(settings, name) for name in ("steps", "stride_detect", "bvh", "antialias", "overlapped")},
        overlay=not given["no_overlay"],
        glb=not given["no_glb"],
    )
    return {
        **{name: given[name] for name in ("boxes", "masks", "fps", "body", "device")},
        "box_scale": settings.box_scale,
        "buckets": buckets_of(settings),
        "settings": how,
        "dtype": wanted,
        "path": asked_path(settings, fast=given["fast"], int8=int8),
    }


def _show(printer: Printer, found: dict[str, Any], out: Path) -> None:
    people = f"{found['tracks']} {'person' if found['tracks'] == 1 else 'people'}"
    printer.say(
        f"{found['frames']} frames, {people}, {found['bodies']} bodies; "
        f"the network ran on {found['network_crops']} crops"
    )
    drawing = found["seconds"] - found["reading_seconds"]
    printer.say(
        f"read at {found['fps']:.1f} frames/s ({found['reading_seconds']:.2f} s), the network at work "
        f"{found['network_busy']:.0%} of that time; files and overlay took {drawing:.2f} s more"
    )
    stages = ", ".join(f"{name} {ms:.2f}" for name, ms in found["stages_ms_per_frame"].items())
    printer.say(f"ms of work a frame, stages at the same time: {stages}")
    printer.say(f"{out}: {', '.join(found['files'])}, summary.json")
