"""`hmrcompress convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    DebugOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    outputs_here,
    write_record,
)

if TYPE_CHECKING:
    from hmrcompress.api.opening import ModelFile
    from hmrcompress.io.checkpoints import StateFile
    from hmrcompress.io.open_formats import Converted
    from hmrcompress.io.outputs import OutputRule


@takes_checkpoints("file", grid=True)
def convert(
    file: Annotated[
        str,
        typer.Argument(help="A checkpoint, random:FAMILY, a compressed folder, a body (pkl, npz), a data set's pkl."),
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
    json: JsonOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a checkpoint into safetensors, or a pickle of a body or of 3DPW or EMDB into npz, with JSON beside it.

    Nothing in a pickle is executed.
    """
    outputs = outputs_here()
    if Path(str(file)).suffix in (".pkl", ".npz") or (format == "native" and _of_no_family(file)):
        made = _converted(file, out, outputs)
        written, about, record = made.path, made.record_path, made.record
    else:
        from hmrcompress.api.opening import load
        from hmrcompress.models.files.convert import convert_checkpoint, write_half
        from hmrcompress.models.files.original import write_original

        checkpoint = load(file, seed=seed)
        if format == "original":
            original = write_original(checkpoint, out, pad_identity=pad_identity, overwrite=outputs)
            write_record(json, "convert", {"layers": original.layers, "padded": original.padded}, seed=seed)
            Printer(quiet).say(
                f"{original.weights}: {original.layers} layers; how to use it is in {original.card.name}"
            )
            return
        if format == "half":
            folder = write_half(checkpoint, out, overwrite=outputs)
            sizes = {name: file.bytes for name, file in folder.config.files.items()}
            write_record(json, "convert", {"files": sizes}, seed=seed)
            Printer(quiet).say(f"{out}: {', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in sizes.items())}")
            return
        converted = convert_checkpoint(checkpoint, out, overwrite=outputs)
        written, about, record = converted.weights, converted.record_path, converted.record
    write_record(json, "convert", record, seed=seed)
    Printer(quiet).say(f"{written}: {written.stat().st_size / 1e6:.1f} MB, described in {about.name}")


def _of_no_family(file: str | ModelFile) -> bool:
    """Whether this is a checkpoint file whose keys belong to no known network; its tensors are taken as they are."""
    if not Path(str(file)).is_file():
        return False
    from hmrcompress.models.families.registry import recognise

    try:
        recognise(_weights(file).tensors, file)
    except UserError:
        return True
    return False


def _weights(file: str | ModelFile) -> StateFile:
    from hmrcompress.api.opening import ModelFile
    from hmrcompress.io.checkpoints import open_state_file
    from hmrcompress.models.families.registry import MARKS

    asked = ModelFile.of(file)
    return open_state_file(asked.name, *MARKS, weights=asked.weights)


def _converted(file: str | ModelFile, out: Path, outputs: OutputRule) -> Converted:
    from hmrcompress.body.pickled import convert_body, is_body
    from hmrcompress.io.open_formats import convert_values, convert_weights

    path = Path(str(file))
    if path.suffix == ".npz" or (path.suffix == ".pkl" and is_body(path)):
        return convert_body(path, out, overwrite=outputs)
    if path.suffix == ".pkl":
        return convert_values(path, out, overwrite=outputs)
    return convert_weights(_weights(file), out, overwrite=outputs)
