"""`hc.compress`: from a checkpoint to the fastest model within a budget on this device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hmrcompress.api.front import COSTS, PRESETS, Bench
from hmrcompress.api.front_files import described, write
from hmrcompress.api.front_healing import healed_points, near_misses
from hmrcompress.api.opening import (
    Body,
    Data,
    Masks,
    Model,
)
from hmrcompress.errors import UserError, hearing, tell
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.joint import Choice, Goal, Point, choose, combinations, increase_of, race
from hmrcompress.io.outputs import OutputRule
from hmrcompress.models.files.folder import KIND as MODEL
from hmrcompress.runtime import Progress, no_progress


@dataclass(frozen=True)
class Compressed:
    """What was made: the folder, what `frontier.json` holds, and the choice."""

    path: Path
    frontier: dict[str, Any]
    choice: Choice


def compress(
    model: Model,
    data: Data,
    out: Path | str,
    *,
    budget_mm: float | None = None,
    fps: float | None = None,
    speedup: float | None = None,
    preset: Literal["quick", "full"] = "full",
    target: Literal["truth", "teacher"] = "truth",
    masks: Masks = "data",
    costs: Path | str | None = None,
    heal: float | None = None,
    body: Body = "starter",
    device: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> Compressed:
    """Searches layers and tokens together for the fastest model within a budget, or the most accurate at a speed, on
    this device, confirms it on clips that the search did not see, and writes it to the folder `out` with
    `frontier.json` and `report.html`.

    Exactly one of `budget_mm` (mm more error; with the target teacher, mm from the uncompressed network's vertices),
    `fps` and `speedup` is given. `costs`: a cost table that was measured before, or where to write it. `heal`: minutes
    spent on training what just misses the budget, in `OUT.healed` (`api.front_healing`). Every
    measurement is kept in `OUT.journal.jsonl` beside the folder, so that a command that was killed goes on where it was
    and ends with the same bytes. Raises UserError.
    """
    if sum(each is not None for each in (budget_mm, fps, speedup)) != 1:
        raise UserError("give exactly one of a budget, a speed and a speed-up", "--budget-mm, --fps, --speedup")
    for name, value in (("--budget-mm", budget_mm), ("--fps", fps), ("--speedup", speedup), ("--heal", heal)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise UserError(f"got {value}, expected a number above 0", name)
    out, chosen = Path(out), PRESETS[preset]
    outputs = OutputRule.of(overwrite, model, data)
    outputs.check_folder(out, MODEL)
    if costs is not None and Path(costs).exists():
        outputs.reads(costs)
    elif costs is not None:
        outputs.check_file(costs, COSTS, "json")
    with hearing() as notes:
        bench = Bench.opened(model, data, chosen, target, masks, body, device, batch_size, seed, out, progress)
        table = bench.costs(costs, outputs, progress)
        base_seconds = table.seconds(Candidate(), bench.depth)
        goal = Goal(budget_mm=budget_mm)
        if budget_mm is None:
            goal = Goal(seconds=batch_size / fps if fps else base_seconds / (speedup or 1.0))
        sizes = bench.sizes(chosen, progress)
        tokens = bench.token_increases()
        found = combinations(sizes, tokens, table, bench.depth)
        points = race(bench.search, found, goal, chosen.raced, seed=seed, progress=progress)
        untouched = Point(Candidate(), base_seconds, increase_of(bench.search, Candidate(), seed=seed))
        choice, points = choose(bench.confirm, points, goal, untouched, chosen.confirmed, seed=seed, progress=progress)
        if heal is not None:
            place = out.with_name(f"{out.name}.healed")
            misses = near_misses(points, choice.point, goal)
            if not misses:
                tell("no point is faster and just misses what is asked for, so that nothing was healed", "--heal")
            healed = healed_points(bench, misses, heal, place, outputs=outputs, progress=progress)
            points = sorted([*points, *healed], key=lambda each: (each.seconds, each.candidate))
            most = chosen.confirmed + len(healed)
            choice, points = choose(bench.confirm, points, goal, untouched, most, seed=seed, progress=progress)
        speed = bench.timed(choice.point.candidate, table, progress)
        if speed is not None and speed["speedup"] <= 1:
            why = f"{choice.point.candidate.words(bench.depth)} is not faster when both are timed by turns"
            choice, speed = replace(choice, point=untouched, why=why), None
        asked = {"budget_mm": budget_mm, "fps": fps, "speedup": speedup}
        frontier = described(bench, choice, [*points, untouched], table, sizes, asked, preset, speed, list(notes))
        write(bench, out, choice, frontier, outputs)
    return Compressed(out, frontier, choice)
