"""What candidates cost: errors of single frames in mm, and how far the body moves from the uncompressed network's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.conditions import missing_condition
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource
from hmrcompress.errors import UserError
from hmrcompress.evaluation.timelines import turned
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.ledger import Ledger
from hmrcompress.io.together import Crew
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.fit import FitBatch, embedded, plain
from hmrcompress.merging.merge import merge_network
from hmrcompress.merging.patch import CutPatches, fit_cuts
from hmrcompress.metrics.measure import Measure
from hmrcompress.metrics.points import joint_errors, pve
from hmrcompress.metrics.pose import network_predict
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.network import HMR2, share
from hmrcompress.plan import FittedOn
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import pick_dtype
from hmrcompress.searching.cache import Inputs, LayerCache, PrefixTokens, layer_bytes

Target = Literal["truth", "teacher"]
DIGITS = 4
"""Decimals of mm that a journal keeps; errors are rounded to them whether they come from it or not."""
PATCHES_KEPT = 4
NOWHERE = FittedOn(name="", split="", sha256="", frames_per_clip=1)
"""Stands for the data of a patch while candidates are measured; plans that are written name them."""


class Measured(NamedTuple):
    """Of frames: errors (N,) in mm by the target, and distances (N,) in mm of the vertices from those of the
    uncompressed network, pelvis on pelvis."""

    errors: np.ndarray
    distances: np.ndarray


class PatchFitter:
    """The patches of any candidate, fitted on frames of their own; the last few are kept."""

    def __init__(self, network: HMR2, crops: CropSet, batches: Sequence[FitBatch], cache: LayerCache) -> None:
        self.network, self.batches = plain(network), batches
        self._prefix = PrefixTokens(
            self.network, lambda number: (embedded(self.network, crops, batches[number].indices), None), cache
        )
        self._made: dict[tuple[Any, ...], CutPatches] = {}

    def at(self, batch: int, layer: int) -> Tensor:
        """See `merging.fit.OriginalTokens`."""
        return self._prefix.at(batch, layer)[0]

    def __call__(self, candidate: Candidate) -> CutPatches:
        """At full strength."""
        if candidate.removed not in self._made:
            depth = self.network.config.depth
            bare = Candidate(candidate.removed).plan(None, depth)
            made = fit_cuts(self.network, merge_network(self.network, bare), bare, self.batches, self)
            self._made = dict([*self._made.items()][1 - PATCHES_KEPT :]) | {candidate.removed: made}
        return self._made[candidate.removed]


class Errors:
    """Errors of candidates on some frames of a data set, journalled batch by batch under `name`.

    network: original, float32, in evaluation mode, on its device. Frames come in batches that hold frames of many clips
    each, so that the first batches say something of all. What enters the layers of the untouched network is kept as
    far as `cache_bytes` go.
    """

    def __init__(
        self,
        name: str,
        network: HMR2,
        crops: CropSet,
        indices: np.ndarray,
        measure: Measure,
        ledger: Ledger,
        *,
        masks: MaskSource | None,
        fitter: PatchFitter | None,
        target: Target = "truth",
        batch_size: int = 32,
        cache_bytes: int = 0,
        folder: Path | None = None,
    ) -> None:
        """UserError where the data lack usable masks, what the network is conditioned on, or, for the target truth,
        ground truth."""
        if network.conditioned and crops.conditions is None:
            raise missing_condition(crops.name)
        if not len(indices):
            raise UserError("there are no frames to measure on", crops.name)
        self.name, self.network, self.crops, self.measure, self.ledger = name, network, crops, measure, ledger
        self.masks, self.fitter, self.target = masks, fitter, target
        self.batch_size = batch_size
        self.device = next(network.parameters()).device
        order = _by_turns(crops.clip[indices])
        self.indices = indices[order]
        self.clip = crops.clip[self.indices]
        self.phases = _phases(self.clip)
        self.parts = [slice(start, start + batch_size) for start in range(0, len(indices), batch_size)]
        self.needs_poses = target == "truth" and measure.protocol.truth == "body"
        crops.batches(self.indices, batch_size, masks, truth=self.needs_poses)  # says now what would fail later
        depth = network.config.depth
        cache = LayerCache(range(depth), layer_bytes(network, len(indices)), cache_bytes, folder)
        self._prefix = PrefixTokens(plain(network), lambda number: (self._begin(number, None)[0], None), cache)
        self._kept: dict[int, FrameBatch] = {}
        self._teacher: dict[int, BodyParams] = {}
        self._last: tuple[Candidate, HMR2] | None = None
        self._fast: tuple[Candidate, HMR2] | None = None
        self.healed: dict[str, HMR2] = {}
        """Networks of candidates that were trained further, by the hash of their weights."""
        self.crew: Crew | None = None
        """Other processes that measure batches, too."""

    @property
    def frames(self) -> int:
        """Frames in all."""
        return len(self.indices)

    def __call__(self, candidate: Candidate, batches: int | None = None) -> Measured:
        """On the frames of the first batches (None: of all)."""
        numbers = range(len(self.parts[:batches]))
        ready: dict[int, Measured] = {}
        if self.crew is not None and not candidate.healed:
            new = [number for number in numbers if self._name(candidate, number) not in self.ledger]
            made = self.crew.results([(number, (self.name, candidate, number)) for number in new]) if new else []
            ready = dict(zip(new, made, strict=True))
        found = [self._of(candidate, number, ready.get(number)) for number in numbers]
        return Measured(*(np.concatenate(each) for each in zip(*found, strict=True)))

    def frames_of(self, batches: int | None) -> np.ndarray:
        """The clip of each frame of the first batches."""
        return np.concatenate([self.clip[part] for part in self.parts[:batches]])

    def _name(self, candidate: Candidate, number: int) -> str:
        return f"{self.name} {number} {candidate.key}"

    def _of(self, candidate: Candidate, number: int, ready: Measured | None = None) -> Measured:
        name = self._name(candidate, number)
        known = self.ledger.get(name)
        if known is None:
            found = ready or self.measured(candidate, number)
            known = self.ledger.put(name, [_rounded(each) for each in found])
        return Measured(*(np.array([np.nan if v is None else v for v in each], dtype=np.float64) for each in known))

    def measured(self, candidate: Candidate, number: int) -> Measured:
        """A batch by its number, whether or not it is known."""
        params = self._predict(candidate, number)
        teacher = self._teacher_of(number)
        with torch.no_grad():
            moved = pve(self.measure(params), self.measure(teacher), self.measure.protocol).cpu().numpy()
            if self.target == "teacher":
                return Measured(moved, moved)
            truth = self.measure.true_joints(self._batch(number).to(device=self.device, dtype=torch.float32))
            errors = joint_errors(self.measure.joints(params), truth, self.measure.protocol)
        return Measured(errors.cpu().numpy().mean(1), moved)

    def by_joint(self, candidate: Candidate, batches: int) -> np.ndarray:
        """(N,K): errors in mm of the protocol's joints on the frames of the first batches; no journal keeps them."""
        found = []
        for number in range(len(self.parts[:batches])):
            with torch.no_grad():
                truth = self.measure.true_joints(self._batch(number).to(device=self.device, dtype=torch.float32))
                joints = self.measure.joints(self._predict(candidate, number))
                found.append(joint_errors(joints, truth, self.measure.protocol).cpu().numpy())
        return np.concatenate(found)

    def _teacher_of(self, number: int) -> BodyParams:
        if number not in self._teacher:
            self._teacher[number] = self._predict(Candidate(), number).to("cpu")
        return self._teacher[number].to(self.device)

    def made(self, candidate: Candidate) -> HMR2:
        """The candidate's network, with its patch."""
        if candidate.healed:
            return self.healed[candidate.healed]
        candidate = replace(candidate, dtype="float32", stride=1)
        if self._last is None or self._last[0] != candidate:
            depth = self.network.config.depth
            patches = None
            if candidate.strength:
                if self.fitter is None:
                    raise UserError("a patch needs frames to fit on", self.crops.name)
                patches = self.fitter(candidate)
            plan = candidate.plan(None, depth, NOWHERE if candidate.strength else None)
            self._last = candidate, merge_network(self.network, plan, cut_patches=patches)
        return self._last[1]

    def _predict(self, candidate: Candidate, number: int) -> BodyParams:
        if candidate.stride > 1:
            part = self.parts[number]
            return self._between(candidate, self.indices[part], self.phases[part])
        if candidate.dtype != "float32":
            return self._whole(candidate, self.indices[self.parts[number]])
        network = self.made(candidate)
        backbone, condition = network.backbone, None
        if network.conditioned and (known := self._batch(number).condition) is not None:
            condition = known.to(self.device)
        with torch.no_grad():
            if candidate.keep is None and not candidate.healed:
                first = min((layer for layer, _ in candidate.removed), default=self.network.config.depth)
                first = max(first - bool(candidate.strength), 0)
                tokens, state = self._prefix.at(number, first)
            else:
                first, (tokens, state) = 0, self._begin(number, network)
            tokens, state = backbone.run_blocks(tokens, first, state=state)
            params = network.read(*backbone.finish(tokens, state), condition).params
        return params.to(device=self.device, dtype=torch.float32)

    def _whole(self, candidate: Candidate, indices: np.ndarray) -> BodyParams:
        """Of any frames, from their images, as it runs: on the fast path in the candidate's dtype."""
        if self._fast is None or self._fast[0] != candidate:
            self._fast = candidate, make_fast(share(self.made(candidate)), pick_dtype(candidate.dtype))
        network = self._fast[1]
        found: list[BodyParams] = []
        for start in range(0, len(indices), self.batch_size):
            rows = indices[start : start + self.batch_size]
            masks = None if candidate.keep is None else self.masks
            (batch,) = self.crops.batches(rows, len(rows), masks, truth=False)
            found.append(network_predict(network)(batch.to(self.device)))
        rotations, betas = (torch.cat([getattr(each, name) for each in found]) for name in ("rotations", "betas"))
        return BodyParams(rotations[:, :1], rotations[:, 1:], betas).to(device=self.device, dtype=torch.float32)

    def _between(self, candidate: Candidate, indices: np.ndarray, phases: np.ndarray) -> BodyParams:
        """Of frames that the network runs on, or that lie between two such: rotations turned at a constant rate, shapes
        drawn on a line; after the last one that it runs on, as there. phases: see `key_frames`."""
        before, after, weight = key_frames(self.crops, indices, candidate.stride, phases)
        rows, places = np.unique(np.concatenate([before, after]), return_inverse=True)
        found = self._whole(replace(candidate, stride=1), rows)
        share = torch.from_numpy(weight).to(found.betas)
        start, end = (found.rotations[part] for part in np.split(places, 2))
        rotations = turned(start, end, share)
        first, last = (found.betas[part] for part in np.split(places, 2))
        betas = torch.lerp(first, last, share[:, None])
        return BodyParams(rotations[:, :1], rotations[:, 1:], betas)

    def _begin(self, number: int, network: HMR2 | None) -> Inputs:
        """What enters the first layer; with a network, as its token reducer has it."""
        indices = self.indices[self.parts[number]]
        masks = None if network is None else self.masks
        (batch,) = self.crops.batches(indices, len(indices), masks, truth=False)
        mask = None if batch.person_mask is None else batch.person_mask.to(self.device)
        return (network or plain(self.network)).backbone.begin(batch.images.to(self.device), mask)

    def _batch(self, number: int) -> FrameBatch:
        """A batch without its images."""
        if number not in self._kept:
            indices = self.indices[self.parts[number]]
            (batch,) = self.crops.batches(indices, len(indices), None, truth=self.needs_poses)
            self._kept[number] = batch.without_images()
        return self._kept[number]


def key_frames(
    crops: CropSet, indices: np.ndarray, stride: int, phases: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of frames (indices): those before and after that a network with a stride runs on, and how far between them each
    is (float32). After the last one of a clip, that one. phases, one a frame: how far behind a frame that the network
    runs on each is, of which what is left of `stride` counts; in a clip's first frames, at most what is before it."""
    before, after, weight = indices.copy(), indices.copy(), np.zeros(len(indices), np.float32)
    for clip in np.unique(crops.clip[indices]):
        order = crops.frames_of(int(clip))
        rows = np.flatnonzero(crops.clip[indices] == clip)
        at = np.searchsorted(crops.frame[order], crops.frame[indices[rows]])
        start = at - np.minimum(phases[rows] % stride, at)
        inside = start + stride < len(order)
        before[rows], after[rows] = order[start], order[np.where(inside, start + stride, start)]
        weight[rows] = np.where(inside, (at - start) / stride, 0)
    return before, after, weight


def check_strides(crops: CropSet, clips: Sequence[int], strides: Sequence[int]) -> None:
    """UserError where frames of these clips do not follow each other, or are too few to leave any out."""
    most = max(strides)
    if most == 1:
        return
    for clip in clips:
        frames = crops.frame[crops.frames_of(int(clip))]
        if len(frames) <= most or (np.diff(frames) != 1).any():
            raise UserError(
                f"clip {clip} has no {most + 1} frames in a row, so that nothing says what leaving some out costs",
                crops.name,
                "Leave --strides out, or give clips of video",
            )


def check_tokens(network: HMR2, candidate: Candidate) -> bool:
    """Whether a candidate's tokens can be merged in the layers that it leaves."""
    try:
        bare = candidate.without()
        with_token_merging(
            merge_network(network, Candidate(bare.removed).plan(None, network.config.depth)), bare.tokens
        )
    except UserError:
        return False
    return True


def _rounded(values: np.ndarray) -> list[float | None]:
    return [round(float(value), DIGITS) if np.isfinite(value) else None for value in values]


def _phases(clip: np.ndarray) -> np.ndarray:
    """Every frame of a clip in its turn, and every clip in its, is one further behind a frame that the network runs on:
    so each phase is as frequent as in a video, in every batch, though frames may be taken evenly and one from each of
    many clips. clip: of each frame, in the order in which they are measured."""
    phases = np.zeros(len(clip), np.int64)
    for number, each in enumerate(np.unique(clip)):
        places = np.flatnonzero(clip == each)
        phases[places] = number + np.arange(len(places))
    return phases


def _by_turns(clip: np.ndarray) -> np.ndarray:
    """An order in which the clips take turns."""
    rank = np.zeros(len(clip), dtype=np.int64)
    for each in np.unique(clip):
        places = np.flatnonzero(clip == each)
        # Frames spread over the clip come first, so that a few of them say something of all of it.
        rank[places[np.argsort([int(f"{n:016b}"[::-1], 2) for n in range(len(places))], kind="stable")]] = np.arange(
            len(places)
        )
    return np.lexsort((clip, rank))
