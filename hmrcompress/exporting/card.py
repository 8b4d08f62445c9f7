"""The README.md of an exported network, from what its export.json knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def export_card(name: str, config: Mapping[str, Any]) -> str:
    """Markdown text. config: the fields of `folder.ExportConfig`."""
    inputs = ", ".join(f"`{key}` {_shape(value)}" for key, value in config["inputs"].items())
    outputs = ", ".join(f"`{key}` {_shape(value)}" for key, value in config["outputs"].items())
    lines = [
        f"# {name}",
        "",
        f"A `{config['network']['family']}` network for {config['runtime']} in {config['precision']}, exported by "
        f"hmrcompress from `{config['model']}`.",
        "",
        "| | |",
        "|---|---|",
        f"| file | `{config['main']}` |",
        f"| in | {inputs} |",
        f"| out | {outputs} |",
    ]
    if config["prepared"] is not None:
        lines += [f"| run | no: prepared, not run ({config['prepared']}) |"]
    if (parity := config["parity"]) is not None:
        median = parity.get("median")
        more = "" if median is None else f"; median over crops {median['joints_mm']:.2g} mm"
        sizes = " and ".join(map(str, parity["batch_sizes"]))
        where = f" of {config['parity_data']['name']}" if "name" in config["parity_data"] else ""
        lines += [
            f"| joints from torch's, at most | {parity['joints_mm']:.2g} mm{more} |",
            f"| any output from torch's, at most | {parity['max_abs_diff']:.2g} |",
            f"| compared on | {parity['crops']} crops{where}, at batch {sizes}, through {parity['through']} |",
        ]
    if (computed := config["about"].get("computes_in")) is not None:
        lines += [f"| computed in, where it was compared | {computed} |"]
    lines += [""]
    if config["prepared"] is None:
        lines += ["`hmrcompress predict`, `eval`, `bench` and `profile` take this folder as MODEL."]
    lines += [
        "`golden.npz` holds inputs, and what torch gives for them: compare on your own device. `export.json` says what",
        "they mean.",
        "",
    ]
    if config["lines"]:
        lines += ["```sh", *config["lines"], "```", ""]
    return "\n".join(lines)


def _shape(value: Mapping[str, Any]) -> str:
    return f"({', '.join(map(str, value['shape']))}) {value['dtype']}"
