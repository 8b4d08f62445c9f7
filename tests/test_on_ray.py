"""Many inputs on a Ray cluster: who does what, what happens where a worker ends, and that results are the same."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import tiny
from PIL import Image

from hmrcompress.api import on_ray
from hmrcompress.api.on_ray import Cluster, Machine, RayWorkers, Told, _fit, cluster_of
from hmrcompress.api.predict_job import OpenJob, PredictJob
from hmrcompress.api.predict_many import predict_many
from hmrcompress.errors import MissingExtra, UserError
from hmrcompress.pipeline.many import Order, Outcome, Stopped
from hmrcompress.pipeline.predict import PredictSettings


class RayError(Exception):
    """Of a worker that ended."""


class RayTaskError(RayError):
    """Of a worker that raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class FakeRay:
    """Ray as far as `RayWorkers` knows it: what is called is done when it is got, the last call first."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, do: Callable[[int, Order], Any]) -> None:
        self.do, self.started, self.killed = do, 0, list[Any]()

    def start(self) -> Any:
        self.started += 1
        number = self.started
        call = SimpleNamespace(remote=lambda order: (number, order.number, lambda: self.do(number, order)))
        return SimpleNamespace(outcome=call, number=number)

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        return reference[2]()

    def kill(self, worker: Any) -> None:
        self.killed.append(worker.number)


def orders(count: int) -> list[Order]:
    return [Order(number, Path(f"{number}.png"), Path(f"out/{number}")) for number in range(count)]


def test_every_order_is_done_once_by_no_more_workers_than_there_is_room_for() -> None:
    ray = FakeRay(lambda worker, order: Outcome(order.number, "done", figures={"worker": worker}))
    begun: list[int] = []
    workers = RayWorkers(ray, ray.start, 2)
    found = list(workers.outcomes(orders(5), lambda number, share: begun.append(number)))
    assert sorted(each.number for each in found) == sorted(begun) == [0, 1, 2, 3, 4]
    assert ray.started == 2 and {each.figures["worker"] for each in found} <= {1, 2}
    workers.end()
    assert sorted(ray.killed) == [1, 2]


def test_an_order_whose_worker_ended_is_done_by_another_and_fails_in_the_end() -> None:
    ended: list[int] = []

    def do(worker: int, order: Order) -> Outcome:
        if order.number == 1 or (order.number == 2 and 2 not in ended):
            ended.append(order.number)
            raise RayError
        return Outcome(order.number, "done")

    ray = FakeRay(do)
    found = {
        each.number: each for each in RayWorkers(ray, ray.start, 2).outcomes(orders(4), lambda number, share: None)
    }
    assert {number: each.state for number, each in found.items()} == {0: "done", 1: "failed", 2: "done", 3: "done"}
    assert found[1].reason == "1.png: 3 workers ended at it (RayError)" and ended.count(1) == 3


def test_what_is_wrong_with_all_ends_the_run() -> None:
    def do(worker: int, order: Order) -> Outcome:
        raise RayTaskError(Stopped("has another model", "worker on b"))

    ray = FakeRay(do)
    with pytest.raises(Stopped, match="worker on b: has another model"):
        list(RayWorkers(ray, ray.start, 2).outcomes(orders(4), lambda number, share: None))


def test_a_worker_with_another_model_refuses(tmp_path: Path, tiny_model: Path, tiny_body_file: Path) -> None:
    job = PredictJob(str(tiny_model), body=str(tiny_body_file), device="cpu")
    settings = dict(OpenJob(job).settings.inputs)
    told = Told(job, settings | {"code": "of another version", "body": "0"}, str(tmp_path), 1, False, ())
    here = os.getcwd()
    try:
        with pytest.raises(Stopped, match="has another body and code than this machine"):
            Machine(told).outcome(orders(1)[0])
        with pytest.raises(Stopped, match="has no folder"):
            Machine(Told(job, settings, str(tmp_path / "nowhere"), 1, False, ())).outcome(orders(1)[0])
        outcome = Machine(Told(job, settings, str(tmp_path), 1, False, ())).outcome(orders(1)[0])
        assert outcome.state == "failed" and "0.png" in outcome.reason
    finally:
        os.chdir(here)


def test_names_of_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "_imported", lambda: None)
    assert cluster_of("ray").address is None and cluster_of("ray:10.0.0.1:6379").address == "10.0.0.1:6379"
    for wrong in ("ray:", "dask", "rays", ""):
        with pytest.raises(UserError, match="expected ray or ray:ADDRESS"):
            cluster_of(wrong)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"hmrcompress\[cluster\]"):
        cluster_of("ray")


def test_a_worker_is_not_spread_over_machines() -> None:
    """Two machines of six cores hold two workers of four; eight GPUs with four cores hold four of one each."""
    assert sum(_fit(node, 4, 0) for node in ({"CPU": 6.0}, {"CPU": 6.0})) == 2
    assert _fit({"CPU": 4.0, "GPU": 8.0}, 1, 1) == 4 and _fit({"CPU": 8.0}, 1, 1) == 0 and _fit({"CPU": 3.0}, 1, 0) == 3


def test_devices_of_a_cluster() -> None:
    cluster = Cluster.__new__(Cluster)
    for gpus, chosen in ((0.0, "cpu"), (4.0, "cuda")):
        cluster._ray = SimpleNamespace(cluster_resources=lambda gpus=gpus: {"CPU": 8.0, "GPU": gpus})
        assert cluster.device("auto") == chosen and cluster.device("cpu") == "cpu"
    for name in ("cuda:1", "tpu"):
        with pytest.raises(UserError, match="chooses among its GPUs"):
            cluster.device(name)
    cluster._ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0})
    with pytest.raises(UserError, match="the cluster has no GPU"):
        cluster.device("cuda")


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing(
    tmp_path: Path, tiny_model: Path, tiny_body_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers on this machine, one of which is killed while it is at an input: all are done, with the very bytes
    that one process gives."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    images = tiny.crop_arrays(1, 24)["images"]
    for number in range(4):
        (tmp_path / f"in{number}").mkdir()
        for each in range(24):
            Image.fromarray(images[(each + number) % 24]).save(tmp_path / f"in{number}" / f"{each}.png")
    job = PredictJob(
        str(tiny_model), body=str(tiny_body_file), device="cpu", settings=PredictSettings(overlay=False, glb=False)
    )
    inputs = [tmp_path / f"in{number}" for number in range(4)]
    predict_many(job, inputs, tmp_path / "here")
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 400
        while not killed and time.monotonic() < end:
            for process in psutil.process_iter(["pid", "cmdline"]):
                words = process.info["cmdline"] or []
                if any("ray::Machine.outcome" in word for word in words) and _descends(process):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.01)

    watcher = threading.Thread(target=kill)
    watcher.start()
    summary = predict_many(job, inputs, tmp_path / "there", on=Cluster(None, most=2))
    watcher.join()
    assert killed and [unit.state for unit in summary.units] == ["done"] * 4
    for number in range(4):
        one, other = (tmp_path / place / f"in{number}" / "params.npz" for place in ("here", "there"))
        assert one.read_bytes() == other.read_bytes()
    assert not list((tmp_path / "there").glob(".*"))


def _descends(process: psutil.Process) -> bool:
    """Whether a process was started by this one, however indirectly."""
    try:
        return any(parent.pid == os.getpid() for parent in process.parents())
    except psutil.Error:
        return False
