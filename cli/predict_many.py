"""`hmrcompress predict` on many inputs: the run, its table, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmrcompress.errors import InputsFailed, some
from hmrcompress_cli.common import Printer, outputs_here, write_record

if TYPE_CHECKING:
    from hmrcompress.api.on_ray import Cluster
    from hmrcompress.api.predict_job import PredictJob
    from hmrcompress.pipeline.inputs import Inputs

COLUMNS = ("input", "result", "state", "frames", "people", "frames/s")
LONGEST_TABLE, LONGEST_NAME = 40, 60


def run_many(job: PredictJob, inputs: Inputs, out: Path, *, on: Cluster | None, json: Path | None, quiet: bool) -> None:
    """Does what is left of the inputs, prints one table, writes the record. InputsFailed where any of them did."""
    from hmrcompress.api.predict_many import predict_many
    from hmrcompress.runtime import pick_device, progress_bar

    with progress_bar(quiet=quiet) as progress:
        summary = predict_many(job, inputs.paths, out, on=on, overwrite=outputs_here(), progress=progress)
    found = summary.to_json()
    write_record(
        json,
        "predict",
        {"predict": found},
        device=job.device if on else pick_device(job.device),
        seed=job.settings.seed,
    )
    _show(Printer(quiet), found, out)
    if failed := [unit for unit in found["units"] if unit["state"] == "failed"]:
        what = f"{len(failed)} of {found['inputs']} inputs failed: {some([unit['reason'] for unit in failed])}"
        raise InputsFailed(f"{what.rstrip('.')}. Start it again to try them again")


def _show(printer: Printer, found: dict[str, Any], out: Path) -> None:
    units = found["units"]
    shown = units
    if len(units) > LONGEST_TABLE:
        shown = sorted(units, key=lambda unit: unit["state"] == "done")[:LONGEST_TABLE]
    printer.table("", COLUMNS, [_row(unit) for unit in shown])
    if len(shown) < len(units):
        printer.say(f"and {len(units) - len(shown)} more that are done")
    before = f", {found['done_before']} of them before" if found["done_before"] else ""
    printer.say(
        f"{found['done']} of {found['inputs']} inputs done{before}, {found['failed']} failed; "
        f"{found['frames']} frames, {found['bodies']} bodies; {found['seconds']:.1f} s"
    )
    printer.say(f"{out}: manifest.json, and a folder for each input")


def _row(unit: dict[str, Any]) -> tuple[Any, ...]:
    figures = unit.get("figures", {})
    return (
        _short(unit["input"]),
        _short(unit["folder"]),
        unit["state"],
        figures.get("frames"),
        figures.get("tracks"),
        figures.get("fps"),
    )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
