"""What a grouping of layers costs: the error of the network with these layers merged, on the calibration frames."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.conditions import missing_condition
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource
from hmrcompress.io.together import Crew
from hmrcompress.merging.fit import Patches
from hmrcompress.merging.layers import merge_layers
from hmrcompress.metrics.points import joint_errors, pve
from hmrcompress.metrics.pose import Measure, Protocol, ScoringBody
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.models.vit import TokenState
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import GIVE_BACK_EVERY, autocast, give_back_memory
from hmrcompress.searching.cache import Inputs, LayerCache, PrefixTokens, layer_bytes
from hmrcompress.searching.eclm import Groups

Target = Literal["truth", "teacher"]
TARGETS: tuple[Target, ...] = ("truth", "teacher")
ROUND = 2
"""Batches for each process that are measured before it is looked whether the candidate is out."""
SLACK = 1e-9
"""By which a partial sum is lowered before it is believed: more than float64 sums of a million frames can be off."""

Fails = Callable[[float], bool]
"""Whether a candidate with this error is out. Once true for a value, it is true for all greater ones, and for NaN."""


class Measured(NamedTuple):
    """An error in mm; where it is not `exact`, a lower bound of it that was enough to reject the candidate."""

    error_mm: float
    exact: bool = True


def below(bound_mm: float) -> Fails:
    """Out unless the error is less than this."""
    return lambda error_mm: not error_mm < bound_mm


def never(error_mm: float) -> bool:
    """A `Fails` under which everything is measured to the end."""
    return False


@dataclass
class Counts:
    """Evaluations made, the frames they ran on, and layer applications (layers times frames).

    `without_cache` is what the same frames take from the images on, `without_either` what all frames of all
    evaluations take. `fitting` are the applications of fits, which come on top. `seconds` is the wall time of all.
    """

    evaluations: int = 0
    frames: int = 0
    all_frames: int = 0
    applications: int = 0
    without_cache: int = 0
    without_either: int = 0
    fitting: int = 0
    seconds: float = field(default=0.0, compare=False)


class FrameProbe(ABC):
    """The error in mm of a network of `depth` layers with groups of them merged, on `frames` frames in batches.

    What a candidate is and how a batch is measured is up to the subclass. `cache` keeps what enters layers of the
    untouched network; `applications` counts layers times frames that were computed below the first merged one.
    """

    cache: LayerCache

    def __init__(self, frames: int, batches: Sequence[slice], depth: int) -> None:
        """batches: the rows of each batch, in order."""
        self.frames, self.depth, self.parts = frames, depth, list(batches)
        self.base: np.ndarray | None = None
        """(frames,) errors in mm of the untouched network; they give the order of the batches."""
        self.counts = Counts()
        self.crew: Crew | None = None
        """Other processes that measure batches, too."""
        self._at_work = ExitStack()
        self._candidate: tuple[Groups, Any] = (), None

    @property
    @abstractmethod
    def applications(self) -> int:
        """Layers times frames computed of the untouched network so far."""

    @abstractmethod
    def candidate(self, groups: Groups) -> AbstractContextManager[Callable[[int, int], np.ndarray]]:
        """While it is entered: what gives the errors (B,) in mm of a batch by its number, for the network with these
        groups, whose layers differ from the layer given on."""

    def __call__(
        self, groups: Groups, fails: Fails = never, on_frames: Callable[[int], None] = lambda frames: None
    ) -> Measured:
        """The error of this grouping; `on_frames(n)` is called after every batch with its number of frames.

        Errors are not negative, so the sum so far over the number of all frames is a lower bound: as soon as it `fails`
        the candidate is out, exactly as it would be at the end. Batches with large errors of the untouched network
        come first. NaN ends an evaluation at once.
        """
        started = time.perf_counter()
        first = next((group[0] for group in groups if len(group) > 1), self.depth)
        errors, ran, total = np.zeros(self.frames), 0, 0.0
        before, found = self.applications, None
        with self._at_work:
            for done, (number, part) in enumerate(self._measured(groups, first), start=1):
                if done % GIVE_BACK_EVERY == 0:
                    give_back_memory()
                errors[self.parts[number]] = part
                ran, total = ran + len(part), total + float(part.sum())
                on_frames(len(part))
                if not np.isfinite(total):
                    found = Measured(float("nan"))
                    break
                bound = total / self.frames * (1 - SLACK)
                if ran < self.frames and fails(bound):
                    found = Measured(bound, exact=False)
                    break
        self._count(len(groups), ran, (len(groups) - first) * ran + self.applications - before)
        self.counts.seconds += time.perf_counter() - started
        if found is None and len(groups) == self.depth:
            self.base = errors
        return found or Measured(float(errors.mean()))

    def measure_batch(self, order: tuple[Groups, int, int]) -> np.ndarray:
        """Errors (B,) in mm of a batch: its candidate's groups, the first layer that differs, and its number. The
        candidate is kept until another is asked for."""
        groups, first, number = order
        known, errors_of = self._candidate
        if errors_of is None or known != groups:
            self._at_work.close()
            errors_of = self._at_work.enter_context(self.candidate(groups))
            self._candidate = groups, errors_of
            self._at_work.callback(self._forget)
        return errors_of(number, first)

    def _forget(self) -> None:
        self._candidate = (), None

    def _measured(self, groups: Groups, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Batches by number in `_order`, with their errors; by the crew, where there is one, some at a time."""
        order = self._order()
        if self.crew is None:
            yield from ((number, self.measure_batch((groups, first, number))) for number in order)
            return
        size = ROUND * self.crew.count
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            yield from zip(
                numbers, self.crew.results([(number, (groups, first, number)) for number in numbers]), strict=True
            )

    def work(self, groups: Groups) -> float:
        """About what an evaluation to the end takes, in applications of a layer to a frame: the layers that run, from
        the nearest one kept, and as much as a layer for the head and the body."""
        first = next((group[0] for group in groups if len(group) > 1), 0)
        again = first - max((kept for kept in self.cache.layers if kept <= first), default=0)
        return self.frames * (len(groups) - first + again + 1)

    def _count(self, layers: int, frames: int, applications: int) -> None:
        self.counts.evaluations += 1
        self.counts.frames += frames
        self.counts.all_frames += self.frames
        self.counts.applications += applications
        self.counts.without_cache += layers * frames
        self.counts.without_either += layers * self.frames

    def _order(self) -> list[int]:
        """Numbers of the batches by falling error of the untouched network; as they come before it is known."""
        numbers = list(range(len(self.parts)))
        base = self.base
        return numbers if base is None else sorted(numbers, key=lambda n: -float(base[self.parts[n]].mean()))


class CandidateError(FrameProbe):
    """The error in mm of `network` (on its device, in evaluation mode) with groups of layers merged by `merge_rule`.

    `target` truth: MPJPE by `protocol`. `target` teacher: mean distance of the vertices to those that the untouched
    network predicts, pelvis on pelvis, which needs no ground truth. `patches(groups)` gives what the rule `lstsq` adds.
    """

    def __init__(
        self,
        network: HMR2,
        crops: CropSet,
        indices: np.ndarray,
        *,
        body: ScoringBody | Measure,
        protocol: Protocol,
        merge_rule: str,
        masks: MaskSource | None,
        batch_size: int,
        dtype: torch.dtype,
        target: Target = "truth",
        cache_bytes: int = 0,
        spill: Path | None = None,
        cache_dtype: torch.dtype = torch.float32,
        patches: Callable[[Groups], Patches] | None = None,
    ) -> None:
        """UserError where the data lack usable masks, what the network is conditioned on, or, for the target truth,
        ground truth."""
        if network.conditioned and crops.conditions is None:
            raise missing_condition(crops.name)
        count = len(indices)
        parts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
        super().__init__(count, parts, network.config.depth)
        self.network, self.crops = network, crops
        self.measure = body if isinstance(body, Measure) else Measure(body, protocol)
        self.merge_rule, self.masks, self.dtype, self.target = merge_rule, masks, dtype, target
        self.device = next(network.parameters()).device
        self._indices, self._patches = indices, patches
        self._batches: dict[int, FrameBatch] = {}
        self._teacher: dict[int, BodyParams] = {}
        self.needs_poses = target == "truth" and self.measure.protocol.truth == "body"
        crops.batches(indices, batch_size, masks, truth=self.needs_poses)  # says now what would fail later
        useful = range(max(network.config.depth - 1, 0))
        size = layer_bytes(network, self.frames, cache_dtype)
        self.cache = LayerCache(useful, size, cache_bytes, spill, cache_dtype)
        self.prefix = PrefixTokens(network, self._embed, self.cache, dtype=dtype)

    @property
    def applications(self) -> int:
        """See `FrameProbe`."""
        return self.prefix.applications

    @contextmanager
    def candidate(self, groups: Groups) -> Iterator[Callable[[int, int], np.ndarray]]:
        """See `FrameProbe`."""
        merged, untouched = self._merged(groups), len(groups) == self.depth
        yield lambda number, first: self._errors(number, self._predict(merged, number, first, untouched=untouched))

    def _merged(self, groups: Groups) -> HMR2:
        config = replace(self.network.config, depth=len(groups))
        patches = self._patches(groups) if self._patches else None
        merged = from_state(config, merge_layers(self.network.state_dict(), groups, self.merge_rule, patches=patches))
        merged.backbone.reducer = self.network.backbone.reducer
        return merged

    def _predict(self, merged: HMR2, number: int, first: int, *, untouched: bool) -> BodyParams:
        """The prediction for a batch when layers from `first` on are those of `merged`."""
        tokens, state = self.prefix.at(number, first)
        params = self._finish(merged, tokens, state, first, number)
        if untouched and self.target == "teacher":
            self._teacher[number] = params.to("cpu")
        return params

    def _finish(self, network: HMR2, tokens: Tensor, state: TokenState | None, layer: int, number: int) -> BodyParams:
        """Layers from `layer` on and the head: tokens (B,M,D) of a batch -> the prediction, float32."""
        backbone, condition = network.backbone, None
        if network.conditioned and (known := self._batch(number).condition) is not None:
            condition = known.to(self.device)
        with torch.no_grad(), autocast(self.device, self.dtype):
            tokens, state = backbone.run_blocks(tokens, layer, state=state)
            params = network.read(*backbone.finish(tokens, state), condition).params
        return params.to(device=self.device, dtype=torch.float32)

    def _errors(self, number: int, params: BodyParams) -> np.ndarray:
        """(B,) mm, as `metrics.pose.score` has them."""
        with torch.no_grad():
            if self.target == "teacher":
                teacher = self._teacher_of(number).to(self.device)
                return pve(self.measure(params), self.measure(teacher), self.measure.protocol).cpu().numpy()
            truth = self.measure.true_joints(self._batch(number).to(device=self.device, dtype=torch.float32))
            errors = joint_errors(self.measure.joints(params), truth, self.measure.protocol)
        return errors.cpu().numpy().mean(1)

    def _teacher_of(self, number: int) -> BodyParams:
        """The untouched network's prediction; computed where a search goes on whose baseline was measured before."""
        if number not in self._teacher:
            depth = self.network.config.depth
            tokens, state = self.prefix.at(number, depth)
            self._teacher[number] = self._finish(self.network, tokens, state, depth, number).to("cpu")
        return self._teacher[number]

    def _embed(self, number: int) -> Inputs:
        batch = self._batch(number, images=True)
        mask = None if batch.person_mask is None else batch.person_mask.to(self.device)
        return self.network.backbone.begin(batch.images.to(self.device), mask)

    def _batch(self, number: int, *, images: bool = False) -> FrameBatch:
        """A batch with its images, or, of those read before, without them."""
        if not images and number in self._batches:
            return self._batches[number]
        indices = self._indices[self.parts[number]]
        (batch,) = self.crops.batches(indices, len(indices), self.masks, truth=self.needs_poses)
        self._batches[number] = batch.without_images()
        return batch
