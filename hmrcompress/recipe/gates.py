"""Gates: bounds that the figures of a finished run have to keep, and their changes since an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hmrcompress.errors import GateFailed
from hmrcompress.recipe.schema import Gate, GateName

INCREASE = "_increase_mm"
RATIOS = {"mpjpe_ratio": "mpjpe_mm", "accel_ratio": "accel_mm_per_frame2"}
"""Gates on a figure of a stage over the baseline's."""
CHANGES = {
    "mpjpe_change_mm": "mpjpe_mm",
    "pa_mpjpe_change_mm": "pa_mpjpe_mm",
    "pve_change_mm": "pve_mm",
    "accel_change_mm_per_frame2": "accel_mm_per_frame2",
}
"""Gates on how much more a figure of a stage is than in an earlier run (`recipe.comparison`)."""


@dataclass(frozen=True)
class GateResult:
    """A gate and what it saw; `value` is None when the figure was not measured, which fails the gate. Of a change, all
    of its 95 % `interval` has to keep the bounds, where there is one."""

    name: str
    gate: Gate
    value: float | None
    interval: tuple[float, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is there and within both bounds (NaN never is)."""
        if self.value is None:
            return False
        low, high = (self.value, self.value) if self.interval is None else self.interval
        return (self.gate.min is None or low >= self.gate.min) and (self.gate.max is None or high <= self.gate.max)

    def to_json(self) -> dict[str, Any]:
        """{name[, min][, max][, stage], value[, ci95], passed}."""
        interval = {} if self.interval is None else {"ci95": list(self.interval)}
        plain = self.gate.model_dump(exclude_none=True)
        return {"name": self.name, **plain, "value": self.value, **interval, "passed": self.passed}

    def __str__(self) -> str:
        bounds = [f"at least {self.gate.min:g}"] if self.gate.min is not None else []
        bounds += [f"at most {self.gate.max:g}"] if self.gate.max is not None else []
        stage = f" of {self.gate.stage}" if self.gate.stage else ""
        seen = "not measured" if self.value is None else f"{self.value:.4g}"
        if self.interval is not None:
            seen += f" (95 % interval {self.interval[0]:.4g} to {self.interval[1]:.4g})"
        return f"{self.name}{stage} is {seen}, allowed is {' and '.join(bounds)}"


def check_gates(gates: Mapping[GateName, Gate], summary: Mapping[str, Any]) -> list[GateResult]:
    """Every gate against the figures of a run (`summary.json` as a mapping), in the recipe's order. Those on changes
    are left out where there is no earlier run."""
    found = []
    for name, gate in gates.items():
        if name not in CHANGES:
            found.append(GateResult(name, gate, figure(name, gate.stage, summary)))
        elif "change" in summary:
            stages = summary["change"]["stages"]
            last = next(reversed(summary.get("stages", {})), "")
            seen = stages.get(gate.stage or last, {}).get(CHANGES[name], {})
            interval = seen.get("ci95")
            found.append(
                GateResult(name, gate, seen.get("change"), None if interval is None else (interval[0], interval[1]))
            )
    return found


def unjudged(gates: Mapping[GateName, Gate], summary: Mapping[str, Any]) -> list[str]:
    """The names of gates that nothing can be said of without an earlier run."""
    return [] if "change" in summary else [name for name in gates if name in CHANGES]


def figure(name: str, stage: str | None, summary: Mapping[str, Any]) -> float | None:
    """The figure that a gate of this name looks at; None where it was not measured.

    Errors are those of `stage`, by default of the last stage measured; `*_increase_mm` is how far they lie above the
    baseline, `mpjpe_ratio` and `accel_ratio` how many times the baseline's, `mpjpe_below_mean_pose_mm` how far below
    the mean pose.
    """
    stages = summary.get("stages", {})
    chosen = stages.get(stage or next(reversed(stages), ""), {})
    if name.endswith(INCREASE):
        metric = name.removesuffix(INCREASE) + "_mm"
        return _difference(chosen.get(metric), stages.get("baseline", {}).get(metric))
    if name in RATIOS:
        of, base = (found.get(RATIOS[name]) for found in (chosen, stages.get("baseline", {})))
        return None if of is None or not base else of / base
    if name == "mpjpe_below_mean_pose_mm":
        return _difference(stages.get("mean_pose", {}).get("mpjpe_mm"), chosen.get("mpjpe_mm"))
    if name == "layers_removed":
        layers = summary.get("layers", {})
        return _difference(layers.get("before"), layers.get("after"))
    if name == "macs_ratio":
        macs = summary.get("macs", {})
        return macs["after"] / macs["before"] if {"before", "after"} <= set(macs) else None
    return summary[name] if name in summary else chosen.get(name)


def _difference(of: float | None, minus: float | None) -> float | None:
    return None if of is None or minus is None else of - minus


def require(results: list[GateResult]) -> None:
    """Raises GateFailed naming every figure that broke its bound."""
    broken = [str(result) for result in results if not result.passed]
    if broken:
        raise GateFailed(f"{len(broken)} of {len(results)} gates failed: {'; '.join(broken)}.")
