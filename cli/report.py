"""`hmrcompress report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmrcompress_cli.common import (
    DebugOption,
    JsonOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    outputs_here,
    refuse_unused,
    write_record,
)

KIND = "report"


def report(
    results: Annotated[
        Path,
        typer.Argument(help="A folder that `run`, `compress`, `ablate` or `bench --suite` wrote, or a page in .md."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.", show_default=False)] = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the page of a run or a frontier (.html, one file that needs no network), or the tables of a folder of
    results (.md); every figure is the one in the JSON.

    Given a page instead, brings the figures and tables that name their JSON file in a comment up to date in it.
    """
    from hmrcompress.errors import UserError
    from hmrcompress.report import benchmarks
    from hmrcompress.report.results import markdown, read_tables

    outputs = outputs_here()
    if results.suffix == ".md":
        refuse_unused("has no effect on a page, which is brought up to date itself", "Leave it out", ("out",))
        write_record(json, "report", {"changed": _refresh(results, quiet)}, seed=seed)
        return
    if out is None or out.suffix not in (".md", ".html"):
        raise UserError(f"got {str(out)!r}, expected a name ending in .html or .md", "--out")
    if out.suffix == ".html":
        from hmrcompress.api.report import report_page

        found = report_page(results, out, overwrite=outputs)
        write_record(json, "report", {"page_of": found["command"]}, seed=seed)
        Printer(quiet).say(f"{out}: the page of {results}, one file that needs no network")
        return
    outputs.check_file(out, KIND)
    if runs := benchmarks.read_runs(results):
        outputs.write_text(out, benchmarks.markdown(runs), KIND)
        rows = sum(len(each["rows"]) for each in runs)
        write_record(json, "report", {"tables": len(runs), "rows": rows}, seed=seed)
        Printer(quiet).say(f"{out}: {len(runs)} runs, {rows} rows")
        return
    tables = read_tables(results)
    outputs.write_text(out, markdown(tables), KIND)
    rows = sum(len(table["rows"]) for table in tables)
    write_record(json, "report", {"tables": len(tables), "rows": rows}, seed=seed)
    Printer(quiet).say(f"{out}: {len(tables)} tables, {rows} rows")


def _refresh(page: Path, quiet: bool) -> int:
    """How many figures and tables of the page changed."""
    from hmrcompress.io.atomic import whole_file
    from hmrcompress.io.places import real
    from hmrcompress.io.texts import decoded, read_bytes
    from hmrcompress.report.figures import FIGURE, TABLE, updated

    before = decoded(read_bytes(page))
    after = updated(before, page.parent)
    pairs = [zip(kind.finditer(before), kind.finditer(after), strict=True) for kind in (FIGURE, TABLE)]
    changed = sum(old[0] != new[0] for pair in pairs for old, new in pair)
    if after != before:
        with whole_file(real(page)) as temporary:  # the one file of a user's that is changed: that is what it is for
            temporary.write_bytes(after.encode())
    told = f"{changed} figure{'s' if changed > 1 else ''} changed" if changed else "nothing changed"
    Printer(quiet).say(f"{page}: {told}")
    return changed
