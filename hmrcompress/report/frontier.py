"""The page of a search for the frontier: one HTML file that needs no network, from the values of `frontier.json`."""

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
code{font-size:.85rem;overflow-wrap:anywhere}footer{margin-top:2rem;color:#52606d;font-size:.85rem}
"""

CLOCKS = {"table": "the cost table", "turns": "the clock, by turns"}
FITTED = (
    "addEventListener('load',()=>document.querySelectorAll('.js-plotly-plot').forEach(each=>Plotly.Plots.resize(each)))"
)
"""Plots are drawn while the page is laid out, so that the first ones have to be fitted to their columns at the end."""


def frontier_page(found: Mapping[str, Any]) -> str:
    """The HTML text. found: what `frontier.json` holds (`api.compress`)."""
    from plotly.offline import get_plotlyjs

    plots = [_front(found), _damage(found), _similarity(found), *_breakdowns(found), _times(found)]
    shown = "\n".join(f'<div class="plot">{each}</div>' for each in plots if each)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(str(found['model']))}: compressed</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>\n"
        f'<h1>{escape(str(found["model"]))}</h1>\n<p class="lead">{escape(str(found["sentence"]))}</p>\n'
        f'<div class="grid">{shown}</div>\n<h2>Points</h2><div class="scroll">{_table(found)}</div>\n'
        f"{_told(found)}{_footer(found)}<script>{FITTED}</script></body></html>\n"
    )


def _figure(name: str, traces: Sequence[Any], title: str, x: str, y: str, **layout: Any) -> str:
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


def _front(found: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    traces = []
    for kind, title in (("other", "measured"), ("front", "front"), ("chosen", "chosen"), ("base", "uncompressed")):
        points = [each for each in found["points"] if _kind(found, each) == kind]
        if not points:
            continue
        known = [each.get("confirmed") or each["search"] for each in points]
        spans = [each["ci95_mm"] or [each["increase_mm"]] * 2 for each in known]
        traces.append(
            go.Scatter(
                x=[each["fps"] for each in points],
                y=[each["increase_mm"] for each in known],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "thickness": 1,
                    "array": [high - each["increase_mm"] for each, (_, high) in zip(known, spans, strict=True)],
                    "arrayminus": [each["increase_mm"] - low for each, (low, _) in zip(known, spans, strict=True)],
                },
                text=[_hover(each) for each in points],
                hoverinfo="text",
                mode="lines+markers" if kind == "front" else "markers",
                marker={"size": 14 if kind in ("chosen", "base") else 8, "color": PALETTE[kind]},
                name=title,
            )  # fmt: skip
        )
    shapes = []
    if found["asked"].get("budget_mm") is not None:
        budget = found["asked"]["budget_mm"]
        shapes = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": budget, "y1": budget, "line": {"dash": "dot"}}
        ]
    return _figure(
        "front",
        traces,
        "The front",
        f"frames a second, batches of {found['costs']['batch']}",
        "increase, mm",
        shapes=shapes,
    )


def _kind(found: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    if point["name"] == found["chosen"]:
        return "chosen"
    candidate = point["candidate"]
    if not candidate["removed"] and candidate["tokens"] is None and not {"dtype", "stride", "healed"} & set(candidate):
        return "base"
    return "front" if point["on_front"] else "other"


def _hover(point: Mapping[str, Any]) -> str:
    known = point.get("confirmed") or point["search"]
    lines = [point["words"], f"{known['increase_mm']:+.2f} mm"]
    if known["ci95_mm"]:
        lines[1] += f" ({known['ci95_mm'][0]:+.2f} to {known['ci95_mm'][1]:+.2f})"
    lines += [
        f"bodies move by {known['distance_mm']:.2f} mm",
        f"{point['fps']:.1f} frames/s predicted",
        f"{point['parameters'] / 1e6:.1f} M parameters",
        f"on {known['n_frames']} frames of {known['n_clips']} clips"
        + ("" if point.get("confirmed") else ", searched on"),
    ]
    return "<br>".join(lines)


def _damage(found: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    damage = found["damage_mm"]
    if not damage:
        return ""
    chosen = next(each for each in found["points"] if each["name"] == found["chosen"])
    gone = {each["layer"] for each in chosen["candidate"]["removed"]}
    layers = [int(layer) for layer in damage]
    colours = [PALETTE["chosen"] if layer in gone else PALETTE["front"] for layer in layers]
    bars = go.Bar(x=layers, y=list(damage.values()), marker={"color": colours}, hovertemplate="layer %{x}: %{y:.2f} mm")
    return _figure("damage", [bars], "What removing one layer costs (red: removed)", "layer", "increase, mm")


def _similarity(found: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    if not found.get("cka"):
        return ""
    heat = go.Heatmap(z=found["cka"], zmin=0, zmax=1, colorscale="Viridis", hovertemplate="%{x}, %{y}: %{z:.2f}")
    return _figure("cka", [heat], "Similarity of layers (CKA)", "layer", "layer")


def _breakdowns(found: Mapping[str, Any]) -> list[str]:
    import plotly.graph_objects as go

    plots = []
    for name, title in (
        ("by_joint", "Error by joint"),
        ("by_kind", "Error by motion"),
        ("by_occlusion", "Error by occlusion"),
    ):
        rows = found.get(name)
        if not rows:
            continue
        names = list(rows)
        bars = [
            go.Bar(x=names, y=[rows[each][when] for each in names], name=label, marker={"color": PALETTE[colour]})
            for when, label, colour in (("before", "uncompressed", "base"), ("after", "chosen", "chosen"))
        ]
        plots.append(_figure(name, bars, title, "", "mm", barmode="group"))
    return plots


def _times(found: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    costs = found["costs"]
    counts = [int(count) for count in costs["attention"]]
    lines = [
        go.Scatter(x=counts, y=[1e3 * value for value in costs[part].values()], name=name, mode="lines+markers")
        for part, name in (("attention", "attention of a layer"), ("mlp", "MLP of a layer"), ("head", "head"))
    ]
    return _figure("times", lines, f"Time of parts on {costs['device']}", "tokens", "ms a batch")


def _table(found: Mapping[str, Any]) -> str:
    rows = []
    for point in sorted(found["points"], key=lambda each: -each["fps"]):
        known = point.get("confirmed") or point["search"]
        interval = known["ci95_mm"]
        cells = [
            ("<b>chosen</b> " if point["name"] == found["chosen"] else "") + escape(point["words"]),
            f"{known['increase_mm']:+.2f}" + (f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else ""),
            f"{known['distance_mm']:.2f}",
            f"{point['fps']:.1f}",
            "clips not searched on" if point.get("confirmed") else "search",
        ]
        rows.append("<tr>" + "".join(f"<td>{each}</td>" for each in cells) + "</tr>")
    head = "".join(
        f"<th>{each}</th>" for each in ("plan", "increase, mm", "distance, mm", "frames/s, predicted", "measured on")
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _told(found: Mapping[str, Any]) -> str:
    notes = found.get("notes") or []
    slower = [
        f"<tr><td>{escape(str(each['words']))}</td><td>{each['macs']:.0%}</td><td>{each['speed']:.2f}</td>"
        f"<td>{CLOCKS[each['by']]}</td></tr>"
        for each in found.get("not_faster") or []
    ]
    heads = "<tr><th>plan</th><th>MACs</th><th>speed, predicted</th><th>by</th></tr>"
    text = "<h2>Fewer MACs, and not faster here</h2>"
    table = f'{text}<div class="scroll"><table>{heads}{"".join(slower)}</table></div>' if slower else ""
    return table + "".join(f"<p>{escape(str(each))}</p>" for each in notes)


def _footer(found: Mapping[str, Any]) -> str:
    weights = found["weights"]
    about = [
        f"Weights: {escape(str(weights['name']))}, sha256 <code>{weights['sha256']}</code>; "
        "their licence goes with them.",
        f"Searched on {escape(str(found['data']['search']))}, confirmed on {escape(str(found['data']['confirm']))}.",
        f"Device: {escape(str(found['costs']['device']))}, {escape(str(found['costs']['dtype']))}. "
        f"{escape(', '.join(f'{name} {number}' for name, number in found['versions'].items()))}.",
        f"Command: <code>{escape(str(found['command_line']))}</code>",
    ]
    return "<footer>" + "".join(f"<p>{each}</p>" for each in about) + "</footer>"
