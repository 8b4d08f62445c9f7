"""`hc.compress`: from a checkpoint to the fastest model within a budget on this device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hmrcompress.api.front import COSTS, PRESETS, Bench, check_asked
from hmrcompress.api.front_files import described, not_faster, write
from hmrcompress.api.front_healing import healed_points, near_misses
from hmrcompress.api.front_pictures import drawn
from hmrcompress.api.opening import Body, Data, Masks, Model
from hmrcompress.errors import UserError, hearing, tell
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.joint import Choice, Goal, Point, choose, combinations, increase_of, race, settle
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.together import crew, process_of
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
    strides: Sequence[int] = (1,),
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
    spent on training what just misses the budget, in `OUT.healed` (`api.front_healing`). `strides`: the network may run
    on every so manieth frame of a video, bodies in between interpolated. bfloat16 is tried where the device has units
    for it. Every measurement is kept in `OUT.journal.jsonl` beside the folder, so that a command that was killed goes
    on where it was and ends with the same bytes. Processes that were launched together share the frames; all but the
    first end in `processes.Helped`. Raises UserError.
    """
    asked = {"budget_mm": budget_mm, "fps": fps, "speedup": speedup}
    check_asked(asked)
    if heal is not None and not (np.isfinite(heal) and heal > 0):
        raise UserError(f"got {heal}, expected a number above 0", "--heal")
    if not strides or any(each < 1 for each in strides):
        raise UserError(f"got {list(strides)}, expected numbers from 1", "--strides")
    if heal is not None and process_of()[1] > 1:
        fault = f"trains in one process, and there are {process_of()[1]}"
        raise UserError(fault, "--heal", "Heal what is written: hmrcompress finetune OUT --stage heal")
    out, chosen = Path(out), PRESETS[preset]
    outputs = OutputRule.of(overwrite, model, data)
    outputs.check_folder(out, MODEL)
    if costs is not None and Path(costs).exists():
        outputs.reads(costs)
    elif costs is not None:
        outputs.check_file(costs, COSTS, "json")
    with hearing() as notes, ExitStack() as stack:
        bench = Bench.opened(model, data, chosen, target, masks, body, device, batch_size, seed, out, progress, strides)
        bench.search.crew = bench.confirm.crew = stack.enter_context(crew(bench.measured))
        table = bench.costs(costs, outputs, progress)
        base_seconds = table.seconds(Candidate(), bench.depth)
        goal = Goal.of(asked, batch_size, base_seconds)
        sizes = bench.sizes(chosen, budget_mm, progress)
        tokens = bench.token_increases()
        others = bench.dtype_increases(table), bench.stride_increases(strides)
        found = combinations(sizes, tokens, table, bench.depth, *others)
        points = race(bench.search, found, goal, chosen.raced, seed=seed, progress=progress)
        untouched = Point(Candidate(), base_seconds, increase_of(bench.search, Candidate(), seed=seed))
        most = chosen.confirmed
        if heal is not None:
            choice, points = choose(bench.confirm, points, goal, untouched, most, seed=seed, progress=progress)
            place = out.with_name(f"{out.name}.healed")
            misses = near_misses(points, choice.point, goal)
            if not misses:
                tell("no point is faster and just misses what is asked for, so that nothing was healed", "--heal")
            healed = healed_points(bench, misses, heal, place, outputs=outputs, progress=progress)
            points = sorted([*points, *healed], key=lambda each: (each.seconds, each.candidate))
            most += len(healed)
        choice, points, speed, slower = settle(
            bench.confirm, points, goal, untouched, asked, lambda each: bench.timed(each, table, progress),
            depth=bench.depth, most=most, seed=seed, progress=progress,
        )  # fmt: skip
        frontier = described(bench, choice, [*points, untouched], table, sizes, asked, preset, speed, list(notes)) | {
            "not_faster": not_faster(bench, found, slower, table)
        }
        pictures = drawn(bench, choice.point.candidate)
        frontier["pictures"] = {name: hashlib.sha256(picture).hexdigest() for name, picture in pictures.items()}
        write(bench, out, choice, frontier, pictures, outputs)
    return Compressed(out, frontier, choice)
