"""`report RUN -o report.html`: the page of a run of a recipe or of a frontier, and whose weights a model's are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_frontier_page import FOUND, browsed
from typer.testing import CliRunner, Result

from hmrcompress.io.figures import json_text
from hmrcompress.report.card import card_section
from hmrcompress.report.run_page import run_page
from hmrcompress_cli.main import app

SHA = "ab" * 32


def stage(mm: float) -> dict[str, Any]:
    return {"mpjpe_mm": mm, "pa_mpjpe_mm": mm / 2, "pve_mm": mm + 9, "accel_mm_per_frame2": 3.0, "n_frames": 24,
            "n_clips": 2, "protocol": "starter24", "mpjpe_ci95_mm": [mm - 4, mm + 5]}  # fmt: skip


CHANGE = {"before": 100.0, "now": 101.0, "change": 1.0, "ci95": [0.5, 1.5]}
SUMMARY: dict[str, Any] = {
    "schema": 1, "command": "run", "recipe": {"model": "a <b>.ckpt"}, "weights": {"name": "a <b>.ckpt", "sha256": SHA},
    "data": {"name": "starter", "split": "val"}, "versions": {"torch": "2"},
    "device": "cpu", "cpu": "a CPU", "commit": "c" * 40,
    "stages": {"mean_pose": stage(240.0), "baseline": stage(100.0), "merged": stage(101.0)},
    "clips": {"ids": [3, 7], "stages": {name: {"mpjpe_mm": mm} for name, mm in (("baseline", [90.0, 110.0]),
                                                                               ("merged", [95.0, 108.0]))}},
    "bench": {"fps": {"baseline": 40.0, "merged": 55.0}, "threads": 2, "batch_size": 8},
    "seconds": {"eval": 3.0, "bench": 2.0}, "leak": True,
    "gates": [{"name": "mpjpe_mm", "max": 1.0, "value": 101.0, "passed": False}],
    "change": {"of": {"sha256": SHA}, "stages": {"merged": {"mpjpe_mm": CHANGE}}, "figures": {}},
}  # fmt: skip
PLOTS = ("errors", "speed", "clips", "seconds")


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def drawn(page: str, name: str) -> list[dict[str, Any]]:
    """The traces of a plot, as they stand in the page."""
    text = page[page.index(f'Plotly.newPlot(                        "{name}",') :]
    return json.JSONDecoder().raw_decode(text[text.index("[") :])[0]


def test_the_page_of_a_run_shows_its_figures() -> None:
    page = run_page(SUMMARY)
    assert page == run_page(SUMMARY) and not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert page.count('class="plot"') == len(PLOTS) and "a <b>" not in page and "a &lt;b&gt;.ckpt: a run" in page
    assert f"a &lt;b&gt;.ckpt, sha256 <code>{SHA}</code>; their licence goes with them." in page
    (bars,) = drawn(page, "errors")
    assert (bars["x"], bars["y"]) == (["baseline", "merged layers"], [100.0, 101.0])
    assert bars["error_y"]["array"] == [5.0, 5.0] and bars["error_y"]["arrayminus"] == [4.0, 4.0]
    (dots,) = drawn(page, "speed")
    assert (dots["x"], dots["y"]) == ([40.0, 55.0], [100.0, 101.0])
    (clips,) = drawn(page, "clips")
    assert (clips["x"], clips["y"]) == (["clip 7", "clip 3"], [-2.0, 5.0])
    for words in (
        "1 of 1 gates broken",
        "Since the earlier run",
        "+0.50 to +1.50",
        "worse",
        "optimistic",
        "commit ccc",
    ):
        assert words in page, words
    bare = {name: SUMMARY[name] for name in ("recipe", "versions")}
    assert 'class="plot"' not in run_page(bare) and "no gates" in run_page(bare)


def test_the_command_takes_runs_and_frontiers(tmp_path: Path) -> None:
    for folder, name, record in (
        ("run", "summary.json", SUMMARY),
        ("fast", "frontier.json", FOUND | {"command": "compress"}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(json_text(record))
        page = tmp_path / f"{folder}.html"
        done = hmr("report", tmp_path / folder, "-o", page)
        assert done.exit_code == 0 and "one file that needs no network" in done.output, done.output
        assert hmr("report", tmp_path / folder / name, "-o", page, "--quiet").exit_code == 0, "ours is written again"
        assert "</html>" in page.read_text()
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "summary.json").write_text(json.dumps({"command": "run", "recipe": {}}))
    (tmp_path / "cut" / "other.json").write_text(json.dumps({"command": "eval"}))
    for source, page, message in (
        (tmp_path / "run", tmp_path / "mine.html", "is there already, and no report that hmrcompress wrote"),
        (tmp_path / "empty", tmp_path / "a.html", "holds neither summary.json nor frontier.json"),
        (tmp_path / "cut", tmp_path / "a.html", "there is no 'versions' where one is expected"),
        (
            tmp_path / "cut" / "other.json",
            tmp_path / "a.html",
            "is no record that `hmrcompress run` or `compress` wrote",
        ),
        (tmp_path / "run", tmp_path / "a.txt", "expected a name ending in .html or .md"),
    ):
        done = hmr("report", source, "-o", page)
        assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>" and not (tmp_path / "a.html").exists()


def test_a_card_says_whose_weights_these_are() -> None:
    text = card_section(FOUND | {"baseline_mm": 99.0, "speed": {"fps": 40.0, "speedup": 1.8}})
    assert "made from `starter` (sha256 `0000" in text and "its licence goes with them" in text
    assert "| increase | +0.60 mm (95 % interval +0.30 to +0.90) |" in text and "1.80 times" in text
    assert "| error of the uncompressed network | 99.00 mm |" in text
    assert "| speed |" not in card_section(FOUND | {"baseline_mm": 99.0})


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_it(tmp_path: Path, width: int) -> None:
    assert browsed(run_page(SUMMARY), tmp_path, width) == len(PLOTS)
