"""`hmrcompress cka`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    OutOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    outputs_here,
    write_record,
)

KIND = "cka"


@takes_checkpoints("model")
def cka(
    model: Annotated[str, typer.Argument(help="starter, random:FAMILY, a checkpoint or a compressed folder.")],
    out: OutOption,
    data: DataOption = "starter:calib",
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Frame the layers that this plan merges.", show_default=False)
    ] = None,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    batch_size: BatchSizeOption = 32,
    body: BodyOption = "starter",
    limit: LimitOption = 256,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw how alike the layers of a network are (centred kernel alignment); the matrix goes beside it as .npz."""
    import numpy as np

    from hmrcompress.api.evaluate import layer_similarity
    from hmrcompress.api.opening import load
    from hmrcompress.io.npz import write_npz
    from hmrcompress.plan import Plan
    from hmrcompress.report.plots import check_picture, draw_similarity
    from hmrcompress.runtime import pick_device, pick_dtype, progress_bar

    outputs, matrix_file = outputs_here(), out.with_suffix(".npz")
    check_picture(out)
    outputs.check_file(out, KIND)
    outputs.check_file(matrix_file, KIND)
    checkpoint = load(model, seed=seed)
    groups = Plan.read(plan).groups if plan else ()
    if (planned := sum(map(len, groups))) != checkpoint.config.depth and plan:
        raise UserError(f"the plan is for {planned} layers, the model has {checkpoint.config.depth}", plan)
    with progress_bar(quiet=quiet) as progress:
        matrix = layer_similarity(
            checkpoint,
            data,
            frames=limit or 256,
            batch_size=batch_size,
            body=body,
            device=device,
            dtype=pick_dtype(dtype),
            seed=seed,
            progress=progress,
        )
    with outputs.file(out, KIND) as temporary:
        draw_similarity(matrix, temporary, title=f"{model} on {data}", groups=groups)
    with outputs.file(matrix_file, KIND) as temporary:
        write_npz(temporary, {"cka": matrix})
    neighbours = np.diagonal(matrix, offset=1)[1:]
    closest = int(neighbours.argmax())
    write_record(json, "cka", {"cka": matrix.tolist()}, seed=seed, device=pick_device(device))
    printer = Printer(quiet)
    printer.say(
        f"{len(matrix) - 1} layers; neighbours are {neighbours.min():.3f} to {neighbours.max():.3f} alike, "
        f"most blocks {closest} and {closest + 1}"
    )
    printer.say(f"{out}, matrix in {out.with_suffix('.npz').name}")
