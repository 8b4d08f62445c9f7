"""Processes that make files in the background, and say in a sentence why where they end before they are done."""

from __future__ import annotations

import multiprocessing as mp
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError, first_line
from hmrcompress.runtime import become_helper

POLL_SECONDS = 0.2


class Background:
    """Processes that end with the one that started them. what: what they make, in the plural, for messages."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._context = mp.get_context("spawn")
        self._said = self._context.SimpleQueue()
        self._processes: list[Any] = []

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """Calls a function of a module in a process of its own."""
        process = self._context.Process(target=_run, args=(self._said, function, arguments), daemon=True)
        process.start()
        self._processes.append(process)

    @property
    def started(self) -> bool:
        """Whether there is any process."""
        return bool(self._processes)

    def wait(self, path: Path, *, others: bool = False) -> None:
        """Returns when the file is there. UserError with the sentence of the first process that failed, or where nobody
        is left to make it; `others`: somebody else may."""
        while not path.exists():
            alive = any(process.is_alive() for process in self._processes)
            if not self._said.empty():
                raise self._told()
            # Asked in this order: one that ended just now may have made it.
            if not alive and not others and not path.exists():
                raise self._ended(path)
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Stops them."""
        for process in self._processes:
            process.terminate()
            process.join()

    def _told(self) -> UserError:
        what, where, remedy, trace = self._said.get()
        error = UserError(what, where or f"the process that makes {self.what}", remedy)
        error.add_note(f"In the process that makes {self.what}:\n{trace}")
        return error

    def _ended(self, path: Path) -> UserError:
        codes = sorted({process.exitcode for process in self._processes if process.exitcode})
        if not codes:
            return UserError(f"no process makes {self.what}, and this one is missing", path)
        how = f"was killed by signal {-codes[0]}" if codes[0] < 0 else f"ended with status {codes[0]}"
        remedy = "Memory may be short: set fewer finetune.workers, and run again"
        return UserError(f"the process that makes {self.what} {how}", path, remedy)


def _run(said: Any, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In the process: whatever is raised is said."""
    become_helper()
    try:
        function(*arguments)
    except UserError as error:
        said.put((error.what, error.where, error.remedy, traceback.format_exc()))
    except Exception as error:  # what nobody foresaw ends in a sentence, too
        said.put((f"{type(error).__name__} ({first_line(error)})", "", "", traceback.format_exc()))
