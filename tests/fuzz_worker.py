"""The child process of the fuzz test: reads the files that it is told to, with 1 GB of memory more than it starts with.

A line on stdin is a target's name, a tab and a path; a line on stdout is `ok`, `refused` or `fault`, a tab and why.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
from fuzz_targets import TARGETS

from hmrcompress.errors import UserError

ALLOWED = 1 << 30


def status(field: str) -> int:
    """A number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def main() -> None:
    """Reads the valid files first, so that all modules are there, then what comes. What is helped needs none here."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    readers = {target.name: target.read for target in TARGETS}
    for target in TARGETS:
        if target.helped:
            continue
        with tempfile.TemporaryDirectory() as folder:
            target.read(target.make(Path(folder)))
    before = status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + ALLOWED,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        name, _, path = line.rstrip("\n").partition("\t")
        try:
            readers[name](Path(path))
            said = "ok"
        except UserError as error:
            whole = "\n" not in str(error) and len(str(error)) < 4000
            said = "refused" if whole else f"fault\tnot one sentence: {str(error)[:500]!r}"
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to know
            said = f"fault\t{traceback.format_exc()[-1800:]!r}"
        print(said, (status("VmHWM") - before) >> 20, sep="\t", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
