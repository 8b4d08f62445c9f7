"""`compress` killed by SIGKILL in many places and started again: the same bytes at last, nothing measured twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from hmrcompress.data.crops import write_crops
from hmrcompress.models.files.load import load_checkpoint

HERE = Path(__file__).parent
PLACES = (1, 2, 5, 9, 1, 14, 30, *range(1, 12), 0)
"""While it searches, then, when all is in the journal, at each step of writing the folder."""


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, tiny_model: Path, tiny_body_file: Path) -> None:
    write_crops(tmp_path / "crops.npz", tiny.crop_arrays(clips=36, frames=2), tiny.crop_meta())
    line = ["compress", str(tiny_model), "--data", str(tmp_path / "crops.npz"), "--body", str(tiny_body_file),
            "--budget-mm", "30", "--preset", "quick", "--batch-size", "1", "--quiet", "-o", "fast"]  # fmt: skip
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    order = {"args": line, "folders": {whole: [0], killed: [*PLACES]}}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, str(HERE / "compress_worker.py")], input=json.dumps(order),
                          capture_output=True, text=True, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (once,), runs = found[whole], found[killed]
    assert once["status"] == 0 == runs[-1]["status"], once["output"] + runs[-1]["output"]
    stopped = [each["status"] == -signal.SIGKILL for each in runs]
    assert sum(stopped) >= 12 and all(stopped[:7]), [each["status"] for each in runs]
    assert once["measured"] > 20 and sum(each["measured"] for each in runs) == once["measured"], "nothing is repeated"
    names = [json.loads(each).get("name") for each in (Path(killed) / "fast.journal.jsonl").read_text().splitlines()]
    assert len(names) == len(set(names))
    for path in sorted((Path(whole) / "fast").rglob("*")):
        other = Path(killed) / "fast" / path.name
        assert other.read_bytes() == path.read_bytes(), path.name
    assert {each.name for each in Path(killed).iterdir()} == {"fast", "fast.journal.jsonl"}, "nothing else is left"
    assert load_checkpoint(Path(killed) / "fast").plan is not None
