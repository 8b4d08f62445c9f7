"""Processes that `torchrun` launched together measure as one does: what is handed over, and the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

from hmrcompress.data.crops import write_crops
from hmrcompress.errors import UserError
from hmrcompress.io import together
from hmrcompress.io.together import Crew, FaultElsewhere, Helped, crew, in_turn, own_batches, shared
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress_cli.main import app

HERE = Path(__file__).parent


def launch(count: int, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`torchrun -m hmrcompress_cli words`, on the CPU, with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE)}
    command += ["-m", "hmrcompress_cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What three processes hand over, played by this one, the second: `as_said` of all by rank."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    others: list[Any] = []

    def gather(found: list[Any], made: Any, group: Any) -> None:
        found[:] = [others[0], made, others[1]]

    import torch.distributed as dist

    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(together, "_group", lambda: None)
    return others


def test_rows_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row once, whole batches each, whatever is left over."""
    for count, size, several in ((10, 3, 2), (12, 3, 4), (2, 5, 3), (0, 4, 2), (7, 1, 3)):
        monkeypatch.setenv("WORLD_SIZE", str(several))
        rows = []
        for rank in range(several):
            monkeypatch.setenv("RANK", str(rank))
            own = own_batches(count, size)
            assert all(row // size % several == rank for row in own) and own == sorted(own)
            rows += own
        assert sorted(rows) == list(range(count))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert own_batches(5, 2) == list(range(5)) and shared(lambda: 7) == [7] and in_turn(lambda: [1, 2]) == [1, 2]
    with crew(str) as alone:
        assert alone is None


def test_results_come_in_the_order_of_the_batches(three: list[Any]) -> None:
    """Batches 0, 3, 6 were the first process's, 1 and 4 this one's, 2 and 5 the third's."""
    three[:] = [(True, [0, 3, 6]), (True, [2, 5])]
    assert in_turn(lambda: [1, 4]) == [0, 1, 2, 3, 4, 5, 6]
    three[:] = [(True, [0]), (True, [])]
    assert in_turn(lambda: []) == [0]


def test_a_fault_of_one_is_one_of_all(three: list[Any]) -> None:
    three[:] = [(True, [0]), (False, "b.png: is damaged")]
    with pytest.raises(FaultElsewhere, match="process 2: b.png: is damaged"):
        shared(lambda: [1])

    def fails() -> list[int]:
        raise UserError("got nothing", "a.png")

    with pytest.raises(UserError, match=r"^a.png: got nothing") as caught:
        shared(fails)
    assert caught.value.told  # type: ignore[attr-defined]


def test_a_helper_does_what_is_ordered_until_the_end(three: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number is always the same process's."""
    said = [[(0, "a"), (1, "b"), (4, "c"), (2, "d")], None]
    monkeypatch.setattr(together, "_said", lambda value: said.pop(0))
    three[:] = [(True, {0: "A"}), (True, {3: "D"})]
    done: list[str] = []
    with pytest.raises(Helped):
        with crew(lambda order: done.append(order) or order.upper()):
            pytest.fail("a helper does not get here")
    assert done == ["b", "c"] and said == []
    made = Crew(str.upper)
    monkeypatch.setattr(together, "_said", lambda value: value)
    assert made.results([(0, "a"), (1, "b"), (4, "c"), (2, "d")]) == ["A", "B", "C", "D"]


def test_other_commands_refuse_to_run_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = CliRunner().invoke(app, ["predict", "starter", "x.png", "-o", str(tmp_path / "out")])
    assert done.exit_code == 2 and "predict: runs in one process, and 2 were launched" in done.stderr
    heal = ["compress", "starter", "--data", "starter:calib", "--budget-mm", "1", "--heal", "1", "-o", "x"]
    assert "--heal: trains in one process" in CliRunner().invoke(app, heal).stderr


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "target"), [("eq4", "truth"), ("mean", "teacher"), ("lstsq", "truth")])
def test_two_processes_search_as_one(rule: str, target: str, tmp_path: Path) -> None:
    """The same bytes of plan and journal, also where candidates are rejected early; one process prints."""
    world(tmp_path)
    words = ["search", "model", "--data", "crops.npz", "--body", "body.npz", "--batch-size", "4", "--tau", "0.1"]
    words += ["--merge-rule", rule, "--set", f"search.target={target}", "--set", "search.tokens=null"]
    made = {}
    for count in (1, 2):
        done = launch(count, *words, "-o", f"{count}.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("layers, ") == 1 and done.stdout.count("untouched: ") == 1, done.stdout
        made[count] = [(tmp_path / f"{count}{end}").read_bytes() for end in (".yaml", ".journal.jsonl")]
    assert made[1] == made[2]
    assert (b"at_least" in made[1][1]) == (target == "teacher"), "whose candidates were rejected early"


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path: Path) -> None:
    world(tmp_path)
    words = ["eval", "model", "--data", "crops.npz", "--body", "body.npz", "--batch-size", "5", "--device", "cpu"]
    words += ["--stride", "1,2", "--masks", "none"]
    found = {}
    for count in (1, 2):
        done = launch(count, *words, "--json", f"{count}.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("mean pose") == 1
        record = json.loads((tmp_path / f"{count}.json").read_text())
        found[count] = {name: record[name] for name in ("stages", "tokens", "sequence") if name in record}
    assert found[1] == found[2] and found[1]["stages"]["baseline"]["n_frames"] == 36
    done = launch(2, *words[:-1], "files:nowhere", cwd=tmp_path)
    assert done.returncode != 0 and "no such folder of masks" in done.stderr


@pytest.mark.slow
def test_two_processes_compress_as_one(tmp_path: Path) -> None:
    """With one cost table for both, as clocks give no bytes twice: the same measurements in the same order."""
    world(tmp_path, clips=36)
    words = ["compress", "model", "--data", "crops.npz", "--body", "body.npz", "--budget-mm", "5", "--preset", "quick"]
    words += ["--masks", "none", "--costs", "costs.json", "--device", "cpu", "--batch-size", "2"]
    found = {}
    for count in (1, 2):
        done = launch(count, *words, "-o", f"{count}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (tmp_path / f"{count}.journal.jsonl").read_text().splitlines()
        found[count] = [line for line in lines if '"name": "search ' in line or '"name": "confirm ' in line]
    assert found[1] == found[2] and len(found[1]) > 10


def world(folder: Path, clips: int = 12) -> None:
    """A model, a body, and clips of three crops each."""
    write_model_folder(folder / "model", tiny.network().state_dict(), tiny.CONFIG, body="tiny")
    tiny.write_body(folder / "body.npz")
    write_crops(folder / "crops.npz", tiny.crop_arrays(clips, 3), tiny.crop_meta())
