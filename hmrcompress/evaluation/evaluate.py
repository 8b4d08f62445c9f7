"""Networks on data under a protocol: the table of stages from the mean pose over merged layers and tokens to clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import MaskSource
from hmrcompress.data.provenance import seen
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.windows import check_lookahead
from hmrcompress.errors import UserError
from hmrcompress.evaluation.decoded import SequenceSettings, sequence_stages
from hmrcompress.evaluation.forced import ForcedMerges
from hmrcompress.evaluation.tally import ADAPTIVE, AdaptiveTally, adaptive_outputs
from hmrcompress.evaluation.timelines import Outputs, interpolated, observe, sequence_predict, spans
from hmrcompress.io.together import in_turn, own_batches, process_of
from hmrcompress.merging.adaptive import AdaptiveTokens
from hmrcompress.merging.apply import counts_of, forced_merges, token_counts, with_token_merging
from hmrcompress.metrics.bootstrap import clip_interval
from hmrcompress.metrics.pose import (
    STARTER24,
    Measure,
    Predict,
    Protocol,
    Raw,
    Scores,
    constant_predict,
    network_outputs,
    network_predict,
    score_all,
)
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.network import HMR2
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.records import BodyParams, FrameBatch, HMROutput
from hmrcompress.runtime import Progress, no_progress

MEAN_POSE, BASELINE, MERGED, MERGED_TOKENS = "mean_pose", "baseline", "merged", "merged_tokens"
TOKENS_ALONE = "tokens_alone"
"""Merged tokens at all of the layers: what tokens cost by themselves."""
EXPORTED = "exported"
"""The network as another runtime runs it (`exporting.opened`)."""
LEAK_WARNING = "{seen} of the {all} frames were searched or trained on, so the figures are optimistic"


@dataclass(frozen=True)
class Stages:
    """Networks to compare on the same frames, by stage, in the order of the table; and what token merging did.

    `outputs` is the last of them with its features, which clips are decoded from.
    """

    predictors: Mapping[str, Predict]
    outputs: Outputs
    token_counts: tuple[int, ...] = ()
    forced: ForcedMerges = field(default_factory=ForcedMerges)
    adaptive: AdaptiveTally | None = None

    def with_adaptive(self, network: AdaptiveTokens, *, dtype: torch.dtype = torch.float32) -> Stages:
        """The same and, last, the stage `adaptive_tokens`: as many tokens as each crop's person needs."""
        tally = AdaptiveTally(network)
        outputs = adaptive_outputs(network, tally, dtype=dtype)
        return replace(
            self, predictors={**self.predictors, ADAPTIVE: _params_of(outputs)}, outputs=outputs, adaptive=tally
        )


@dataclass(frozen=True)
class Evaluation:
    """Scores by stage. `leaked` says how many of the frames the model was searched or trained on."""

    stages: dict[str, Scores]
    leaked: int
    tokens: dict[str, Any]
    sequence: dict[str, Any] = field(default_factory=dict)
    """How clips were decoded; empty where none were."""

    @property
    def leak(self) -> bool:
        """Whether there is any such frame."""
        return self.leaked > 0

    @property
    def leak_warning(self) -> str:
        """The same in words."""
        return LEAK_WARNING.format(seen=self.leaked, all=next(iter(self.stages.values())).n_frames)

    def intervals(self, name: str, seed: int = 0) -> dict[str, Any]:
        """How sure a stage's MPJPE is, what it is above the baseline, and how far the joints are from the baseline's:
        {mpjpe_ci95_mm: [low, high][, mpjpe_increase_mm, mpjpe_increase_ci95_mm, distance_mm, distance_p95_mm][,
        accel_ci95_mm_per_frame2]}. distance_mm is the mean over frames, distance_p95_mm the 95th percentile. See
        `metrics.bootstrap`; no interval for a single clip."""
        scores, base = self.stages[name], self.stages.get(BASELINE)
        found: dict[str, Any] = {"mpjpe_ci95_mm": clip_interval(scores.per_frame, scores.clip, seed=seed)}
        if self.sequence and len(scores.triple):
            clip = scores.clip[scores.triple]
            found["accel_ci95_mm_per_frame2"] = clip_interval(scores.per_triple_accel, clip, seed=seed)
        if base is not None and name not in (MEAN_POSE, BASELINE):
            increase = scores.per_frame - base.per_frame
            found["mpjpe_increase_mm"] = float(increase.mean())
            found["mpjpe_increase_ci95_mm"] = clip_interval(increase, scores.clip, seed=seed)
            distance = scores.distance_mm(base)
            found["distance_mm"] = float(distance.mean())
            found["distance_p95_mm"] = float(np.percentile(distance, 95))
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in found.items() if value is not None
        }

    def by_clip(self) -> dict[str, Any]:
        """{protocol, ids, n_frames, n_triples, stages: {name: {mpjpe_mm, pa_mpjpe_mm[, pve_mm], accel_mm_per_frame2}}}:
        lists, one number for each clip: means over its frames (accelerations: over its triples, None without any)."""
        first = next(iter(self.stages.values()))
        ids, place = np.unique(first.clip, return_inverse=True)
        triples = np.bincount(place[first.triple], minlength=len(ids))

        def means(values: np.ndarray, places: np.ndarray) -> list[float | None]:
            counts, sums = (np.bincount(places, each, len(ids)) for each in (None, values))
            return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]

        stages = {
            name: {
                "mpjpe_mm": means(each.per_frame, place),
                "pa_mpjpe_mm": means(each.per_frame_pa, place),
                **({} if each.per_frame_pve is None else {"pve_mm": means(each.per_frame_pve, place)}),
                "accel_mm_per_frame2": means(each.per_triple_accel, place[each.triple]),
            }
            for name, each in self.stages.items()
        }
        return {
            "protocol": first.protocol,
            "ids": ids.tolist(),
            "n_frames": np.bincount(place).tolist(),
            "n_triples": triples.tolist(),
            "stages": stages,
        }

    def to_json(self, seed: int = 0) -> dict[str, Any]:
        """{stages: {name: {mpjpe_mm, mpjpe_ci95_mm, …}}[, tokens][, sequence][, leak: true, leak_frames]}; `seed`
        draws the intervals."""
        figures: dict[str, Any] = {
            "stages": {name: scores.to_json() | self.intervals(name, seed) for name, scores in self.stages.items()}
        }
        if self.tokens:
            figures["tokens"] = self.tokens
        if self.sequence:
            figures["sequence"] = self.sequence
        return figures | {"leak": True, "leak_frames": self.leaked} if self.leak else figures


def mean_pose(network: HMR2) -> Predict:
    """Predicts the mean parameters that the network's read-outs are added to, whatever the image."""
    return constant_predict(network.head.mean_params())


def stages_of(
    network: HMR2,
    plan: Plan | None,
    *,
    against: HMR2 | None = None,
    dtype: torch.dtype = torch.float32,
    probe: SaliencyProbe | None = None,
    path: RunPath | None = None,
) -> Stages:
    """The stages that can be measured: mean pose; the baseline (`network` itself without a plan, else `against`); with
    a plan the network with merged layers, and with merged tokens too where the plan merges tokens; with both, and
    `against`, also merged tokens at all layers.

    Networks are float32 and lie on one device; `dtype` is what they compute in. `probe` finds the person where batches
    come without masks. `path`: how `network` runs; `against` always runs plain.
    """
    plain = _outputs(with_token_merging(network, None).eval(), dtype, path)
    predictors = {MEAN_POSE: mean_pose(network)}
    if plan is None:
        return Stages(predictors | {BASELINE: _params_of(plain)}, plain)
    if against is not None:
        predictors[BASELINE] = network_predict(with_token_merging(against, None).eval(), dtype=dtype)
    predictors[MERGED] = _params_of(plain)
    if plan.tokens is None:
        return Stages(predictors, plain)
    if against is not None and _tokens_stand_alone(plan, probe):
        alone = with_token_merging(against, plan.tokens, probe).eval()
        predictors[TOKENS_ALONE] = network_predict(alone, dtype=dtype)
    return _with_tokens(predictors, network, plan.tokens, dtype, probe, path)


def stages_of_exported(
    network: nn.Module, mean: BodyParams, plan: Plan | None, *, tokens: int, against: HMR2 | None = None
) -> Stages:
    """The stages of an exported network, called as an `HMR2` is: the mean pose, `against` as it was before, and it.
    mean: the mean parameters that its read-outs are added to. tokens: of a crop, before any is merged."""
    outputs = network_outputs(network)
    predictors = {MEAN_POSE: constant_predict(mean)}
    if against is not None:
        predictors[BASELINE] = network_predict(with_token_merging(against, None).eval())
    counts: tuple[int, ...] = ()
    if plan is not None and plan.tokens is not None:
        counts = tuple(token_counts(plan.tokens, tokens))
    return Stages(predictors | {EXPORTED: _params_of(outputs)}, outputs, counts)


def _tokens_stand_alone(plan: Plan, probe: SaliencyProbe | None) -> bool:
    """Whether merged tokens say something at all layers: layers are merged too, and the probe (if it finds the person)
    reads a layer below which none is, so that it reads there what it was fitted on."""
    first = plan.first_change
    return first is not None and (probe is None or probe.layer < first)


def _outputs(network: HMR2, dtype: torch.dtype, path: RunPath | None) -> Outputs:
    path = path or RunPath()
    return network_outputs(path.prepare(network, dtype), dtype=path.left_to_autocast(dtype))


def _params_of(outputs: Outputs) -> Predict:
    return lambda batch: outputs(batch).params


def _with_tokens(
    predictors: dict[str, Predict],
    network: HMR2,
    tokens: TokenSettings,
    dtype: torch.dtype,
    probe: SaliencyProbe | None,
    path: RunPath | None,
) -> Stages:
    reduced = with_token_merging(network, tokens, probe).eval()
    outputs = _outputs(reduced, dtype, path)
    device = next(network.parameters()).device
    forced = ForcedMerges()

    def counting(batch: FrameBatch) -> HMROutput:
        if batch.person_mask is not None or probe is not None:
            forced.count(batch, partial(forced_merges, reduced), device=device, dtype=dtype)
        return outputs(batch)

    counts = tuple(counts_of(reduced))
    return Stages(predictors | {MERGED_TOKENS: _params_of(counting)}, counting, counts, forced)


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
    decoder: TemporalDecoder | None = None,
    sequences: SequenceSettings | None = None,
    measure: Measure | None = None,
    trained_on: Iterable[Mapping[str, Any]] = (),
    progress: Progress = no_progress,
) -> Evaluation:
    """Scores all stages in one pass over the data: all frames, `frames_per_clip` evenly from each clip (between which
    there are no accelerations), or at most `limit` (see `CropSet.stretches`, or `evenly` of those per clip).

    `decoder`, or `sequences` that ask for strides or filters, add stages that look at whole clips, from the first to
    the last of the frames chosen, through the network of the last stage, which runs once on all their frames.

    `measure` says what is compared where that takes more than `body` and `protocol` (which then do not count).
    `plan` and `trained_on` (records of `data.provenance`) say which frames the model has seen.

    `body` and `decoder` lie where the networks do. Masks are needed only where tokens are merged. Raises UserError for
    data of another body, for frames without masks, and for a stage that predicts NaN or infinity.
    """
    measure = measure or Measure(body, protocol)
    crops.check_measure(measure)
    indices = chosen_frames(crops, limit, frames_per_clip)
    needed = masks if {TOKENS_ALONE, MERGED_TOKENS, ADAPTIVE, EXPORTED} & set(stages.predictors) else None
    predictors, sequence = dict(stages.predictors), {}
    if decoder is not None or (sequences and sequences.wanted):
        settings = sequences or SequenceSettings()
        settings.check()
        codec = None if decoder is None else PoseCodec(body)
        if decoder is not None and settings.lookahead is not None:
            check_lookahead(settings.lookahead, decoder.config.frames)
        options: dict[str, Any] = {"batch_size": batch_size, "masks": needed, "progress": progress}
        timelines = observe(stages.outputs, crops, spans(crops, indices), **options)
        # A timeline without holes, as most are, is its own interpolation; frames that are scored have a prediction.
        predictors[list(predictors)[-1]] = sequence_predict(timelines, [interpolated(each) for each in timelines])
        predictors |= sequence_stages(timelines, settings, fps=crops.fps, decoder=decoder, codec=codec)
        sequence = settings.to_json(crops.fps)
    truth = measure.protocol.truth == "body"
    own = indices[own_batches(len(indices), batch_size)]
    batches = _counted(crops.batches(own, batch_size, needed, truth=truth) if len(own) else (), len(own), progress)
    device = body.v_template.device
    scores = score_all(predictors, batches, body=measure, device=device, pve=pve, fps=crops.fps, together=_together)
    stages.forced.join()
    if stages.adaptive is not None:
        stages.adaptive.join()
    for name, scored in scores.items():
        if place := scored.first_not_finite():
            where = f"{crops.name}, clip {place[0]}, frame {place[1]}"
            raise UserError(f"the network predicts NaN or infinity (stage {name})", where)
    tokens: dict[str, Any] = {}
    if stages.token_counts:
        tokens["counts"] = list(stages.token_counts)
    counted = list(zip(crops.clip[indices].tolist(), crops.frame[indices].tolist(), strict=True))
    tokens |= stages.forced.to_json(counted)
    if stages.adaptive is not None:
        tokens["adaptive"] = stages.adaptive.to_json(counted)
    return Evaluation(scores, leaked_frames(plan, trained_on, crops, indices), tokens, sequence)


def _together(own: Iterable[Raw]) -> list[Raw]:
    """What all processes measured, in the order of the batches."""
    alone = process_of()[1] == 1
    return in_turn(lambda: [each if alone else each.on_cpu() for each in own])


def chosen_frames(crops: CropSet, limit: int | None, frames_per_clip: int | None) -> np.ndarray:
    """Indices of the frames that `evaluate` scores. Raises UserError for numbers below 1."""
    if frames_per_clip is None:
        return crops.stretches(limit)
    found = crops.sample(frames_per_clip)
    return found if limit is None else evenly(found, limit)


def leaked_frames(
    plan: Plan | None, trained_on: Iterable[Mapping[str, Any]], crops: CropSet, indices: np.ndarray
) -> int:
    """How many of these frames a plan was searched on, or are in other records of frames. See `data.provenance`."""
    found = np.zeros(len(indices), bool)
    searched = [] if plan is None or plan.search is None else [plan.search.data.model_dump()]
    for record in (*searched, *trained_on):
        found |= seen(record, crops, indices)
    return int(found.sum())


def _counted(batches: Iterable[FrameBatch], total: int, progress: Progress) -> Iterator[FrameBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.clip)
        progress("eval", done, total)
