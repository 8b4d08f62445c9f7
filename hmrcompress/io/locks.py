"""One process at a time in a folder of our own, such as the cache of rendered data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hmrcompress.errors import UserError


@contextmanager
def alone_in(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """While the block runs, other processes (and threads) that ask for the same folder wait, or without `wait` end in
    a UserError; it is made where it is not there. The lock leaves no file, and ends with the process that holds it,
    however that ends. Where a system has no such locks (Windows, some network file systems), nobody waits."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError("another process writes there", folder, "Wait for its end, or name another") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
