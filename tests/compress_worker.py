"""The helper of `test_frontier_killed`: runs `compress` in forks of itself, in each folder again and again, killed by
SIGKILL at a flush of a file or a renaming, counted from 1 in each run; 0 lets it end.

stdin: JSON {args, folders: {FOLDER: [place, …]}}; stdout: JSON {FOLDER: [{status, measured, output}, …]}. `measured`
counts batches of frames that were measured in that run. The clock always says the same.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hmrcompress.api import front, front_files
from hmrcompress.frontier.costs import CostTable, cost_key
from hmrcompress.frontier.errors import Errors
from hmrcompress.runtime import environment
from hmrcompress_cli.main import main

FIGURES = {"fps": 1.0, "fps_quartiles": [1.0, 1.0], "speedup": 1.5, "speedup_quartiles": [1.5, 1.5]}


def costs(network: Any, ways: Any, *, batch: int, dtype: torch.dtype, progress: Any) -> CostTable:
    """A device whose times are written down, in the place of `measure_costs`."""
    times: list[dict[int, float]] = [{192: 2.0 * each, 72: each} for each in (1.0, 2.0, 0.3)]
    key = cost_key(network, batch, dtype, ways).sha256
    return CostTable("cpu", str(dtype).removeprefix("torch."), batch, 192, 1.0, *times, {}, key)


def timing(*args: Any, **more: Any) -> Any:
    """What is chosen is always found to be as fast as that, in the place of `time_interleaved`."""
    return SimpleNamespace(figures=lambda *args, **more: FIGURES)


def stop_the_clock(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Of `compress`, for good or by a `monkeypatch.setattr`."""
    for name, value in (("measure_costs", costs), ("time_interleaved", timing)):
        patch(front, name, value)
    patch(front, "fast_dtype", lambda device: torch.float32)
    as_it_is = environment()  # whatever is committed while a test runs
    patch(front_files, "environment", lambda device: as_it_is)


def without_times(journal: Path, other: Path) -> None:
    """Copies the journal of a run, but for what a clock said: a run that begins with it measures no error again."""
    lines = journal.read_text().splitlines(keepends=True)
    other.write_text("".join(line for line in lines if not line.startswith(('{"name": "costs ', '{"name": "speed '))))


def in_the_fork(arguments: list[str], folder: str, place: int, said: int, counted: int) -> None:
    """Runs the command, and ends this process whatever happens."""
    code, reached = 1, 0

    def armed(original: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal reached
            reached += 1
            if reached == place:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **named)

        return call

    def counting(self: Errors, candidate: Any, number: int) -> Any:
        os.write(counted, b".")
        return measured(self, candidate, number)

    measured = Errors.measured
    named: Any = Errors
    named.measured = counting
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder)
        sys.argv = ["hmrcompress", *arguments]
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, armed(getattr(os, name)))
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - the parent is told by what is printed
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(arguments: list[str], folder: str, place: int) -> dict[str, Any]:
    """One command in a fork."""
    Path(folder).mkdir(exist_ok=True)
    (output, said), (number, counted) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        in_the_fork(arguments, folder, place, said, counted)
    os.close(said)
    os.close(counted)
    with os.fdopen(output) as text, os.fdopen(number) as dots:
        found = {"output": text.read(), "measured": len(dots.read())}
    return found | {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    stop_the_clock()
    order = json.load(sys.stdin)
    found = {
        folder: [run(order["args"], folder, place) for place in places] for folder, places in order["folders"].items()
    }
    json.dump(found, sys.stdout)
