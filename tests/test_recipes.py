"""Recipes: every shipped one parses, wrong ones are refused in one sentence, gates hold what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hmrcompress.errors import GateFailed, UserError
from hmrcompress.recipe.gates import check_gates, figure, require
from hmrcompress.recipe.reading import parse_recipe, read_recipe
from hmrcompress.recipe.schema import Gate

TABLES = ("ablations", "benchmarks", "evidence")
"""Recipes of another kind, which tests/test_ablations.py and tests/test_suite.py read."""
SHIPPED = sorted(path for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml") if path.stem not in TABLES)
SUMMARY: dict[str, Any] = {
    "stages": {
        "mean_pose": {"mpjpe_mm": 240.0},
        "baseline": {"mpjpe_mm": 100.0, "pa_mpjpe_mm": 60.0},
        "merged": {"mpjpe_mm": 100.5, "pa_mpjpe_mm": 60.25},
        "merged_tokens": {"mpjpe_mm": 103.0, "pa_mpjpe_mm": 59.0},
    },
    "layers": {"before": 12, "after": 9},
    "macs": {"before": 2000.0, "after": 500.0},
    "speedup": 1.9,
    "onnx_max_abs_diff": 2.0e-6,
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_have_gates(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.gates and recipe.eval is not None
    assert read_recipe(path.stem) == recipe  # by name, from the installed package


def test_the_demo_and_ci_run_the_whole_line() -> None:
    assert {"starter", "ci"} <= {path.stem for path in SHIPPED}
    for name in ("starter", "ci"):
        recipe = read_recipe(name)
        assert all((recipe.search, recipe.merge, recipe.eval, recipe.bench, recipe.export))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"serch": {}}, ["r.yaml: serch: no such key"]),
        ({"search": {"tau": 1.0}}, ["r.yaml: search.tau: no such key"]),
        ({"search": {"tau_mm": -2}}, ["search.tau_mm", "got -2", "greater than 0"]),
        ({"search": {"tau_mm": "1e-4"}}, ["search.tau_mm", "write 1.0e-4"]),
        ({"merge": {}}, ["merge", "exactly one", "give"]),
        ({"search": {}, "merge": {"plan": "p.yaml"}}, ["exactly one"]),
        ({"eval": {}, "gates": {"speedup": {"min": 1.0}}}, ["speedup", "bench"]),
        ({"eval": {}, "gates": {"fps": {"min": 1.0}}}, ["gates.fps"]),
        ({"eval": {}, "gates": {"mpjpe_mm": {}}}, ["gates.mpjpe_mm", "min, max or both"]),
        ({"eval": {}, "gates": {"mpjpe_mm": {"min": 2.0, "max": 1.0}}}, ["nothing passes"]),
        (["search"], ["list", "mapping"]),
    ],
)
def test_wrong_recipes_name_field_and_fault(values: Any, names: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(values, "r.yaml")
    assert all(name in str(caught.value) for name in names), caught.value
    assert "\n" not in str(caught.value)


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe({}).seed = 3  # type: ignore[misc]


def test_overrides_reach_fields_and_leave_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("search: {tau_mm: 0.1}\n")
    changed = read_recipe(path, ["search.tau_mm=0.25", "eval.limit=9", "search.tokens=null"])
    assert changed.search is not None and changed.eval is not None
    assert (changed.search.tau_mm, changed.eval.limit, changed.search.tokens) == (0.25, 9, None)
    assert read_recipe(path).search.tau_mm == 0.1  # type: ignore[union-attr]
    for wrong in ("search.tau_mm", "=3", "search..tau_mm=3", "search.tau=3", "eval=[", "search.tau_mm.x=1"):
        with pytest.raises(UserError):
            read_recipe(path, [wrong])


@pytest.mark.parametrize(("text", "says"), [("a: [", "YAML"), ("", "mapping"), ("- 1", "mapping")])
def test_files_that_hold_no_recipe(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_recipe(path)
    with pytest.raises(UserError, match="no such recipe"):
        read_recipe(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("name", "stage", "value"),
    [
        ("mpjpe_mm", None, 103.0),
        ("mpjpe_mm", "baseline", 100.0),
        ("mpjpe_increase_mm", None, 3.0),
        ("mpjpe_increase_mm", "merged", 0.5),
        ("pa_mpjpe_increase_mm", None, -1.0),
        ("mpjpe_below_mean_pose_mm", "baseline", 140.0),
        ("layers_removed", None, 3),
        ("macs_ratio", None, 0.25),
        ("speedup", None, 1.9),
        ("onnx_max_abs_diff", None, 2.0e-6),
        ("onnx_joints_mm", None, None),
        ("pve_increase_mm", None, None),
    ],
)
def test_gates_look_at_the_right_figure(name: str, stage: str | None, value: float | None) -> None:
    assert figure(name, stage, SUMMARY) == value


def test_a_gate_fails_outside_its_bounds_and_names_figure_and_bound() -> None:
    kept = {"mpjpe_increase_mm": Gate(max=3.0), "speedup": Gate(min=1.9), "layers_removed": Gate(min=1, max=3)}
    require(check_gates(kept, SUMMARY))
    broken = {"mpjpe_increase_mm": Gate(max=2.9), "speedup": Gate(min=2.0), "onnx_joints_mm": Gate(max=0.1)}
    results = check_gates(broken | kept, {**SUMMARY, "speedup": 1.9})
    assert [result.passed for result in results] == [True, True, False, True]
    with pytest.raises(GateFailed) as caught:
        require(check_gates(broken, SUMMARY))
    assert caught.value.exit_code == 3
    for words in ("3 of 3", "mpjpe_increase_mm is 3, allowed is at most 2.9", "at least 2", "not measured"):
        assert words in str(caught.value)


def test_nan_breaks_every_gate() -> None:
    nan = {**SUMMARY, "speedup": float("nan")}
    assert not check_gates({"speedup": Gate(min=0.0)}, nan)[0].passed
    assert not check_gates({"speedup": Gate(max=9.0)}, nan)[0].passed
