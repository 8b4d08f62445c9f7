"""Many inputs on a Ray cluster: each worker opens the model once and does one input after the other.

All machines see the inputs, the model and the output under the same names (a shared file system). What is decided, and
the manifest, is this process's; a worker that ends in the middle of an input costs that input another try.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from hmrcompress.api.predict_job import OpenJob, PredictJob
from hmrcompress.errors import MissingExtra, UserError, first_line
from hmrcompress.io.keys import Key, listed
from hmrcompress.pipeline.many import Here, Order, Outcome, Stopped
from hmrcompress.pipeline.units import FAILED

NAME, EXTRA = "ray", "cluster"
TRIES = 3
"""Workers that may end while they are at the same input."""


def cluster_of(text: str, *, workers: int | None = None, cpus: int = 1) -> Cluster:
    """`ray` or `ray:ADDRESS` -> the cluster. UserError for anything else, MissingExtra without ray."""
    name, _, address = text.partition(":")
    if name != NAME or (text != NAME and not address):
        raise UserError(f"got {text!r}, expected ray or ray:ADDRESS", "--on", "ray:auto is the cluster of this machine")
    return Cluster(address or None, workers, cpus)


class Cluster:
    """A Ray cluster, connected to while it is entered. Without an address one is started on this machine, and ends."""

    def __init__(self, address: str | None = None, most: int | None = None, cpus: int = 1) -> None:
        """most: workers at a time, by default as many as there is room for; cpus: cores, and threads, of each."""
        self.address, self.most, self.cpus = address, most, cpus
        self._ray, self._mine = _imported(), False

    def __enter__(self) -> Self:
        """UserError where it cannot be reached."""
        if not self._ray.is_initialized():
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if self.address is None:
                options["include_dashboard"] = False
            try:
                self._ray.init(address=self.address or "local", **options)
            except Exception as error:  # noqa: BLE001 - Ray says by the bare kind that it did not start
                where = NAME if self.address is None else f"{NAME}:{self.address}"
                fault = f"there is no cluster to be reached, or it did not start ({first_line(error)})"
                raise UserError(fault, f"--on {where}", "`ray status` says what runs") from error
            self._mine = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mine:
            self._ray.shutdown()
            self._mine = False

    def device(self, name: str) -> str:
        """`cuda` or `cpu`, for all inputs alike; `auto` is `cuda` where the cluster has GPUs. UserError for a GPU by
        its number, and where there is none."""
        gpus = self._ray.cluster_resources().get("GPU", 0)
        if name not in ("auto", "cpu", "cuda"):
            raise UserError(f"got {name}, but the cluster chooses among its GPUs", "--device", "Give cuda or cpu")
        if name == "cuda" and not gpus:
            raise UserError("the cluster has no GPU", "--device cuda", "Try --device cpu")
        return "cuda" if name == "cuda" or (name == "auto" and gpus) else "cpu"

    @contextmanager
    def workers(
        self, job: PredictJob, settings: Key, *, overwrite: bool, inputs: tuple[Path, ...]
    ) -> Iterator[RayWorkers]:
        """Workers for a job, gone afterwards. settings: what results depend on as this process has it, which the
        workers must have, too."""
        gpus = 1 if job.device == "cuda" else 0
        nodes = [node.get("Resources", {}) for node in self._ray.nodes() if node.get("Alive")]
        room = max(sum(_fit(node, self.cpus, gpus) for node in nodes), 1)
        options = {"num_cpus": self.cpus, "num_gpus": gpus, "max_restarts": 0}
        machine = self._ray.remote(**options)(Machine)
        told = Told(job, dict(settings.inputs), os.getcwd(), self.cpus, overwrite, inputs)
        made = RayWorkers(self._ray, lambda: machine.remote(told), min(self.most or room, room))
        try:
            yield made
        finally:
            made.end()


@dataclass(frozen=True)
class Told:
    """What a worker is told when it starts. here: the folder that names are meant in."""

    job: PredictJob
    settings: dict[str, Any]
    here: str
    threads: int
    overwrite: bool
    inputs: tuple[Path, ...]


class Machine:
    """A worker: it lives in a process of its own."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self._opened: Here | None = None

    def outcome(self, order: Order) -> Outcome:
        """Of one order. Stopped where the model or the program here is another."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened.outcome(order)

    def _open(self) -> Here:
        told, where = self.told, f"worker on {os.uname().nodename}"
        try:
            os.chdir(told.here)
        except OSError as error:
            raise Stopped(f"has no folder {told.here}", where, "The machines have to share their files") from error
        torch.set_num_threads(told.threads)
        try:
            opened = OpenJob(told.job)
        except UserError as error:
            raise Stopped(str(error), where) from error
        if other := opened.settings.changed(told.settings):
            raise Stopped(f"has another {listed(other)} than this machine", where, "Install and copy the same on both")
        return Here(opened.do, opened.key, told.overwrite, told.inputs)


class RayWorkers:
    """A `Workers`: as many workers as there is room for, each with one order at a time."""

    def __init__(self, ray: Any, start: Callable[[], Any], most: int) -> None:
        self._ray, self._start, self.most = ray, start, most
        self._all: list[Any] = []

    def outcomes(self, orders: Sequence[Order], told: Callable[[int, float], None]) -> Iterator[Outcome]:
        """As they come. An order whose worker ended is done by another, after the others, up to `TRIES` times."""
        waiting, tries = deque(orders), Counter[int]()
        idle: list[Any] = []
        busy: dict[Any, tuple[Any, Order]] = {}
        while waiting or busy:
            while waiting and (idle or len(self._all) < self.most):
                order, worker = waiting.popleft(), idle.pop() if idle else self._new()
                told(order.number, 0.0)
                busy[worker.outcome.remote(order)] = worker, order
            for ready in self._ray.wait(list(busy), num_returns=1)[0]:
                worker, order = busy.pop(ready)
                try:
                    outcome = self._ray.get(ready)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, Exception) else error from None
                except self._ray.exceptions.RayError as error:
                    self._all.remove(worker)
                    tries[order.number] += 1
                    if tries[order.number] < TRIES:
                        waiting.append(order)
                        continue
                    outcome = Outcome(
                        order.number, FAILED, f"{order.path}: {TRIES} workers ended at it ({type(error).__name__})"
                    )
                else:
                    idle.append(worker)
                yield outcome

    def end(self) -> None:
        """Ends all workers."""
        for worker in self._all:
            self._ray.kill(worker)
        self._all.clear()

    def _new(self) -> Any:
        self._all.append(self._start())
        return self._all[-1]


def _fit(node: Mapping[str, float], cpus: int, gpus: int) -> int:
    """Workers that find room on a machine with these resources; none is spread over two."""
    room = node.get("CPU", 0) // cpus
    return int(min(room, node.get("GPU", 0) // gpus) if gpus else room)


def _imported() -> Any:
    """Ray. MissingExtra where it is not installed."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtra(NAME, EXTRA) from error
    return ray
