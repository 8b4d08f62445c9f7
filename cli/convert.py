"""`hmrcompress convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hmrcompress_cli.common import DebugOption, JsonOption, OutOption, Printer, QuietOption, SeedOption, write_record
from hmrcompress_cli.inspect_ import HeadHeadsOption, HeadsOption


def convert(
    file: Annotated[
        str, typer.Argument(help="A checkpoint, random:FAMILY, a compressed folder, or a body file (pkl, npz).")
    ],
    out: OutOption,
    format: Annotated[
        Literal["native", "original", "half"],
        typer.Option(
            "--format",
            help="Our safetensors, a .ckpt (or .safetensors) for the original code base, or a whole model folder, "
            "decoder and probe included, in float16.",
        ),
    ] = "native",
    pad_identity: Annotated[
        bool,
        typer.Option(
            "--pad-identity/--no-pad-identity",
            help="With --format original: fill up to the original number of layers with identities.",
        ),
    ] = True,
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
        from hmrcompress.models.convert import convert_checkpoint, write_half
        from hmrcompress.models.original import write_original

        checkpoint = load(file, num_heads=num_heads, head_heads=head_heads, seed=seed)
        if format == "original":
            original = write_original(checkpoint, out, pad_identity=pad_identity)
            write_record(json, "convert", {"layers": original.layers, "padded": original.padded}, seed=seed)
            Printer(quiet).say(
                f"{original.weights}: {original.layers} layers; how to use it is in {original.card.name}"
            )
            return
        if format == "half":
            folder = write_half(checkpoint, out)
            sizes = {name: file.bytes for name, file in folder.config.files.items()}
            write_record(json, "convert", {"files": sizes}, seed=seed)
            Printer(quiet).say(f"{out}: {', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in sizes.items())}")
            return
        converted = convert_checkpoint(checkpoint, out)
        written, about, record = converted.weights, converted.record_path, converted.record
    write_record(json, "convert", record, seed=seed)
    Printer(quiet).say(f"{written}: {written.stat().st_size / 1e6:.1f} MB, described in {about.name}")
