"""`compress --costs FILE`: a new one is written, one that is there is used, and equal times give equal plans."""

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
    costs = [json.loads((tmp_path / each / "frontier.json").read_text())["costs"] for each in "ab"]
    assert costs[0] == costs[1]


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
