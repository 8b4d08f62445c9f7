"""`hmrcompress convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmrcompress_cli.common import DebugOption, JsonOption, OutOption, Printer, QuietOption, SeedOption, write_record
from hmrcompress_cli.inspect_ import HeadHeadsOption, HeadsOption


def convert(
    file: Annotated[str, typer.Argument(help="A checkpoint, random:FAMILY, or a body file (pkl, npz).")],
    out: OutOption,
    num_heads: HeadsOption = None,
    head_heads: HeadHeadsOption = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a checkpoint into safetensors, or a body file into npz, with JSON beside it; pickles are not executed."""
    if Path(file).suffix in (".pkl", ".npz"):
        from hmrcompress.body.pickled import convert_body

        made = convert_body(file, out)
        written, about, record = made.path, made.record_path, made.record
    else:
        from hmrcompress.api import load
        from hmrcompress.models.convert import convert_checkpoint

        checkpoint = load(file, num_heads=num_heads, head_heads=head_heads, seed=seed)
        converted = convert_checkpoint(checkpoint, out)
        written, about, record = converted.weights, converted.record_path, converted.record
    write_record(json, "convert", record, seed=seed)
    Printer(quiet).say(f"{written}: {written.stat().st_size / 1e6:.1f} MB, described in {about.name}")
