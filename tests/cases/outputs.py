"""Folders with files of the user's where outputs are about to be written. `manifest.json` holds the hash of each."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from cases.scenes import person

RECIPE = """# notes of weeks: tau 0.1 was too careful on our data
model: starter
data: {search: "crops:crops.npz", eval: "crops:crops.npz"}
masks: none
search: {tau_mm: 1.0, frames_per_clip: 2}
merge: {}
eval: {}
"""


def make(out: Path) -> None:
    """Run the commands of README.md in `out`, in this order or any other."""
    from cases.tables import crop_set

    out.mkdir(parents=True, exist_ok=True)
    files = {
        "thesis/summary.json": '{"mine": 1}\n',
        "thesis/thesis.tex": "chapter one\n",
        "thesis/data/points.csv": "1,2\n",
        "earlier_run/summary.json": "{}\n",
        "earlier_run/model/model.safetensors": "weights of a week\n",
        "earlier_run/plan.yaml": "groups: [[0]]\n",
        "run_here/recipe.yaml": RECIPE,
        "run_here/model/mine.txt": "not of a run\n",
        "run_here/eval.json": '{"mine": 2}\n',
        "emdb.json": '{"user": "settings"}\n',
        "healed.training/lab_book.txt": "precious\n",
        "target.json": '{"mine": 3}\n',
        "notes.txt": "for the model folder\n",
    }
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    (out / "pictures").mkdir(exist_ok=True)
    Image.fromarray(person()).save(out / "pictures" / "a.png")
    (out / "pictures" / "summary.json").write_text("{}\n")
    (out / "emdb.pkl").write_bytes(pickle.dumps({"a": np.zeros(3)}))
    crop_set(out / "crops.npz")
    crop_set(out / "run_here" / "crops.npz")
    for link, target in (("linked_folder", "real_folder"), ("linked.json", "target.json")):
        if not os.path.lexists(out / link):
            os.symlink(target, out / link)
    (out / "real_folder").mkdir(exist_ok=True)
    if hasattr(os, "mkfifo") and not (out / "pipe.json").exists():
        os.mkfifo(out / "pipe.json")
    hashes = {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in [*files, "pictures/a.png", "emdb.pkl"]
    }
    (out / "manifest.json").write_text(json.dumps(hashes, indent=1) + "\n")


def lost(folder: Path) -> list[str]:
    """Files of the manifest that are gone or changed."""
    hashes = json.loads((folder / "manifest.json").read_text())
    return [
        name
        for name, digest in hashes.items()
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]
