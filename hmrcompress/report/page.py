"""What the pages of a run and of a frontier share: one HTML file that needs no network, with plots and tables, and says
whose weights it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

PALETTE = {"front": "#1f6f8b", "chosen": "#d1495b", "other": "#9aa5b1", "base": "#33415c"}
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1f2933;margin:0 auto;max-width:1180px;padding:1rem}
h1{font-size:1.6rem;margin:.3rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .2rem}
.lead{font-size:1.1rem}.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1rem}
.plot{min-width:0;overflow:hidden}table{border-collapse:collapse;font-size:.9rem}
td,th{border-bottom:1px solid #d9e2ec;padding:.25rem .6rem;text-align:left}.scroll{overflow-x:auto}
.sheet{min-width:700px;max-width:100%}
code{font-size:.85rem;overflow-wrap:anywhere}footer{margin-top:2rem;color:#52606d;font-size:.85rem}
"""

FITTED = (
    "addEventListener('load',()=>document.querySelectorAll('.js-plotly-plot').forEach(each=>Plotly.Plots.resize(each)))"
)
"""Plots are drawn while the page is laid out, so that the first ones have to be fitted to their columns at the end."""


def page(title: str, lead: str, plots: Sequence[str], sections: Sequence[str], about: Sequence[str]) -> str:
    """The HTML text. plots: of `figure`, empty ones left out; sections: HTML; about: the footer's paragraphs, HTML."""
    from plotly.offline import get_plotlyjs

    shown = "\n".join(f'<div class="plot">{each}</div>' for each in plots if each)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f'<div class="grid">{shown}</div>\n{"".join(sections)}'
        f"<footer>{''.join(f'<p>{each}</p>' for each in about)}</footer>"
        f"<script>{FITTED}</script></body></html>\n"
    )


def figure(name: str, traces: Sequence[Any], title: str, x: str, y: str, **layout: Any) -> str:
    """A plot as a part of the page, with an id of its own so that the same values give the same bytes."""
    import plotly.graph_objects as go
    from plotly.io import to_html

    figure = go.Figure(traces)
    figure.update_layout(
        title=title, xaxis_title=x, yaxis_title=y, template="plotly_white", height=400,
        margin={"l": 60, "r": 20, "t": 50, "b": 50}, legend={"orientation": "h", "y": -0.25}, **layout,
    )  # fmt: skip
    return to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        div_id=name,
        config={"responsive": True, "displayModeBar": False},
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML, which may be wider than the page."""
    lines = ["".join(f"<th>{each}</th>" for each in heads)]
    lines += ["".join(f"<td>{each}</td>" for each in row) for row in rows]
    inside = "".join(f"<tr>{each}</tr>" for each in lines)
    return f'<div class="scroll"><table>{inside}</table></div>'


def about_weights(weights: Mapping[str, Any] | None) -> list[str]:
    """Whose weights a page is about, as paragraphs; none where that was not recorded."""
    if not weights:
        return []
    return [
        f"Weights: {escape(str(weights['name']))}, sha256 <code>{escape(str(weights['sha256']))}</code>; "
        "their licence goes with them."
    ]


def about_program(found: Mapping[str, Any]) -> list[str]:
    """Device, versions and commit of a record, as paragraphs."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    parts = [str(found[name]) for name in ("device", "cpu") if found.get(name)]
    parts += [f"commit {found['commit']}"] if found.get("commit") else []
    return [f"{escape(versions)}. {escape(', '.join(parts))}."]
