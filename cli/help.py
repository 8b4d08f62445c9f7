"""Help that can be read: options in panels by what they are about, and an example at the end of every page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WHAT, HOW, WHERE = "What goes in and comes out", "How", "Where it runs, and what it says"
CHECKPOINT = "What a checkpoint's file does not tell"
PANELS = (WHAT, HOW, CHECKPOINT, WHERE)
ABOUT: Mapping[str, Sequence[str]] = {
    WHAT: (
        "against", "body", "boxes", "data", "decoder", "format", "fps", "frames", "frames_per_clip", "freeze", "images",
        "journal", "json", "json_file", "limit", "masks", "model", "motions", "no_glb", "no_overlay", "only", "out",
        "overwrite", "plan", "protocol", "regressor", "sheets", "snapshot", "start", "stride", "suite", "teacher",
        "vae", "validation",
    ),
    WHERE: (
        "batch_size", "batch_sizes", "debug", "device", "dtype", "fast", "help", "no_memory", "on", "processes",
        "quiet", "seed", "threads", "workers",
    ),
}  # fmt: skip
"""Parameters by panel; those that stand nowhere say how it is done."""
EXAMPLES = {
    "inspect": "hmrcompress inspect starter",
    "compress": "hmrcompress compress starter --data starter:calib --budget-mm 1 --preset quick -o fast",
    "pick": "hmrcompress pick fast/frontier.json --fps 60 -o plan.yaml",
    "search": "hmrcompress search starter --data starter:calib --tau 0.1 -o plan.yaml",
    "cka": "hmrcompress cka starter --data starter:calib --plan plan.yaml -o cka.png",
    "merge": "hmrcompress merge starter --plan plan.yaml -o small",
    "finetune": "hmrcompress finetune small --stage heal --max-minutes 30 -o healed",
    "eval": "hmrcompress eval small --against starter --data starter:val --json eval.json",
    "bench": "hmrcompress bench --layers 22 --keep-tokens 90 --fast --batch-sizes 1,8",
    "export": "hmrcompress export small --format onnx -o small.onnx",
    "convert": "hmrcompress convert SMPL_NEUTRAL.pkl -o body.npz",
    "predict": "hmrcompress predict small walk.mp4 --boxes onnx:yolo.onnx -o walk",
    "profile": "hmrcompress profile small walk.mp4 --fast",
    "run": "hmrcompress run starter --set search.tau_mm=0.2 -o runs/mine",
    "ablate": "hmrcompress ablate --only tokens -o runs/ablations",
    "report": "hmrcompress report runs/ablations -o ablations.md",
    "doctor": "hmrcompress doctor --json doctor.json",
    "adapter new": "hmrcompress adapter new mine",
    "starter build": "hmrcompress starter build --data val",
    "starter video": "hmrcompress starter video --clips 0,1 -o walk.mp4",
    "starter train": "hmrcompress starter train --max-minutes 60 -o runs/network",
    "starter info": "hmrcompress starter info",
}
"""An example of every command. A test parses each of them."""


def example(name: str) -> str:
    """The last line of the help of the command of that name."""
    return f"Example: {EXAMPLES[name]}"


def arrange(parameters: list[Any], *, markup: bool) -> list[Any]:
    """The parameters of a command with each option in its panel, panels in their order, arguments first. markup: help
    is read as rich's markup, from which what stands in brackets is kept."""
    for each in parameters:
        if markup and getattr(each, "help", None):
            each.help = re.sub(r"(\\*)(\[[a-z#/@][^[]*?])", r"\1\1\\\2", each.help)
        if each.param_type_name == "option" and getattr(each, "rich_help_panel", None) is None:
            each.rich_help_panel = panel_of(each.name)
    return sorted(parameters, key=lambda each: PANELS.index(each.rich_help_panel) if _is_option(each) else -1)


def panel_of(name: str) -> str:
    """The panel of the option with this parameter name."""
    return next((panel for panel, names in ABOUT.items() if name in names), HOW)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")
