"""Several processes that `torchrun` or `accelerate launch` started together, and how they share work.

Shared is what is measured, never what is decided: each process computes whole batches, the very ones that one process
alone would, and their errors are handed over one by one and put in the order of the batches. Nothing is summed on the
way, so that what comes of them has the same bytes, however many processes there were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from hmrcompress.errors import HMRCompressError, UserError, first_line

LONGEST_WAIT = timedelta(days=7)
"""That a process waits for the others, which may be measuring."""
Result = TypeVar("Result")


class Helped(HMRCompressError):
    """Ends a process that helped the first one, which alone has the result."""

    exit_code = 0


class FaultElsewhere(UserError):
    """What went wrong in another process."""

    told = True
    """The first process says so."""


def process_of() -> tuple[int, int]:
    """(rank, count) of this process among those launched together; (0, 1) for one alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def leads() -> bool:
    """Whether this is the process that prints and writes."""
    return process_of()[0] == 0


def processes_here() -> int:
    """How many of the processes share this machine."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)


def own_device(name: str) -> str:
    """`auto` or `cuda` as the device of this process on its machine: each takes the GPU of its local number."""
    import torch

    if process_of()[1] > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return name


def own_batches(count: int, batch_size: int) -> list[int]:
    """Of `count` rows in batches, the rows of this process: every batch whose number is its own, counted by turns."""
    rank, processes = process_of()
    return [row for row in range(count) if row // batch_size % processes == rank]


def in_turn(work: Callable[[], Sequence[Result]]) -> list[Result]:
    """What each process made of its batches (`own_batches`), in the order of the batches, in every process. UserError
    in all of them where one failed."""
    parts = shared(work)
    longest = max(map(len, parts))
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


def shared(work: Callable[[], Result]) -> list[Result]:
    """The results of all processes by rank, in every process; alone, of this one. Where one fails, all do: that one
    with its own error, the others with UserError."""
    rank, count = process_of()
    if count == 1:
        return [work()]
    import torch.distributed as dist

    own: BaseException | None = None
    try:
        made: tuple[bool, Any] = True, work()
    except Exception as error:  # noqa: BLE001 - told to the others, and raised again
        own = error
        made = (
            False,
            str(error) if isinstance(error, HMRCompressError) else f"{type(error).__name__}: {first_line(error)}",
        )
    found: list[Any] = [None] * count
    dist.all_gather_object(found, made, group=_group())
    if own is not None:
        own.told = True  # type: ignore[attr-defined]
        raise own
    for number, (fine, value) in enumerate(found):
        if not fine:
            raise FaultElsewhere(value, "" if rank == 0 else f"process {number}")
    return [value for _, value in found]


class Crew:
    """The processes as the first one sees them: it decides, all of them `do` what it orders."""

    def __init__(self, do: Callable[[Any], Any]) -> None:
        self.rank, self.count = process_of()
        self.do, self.over = do, False

    def results(self, orders: Sequence[tuple[int, Any]]) -> list[Any]:
        """What became of orders (number, what), in their order. The same number always goes to the same process, which
        may have kept something of it. UserError where a process failed."""
        _said(orders)
        return self._done(orders)

    def serve(self) -> None:
        """Does what the first process orders until it orders no more."""
        while (orders := _said(None)) is not None:
            self._done(orders)

    def _done(self, orders: Sequence[tuple[int, Any]]) -> list[Any]:
        mine = [place for place, (number, _) in enumerate(orders) if number % self.count == self.rank]
        found: dict[int, Any] = {}
        self.over = True  # where one of them fails, all end
        for part in shared(lambda: {place: self.do(orders[place][1]) for place in mine}):
            found |= part
        self.over = False
        return [found[place] for place in range(len(orders))]


@contextmanager
def crew(do: Callable[[Any], Any]) -> Iterator[Crew | None]:
    """Gives the first process its crew while the block runs, and None to one alone. In the others it does what is
    ordered, and then raises Helped. do: of an order, picklable both ways."""
    rank, count = process_of()
    if count == 1:
        yield None
        return
    made = Crew(do)
    if rank:
        made.serve()
        raise Helped("the first process has the result")
    try:
        yield made
    finally:
        if not made.over:
            with suppress(RuntimeError):  # where they are gone
                _said(None)


def _said(value: Any) -> Any:
    """The first process's value, in every process."""
    import torch.distributed as dist

    told = [value]
    dist.broadcast_object_list(told, src=0, group=_group())
    return told[0]


@cache
def _group() -> Any:
    """All processes, over a backend that takes objects."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)
        return None
    return dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
