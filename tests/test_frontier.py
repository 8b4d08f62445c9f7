"""The frontier: candidates, its journal, the order of damage, the cost table, the race and the confirmation."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny
from compress_worker import without_times
from PIL import Image
from typer.testing import CliRunner

from hmrcompress.api import front
from hmrcompress.api.front import PRESETS, Bench
from hmrcompress.api.front_pictures import _examples
from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.data.provenance import records_in, seen
from hmrcompress.errors import Notice, UserError
from hmrcompress.frontier import joint
from hmrcompress.frontier.candidates import Candidate, singles
from hmrcompress.frontier.costs import CostTable, cost_key
from hmrcompress.frontier.depth import Effort, Sized, greedy, patched
from hmrcompress.frontier.errors import Measured
from hmrcompress.frontier.joint import (
    Choice,
    Goal,
    Increase,
    Point,
    _standing,
    by_the_clock,
    choose,
    front_of,
    increase_of,
    left_alone,
    race,
)
from hmrcompress.frontier.ledger import Ledger
from hmrcompress.frontier.summary import listed, told
from hmrcompress.models.files.folder import read_model_folder
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.runtime import no_progress
from hmrcompress_cli.main import app


def test_a_candidate_is_a_plan_and_a_text() -> None:
    found = Candidate().without((3, "attention"), (1, "all")).without((3, "mlp"))
    assert found.removed == ((1, "all"), (3, "all")) and found.layers(6) == 4
    half = Candidate(keep=96, way="merge").without((2, "mlp"))
    assert Candidate.parsed(half.key) == half and half.layers(6) == 5.5
    plan = half.plan(None, 6)
    assert plan.removed_parts == {2: "mlp"} and plan.tokens is not None and plan.tokens.keep == 96
    dropped = Candidate(keep=96, way="drop").tokens
    assert dropped is not None and dropped.drop_background is not None and dropped.biases_head
    bare = replace(half, weighted=False)
    assert (
        Candidate.parsed(bare.key) == bare != half and bare.words(6) == "5.5 of 6 layers, 96 tokens (merge, unweighted)"
    )
    assert bare.tokens == TokenSettings(keep=96) and half.tokens != bare.tokens
    assert Candidate().joined(bare) == Candidate(keep=96, way="merge", weighted=False)
    assert singles(3, half, ("all",)) == [(0, "all"), (1, "all")]
    assert (2, "attention") in singles(3, half, ("attention", "mlp"))
    assert singles(2, Candidate(((0, "all"),)), ("all",)) == [], "one layer stays"


def test_a_journal_goes_on_where_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "a.journal.jsonl"
    first = Ledger(path, {"seed": 0})
    first.put("a", [1.5, None])
    first.put("b", 2)
    with open(path, "a") as file:
        file.write('{"name": "c", "va')
    again = Ledger(path, {"seed": 0})
    assert again.get("a") == [1.5, None] and "c" not in again and len(again) == 2
    again.put("c", 3)
    assert Ledger(path, {"seed": 0}).get("c") == 3
    with pytest.warns(Notice, match="seed changed since"):
        assert len(Ledger(path, {"seed": 1})) == 0
    (tmp_path / "b.jsonl").write_text("hello\n")
    with pytest.raises(UserError, match="not a journal of a search"):
        Ledger(tmp_path / "b.jsonl", {})


class Made:
    """Errors of a network whose layers cost `damage` each, and `together` more for pairs; 8 clips of 4 frames."""

    fitter, target = None, "truth"

    def __init__(self, damage: list[float], together: dict[tuple[int, int], float] | None = None, noise: float = 0.0):
        self.network = SimpleNamespace(config=SimpleNamespace(depth=len(damage)))
        self.damage, self.together, self.noise = damage, together or {}, noise
        self.clip = np.tile(np.arange(8), 4)
        self.parts = [slice(start, start + 8) for start in range(0, 32, 8)]

    def frames_of(self, batches: int | None) -> np.ndarray:
        return self.clip[: None if batches is None else 8 * batches]

    def __call__(self, candidate: Candidate, batches: int | None = None) -> Measured:
        gone = [layer for layer, _ in candidate.removed]
        cost = sum(self.damage[layer] for layer in gone) + (0.5 if candidate.keep else 0.0)
        cost += sum(more for pair, more in self.together.items() if set(pair) <= set(gone))
        clip = self.frames_of(batches)
        spread = self.noise * (-1.0) ** clip if candidate != Candidate() else 0.0
        errors = 50.0 + cost + spread + 0.0 * clip
        return Measured(errors, np.full(len(clip), cost))


def test_greedy_removes_what_costs_least_and_swaps_mend_it() -> None:
    plain = Made([5, 1, 4, 2, 3, 9])
    sizes = greedy(plain, 3, Effort(finalists=2, swaps=0))  # type: ignore[arg-type]
    assert {size: [layer for layer, _ in each.candidate.removed] for size, each in sizes.items()} == {
        6.0: [], 5.0: [1], 4.0: [1, 3], 3.0: [1, 3, 4],
    }  # fmt: skip
    near = greedy(plain, 1, Effort(finalists=2, swaps=0), ceiling_mm=2.5)  # type: ignore[arg-type]
    assert near == {size: sizes[size] for size in (6.0, 5.0, 4.0)}, "one beyond the ceiling is the last"
    hard = Made([5, 1, 4, 1.5, 3, 9], {(1, 3): 4, (1, 4): 4, (1, 2): 4, (0, 1): 4})  # layer 1 goes with nothing
    best = min(sum(hard.damage[layer] for layer in pair) + hard.together.get(pair, 0.0)
               for pair in itertools.combinations(range(6), 2))  # fmt: skip
    mended = greedy(hard, 4, Effort(finalists=2, swaps=1))[4.0]  # type: ignore[arg-type]
    stuck = greedy(hard, 4, Effort(finalists=2, swaps=0))[4.0]  # type: ignore[arg-type]
    assert mended.increase_mm == pytest.approx(best) and stuck.increase_mm > best


@pytest.mark.parametrize(("budget_mm", "fewest"), [(None, 2.0), (2.7, 2.0), (1.4, 3.0), (1.2, 4.0), (0.1, 4.0)])
def test_no_sets_are_looked_for_far_beyond_the_budget(budget_mm: float | None, fewest: float) -> None:
    """One layer after the other costs 1, 4, 8 and 13 mm: within 3 budgets, and within 2 mm, it goes on."""
    bench = SimpleNamespace(depth=6, search=Made([5, 1, 6, 4, 3, 9]))
    chosen = replace(PRESETS["quick"], deepest=0.67, effort=Effort(finalists=2, swaps=0))
    found = Bench.sizes(bench, chosen, budget_mm, no_progress)  # type: ignore[arg-type]
    assert min(found) == fewest


def test_sets_are_ranked_by_how_far_bodies_move() -> None:
    """Layer 3 seems to cost least on these few clips, and moves the bodies most; the patch is judged alike."""

    class Misleading(Made):
        def __call__(self, candidate: Candidate, batches: int | None = None) -> Measured:
            found = super().__call__(candidate, batches)
            gone = [layer for layer, _ in candidate.removed]
            return Measured(found.errors - 9.0 * (3 in gone) - 4.0 * candidate.strength,
                            found.distances + candidate.strength)  # fmt: skip

    errors = Misleading([5, 1, 4, 7, 3, 9])
    errors.fitter = lambda candidate: {"a": "patch"}  # type: ignore[assignment]
    sizes = greedy(errors, 4, Effort(finalists=2, swaps=1))  # type: ignore[arg-type]
    assert sizes[5.0] == Sized(Candidate(((1, "all"),)), 1.0) and sizes[4.0].candidate.removed == (
        (1, "all"),
        (4, "all"),
    )


def test_patches_are_fitted_for_the_best_few_sets_of_a_size() -> None:
    """Without a patch layer 1 does least harm, then 4, then 3; with one 4 does."""
    fitted: list[tuple[int, ...]] = []

    class Mended(Made):
        def __call__(self, candidate: Candidate, batches: int | None = None) -> Measured:
            found = super().__call__(candidate, batches)
            gain = {(1,): 0.1, (4,): 0.9, (3,): 0.99}.get(tuple(layer for layer, _ in candidate.removed), 0.0)
            return Measured(found.errors, found.distances * (1 - gain * (candidate.strength == 0.5)))

    def fitter(candidate: Candidate) -> dict[str, str]:
        fitted.append(tuple(layer for layer, _ in candidate.removed))
        return {"a": "patch"}

    errors = Mended([5, 1, 4, 2, 1.5, 9])
    errors.fitter = fitter  # type: ignore[assignment]
    sizes = greedy(errors, 5, Effort(finalists=3, swaps=0))  # type: ignore[arg-type]
    assert fitted == [(1,), (4,)] and sizes[5.0].candidate == Candidate(((4, "all"),), 0.5)


@pytest.mark.parametrize("best", [-0.3, 0.0, 0.2, 0.3, 0.45, 0.6, 0.7, 0.9, 1.0, 1.4])
def test_the_strength_of_a_patch_is_the_one_that_does_least_harm(best: float) -> None:
    class Parabola(Made):
        def __call__(self, candidate: Candidate, batches: int | None = None) -> Measured:
            found = super().__call__(candidate, batches)
            return Measured(found.errors, np.full_like(found.errors, math.hypot(candidate.strength - best, 0.5)))

    errors = Parabola([5, 1, 4])
    errors.fitter = lambda candidate: {"a": "patch"}  # type: ignore[assignment]
    gone = Candidate(((1, "all"),))
    wanted = min((0.0, 0.25, 0.5, 0.75, 1.0), key=lambda strength: abs(strength - best))
    assert patched(errors, gone) == replace(gone, strength=wanted)  # type: ignore[arg-type]
    errors.fitter = lambda candidate: {}  # type: ignore[assignment]
    assert patched(errors, gone) == gone  # type: ignore[arg-type]


def test_what_breaks_the_network_is_no_point() -> None:
    broken = Made([1.0, float("inf"), 2.0])
    sizes = {
        2.0: Sized(Candidate().without((1, "all")), float("inf")),
        1.0: Sized(Candidate().without((2, "all")), 2.0),
    }
    found = listed([], sizes, broken, lambda each: each.layers(3))  # type: ignore[arg-type]
    assert [(point.candidate.removed, on_front) for point, on_front in found] == [(((2, "all"),), True)]


def test_a_point_s_rate_is_of_frames() -> None:
    candidate = Candidate(keep=96, way="drop")
    found = told(Point(candidate, 0.5, Increase(1.0, 0.5, 1.5, 2.0, 8, 4)), candidate.plan(None, 6), 6, 8, True)
    assert found["fps"] == 16.0 and found["seconds"] == 0.5 and found["layers"] == 6.0 and found["on_front"]
    assert found["search"]["increase_mm"] == 1.0 and found["confirmed"] is None


def test_whether_sizes_weigh_is_decided_by_what_it_costs() -> None:
    class Weighed(Made):
        """Weights help dropping, and harm merging."""

        def __call__(self, candidate: Candidate, batches: int | None = None) -> Measured:
            found = super().__call__(candidate, batches)
            more = 0.0 if candidate.weighted == (candidate.way == "drop") else 1.0
            return Measured(found.errors + more * (candidate.keep is not None), found.distances)

    ways = [Candidate(keep=96, way=way, weighted=by) for way in ("drop", "merge") for by in (True, False)]  # type: ignore[arg-type]
    found = Bench.token_increases(SimpleNamespace(ways=lambda: ways, search=Weighed([1, 1, 1])))  # type: ignore[arg-type]
    assert found == {ways[0]: pytest.approx(0.5), ways[3]: pytest.approx(0.5)}


class Patched(Made):
    """A patch makes removed layers cost 0.2 mm more with all tokens, and 0.3 mm less with fewer."""

    def fitter(self, candidate: Candidate) -> bool:  # type: ignore[override]
        return bool(candidate.removed)

    def __call__(self, candidate: Candidate, batches: int | None = None) -> Measured:
        found = super().__call__(candidate, batches)
        more = 0.0 if not candidate.strength else 0.2 if candidate.keep is None else -0.3
        return Measured(found.errors + more, found.distances)


def test_whether_a_cut_is_patched_is_asked_again_with_fewer_tokens() -> None:
    bare = Candidate(((1, "all"),))
    fewer = replace(bare, keep=96, way="drop")
    found = [(fewer, 1.0, 1.5), (bare, 2.0, 1.0), (Candidate(keep=96, way="drop"), 3.0, 0.5)]
    points = race(Patched([1, 1, 1]), found, Goal(budget_mm=2.0), 5)  # type: ignore[arg-type]
    means = {each.candidate: each.search.mean for each in points if each.search}
    assert means == {
        replace(fewer, strength=0.5): pytest.approx(1.2), bare: pytest.approx(1.0), found[2][0]: pytest.approx(0.5),
    }  # fmt: skip
    never = race(Made([1, 1, 1]), found, Goal(budget_mm=2.0), 5)  # type: ignore[arg-type]
    assert [each.candidate for each in never] == [each for each, _, _ in found]


def table() -> CostTable:
    return CostTable("cpu", "float32", 8, 192, 1.0, {192: 2.0, 96: 1.0}, {192: 4.0, 96: 2.0}, {192: 0.5, 96: 0.25},
                     {"merge 96": 0.7, "drop 96": 0.3}, "k")  # fmt: skip


def test_the_cost_of_a_plan_is_that_of_its_parts(tmp_path: Path) -> None:
    costs = table()
    assert costs.seconds(Candidate(), 4) == pytest.approx(1 + 4 * (2 + 4) + 0.5)
    assert costs.seconds(Candidate(((1, "all"), (2, "mlp"))), 4) == pytest.approx(1 + 3 * 2 + 2 * 4 + 0.5)
    assert costs.seconds(Candidate(keep=96, way="drop"), 4) == pytest.approx(1 + 0.3 + 4 * (1 + 2) + 0.25)
    # merged 192 -> 152 -> 112 -> 96 in the first three layers, between attention and MLP
    at = lambda tokens, few, many: few + (many - few) * (tokens - 96) / 96  # noqa: E731
    attention = sum(at(each, 1.0, 2.0) for each in (192, 152, 112, 96))
    feeding = sum(at(each, 2.0, 4.0) for each in (152, 112, 96, 96))
    assert costs.seconds(Candidate(keep=96, way="merge"), 4) == pytest.approx(1 + 0.7 + attention + feeding + 0.25)
    assert CostTable.from_json(json.loads(json.dumps(costs.to_json())), "x") == costs
    with pytest.raises(UserError, match="holds no cost table"):
        CostTable.from_json({"device": "cpu"}, "x")


def test_a_front_falls() -> None:
    rows = [(Candidate(((layer, "all"),)), seconds, mm) for layer, (seconds, mm) in enumerate(
        [(4, 1.0), (3, 2.0), (2, 2.5), (3.5, 2.5), (1, 9.0)])]  # fmt: skip
    assert [row[1] for row in front_of(rows)] == [1, 2, 3, 4]


def point(layer: int, seconds: float, mm: float) -> Point:
    return Point(Candidate(((layer, "all"),)), seconds, Increase(mm, mm - 0.1, mm + 0.1, mm, 32, 8))


def test_what_is_offered_meets_the_budget_with_its_whole_interval() -> None:
    untouched = Point(Candidate(), 10.0)
    points = [point(0, 5.0, 0.9), point(1, 6.0, 0.8), point(2, 7.0, 0.4)]
    sure = Made([1.4, 0.98, 0.5], noise=0.1)
    choice, known = choose(sure, points, Goal(budget_mm=1.0), untouched, 3)  # type: ignore[arg-type]
    assert choice.shown and choice.point.candidate == points[2].candidate
    high = increase_of(sure, points[1].candidate).high  # type: ignore[arg-type]
    assert high is not None and high > 1.0, "the second is within the budget in the mean alone"
    assert [each.confirmed is not None for each in known] == [True, True, True]
    unsure = Made([1.4, 0.9, 0.8], noise=3.0)
    choice, _ = choose(unsure, points, Goal(budget_mm=1.0), untouched, 3)  # type: ignore[arg-type]
    assert not choice.shown and "not shown: 8 clips, ±" in choice.why
    choice, _ = choose(Made([5, 5, 5]), points, Goal(budget_mm=1.0), untouched, 3)  # type: ignore[arg-type]
    assert choice.point is untouched
    choice, _ = choose(sure, points, Goal(seconds=6.5), untouched, 3)  # type: ignore[arg-type]
    assert choice.shown and choice.point.candidate == points[1].candidate


def test_what_few_clips_leave_possible_is_confirmed() -> None:
    """The search has it at 2 mm, give or take 1.5, and the confirming clips at 0.4."""
    untouched = Point(Candidate(), 10.0)
    doubtful = Point(Candidate(((0, "all"),)), 5.0, Increase(2.0, 0.5, 3.5, 2.0, 32, 8))
    points = [doubtful, point(1, 6.0, 0.4)]
    choice, known = choose(Made([0.4, 0.4]), points, Goal(budget_mm=1.0), untouched, 3)  # type: ignore[arg-type]
    assert choice.shown and choice.point.candidate == doubtful.candidate and known[1].confirmed is None
    certain = replace(doubtful, search=Increase(2.0, 1.1, 2.9, 2.0, 32, 8))
    choice, known = choose(Made([0.4, 0.4]), [certain, points[1]], Goal(budget_mm=1.0), untouched, 3)  # type: ignore[arg-type]
    assert choice.point.candidate == points[1].candidate and known[0].confirmed is None


def test_what_misses_the_budget_for_certain_is_confirmed_on_a_part_and_not_counted() -> None:
    untouched = Point(Candidate(), 10.0)
    points = [point(0, 5.0, 0.9), point(1, 6.0, 0.8), point(2, 7.0, 0.4)]
    choice, known = choose(Made([3, 3, 0.4]), points, Goal(budget_mm=1.0), untouched, 1)  # type: ignore[arg-type]
    assert choice.shown and choice.point.candidate == points[2].candidate
    assert [each.confirmed.frames for each in known if each.confirmed] == [8, 8, 32]
    choice, known = choose(Made([1, 1, 0.4], noise=1), points, Goal(budget_mm=1.0), untouched, 1)  # type: ignore[arg-type]
    assert [each.confirmed is not None for each in known] == [True, False, False], "the one there is was spent"


def test_half_of_what_is_confirmed_is_kept_for_what_the_search_has_within_the_budget() -> None:
    """Four that may be within it and cannot be shown, then one that is."""
    untouched = Point(Candidate(), 10.0)
    doubtful = [
        Point(Candidate(((layer, "all"),)), 1.0 + layer, Increase(2.0, 0.5, 3.5, 2.0, 32, 8)) for layer in range(4)
    ]
    points = [*doubtful, point(4, 6.0, 0.4)]
    confirm = Made([0.98, 0.98, 0.98, 0.98, 0.4], noise=0.1)
    choice, known = choose(confirm, points, Goal(budget_mm=1.0), untouched, 3)  # type: ignore[arg-type]
    assert choice.shown and choice.point.candidate == points[4].candidate
    assert [each.confirmed is not None for each in known] == [True, True, False, False, True]


def test_of_too_many_combinations_those_about_the_budget_are_raced() -> None:
    found = [(Candidate(((layer, "all"),)), 1.0 + layer, 5.0 - layer) for layer in range(5)]
    raced = race(Made([5, 4, 3, 2, 1]), found, Goal(budget_mm=2.0), 3)  # type: ignore[arg-type]
    assert [each.candidate.removed[0][0] for each in raced] == [2, 3, 4]
    far = [(candidate, seconds, 40 + cost) for candidate, seconds, cost in found]
    least = race(Made([9, 9, 9, 9, 9]), far, Goal(budget_mm=2.0), 3)  # type: ignore[arg-type]
    assert [each.candidate.removed[0][0] for each in least] == [4], "where all cost far more, the least of them"


def hmr(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def check_pictures(folder: Path, found: dict[str, Any]) -> None:
    """What the page shows of the choice's frames, which are those that it was confirmed on."""
    page = (folder / "report.html").read_text()
    assert found["chosen"] != Candidate().key, "nothing is shown of the untouched network"
    worst, joints = found["worst"], found["by_joint"]
    rises = [each["after"] - each["before"] for each in worst]
    assert len(worst) == 10 and rises == sorted(rises, reverse=True)
    assert list(joints) == list(SMPL_JOINTS) and joints["pelvis"] == {"before": 0.0, "after": 0.0}
    means = [np.mean([each[when] for each in joints.values()]) for when in ("before", "after")]
    chosen = next(each for each in found["points"] if each["name"] == found["chosen"])
    assert means[0] == pytest.approx(found["baseline_mm"], abs=1e-4), "of all frames, as they are few"
    assert means[1] - means[0] == pytest.approx(chosen["confirmed"]["increase_mm"], abs=1e-4)
    shown = [name for name in ("worst.jpg", "tokens.jpg") if (folder / name).exists()]
    assert shown == ["worst.jpg", *(["tokens.jpg"] if chosen["candidate"]["tokens"] else [])]
    assert page.count("data:image/jpeg;base64,") == len(shown)
    assert hmr("report", folder, "-o", folder.parent / "again.html").exit_code == 0
    assert (folder.parent / "again.html").read_text().startswith(page)
    copy = shutil.copytree(folder, folder.parent / "copy")
    (copy / "worst.jpg").write_bytes((folder / "worst.jpg").read_bytes() + b"0")
    assert hmr("report", copy, "-o", folder.parent / "other.html").exit_code == 0
    other = (folder.parent / "other.html").read_text()
    assert other.count("data:image/jpeg;base64,") == len(shown) - 1, "another picture is none of the page's"
    assert Image.open(folder / "worst.jpg").size == (6 * 192, 5 * 256)


def test_examples_are_of_different_clips() -> None:
    clip = np.tile(np.arange(96), 4)
    assert np.unique(clip[_examples(clip)]).tolist() == [0, 14, 27, 41, 54, 68, 81, 95]
    assert _examples(np.array([5, 3, 5, 3])).tolist() == [1, 0]


def stop_the_clock(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """The choice is always found to be so many times as fast: a clock says nothing twice."""
    figures = {"fps": 1.0, "fps_quartiles": [1.0, 1.0], "speedup": times, "speedup_quartiles": [times, times]}
    monkeypatch.setattr(
        "hmrcompress.api.front.time_interleaved",
        lambda *args, **more: SimpleNamespace(figures=lambda *args, **more: figures),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_body_file: Path) -> Path:
    """Holds what `line` writes and reads, after its first run."""
    folder = tmp_path_factory.mktemp("searched")
    write_crops(folder / "crops.npz", tiny.crop_arrays(clips=36, frames=2), tiny.crop_meta())
    with pytest.MonkeyPatch.context() as patch:
        stop_the_clock(patch, 1.5)
        done = hmr(*line(folder, tiny_model, tiny_body_file), "--costs", folder / "costs.json", "-o", folder / "fast")
    assert done.exit_code == 0, done.output
    return folder


def line(folder: Path, model: Path, body: Path) -> list[object]:
    return ["compress", model, "--data", folder / "crops.npz", "--body", body, "--budget-mm", 30, "--preset", "quick",
            "--batch-size", 1, "--quiet"]  # fmt: skip


def test_one_command_and_once_more_from_its_journal(
    folder: Path, tmp_path: Path, tiny_model: Path, tiny_body_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_the_clock(monkeypatch, 1.5)
    command = [*line(folder, tiny_model, tiny_body_file), "--costs", folder / "costs.json", "-o"]
    names = ("model.safetensors", "plan.yaml", "frontier.json", "report.html", "config.json")
    first = {name: (folder / "fast" / name).read_bytes() for name in names}
    found = json.loads(first["frontier.json"])
    speed = found.get("speed")
    assert (speed is None) == (found["chosen"] == Candidate().key)
    assert speed is None or (speed["speedup"] > 1 and f"{speed['speedup']:.2f} times the speed" in found["sentence"])
    table = (folder / "costs.json").read_bytes()
    assert CostTable.from_json(json.loads(table), "x").to_json() == found["costs"]
    assert found["shown"] and found["sentence"].startswith("Asked for 30 mm at most, chosen: ")
    check_pictures(folder / "fast", found)
    assert b"<script src" not in first["report.html"] and b"link href" not in first["report.html"]
    # Killed after half of its lines, and started again: the rest is measured, and nothing twice.
    journal = folder / "fast.journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:9])
    again = hmr(*command, folder / "fast")
    assert again.exit_code == 0, again.output
    assert {name: (folder / "fast" / name).read_bytes() for name in names} == first
    assert journal.read_bytes().splitlines(keepends=True) == lines
    assert (folder / "costs.json").read_bytes() == table
    slow = min(found["points"], key=lambda each: each["fps"])
    assert hmr("pick", folder / "fast", "--fps", slow["fps"], "-o", tmp_path / "other.yaml").exit_code == 0
    assert Plan.read(tmp_path / "other.yaml").layers == 4
    none = hmr("pick", folder / "fast", "--fps", 1e9, "-o", tmp_path / "none.yaml")
    assert none.exit_code == 2 and "no point meets 1e+09 frames a second" in " ".join(none.output.split())
    assert hmr("pick", folder / "fast", "--layers", 3, "-o", tmp_path / "three.yaml").exit_code == 0
    three = Plan.read(tmp_path / "three.yaml")
    assert len(three.removed) == 1 and three.tokens is None
    rivals = [each for each in found["points"] if each["layers"] == 3 and each["candidate"]["tokens"] is None]
    costs = {
        each["name"]: each["confirmed"]["ci95_mm"][1] if each["confirmed"] else each["search"]["increase_mm"]
        for each in rivals
    }
    best = next(each for each in rivals if each["name"] == min(costs, key=costs.__getitem__))
    assert best["plan"]["removed"] == three.to_dict()["removed"]
    none = hmr("pick", folder / "fast", "--layers", 9, "-o", tmp_path / "none.yaml")
    assert none.exit_code == 2 and "no point meets 9 layers" in " ".join(none.output.split())
    for more, message in (
        (["--fps", 3], "give exactly one of a budget"),
        (["--preset", "slow"], "slow"),
    ):
        assert message in " ".join(hmr(*command, tmp_path / "b", *more).output.split())


def test_what_is_not_faster_by_the_clock_is_not_chosen(
    folder: Path, tmp_path: Path, tiny_model: Path, tiny_body_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured of errors is in a journal, so that the clock alone decides."""

    def costs(network: Any, ways: Any, *, batch: int, dtype: Any, progress: Any) -> CostTable:
        return replace(table(), batch=batch, key=cost_key(network, batch, dtype, ways).sha256)

    monkeypatch.setattr(front, "measure_costs", costs)
    for times, faster in ((0.5, False), (2.0, True)):
        stop_the_clock(monkeypatch, times)
        out = tmp_path / f"fast{times}"
        without_times(folder / "fast.journal.jsonl", tmp_path / f"fast{times}.journal.jsonl")
        done = hmr(*line(folder, tiny_model, tiny_body_file), "-o", out)
        assert done.exit_code == 0, done.output
        found = json.loads((out / "frontier.json").read_text())
        assert (found["chosen"] != Candidate().key) == faster == ("speed" in found)
        assert faster or "not faster when both are timed by turns" in found["sentence"]
        assert (Plan.read(out / "plan.yaml").removed == () and Plan.read(out / "plan.yaml").tokens is None) != faster


def test_few_clips_cannot_confirm(
    tmp_path: Path, tiny_model: Path, tiny_crops_file: Path, tiny_body_file: Path
) -> None:
    done = hmr("compress", tiny_model, "--data", tiny_crops_file, "--body", tiny_body_file, "--budget-mm", 1,
               "-o", tmp_path / "fast")  # fmt: skip
    assert done.exit_code == 2 and "takes 36" in " ".join(done.output.split())


def test_the_cost_table_is_no_other_output(tmp_path: Path) -> None:
    line = ["compress", "starter", "--data", "starter:calib", "--budget-mm", 1]
    (tmp_path / "costs.json").write_text("{}")
    for costs, more, says in (
        ("a.json", ["-o", tmp_path / "fast", "--json", tmp_path / "a.json"], "to be written twice"),
        ("fast", ["-o", tmp_path / "fast"], "to be written twice"),
        ("costs.json", ["-o", tmp_path / "costs.json"], "is a file"),
        ("costs.json/below", ["-o", tmp_path / "fast"], "is a file"),
    ):
        done = hmr(*line, "--costs", tmp_path / costs, *more)
        assert done.exit_code == 2 and says in " ".join(done.output.split()), (costs, done.output)
    assert [each.name for each in tmp_path.iterdir()] == ["costs.json"]


def test_a_rival_that_missed_the_budget_does_not_win_by_fewer_frames() -> None:
    """Dropped after one batch at 1.5 mm, against 2.0 mm on all frames that may still be within the budget."""
    dropped = Point(Candidate(((1, "all"),)), 1.0, increase(1.5, 1.5, 1.5, 16))
    possible = Point(Candidate(((1, "all"),), 0.5), 1.0, increase(2.0, 0.5, 3.5, 128))
    assert min((dropped, possible), key=lambda each: _standing(each, Goal(budget_mm=1.0))) is possible
    assert min((dropped, possible), key=lambda each: _standing(each, Goal(seconds=1.0))) is dropped


def test_what_is_shown_is_what_the_clock_says() -> None:
    point = Point(Candidate(((1, "all"),)), 1.0, increase(1.0, 0.5, 1.5, 16))
    choice = Choice(point, True, "the least error")
    asked: dict[str, float | None] = {"budget_mm": None, "fps": None, "speedup": 2.0}
    timed = by_the_clock(choice, {"speedup": 1.4, "fps": 7.0}, asked)
    assert not timed.shown and timed.why == "it was predicted to be fast enough, and has 1.4 times the speed"
    assert by_the_clock(choice, {"speedup": 2.0, "fps": 7.0}, asked) is choice
    assert not by_the_clock(choice, {"speedup": 2.0, "fps": 7.0}, {"fps": 10.0}).shown
    assert by_the_clock(choice, {"speedup": 1.4, "fps": 7.0}, {"budget_mm": 1.0}) is choice
    untouched = Point(Candidate(), 2.0, increase(0.0, 0.0, 0.0, 16))
    for goal, shown in ((Goal(budget_mm=1.0), True), (Goal(seconds=1.0), False)):
        left = left_alone(choice, untouched, goal, 6)
        assert left.point is untouched and left.shown == shown and "not faster" in left.why


def test_so_many_choices_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = Point(Candidate(), 2.0)
    points = [Point(Candidate(((layer, "all"),)), 1.0 + layer / 10) for layer in range(1, 6)]
    monkeypatch.setattr(
        joint, "choose", lambda confirm, points, *rest, **more: (Choice(points[0], True, ""), [*points])
    )
    asked: dict[str, float | None] = {"budget_mm": 1.0, "fps": None, "speedup": None}
    for slow, many in ((2, 5), (9, 5), (9, 2)):
        speeds = {point.candidate: {"speedup": 0.9 if number < slow else 1.5} for number, point in enumerate(points)}
        given = points[:many]
        found = joint.settle(cast(Any, None), given, Goal(budget_mm=1.0), untouched, asked, speeds.get, depth=6, most=4)
        assert found.points == given
        assert len(found.slower) == min(slow, many, joint.MOST_TIMED)
        assert found.choice.point == (points[2] if slow == 2 else untouched)
        assert (found.speed == {"speedup": 1.5}) == (slow == 2) == (found.speed is not None)


def increase(mean: float, low: float, high: float, frames: int) -> Increase:
    return Increase(mean=mean, low=low, high=high, distance=mean, clips=8, frames=frames)


def test_what_cannot_be_searched_on_is_refused(
    folder: Path, tmp_path: Path, tiny_model: Path, tiny_body_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks from inside the network, the clips that confirm, and a ground truth of another body."""
    command = [*line(folder, tiny_model, tiny_body_file), "-o", tmp_path / "fast"]
    ended = hmr(*command, "--masks", "self")
    assert ended.exit_code == 2 and "--masks self: are made inside the network" in " ".join(ended.output.split())
    with monkeypatch.context() as patch:

        def refuse(self: CropSet, measure: Any) -> None:
            raise UserError("cannot serve it", "the data")

        patch.setattr(CropSet, "check_measure", refuse)
        ended = hmr(*command)
        assert ended.exit_code == 2 and "the data: cannot serve it" in ended.output
    crops = CropSet.open(folder / "crops.npz")
    crops.meta["split"] = "confirm"
    monkeypatch.setattr(front, "of_starter", lambda data: True)
    monkeypatch.setattr(front, "open_data", lambda data, **more: crops)
    with pytest.raises(UserError, match="is what the choice is confirmed on"):
        Bench.opened(
            tiny_model, "starter:confirm", PRESETS["quick"], "truth", "none", tiny_body_file, "cpu", 1, 0,
            tmp_path / "fast", no_progress,
        )  # fmt: skip


def test_the_frames_that_a_choice_saw_stand_in_the_model(folder: Path) -> None:
    """Those searched, fitted and confirmed on: scored on them, the model has seen them."""
    records = list(records_in(read_model_folder(folder / "fast").config.provenance))
    crops = CropSet.open(folder / "crops.npz")
    indices = np.arange(len(crops.clip))
    known = np.logical_or.reduce([seen(record, crops, indices) for record in records])
    assert len(records) >= 2 and known.any()
    assert set(crops.clip[known]) == set(crops.clip_ids), "every clip was searched, fitted or confirmed on"
