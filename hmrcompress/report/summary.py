"""What a run says to people and machines that review a change: a page of Markdown, fit for a pull request, and JUnit
XML, which every CI shows. Both come of `summary.json` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from hmrcompress.report.table import NAMES, caption, stage_table

NONE = "–"
FIGURES = {
    "mpjpe_mm": ("MPJPE, mm", 2),
    "pa_mpjpe_mm": ("PA-MPJPE, mm", 2),
    "pve_mm": ("PVE, mm", 2),
    "accel_mm_per_frame2": ("Accel, mm/frame²", 3),
}
OTHERS = {
    "layers": ("layers", "{:g}"),
    "tokens": ("tokens", "{:g}"),
    "params": ("parameters", "{:,.0f}"),
    "macs": ("MACs", "{:,.0f}"),
    "speedup": ("speed-up", "{:.2f}x"),
    "onnx_bytes": ("bytes of ONNX", "{:,.0f}"),
    "onnx_max_abs_diff": ("ONNX from torch", "{:.1e}"),
    "onnx_joints_mm": ("ONNX from torch, mm", "{:.1e}"),
}


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The text: gates, the change since an earlier run where there is one, and the table of stages."""
    gates = summary.get("gates", [])
    lines = [f"## {summary['recipe']['model']}: {verdict(gates)}", ""]
    if gates:
        lines += _table(["gate", "value", "95 %", "allowed", ""], gate_rows(gates))
    if "change" in summary:
        lines += _changes(summary["change"])
    table = stage_table(summary)
    if table.rows:
        cells = [[_cell(value) for value in row] for row in table.rows]
        lines += [f"### Figures\n\n{caption(summary)}.", ""] if summary.get("stages") else ["### Figures", ""]
        lines += _table(list(table.columns), cells)
    if summary.get("leak"):
        lines += ["**Some of the frames were searched or trained on, so the figures are optimistic.**", ""]
    about = [f"{name} {number}" for name, number in summary["versions"].items()]
    about += [summary.get("device", ""), summary.get("cpu", "")]
    about += [f"commit {summary['commit'][:12]}"] if "commit" in summary else []
    return "\n".join([*lines, f"<sub>{', '.join(filter(None, about))}</sub>", ""])


def junit(summary: Mapping[str, Any], told: Mapping[str, str]) -> str:
    """One test case for each stage, with the seconds that it took, and one for each gate; told: what a gate says."""
    seconds = summary.get("seconds", {})
    cases = [f"    <testcase classname=\"stages\" name={quoteattr(name)} time=\"{taken:.2f}\"/>"
             for name, taken in seconds.items()]  # fmt: skip
    gates = summary.get("gates", [])
    for gate in gates:
        name = gate["name"] + (f" of {gate['stage']}" if gate.get("stage") else "")
        text = told.get(gate["name"], gate["name"])
        start = f'    <testcase classname="gates" name={quoteattr(name)} time="0.00"'
        cases.append(f"{start}/>" if gate["passed"] else f"{start}>\n      <failure message={quoteattr(text)}>"
                     f"{escape(text)}</failure>\n    </testcase>")  # fmt: skip
    broken = sum(not gate["passed"] for gate in gates)
    counts = f'tests="{len(cases)}" failures="{broken}" errors="0" time="{sum(seconds.values()):.2f}"'
    name = quoteattr(f"hmrcompress run: {summary['recipe']['model']}")
    body = "\n".join(cases)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<testsuites {counts}>\n  <testsuite name={name} {counts}>\n{body}\n  </testsuite>\n</testsuites>\n"
    )


def verdict(gates: Sequence[Mapping[str, Any]]) -> str:
    """Whether the gates held, in a few words."""
    if not gates:
        return "no gates"
    broken = sum(not gate["passed"] for gate in gates)
    held = f"all {len(gates)} gates held" if len(gates) > 1 else "the gate held"
    return f"{broken} of {len(gates)} gates broken" if broken else held


def gate_rows(gates: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Name, value, interval, bounds and outcome of each gate, as Markdown."""
    return [_gate(each) for each in gates]


def _gate(gate: Mapping[str, Any]) -> list[str]:
    bounds = [f"≥ {gate['min']:g}"] if "min" in gate else []
    bounds += [f"≤ {gate['max']:g}"] if "max" in gate else []
    name = gate["name"] + (f" of {gate['stage']}" if gate.get("stage") else "")
    value = NONE if gate["value"] is None else f"{gate['value']:.4g}"
    return [name, value, _range(gate.get("ci95"), ".4g"), ", ".join(bounds), "held" if gate["passed"] else "**broken**"]


def _changes(change: Mapping[str, Any]) -> list[str]:
    commit = change["of"].get("commit")
    lines = [f"### Since {f'commit {commit[:12]}' if commit else 'the earlier run'}", ""]
    lines += _table(["stage", "", "before", "now", "change", "95 %, paired over clips", ""], change_rows(change))
    others = [
        [title, form.format(pair["before"]), form.format(pair["now"])]
        for name, (title, form) in OTHERS.items()
        if (pair := change["figures"].get(name)) is not None
    ]
    return lines + (_table(["", "before", "now"], others) if others else [])


def change_rows(change: Mapping[str, Any]) -> list[list[str]]:
    """Stage, figure, before, now, change, interval and what that shows, of every figure that both runs measured."""
    rows = []
    for stage, figures in change["stages"].items():
        for name, (title, digits) in FIGURES.items():
            each = figures.get(name)
            if each is None or each["change"] is None:
                continue
            form = f".{digits}f"
            rows.append(
                [NAMES.get(stage, stage.replace("_", " ")), title, f"{each['before']:{form}}", f"{each['now']:{form}}",
                 f"{each['change']:+{form}}", _range(each["ci95"], f"+{form}"), _shown(each["ci95"])]
            )  # fmt: skip
    return rows


def _shown(interval: Sequence[float] | None) -> str:
    """What an interval of a change shows; errors that fall are good."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return ""
    return "worse" if interval[0] > 0 else "better"


def _range(interval: Sequence[float] | None, form: str) -> str:
    return NONE if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _cell(value: Any) -> str:
    if value is None:
        return NONE
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return [*lines, *(f"| {' | '.join(each.replace('|', '&#124;') for each in row)} |" for row in rows), ""]
