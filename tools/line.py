"""The line from a checkpoint to a compressed model, with the figures of the demo: `python tools/line.py` draws it.

Writes docs/pictures/line.svg; the figures are those of docs/demo_summary.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from svg import BLUE, GREEN, SAND, SOFT, Drawing

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = ROOT / "docs" / "demo_summary.json"
PICTURE = ROOT / "docs" / "pictures" / "line.svg"
STAGES = {
    "baseline": "the network that came in",
    "merged": "layers merged",
    "merged_tokens": "layers and tokens",
    "decoded": "with the decoder",
}
OUTCOMES = {
    "eval · bench · report": "the evidence, with intervals",
    "export": "ONNX, compared in mm",
    "predict": "pictures and video to bodies",
}


def line(summary: dict[str, Any]) -> Drawing:
    """The picture, from the record of a run of the demo."""
    drawing = Drawing(1000, 470, "From a checkpoint to a compressed model, and what it cost")
    _commands(drawing)
    _figures(drawing, summary)
    return drawing


def _commands(drawing: Drawing) -> None:
    def thing(x: float, y: float, name: str, about: str, fill: str, width: float = 150) -> None:
        drawing.box(x, y, width, 56, fill=fill)
        drawing.text(x + width / 2, y + 25, name, bold=True, mono=fill == BLUE)
        drawing.text(x + width / 2, y + 44, about, size=12, ink=SOFT)

    thing(24, 40, "checkpoint", "never executed", SAND)
    thing(24, 132, "data and masks", "with a split and a hash", SAND)
    thing(214, 86, "search", "which layers can go", BLUE)
    thing(404, 86, "plan.yaml", "readable, yours to edit", SAND)
    thing(594, 40, "merge", "a folder by itself", BLUE)
    thing(594, 132, "finetune", "heal, probe, decoder", BLUE)
    drawing.arrow((174, 68), (190, 68), (190, 104), (212, 104))
    drawing.arrow((174, 160), (190, 160), (190, 124), (212, 124))
    drawing.arrow((364, 114), (402, 114))
    drawing.arrow((554, 104), (574, 104), (574, 68), (592, 68))
    drawing.arrow((669, 96), (669, 130))
    for number, (name, about) in enumerate(OUTCOMES.items()):
        y = 24 + 66 * number
        drawing.box(790, y, 186, 54, fill=GREEN)
        drawing.text(883, y + 23, name, bold=True, size=13, mono=True)
        drawing.text(883, y + 42, about, size=12, ink=SOFT)
        drawing.arrow((744, 68), (768, 68), (768, y + 27), (788, y + 27))
    drawing.arrow((744, 160), (768, 160), (768, 183), (788, 183))


def _figures(drawing: Drawing, summary: dict[str, Any]) -> None:
    """A row for each stage: bars of error, arithmetic and speed."""
    columns = {
        "MPJPE, mm": [summary["stages"][stage]["mpjpe_mm"] for stage in STAGES],
        "GMACs a crop": [summary["costs"][stage]["macs"] / 1e9 for stage in STAGES],
        "frames/s": [summary["bench"]["fps"][stage] for stage in STAGES],
    }
    drawing.text(24, 250, "What it does to the starter network", bold=True, size=15, anchor="start")
    for place, (name, values) in enumerate(columns.items()):
        left = 240 + 252 * place
        drawing.text(left, 278, name, size=13, ink=SOFT, anchor="start")
        for row, value in enumerate(values):
            y = 290 + 32 * row
            drawing.box(
                left, y, 160 * value / max(values), 22, fill="#7aa2e3" if row else "#c3cfe2", round=3, edge="none"
            )
            shown = f"{value:.3f}" if max(values) < 10 else f"{value:.1f}"
            drawing.text(left + 160 * value / max(values) + 8, y + 16, shown, size=13, anchor="start")
    for row, name in enumerate(STAGES.values()):
        drawing.text(24, 306 + 32 * row, name, size=13, anchor="start")
    stage, bench = summary["stages"]["baseline"], summary["bench"]
    where = f"{stage['n_frames']} frames of {stage['n_clips']} clips; {summary['device']}, {bench['threads']} threads"
    note = f"A rendered world, not photographs. {where}, batch {bench['batch_size']}; stages by turns."
    drawing.text(24, 446, note, size=12, ink=SOFT, anchor="start")


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    line(json.loads(SUMMARY.read_text())).write(PICTURE)
