"""Healing a compressed live network: the layers beside its cuts learn to give the tokens that the untouched network
gives. No labels, and no code of theirs but one call of the model.

What is compared are the tokens behind the last block, one for every patch and those that are no patches, with people's
patches counting more. What learns are low-rank corrections of linear layers (as `training.adapters` has them, here as
parametrizations, since code of others may read weights directly), and norms, biases and layer scales of these layers.
They are folded in at the end, in copies of the blocks: `unapply` still gives the original back, bit for bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hmrcompress.errors import UserError
from hmrcompress.live.blocks import plain_output
from hmrcompress.live.distances import Distance, measured
from hmrcompress.live.masks import Masks, MaskSource
from hmrcompress.live.patching import changed_layers, own_layer, patched_in, person_mask, shared_copy, unapply
from hmrcompress.live.probing import Run
from hmrcompress.live.searching import called, evaluating
from hmrcompress.live.structure import hash_of
from hmrcompress.live.trees import kept, length_of, placed, sha256_of, source_sha256
from hmrcompress.merging.apply import token_counts
from hmrcompress.runtime import Progress, generator, no_progress
from hmrcompress.training.adapters import layers_beside_cuts
from hmrcompress.training.heal import LOW_RANK_RATE
from hmrcompress.training.heal_losses import BACKGROUND_WEIGHT
from hmrcompress.training.loop import LoopSettings, train
from hmrcompress.training.optimisers import ParameterGroup


@dataclass(frozen=True)
class HealedLive:
    """What healing did: figures on the held-out batches before and after ({tokens: relative squared distance[,
    to_teacher_mm]}), steps in all, layers that were adapted (by their first number), numbers that learned, and whether
    it came to its end."""

    before: dict[str, float]
    after: dict[str, float]
    steps: int
    layers: tuple[int, ...]
    trained: int
    finished: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class LowRankChange(nn.Module):
    """W -> W + up down, with `up` zero at first and `down` normal with deviation 1/sqrt(in)."""

    def __init__(self, weight: Tensor, rank: int, random: torch.Generator) -> None:
        super().__init__()
        out, into = weight.shape
        rank = min(rank, out, into)
        drawn = torch.randn(rank, into, generator=random) * into**-0.5
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(weight.new_zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """(out,in) -> (out,in)."""
        return weight + self.up @ self.down


class LiveHealing:
    """The `Task` of the training loop for a compressed live model."""

    name = "live heal"

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        held_out: Sequence[Any],
        *,
        run: Run,
        masks: Callable[[Any], Masks] | None,
        distance: Distance | None,
        count: Callable[[Any], int],
        rank: int,
        reach: int,
        seed: int,
    ) -> None:
        self.model, self.batches, self.held_out, self.seed = model, batches, held_out, seed
        self.run, self.masks, self.distance, self.count = run, masks, distance, count
        self.teacher = unapply(shared_copy(model))
        blocks, patch = patched_in(model)
        self.patch, self.device = patch, next(blocks.parameters()).device
        start = hash_of({f"{n}.{k}": t for n, block in changed_layers(model).items() for k, t in _state(block)})
        last = patch.plan.kept_groups[-1][0]
        self.last, self.teachers_last = blocks[last], _list_of(self.teacher, patch.name)[-1]
        tokens = None if patch.merger is None else patch.merger.settings
        merging = 0 if tokens is None else len(token_counts(tokens, patch.grid[0] * patch.grid[1])) - 1
        self.layers = layers_beside_cuts(patch.plan.kept_groups, range(merging), reach, patch.plan.layers)
        thin: dict[str, nn.Parameter] = {}
        plain: dict[str, nn.Parameter] = {}
        for layer in self.layers:
            block, random = own_layer(model, layer), generator(seed * 10_007 + layer)
            if layer == len(patch.plan.kept_groups) - 1:
                self.last = block
            for name, parameter in list(block.named_parameters()):
                if parameter.ndim == 1:
                    plain[f"{layer}.{name}"] = parameter
            for name, module in list(block.named_modules()):
                if isinstance(module, nn.Linear):
                    change = LowRankChange(module.weight.detach(), rank, random)
                    parametrize.register_parametrization(module, "weight", change)
                    thin |= {f"{layer}.{name}.down": change.down, f"{layer}.{name}.up": change.up}
        self._frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in (*thin.values(), *plain.values()):
            parameter.requires_grad_(True)
        self.groups = [ParameterGroup(thin, rate_factor=LOW_RANK_RATE), ParameterGroup(plain)]
        self.identity = {
            "task": self.name,
            "plan": patch.plan.to_dict(),
            "start": start,
            "teacher": hash_of(self.teacher.state_dict()),
            "batches": sha256_of([list(batches), list(held_out)]),
            "run": source_sha256(run),
            "masks": source_sha256(masks),
            "distance": source_sha256(distance),
            "settings": [rank, reach, seed],
            "device": self.device.type,
        }

    @property
    def trained(self) -> int:
        """How many numbers learn."""
        return sum(parameter.numel() for group in self.groups for parameter in group.parameters.values())

    def losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The relative squared distance of the last block's tokens to the teacher's on a batch that the step tells."""
        order = np.random.default_rng(np.random.SeedSequence([self.seed, step // len(self.batches)]))
        batch = self.batches[order.permutation(len(self.batches))[step % len(self.batches)]]
        loss = self._distance_of_tokens(batch)[0]
        if not loss.requires_grad:
            raise UserError("computes no gradients", "run", "Take no_grad and inference_mode out of it")
        return loss, {"tokens": loss}

    def validate(self) -> dict[str, float]:
        """Figures on the held-out batches."""
        tokens, mm, count = 0.0, 0.0, 0
        with torch.no_grad():
            for batch in self.held_out:
                loss, outputs, wanted = self._distance_of_tokens(batch)
                size = self.count(batch)
                tokens, count = tokens + float(loss) * size, count + size
                if self.distance is not None:
                    keep = getattr(self.distance, "kept", None)
                    teacher = wanted if keep is None else keep(wanted)
                    found = measured(self.distance, outputs, placed(kept(teacher), self.device), batch, size)
                    mm += float(found.sum())
        figures = {"tokens": round(tokens / count, 6)}
        return figures if self.distance is None else figures | {"to_teacher_mm": round(mm / count, 3)}

    def fold(self) -> None:
        """Low-rank changes become part of the weights; what learned no longer does."""
        for layer in self.layers:
            block = own_layer(self.model, layer)
            for module in list(block.modules()):
                if parametrize.is_parametrized(module, "weight"):
                    parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def _distance_of_tokens(self, batch: Any) -> tuple[Tensor, Any, Any]:
        """The loss of a batch, the outputs and those of the teacher."""
        with torch.no_grad(), _tokens_of(self.teachers_last) as wanted:
            target = self.run(self.teacher, batch)
        masks = None if self.masks is None else self.masks(batch)
        several = masks is not None and not isinstance(masks, Tensor) and not callable(masks)
        given = list(masks) if several else masks  # type: ignore[arg-type]
        with person_mask(self.model, given), _tokens_of(self.last) as found:
            outputs = self.run(self.model, batch)
        if len(found) != len(wanted) or not found:
            raise UserError(f"ran the backbone {len(found)} times, the untouched model {len(wanted)} times", "run")
        source = MaskSource(given if not callable(given) else None)
        error, size = found[0].new_zeros(()), found[0].new_zeros(())
        for mine, theirs in zip(found, wanted, strict=True):
            if mine.shape != theirs.shape:
                raise UserError("its passes are of other crops than those of the untouched model", "run")
            weight = self._weights(mine, source.next(None))
            error = error + (weight * (mine - theirs).float().square().sum(-1)).sum()
            size = size + (weight * theirs.float().square().sum(-1)).sum()
        return error / size, outputs, target

    def _weights(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """What each token counts, (B,N): the person's and those that are no patches 1, others less."""
        weight = torch.ones(tokens.shape[:2], device=tokens.device)
        stop = tokens.shape[1] - self.patch.suffix
        if mask is not None and mask.shape[0] == len(tokens) and mask[0].numel() == stop - self.patch.prefix:
            person = mask.flatten(1).to(tokens.device)
            weight[:, self.patch.prefix : stop] = torch.where(person, 1.0, BACKGROUND_WEIGHT)
        return weight


def heal(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    run: Run = called,
    held_out: Sequence[Any] | None = None,
    masks: Callable[[Any], Masks] | None = None,
    distance: Distance | None = None,
    count: Callable[[Any], int] = length_of,
    steps: int | None = None,
    max_minutes: float | None = None,
    rate: float = 3e-4,
    rank: int = 16,
    reach: int = 1,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: Progress = no_progress,
) -> HealedLive:
    """Trains the layers of a compressed `model` (see `apply`) beside its cuts, in place.

    batches: run again and again by `run(model, batch)`; held_out: those that figures are made on, by default every
    tenth (and the last). masks(batch): what `person_mask` takes; people's patches then count more. distance: measured
    on held-out batches beside the tokens. reach: layers on both sides of a cut; rank: of the corrections. folder: keeps
    the state of a run that is interrupted by `max_minutes`, and goes on from it. UserError where the model is not
    compressed, the two models run on different crops, or nothing has gradients.
    """
    if steps is None and max_minutes is None:
        raise UserError("got neither steps nor minutes", "hc.live.heal", "Give steps or max_minutes")
    given = list(batches)
    if not given:
        raise UserError("there are no batches to learn from", "batches")
    tested = given[:: -max(1, min(10, len(given)))] if held_out is None else list(held_out)
    learned = (
        given if held_out is not None or len(given) == 1 else [b for b in given if all(b is not t for t in tested)]
    )
    with evaluating(model):
        task = LiveHealing(
            model, learned or given, tested, run=run, masks=masks, distance=distance, count=count, rank=rank,
            reach=reach, seed=seed,
        )  # fmt: skip
        settings = LoopSettings(steps, max_minutes=max_minutes, rate=rate)
        try:
            with nullcontext(Path(folder)) if folder is not None else _temporary() as place:
                done = train(task, settings, place, progress=progress)
        finally:
            task.fold()
    first, last = ({k: v for k, v in each.items() if k != "step"} for each in (done.validations[0], done.kept))
    _, patch = patched_in(model)
    layers = tuple(patch.plan.kept_groups[layer][0] for layer in task.layers)
    return HealedLive(first, last, done.steps, layers, task.trained, done.finished)


@contextmanager
def _tokens_of(block: nn.Module) -> Iterator[list[Tensor]]:
    """What the block gives while the model is called inside, one entry for each pass."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        output = plain_output(output)
        found.extend(output if isinstance(output, list) else [output])

    handle = block.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hmrcompress-") as folder:
        yield Path(folder) / "heal"


def _state(block: nn.Module) -> list[tuple[str, Tensor]]:
    return list(block.state_dict().items())


def _list_of(model: nn.Module, name: str) -> nn.ModuleList:
    found: Any = model
    for step in name.split("."):
        found = getattr(found, step)
    return found
