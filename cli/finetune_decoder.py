"""The stages of `hmrcompress finetune` that give a model a temporal decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmrcompress_cli.common import Printer, write_record

PARTS = {"vae": "motion VAE", "decoder": "decoder"}


def run(model: str, out: Path, data: str | None, options: dict[str, Any], *, json: Path | None, quiet: bool) -> None:
    """Trains, tells of every validation in a line, and in the end what was written where. options: those of
    `hmrcompress.fit_decoder`. Of several processes only the first one speaks."""
    from hmrcompress.api import finetune as tuning
    from hmrcompress.io.together import process_of
    from hmrcompress.runtime import pick_device, progress_bar

    leads = process_of()[0] == 0
    printer = Printer(quiet or not leads)
    with progress_bar(quiet=quiet or not leads) as progress:
        fitted = tuning.fit_decoder(
            model,
            out,
            data or tuning.TRAIN,
            **options,
            progress=progress,
            report=lambda record: printer.say(_line(record)),
        )
    figures = fitted.to_json()
    if leads:
        write_record(json, "finetune", figures, device=pick_device(options["device"]), seed=options["seed"])
    for name, part in figures.items():
        state = "" if part["finished"] else ", interrupted; the same command goes on from there"
        printer.say(f"{PARTS[name]}: {_said(part['after'])} after {part['steps']} steps{state}")
    if fitted.folder is not None:
        printer.say(f"{out}")


def _line(record: dict[str, Any]) -> str:
    """A validation in one line."""
    where = f"{record['fraction']:4.0%}  {record['minutes']:5.1f} min  {PARTS[record['part']]}, step {record['step']}"
    return f"{where}: {_said(record['val'])}"


def _said(figures: dict[str, float]) -> str:
    if "linear_mpjpe_mm" not in figures:
        return f"reconstructs held-out motions to {figures['mpjpe_mm']:.2f} mm"
    accel = f", Accel {figures['accel_mm_per_frame2']:.2f} mm/frame²" if "accel_mm_per_frame2" in figures else ""
    return (
        f"MPJPE {figures['mpjpe_mm']:.2f} mm, every 4th frame {figures['mpjpe_stride4_mm']:.2f} mm{accel} "
        f"(read-out {figures['linear_mpjpe_mm']:.2f} mm)"
    )
