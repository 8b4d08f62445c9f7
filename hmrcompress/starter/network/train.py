"""Training of the starter network: resumable, seeded, on one or several processes, needing little more than torch."""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hmrcompress.body.files import starter_body
from hmrcompress.errors import UserError, tell
from hmrcompress.io.atomic import clear_leftovers, room, whole_file
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.keys import Key, listed
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.torch_file import STATE
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.starter.data.captured import training_files
from hmrcompress.starter.data.rendering import ShardReader, ShardSource, StageCrops
from hmrcompress.starter.network.book import SNAPSHOT, StarterBook
from hmrcompress.starter.network.course import CropCourse
from hmrcompress.starter.network.log import KIND as LOG
from hmrcompress.starter.network.log import LOG_FILE, SHIPPED_LOG
from hmrcompress.starter.network.recipe import Recipe
from hmrcompress.starter.network.task import StarterFit
from hmrcompress.starter.network.validate import Validator
from hmrcompress.training.book import STATE_FILE
from hmrcompress.training.loop import run

GOES_ON = "it goes on under this one, which renders the crops anew, so that no single version gives its result"


@dataclass(frozen=True)
class TrainOptions:
    """Where and how to train. processes: data-parallel processes on this machine; workers: renderers of crops;
    max_minutes ends this run early (a later one resumes); validate_every in crops; start: a shipped network's folder,
    or a snapshot, to begin from, its log taken over (default: from scratch); snapshot: where to write the averaged
    weights (.safetensors, with the log beside them as .jsonl) at every validation; overwrite: whatever is there."""

    out: Path
    seed: int = 0
    device: str = "cpu"
    processes: int = 1
    workers: int = 1
    max_minutes: float | None = None
    motions: Path | None = None
    validate_every: int = 20_000
    start: Path | None = None
    snapshot: Path | None = None
    overwrite: bool = False


def train(recipe: Recipe, options: TrainOptions, progress: Progress = no_progress) -> dict[str, Any]:
    """Train, or go on training, in options.out. Returns the last validation record.

    The folder then holds state.pt (everything to resume), log.jsonl, and the shards in use. UserError where files of
    these names are something else (`io.outputs`).
    """
    check_train(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.start is not None and not (options.out / LOG_FILE).exists():
        log = options.start / SHIPPED_LOG if options.start.is_dir() else options.start.with_suffix(".jsonl")
        if not log.is_file():
            raise UserError(
                "the log of what it was trained on is missing", log, "Give a network with its log beside it"
            )
        with whole_file(options.out / LOG_FILE) as temporary:
            shutil.copyfile(log, temporary)
    key = training_key(recipe, options)
    seen = _seen(options.out / STATE_FILE, key)
    source = ShardSource(
        options.out / "shards", options.seed, recipe, options.motions, seen=seen, workers=options.workers
    )
    context = mp.get_context("spawn")
    with room(options.out / "meeting") as made:
        meeting = made / "meeting"
        helpers = [
            context.Process(target=_run, args=(recipe, options, rank, str(meeting), source.folder), daemon=True)
            for rank in range(1, options.processes)
        ]
        for helper in helpers:
            helper.start()
        try:
            return _run(recipe, options, 0, str(meeting), source.folder, source, key.inputs, progress)
        finally:
            source.close()
            for helper in helpers:
                helper.join(timeout=20)
                helper.terminate()


def check_train(options: TrainOptions) -> None:
    """UserError where a training must not write. With state and log it goes on, so they replace nothing else."""
    OutputRule().check_file(options.out / STATE_FILE, STATE)
    OutputRule().check_file(options.out / LOG_FILE, LOG)
    clear_leftovers(options.out / "meeting")
    if options.snapshot is not None:
        outputs = _snapshot_rule(options)
        outputs.check_file(options.snapshot, SNAPSHOT)
        outputs.check_file(options.snapshot.with_suffix(".jsonl"), LOG)


def _snapshot_rule(options: TrainOptions) -> OutputRule:
    """Snapshots are not written over what the training began with, nor over its state."""
    begun = [] if options.start is None else [options.start, options.start.with_suffix(".jsonl")]
    return OutputRule(overwrite=options.overwrite, inputs=[*begun, options.out / STATE_FILE, options.out / LOG_FILE])


def training_key(recipe: Recipe, options: TrainOptions) -> Key:
    """What the result of a run depends on, beside how many processes share the work. Raises UserError for motions that
    cannot be used."""
    files = () if options.motions is None else training_files(options.motions).files
    return Key.of(
        "starter network",
        ("starter.network.train",),
        recipe=recipe,
        seed=options.seed,
        motions=[sha256_file(file) for file in files],
        body=starter_body().sha256,
    )


def _seen(state: Path, key: Key) -> int:
    """Crops behind the run whose state this is; 0 where there is none. It is told where another version of the code, or
    one that did not write down what it used, began the run. UserError for a state of other inputs."""
    if not state.exists():
        return 0
    saved = torch.load(state, weights_only=True, mmap=True)
    before = saved.get("inputs")
    if before is None:
        tell(f"the training began under a version of hmrcompress that did not note what it used; {GOES_ON}", state)
    elif other := key.changed_beside_code(before):
        remedy = "Give what it began with, or choose another --out"
        raise UserError(f"was made with other inputs ({listed(other)})", state, remedy)
    elif key.changed(before):
        tell(f"the training began under another version of hmrcompress, torch or numpy; {GOES_ON}", state)
    return int(saved["seen"])


def _run(
    recipe: Recipe,
    options: TrainOptions,
    rank: int,
    meeting: str,
    shards: Path,
    source: ShardSource | None = None,
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """What one process does. The first one has the source of the shards that all of them read."""
    # Else unfused attention is computed in float32, whatever the dtype of its input (1.15x a step). CPUs heed it too.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    if options.processes > 1:
        if options.device == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
        backend = "gloo" if options.device == "cpu" else "nccl"
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=options.processes)
    course = CropCourse(recipe, options.processes, options.validate_every, options.max_minutes)
    own = options.device if options.processes == 1 or options.device == "cpu" else f"cuda:{rank}"
    fit = StarterFit(course, options.seed, torch.device(own), rank, options.start)
    fit.validator = Validator(fit.body, fit.device) if rank == 0 else None
    fit.crops = StageCrops(recipe, options.seed, source or ShardReader(shards, recipe, options.motions is not None))
    book = StarterBook(options.out, fit, inputs or {}, snapshot=options.snapshot, outputs=_snapshot_rule(options))
    run(fit, course, book, progress=progress)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return book.last
