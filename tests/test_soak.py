"""200 random command lines over random outputs, beside files of the user's, killed at random file events: not one file
that was not ours changes, by hash; and the next run of the same command leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import output_world
import pytest

LINES = int(os.environ.get("HMRCOMPRESS_SOAK", "200"))
WORKERS = 2


@pytest.mark.slow
def test_nothing_of_the_users_is_lost(tmp_path: Path) -> None:
    inputs = output_world.make(tmp_path / "inputs")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    workers = []
    for worker in range(WORKERS):
        room = tmp_path / f"room{worker}"
        room.mkdir()
        numbers = [str(worker), str(LINES // WORKERS), str(WORKERS)]
        command = [sys.executable, str(Path(__file__).parent / "soak_worker.py"), str(inputs), str(room), *numbers]
        workers.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    faults: list[str] = []
    for process in workers:
        said, complaints = process.communicate()
        assert process.returncode == 0, complaints
        faults += json.loads(said)
    assert not faults, "\n".join(faults[:20])
