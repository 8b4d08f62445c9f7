"""What `make demo` prints: its rows beside those that were recorded."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from test_frontier_page import FOUND
from test_report_page import SUMMARY

from hmrcompress.io.figures import json_text

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "demo.py"), run_name="tool")


def test_rows_stand_beside_recorded_ones() -> None:
    recorded = {"stages": {"merged": {"mpjpe_mm": 99.5}}, "bench": {"fps": {"merged": 70.0}}}
    rows = TOOL["stages"](SUMMARY, recorded)
    assert rows == [
        ("mean pose", 240.0, None, None, None), ("baseline", 100.0, None, 40.0, None),
        ("merged layers", 101.0, 99.5, 55.0, 70.0),
    ]  # fmt: skip
    front = TOOL["points"](FOUND, {"points": [FOUND["points"][1] | {"fps": 80.0}]})
    assert [row[0].partition(" <")[0] for row in front] == ["9 of 12 layers", "> 10 of 12 layers", "12 of 12 layers"]
    assert front[1][1:] == ("+0.60", "+0.60", 75, 80.0) and front[0][2] is None


def test_it_prints_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(name: str, value: Any) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json_text(value))
        return (tmp_path / name).parent

    run, fast = write("run/summary.json", SUMMARY), write("fast/frontier.json", FOUND)
    docs = write("docs/demo_summary.json", SUMMARY)
    TOOL["main"](run, fast, docs)
    said = capsys.readouterr().out
    assert "merged layers" in said and "the front, here and as recorded" in said and "Asked for 1 mm at most." in said
    write("docs/demo_frontier.json", FOUND | {"weights": {"name": "starter", "sha256": "1" * 64}})
    TOOL["main"](run, fast, docs)
    assert "the recorded front is another network's" in capsys.readouterr().out
    TOOL["main"](run, tmp_path / "none", docs)
    assert "the front" not in capsys.readouterr().out
