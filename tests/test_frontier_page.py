"""The page of a frontier: whole in one file, the same bytes for the same values, and drawn by a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hmrcompress.report.frontier import frontier_page


def increase(mean: float) -> dict[str, Any]:
    return {
        "increase_mm": mean,
        "ci95_mm": [mean - 0.3, mean + 0.3],
        "distance_mm": 2.0,
        "n_frames": 384,
        "n_clips": 96,
    }


def point(name: str, fps: float, mean: float, removed: list[int], *, confirmed: bool = False) -> dict[str, Any]:
    return {
        "name": name, "words": f"{12 - len(removed)} of 12 layers <{name}>", "fps": fps, "parameters": 6_000_000,
        "candidate": {"removed": [{"layer": layer, "part": "all"} for layer in removed], "tokens": None},
        "search": increase(mean), "confirmed": increase(mean) if confirmed else None, "on_front": name != "d",
    }  # fmt: skip


FOUND: dict[str, Any] = {
    "model": "starter", "sentence": "Asked for 1 mm at most.", "asked": {"budget_mm": 1.0}, "chosen": "b",
    "points": [point("a", 40, 0.0, []), point("b", 75, 0.6, [4, 9], confirmed=True), point("c", 90, 1.4, [4, 8, 9]),
               point("d", 60, 1.5, [3])],
    "damage_mm": {str(layer): abs(6 - layer) / 2 for layer in range(12)},
    "cka": [[1 - abs(i - j) / 13 for i in range(13)] for j in range(13)],
    "by_kind": {"walk": {"before": 80.0, "after": 81.0}}, "by_occlusion": {"none": {"before": 80.0, "after": 81.0}},
    "costs": {"batch": 8, "device": "a CPU", "dtype": "float32", "attention": {"192": 0.002, "96": 0.001},
              "mlp": {"192": 0.003, "96": 0.0015}, "head": {"192": 0.001, "96": 0.0008}},
    "weights": {"name": "starter", "sha256": "0" * 64}, "data": {"search": "calib", "confirm": "confirm"},
    "not_faster": [{"words": "144 tokens <merge>", "macs": 0.8, "speed": 0.97, "by": "table"}],
    "versions": {"torch": "2"}, "command_line": "hmrcompress compress starter", "notes": ["told & heard"],
}  # fmt: skip
PLOTS = 6


def test_the_page_is_one_file_and_says_what_was_chosen() -> None:
    page = frontier_page(FOUND)
    assert page == frontier_page(FOUND)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "Asked for 1 mm at most." in page and "told &amp; heard" in page and "&lt;b&gt;" in page
    assert page.count('class="plot"') == PLOTS
    assert (
        "<h2>Fewer MACs, and not faster here</h2>" in page and "<td>144 tokens &lt;merge&gt;</td><td>80%</td>" in page
    )
    assert "Fewer MACs" not in frontier_page(FOUND | {"not_faster": []})


def browsed(page: str, folder: Path, width: int) -> int:
    """How many plots a browser draws of a page, in a window so wide; it has nothing to say and cuts nothing off."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no Chromium")
    path = folder / "report.html"
    measure = "addEventListener('load',()=>setTimeout(()=>{document.title='wide '+document.body.scrollWidth},1000))"
    path.write_text(page.replace("</body>", f"<script>{measure}</script></body>"))
    line = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2400",
            "--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom", path.as_uri()]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    found = re.search(r"<title>wide (\d+)</title>", done.stdout)
    assert found is not None and int(found[1]) <= max(width, 500), "a headless window is 500 wide at least"
    plots = [int(each) for each in re.findall(r'class="main-svg"[^>]*width="(\d+)"', done.stdout)]
    assert plots and max(plots) <= max(width, 500) / (2 if width > 1000 else 1)
    return len(re.findall(r'class="plot-container', done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_it(tmp_path: Path, width: int) -> None:
    assert browsed(frontier_page(FOUND), tmp_path, width) == PLOTS
