"""Inputs for every command that writes, tiny, and its command lines: for the tests of what stands in their place."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import yaml
from PIL import Image

from hmrcompress.data.crops import write_crops
from hmrcompress.merging.merge import merge_checkpoint
from hmrcompress.models.files.convert import convert_checkpoint
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.plan import Plan

FILE, FOLDER, JOURNAL = "file", "folder", "journal"
TABLE = {
    "schema": 1, "command": "ablate", "device": "cpu", "cpu": "made up", "protocol": "starter24",
    "table": {"name": "one", "number": 0, "title": "One", "note": "", "columns": []},
    "baseline": {"model": "tiny", "mpjpe_mm": 1.0}, "data": {"name": "tiny", "split": "test", "sha256": "0"},
    "interval": {"level": 0.95, "resamples": 10, "over": "clips"},
    "bench": {"batch_size": 1, "rounds": 1, "threads": 1},
    "rows": [{"name": "a", "layers": 4, "tokens": 192, "mpjpe_mm": 1.0, "increase_mm": 0.0, "macs_ratio": 1.0,
              "n_frames": 6, "n_clips": 1}],
}  # fmt: skip


def make(folder: Path) -> Path:
    """All inputs, in a folder that is only read."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": tiny.network().state_dict()}, folder / "a.ckpt")
    loaded = load_checkpoint(folder / "a.ckpt", num_heads=2, head_heads=2)
    source = load_checkpoint(convert_checkpoint(loaded, folder / "model.safetensors").weights)
    values = {"checkpoint": source.reference.model_dump(), "groups": [[0], [1, 2], [3]]}
    plan = Plan.from_dict({**values, "tokens": {"keep": 120, "per_layer": 40}})
    plan.write(folder / "plan.yaml")
    merge_checkpoint(source, plan, folder / "fast")
    write_crops(folder / "crops.npz", tiny.crop_arrays(1, 6), tiny.crop_meta())
    tiny.write_body(folder / "body.npz")
    (folder / "emdb.pkl").write_bytes(pickle.dumps({"a": np.zeros(3)}))
    (folder / "pictures").mkdir()
    Image.fromarray(tiny.crop_arrays(1, 1)["images"][0]).save(folder / "pictures" / "a.png")
    (folder / "results").mkdir()
    (folder / "results" / "one.json").write_text(json.dumps(TABLE))
    named = {"model": str(source.path), "body": str(folder / "body.npz")}
    data = {"search": str(folder / "crops.npz"), "eval": str(folder / "crops.npz")}
    line = {"masks": "none", "search": {"tau_mm": 5.0, "frames_per_clip": 2, "tokens": None}, "merge": {}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**named, "data": data, **line, "eval": {"limit": 3}}))
    tables = {"searches": {}, "tables": [{"name": "one", "title": "One", "settings": [{"name": "nothing"}]}]}
    (folder / "tables.yaml").write_text(yaml.safe_dump({**named, "data": data, "frames_per_clip": 2, **tables}))
    run = {"name": "first", "dtype": "float32", "batch_size": 1, "rounds": 1, "warmup": 0, "threads": 1}
    suite = {"model": str(source.path), "layers": 3, "tokens": {"keep": 120, "per_layer": 40}, "runs": [run]}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    return folder


@dataclass(frozen=True)
class Command:
    """`line(inputs, name)`: a command line with outputs named after `name`; `outputs(name)`: what it then writes, with
    what each is; `reads`: its inputs, by name. slow: takes more than a second or so."""

    line: Callable[[Path, str], list[str]]
    outputs: Callable[[str], dict[str, str]]
    reads: tuple[str, ...] = ("model.safetensors",)
    slow: bool = False
    json: bool = True


def _data(inputs: Path) -> list[str]:
    return ["--data", f"{inputs}/crops.npz", "--body", f"{inputs}/body.npz", "--masks", "none"]


def _merge(inputs: Path) -> list[str]:
    return ["merge", f"{inputs}/model.safetensors", "--plan", f"{inputs}/plan.yaml"]


def _finetune(inputs: Path) -> list[str]:
    trained = ["--teacher", f"{inputs}/model.safetensors", "--images", "4", "--batch-size", "2"]
    return ["finetune", f"{inputs}/fast", *trained, "--val", f"{inputs}/crops.npz", *_data(inputs)]


COMMANDS: dict[str, Command] = {
    "inspect": Command(lambda i, n: ["inspect", f"{i}/model.safetensors", "--json", n], lambda n: {n: FILE}),
    "search": Command(
        lambda i, n: ["search", f"{i}/model.safetensors", *_data(i), "--tau", "5", "--frames-per-clip", "2",
                      "--set", "search.tokens=null", "--set", "search.cache=false", "-o", f"{n}.yaml"],
        lambda n: {f"{n}.yaml": FILE, f"{n}.journal.jsonl": JOURNAL},
        ("model.safetensors", "crops.npz", "body.npz"),
    ),
    "cka": Command(
        lambda i, n: ["cka", f"{i}/model.safetensors", "--data", f"{i}/crops.npz", "--body", f"{i}/body.npz",
                      "-o", f"{n}.png"],
        lambda n: {f"{n}.png": FILE, f"{n}.npz": FILE},
        ("model.safetensors", "crops.npz"),
        slow=True,
    ),
    "merge": Command(
        lambda i, n: [*_merge(i), "-o", n], lambda n: {n: FOLDER}, ("model.safetensors", "plan.yaml")
    ),
    "merge original": Command(
        lambda i, n: [*_merge(i), "--format", "original", "-o", f"{n}.ckpt"],
        lambda n: {f"{n}.ckpt": FILE, f"{n}.md": FILE},
        ("model.safetensors", "plan.yaml"),
    ),
    "convert": Command(
        lambda i, n: ["convert", f"{i}/fast", "-o", f"{n}.safetensors"],
        lambda n: {f"{n}.safetensors": FILE, f"{n}.json": FILE},
        (),
    ),
    "convert values": Command(
        lambda i, n: ["convert", f"{i}/emdb.pkl", "-o", f"{n}.npz"],
        lambda n: {f"{n}.npz": FILE, f"{n}.json": FILE},
        ("emdb.pkl",),
    ),
    "convert body": Command(
        lambda i, n: ["convert", f"{i}/body.npz", "-o", f"{n}.npz"],
        lambda n: {f"{n}.npz": FILE, f"{n}.json": FILE},
        ("body.npz",),
    ),
    "convert half": Command(
        lambda i, n: ["convert", f"{i}/fast", "--format", "half", "-o", n], lambda n: {n: FOLDER}, ("fast",)
    ),
    "predict": Command(
        lambda i, n: ["predict", f"{i}/fast", f"{i}/pictures", "--body", f"{i}/body.npz", "--no-overlay", "--no-glb",
                      "-o", n],
        lambda n: {n: FOLDER},
        ("fast", "pictures", "body.npz"),
    ),
    "eval": Command(
        lambda i, n: ["eval", f"{i}/fast", *_data(i), "--json", n], lambda n: {n: FILE}, ("fast", "crops.npz")
    ),
    "finetune": Command(lambda i, n: [*_finetune(i), "-o", n], lambda n: {n: FOLDER}, ("fast", "crops.npz"), slow=True),
    "finetune probe": Command(
        lambda i, n: ["finetune", f"{i}/fast", "--stage", "probe", "--images", "4", "--batch-size", "2", "--data",
                      f"{i}/crops.npz", "--val", f"{i}/crops.npz", "--body", f"{i}/body.npz", "-o", n],
        lambda n: {n: FOLDER},
        ("fast", "crops.npz"),
        slow=True,
    ),
    "export": Command(
        lambda i, n: ["export", f"{i}/model.safetensors", *_data(i), "-o", f"{n}.onnx"],
        lambda n: {f"{n}.onnx": FILE, f"{n}.onnx.json": FILE, f"{n}.onnx.golden.npz": FILE},
        ("model.safetensors", "crops.npz"),
        slow=True,
    ),
    "report": Command(
        lambda i, n: ["report", f"{i}/results", "-o", f"{n}.md"], lambda n: {f"{n}.md": FILE}, ("results",)
    ),
    "run": Command(
        lambda i, n: ["run", f"{i}/recipe.yaml", "-o", n], lambda n: {n: FOLDER}, ("recipe.yaml",), slow=True
    ),
    "ablate": Command(
        lambda i, n: ["ablate", f"{i}/tables.yaml", "--no-bench", "-o", n],
        lambda n: {f"{n}/one.json": FILE},
        ("tables.yaml",),
        slow=True,
    ),
    "bench suite": Command(
        lambda i, n: ["bench", "--suite", f"{i}/suite.yaml", "-o", n],
        lambda n: {f"{n}/first.json": FILE},
        ("suite.yaml",),
        slow=True,
    ),
    "starter video": Command(
        lambda i, n: ["starter", "video", "--data", f"crops:{i}/crops.npz", "--clips", "0", "--frames", "2",
                      "--lossless", "-o", f"{n}.mkv"],
        lambda n: {f"{n}.mkv": FILE, f"{n}.boxes.npz": FILE, f"{n}.masks": FOLDER},
        ("crops.npz",),
        slow=True,
        json=False,
    ),
}  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    """Every file and folder below, links as what they name."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found
