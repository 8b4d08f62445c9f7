"""`hmrcompress merge`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from hmrcompress_cli import adapter
from hmrcompress_cli.adapter import for_adapters
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
    refuse_unused,
    write_record,
)

OF_OUR_NETWORKS = ("format", "pad_identity", "data", "masks", "decoder", "seed")
"""What saving an adapter's model does without."""
OF_FAMILIES = ("data", "masks", "decoder", "seed", "num_heads", "head_heads", "tokenizer")
"""What a file of other code does without."""


@takes_checkpoints("model")
def merge(
    model: Annotated[
        str, typer.Argument(help="starter, random:FAMILY, a checkpoint, a compressed folder, or adapter:FILE.py.")
    ],
    plan: Annotated[Path, typer.Option("--plan", help="The plan to apply (plan.yaml).", show_default=False)],
    out: OutOption,
    format: Annotated[
        Literal["native", "original"],
        typer.Option("--format", help="A folder of ours, or a checkpoint for the network's own code (any network's)."),
    ] = "native",
    pad_identity: Annotated[
        bool,
        typer.Option(
            "--pad-identity/--no-pad-identity",
            help="With --format original: fill up to the original number of layers with identities.",
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Apply a plan made for another checkpoint.")] = False,
    data: Annotated[
        str | None,
        typer.Option("--data", help="What lstsq is fitted on; by default the data of the search.", show_default=False),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option("--masks", help="Person masks for lstsq; by default those of the search.", show_default=False),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", help="Take over the temporal decoder of this model.", show_default=False),
    ] = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Merge layers as a plan says, record its token merging, and write a compressed model."""
    from hmrcompress.api.merge import is_of_other_code
    from hmrcompress.api.merge import merge as merge_model
    from hmrcompress.api.opening import load
    from hmrcompress.merging.describe import describe
    from hmrcompress.models.files.original import check_original, write_original

    if for_adapters(model, OF_OUR_NETWORKS):
        adapter.merge(model, plan, out, force=force, json=json, quiet=quiet)
        return
    if format == "original" and is_of_other_code(model, plan):
        refuse_unused("has no effect on a file of other code, of which nothing is run", "Leave it out", OF_FAMILIES)
        _merge_file(model, plan, out, pad_identity=pad_identity, force=force, json=json, quiet=quiet)
        return
    written, outputs = None, outputs_here()
    if format == "original":
        check_original(out, outputs)
    with _folder_for(out, native=format == "native") as folder:
        merge_model(
            model, plan, folder, force=force, seed=seed, data=data, masks=masks, decoder=decoder, overwrite=outputs
        )
        merged = load(folder, verify=False)
        found = describe(merged)
        if format == "original":
            written = write_original(merged, out, pad_identity=pad_identity, overwrite=outputs)
    write_record(json, "merge", found, seed=seed)
    layers, macs, parameters = found["layers"], found["macs"], found["params"]
    printer = Printer(quiet)
    printer.say(
        f"{layers['before']} -> {layers['after']} layers, "
        f"{parameters['before'] / 1e6:.1f} -> {parameters['after'] / 1e6:.1f} M parameters, "
        f"{macs['before'] / 1e9:.2f} -> {macs['after'] / 1e9:.2f} GMACs, "
        f"{found['tokens']['by_layer'][0]} -> {found['tokens']['by_layer'][-1]} tokens"
    )
    if written is None:
        printer.say(f"{out}")
    else:
        padding = f", {written.padded} of them identities" if written.padded else ""
        printer.say(f"{out}: {written.layers} layers{padding}; how to use it is in {written.card.name}")


def _merge_file(
    model: str, plan: Path, out: Path, *, pad_identity: bool, force: bool, json: Path | None, quiet: bool
) -> None:
    """A checkpoint of a network that only its own code runs."""
    from hmrcompress.api.opening import ModelFile
    from hmrcompress.live.files import merge_file

    asked = ModelFile.of(model)
    made = merge_file(
        asked.name,
        plan,
        out,
        weights=asked.weights,
        pad_identity=pad_identity,
        force=force,
        overwrite=outputs_here(),
    )
    layers = {"before": made.before, "after": made.layers - made.padded}
    write_record(json, "merge", {"layers": layers, "stack": made.stack, "left_out": list(made.left_out)})
    printer = Printer(quiet)
    rest = f"left out: {', '.join(made.left_out)}" if made.left_out else "all else as it was"
    printer.say(f"{made.stack}: {layers['before']} -> {layers['after']} layers; {rest}")
    padding = f", {made.padded} of them identities" if made.padded else ""
    printer.say(f"{out}: {made.layers} layers{padding}; how to use it is in {made.card.name}")


@contextmanager
def _folder_for(out: Path, *, native: bool) -> Iterator[Path]:
    """Where the compressed model goes: `out` itself, or a folder beside it that is gone when the block ends."""
    if native:
        yield out
        return
    from hmrcompress.io.atomic import room
    from hmrcompress.io.places import real

    with room(real(out)) as made:
        yield made / out.stem
