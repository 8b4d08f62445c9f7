"""`hmrcompress report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmrcompress_cli.common import DebugOption, JsonOption, OutOption, Printer, QuietOption, SeedOption, write_record


def report(
    results: Annotated[
        Path, typer.Argument(help="A folder that `hmrcompress ablate` or `hmrcompress bench --suite` wrote.")
    ],
    out: OutOption,
    json: JsonOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the tables of a folder of results as Markdown; every figure is the one in the JSON."""
    from hmrcompress.errors import UserError
    from hmrcompress.io.atomic import write_text
    from hmrcompress.report import benchmarks
    from hmrcompress.report.results import markdown, read_tables

    if out.suffix != ".md":
        raise UserError(f"got a name ending in {out.suffix!r}, expected .md", out)
    if runs := benchmarks.read_runs(results):
        write_text(out, benchmarks.markdown(runs))
        rows = sum(len(each["rows"]) for each in runs)
        write_record(json, "report", {"tables": len(runs), "rows": rows}, seed=seed)
        Printer(quiet).say(f"{out}: {len(runs)} runs, {rows} rows")
        return
    tables = read_tables(results)
    write_text(out, markdown(tables))
    rows = sum(len(table["rows"]) for table in tables)
    write_record(json, "report", {"tables": len(tables), "rows": rows}, seed=seed)
    Printer(quiet).say(f"{out}: {len(tables)} tables, {rows} rows")
