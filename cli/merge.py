"""`hmrcompress merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hmrcompress_cli.common import DebugOption, JsonOption, OutOption, Printer, QuietOption, SeedOption, write_record


def merge(
    model: Annotated[str, typer.Argument(help="starter, random:FAMILY, a checkpoint or a compressed folder.")],
    plan: Annotated[Path, typer.Option("--plan", help="The plan to apply (plan.yaml).", show_default=False)],
    out: OutOption,
    format: Annotated[Literal["native"], typer.Option("--format", help="Layout of what is written.")] = "native",
    force: Annotated[bool, typer.Option("--force", help="Apply a plan made for another checkpoint.")] = False,
    json: JsonOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Merge layers as a plan says, record its token merging, and write a compressed model."""
    from hmrcompress.api import load
    from hmrcompress.api import merge as merge_model
    from hmrcompress.merging.describe import describe

    merge_model(model, plan, out, force=force, seed=seed)
    found = describe(load(out, verify=False))
    write_record(json, "merge", found, seed=seed)
    layers, macs, parameters = found["layers"], found["macs"], found["params"]
    printer = Printer(quiet)
    printer.say(
        f"{layers['before']} -> {layers['after']} layers, "
        f"{parameters['before'] / 1e6:.1f} -> {parameters['after'] / 1e6:.1f} M parameters, "
        f"{macs['before'] / 1e9:.2f} -> {macs['after'] / 1e9:.2f} GMACs, "
        f"{found['tokens']['by_layer'][0]} -> {found['tokens']['by_layer'][-1]} tokens"
    )
    printer.say(f"{out}")
