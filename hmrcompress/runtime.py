"""What a run stands on: device, dtype, seeds, progress on the terminal, and the record of all that for the JSON."""

from __future__ import annotations

import ctypes
import multiprocessing as mp
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.errors import UserError

SCHEMA = 1
GIVE_BACK_EVERY = 8
"""Batches after which memory is given back: what little is kept of each lies between the large pieces that were freed,
so that the heap of glibc grows by ten megabytes a batch."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` (the first CUDA device, else the CPU), `cpu`, `cuda` or `cuda:n` -> device. UserError if there is none."""
    kind, _, number = name.partition(":")
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (name != "cuda" and not number.isdigit()):
        raise UserError(f"got {name!r}, expected auto, cpu, cuda or cuda:n", "--device")
    if not torch.cuda.is_available():
        raise UserError(
            f"got {name}, but torch {torch.__version__} sees no CUDA device", "--device", "Try --device cpu"
        )
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise UserError(f"got {name}, but there are {count} CUDA devices, numbered from 0", "--device")
    return torch.device("cuda", index)


def pick_dtype(name: str = "float32") -> torch.dtype:
    """`float32`, `bfloat16` or `float16` -> dtype. UserError for another name."""
    if name not in DTYPES:
        raise UserError(f"got {name!r}, expected one of {', '.join(DTYPES)}", "--dtype")
    return DTYPES[name]


def pick_fast_dtype(name: str, device: torch.device) -> tuple[torch.dtype, bool]:
    """As `pick_dtype`, or `int8`: linear layers in 8 bits, the rest in the dtype that is fastest on the device ->
    (dtype, whether int8). UserError for another name, and for int8 elsewhere than on a CPU."""
    if name != "int8":
        return pick_dtype(name), False
    if device.type != "cpu":
        raise UserError(f"int8 runs on the CPU, not on {device}", "--dtype", "Try --dtype bfloat16")
    return fast_dtype(device), True


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> `float32`, as `pick_dtype` takes it and as files record it."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """The context in which a float32 network computes in `dtype`: nothing for float32, else torch's autocast."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype that large products are fastest in: bfloat16 where the processor has units for it, else float32.

    A CPU without them emulates bfloat16 a hundred times slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.bfloat16 if any(check is not None and check() for check in checks) else torch.float32


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own on `device`, seeded."""
    return torch.Generator(device=device).manual_seed(seed)


Progress = Callable[[str, int, int], None]
"""How library functions tell of their progress: `progress(what, done, total)`, any number of times."""


def no_progress(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Progress]:
    """A bar with the time left, on stderr while the block runs; what it gives is a `Progress`.

    Nothing is drawn when `quiet`, when stderr is not a terminal, and by processes that do not lead, and the bar goes
    away at the end.
    """
    helps = int(os.environ.get("RANK", 0)) > 0  # as `io.together` has it, which lies above
    if quiet or helps or not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show


def record(
    command: str, figures: dict[str, Any], *, seed: int | None = None, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The JSON of a command: {schema, command, **figures[, seed], versions, device, cpu[, commit]}. No clock in it."""
    seeded = {} if seed is None else {"seed": seed}
    return {"schema": SCHEMA, "command": command, **figures, **seeded, **environment(device)}


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """{versions, device, cpu[, commit]} for the JSON of a command; `commit` only when run from a git checkout."""
    device = torch.device(device)
    record: dict[str, Any] = {
        "versions": {
            "hmrcompress": _own_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device),
        "cpu": f"{cpu_name()}, {_cpu_count()} cores",
    }
    commit = _commit()
    return record | {"commit": commit} if commit else record


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hmrcompress")
    except PackageNotFoundError:  # run from a bare source folder
        return "unknown"


def _cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


@cache
def _commit() -> str | None:
    """The commit of the checkout around this package, `-dirty` if tracked files differ; None outside a checkout. Asked
    once: whatever is committed later is not what this process runs."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a repository without commits
        return None


@cache
def _trim() -> Callable[[int], Any] | None:
    """`malloc_trim` of glibc; None where there is none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def give_back_memory() -> None:
    """Gives freed memory back to the system, where the allocator would keep it (glibc)."""
    if (trim := _trim()) is not None:
        trim(0)


def become_helper() -> None:
    """To be called first in a process that works in the background: low priority, one thread, and an end together with
    the process that started it, however that ended."""
    if hasattr(os, "nice"):
        os.nice(5)
    torch.set_num_threads(1)
    if (parent := mp.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
