"""The helper process of `test_interrupted`: runs commands in forks of itself, each stopped at one place.

stdin: JSON list of {args, folder, like, fault, at}; stdout: JSON list of {status, output, reached}. A place is a flush
of a file or a renaming, counted from 1. Faults: `kill` (SIGKILL there), `interrupt` (SIGINT there), `room` (no file may
become larger than `at` bytes), `none`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import typer.main

import hmrcompress.exporting.onnx as exporting
from hmrcompress_cli.main import main

WRITES = ("fsync", "replace")


def stop_at(fault: str, at: int) -> list[int]:
    """Arms a fault; gives the count of places reached."""
    reached = [0]
    if fault == "room":
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
        return reached

    def armed(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            reached[0] += 1
            if reached[0] == at and fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if reached[0] == at and fault == "interrupt":
                signal.raise_signal(signal.SIGINT)
            return original(*arguments, **named)

        return call

    for name in WRITES:
        setattr(os, name, armed(getattr(os, name)))
    return reached


def in_the_fork(order: dict[str, Any], said: int, places: int) -> None:
    """Runs the command, and ends this process whatever happens."""
    code, reached = 1, [0]
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(order["folder"])
        sys.argv = ["hmrcompress", *order["args"]]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        reached = stop_at(order["fault"], order["at"])
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - the parent is told by what is printed
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(places, str(reached[0]).encode())
        os._exit(code)


def warm_up(arguments: list[str], folder: str) -> None:
    """The command once in this process, unheard, so that its forks have imported what it takes."""
    before, heard = os.getcwd(), (os.dup(1), os.dup(2))
    try:
        with open(os.devnull, "w") as nowhere:
            for stream in (1, 2):
                os.dup2(nowhere.fileno(), stream)
            os.chdir(folder)
            sys.argv = ["hmrcompress", *arguments]
            main()
    except SystemExit:
        pass
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(before)
        for stream, original in zip((1, 2), heard, strict=True):
            os.dup2(original, stream)


def run(order: dict[str, Any]) -> dict[str, Any]:
    """One command in a fork, in a copy of the folder `like` where there is one."""
    if order["like"]:
        shutil.copytree(order["like"], order["folder"])
    else:
        Path(order["folder"]).mkdir()
    output, said = os.pipe()  # a pipe and no file: files may be limited to nothing
    counted, places = os.pipe()
    child = os.fork()
    if child == 0:
        in_the_fork(order, said, places)
    os.close(said)
    os.close(places)
    with os.fdopen(output) as text, os.fdopen(counted) as number:
        result = {"output": text.read(), "reached": int(number.read() or 0)}
    return result | {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def graphs_once(folder: str) -> None:
    """Exporting takes the compiler seconds, so every fork with the same weights writes the same graph."""
    write = exporting._write_graph

    def copy(network: Any, path: Path, batch: Any) -> None:
        weights = sum(float(parameter.detach().sum()) for parameter in network.parameters())
        made, part = Path(folder) / f"{weights:.9e}.onnx", Path(folder) / f"part{os.getpid()}.onnx"
        if not made.exists():
            write(network, part, batch)
            os.rename(part, made)
        shutil.copyfile(made, path)

    exporting._write_graph = copy


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.main.get_command = lru_cache(typer.main.get_command)  # 0.1 s for each of the forks
    orders = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as room, tempfile.TemporaryDirectory() as elsewhere:
        graphs_once(room)
        for order in orders:
            if order["like"] is None:
                warm_up(order["args"], elsewhere)
        json.dump([run(order) for order in orders], sys.stdout)
