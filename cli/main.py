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
from hmrcompress_cli.common import SafeGroup

app = typer.Typer(
    name="hmrcompress",
    help="Compress pretrained transformer networks for human mesh recovery, and measure what it cost.",
    cls=SafeGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("inspect")(inspect_.inspect)
app.command("search")(search.search)
app.command("cka")(cka.cka)
app.command("merge")(merge.merge)
app.command("finetune")(finetune.finetune)
app.command("eval")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("export")(export.export)
app.command("convert")(convert.convert)
app.command("predict")(predict.predict)
app.command("profile")(profile_.profile)
app.command("run")(run.run)
app.command("ablate")(ablate.ablate)
app.command("report")(report.report)
app.add_typer(starter.app, name="starter")


def main() -> None:
    """Entry point of the console script."""
    app()
