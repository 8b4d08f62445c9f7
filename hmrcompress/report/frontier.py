"""The page of a search for the frontier: one HTML file that needs no network, from the values of `frontier.json`."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from hmrcompress.io.hashes import sha256_file
from hmrcompress.report.page import PALETTE, about_program, about_weights, figure, page, table

CLOCKS = {"table": "the cost table", "turns": "the clock, by turns"}

WORST_PICTURE, TOKENS_PICTURE = "worst.jpg", "tokens.jpg"


def frontier_page(found: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None) -> str:
    """The HTML text. found: what `frontier.json` holds (`api.compress`); pictures: JPEG files that lie beside it, by
    name."""
    plots = [_front(found), _damage(found), _similarity(found), *_breakdowns(found), _times(found)]
    sections = ["<h2>Points</h2>", _table(found), _told(found), _seen(found, pictures or {})]
    return page(f"{found['model']}: compressed", str(found["sentence"]), plots, sections, _about(found))


def pictures_beside(found: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """The pictures of a record that lie in a folder, by name: those that it names, as they were written."""
    known = found.get("pictures") or {}
    files = {name: folder / name for name in (WORST_PICTURE, TOKENS_PICTURE) if (folder / name).is_file()}
    return {name: path.read_bytes() for name, path in files.items() if known.get(name) == sha256_file(path)}


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
    return figure(
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
        *([f"{point['parameters'] / 1e6:.1f} M parameters"] if "parameters" in point else []),
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
    return figure("damage", [bars], "What removing one layer costs (red: removed)", "layer", "increase, mm")


def _similarity(found: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    if not found.get("cka"):
        return ""
    heat = go.Heatmap(z=found["cka"], zmin=0, zmax=1, colorscale="Viridis", hovertemplate="%{x}, %{y}: %{z:.2f}")
    return figure("cka", [heat], "Similarity of layers (CKA)", "layer", "layer")


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
        plots.append(figure(name, bars, title, "", "mm", barmode="group"))
    return plots


def _times(found: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    costs = found["costs"]
    if "attention" not in costs:
        return ""
    counts = [int(count) for count in costs["attention"]]
    lines = [
        go.Scatter(x=counts, y=[1e3 * value for value in costs[part].values()], name=name, mode="lines+markers")
        for part, name in (("attention", "attention of a layer"), ("mlp", "MLP of a layer"), ("head", "head"))
    ]
    return figure("times", lines, f"Time of parts on {costs['device']}", "tokens", "ms a batch")


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
        rows.append(cells)
    return table(("plan", "increase, mm", "distance, mm", "frames/s, predicted", "measured on"), rows)


def _told(found: Mapping[str, Any]) -> str:
    slower = [
        (escape(str(each["words"])), f"{each['macs']:.0%}", f"{each['speed']:.2f}", CLOCKS[each["by"]])
        for each in found.get("not_faster") or []
    ]
    heads = ("plan", "MACs", "speed, predicted", "by")
    text = f"<h2>Fewer MACs, and not faster here</h2>{table(heads, slower)}" if slower else ""
    return text + "".join(f"<p>{escape(str(each))}</p>" for each in found.get("notes") or [])


def _seen(found: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The frames that became worst, before and after, and the tokens of example crops."""
    text = ""
    if worst := found.get("worst"):
        rows = [
            (str(number), str(each["clip"]), str(each["frame"]), f"{each['before']:.1f}", f"{each['after']:.1f}")
            for number, each in enumerate(worst, 1)
        ]
        text += "<h2>Frames whose error rose most</h2>" + _picture(
            pictures, WORST_PICTURE, "Each crop, with the body of the uncompressed network, and with that of the choice"
        )
        text += table(("crop", "clip", "frame", "before, mm", "after, mm"), rows)
    shown = _picture(
        pictures, TOKENS_PICTURE, "Patches that became one token share a colour; those that were dropped are dark"
    )
    return text + (f"<h2>Tokens</h2>{shown}" if shown else "")


def _picture(pictures: Mapping[str, bytes], name: str, caption: str) -> str:
    if name not in pictures:
        return ""
    source = f"data:image/jpeg;base64,{b64encode(pictures[name]).decode()}"
    return f'<p>{caption}:</p><div class="scroll"><img class="sheet" alt="{caption}" src="{source}"></div>'


def _about(found: Mapping[str, Any]) -> list[str]:
    costs = found["costs"]
    return [
        *about_weights(found["weights"]),
        f"Searched on {escape(str(found['data']['search']))}, confirmed on {escape(str(found['data']['confirm']))}.",
        f"Timed on {escape(str(costs['device']))}, {escape(str(costs['dtype']))}.",
        *about_program(found),
        f"Command: <code>{escape(str(found['command_line']))}</code>",
    ]
