"""`hmrcompress report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmrcompress_cli.common import DebugOption, JsonOption, Printer, QuietOption, SeedOption, write_record


def report(
    results: Annotated[
        Path,
        typer.Argument(
            help="A folder that `hmrcompress ablate` or `hmrcompress bench --suite` wrote, or a page in .md."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.", show_default=False)] = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the tables of a folder of results as Markdown; every figure is the one in the JSON.

    Given a page instead, brings the figures and tables that name their JSON file in a comment up to date in it.
    """
    from hmrcompress.errors import UserError
    from hmrcompress.io.atomic import write_text
    from hmrcompress.report import benchmarks
    from hmrcompress.report.results import markdown, read_tables

    if results.suffix == ".md":
        _refresh(results, quiet)
        return
    if out is None or out.suffix != ".md":
        raise UserError(f"got {str(out)!r}, expected a name ending in .md", "--out")
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


def _refresh(page: Path, quiet: bool) -> None:
    from hmrcompress.io.atomic import write_text
    from hmrcompress.io.texts import decoded, read_bytes
    from hmrcompress.report.figures import FIGURE, TABLE, updated

    before = decoded(read_bytes(page))
    after = updated(before, page.parent)
    pairs = [zip(kind.finditer(before), kind.finditer(after), strict=True) for kind in (FIGURE, TABLE)]
    changed = sum(old[0] != new[0] for pair in pairs for old, new in pair)
    if after != before:
        write_text(page, after)
    told = f"{changed} figure{'s' if changed > 1 else ''} changed" if changed else "nothing changed"
    Printer(quiet).say(f"{page}: {told}")
