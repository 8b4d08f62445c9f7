"""Training of the starter network: resumable, seeded, on one or several processes, needing little more than torch."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hmrcompress.body.files import starter_body
from hmrcompress.errors import UserError, tell
from hmrcompress.io.atomic import clear_leftovers, room, whole_file
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.jsons import parse_json, read_json
from hmrcompress.io.keys import Key, listed
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.safetensors_file import read_safetensors, write_safetensors
from hmrcompress.io.torch_file import STATE, save_torch
from hmrcompress.models.families.registry import read_config
from hmrcompress.models.network import HMR2, build
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.starter.data.batches import Pool, to_tensors
from hmrcompress.starter.data.captured import training_files
from hmrcompress.starter.data.rendering import POLL_SECONDS, STAGE_STRIDE, ShardSource, settings_of, shard_range
from hmrcompress.starter.data.shards import read_shard, shard_path
from hmrcompress.starter.network.log import KIND as LOG
from hmrcompress.starter.network.log import LOG_FILE, SHIPPED_LOG, Log, crossed
from hmrcompress.starter.network.losses import DenseReadout
from hmrcompress.starter.network.optimisers import make_optimisers
from hmrcompress.starter.network.recipe import Recipe
from hmrcompress.starter.network.step import follow, losses_of, share_gradients, survivors, wake
from hmrcompress.starter.network.validate import Validator, mean_state

STATE_FILE = "state.pt"
SNAPSHOT = "snapshot"
SAVE_SECONDS = 120.0
CHECK_STEPS = 10
AVERAGE_STEPS = 4
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
    seen = _seen(options.out / STATE_FILE, training_key(recipe, options))
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
            return _run(recipe, options, 0, str(meeting), source.folder, source, progress)
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


class Trainer:
    """The state of one process: network, dense read-out, optimiser, moving average, and how many crops were seen."""

    def __init__(self, recipe: Recipe, options: TrainOptions, rank: int) -> None:
        self.recipe, self.options, self.rank = recipe, options, rank
        self.inputs = dict(training_key(recipe, options).inputs) if rank == 0 else {}
        self.device = torch.device(
            options.device if options.processes == 1 or options.device == "cpu" else f"cuda:{rank}"
        )
        torch.manual_seed(options.seed)
        self.body = starter_body().to(self.device)
        self.network: HMR2 = build(recipe.config, seed=options.seed)
        self.before = 0
        if options.start is None:
            self.network.load_state_dict(self.network.state_dict() | mean_state())
        else:
            self.before = self._begin_from(options.start)
        self.network.to(self.device).train()
        self.dense = DenseReadout(recipe.config.dim).to(self.device)
        self.parameters = [*self.network.parameters(), *self.dense.parameters()]
        self.average: list[Tensor] = [p.detach().clone() for p in self.parameters]
        self.optimisers = make_optimisers(self.network, self.dense, recipe.weight_decay)
        self.seen = 0

    def _begin_from(self, start: Path) -> int:
        """Take the weights of a shipped network or a snapshot; returns how many crops it had seen."""
        if start.is_dir():
            shipped = read_json(start / "config.json")
            state, config, images = (
                read_safetensors(start / "model.safetensors")[0],
                shipped["network"],
                shipped["provenance"]["images"],
            )
        else:
            state, notes = read_safetensors(start)
            if "network" not in notes or "images" not in notes:
                raise UserError("is no snapshot of a training run", start, "Give what --snapshot wrote, or starter")
            config, images = parse_json(notes["network"], start), notes["images"]
        if read_config(config, start) != self.recipe.config:
            raise UserError("has other sizes than the recipe", start, "Go on with the starter network, or begin anew")
        self.network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        wake(self.network.backbone)
        return int(images)

    def write_snapshot(self, path: Path) -> None:
        """The averaged weights in float16, from which a later run can begin anew, and the log beside them."""
        notes = {"network": json.dumps(self.recipe.config.to_dict()), "images": str(self.before + self.seen)}
        state = averaged_state(self.network, self.average)
        half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        outputs = _snapshot_rule(self.options)
        with outputs.file(path, SNAPSHOT) as temporary:
            write_safetensors(temporary, half, notes, seal=SNAPSHOT)
        with outputs.file(path.with_suffix(".jsonl"), LOG) as temporary:
            shutil.copyfile(self.options.out / LOG_FILE, temporary)

    def step(self, pool: Pool) -> dict[str, Tensor]:
        """One optimisation step; returns the parts of the loss."""
        recipe = self.recipe
        number, _ = recipe.at(self.seen)
        stage = recipe.stages[number]
        rate = recipe.rate(self.seen)
        for optimiser, factor in zip(self.optimisers, (stage.adam_rate, 1.0), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = factor * rate
        share = stage.batch // self.options.processes
        crops, rng = pool.draw(self.seen, share, self.rank)
        images, target = to_tensors(crops, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        images, target = images.to(self.device), _moved(target, self.device)
        stay = survivors(share, recipe.drop_rates, generator)
        number = self.seen // stage.batch
        loss, parts = losses_of(self.network, self.dense, self.body, images, target, stage, stay, number, generator)
        loss.backward()
        share_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, recipe.clip_norm)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.seen += share * self.options.processes
        if self.seen // stage.batch % AVERAGE_STEPS == 0:
            # Early on the average spans a twentieth of what was seen, so that it forgets the random start.
            decay = min(recipe.ema, 1 - 20 * stage.batch / (self.seen + 20 * stage.batch))
            follow(self.average, self.parameters, decay**AVERAGE_STEPS)
        return parts

    def averaged(self) -> HMR2:
        """The network with the moving average of its weights, in evaluation mode."""
        network = build(self.recipe.config, seed=self.options.seed)
        network.load_state_dict(averaged_state(self.network, self.average))
        return network.to(self.device).eval()

    def state(self) -> dict[str, Any]:
        """Everything that a later run needs."""
        return {
            "seen": self.seen,
            "before": self.before,
            "seed": self.options.seed,
            "inputs": self.inputs,
            "config": self.recipe.config.to_dict(),
            "network": self.network.state_dict(),
            "dense": self.dense.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load(self, path: Path) -> None:
        """Take up the state of an earlier run. Raises UserError if it was another network or seed."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["config"] != self.recipe.config.to_dict() or state["seed"] != self.options.seed:
            raise UserError("made with another network or seed", path, "Choose another --out, or the same settings")
        self.network.load_state_dict(state["network"])
        self.dense.load_state_dict(state["dense"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.average = [tensor.to(self.device) for tensor in state["average"]]
        self.seen, self.before = state["seen"], state["before"]


def averaged_state(network: HMR2, average: list[Tensor]) -> dict[str, Tensor]:
    """The state dict of a network with a moving average in place of its parameters; buffers stay.

    average holds the network's parameters in their order, then those of the dense read-out, which are left out.
    """
    names = [name for name, _ in network.named_parameters()]
    return network.state_dict() | dict(zip(names, average[: len(names)], strict=True))


def _moved(target: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return target
    return type(target)(**{name: value.to(device, non_blocking=True) for name, value in vars(target).items()})


def _shard(path: Path, source: ShardSource | None) -> dict[str, Any]:
    """A shard, once it is rendered. Of several processes the first has the renderers; the others wait as long as it."""
    if source is not None:
        return source.wait(path)
    while not path.exists():
        time.sleep(POLL_SECONDS)
    return read_shard(path)


def _run(
    recipe: Recipe,
    options: TrainOptions,
    rank: int,
    meeting: str,
    shards: Path,
    source: ShardSource | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    # Else unfused attention is computed in float32, whatever the dtype of its input (1.15x a step). CPUs heed it too.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    if options.processes > 1:
        if options.device == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
        backend = "gloo" if options.device == "cpu" else "nccl"
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=options.processes)
    trainer = Trainer(recipe, options, rank)
    if (options.out / STATE_FILE).exists():
        trainer.load(options.out / STATE_FILE)
    captured = options.motions is not None
    validator = Validator(trainer.body, trainer.device) if rank == 0 else None
    log = Log(options.out / LOG_FILE, trainer.before) if rank == 0 else None
    started = saved = time.monotonic()
    last: dict[str, Any] = {}
    pool: Pool | None = None
    stage_now = -1
    while trainer.seen < recipe.images:
        number, within = recipe.at(trainer.seen)
        if number != stage_now:
            stage_now, before = number, trainer.seen - within
            settings = settings_of(recipe, number, captured)
            pool = Pool(
                lambda index, settings=settings, number=number: _shard(  # type: ignore[misc]
                    shard_path(shards, number * STAGE_STRIDE + index, settings), source
                ),
                lambda seen, number=number, before=before: shard_range(recipe, number, seen - before)[1],  # type: ignore[misc]
                recipe.window,
                options.seed,
            )
        if source is not None:
            source.advance(number, shard_range(recipe, number, within)[1])
        assert pool is not None
        parts = trainer.step(pool)
        batch = recipe.stages[number].batch
        step = trainer.seen // batch
        minutes = (time.monotonic() - started) / 60
        if log is not None and step % 50 == 0:
            log.losses(trainer.seen, recipe.stages[number].name, parts, recipe.rate(trainer.seen - 1), minutes)
            progress(f"training ({recipe.stages[number].name})", trainer.seen, recipe.images)
        if validator is not None and log is not None and crossed(trainer.seen, batch, options.validate_every):
            if recipe.stages[number].head:
                last = log.validation(trainer.seen, validator(trainer.averaged(), recipe.stages[number].size), minutes)
                if options.snapshot is not None:
                    trainer.write_snapshot(options.snapshot)
        if rank == 0 and time.monotonic() - saved > SAVE_SECONDS:
            save_state(trainer.state(), options.out / STATE_FILE)
            saved = time.monotonic()
        if step % CHECK_STEPS == 0 and _stop(options.max_minutes is not None and minutes > options.max_minutes):
            break
    if rank == 0 and validator is not None and log is not None:
        save_state(trainer.state(), options.out / STATE_FILE)
        number = min(recipe.at(trainer.seen)[0], len(recipe.stages) - 1)
        minutes = (time.monotonic() - started) / 60
        last = log.validation(trainer.seen, validator(trainer.averaged(), recipe.stages[number].size), minutes)
        if options.snapshot is not None:
            trainer.write_snapshot(options.snapshot)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return last


def _stop(wish: bool) -> bool:
    """Whether any process wishes to stop; all processes get the same answer."""
    if not dist.is_initialized():
        return wish
    flag = torch.tensor([float(wish)])
    if dist.get_backend() == "nccl":
        flag = flag.cuda()
    dist.all_reduce(flag)
    return bool(flag.item() > 0)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a training state, whole or not at all."""
    with OutputRule().file(path, STATE, hashed=False) as temporary:
        save_torch(state, temporary)
