"""Cost tables: runs are tied together whatever the machine does meanwhile; of `compress --costs FILE` a new one is
written, one that is there is used, and equal times give equal plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from compress_worker import stop_the_clock
from typer.testing import CliRunner, Result

from hmrcompress.api import front
from hmrcompress.data.crops import write_crops
from hmrcompress.frontier import costs
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.costs import measure_costs
from hmrcompress.timing.rounds import Timing
from hmrcompress_cli.main import app


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def line(tmp_path: Path, tiny_model: Path, tiny_body_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The command on a device whose times are written down, but for where to write."""
    stop_the_clock(monkeypatch.setattr)
    write_crops(tmp_path / "crops.npz", tiny.crop_arrays(clips=36, frames=1), tiny.crop_meta())
    return ["compress", tiny_model, "--data", tmp_path / "crops.npz", "--body", tiny_body_file, "--batch-size", 1,
            "--preset", "quick", "--masks", "none", "--quiet", "--budget-mm", 30]  # fmt: skip


def test_equal_times_give_equal_plans(line: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "costs.json"
    first = hmr(*line, "--costs", table, "-o", tmp_path / "a")
    assert first.exit_code == 0, first.output
    written = table.read_bytes()
    assert json.loads(written)["attention"] == {"192": 2.0, "72": 1.0}

    def measured(*args: Any, **more: Any) -> Any:
        raise AssertionError("the device is timed again")

    monkeypatch.setattr(front, "measure_costs", measured)
    second = hmr(*line, "--costs", table, "-o", tmp_path / "b")
    assert second.exit_code == 0, second.output
    assert table.read_bytes() == written, "what is there is an input"
    for name in ("plan.yaml", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    kept = [json.loads((tmp_path / each / "frontier.json").read_text())["costs"] for each in "ab"]
    assert kept[0] == kept[1]


def test_files_that_are_no_table_of_this_device(line: list[object], tmp_path: Path) -> None:
    table, mine = tmp_path / "costs.json", tmp_path / "mine.json"
    mine.write_text('{"mine": 1}')
    assert hmr(*line, "--costs", table, "-o", tmp_path / "a").exit_code == 0
    other = json.loads(table.read_text()) | {"key": "0" * 64}
    (tmp_path / "other.json").write_text(json.dumps(other))
    lame = json.loads(table.read_text()) | {"attention": {"many": 1}}
    (tmp_path / "lame.json").write_text(json.dumps(lame))
    for path, message in (
        (mine, "holds no cost table"),
        (tmp_path / "lame.json", "holds no cost table"),
        (tmp_path / "other.json", "was measured for another device, network, version or number of threads"),
        (tmp_path / "crops.npz", "crops.npz"),
        (tmp_path, "is not a file"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        done = hmr(*line, "--costs", path, "-o", tmp_path / "b")
        assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
        assert not (tmp_path / "b").exists() and (not path.is_file() or path.read_bytes() == before)


def test_numbers_of_tokens_are_comparable_however_the_machine_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of tokens is timed on a machine of another speed, and what takes no part of the time differs, too."""
    drifts, seen = [1.0, 3.0, 0.5], []
    costs_of = {"tie": 8.0, "embed": 0.5, "head": 0.25, "attention": 4.0, "mlp": 6.0}

    def timed(runs: Any, crops: Any, *, rounds: int, warmup: int) -> Timing:
        drift, share = drifts[len(seen)], [1.0, 0.5, 0.25][len(seen)]
        seen.append(set(runs))
        true = {
            name: value * (share if name in ("attention", "mlp", "head") else 1) for name, value in costs_of.items()
        }
        true |= {name: 0.5 + 0.125 for name in runs if name not in true}
        return Timing({name: (drift * value, 2 * drift * value, drift * value) for name, value in true.items()}, 1)

    monkeypatch.setattr(costs, "time_interleaved", timed)
    network = tiny.network()
    table = measure_costs(network, [Candidate(keep=keep, way="drop") for keep in (96, 48)], batch=1)
    depth = network.config.depth
    assert [set(each) - set(costs_of) for each in seen] == [set(), {"drop 96"}, {"drop 48"}]
    for part, value in (("attention", 4.0 / depth), ("mlp", 6.0 / depth), ("head", 0.25)):
        found = getattr(table, part)
        assert [found[count] / found[192] for count in (192, 96, 48)] == pytest.approx([1, 0.5, 0.25])
        assert found[192] / table.embed == pytest.approx(value / 0.5)
    assert {name: value / table.embed for name, value in table.reducing.items()} == pytest.approx(
        {"drop 96": 0.25, "drop 48": 0.25}
    )
