"""`hmrcompress export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    BodyOption,
    DataOption,
    DebugOption,
    JsonOption,
    MasksOption,
    OutOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    outputs_here,
    write_record,
)

OPENVINO_NAMES = {"float32": "f32", "bfloat16": "bf16"}
"""What OpenVINO calls what it was asked to compute in."""


@takes_checkpoints("model")
def export(
    model: Annotated[str, typer.Argument(help="A compressed folder, starter, random:FAMILY or a checkpoint.")],
    out: OutOption,
    format: Annotated[
        Literal["onnx", "openvino", "tensorrt", "coreml"],
        typer.Option("--format", help="What to write: a folder for that runtime, or with onnx a file NAME.onnx."),
    ] = "onnx",
    data: DataOption = "starter:val",
    masks: MasksOption = "data",
    body: BodyOption = "starter",
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Compared at batch 1 and this.")] = 5,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Crops to compare on.", show_default=False)
    ] = None,
    device: Annotated[
        Literal["auto", "cpu"], typer.Option("--device", help="Networks are exported on the CPU.")
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8"],
        typer.Option("--dtype", help="Of weights and arithmetic; in and out are float32. Not every runtime has each."),
    ] = "float32",
    budget_mm: Annotated[
        float, typer.Option("--budget-mm", help="What int8 may move joints by; layers that would move them more stay.")
    ] = 0.3,
    json: JsonOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a network for other run times, compared with torch, in millimetres, before it gets its name.

    A folder holds the runtime's files and all that predict, eval, bench and profile need to take it as MODEL, the
    temporal decoder too. With -o NAME.onnx it is an ONNX file, and the decoder goes to NAME.decoder.onnx.
    """
    if format != "onnx" or out.suffix != ".onnx":
        _folder(
            model,
            out,
            json,
            Printer(quiet),
            runtime=format,
            precision=dtype,
            budget_mm=budget_mm,
            data=data,
            masks=masks,
            body=body,
            batch_size=batch_size,
            limit=limit,
            seed=seed,
            overwrite=outputs_here(),
        )
        return
    if dtype not in ("float32", "float16"):
        raise UserError(
            f"got {dtype}, a file NAME.onnx is written in float32 or float16",
            "--dtype",
            "-o FOLDER, without .onnx, writes a folder for a runtime",
        )
    import hmrcompress as hc
    from hmrcompress.api import export
    from hmrcompress.exporting.onnx import check_files
    from hmrcompress.runtime import pick_dtype, progress_bar

    checkpoint, decoder, outputs = hc.load(model, seed=seed), None, outputs_here()
    decoder_out = out.with_name(f"{out.stem}.decoder.onnx")
    if checkpoint.decoder is not None:
        check_files(decoder_out, outputs)
    with progress_bar(quiet=quiet) as progress:
        made = hc.export_onnx(
            checkpoint,
            out,
            data=data,
            masks=masks,
            body=body,
            batch_size=batch_size,
            limit=limit,
            dtype=pick_dtype(dtype),
            seed=seed,
            overwrite=outputs,
            progress=progress,
        )
        if checkpoint.decoder is not None:
            decoder = export.export_decoder(checkpoint, decoder_out, overwrite=outputs)
    median = made.parity.median
    figures: dict[str, Any] = {
        "onnx_max_abs_diff": made.parity.max_abs_diff,
        "onnx_joints_mm": made.parity.joints_mm,
        "onnx_median_joints_mm": None if median is None else median.joints_mm,
    }
    if decoder is not None:
        figures["decoder"] = {
            "onnx_max_abs_diff": decoder.parity.max_abs_diff,
            "onnx_joints_mm": decoder.parity.joints_mm,
            "size_bytes": decoder.size_bytes,
        }
    write_record(json, "export", figures | {"size_bytes": made.size_bytes, "dtype": dtype}, seed=seed)
    sizes = " and ".join(map(str, made.parity.batch_sizes))
    printer = Printer(quiet)
    printer.say(
        f"differs from torch by {made.parity.max_abs_diff:.1e} at most, joints by {made.parity.joints_mm:.1e} mm, "
        f"at batch {sizes}"
    )
    if median is not None and dtype != "float32":
        printer.say(f"the median over crops is {median.max_abs_diff:.1e} and {median.joints_mm:.1e} mm")
    printer.say(
        f"{made.path}: {made.size_bytes / 1e6:.1f} MB, described in {made.contract.name}, "
        f"with examples in {made.golden.name}"
    )
    if decoder is not None:
        printer.say(
            f"{decoder.path}: {decoder.size_bytes / 1e6:.1f} MB, described in {decoder.contract.name}; differs from "
            f"torch by {decoder.parity.max_abs_diff:.1e} at most, joints by {decoder.parity.joints_mm:.1e} mm"
        )


def _folder(model: str, out: Path, json: Path | None, printer: Printer, **how: Any) -> None:
    """Writes the folder of a runtime, and says how close it is."""
    from hmrcompress.api import export
    from hmrcompress.runtime import progress_bar

    with progress_bar(quiet=printer.quiet) as progress:
        made = export.export(model, out, progress=progress, **how)
    config, parity = made.config, made.config.parity
    figures: dict[str, Any] = {
        "runtime": config.runtime,
        "dtype": config.precision,
        "size_bytes": made.size_bytes,
        "parity": parity,
        "prepared": config.prepared,
        "about": config.about,
    }
    if parity is not None and config.runtime == "onnx":
        figures |= {"onnx_max_abs_diff": parity["max_abs_diff"], "onnx_joints_mm": parity["joints_mm"]}
    write_record(json, "export", figures, seed=how["seed"])
    if config.prepared is not None:
        printer.say(f"prepared, not run: {config.prepared}")
    if parity is not None:
        sizes, median = " and ".join(map(str, parity["batch_sizes"])), parity["median"]
        printer.say(
            f"differs from torch by {parity['max_abs_diff']:.1e} at most, joints by {parity['joints_mm']:.1e} mm "
            f"(median over crops {median['joints_mm']:.1e} mm), at batch {sizes}, through {parity['through']}"
        )
        computed = config.about.get("computes_in")
        if computed is not None and computed != OPENVINO_NAMES.get(config.precision, computed):
            printer.say(f"this processor has no units for {config.precision}: OpenVINO computed in {computed}")
    printer.say(f"{out}: {config.main}, {made.size_bytes / 1e6:.1f} MB; README.md says how to use it")
    if (chosen := config.about.get("int8")) is not None:
        total, bits = len(chosen["layers"]) + len(chosen["kept"]), chosen["weight_bits"]
        printer.say(f"{len(chosen['layers'])} of {total} linear layers in 8 bits, weights in {bits}")
    for line in config.lines:
        printer.say(f"  {line}")
