"""The command `hmrcompress`. Every command lives in a module of its own that imports nothing heavy at module level."""

from __future__ import annotations

import typer

from hmrcompress_cli import (
    ablate,
    bench,
    cka,
    convert,
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

app = typer.Typer(
    name="hmrcompress",
    help="Compress pretrained transformer networks for human mesh recovery, and measure what it cost.",
    cls=SafeGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS = {
    "inspect": inspect_.inspect,
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
}
for _name, _command in COMMANDS.items():
    app.command(_name, cls=SafeCommand)(_command)
app.add_typer(starter.app, name="starter")


def main() -> None:
    """Entry point of the console script."""
    app()
