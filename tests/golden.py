"""Whether a change of structure changed behaviour: plans, figures, graphs and bodies, bit for bit.

    python tests/golden.py record FILE     # before the change
    python tests/golden.py check FILE      # after it, on the same machine: processors round differently

Times, memory, versions and commits are left out. It takes a few minutes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from typer.testing import CliRunner

from hmrcompress_cli.main import app

VOLATILE = (
    "versions", "commit", "cpu", "device", "seconds", "minutes", "bench", "fps", "speedup", "pipeline", "memory",
    "peak_memory_bytes", "environment", "gates", "recipe", "onnx_bytes", "files", "inputs_sha256", "code", "version",
    "seal",
)  # fmt: skip
"""Keys at any depth that say when, where and how fast, or by which code."""


def steady(value: Any) -> Any:
    """Plain values without what changes from run to run."""
    if isinstance(value, dict):
        return {key: steady(each) for key, each in value.items() if not any(word in key for word in VOLATILE)}
    return [steady(each) for each in value] if isinstance(value, list) else value


def hmr(*arguments: object) -> None:
    """One command; raises where it fails."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exit_code:
        raise RuntimeError(f"hmrcompress {' '.join(map(str, arguments))}: {done.output}")


def hashed(array: np.ndarray) -> str:
    """Dtype, shape and the sha256 of the bytes of an array."""
    return f"{array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def graph(path: Path) -> dict[str, Any]:
    """What an ONNX file computes: operators in order with their attributes, and its weights."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    return {
        "operators": [
            [node.op_type, *sorted(str(attribute) for attribute in node.attribute if attribute.type not in (4, 5))]
            for node in model.graph.node
        ],
        "weights": sorted(hashed(numpy_helper.to_array(each)) for each in model.graph.initializer),
        "inputs": [str(each.type) for each in model.graph.input],
    }


def measure(folder: Path) -> dict[str, Any]:
    """Everything that is held, made in `folder`."""
    found: dict[str, Any] = {}
    data = ("--data", "starter:calib")
    for name, options in (
        ("eclm", ("--tau", 1.0)),
        ("keep_last", ("--set", "search.layers=8", "--merge-rule", "keep_last")),
        ("label_free", ("--tau", 2.0, "--set", "search.target=teacher")),
    ):
        plan = folder / f"{name}.yaml"
        hmr("search", "starter", *data, "--frames-per-clip", 2, *options, "-o", plan, "--quiet")
        read = yaml.safe_load(plan.read_text())
        found[f"plan {name}"] = {"groups": read["groups"], "tokens": read["tokens"], "search": steady(read["search"])}
    model = folder / "merged"
    hmr("merge", "starter", "--plan", folder / "eclm.yaml", "-o", model, "--quiet")
    for name, options in (
        ("starter-fast", ("starter-fast", "--against", "starter")),
        ("merged", (model, "--against", "starter")),
        ("strides", ("starter-fast", "--stride", 2)),
    ):
        record = folder / "eval.json"
        hmr("eval", *options, "--data", "starter:calib", "--limit", 96, "--json", record, "--quiet", "--overwrite")
        found[f"eval {name}"] = steady(json.loads(record.read_text()))
    hmr("export", model, "--format", "onnx", "-o", folder / "merged.onnx", "--data", "starter:calib", "--quiet")
    found["graph"] = graph(folder / "merged.onnx")
    video = folder / "people.mkv"
    hmr("starter", "video", "--data", "starter:calib", "-o", video, "--frames", 20, "--lossless", "--quiet")
    boxes = folder / "people.boxes.npz"
    out = folder / "bodies"
    without = ("--masks", "none", "--no-overlay", "--no-glb", "--quiet")
    hmr("predict", "starter-fast", video, "--boxes", boxes, "-o", out, *without)
    with np.load(out / "params.npz") as params:
        found["params"] = {name: hashed(params[name]) for name in params.files if name != "meta"}
    hmr("run", "ci", "-o", folder / "ci", "--quiet")
    found["ci"] = steady(json.loads((folder / "ci" / "summary.json").read_text()))
    return found


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Places at which two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted({*before, *after})
            for line in differences(before.get(key), after.get(key), f"{where}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for index, pair in enumerate(zip(before, after, strict=True))
            for line in differences(*pair, f"{where}/{index}")
        ]
    return [] if before == after else [f"{where}: {str(before)[:80]} -> {str(after)[:80]}"]


def main(arguments: list[str]) -> int:
    """Record or check; 1 where something differs."""
    if len(arguments) != 2 or arguments[0] not in ("record", "check"):
        sys.stdout.write(f"{__doc__}\n")
        return 2
    with TemporaryDirectory() as folder:
        found = json.loads(json.dumps(measure(Path(folder))))
    file = Path(arguments[1])
    if arguments[0] == "record":
        file.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    apart = differences(json.loads(file.read_text()), found)
    sys.stdout.write("\n".join([*apart, f"{len(apart)} differences"]) + "\n")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
