"""What `hmrcompress report` makes of a folder that `run` or `compress` wrote: one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.frontier.summary import FRONTIER
from hmrcompress.io.jsons import read_json
from hmrcompress.io.outputs import OutputRule
from hmrcompress.report.frontier import frontier_page, pictures_beside
from hmrcompress.report.results import require_complete
from hmrcompress.report.run_page import run_page

KIND, SUMMARY = "report", "summary.json"
PAGES: dict[str, Callable[[Mapping[str, Any], Path], str]] = {
    "run": lambda found, _: run_page(found),
    "compress": lambda found, folder: frontier_page(found, pictures_beside(found, folder)),
}


def report_page(run: Path | str, out: Path | str, *, overwrite: bool | OutputRule = False) -> dict[str, Any]:
    """Writes one HTML file that needs no network: of a run of a recipe (its folder or `summary.json`) or of a frontier
    (the folder of `compress` or its `frontier.json`). Gives the record that it was made of. UserError where there is
    none, or it lacks what a page shows."""
    path = Path(run)
    if path.is_dir():
        found = [path / name for name in (SUMMARY, FRONTIER) if (path / name).is_file()]
        if not found:
            raise UserError(f"holds neither {SUMMARY} nor {FRONTIER}", path, "Give a folder of `run` or of `compress`")
        path = found[0]
    outputs = OutputRule.of(overwrite, path)
    outputs.check_file(out, KIND)
    record = read_json(path)
    make = PAGES.get(str(record.get("command"))) if isinstance(record, dict) else None
    if make is None:
        raise UserError("is no record that `hmrcompress run` or `compress` wrote", path)
    texts: list[str] = []
    require_complete(lambda values: texts.append(make(values, path.parent)), record, path)
    outputs.write_text(out, texts[0], KIND)
    return dict(record)
