"""The part of a model card that says what was measured, and whose weights these are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def card_section(found: Mapping[str, Any]) -> str:
    """Markdown, from the values of `frontier.json`: the same figures as its page shows."""
    weights, chosen = found["weights"], next(each for each in found["points"] if each["name"] == found["chosen"])
    known = chosen.get("confirmed") or chosen["search"]
    increase = f"{known['increase_mm']:+.2f} mm"
    if interval := known["ci95_mm"]:
        increase += f" (95 % interval {interval[0]:+.2f} to {interval[1]:+.2f})"
    rows = [
        ("error of the uncompressed network", f"{found['baseline_mm']:.2f} mm"),
        ("increase", increase),
        ("distance from the uncompressed network's bodies", f"{known['distance_mm']:.2f} mm"),
        ("frames and clips", f"{known['n_frames']} of {known['n_clips']}, {found['data']['confirm']}"),
    ]
    if speed := found.get("speed"):
        times = f"{speed['speedup']:.2f} times the uncompressed network's"
        rows.append(("speed", f"{speed['fps']:.1f} frames/s, {times}, on {found['costs']['device']}"))
    lines = ["", "## What was measured", "", found["sentence"], "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += [
        "",
        "## Whose weights these are",
        "",
        f"They were made from `{weights['name']}` (sha256 `{weights['sha256']}`), and its licence goes with them: what "
        "it allows and forbids holds for this model too. hmrcompress adds no terms of its own to them.",
        "",
    ]
    return "\n".join(lines)
