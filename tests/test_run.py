"""The whole line on the tiny world: what a run writes, takes over, refuses, and when its gates fail."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.hostile import detector
from typer.testing import CliRunner

from hmrcompress.api.opening import compressed_network
from hmrcompress.data.crops import CropSet
from hmrcompress.errors import Notice, UserError
from hmrcompress.exporting import onnx as exporting
from hmrcompress.exporting.parity import OUTPUTS, GraphNetwork
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.plan import Plan
from hmrcompress.recipe import runner
from hmrcompress.recipe.reading import parse_recipe, read_recipe
from hmrcompress.recipe.runner import run_recipe
from hmrcompress.recipe.schema import Recipe
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import environment
from hmrcompress_cli.main import app


@pytest.fixture(scope="module", autouse=True)
def _one_program() -> Iterator[None]:
    """The program as it was when the tests began, whatever is committed while they run."""
    as_it_was = environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "environment", lambda device: as_it_was)
        yield


@pytest.fixture(scope="module")
def values(tiny_model: Path, tiny_body_file: Path, tiny_crops_file: Path) -> dict[str, Any]:
    data = f"crops:{tiny_crops_file}"
    return {
        "model": str(tiny_model),
        "body": str(tiny_body_file),
        "data": {"search": data, "eval": data},
        "batch_size": 6,
        "search": {"tau_mm": 0.05, "frames_per_clip": 3, "tokens": {"keep": 152, "per_layer": 40}},
        "merge": {},
        "eval": {},
        "bench": {"batch_size": 2, "rounds": 3},
        "export": {},
        "gates": {"onnx_max_abs_diff": {"max": 1.0e-3}},
    }


@pytest.fixture(scope="module")
def recipe(values: dict[str, Any]) -> Recipe:
    return parse_recipe(values)


@pytest.fixture(scope="module")
def traced() -> list[HMR2]:
    """The networks of which a graph was written in `finished`."""
    return []


@pytest.fixture(scope="module")
def finished(recipe: Recipe, traced: list[HMR2], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; but the graph is any, and the network itself stands for what runs it, as tracing takes ten seconds."""

    def write(network: HMR2, path: Path, batch: FrameBatch) -> None:
        detector(path)
        traced.append(network)

    def opened(path: Path, grid: tuple[int, int]) -> GraphNetwork:
        assert path.is_file()

        def run(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = exporting.Exported(traced[-1])(**{name: torch.from_numpy(array) for name, array in given.items()})
            return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, found, strict=True)}

        return GraphNetwork(run, ["images", "person_mask"], grid)

    folder = tmp_path_factory.mktemp("runs") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_write_graph", write)
        patch.setattr(exporting, "OnnxNetwork", opened)
        run_recipe(recipe, folder)
    return folder


@pytest.mark.slow
def test_the_graph_of_a_run(recipe: Recipe, tmp_path: Path) -> None:
    summary = run_recipe(recipe, tmp_path / "run").summary
    assert 0 < summary["onnx_max_abs_diff"] < 1e-3
    assert (tmp_path / "run" / "model.onnx").stat().st_size == summary["onnx_bytes"]


def test_a_run_writes_what_it_says(finished: Path, traced: list[HMR2], recipe: Recipe, tiny_crops: CropSet) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["stages"]) == ["mean_pose", "baseline", "merged", "tokens_alone", "merged_tokens"]
    frames = {(stage["n_frames"], stage["n_clips"], stage["protocol"]) for stage in summary["stages"].values()}
    assert frames == {(len(tiny_crops), 2, "starter24")}
    plan = Plan.read(finished / "plan.yaml")
    assert summary["layers"] == {"before": 4, "after": len(plan.groups)}
    assert summary["tokens"]["before"] == 192 and summary["tokens"]["after"] == 152
    assert summary["search"]["evaluations"] == 3
    assert summary["macs"]["after"] < summary["macs"]["before"]
    assert set(summary["bench"]["fps"]) == {"baseline", "merged", "tokens_alone", "merged_tokens"}
    assert summary["fps"]["after"] == summary["bench"]["fps"]["merged_tokens"]
    assert summary["onnx_max_abs_diff"] < 1e-3 and (finished / "model.onnx").stat().st_size == summary["onnx_bytes"]
    (written,) = traced
    merged = compressed_network(load_checkpoint(finished / "model"))
    assert written.config == merged.config and written.backbone.reducer == merged.backbone.reducer
    assert all(torch.equal(tensor, merged.state_dict()[name]) for name, tensor in written.state_dict().items())
    assert summary["leak"] is True  # it was searched and scored on the same data, and says so
    assert summary["gates"][0]["passed"] is True
    assert read_recipe(finished / "recipe.yaml") == recipe


def test_merged_layers_score_what_the_search_found(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Search and evaluation are different code: on the same frames they must see the same errors."""
    assert recipe.search is not None
    every = recipe.model_copy(
        update={"search": recipe.search.model_copy(update={"frames_per_clip": 6}), "bench": None, "export": None}
    )
    summary = run_recipe(every.model_copy(update={"gates": {}}), tmp_path / "run").summary
    assert summary["search"]["base_mpjpe_mm"] == pytest.approx(summary["stages"]["baseline"]["mpjpe_mm"], abs=1e-4)
    assert summary["search"]["final_mpjpe_mm"] == pytest.approx(summary["stages"]["merged"]["mpjpe_mm"], abs=1e-4)


def test_resume_repeats_only_what_changed(recipe: Recipe, finished: Path) -> None:
    stamps = {name: (finished / name).stat().st_mtime_ns for name in ("search.json", "model/model.safetensors")}
    seen: list[tuple[str, bool]] = []

    def note(name: str, seconds: float, reused: bool) -> None:
        if name != "inputs":
            seen.append((name, reused))

    before = json.loads((finished / "summary.json").read_text())
    after = run_recipe(recipe, finished, resume=True, stage_done=note).summary
    assert [reused for _, reused in seen] == [True] * 5
    apart = ("seconds", "commit", "seal")
    assert {k: v for k, v in before.items() if k not in apart} == {k: v for k, v in after.items() if k not in apart}
    assert stamps == {name: (finished / name).stat().st_mtime_ns for name in stamps}

    short = recipe.model_copy(update={"export": None, "gates": {}})
    seen.clear()
    (finished / "bench.json").write_text((finished / "bench.json").read_text().replace('"rounds": 3', '"rounds": 4'))
    with pytest.warns(Notice, match=r"bench\.json: was edited, or is of an earlier version"):
        run_recipe(short, finished, resume=True, stage_done=note)
    assert seen == [("search", True), ("merge", True), ("eval", True), ("bench", False)]

    seen.clear()
    runner.environment("cpu")["versions"]["torch"] = "another"
    run_recipe(short, finished, resume=True, stage_done=note)
    assert [reused for _, reused in seen] == [False] * 4

    seen.clear()
    assert short.eval is not None
    shorter = short.model_copy(update={"eval": short.eval.model_copy(update={"limit": 6})})
    summary = run_recipe(shorter, finished, resume=True, stage_done=note).summary
    assert [name for name, reused in seen if not reused] == ["eval"]
    assert summary["stages"]["merged"]["n_frames"] == 6


def test_a_plan_by_hand_in_place_of_a_search(values: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    plan = Plan.read(finished / "plan.yaml")
    by_hand = plan.model_copy(update={"groups": ((0,), (1, 2), (3,)), "tokens": None, "search": None})
    by_hand.write(tmp_path / "hand.yaml")
    line = {name: values[name] for name in ("model", "body", "data")} | {
        "merge": {"plan": str(tmp_path / "hand.yaml")},
        "eval": {"limit": 6},
    }
    summary = run_recipe(parse_recipe(line), tmp_path / "run").summary
    assert list(summary["stages"]) == ["mean_pose", "baseline", "merged"]
    assert summary["layers"] == {"before": 4, "after": 3}
    assert "leak" not in summary and "speedup" not in summary


def test_nothing_is_written_where_something_else_lies(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(UserError, match=r"is no run that hmrcompress wrote, and holds letter\.txt"):
        run_recipe(recipe, tmp_path)
    missing = recipe.model_copy(update={"model": str(tmp_path / "missing.ckpt")})
    with pytest.raises(UserError, match=r"missing\.ckpt"):
        run_recipe(missing, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(("bound", "code"), [(0.0, 3), (1e6, 0)])
def test_the_command_ends_with_3_when_a_gate_fails(
    values: dict[str, Any], finished: Path, tmp_path: Path, bound: float, code: int
) -> None:
    keep = {name: values[name] for name in ("model", "body", "data")}
    gates = {"mpjpe_mm": {"max": bound, "stage": "baseline"}}
    path = tmp_path / "gated.yaml"
    path.write_text(json.dumps(keep | {"eval": {"limit": 6}, "gates": gates}))  # JSON is YAML
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", str(path), "-o", str(run), "--json", str(tmp_path / "copy.json")])
    assert done.exit_code == code, done.output
    assert "baseline" in done.stdout and "summary.json" in done.stdout.splitlines()[-1]
    assert ("mpjpe_mm of baseline" in done.stderr and "allowed is at most 0" in done.stderr) == (code == 3)
    assert (tmp_path / "copy.json").read_text() == (run / "summary.json").read_text()
