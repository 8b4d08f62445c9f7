"""Networks on data under a protocol: the table of stages from the mean pose to merged layers and tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import MaskSource
from hmrcompress.errors import UserError
from hmrcompress.geometry.rotations import sixd_to_matrix
from hmrcompress.merging.apply import forced_merges, token_counts, with_token_merging
from hmrcompress.metrics.bootstrap import clip_interval
from hmrcompress.metrics.pose import (
    STARTER24,
    Predict,
    Protocol,
    Scores,
    constant_predict,
    network_predict,
    score_all,
)
from hmrcompress.models.network import HMR2
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import Progress, no_progress

MEAN_POSE, BASELINE, MERGED, MERGED_TOKENS = "mean_pose", "baseline", "merged", "merged_tokens"
LEAK_WARNING = "the plan was searched on these very data, so its figures are optimistic"


FORCED_EVERY = 8
"""Forced merges are counted on every so many batches: counting runs the merging layers once more."""


@dataclass
class ForcedMerges:
    """How many person tokens token merging took from how many frames; `batches` seen, counted or not."""

    batches: int = 0
    frames: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Stages:
    """Networks to compare on the same frames, by stage, in the order of the table; and what token merging did."""

    predictors: Mapping[str, Predict]
    token_counts: tuple[int, ...] = ()
    forced: ForcedMerges = field(default_factory=ForcedMerges)


@dataclass(frozen=True)
class Evaluation:
    """Scores by stage. `leak` says that the plan was searched on the data that it is scored on."""

    stages: dict[str, Scores]
    leak: bool
    tokens: dict[str, Any]

    def intervals(self, name: str, seed: int = 0) -> dict[str, Any]:
        """How sure a stage's MPJPE is, and what it is above the baseline: {mpjpe_ci95_mm: [low, high][,
        mpjpe_increase_mm, mpjpe_increase_ci95_mm]}. See `metrics.bootstrap`; nothing for a single clip."""
        scores, base = self.stages[name], self.stages.get(BASELINE)
        found: dict[str, Any] = {"mpjpe_ci95_mm": clip_interval(scores.per_frame, scores.clip, seed=seed)}
        if base is not None and name not in (MEAN_POSE, BASELINE):
            increase = scores.per_frame - base.per_frame
            found["mpjpe_increase_mm"] = float(increase.mean())
            found["mpjpe_increase_ci95_mm"] = clip_interval(increase, scores.clip, seed=seed)
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in found.items() if value is not None
        }

    def to_json(self, seed: int = 0) -> dict[str, Any]:
        """{stages: {name: {mpjpe_mm, mpjpe_ci95_mm, …}}[, tokens][, leak: true]}; `seed` draws the intervals."""
        figures: dict[str, Any] = {
            "stages": {name: scores.to_json() | self.intervals(name, seed) for name, scores in self.stages.items()}
        }
        if self.tokens:
            figures["tokens"] = self.tokens
        return figures | {"leak": True} if self.leak else figures


def mean_pose(network: HMR2) -> Predict:
    """Predicts the mean parameters that the network's read-outs are added to, whatever the image."""
    head = network.smpl_head
    rotations = sixd_to_matrix(head.init_body_pose.float().unflatten(-1, (-1, 6)))
    return constant_predict(BodyParams(rotations[:, :1], rotations[:, 1:], head.init_betas.float()))


def stages_of(
    network: HMR2,
    plan: Plan | None,
    *,
    against: HMR2 | None = None,
    dtype: torch.dtype = torch.float32,
    probe: SaliencyProbe | None = None,
) -> Stages:
    """The stages that can be measured: mean pose; the baseline (`network` itself without a plan, else `against`); with
    a plan the network with merged layers, and with merged tokens too where the plan merges tokens.

    Networks are float32 and lie on one device; `dtype` is what they compute in. `probe` finds the person where batches
    come without masks.
    """
    plain = with_token_merging(network, None).eval()
    predictors = {MEAN_POSE: mean_pose(network)}
    if plan is None:
        return Stages(predictors | {BASELINE: network_predict(plain, dtype=dtype)})
    if against is not None:
        predictors[BASELINE] = network_predict(with_token_merging(against, None).eval(), dtype=dtype)
    predictors[MERGED] = network_predict(plain, dtype=dtype)
    if plan.tokens is None:
        return Stages(predictors)
    return _with_tokens(predictors, network, plan.tokens, dtype, probe)


def _with_tokens(
    predictors: dict[str, Predict],
    network: HMR2,
    tokens: TokenSettings,
    dtype: torch.dtype,
    probe: SaliencyProbe | None,
) -> Stages:
    reduced = with_token_merging(network, tokens, probe).eval()
    predict = network_predict(reduced, dtype=dtype)
    device = next(network.parameters()).device
    forced = ForcedMerges()

    def counting(batch: FrameBatch) -> BodyParams:
        forced.batches += 1
        mask = batch.person_mask
        if (mask is not None or probe is not None) and forced.batches % FORCED_EVERY == 1:
            with torch.no_grad():
                taken = forced_merges(reduced, batch.images.to(device), None if mask is None else mask.to(device))
            forced.tokens += int(taken.sum())
            forced.frames += len(taken)
        return predict(batch)

    rows, columns = network.config.grid
    counts = tuple(token_counts(tokens, rows * columns))
    return Stages(predictors | {MERGED_TOKENS: counting}, counts, forced)


def evaluate(
    stages: Stages,
    crops: CropSet,
    *,
    body: BodyModel,
    protocol: Protocol = STARTER24,
    masks: MaskSource | None = None,
    limit: int | None = None,
    frames_per_clip: int | None = None,
    batch_size: int = 32,
    pve: bool = True,
    plan: Plan | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Scores all stages in one pass over the data: all frames, `frames_per_clip` evenly from each clip (between which
    there are no accelerations), or at most `limit` (see `CropSet.stretches`, or `evenly` of those per clip).

    `body` lies where the networks do. Masks are needed only where tokens are merged. Raises UserError for data of
    another body, for frames without masks, and for a stage that predicts NaN or infinity.
    """
    crops.check_body(body)
    indices = chosen_frames(crops, limit, frames_per_clip)
    needed = masks if MERGED_TOKENS in stages.predictors else None
    batches = _counted(crops.batches(indices, batch_size, needed), len(indices), progress)
    device = body.v_template.device
    scores = score_all(stages.predictors, batches, body=body, protocol=protocol, device=device, pve=pve)
    for name, scored in scores.items():
        if place := scored.first_not_finite():
            where = f"{crops.name}, clip {place[0]}, frame {place[1]}"
            raise UserError(f"the network predicts NaN or infinity (stage {name})", where)
    tokens: dict[str, Any] = {}
    if stages.token_counts:
        tokens["counts"] = list(stages.token_counts)
    if stages.forced.frames:
        tokens["forced_person_merges_per_frame"] = stages.forced.tokens / stages.forced.frames
        tokens["forced_counted_on_frames"] = stages.forced.frames
    return Evaluation(scores, plan is not None and leaks(plan, crops), tokens)


def chosen_frames(crops: CropSet, limit: int | None, frames_per_clip: int | None) -> np.ndarray:
    """Indices of the frames that `evaluate` scores. Raises UserError for numbers below 1."""
    if frames_per_clip is None:
        return crops.stretches(limit)
    found = crops.sample(frames_per_clip)
    return found if limit is None else evenly(found, limit)


def leaks(plan: Plan, crops: CropSet) -> bool:
    """Whether a plan was searched on (some of) these data: the same hash, or the same name and split."""
    if plan.search is None:
        return False
    data = plan.search.data
    same_split = bool(crops.split) and (data.name, data.split) == (crops.name, crops.split)
    return data.sha256 == crops.sha256 or same_split


def _counted(batches: Iterable[FrameBatch], total: int, progress: Progress) -> Iterator[FrameBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.clip)
        progress("eval", done, total)
