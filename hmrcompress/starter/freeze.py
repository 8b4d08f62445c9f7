"""From a training state to the network that is shipped: fp16 weights, the log, and a card with measured figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from hmrcompress.body.files import starter_body
from hmrcompress.evaluation.evaluate import evaluate, stages_of
from hmrcompress.models.folder import as_half, write_model_folder
from hmrcompress.models.network import HMR2, NetworkConfig, from_state
from hmrcompress.runtime import Progress, environment, no_progress
from hmrcompress.starter.dataset import open_split
from hmrcompress.starter.log import LOG_FILE, SHIPPED_LOG, read_log, training_minutes
from hmrcompress.starter.train import STATE_FILE, averaged_state


def freeze(folder: Path, out: Path, *, command: str, note: str = "", progress: Progress = no_progress) -> Path:
    """Write the network trained in `folder` to `out`, scored on starter:test with the weights as they are stored.

    command is what the card names as having made it, note a remark below it.
    """
    state = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
    config = NetworkConfig.from_dict(state["config"])
    half = as_half(averaged_state(from_state(config, state["network"]), state["average"]))
    body = starter_body()
    network: HMR2 = from_state(config, {name: tensor.float() for name, tensor in half.items()})
    crops = open_split("test", body, progress=progress)
    scores = {
        n: s.to_json()
        for n, s in evaluate(stages_of(network, None), crops, body=body, progress=progress).stages.items()
    }
    records = read_log(folder / LOG_FILE)
    provenance = {
        "command": command,
        "note": note,
        "seed": state["seed"],
        "images": state["before"] + state["seen"],
        "minutes": round(training_minutes(records), 1),
        "environment": environment(),
        "log": SHIPPED_LOG,
    }
    card = network_card(config, provenance, scores, records, sum(t.numel() for t in half.values()))
    write_model_folder(out, half, config, provenance=provenance, body=body.name, card=card)
    shutil.copyfile(folder / LOG_FILE, out / SHIPPED_LOG)
    return out


def network_card(
    config: NetworkConfig,
    provenance: dict[str, Any],
    scores: dict[str, dict[str, Any]],
    records: list[dict[str, Any]],
    parameters: int,
) -> str:
    """README.md of the shipped network."""
    machine = provenance["environment"]
    lines = [
        "# The starter network",
        "",
        "A small HMR2.0-architecture network trained from scratch on the open starter world. It is a test bench for",
        "compression, not a pose estimator for photographs: it has only ever seen rendered people.",
        "",
        "| | |",
        "|---|---|",
        f"| backbone | {config.depth} layers, dim {config.dim}, {config.num_heads} heads, 192 tokens |",
        f"| parameters | {parameters:,} (stored as float16) |",
        f"| command | `{provenance['command']}` |",
        f"| seed | {provenance['seed']} |",
        f"| images seen | {provenance['images']:,} |",
        f"| training time | {provenance['minutes']} minutes on {machine['cpu']} ({machine['device']}) |",
        f"| log | `{provenance['log']}` |",
        "",
        *([provenance["note"], ""] if provenance["note"] else []),
        "Scores on `starter:test`, printed by `hmrcompress eval starter --data starter:test`:",
        "",
        "| | MPJPE mm | PA-MPJPE mm | PVE mm | Accel mm/frame² | frames | protocol |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label in (("mean_pose", "mean pose"), ("baseline", "this network")):
        row = scores[name]
        lines.append(
            f"| {label} | {row['mpjpe_mm']:.1f} | {row['pa_mpjpe_mm']:.1f} | {row['pve_mm']:.1f} |"
            f" {row['accel_mm_per_frame2']:.1f} | {row['n_frames']} | {row['protocol']} |"
        )
    lines += [
        "",
        "The mean pose: mean rotations of the training poses, upright, facing the camera (the `init_*` buffers).",
        "",
        "Learning curve (a sample of `starter:val`, averaged weights; 128 x 96 pixels until the last stage):",
        "",
        "| images | MPJPE mm | PA-MPJPE mm |",
        "|---|---|---|",
    ]
    for seen, figures in {record["seen"]: record["val"] for record in records if "val" in record}.items():
        lines.append(f"| {seen:,} | {figures['mpjpe_mm']} | {figures['pa_mpjpe_mm']} |")
    return "\n".join([*lines, ""])
