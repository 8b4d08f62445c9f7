"""The table of a run: one row a stage, what it costs and what it scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMES = {
    "mean_pose": "mean pose",
    "baseline": "baseline",
    "merged": "merged layers",
    "tokens_alone": "merged tokens, all layers",
    "merged_tokens": "merged layers + tokens",
    "interpolated": "interpolated",
    "filtered_one_euro": "One-Euro filter",
    "filtered_savgol": "Savitzky–Golay filter",
    "decoded": "temporal decoder",
}
COLUMNS = ("", "MPJPE", "PA-MPJPE", "PVE", "Accel", "layers", "tokens", "GMACs", "frames/s")
GIGA = 1e9


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows of texts, numbers and None (not measured)."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def stage_table(summary: Mapping[str, Any], *, title: str = "") -> Table:
    """The stages of a record (see `summary.json`): errors in mm, Accel in mm per frame squared.

    MACs count linear layers, convolutions and norms; frames/s are there where the stages were timed together.
    """
    rows = []
    timed = summary.get("bench", {}).get("fps", {})
    for stage in NAMES:
        scores = summary.get("stages", {}).get(stage, {})
        costs = summary.get("costs", {}).get(stage, {})
        if not scores and not costs:
            continue
        errors = (scores.get(name) for name in ("mpjpe_mm", "pa_mpjpe_mm", "pve_mm"))
        macs = costs.get("macs")
        rows.append(
            (
                NAMES[stage],
                *errors,
                _digits(scores.get("accel_mm_per_frame2"), 2),
                costs.get("layers"),
                costs.get("tokens"),
                _digits(None if macs is None else macs / GIGA, 3),
                timed.get(stage),
            )
        )
    return Table(title, COLUMNS, rows)


def caption(summary: Mapping[str, Any]) -> str:
    """What the figures of a record were measured on, in one line; empty where nothing was scored."""
    stages = list(summary.get("stages", {}).values())
    if not stages:
        return ""
    scored = stages[-1]
    data = summary.get("data", {})
    named = ":".join(filter(None, (data.get("name"), data.get("split"))))
    text = f"{scored['n_frames']} frames of {scored['n_clips']} clips{f' of {named}' if named else ''}"
    text += f", protocol {scored['protocol']}, errors in mm"
    stride = summary.get("sequence", {}).get("strides", [1])[0]
    if stride > 1:
        text += f", clips decoded from every {stride}{ {2: 'nd', 3: 'rd'}.get(stride, 'th') } frame"
    timing = summary.get("bench")
    if timing:
        place = summary.get("device", "cpu")
        count = timing["threads"]
        threads = f", {count} thread{'s' if count > 1 else ''}" if place == "cpu" else ""
        text += f"; frames/s on {place} at batch {timing['batch_size']}{threads}"
    return text


def _digits(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
