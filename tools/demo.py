"""What the demo measured, beside what was recorded: `python tools/demo.py runs/demo runs/fast docs`.

The records are `demo_summary.json`, of the recipe, and `demo_frontier.json`, of `hmrcompress compress`; where one of
them is not there, or is of another network, that is said and this machine's rows stand alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmrcompress.report.table import NAMES
from hmrcompress_cli.common import Printer

SUMMARY, FRONTIER = "summary.json", "frontier.json"
Row = tuple[Any, ...]


def main(run: Path, fast: Path, records: Path) -> None:
    """Prints two tables: the stages of the recipe, and the points of the front."""
    printer = Printer()
    here, there = _read(run / SUMMARY), _read(records / "demo_summary.json")
    rows = stages(here or {}, there or {})
    printer.table("the recipe, here and as recorded", ("", "MPJPE", "recorded", "frames/s", "recorded"), rows)
    here, there = _read(fast / FRONTIER), _read(records / "demo_frontier.json")
    if here is None:
        return
    if there is not None and there["weights"]["sha256"] != here["weights"]["sha256"]:
        printer.say("the recorded front is another network's")
        there = None
    heads = ("compress", "increase, mm", "recorded", "frames/s", "recorded")
    printer.table("the front, here and as recorded", heads, points(here, there or {}))
    printer.say(here["sentence"])
    printer.say(f"{fast / 'report.html'} shows every point; {run / 'summary.md'} is fit for a pull request")


def stages(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Row]:
    """A row for every stage: errors and frames a second, here and as recorded."""
    return [
        (NAMES[stage], *_pair(here, there, "stages", stage, "mpjpe_mm"), *_pair(here, there, "bench", "fps", stage))
        for stage in NAMES
        if stage in here.get("stages", {})
    ]


def points(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Row]:
    """A row for every point of the front and for the choice: its increase, and frames a second as predicted, here and
    as recorded."""
    known = {each["name"]: each for each in there.get("points", [])}
    rows = []
    for point in sorted(here["points"], key=lambda each: -each["fps"]):
        chosen = point["name"] == here["chosen"]
        if not (chosen or point["on_front"]):
            continue
        other = known.get(point["name"])
        rows.append(
            (
                f"{'> ' if chosen else ''}{point['words']}",
                _increase(point),
                None if other is None else _increase(other),
                point["fps"],
                None if other is None else other["fps"],
            )
        )
    return rows


def _increase(point: Mapping[str, Any]) -> str:
    found = point.get("confirmed") or point["search"]
    return f"{found['increase_mm']:+.2f}"


def _pair(here: Mapping[str, Any], there: Mapping[str, Any], *names: str) -> tuple[Any, Any]:
    def at(values: Any) -> Any:
        for name in names:
            values = values.get(name) if isinstance(values, Mapping) else None
        return values

    return at(here), at(there)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
