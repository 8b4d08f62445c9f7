"""`hc.pick`: the plan of another point of a frontier that `hc.compress` searched before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.frontier.summary import FRONTIER
from hmrcompress.io.jsons import read_json
from hmrcompress.io.outputs import OutputRule
from hmrcompress.plan import Plan


def pick(
    frontier: Path | str,
    out: Path | str,
    *,
    budget_mm: float | None = None,
    fps: float | None = None,
    layers: float | None = None,
    overwrite: bool | OutputRule = False,
) -> dict[str, Any]:
    """Writes the plan of another point of a frontier that was searched before: the fastest within a budget (by the
    upper end of its interval where it was confirmed), the most accurate at a speed, or the most accurate that leaves so
    many layers (halves count) and is otherwise untouched. Gives the point. UserError."""
    if [budget_mm, fps, layers].count(None) != 2:
        raise UserError("give exactly one of a budget, a speed and a number of layers", "--budget-mm, --fps, --layers")
    path = Path(frontier)
    path = path / FRONTIER if path.is_dir() else path
    outputs = OutputRule.of(overwrite, path)
    outputs.check_file(out, "plan", "plan")
    found = read_json(path)
    points = found.get("points") if isinstance(found, dict) and found.get("command") == "compress" else None
    if not isinstance(points, list) or not points:
        raise UserError("is no frontier that `hmrcompress compress` wrote", path)
    try:
        # What was healed has weights that no plan can make again.
        rated = [(each, *_rated(each)) for each in points if not each["candidate"].get("healed")]
        if budget_mm is not None:
            fitting = [each for each in rated if each[2] <= budget_mm]
            best = max(fitting, key=lambda each: each[1], default=None)
        elif fps is not None:
            fitting = [each for each in rated if each[1] >= fps]
            best = min(fitting, key=lambda each: each[2], default=None)
        else:
            fitting = [each for each in rated if each[0]["layers"] == layers and _only_layers(each[0])]
            best = min(fitting, key=lambda each: each[2], default=None)
        if best is None:
            asked = (budget_mm, "mm"), (fps, "frames a second"), (layers, "layers")
            wanted = next(f"{value:g} {unit}" for value, unit in asked if value is not None)
            raise UserError(f"no point meets {wanted}", path, "Search again with `hmrcompress compress`")
        plan = Plan.from_dict(best[0]["plan"], path)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"a point of it lacks what it should have ({error})", path) from error
    plan.write(out, overwrite=outputs)
    return dict(best[0])


def _only_layers(point: Mapping[str, Any]) -> bool:
    """Whether a point is what it is by removed layers and their patch alone."""
    candidate = point["candidate"]
    return candidate["tokens"] is None and not {"dtype", "stride"} & set(candidate)


def _rated(point: Mapping[str, Any]) -> tuple[float, float]:
    """Frames a second, and mm: the upper end of the interval where it was confirmed, else the mean on the search."""
    known = point.get("confirmed") or point["search"]
    if known is None:
        return float(point["fps"]), float("inf")
    interval = known["ci95_mm"] if point.get("confirmed") else None
    return float(point["fps"]), float(interval[1] if interval else known["increase_mm"])
