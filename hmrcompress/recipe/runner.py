"""A recipe from its first stage to its gates. Every stage leaves a record; `resume` repeats none that still holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hmrcompress.errors import UserError, tell
from hmrcompress.io.jsons import read_json
from hmrcompress.io.keys import Key, listed
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import FIELD, Seal, json_seal
from hmrcompress.recipe.comparison import changes, check_same_frames, read_earlier
from hmrcompress.recipe.folder import (
    JUNIT,
    KIND,
    PAGE,
    RECIPE,
    SUMMARY,
    check_run,
    clear_run,
    inputs_of,
    manifest,
    stage_kind,
)
from hmrcompress.recipe.gates import GateResult, check_gates
from hmrcompress.recipe.schema import Recipe
from hmrcompress.recipe.stages import OUTPUTS, Line
from hmrcompress.report.summary import junit, summary_markdown
from hmrcompress.runtime import Progress, environment, no_progress, record

INPUTS, MADE = "inputs", "made"
"""What a stage's result depends on, and what it left for later ones, in its record."""

StageDone = Callable[[str, float, bool], None]
"""Told after every stage: its name, the seconds it took, and whether an earlier run's result was taken over.

The first is `inputs`: opening model, body and data, with the rendering of data that were never asked for before.
"""


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, what `summary.json` holds, the gates, and the names of what was written there."""

    folder: Path
    summary: dict[str, Any]
    gates: list[GateResult]
    written: list[str]


def run_recipe(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    baseline: Path | str | None = None,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
    stage_done: StageDone = lambda name, seconds, reused: None,
) -> RunResult:
    """Runs the stages of a recipe into the folder `out`. Failed gates are in the result; nothing is raised for them.

    Without `resume` an earlier run in `out` is cleared away; with it, a stage is taken over where its settings, the
    contents of its inputs, the code and the machine are the same, and what it left is as it was; otherwise it is told
    what changed. `baseline`: the summary of an earlier run on the same frames, with which this one is compared
    (`recipe.comparison`). Raises UserError, also where `out` holds anything but a run, and as `io.outputs`.
    """
    folder, rule = Path(out), OutputRule.of(overwrite, *inputs_of(recipe))
    earlier = None if baseline is None else read_earlier(Path(baseline))
    if baseline is not None:
        rule.reads(baseline)
    check_run(folder, recipe, rule)
    line = Line(recipe, folder, device=device, dtype=dtype, rule=rule, progress=progress)
    start = time.perf_counter()
    line.check()
    if earlier is not None:
        if recipe.eval is None:
            raise UserError("this recipe scores nothing that could be compared", "--baseline", "Give it the stage eval")
        check_same_frames(earlier, line.test, line.protocol, recipe.eval, baseline)
    taken = {"inputs": round(time.perf_counter() - start, 2)}
    stage_done("inputs", taken["inputs"], False)
    clear_run(folder, rule, resume=resume)
    rule.write_text(folder / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), KIND)
    figures: dict[str, Any] = {}
    machine = {name: value for name, value in environment(line.device).items() if name != "commit"}
    for stage in OUTPUTS:
        settings = getattr(recipe, stage)
        if settings is None:
            continue
        start = time.perf_counter()
        key = line.key(stage, machine)
        found = _earlier(line, stage, key) if resume else None
        reused = found is not None
        if found is None:
            found = getattr(line, stage)()
            written = record(stage, found, device=line.device, seed=recipe.seed)
            whole = {**written, INPUTS: dict(key.inputs), MADE: line.made(stage)}
            rule.write_json(folder / f"{stage}.json", whole, stage_kind(stage))
        for name, value in found.items():
            figures[name] = figures[name] | value if isinstance(figures.get(name), dict) else value
        taken[stage] = round(time.perf_counter() - start, 2)
        stage_done(stage, taken[stage], reused)
    if earlier is not None:
        figures["change"] = changes(figures, earlier, seed=recipe.seed)
    return _finish(line, figures | {"seconds": taken})


def _finish(line: Line, figures: dict[str, Any]) -> RunResult:
    recipe, folder, rule = line.recipe, line.folder, line.rule
    gates = check_gates(recipe.gates, figures)
    outcomes = [gate.to_json() for gate in gates]
    ran = [stage for stage in OUTPUTS if getattr(recipe, stage) is not None]
    names = [name for stage in ran for name in OUTPUTS[stage]]
    files = manifest(folder, [RECIPE, *names, *(f"{stage}.json" for stage in ran)])
    weights = {"name": line.checkpoint.name, "sha256": line.checkpoint.sha256}
    whole = {"recipe": recipe.model_dump(mode="json", exclude={"gates"}), "weights": weights, **figures}
    whole |= {"gates": outcomes, "files": files}
    summary = record("run", whole, device=line.device, seed=recipe.seed)
    told = {gate.name: str(gate) for gate in gates}
    rule.write_text(folder / PAGE, summary_markdown(summary), KIND)
    rule.write_text(folder / JUNIT, junit(summary, told), KIND)
    rule.write_json(folder / SUMMARY, summary, KIND)
    return RunResult(folder, summary, gates, [*names, PAGE, JUNIT, SUMMARY])


def _earlier(line: Line, stage: str, key: Key) -> dict[str, Any] | None:
    """The figures of a stage that an earlier run finished with the same inputs, what it left being as it was; else
    None, and where there is such a stage, it is told why it is done again."""
    record = line.folder / f"{stage}.json"
    try:
        found = read_json(record)
    except (OSError, UserError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get(INPUTS), dict):
        return None
    if json_seal(found) != Seal(stage_kind(stage), True):
        return None
    if other := key.changed(found[INPUTS]):
        tell(f"done again, as {listed(other)} changed", f"stage {stage}")
        return None
    if not all((line.folder / name).exists() for name in OUTPUTS[stage]) or found.get(MADE) != _made(line, stage):
        tell("done again, as what it left is not what it was", f"stage {stage}")
        return None
    own = {"schema", "command", "seed", "versions", "device", "cpu", "commit", INPUTS, MADE, FIELD}
    return {name: value for name, value in found.items() if name not in own}


def _made(line: Line, stage: str) -> dict[str, Any] | None:
    try:
        return line.made(stage)
    except (OSError, UserError):
        return None
