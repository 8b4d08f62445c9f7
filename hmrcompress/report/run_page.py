"""The page of a run of a recipe: one HTML file that needs no network, from the values of `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from hmrcompress.report.page import PALETTE, about_program, about_weights, figure, page, table
from hmrcompress.report.summary import change_rows, gate_rows, verdict
from hmrcompress.report.table import NAMES, caption, stage_table

BASELINE = "baseline"


def run_page(summary: Mapping[str, Any]) -> str:
    """The HTML text. summary: what `summary.json` holds (`recipe.runner`)."""
    gates = summary.get("gates", [])
    lead = f"{verdict(gates)}. {caption(summary)}".strip()
    plots = [_errors(summary), _speed(summary), _clips(summary), _seconds(summary)]
    sections = []
    stages = stage_table(summary)
    if stages.rows:
        rows = [[_cell(value) for value in row] for row in stages.rows]
        sections += ["<h2>Stages</h2>", table(stages.columns, rows)]
    if gates:
        cells = [[escape(cell.replace("*", "")) for cell in row] for row in gate_rows(gates)]
        sections += ["<h2>Gates</h2>", table(("gate", "value", "95 %", "allowed", ""), cells)]
    if "change" in summary:
        heads = ("stage", "", "before", "now", "change", "95 %, paired over clips", "")
        cells = [[escape(cell) for cell in row] for row in change_rows(summary["change"])]
        sections += ["<h2>Since the earlier run</h2>", table(heads, cells)]
    if summary.get("leak"):
        sections.append("<p><b>Some of the frames were searched or trained on, so the figures are optimistic.</b></p>")
    about = [*about_weights(summary.get("weights")), *about_program(summary)]
    return page(f"{summary['recipe']['model']}: a run", lead, plots, sections, about)


def _measured(summary: Mapping[str, Any]) -> list[str]:
    """Stages that were scored, but for the mean pose, which is far away."""
    return [name for name in NAMES if name in summary.get("stages", {}) and name != "mean_pose"]


def _errors(summary: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    names = _measured(summary)
    if not names:
        return ""
    scores = [summary["stages"][name] for name in names]
    values = [each["mpjpe_mm"] for each in scores]
    spans = [each.get("mpjpe_ci95_mm") or [value, value] for each, value in zip(scores, values, strict=True)]
    bars = go.Bar(
        x=[NAMES[name] for name in names],
        y=values,
        marker={"color": [PALETTE["base" if name == BASELINE else "front"] for name in names]},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - value for value, (_, high) in zip(values, spans, strict=True)],
            "arrayminus": [value - low for value, (low, _) in zip(values, spans, strict=True)],
        },
        hovertemplate="%{x}: %{y:.2f} mm",
    )
    return figure("errors", [bars], "MPJPE by stage, with 95 % intervals over clips", "", "mm")


def _speed(summary: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    timed = summary.get("bench", {}).get("fps", {})
    points = [name for name in _measured(summary) if name in timed]
    if not points:
        return ""
    dots = go.Scatter(
        x=[timed[name] for name in points],
        y=[summary["stages"][name]["mpjpe_mm"] for name in points],
        text=[NAMES[name] for name in points],
        mode="markers+text",
        textposition="top center",
        marker={"size": 12, "color": [PALETTE["base" if name == BASELINE else "front"] for name in points]},
        hovertemplate="%{text}: %{x:.1f} frames/s, %{y:.2f} mm",
    )
    return figure("speed", [dots], "Speed and error", "frames a second", "MPJPE, mm", showlegend=False)


def _clips(summary: Mapping[str, Any]) -> str:
    """By how much each clip's error changes from the uncompressed network to the last stage, sorted."""
    import plotly.graph_objects as go

    clips, names = summary.get("clips"), _measured(summary)
    if not clips or BASELINE not in names or names[-1] == BASELINE:
        return ""
    before, after = (clips["stages"][name]["mpjpe_mm"] for name in (BASELINE, names[-1]))
    gaps = sorted((b - a, clip) for a, b, clip in zip(before, after, clips["ids"], strict=True))
    bars = go.Bar(
        x=[f"clip {clip}" for _, clip in gaps],
        y=[gap for gap, _ in gaps],
        marker={"color": [PALETTE["chosen" if gap > 0 else "front"] for gap, _ in gaps]},
        hovertemplate="%{x}: %{y:+.2f} mm",
    )
    return figure("clips", [bars], f"Increase by clip, {NAMES[names[-1]]}", "", "mm")


def _seconds(summary: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    taken = summary.get("seconds", {})
    if not taken:
        return ""
    bars = go.Bar(x=list(taken), y=list(taken.values()), marker={"color": PALETTE["other"]})
    return figure("seconds", [bars], "Time by stage of the recipe", "", "seconds")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else escape(str(value))
