"""`run RECIPE --baseline OLD/summary.json`: what changed since an earlier run, by intervals paired over clips."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner, Result

from hmrcompress.data.crops import write_crops
from hmrcompress.errors import UserError
from hmrcompress.plan import Plan
from hmrcompress.recipe.comparison import changes, read_earlier
from hmrcompress.recipe.gates import check_gates, unjudged
from hmrcompress.recipe.schema import Gate
from hmrcompress_cli.main import app


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def recipe(path: Path, model: Path, body: Path, data: Path, removed: list[int], **more: Any) -> Path:
    """A recipe without these layers of the tiny network; JSON is YAML."""
    plan = Plan.from_dict(
        {"schema": 2, "groups": [[each] for each in range(4)], "removed": [{"layer": each} for each in removed]}
    )
    plan.write(path.with_suffix(".plan.yaml"))
    values = {"model": str(model), "body": str(body), "data": {"search": f"crops:{data}", "eval": f"crops:{data}"},
              "masks": "none", "merge": {"plan": str(path.with_suffix(".plan.yaml"))}, "eval": {}}  # fmt: skip
    path.write_text(json.dumps(values | more))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_body_file: Path) -> Path:
    """Clips of several lengths, and a run `old` without layer 2."""
    folder = tmp_path_factory.mktemp("baseline")
    arrays = tiny.crop_arrays(clips=4, frames=5)
    kept = ~((arrays["clip"] == 1) & (arrays["frame"] > 1))
    write_crops(folder / "crops.npz", {name: each[kept] for name, each in arrays.items()}, tiny.crop_meta())
    path = recipe(folder / "old.yaml", tiny_model, tiny_body_file, folder / "crops.npz", [2])
    done = hmr("run", path, "-o", folder / "old", "--quiet")
    assert done.exit_code == 0, done.output
    return folder


def test_the_change_is_the_difference_of_two_runs(runs: Path, tiny_model: Path, tiny_body_file: Path) -> None:
    gates = {
        "mpjpe_change_mm": {"max": 1e3, "stage": "merged"},
        "pve_change_mm": {"max": -1e3},
        "mpjpe_mm": {"max": 1e6},
    }
    path = recipe(runs / "new.yaml", tiny_model, tiny_body_file, runs / "crops.npz", [1, 2], gates=gates)
    done = hmr("run", path, "-o", runs / "new", "--baseline", runs / "old" / "summary.json")
    assert done.exit_code == 3, done.output
    old, new = (json.loads((runs / name / "summary.json").read_text()) for name in ("old", "new"))
    seen = new["change"]["stages"]["merged"]["mpjpe_mm"]
    wanted = new["stages"]["merged"]["mpjpe_mm"] - old["stages"]["merged"]["mpjpe_mm"]
    assert seen["change"] == pytest.approx(wanted, abs=1e-9)
    assert seen["before"] == pytest.approx(old["stages"]["merged"]["mpjpe_mm"], abs=1e-9)
    accel = new["change"]["stages"]["merged"]["accel_mm_per_frame2"]
    assert accel["now"] == pytest.approx(new["stages"]["merged"]["accel_mm_per_frame2"], abs=1e-9)
    base = new["change"]["stages"]["baseline"]["mpjpe_mm"]
    assert (base["change"], base["ci95"]) == (0.0, [0.0, 0.0]), "the same network on the same frames"
    assert new["change"]["figures"]["layers"] == {"before": 3, "now": 2}
    # The interval against one drawn in a loop, by hand.
    clips = [new["clips"], old["clips"]]
    counts = np.array(clips[0]["n_frames"])
    assert counts.tolist() == [5, 2, 5, 5]
    gap = np.subtract(*(np.array(each["stages"]["merged"]["mpjpe_mm"]) for each in clips))
    drawn = np.random.default_rng(0).integers(4, size=(2000, 4))
    means = [sum(gap[clip] * counts[clip] for clip in each) / sum(counts[clip] for clip in each) for each in drawn]
    assert seen["ci95"] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=1e-9)
    outcomes = {each["name"]: each for each in new["gates"]}
    assert outcomes["mpjpe_change_mm"]["passed"] and outcomes["mpjpe_change_mm"]["ci95"] == seen["ci95"]
    assert not outcomes["pve_change_mm"]["passed"] and "pve_change_mm is" in done.output


def test_the_page_and_the_xml(runs: Path, tiny_model: Path, tiny_body_file: Path) -> None:
    gates = {"mpjpe_change_mm": {"max": -1e3}, "mpjpe_mm": {"max": 1e6}}
    path = recipe(runs / "page.yaml", tiny_model, tiny_body_file, runs / "crops.npz", [1], gates=gates)
    assert hmr("run", path, "-o", runs / "page", "--baseline", runs / "old", "--quiet").exit_code == 3
    text = (runs / "page" / "summary.md").read_text()
    assert text.startswith(f"## {tiny_model}: 1 of 2 gates broken\n") and "### Since " in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(re.fullmatch(r"\|( [^|]* \|)+|\|---\|(---:\|)+", line) for line in tables)
    assert "| merged layers | MPJPE, mm |" in text and "| mpjpe_change_mm |" in text and "**broken**" in text
    root = ElementTree.parse(runs / "page" / "junit.xml").getroot()
    cases = {(each.get("classname"), each.get("name")): each for each in root.iter("testcase")}
    assert {("stages", "eval"), ("stages", "merge"), ("gates", "mpjpe_mm")} <= set(cases)
    assert root.get("tests") == str(len(cases)) and root.get("failures") == "1"
    failure = cases["gates", "mpjpe_change_mm"].find("failure")
    assert failure is not None and "allowed is at most -1000" in str(failure.text)
    assert cases["gates", "mpjpe_mm"].find("failure") is None
    # Once more into the same folder: all of it is ours.
    assert hmr("run", path, "-o", runs / "page", "--baseline", runs / "old", "--quiet").exit_code == 3


def test_without_an_earlier_run_such_gates_are_left_out(runs: Path, tiny_model: Path, tiny_body_file: Path) -> None:
    gates = {"mpjpe_change_mm": {"max": -1.0}}
    path = recipe(runs / "first.yaml", tiny_model, tiny_body_file, runs / "crops.npz", [1], gates=gates)
    done = hmr("run", path, "-o", runs / "first")
    assert done.exit_code == 0 and "gate left out: mpjpe_change_mm needs an earlier run" in done.output, done.output
    assert json.loads((runs / "first" / "summary.json").read_text())["gates"] == []


def test_a_change_is_held_by_its_whole_interval() -> None:
    summary = {
        "stages": {"merged": {}},
        "change": {"stages": {"merged": {"mpjpe_mm": {"change": 0.3, "ci95": [0.1, 0.5]}}}},
    }
    for bounds, passes in (({"max": 0.4}, False), ({"max": 0.5}, True), ({"min": 0.2}, False), ({"min": 0.1}, True)):
        (found,) = check_gates({"mpjpe_change_mm": Gate(**bounds)}, summary)
        assert found.passed == passes
    assert "is 0.3 (95 % interval 0.1 to 0.5), allowed" in str(found)
    assert unjudged({"mpjpe_change_mm": Gate(max=1.0)}, {}) == ["mpjpe_change_mm"]
    (missing,) = check_gates({"pve_change_mm": Gate(max=1.0)}, summary)
    assert not missing.passed and "not measured" in str(missing)


def test_runs_that_cannot_be_compared(runs: Path, tiny_model: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "r.yaml", tiny_model, tiny_body_file, runs / "crops.npz", [1])
    (tmp_path / "other.json").write_text("{}")
    older = json.loads((runs / "old" / "summary.json").read_text())
    (tmp_path / "without.json").write_text(json.dumps({name: each for name, each in older.items() if name != "clips"}))
    older["clips"]["n_frames"] = ["five"]
    (tmp_path / "damaged.json").write_text(json.dumps(older))
    write_crops(tmp_path / "others.npz", tiny.crop_arrays(clips=5), tiny.crop_meta())
    elsewhere = recipe(tmp_path / "e.yaml", tiny_model, tiny_body_file, tmp_path / "others.npz", [1])
    fewer = recipe(tmp_path / "f.yaml", tiny_model, tiny_body_file, runs / "crops.npz", [1], eval={"limit": 6})
    cases = [
        (path, tmp_path / "none.json", "no such summary"),
        (path, tmp_path / "other.json", "is no summary that `hmrcompress run` wrote"),
        (path, tmp_path / "without.json", "holds no figures of single clips"),
        (path, tmp_path / "damaged.json", "holds no figures of single clips"),
        (elsewhere, runs / "old", "was scored on other data (tiny:test)"),
        (fewer, runs / "old", "scored 17 frames of 4 clips, and this recipe"),
    ]
    for line, baseline, message in cases:
        done = hmr("run", line, "-o", tmp_path / "out", "--baseline", baseline)
        assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
        assert not (tmp_path / "out").exists()
    own = hmr("run", path, "-o", runs / "old", "--baseline", runs / "old" / "summary.json")
    assert own.exit_code == 2 and "is an input" in own.output
    assert (runs / "old" / "summary.json").is_file()
    with pytest.raises(UserError, match="no such summary"):
        read_earlier(tmp_path)


def test_one_clip_has_no_interval() -> None:
    clips = {"ids": [3], "n_frames": [2], "n_triples": [0], "protocol": "p"}
    old, new = (clips | {"stages": {"merged": {"mpjpe_mm": [mm], "accel_mm_per_frame2": [None]}}} for mm in (9.0, 9.5))
    found = changes({"clips": new}, {"clips": old, "sha256": "0"})["stages"]["merged"]
    assert found["mpjpe_mm"] == {"before": 9.0, "now": 9.5, "change": 0.5, "ci95": None}
    assert found["accel_mm_per_frame2"]["change"] is None
