"""Figures in texts are those of the JSON files that they name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hmrcompress.errors import UserError
from hmrcompress.report.figures import sources, updated
from hmrcompress_cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("hmrcompress/assets/*/*.md"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    row = {"mpjpe_mm": 100.25, "pa_mpjpe_mm": 70.5, "n_frames": 5, "n_clips": 2, "protocol": "starter24"}
    record = {
        "schema": 1,
        "command": "run",
        "stages": {"baseline": row, "decoded": row | {"mpjpe_mm": 80.2}},
        "rows": [{"ms": 4}, {"ms": 10}],
    }
    (tmp_path / "r.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize(
    ("place", "form", "shown"),
    [
        ("stages.decoded.mpjpe_mm", ".1f", "80.2"),
        ("rows.1.ms", "d", "10"),
        ("rows.1.ms / rows.0.ms", ".2f", "2.50"),
        ("stages.decoded.mpjpe_mm - stages.baseline.mpjpe_mm", "+.2f", "-20.05"),
        ("stages.decoded.mpjpe_mm / stages.baseline.mpjpe_mm - 1", ".0%", "-20%"),
    ],
)
def test_a_figure_is_that_of_its_file(folder: Path, place: str, form: str, shown: str) -> None:
    text = f"It has <!--= r.json {place} {form} -->0<!--=--> mm, 5 of them."
    assert updated(text, folder) == f"It has <!--= r.json {place} {form} -->{shown}<!--=--> mm, 5 of them."
    assert updated(updated(text, folder), folder) == updated(text, folder)
    assert sources(text) == ["r.json"]


def test_a_table_is_that_of_its_file(folder: Path) -> None:
    found = updated("before\n<!--table r.json -->\n| old |\n<!--/table-->\nafter\n", folder)
    assert "| baseline | 100.2 | 70.5 | – |" in found and "| temporal decoder | 80.2 |" in found
    assert "old" not in found and found.startswith("before\n") and found.endswith("\nafter\n")
    assert "5 frames of 2 clips, protocol starter24, errors in mm." in found
    assert updated(found, folder) == found


@pytest.mark.parametrize("place", ["stages.other.mpjpe_mm", "rows.2.ms", "stages.decoded", "rows.x"])
def test_what_is_not_there_is_told(folder: Path, place: str) -> None:
    with pytest.raises(UserError, match="r.json"):
        updated(f"<!--= r.json {place} .1f -->0<!--=-->", folder)


def test_the_command_brings_a_page_up_to_date(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text("<!--= r.json rows.0.ms d -->9<!--=--> ms\n")
    done = CliRunner().invoke(app, ["report", str(page)])
    assert done.exit_code == 0, done.output
    assert page.read_text() == "<!--= r.json rows.0.ms d -->4<!--=--> ms\n"
    assert "1 figure changed" in done.stdout
    figures = folder / "figures.json"
    again = CliRunner().invoke(app, ["report", str(page), "--json", str(figures)])
    assert "nothing changed" in again.stdout and json.loads(figures.read_text())["changed"] == 0


def test_a_page_goes_nowhere_else(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text("<!--= r.json rows.0.ms d -->9<!--=--> ms\n")
    done = CliRunner().invoke(app, ["report", str(page), "-o", str(folder / "other.md")])
    assert done.exit_code == 2 and "--out: has no effect on a page" in done.output
    assert "9" in page.read_text() and not (folder / "other.md").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_figures_of_the_documentation_are_measured(page: Path) -> None:
    text = page.read_text()
    assert updated(text, page.parent) == text, f"`hmrcompress report {page.relative_to(ROOT)}` mends it"
    assert text.count("<!--=") == 2 * len(re.findall(r"<!--= [^>]+? -->[^<]*<!--=-->", text))
