"""Healing in the loop: what just misses the budget is trained, without labels, to predict what the untouched network
predicts, and is then a point like the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.api.finetune import TRAIN, crops_to_train_on
from hmrcompress.api.front import Bench
from hmrcompress.data.crops import CropSet
from hmrcompress.errors import UserError, tell
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.joint import Goal, Point, increase_of
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.outputs import OutputRule
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.merge import merge_network
from hmrcompress.models.files.folder import checkpoint_record
from hmrcompress.models.files.load import Checkpoint, load_checkpoint
from hmrcompress.models.network import network_sha256
from hmrcompress.runtime import Progress
from hmrcompress.training.finetune import heal, work_folder
from hmrcompress.training.heal import HealSettings
from hmrcompress.training.loop import LoopSettings
from hmrcompress.training.streams import CropStream, Stream

MOST = 2
"""Points that the time is shared by."""
REACH = 3.0
"""What costs up to so many times the budget just misses it."""
BATCH = 32


def near_misses(points: Sequence[Point], chosen: Point, goal: Goal) -> list[Point]:
    """The points that healing may bring within the goal: faster than the choice and not too far above the budget, the
    nearest first; where a speed is asked for, the choice itself."""
    if goal.budget_mm is None:
        return [] if chosen.candidate == Candidate() else [chosen]
    limit = REACH * goal.budget_mm
    found = [
        (known.mean, each)
        for each in points
        if (known := each.best_known) is not None
        and each.seconds < chosen.seconds
        and each.candidate not in (Candidate(), chosen.candidate)
        and known.mean <= limit
    ]
    return [each for _, each in sorted(found, key=lambda pair: (pair[0], pair[1].seconds, pair[1].candidate))][:MOST]


def healed_points(
    bench: Bench,
    points: Sequence[Point],
    minutes: float,
    folder: Path,
    *,
    outputs: OutputRule,
    progress: Progress,
) -> list[Point]:
    """These points after healing, `minutes` shared evenly, measured on the frames searched. The healed models are kept
    in `folder`, and their hashes in the journal: what is there is not trained again, and a training that was killed
    goes on."""
    found = []
    for number, point in enumerate(points):
        share = minutes / len(points)
        name = f"heal {point.candidate.key} {share:g} {bench.seed}"
        place = folder / sha256_json([point.candidate.key, share, bench.seed])[:12]
        model = _kept(place, bench.ledger.get(name))
        if model is None:
            progress("healing", number, len(points))
            model = _healed(bench, point.candidate, share, place, outputs, progress)
            bench.ledger.put(name, _record(model))
        candidate = replace(point.candidate, healed=model.sha256[:16])
        network = with_token_merging(model.network.to(bench.search.device), candidate.tokens).eval()
        bench.search.healed[candidate.healed] = bench.confirm.healed[candidate.healed] = network
        bench.models[candidate.healed] = model
        found.append(Point(candidate, point.seconds, increase_of(bench.search, candidate, seed=bench.seed)))
    return sorted(found, key=lambda each: (each.seconds, each.candidate))


def _kept(place: Path, known: Any) -> Checkpoint | None:
    """What was healed before, where it is still there as it was."""
    if known is None:
        return None
    try:
        model = load_checkpoint(place)
    except UserError:
        model = None
    if model is None or model.sha256 != known["sha256"]:
        tell("is not there any more as it was, so it is healed anew", place)
        return None
    return model


def _record(model: Checkpoint) -> dict[str, Any]:
    heal = model.source["heal"]
    return {"sha256": model.sha256, **{name: heal[name] for name in ("images", "before", "after")}}


def _healed(
    bench: Bench, candidate: Candidate, minutes: float, place: Path, outputs: OutputRule, progress: Progress
) -> Checkpoint:
    """The candidate's model, trained for so long and written to `place`."""
    original = bench.checkpoint
    plan = bench.plan(candidate)
    bare = merge_network(
        bench.network,
        plan.model_copy(update={"tokens": None}),
        cut_patches=bench.search.fitter(candidate) if candidate.strength and bench.search.fitter else None,
    ).eval()
    student = replace(
        original,
        network=bare,
        name=place.name,
        path=None,
        plan=plan,
        source=checkpoint_record(original.reference, name=original.name, command="compress"),
        known_sha256=network_sha256(bare),
        probe=None,
        decoder=None,
        motion_vae=None,
    )
    with _crops(bench, place, progress) as (stream, measured_on):
        heal(
            student,
            original,
            (bare, bench.network),
            stream,
            measured_on,
            bench.masks,
            place,
            body=bench.measure.body,
            batch_size=BATCH,
            settings=HealSettings(seed=bench.seed),
            loop=LoopSettings(None, max_minutes=minutes),
            overwrite=outputs.fresh(),
            progress=progress,
        )
    return load_checkpoint(place)


@contextmanager
def _crops(bench: Bench, place: Path, progress: Progress) -> Iterator[tuple[Stream, tuple[CropSet, np.ndarray]]]:
    """Fresh crops where the data are of the starter world, else those that were searched on; the last clip of these is
    validated on. Clips that confirm are never trained on."""
    if bench.of_starter:
        with crops_to_train_on(
            TRAIN, None, bench.masks, bench.measure.body, work_folder(place), batch_size=BATCH, steps=None,
            size=bench.network.config.crop, seed=bench.seed, workers=1, limit=None, progress=progress,
        ) as found:  # fmt: skip
            yield found
        return
    crops, clips = bench.crops, bench.searched
    frames = crops.stretches()
    training, rest = (np.isin(crops.clip[frames], part) for part in (clips[:-1], clips[-1:]))
    stream = CropStream(crops, frames[training], bench.masks, batch_size=BATCH, seed=bench.seed)
    yield stream, (crops, frames[rest])
