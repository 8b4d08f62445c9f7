"""The command `hmrcompress`. Every command lives in a module of its own that imports nothing heavy at module level."""

from __future__ import annotations

from typing import Annotated

import typer

from hmrcompress_cli import (
    ablate,
    adapter,
    bench,
    cka,
    compress,
    convert,
    doctor,
    evaluate,
    export,
    finetune,
    inspect_,
    merge,
    predict,
    profile_,
    report,
    run,
    search,
    starter,
)
from hmrcompress_cli.common import SafeCommand, SafeGroup
from hmrcompress_cli.help import example


def _print_version(value: bool) -> None:
    if value:
        from hmrcompress import __version__

        typer.echo(f"hmrcompress {__version__}")
        raise typer.Exit()


app = typer.Typer(
    name="hmrcompress",
    cls=SafeGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
COMMANDS = {
    "inspect": inspect_.inspect,
    "compress": compress.compress,
    "pick": compress.pick,
    "search": search.search,
    "cka": cka.cka,
    "merge": merge.merge,
    "finetune": finetune.finetune,
    "eval": evaluate.evaluate,
    "bench": bench.bench,
    "export": export.export,
    "convert": convert.convert,
    "predict": predict.predict,
    "profile": profile_.profile,
    "run": run.run,
    "ablate": ablate.ablate,
    "report": report.report,
    "doctor": doctor.doctor,
}
for _name, _command in COMMANDS.items():
    _first = (_command.__doc__ or "").partition("\n\n")[0]
    app.command(_name, cls=SafeCommand, short_help=" ".join(_first.split()), epilog=example(_name))(_command)
app.add_typer(adapter.app, name="adapter")
app.add_typer(starter.app, name="starter")


@app.callback(epilog="A first run: hmrcompress run starter")
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Compress pretrained transformer networks for human mesh recovery, and measure what it cost."""


def main() -> None:
    """Entry point of the console script."""
    app()
