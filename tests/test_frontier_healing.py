"""Healing in the loop of `compress`: what just misses the budget, how it is measured, kept and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from compress_worker import stop_the_clock
from typer.testing import CliRunner, Result

from hmrcompress.api import front_healing
from hmrcompress.api.front_healing import near_misses
from hmrcompress.data.crops import write_crops
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.errors import Errors
from hmrcompress.frontier.joint import Goal, Increase, Point
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.plan import RunSettings
from hmrcompress.training.loop import LoopSettings
from hmrcompress_cli.main import app


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def point(layer: int, seconds: float, mm: float) -> Point:
    return Point(Candidate(((layer, "all"),)), seconds, Increase(mm, mm - 0.1, mm + 0.1, mm, 32, 8))


def test_what_just_misses_is_faster_and_not_far_above() -> None:
    chosen = point(0, 6.0, 0.5)
    points = [
        point(1, 3.0, 9.0),
        point(2, 4.0, 2.9),
        point(3, 5.0, 1.4),
        point(4, 5.5, 1.2),
        chosen,
        point(5, 7.0, 1.1),
    ]
    assert [each.candidate.removed[0][0] for each in near_misses(points, chosen, Goal(budget_mm=1.0))] == [4, 3]
    assert near_misses(points, points[0], Goal(budget_mm=1.0)) == [], "nothing is faster"
    assert near_misses(points, chosen, Goal(seconds=6.0)) == [chosen]
    untouched = Point(Candidate(), 9.0)
    assert near_misses([untouched], untouched, Goal(seconds=6.0)) == []


def test_a_healed_candidate_has_a_name_of_its_own() -> None:
    found = Candidate(((1, "all"),), healed="abc")
    assert Candidate.parsed(found.key) == found and found.key != Candidate(((1, "all"),)).key
    assert found.words(4) == "3 of 4 layers, healed" and found.to_json()["healed"] == "abc"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, of which there are few sets to search."""
    folder, network = tmp_path_factory.mktemp("models") / "shallow", tiny.network(config=tiny.SHALLOW)
    return write_model_folder(folder, network.state_dict(), network.config, body="tiny").path


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, model: Path, tiny_body_file: Path) -> list[object]:
    """A command without healing that was run once, beside its data, on a device whose times are written down."""
    crops = tmp_path_factory.mktemp("searched") / "crops.npz"
    write_crops(crops, tiny.crop_arrays(clips=36, frames=2), tiny.crop_meta())
    line = ["compress", model, "--data", crops, "--body", tiny_body_file, "--batch-size", 6, "--preset", "quick",
            "--quiet"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        stop_the_clock(patch.setattr)
        done = hmr(*line, "--budget-mm", 30, "-o", crops.with_name("fast"))
    assert done.exit_code == 0, done.output
    return line


@pytest.fixture
def line(searched: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The same command with a journal of its own, in which what the search measured is. What it heals takes a few
    steps, however many the processor would do in the time."""
    stop_the_clock(monkeypatch.setattr)

    def steps(number: None, *, max_minutes: float) -> LoopSettings:
        assert number is None and max_minutes == 0.02, "all of it, as there is one point"
        return LoopSettings(2, validations=1)

    monkeypatch.setattr(front_healing, "LoopSettings", steps)
    shutil.copy(Path(str(searched[3])).with_name("fast.journal.jsonl"), tmp_path)
    return [*searched, "-o", tmp_path / "fast"]


def test_healing_in_the_loop_and_again(line: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Path] = []
    heal = front_healing.heal

    def counted(*args: Any, **more: Any) -> Any:
        trained.append(args[6])
        stream = args[3]
        assert {int(each) % 3 for each in stream.crops.clip[stream.indices]} == {0, 1}, "every third clip confirms"
        return heal(*args, **more)

    monkeypatch.setattr(front_healing, "heal", counted)
    # What is offered is decided by healing alone: everything else misses, and what was healed meets it.
    choose = front_healing.near_misses
    monkeypatch.setattr(
        "hmrcompress.api.compress.near_misses",
        lambda points, chosen, goal: choose(points, Point(Candidate(), 99.0), Goal(budget_mm=1e6))[:1],
    )
    done = hmr(*line, "--budget-mm", 30, "--heal", 0.02)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "fast" / "frontier.json").read_text())
    (healed,) = [each for each in found["points"] if each["candidate"].get("healed")]
    (place,) = trained
    model = load_checkpoint(place)
    assert model.sha256.startswith(healed["candidate"]["healed"]) and "healed" in healed["words"]
    assert model.plan is not None and model.plan.run == RunSettings(runtime="fast")
    assert healed["search"]["n_frames"] > 0
    again = hmr(*line, "--budget-mm", 30, "--heal", 0.02)
    assert again.exit_code == 0 and len(trained) == 1, again.output
    assert json.loads((tmp_path / "fast" / "frontier.json").read_text()) == found
    # Gone, it is healed anew, and told.
    for each in sorted(place.rglob("*"), reverse=True):
        each.unlink()
    place.rmdir()
    anew = hmr(*line, "--budget-mm", 30, "--heal", 0.02)
    assert anew.exit_code == 0 and len(trained) == 2 and "it is healed anew" in " ".join(anew.output.split())
    # No plan makes healed weights again, so that pick never gives them.
    slow = min(each["fps"] for each in found["points"])
    assert hmr("pick", tmp_path / "fast", "--fps", slow, "-o", tmp_path / "p.yaml", "--json", "-").exit_code in (0, 2)


def test_a_healed_choice_is_what_is_written(
    line: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = front_healing.increase_of

    def helped(errors: Errors, candidate: Candidate, *, seed: int) -> Increase:
        """As if a few steps did what many do: what is healed costs less."""
        assert candidate.healed
        found = measured(errors, candidate, seed=seed)
        return found._replace(mean=found.mean - 100)

    monkeypatch.setattr(front_healing, "increase_of", helped)
    done = hmr(*line, "--speedup", 1.5, "--heal", 0.02)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "fast" / "frontier.json").read_text())
    healed = [each for each in found["points"] if each["candidate"].get("healed")]
    assert len(healed) == 1
    written = load_checkpoint(tmp_path / "fast")
    assert found["chosen"] == healed[0]["name"]
    assert written.source["heal"]["images"] > 0 and written.sha256.startswith(healed[0]["candidate"]["healed"])


def test_nothing_to_heal_is_said(line: list[object]) -> None:
    done = hmr(*line, "--budget-mm", 30, "--heal", 0.02)
    assert done.exit_code == 0, done.output
    assert "no point is faster and just misses what is asked for" in " ".join(done.output.split())
    wrong = hmr(*line, "--budget-mm", 30, "--heal", 0)
    assert wrong.exit_code == 2 and "--heal: got 0.0, expected a number above 0" in wrong.output
