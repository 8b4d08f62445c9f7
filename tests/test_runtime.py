"""Device, dtype, seeds, the progress bar and the record of a command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hmrcompress.errors import UserError
from hmrcompress.runtime import (
    autocast,
    dtype_name,
    fast_dtype,
    generator,
    pick_device,
    pick_dtype,
    progress_bar,
    record,
)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="sees no CUDA device"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda:0")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="there are 2 CUDA devices"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "mps", "CPU"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="expected auto, cpu, cuda or cuda:n"):
        pick_device(name)


def test_dtypes() -> None:
    for name in ("float32", "bfloat16", "float16"):
        assert dtype_name(pick_dtype(name)) == name
    with pytest.raises(UserError, match="--dtype: got 'float8'"):
        pick_dtype("float8")


def test_autocast_computes_in_the_dtype() -> None:
    layer, ones = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(torch.device("cpu"), dtype):
            assert layer(ones).dtype == dtype


def test_seeds() -> None:
    assert torch.equal(torch.rand(3, generator=generator(1)), torch.rand(3, generator=generator(1)))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, quiet: bool) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(quiet=quiet) as progress:
        progress("searching", 1, 3)
        progress("searching", 3, 3)
    return stream.getvalue()


def test_progress_is_drawn_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, io.StringIO(), quiet=False) == ""
    assert drawn(monkeypatch, Terminal(), quiet=True) == ""
    shown = drawn(monkeypatch, Terminal(), quiet=False)
    assert "searching" in shown and "3/3" in shown
    for rank, draws in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert bool(drawn(monkeypatch, Terminal(), quiet=False)) == draws, "of several processes the first one draws"


def test_the_record_of_a_command() -> None:
    made = record("eval", {"stages": {}}, seed=3)
    assert list(made)[:4] == ["schema", "command", "stages", "seed"]
    assert (made["schema"], made["command"], made["seed"], made["device"]) == (1, "eval", 3, "cpu")
    assert {"hmrcompress", "python", "torch", "numpy"} == set(made["versions"]) and made["cpu"]
    assert json.loads(json.dumps(made)) == made == record("eval", {"stages": {}}, seed=3)
    assert "seed" not in record("inspect", {})


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads the processor's flags as Linux lists them")
def test_the_fast_dtype_is_bfloat16_where_the_processor_has_units_for_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    units = bool(flags & {"amx_bf16", "avx512_bf16"})
    assert fast_dtype(torch.device("cpu")) == (torch.bfloat16 if units else torch.float32)


HELPER = """
import multiprocessing as mp, os, time
from concurrent.futures import ProcessPoolExecutor
from hmrcompress.runtime import become_helper

pool = ProcessPoolExecutor(1, mp_context=mp.get_context("spawn"), initializer=become_helper)
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(time.sleep, 600)
time.sleep(600)
"""


def runs(process: int) -> bool:
    """Whether there is such a process, not a dead one that nobody has asked about (a zombie, state Z)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the process in /proc")
def test_helpers_end_with_a_process_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HELPER], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        helper = int(parent.stdout.readline())
        assert os.getpriority(os.PRIO_PROCESS, helper) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
        parent.kill()
    until = time.monotonic() + 20
    while runs(helper):
        assert time.monotonic() < until, "the helper is still there"
        time.sleep(0.05)
