"""README.md of the shipped starter network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmrcompress.models.network import NetworkConfig
from hmrcompress.starter.network.breakdown import Part

Row = Sequence[object]
SCORE_COLUMNS = ("", "MPJPE mm", "PA-MPJPE mm", "PVE mm", "Accel mm/frame²", "frames", "protocol")


@dataclass(frozen=True)
class Figures:
    """What was measured with the weights as they are stored.

    scores: split -> stage (mean_pose, baseline) -> figures as commands print them; joints mm by joint; occlusion and
    kinds the frames in parts; drops mm that leaving out each layer adds, on drop_frames frames.
    """

    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    joints: Mapping[str, float]
    occlusion: Sequence[Part]
    kinds: Sequence[Part]
    drops: Sequence[float]
    drop_frames: int


def network_card(
    config: NetworkConfig,
    provenance: Mapping[str, Any],
    figures: Figures,
    records: Sequence[Mapping[str, Any]],
    parameters: int,
) -> str:
    """The text. records: those of the training log."""
    machine = provenance["environment"]
    curve = {record["seen"]: record["val"] for record in records if "val" in record}
    sections = [
        "# The starter network",
        "A small HMR2.0-architecture network trained from scratch on the open starter world. It is a test bench for\n"
        "compression, not a pose estimator for photographs: it has only ever seen rendered people.",
        table(
            ("", ""),
            (
                ("backbone", f"{config.depth} layers, dim {config.dim}, {config.num_heads} heads, 192 tokens"),
                ("parameters", f"{parameters:,} (stored as float16)"),
                ("command", f"`{provenance['command']}`"),
                ("seed", provenance["seed"]),
                ("images seen", f"{provenance['images']:,}"),
                (
                    "training time",
                    f"{provenance['minutes']} minutes, the last run on {machine['cpu']} ({machine['device']})",
                ),
                ("weights", f"{provenance['weights']}, the better on `starter:dev`"),
                ("log", f"`{provenance['log']}`"),
            ),
        ),
        provenance["note"],
        *[_scores(split, stages) for split, stages in figures.scores.items()],
        "The mean pose: mean rotations of the training poses, upright, facing the camera (the `init_*` buffers).",
        "## Where it errs on `starter:val`",
        _parts("hidden or cut off", figures.occlusion),
        _parts("kind of motion", figures.kinds),
        table(("joint", "error mm"), ((name, f"{error:.1f}") for name, error in figures.joints.items())),
        "## What its layers are worth",
        f"MPJPE added by leaving out a single layer, on {figures.drop_frames} frames of `starter:val`. It was trained"
        "\nwith stochastic depth by whole layers, as the backbones of real networks are.",
        table(("layer", "mm"), ((number, f"{cost:+.2f}") for number, cost in enumerate(figures.drops))),
        "![similarity of the layers](cka.png)",
        "![test crops with the predicted mesh, the worst in the last row](meshes.jpg)",
        "## Learning curve",
        "A sample of `starter:dev`, averaged weights; crops of 128 x 96 pixels but for the last stage of a run.",
        table(
            ("images", "MPJPE mm", "PA-MPJPE mm"),
            ((f"{seen:,}", row["mpjpe_mm"], row["pa_mpjpe_mm"]) for seen, row in curve.items()),
        ),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Row, rows: Iterable[Row]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _scores(split: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, label in (("mean_pose", "mean pose"), ("baseline", "this network")):
        row = stages[name]
        measured = (f"{row[key]:.1f}" for key in ("mpjpe_mm", "pa_mpjpe_mm", "pve_mm", "accel_mm_per_frame2"))
        rows.append((label, *measured, row["n_frames"], row["protocol"]))
    return f"Printed by `hmrcompress eval starter --data {split}`:\n\n{table(SCORE_COLUMNS, rows)}"


def _parts(label: str, parts: Sequence[Part]) -> str:
    rows = ((part.name, f"{part.mpjpe_mm:.1f}", f"{part.pa_mpjpe_mm:.1f}", part.frames) for part in parts)
    return table((label, "MPJPE mm", "PA-MPJPE mm", "frames"), rows)
