"""Commands that are killed, interrupted, or run out of disk: what they leave is whole, be it the old or the new."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.io.safetensors_file import read_safetensors
from hmrcompress.models.files.convert import convert_checkpoint
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.plan import Plan

HERE = Path(__file__).parent
KILLED, INTERRUPTED, REFUSED = -signal.SIGKILL, 130, 2
QUICK = ("merge", "merge original", "convert", "convert body", "search")
COMMANDS = (*QUICK, "export")
"""An export takes seconds; that one leaves nothing behind where it fails is quick in `test_export`."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, a plan for each, crops, and a body."""
    folder = tmp_path_factory.mktemp("inputs")
    from hmrcompress.data.crops import write_crops

    for seed in (0, 1):
        torch.save({"state_dict": tiny.network(seed).state_dict()}, folder / "a.ckpt")
        loaded = load_checkpoint(folder / "a.ckpt", num_heads=2, head_heads=2)
        made = convert_checkpoint(loaded, folder / f"{seed}.safetensors")
        reference = load_checkpoint(made.weights).reference
        tokens = {"keep": 120, "per_layer": 40}
        values = {"checkpoint": reference.model_dump(), "groups": [[0], [1, 2], [3]], "tokens": tokens}
        Plan.from_dict(values).write(folder / f"{seed}.yaml")
    write_crops(folder / "crops.npz", tiny.crop_arrays(1, 6), tiny.crop_meta())
    tiny.write_body(folder / "body.npz")
    return folder


def arguments(command: str, inputs: Path, seed: int) -> list[str]:
    model, data = str(inputs / f"{seed}.safetensors"), ["--data", str(inputs / "crops.npz")]
    data += ["--body", str(inputs / "body.npz"), "--masks", "none"]
    merge = ["merge", model, "--plan", str(inputs / f"{seed}.yaml")]
    return {
        "merge": [*merge, "-o", "out"],
        "merge original": [*merge, "--format", "original", "-o", "out.ckpt"],
        "convert": ["convert", model, "-o", "out.safetensors"],
        "convert body": ["convert", str(inputs / "body.npz"), "-o", "out.npz"],
        "search": [
            "search",
            model,
            *data,
            "--set",
            "search.tokens=null",
            "--tau",
            "5",
            "-o",
            "out.yaml",
            "--journal",
            f"{seed}.jsonl",
        ],
        "export": ["export", model, *data, "-o", "out.onnx"],
    }[command]


def run(orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "interrupt_worker.py")]
    done = subprocess.run(command, input=json.dumps(orders), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def whole(path: Path) -> None:
    """AssertionError or whatever its reader raises where a file or folder is not whole."""
    if path.is_dir():
        load_checkpoint(path)
    elif path.suffix == ".safetensors":
        assert read_safetensors(path)[0]
    elif path.suffix == ".ckpt":
        assert load_checkpoint(path, num_heads=2, head_heads=2).state()
    elif path.suffix == ".npz":
        with np.load(path) as file:
            assert all(file[name] is not None for name in file.files)
    elif path.suffix == ".yaml":
        Plan.read(path)
    elif path.suffix == ".onnx":
        import onnx

        onnx.checker.check_model(str(path))
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        for line in path.read_bytes().split(b"\n")[:-1]:  # a last line that was torn is dropped when it is read
            json.loads(line)
    else:
        assert path.suffix == ".md" and path.read_text().endswith("\n"), path


def visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


PLACES, SIZES = (1, 3), (0, 2_000, 20_000)
EVERY_PLACE, EVERY_SIZE = range(1, 16), range(0, 200_000, 19_999)


def stopped(commands: tuple[str, ...], inputs: Path, folder: Path, places: Any, sizes: Any) -> dict[str, Any]:
    """By command and fault: what became of it. Each is stopped in a folder of its own, in which it was run before with
    another checkpoint; at the end it is run again in that of the first kill."""
    faults = [(fault, at) for fault in ("kill", "interrupt") for at in places] + [("room", size) for size in sizes]
    orders: list[dict[str, Any]] = []
    for command in commands:
        home = folder / command.replace(" ", "_")
        old, new = arguments(command, inputs, 0), arguments(command, inputs, 1)
        orders.append({"args": old, "folder": f"{home}-before", "like": None, "fault": "none", "at": 0})
        for fault, at in faults:
            place = f"{home}-{fault}-{at}"
            orders.append({"args": new, "folder": place, "like": f"{home}-before", "fault": fault, "at": at})
        orders.append({"args": new, "folder": f"{home}-again", "like": f"{home}-kill-1", "fault": "none", "at": 0})
    results = list(zip(orders, run(orders), strict=True))
    each = len(results) // len(commands)
    return {command: results[n * each : (n + 1) * each] for n, command in enumerate(commands)}


@pytest.fixture(scope="module")
def quick(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return stopped(QUICK, inputs, tmp_path_factory.mktemp("stopped"), PLACES, SIZES)


@pytest.mark.parametrize("command", QUICK)
def test_what_a_stopped_command_leaves(command: str, quick: dict[str, Any]) -> None:
    check(quick[command])


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_leaves_wherever_it_is_stopped(command: str, inputs: Path, tmp_path: Path) -> None:
    check(stopped((command,), inputs, tmp_path, EVERY_PLACE, EVERY_SIZE)[command])


def check(results: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    (_, before), *stops, (_, again) = results
    assert before["status"] == 0 == again["status"], before["output"] + again["output"]
    expected = {"kill": KILLED, "interrupt": INTERRUPTED, "room": REFUSED}
    hit = 0
    for order, after in stops:
        place, fault = Path(order["folder"]), order["fault"]
        what = f"{order['args'][0]}, {fault} at {order['at']}: {after['output']}"
        for path in visible(place):
            whole(path)
        if after["status"] == 0:  # it has fewer places than that, or writes no file as large
            assert fault == "room" or after["reached"] < order["at"], what
            continue
        hit += 1
        assert after["status"] == expected[fault], what
        if fault != "kill":
            assert after["output"].count("\n") == 1 and "hmrcompress: " in after["output"], what
            left = [path.name for path in place.iterdir() if path not in visible(place)]
            assert left == [], f"{what} leaves {left}"
    assert hit >= len(stops) // 3, f"was stopped {hit} times of {len(stops)}"
    for path in visible(Path(results[-1][0]["folder"])):
        whole(path)
