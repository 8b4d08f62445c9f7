"""Stages that run at the same time: iterators in threads of their own, joined by bounded queues; and who worked how
long."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
POLL_SECONDS = 0.1


class StageClock:
    """Seconds of work by stage, whichever thread does it. Waiting for another stage is not work and is not timed."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage."""
        start = self.clock()
        try:
            yield
        finally:
            taken = self.clock() - start
            with self._lock:
                self.seconds[stage] += taken

    def timed(self, stage: str, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; the time that each takes to come counts for a stage."""
        while True:
            with self(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def no_weight(item: object) -> int:
    """What items weigh of which only the number counts."""
    return 0


def background(
    items: Iterator[Item], depth: int, weigh: Callable[[Item], int] = no_weight, most: int = 0
) -> Iterator[Item]:
    """The same items in the same order, made ahead by a thread, at most `depth` waiting, which together `weigh` at most
    `most` (but one may wait, whatever it weighs).

    What the iterator raises is raised here, in its place. When this one is closed or ends early the thread stops at its
    next item and closes the iterator, so that chains of these come down together; the thread is joined.
    """
    waiting: queue.Queue[object] = queue.Queue(depth)
    stop, taken, weights = threading.Event(), threading.Condition(), deque[int]()

    def weighed(item: Item) -> bool:
        """Waits until the item may wait with the others; whether anybody still wants it."""
        weight = weigh(item)
        with taken:
            while weights and sum(weights) + weight > most and weight:
                taken.wait(POLL_SECONDS)
                if stop.is_set():
                    return False
            weights.append(weight)
        return True

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not (weighed(item) and put(item)):
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - handed over to the consumer, which raises it
            put(_Raised(error))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            with taken:
                weights.popleft()
                taken.notify()
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
