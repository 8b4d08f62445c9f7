"""Every reader against damaged and hostile files: it reads them or says in one sentence why not.

Never a crash, a hang, code that runs, or more than 1 GB of memory. Cases are drawn by hypothesis, always the same.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_mutations import CANARY, damaged
from fuzz_targets import TARGETS, Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmrcompress.io.onnx_process import SECONDS_ENV

HERE = Path(__file__).parent
HANGS_AFTER = 60.0
"""Seconds; the slowest case takes under one, but the machine may be busy."""
QUICK, SLOW = 4, 130


class Worker:
    """The child process, started again when it died."""

    def __init__(self, canary: Path) -> None:
        self.canary, self.peak = canary, 0
        self.counts: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(HERE / "fuzz_worker.py")]
        environment = os.environ | {
            CANARY: str(self.canary),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(HERE),
            SECONDS_ENV: "20",
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=self.canary.parent
        )
        self.said: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(self.process, self.said), daemon=True).start()
        assert self.said.get(timeout=300) == "ready\n"

    @staticmethod
    def _listen(process: subprocess.Popen, said: queue.Queue[str]) -> None:
        for line in process.stdout:
            said.put(line)
        said.put("")

    def read(self, target: Target, path: Path) -> None:
        """Has the child read a file. AssertionError for anything that must not happen."""
        self.process.stdin.write(f"{target.name}\t{path}\n")
        self.process.stdin.flush()
        try:
            answer = self.said.get(timeout=HANGS_AFTER)
        except queue.Empty:
            self.stop()
            self.start()
            raise AssertionError(f"{target.name} hangs") from None
        if not answer:
            code = self.process.wait()
            self.start()
            raise AssertionError(f"{target.name} ended the process with {code}")
        outcome, *more = answer.rstrip("\n").split("\t")
        self.peak = max(self.peak, int(more[-1]))
        self.counts[outcome] += 1
        assert outcome != "fault", f"{target.name}: " + more[0].replace("\\n", "\n")
        assert not self.canary.exists(), f"{target.name} ran code"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    canary = tmp_path_factory.mktemp("canary") / "ran"
    os.environ[CANARY] = str(canary)
    made = Worker(canary)
    yield made
    made.stop()
    del os.environ[CANARY]


def fuzz(worker: Worker, target: Target, folder: Path, cases: int) -> None:
    """Reads `cases` damaged files of a kind."""
    valid = target.make(folder)
    contents = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    within = [path for path in contents if (path == valid or valid in path.parents) and path.match(target.only)]

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(within))
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        victim.write_bytes(damaged(data.draw, target.name, contents[victim], victim))
        worker.read(target, valid)

    worker.read(target, valid)
    check()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_few_damaged_files(worker: Worker, target: Target, tmp_path: Path) -> None:
    fuzz(worker, target, tmp_path, 1 if target.helped else QUICK)


@pytest.mark.slow
def test_four_thousand_damaged_files(worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started, faults = time.monotonic(), []
    for number, target in enumerate(TARGETS):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            fuzz(worker, target, folder, SLOW)
        except AssertionError as error:
            faults.append(str(error))
    count, seconds = sum(worker.counts.values()), time.monotonic() - started
    with capsys.disabled():
        print(  # noqa: T201
            f"\nfuzz: {count} cases of {len(TARGETS)} kinds in {seconds:.0f} s: {worker.counts['ok']} read, "
            f"{worker.counts['refused']} refused, {len(faults)} kinds at fault; peak {worker.peak} MB above the start"
        )
    assert not faults, "\n\n".join(faults)
    assert count >= 4000 and worker.peak < 1024
