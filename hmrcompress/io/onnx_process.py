"""Graphs of somebody else's (ONNX, OpenVINO's own form), run in a process of their own with bounds on time and memory.

Whatever is in such a file (a loop without end, gigabytes out of nothing, a crash of the runtime) ends in one sentence.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
ALIGNED = 64
"""Bytes that every array in shared memory begins at a multiple of."""
LONGEST_TEXT = 250
LARGEST_XML = 64 << 20
"""Bytes of the text of OpenVINO's own form: a hundred times that of the largest network here."""
Engine = Literal["onnxruntime", "openvino"]
EXTRAS: dict[str, str] = {"onnxruntime": "export", "openvino": "openvino"}
"""What runs a graph, and the extra of hmrcompress that brings it."""
SHORT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "bad allocation", "MemoryError", "Unable to allocate")


@dataclass(frozen=True)
class Port:
    """An input or output: its name, type (`tensor(float)`) and shape, where None or a text is any number."""

    name: str
    type: str
    shape: tuple[Any, ...]


class OnnxProcess:
    """A network in a helper process. `inputs`, `outputs`: what goes in and comes out; `names`: the text of its table of
    class names, empty without one; `about`: what the runtime says of itself."""

    def __init__(
        self,
        path: Path | str,
        *,
        threads: int,
        cuda: bool = False,
        memory: int | None = None,
        engine: Engine = "onnxruntime",
        precision: str = "float32",
    ) -> None:
        """Raises UserError where the file is missing, damaged, keeps weights elsewhere than beside it, or does not open
        within bounds; MissingExtra. memory: bytes that it may take, by default in proportion to its weights. engine:
        what runs it; openvino takes the XML of its own form. precision: what openvino is to compute in, a hint."""
        self.path, self._engine, self._precision = Path(path), engine, precision
        beside = check_onnx(self.path) if engine == "onnxruntime" else check_xml(self.path)
        if importlib.util.find_spec(engine) is None:
            raise MissingExtra(engine, EXTRAS[engine])
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
        self.about: dict[str, Any] = found.get("about", {})

    def run(self, images: np.ndarray, wanted: Sequence[str]) -> list[np.ndarray]:
        """As `call`, for images (n,…) as the only input."""
        return self.call({self.inputs[0].name: images}, wanted)

    def call(self, given: Mapping[str, np.ndarray], wanted: Sequence[str]) -> list[np.ndarray]:
        """The outputs `wanted`, arrays of numbers, for inputs (n,…) by name, the pictures first. UserError where it
        fails, takes too long or too much memory, or gives text; the next call starts it anew."""
        with self._lock:
            if self._helper is None or self._helper.owner != os.getpid():
                self._started()
            assert self._helper is not None
            count = len(next(iter(given.values())))
            try:
                return self._helper.run(given, wanted, MOST_OUTPUT * max(1, count), self._seconds)
            except _Fault as error:
                raise self._refused(error, "the network failed") from error

    def close(self) -> None:
        """Ends the helper; the next call of `run` starts another."""
        with self._lock:
            if self._helper is not None:
                self._helper.stop()
                self._helper = None

    def _started(self) -> dict[str, Any]:
        self._helper = helper = _Helper(
            self.path, self._threads, self._cuda, self._memory, self._engine, self._precision
        )
        weakref.finalize(self, helper.stop)
        try:
            return helper.answer(self._seconds + self._size / BYTES_A_SECOND)
        except _Fault as error:
            raise self._refused(error, f"{self._engine} cannot open it") from error

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

    def __init__(self, path: Path, threads: int, cuda: bool, memory: int, engine: Engine, precision: str) -> None:
        self.owner, self.memory = os.getpid(), memory + (MEMORY if cuda else 0)
        self.given, self.found = _shared(), _shared()
        self.maps: dict[int, mmap.mmap] = {}
        self.answers, theirs = os.pipe()
        settings = {
            "path": str(path.absolute()),
            "engine": engine,
            "precision": precision,
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

    def run(
        self, given: Mapping[str, np.ndarray], wanted: Sequence[str], most: int, seconds: float
    ) -> list[np.ndarray]:
        """One call. Raises _Fault."""
        inputs: list[dict[str, Any]] = []
        starts, size = [], 0
        for name, array in given.items():
            starts.append(size)
            inputs.append({"name": name, "type": array.dtype.str, "shape": list(array.shape), "at": size})
            size += -(-array.nbytes // ALIGNED) * ALIGNED
        if self.given not in self.maps or size > len(self.maps[self.given]):
            os.ftruncate(self.given, max(size, 1))
            self.maps[self.given] = mmap.mmap(self.given, 0)
        for at, array in zip(starts, given.values(), strict=True):
            place = np.frombuffer(self.maps[self.given], array.dtype, array.size, at)
            place.reshape(array.shape)[:] = array
        asked = {"inputs": inputs, "bytes": size, "wanted": list(wanted)}
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(asked | {"most": most}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self._gone() from error
        count = len(next(iter(given.values())))
        answer = self.answer(seconds + seconds / 6 * (count - 1))
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


def check_xml(path: Path) -> list[Path]:
    """The file of weights that belongs to a network in OpenVINO's own form. UserError where either is missing, or where
    the text is longer than that of any network."""
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if not file.is_file():
            raise UserError("no such file, and OpenVINO's form of a network is two of them", file)
    if path.stat().st_size > LARGEST_XML:
        raise UserError(f"has {path.stat().st_size} bytes, expected at most {LARGEST_XML}", path)
    return [weights]


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
