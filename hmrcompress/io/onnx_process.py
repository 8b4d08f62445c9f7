"""ONNX files of somebody else's, run in a process of their own with bounds on time and memory.

Whatever is in such a file (a loop without end, gigabytes out of nothing, a crash of onnxruntime) ends in one sentence.
Arrays go through shared memory; docs/safety.md says what that costs.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hmrcompress.errors import MissingExtra, UserError
from hmrcompress.io.onnx_file import check_onnx

SECONDS = 60.0
"""To open a file or run it on a picture. A large network takes a few, on a busy machine."""
SECONDS_ENV = "HMRCOMPRESS_ONNX_SECONDS"
MEMORY = 4 << 30
"""Bytes beside four times the weights."""
OF_A_THREAD = 80 << 20
"""Addresses that stack and heap of a thread reserve, and do not use."""
MOST_OUTPUT = 64 << 20
"""Bytes for a picture: ten times what the largest networks for people give."""
BYTES_A_SECOND = 10_000_000
WATCH_SECONDS = 0.2
LONGEST_TEXT = 250
SHORT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "bad allocation", "MemoryError", "Unable to allocate")


@dataclass(frozen=True)
class Port:
    """An input or output: its name, type (`tensor(float)`) and shape, where None or a text is any number."""

    name: str
    type: str
    shape: tuple[Any, ...]


class OnnxProcess:
    """A network in a helper process. `inputs`, `outputs`: what goes in and comes out; `names`: the text of its table of
    class names, empty without one."""

    def __init__(self, path: Path | str, *, threads: int, cuda: bool = False, memory: int | None = None) -> None:
        """Raises UserError where the file is missing, damaged, keeps weights elsewhere than beside it, or does not open
        within bounds; MissingExtra. memory: bytes that it may take, by default in proportion to its weights."""
        self.path = Path(path)
        beside = check_onnx(self.path)
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingExtra("onnxruntime", "export")
        self._size = sum(file.stat().st_size for file in (self.path, *beside))
        self._memory = MEMORY + 4 * self._size if memory is None else memory
        self._threads, self._cuda = threads, cuda
        self._seconds = _seconds()
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        with self._lock:
            found = self._started()
        self.inputs, self.outputs = (
            tuple(Port(one["name"], one["type"], tuple(one["shape"])) for one in found[kind])
            for kind in ("inputs", "outputs")
        )
        self.names: str = found["names"]

    def run(self, images: np.ndarray, wanted: Sequence[str]) -> list[np.ndarray]:
        """The outputs `wanted`, arrays of numbers, for images (n,…) as the only input. UserError where it fails, takes
        too long or too much memory, or gives text; the next call starts it anew."""
        with self._lock:
            if self._helper is None or self._helper.owner != os.getpid():
                self._started()
            assert self._helper is not None
            most = MOST_OUTPUT * max(1, len(images))
            try:
                return self._helper.run(self.inputs[0].name, images, wanted, most, self._seconds)
            except _Fault as error:
                raise self._refused(error, "the network failed") from error

    def close(self) -> None:
        """Ends the helper; the next call of `run` starts another."""
        with self._lock:
            if self._helper is not None:
                self._helper.stop()
                self._helper = None

    def _started(self) -> dict[str, Any]:
        self._helper = helper = _Helper(self.path, self._threads, self._cuda, self._memory)
        weakref.finalize(self, helper.stop)
        try:
            return helper.answer(self._seconds + self._size / BYTES_A_SECOND)
        except _Fault as error:
            raise self._refused(error, "onnxruntime cannot open it") from error

    def _refused(self, error: _Fault, what: str) -> UserError:
        if error.ended and self._helper is not None:
            self._helper.stop()
            self._helper = None
        text = str(error)
        if any(word in text for word in SHORT_OF_MEMORY):
            text, error.ended = f"it takes more than {self._memory / 1e9:.1f} GB of memory", True
        if not error.ended:
            return UserError(f"{what} ({text[:LONGEST_TEXT]})", self.path)
        remedy = f"{SECONDS_ENV} gives it longer" if "seconds" in text else ""
        return UserError(f"{text} and was stopped", self.path, remedy)


class _Fault(Exception):
    """What went wrong in the helper; ended: the process is not there any more, or must not be."""

    def __init__(self, text: str, ended: bool = False) -> None:
        super().__init__(text)
        self.ended = ended


class _Helper:
    """The process, its pipes and what it shares."""

    def __init__(self, path: Path, threads: int, cuda: bool, memory: int) -> None:
        self.owner, self.memory = os.getpid(), memory + (MEMORY if cuda else 0)
        self.given, self.found = _shared(), _shared()
        self.maps: dict[int, mmap.mmap] = {}
        self.answers, theirs = os.pipe()
        settings = {
            "path": str(path.absolute()),
            "threads": threads,
            "cuda": cuda,
            "memory": memory + threads * OF_A_THREAD,
            "parent": self.owner,
            "given": self.given,
            "found": self.found,
            "answers": theirs,
        }
        hidden = {name: value for name, value in os.environ.items() if name != "ORT_LOAD_CONFIG_FROM_MODEL"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("onnx_worker.py")), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=hidden | {"MALLOC_ARENA_MAX": "4"},
            pass_fds=(self.given, self.found, theirs),
        )
        os.close(theirs)
        self.text = b""

    def run(self, name: str, images: np.ndarray, wanted: Sequence[str], most: int, seconds: float) -> list[np.ndarray]:
        """One call. Raises _Fault."""
        size = images.nbytes
        if self.given not in self.maps or size > len(self.maps[self.given]):
            os.ftruncate(self.given, max(size, 1))
            self.maps[self.given] = mmap.mmap(self.given, 0)
        np.frombuffer(self.maps[self.given], images.dtype, images.size).reshape(images.shape)[:] = images
        shape = list(images.shape)
        asked = {"input": name, "type": images.dtype.str, "shape": shape, "bytes": size, "wanted": list(wanted)}
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(asked | {"most": most}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self._gone() from error
        answer = self.answer(seconds + seconds / 6 * (len(images) - 1))
        if self.found not in self.maps or answer["bytes"] > len(self.maps[self.found]):
            self.maps[self.found] = mmap.mmap(self.found, 0)
        arrays, at = [], 0
        for one in answer["arrays"]:
            kind, count = np.dtype(one["type"]), int(np.prod(one["shape"], dtype=np.int64))
            flat = np.frombuffer(self.maps[self.found], kind, count, at) if count else np.zeros(0, kind)
            arrays.append(flat.reshape(one["shape"]).copy())
            at += count * kind.itemsize
        return arrays

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next line. Raises _Fault: what the helper says, or that it ended, took too long or too much."""
        limit = time.monotonic() + seconds
        while b"\n" not in self.text:
            if not select.select([self.answers], [], [], WATCH_SECONDS)[0]:
                if time.monotonic() > limit:
                    raise _Fault(f"it has not come to an end within {seconds:.0f} seconds", True)
                if self._resident() > self.memory:
                    raise _Fault(f"it takes more than {self.memory / 1e9:.1f} GB of memory", True)
                continue
            part = os.read(self.answers, 1 << 16)
            if not part:
                raise self._gone()
            self.text += part
        line, _, self.text = self.text.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise _Fault(answer["error"])
        return answer

    def stop(self) -> None:
        """Ends the process, if it is this one's."""
        if self.owner == os.getpid() and self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        for handle in (self.given, self.found, self.answers):
            if handle >= 0:
                os.close(handle)
        self.given = self.found = self.answers = -1

    def _resident(self) -> int:
        try:
            return psutil.Process(self.process.pid).memory_info().rss
        except psutil.Error:
            return 0

    def _gone(self) -> _Fault:
        code = self.process.wait(timeout=10)
        return _Fault(f"it ended its process ({f'signal {-code}' if code < 0 else f'code {code}'})", True)


def _shared() -> int:
    """A descriptor of an empty file in memory, or where there is none such, of one on the disk without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("hmrcompress")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _seconds() -> float:
    given = os.environ.get(SECONDS_ENV, "")
    try:
        seconds = float(given or SECONDS)
        if 0 < seconds < 1e6:
            return seconds
    except ValueError:
        pass
    raise UserError(f"got {given!r}, expected seconds", SECONDS_ENV)
