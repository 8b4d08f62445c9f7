"""Many inputs, one after the other or on many machines: what is left is done, what failed is told at the end.

Who does the work is a `Workers`: this process (`Here`), or others (`api.on_ray`). Only the process that called
`predict_units` writes the manifest.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hmrcompress.errors import HMRCompressError, UserError, first_line, tell
from hmrcompress.io.atomic import clear_leftovers_in
from hmrcompress.io.keys import Key, changed, listed
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.standing import is_ours
from hmrcompress.pipeline.predict import KIND
from hmrcompress.pipeline.summary import Summary
from hmrcompress.pipeline.units import (
    DONE,
    FAILED,
    NOT_BEGUN,
    Manifest,
    Unit,
    contents_of,
    files_of,
    result_in,
    stamp_of,
)
from hmrcompress.runtime import Progress, no_progress

FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Errors of a disk, with which all other inputs would fail, too."""
UNIT = "unit"
"""What belongs to one input alone, among all that its result depends on."""
FIGURES = ("frames", "tracks", "bodies", "network_crops", "seconds", "fps")
"""Of a result, what the manifest repeats of its summary."""
KILOBYTE = 1000


class Stopped(UserError):
    """What is wrong with one input is wrong with them all, so that none is tried."""


@dataclass(frozen=True)
class Order:
    """An input to be done. number: its place among those of the run; folder: of the result. beside: files of boxes and
    folders of masks that belong to it alone, by the name of the option; guarded: inputs of others in the folder."""

    number: int
    path: Path
    folder: Path
    beside: dict[str, str] = field(default_factory=dict)
    guarded: tuple[Path, ...] = ()

    def files(self) -> list[Path]:
        """All files that it reads. UserError for a folder without pictures, OSError where something is missing."""
        found = list(files_of(self.path))
        for each in self.beside.values():
            path = Path(each)
            found += sorted(path.iterdir()) if path.is_dir() else [path]
        return found


@dataclass(frozen=True)
class Outcome:
    """How an order went. fresh: it was done just now, not found done. others: what a result that was there before had
    been made of otherwise, beside the input."""

    number: int
    state: str
    reason: str = ""
    contents: str = ""
    stamp: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    fresh: bool = True
    others: tuple[str, ...] = ()


Do = Callable[[Order, OutputRule, dict[str, Any], Progress], Summary]
"""Reads an order's input into its folder; takes the rule for its files, and what the result depends on."""


class Workers(Protocol):
    """Who does orders."""

    def outcomes(self, orders: Sequence[Order], told: Callable[[int, float], None]) -> Iterator[Outcome]:
        """Outcomes in whatever order they come; each order has one. told: number and share of an order that is done,
        called with 0 when it begins."""


@dataclass(frozen=True)
class Here:
    """This process, order by order. key: what an order's result depends on, from the hash of its input's contents."""

    do: Do
    key: Callable[[Order, str], Key]
    overwrite: bool = False
    inputs: tuple[Path, ...] = ()

    def outcomes(self, orders: Sequence[Order], told: Callable[[int, float], None]) -> Iterator[Outcome]:
        """In the order of the orders."""
        for order in orders:
            told(order.number, 0.0)
            yield self.outcome(order, told)

    def outcome(self, order: Order, told: Callable[[int, float], None] = lambda number, share: None) -> Outcome:
        """Of one order, whatever goes wrong with it; OSError where the disk is full or broken."""

        def progress(what: str, done: int, total: int) -> None:
            told(order.number, min(done / total, 1) if total else 0.0)

        contents, others = "", tuple[str, ...]()
        try:
            before = stamp_of(order.files())
            contents = contents_of(order.path)
            key = self.key(order, contents)
            found = result_in(order.folder)
            if found is not None:
                changed = key.changed(found["inputs"])
                if not changed:
                    return Outcome(order.number, DONE, "", contents, before, _figures(found), fresh=False)
                others = tuple(name for name in changed if name != UNIT)
            reads = (*self.inputs, order.path, *map(Path, order.beside.values()), *order.guarded)
            rule = OutputRule(overwrite=self.overwrite, inputs=reads)
            figures = _figures(self.do(order, rule, dict(key.inputs), progress).to_json())
            stamp = stamp_of(order.files())
            if (not stamp or stamp != before) and self.key(order, contents_of(order.path)).changed(key.inputs):
                raise UserError("was changed while it was read", order.path, "Start again when nobody writes to it")
        except Stopped:
            raise
        except HMRCompressError as error:
            return Outcome(order.number, FAILED, str(error), contents)
        except OSError as error:
            if error.errno in FATAL:
                raise
            where = error.filename or order.path
            return Outcome(order.number, FAILED, f"{where}: {error.strerror or first_line(error)}", contents)
        except MemoryError:
            return Outcome(order.number, FAILED, f"{order.path}: takes more memory than there is", contents)
        except Exception as error:  # noqa: BLE001 - of one input, and the others are wanted
            what = f"{type(error).__name__}: {first_line(error)}"
            return Outcome(order.number, FAILED, f"{order.path}: cannot be worked on ({what})", contents)
        return Outcome(order.number, DONE, "", contents, stamp, figures, others=others)


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in FIGURES if name in summary}


@dataclass(frozen=True)
class ManySummary:
    """What became of the inputs of a run. fresh: how many were done now, not before. seconds: of this run."""

    out: Path
    units: list[Unit]
    fresh: int
    seconds: float

    def of(self, state: str) -> list[Unit]:
        """The inputs in this state."""
        return [unit for unit in self.units if unit.state == state]

    def total(self, name: str) -> float:
        """Of a figure, over all inputs that are done."""
        return sum(unit.figures.get(name, 0) for unit in self.of(DONE))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        counts = {"inputs": len(self.units), "done": len(self.of(DONE)), "failed": len(self.of(FAILED))}
        counts |= {"done_before": counts["done"] - self.fresh}
        totals = {name: self.total(name) for name in ("frames", "tracks", "bodies", "network_crops")}
        units = [
            {name: value for name, value in unit.to_json().items() if name not in ("place", "stamp", "begun")}
            for unit in self.units
        ]
        return {**counts, **totals, "seconds": self.seconds, "units": units}


def predict_units(
    manifest: Manifest,
    orders: Sequence[Order],
    settings: Key,
    workers: Workers,
    *,
    clock: Callable[[], float],
    progress: Progress = no_progress,
) -> ManySummary:
    """Does what is left of a manifest's units (`mine`; `orders` has one for each), and keeps the manifest.

    settings: what all results depend on beside their inputs. A unit is left where its result is there, was made with
    the same settings, and no file that it was read from was touched; where only that is in doubt, whoever does the work
    compares contents. Inputs that ended the process that was at them come after the others. Raises UserError and
    OSError where no other input could be done either.
    """
    start, fresh = clock(), 0
    clear_leftovers_in(manifest.out, partial(is_ours, KIND))
    same = not manifest.settings or not changed(settings.inputs, manifest.settings)
    if not same:  # also for the inputs of earlier runs, which a later one may bring back
        for unit in manifest.units:
            unit.stamp = ""
    left = [order for order in orders if not (same and _stands(manifest.mine[order.number], order))]
    for order in left:
        unit = manifest.mine[order.number]
        unit.state, unit.reason, unit.figures = NOT_BEGUN, "", {}
    left.sort(key=lambda order: manifest.mine[order.number].begun)
    manifest.settings = dict(settings.inputs)
    manifest.write(now=True)
    told = _Told(manifest, left, progress)
    try:
        for outcome in workers.outcomes(left, told):
            unit = manifest.mine[outcome.number]
            unit.state, unit.reason, unit.figures = outcome.state, outcome.reason, dict(outcome.figures)
            unit.contents, unit.stamp = outcome.contents, outcome.stamp
            unit.begun = 0
            if outcome.others:
                tell(f"made anew, as {listed(outcome.others)} changed since", manifest.out)
            fresh += outcome.state == DONE and outcome.fresh
            told.finished(outcome.number)
            manifest.write()
    except BaseException:
        for number in told.shares:  # that the run ends here is no fault of theirs
            manifest.mine[number].begun -= 1
        raise
    finally:
        manifest.write(now=True)
    return ManySummary(manifest.out, manifest.mine, fresh, clock() - start)


def _stands(unit: Unit, order: Order) -> bool:
    """Whether a unit is done and nothing that it was read from was touched since."""
    if unit.state != DONE or not unit.stamp or result_in(order.folder) is None:
        return False
    try:
        return stamp_of(order.files()) == unit.stamp
    except (OSError, UserError):
        return False


class _Told:
    """Hears how far orders are: the bar counts kilobytes of inputs, and the manifest which were begun."""

    def __init__(self, manifest: Manifest, orders: Iterable[Order], progress: Progress) -> None:
        self.manifest, self.progress = manifest, progress
        self.size = {order.number: _kilobytes(order) for order in orders}
        self.total, self.done, self.shares = sum(self.size.values()), 0, dict[int, float]()

    def __call__(self, number: int, share: float) -> None:
        unit = self.manifest.mine[number]
        if number not in self.shares:
            unit.begun += 1
            self.manifest.write()
        self.shares[number] = share
        self._show(Path(unit.place).name)

    def finished(self, number: int) -> None:
        self.shares.pop(number, None)
        self.done += self.size.pop(number, 0)
        self._show("")

    def _show(self, name: str) -> None:
        under_way = sum(self.size.get(number, 0) * share for number, share in self.shares.items())
        units = self.manifest.mine
        over = sum(unit.state != NOT_BEGUN for unit in units)
        self.progress(f"{over} of {len(units)} inputs, {name}: kB", int(self.done + under_way), self.total)


def _kilobytes(order: Order) -> int:
    try:
        return 1 + sum(os.path.getsize(path) for path in files_of(order.path)) // KILOBYTE
    except (OSError, UserError):
        return 1
