"""The helper process of `test_predict_many`: many inputs, killed before file events of all sorts and started again.

Arguments: an empty folder, a model, a body, and the step between places. stdout: JSON {places, faults}.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import tiny
import torch
from PIL import Image
from soak_worker import NEVER, run

import hmrcompress.api.predict_many  # imported before the forks

KILLED, INPUTS = -9, ("in/a.png", "in/deep/a.png", "in/b.png")
_ = hmrcompress.api.predict_many


def results(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("*/params.npz"))}


def states(out: Path) -> list[str]:
    found = json.loads((out / "manifest.json").read_text())["inputs"] if (out / "manifest.json").exists() else []
    return [unit["state"] for unit in found]


def main(home: Path, model: str, body: str, step: int) -> None:
    for number, name in enumerate(INPUTS):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.crop_arrays(1, 6)["images"][number]).save(home / name)
    line = ["predict", model, "in/**/*.png", "--body", body, "--device", "cpu", "--no-overlay", "--no-glb", "-o", "out"]
    status, said = run(home, line)
    assert status == 0, said
    whole = results(home / "out")
    faults, place = [], 1
    while True:
        shutil.rmtree(home / "out")
        if place % 2:  # every second time over results of other settings
            run(home, [*line, "--focal", "900"])
        status, said = run(home, line, kill_at=place)
        if status == 0:
            break
        if status != KILLED:
            faults.append(f"{place}: ended with {status}: {said}")
        half = states(home / "out")
        if not set(half) <= {"done", "failed", "not begun"}:
            faults.append(f"{place}: {half}")
        status, said = run(home, line, kill_at=NEVER)
        if status or results(home / "out") != whole or states(home / "out") != ["done"] * len(INPUTS):
            faults.append(f"{place}: {status}, {states(home / 'out')}: {said}")
        if left := [path.name for path in home.rglob(".*")]:
            faults.append(f"{place}: leaves {left}")
        place += step
    json.dump({"places": place, "faults": faults}, sys.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
