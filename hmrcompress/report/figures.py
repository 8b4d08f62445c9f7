"""Figures in Markdown texts that are those of JSON files: written by a command, and held there by a test.

A text names where a figure comes from in a comment before it, which no reader of the page sees:

    <!--= docs/demo_summary.json stages.decoded.mpjpe_mm .1f -->100.2<!--=-->

Places are keys and numbers of list entries, joined by dots; `A / B`, `A - B` and `A / B - 1` work on two of them. A
whole table stands between two lines of its own:

    <!--table docs/demo_summary.json -->
    <!--/table-->

A record of `ablate` gives its table with what it was measured on, any other the table of its stages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.io.jsons import read_json
from hmrcompress.report.results import COMMAND as ABLATE
from hmrcompress.report.results import section
from hmrcompress.report.table import caption, stage_table

FIGURE = re.compile(r"<!--= (?P<file>\S+) (?P<place>[^>]+?) (?P<form>[-+,.%\w]+) -->(?P<value>[^<]*)<!--=-->")
TABLE = re.compile(r"<!--table (?P<file>\S+) -->\n(?P<text>.*?)<!--/table-->", re.DOTALL)
SUMS: dict[str, Callable[[float, float], float]] = {
    "/": lambda a, b: a / b,
    "-": lambda a, b: a - b,
}


def updated(text: str, folder: Path) -> str:
    """A text with every figure and table as its JSON file has it; names of files are relative to `folder`.

    Raises UserError naming the file and the place that is not there.
    """
    text = FIGURE.sub(lambda found: _figure(found, folder), text)
    return TABLE.sub(
        lambda found: f"<!--table {found['file']} -->\n{_table(folder / found['file'])}<!--/table-->", text
    )


def sources(text: str) -> list[str]:
    """The files that the figures and tables of a text come from, each once."""
    return sorted({found["file"] for pattern in (FIGURE, TABLE) for found in pattern.finditer(text)})


def _figure(found: re.Match[str], folder: Path) -> str:
    path = folder / found["file"]
    value = _value(read_json(path), found["place"], path)
    try:
        shown = format(value, found["form"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{found['place']} cannot be written as {found['form']} ({error})", path) from error
    return f"<!--= {found['file']} {found['place']} {found['form']} -->{shown}<!--=-->"


def _value(record: Any, place: str, path: Path) -> Any:
    """What stands at a place, or what `A / B`, `A - B` or `A / B - 1` come to."""
    words = place.split()
    value = _at(record, words[0], path)
    for sign, word in zip(words[1::2], words[2::2], strict=True):
        other = float(word) if re.fullmatch(r"\d+(\.\d+)?", word) else _at(record, word, path)
        value = SUMS[sign](value, other)
    return value


def _at(record: Any, place: str, path: Path) -> Any:
    for key in place.split("."):
        try:
            record = record[int(key)] if isinstance(record, list) else record[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise UserError(f"there is no {key} of {place}", path, "Measure it again, or mend the text") from error
    return record


def _table(path: Path) -> str:
    record = read_json(path)
    if record.get("command") == ABLATE:
        return "\n".join(section(record).splitlines()[2:]) + "\n"
    table = stage_table(record)
    rows = [[_cell(value) for value in row] for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|---|" + "---:|" * (len(table.columns) - 1)
    return "\n".join(["", lines[0], rule, *lines[1:], "", f"{caption(record)}.", ""])


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
