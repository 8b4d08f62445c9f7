"""What the rows of an ablation are measured on, and how: errors against the baseline, costs, speed."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hmrcompress.api import opening, opening_decoder
from hmrcompress.data.masks import MaskSource, masks_sha256
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import UserError
from hmrcompress.evaluation.decoded import SequenceSettings, sequence_stages
from hmrcompress.evaluation.evaluate import chosen_frames
from hmrcompress.evaluation.forced import ForcedMerges
from hmrcompress.evaluation.timelines import Timeline, interpolated, observe, sequence_predict, spans
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.keys import Key
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import read_sealed
from hmrcompress.merging.apply import (
    forced_merges,
    merging_settings,
    network_identity,
    token_counts,
    with_token_merging,
)
from hmrcompress.merging.describe import network_cost
from hmrcompress.metrics.bootstrap import by_clip, clip_interval
from hmrcompress.metrics.points import MM
from hmrcompress.metrics.pose import Outputs, Predict, Scores, network_outputs, score
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.plan import TokenSettings
from hmrcompress.recipe.ablations import Ablations, Decode
from hmrcompress.recipe.opened import Opened
from hmrcompress.records import FrameBatch, HMROutput
from hmrcompress.runtime import Progress, pick_device
from hmrcompress.timing.pipeline_bench import PipelineSettings
from hmrcompress.timing.row_bench import TimedRow, time_rows

CODE = ("recipe",)
"""What makes a row, with all that it imports."""
BASELINE = "ablate baseline"


@dataclass(frozen=True)
class Case:
    """A setting's network before its tokens are merged, how they are, and how its clips are decoded, if they are."""

    checkpoint: Checkpoint
    tokens: TokenSettings | None
    masks: MaskSource
    decode: Decode | None = None

    def network(self) -> HMR2:
        """With token merging, on the CPU."""
        return with_token_merging(
            self.checkpoint.network,
            self.tokens,
            opening.probe_for(self.checkpoint, self.masks) if self.tokens else None,
        ).eval()


class Untouched(NamedTuple):
    """What every row is compared with: errors (N,) mm and joints (N,K,3) metres, pelvis at the origin, by frame; means
    {mpjpe_mm, pa_mpjpe_mm[, pve_mm]} over the frames."""

    per_frame: np.ndarray
    placed: np.ndarray
    means: dict[str, float]


class Bed(Opened):
    """Model, body and data of a recipe, opened when first asked for. `work` keeps the errors of the baseline."""

    def __init__(self, recipe: Ablations, work: Path, *, limit: int | None, device: str, progress: Progress) -> None:
        super().__init__(recipe, progress)
        self.recipe, self.work, self.limit = recipe, work, limit
        self.device = pick_device(device)
        self._observed: dict[str, list[Timeline]] = {}
        self._forced: dict[str, ForcedMerges] = {}

    @cached_property
    def frames(self) -> np.ndarray:
        """Indices of the frames that are scored."""
        return chosen_frames(self.test, self.limit, self.recipe.frames_per_clip)

    @cached_property
    def baseline(self) -> Untouched:
        """The untouched network by frame, measured once and kept."""
        file = self.work / f"baseline-{Key.of('baseline', CODE, **self.common).short}.json"
        known = read_sealed(file, BASELINE)
        if known is None:
            scores = self._score(self.checkpoint.network, opening.open_masks("none"), "baseline")
            assert scores.placed is not None
            joints = base64.b64encode(scores.placed.astype("<f4").tobytes()).decode()
            known = {"mpjpe_mm": scores.per_frame.tolist(), "joints": joints}
            means = {"mpjpe_mm": scores.mpjpe_mm, "pa_mpjpe_mm": scores.pa_mpjpe_mm, "pve_mm": scores.pve_mm}
            known["means"] = {name: value for name, value in means.items() if value is not None}
            OutputRule().write_json(file, known, BASELINE)
        errors = np.array(known["mpjpe_mm"])
        placed = np.frombuffer(base64.b64decode(known["joints"]), "<f4").reshape(len(errors), -1, 3)
        return Untouched(errors, placed, known["means"])

    def model(self, name: str | None) -> Checkpoint:
        """Another model by its name or path, the baseline's without one. UserError where it takes other crops than the
        baseline, at whose size the data were opened."""
        if name is None:
            return self.checkpoint
        found, size = opening.load(name, seed=self.recipe.seed), self.checkpoint.config.crop
        if found.config.crop != size:
            mine, theirs = (f"{crop} pixels in patches of {crop.patch}" for crop in (found.config.crop, size))
            fault = f"takes crops of {mine}, the recipe's model of {theirs}"
            raise UserError(fault, name, "Compare it in a recipe of its own")
        return found

    @cached_property
    def common(self) -> dict[str, Any]:
        """What every figure depends on."""
        return {
            "baseline_model": network_identity(self.checkpoint.network),
            "data": self.test.contents_sha256(self.frames),
            "frames": sha256_json(self.frames.tolist()),
            "body": self.body.sha256,
            "protocol": opening.open_protocol(self.recipe.protocol),
            "batch_size": self.recipe.batch_size,
            "seed": self.recipe.seed,
            "device": self.device,
        }

    def masks_sha256(self, masks: MaskSource) -> str:
        """Hash of the masks of the frames that are scored."""
        return masks_sha256(masks, self.test, self.frames)

    def _score(
        self, network: HMR2, masks: MaskSource, what: str, case: Case | None = None, forced: ForcedMerges | None = None
    ) -> Scores:
        """The errors of a network, of whole clips where the case decodes them; forced: to be counted on the way."""
        here = opening.on_device(network, self.device)
        clips = case is not None and case.decode is not None
        outputs = network_outputs(here) if forced is None else self._counting(here, forced)
        return score(
            self._decoded(outputs, here, case) if case is not None and clips else lambda batch: outputs(batch).params,
            self._told(self.test.batches(self.frames, self.recipe.batch_size, masks), what),
            body=opening.on_device(self.body, self.device),
            protocol=opening.open_protocol(self.recipe.protocol),
            device=self.device,
            pve=True,
        )

    def _counting(self, network: HMR2, forced: ForcedMerges) -> Outputs:
        """How the network runs on a batch, with the person tokens counted that it loses."""
        outputs, probe = network_outputs(network), getattr(network.backbone.reducer, "probe", None)

        def counting(batch: FrameBatch) -> HMROutput:
            if batch.person_mask is not None or probe is not None:
                forced.count(batch, partial(forced_merges, network), device=self.device, dtype=torch.float32)
            return outputs(batch)

        return counting

    def _decoded(self, outputs: Outputs, network: HMR2, case: Case) -> Predict:
        """Predicts what comes of whole clips, from the network's predictions for all of their frames."""
        given = case.decode
        assert given is not None
        body, fps = opening.on_device(self.body, self.device), self.test.fps
        settings = SequenceSettings(
            (given.stride,),
            given.steps,
            given.lookahead,
            filters=() if given.by in ("decoder", "interpolation") else (given.by,),
            median_shape=given.median_shape,
            seed=self.recipe.seed,
        )
        decoder = (
            opening.on_device(opening_decoder.decoder_for(case.checkpoint), self.device)
            if given.by == "decoder"
            else None
        )
        codec = None if decoder is None else PoseCodec(body)
        timelines = self._timelines(outputs, network, case)
        stages = sequence_stages(timelines, settings, fps=fps, decoder=decoder, codec=codec)
        if not stages:  # interpolation between all frames: the frames themselves
            return sequence_predict(timelines, [interpolated(each) for each in timelines])
        return stages[list(stages)[-1]]

    def _timelines(self, outputs: Outputs, network: HMR2, case: Case) -> list[Timeline]:
        """What the case's network gives for every frame: computed once for all the ways to decode it."""
        masks, key = case.masks if case.tokens else None, self._pass(network, case)
        if key not in self._observed:
            self._observed[key] = observe(
                outputs,
                self.test,
                spans(self.test, self.frames),
                batch_size=self.recipe.batch_size,
                masks=masks,
                progress=self.progress,
            )
        return self._observed[key]

    def _forced_in(self, network: HMR2, case: Case) -> ForcedMerges:
        """The person tokens that the case's network merges away, as far as they are counted: kept, as a pass over the
        frames serves all the ways to decode it."""
        return self._forced.setdefault(self._pass(network, case), ForcedMerges())

    def _pass(self, network: HMR2, case: Case) -> str:
        """Names what a network gives for the frames: by itself, and by the masks that it gets."""
        return sha256_json([network_identity(network), self.masks_sha256(case.masks) if case.tokens else None])

    def _told(self, batches: Iterator[FrameBatch], what: str) -> Iterator[FrameBatch]:
        done = 0
        for batch in batches:
            yield batch
            done += len(batch.clip)
            self.progress(what, done, len(self.frames))

    def scored(self, *cases: Case) -> dict[str, Any]:
        """Errors, their increase over the baseline with its interval, the distance to the untouched network's joints,
        and costs. Of several cases (a control that is drawn more than once), which must cost the same: errors are
        averaged frame by frame first, so that the interval is that of their mean."""
        case, networks = cases[0], [each.network() for each in cases]
        network = networks[0]
        forced = [self._forced_in(*each) if each[1].tokens else None for each in zip(networks, cases, strict=True)]
        drawn = [
            self._score(own, each.masks, each.checkpoint.name, each, counted)
            for own, each, counted in zip(networks, cases, forced, strict=True)
        ]
        for scores in drawn:
            if place := scores.first_not_finite():
                where = f"{self.test.name}, clip {place[0]}, {place[1]}"
                raise UserError("the network predicts NaN or infinity", where)
        scores = drawn[0]
        increase = np.mean([each.per_frame for each in drawn], axis=0) - self.baseline.per_frame
        moved = np.concatenate([self._moved(each) for each in drawn])
        rows, columns = network.config.grid
        before = network_cost(self.checkpoint.config).macs_with_attention
        cost = network_cost(network.config, merging_settings(network), getattr(network.backbone.reducer, "probe", None))
        groups = case.checkpoint.plan.kept_groups if case.checkpoint.plan else ()
        figures: dict[str, Any] = {
            "layers": network.config.depth,
            "groups": [list(group) for group in groups if len(group) > 1],
            "merge_rule": case.checkpoint.plan.merge_rule if case.checkpoint.plan else None,
            "tokens": token_counts(case.tokens, rows * columns)[-1],
            "token_settings": None if case.tokens is None else case.tokens.model_dump(mode="json"),
            "masks": case.masks.name if case.tokens else None,
            "mpjpe_mm": _mean(each.mpjpe_mm for each in drawn),
            "pa_mpjpe_mm": _mean(each.pa_mpjpe_mm for each in drawn),
            "pve_mm": _mean(each.pve_mm for each in drawn),
            "accel_mm_per_frame2": _mean(each.accel_mm_per_frame2 for each in drawn),
            "draws": [each.mpjpe_mm for each in drawn] if len(drawn) > 1 else None,
            "decode": None if case.decode is None else case.decode.model_dump(mode="json"),
            "increase_mm": float(increase.mean()),
            "increase_ci95_mm": clip_interval(increase, scores.clip, seed=self.recipe.seed),
            "clip_increase_mm": by_clip(increase, scores.clip),
            "distance_mm": float(moved.mean()),
            "distance_p95_mm": float(np.percentile(moved, 95)),
            "macs_with_attention": cost.macs_with_attention,
            "macs_ratio": before / cost.macs_with_attention,
            "n_frames": scores.n_frames,
            "n_clips": scores.n_clips,
            "forced": _mean(self._lost(each) for each in forced if each is not None),
        }
        return {name: value for name, value in figures.items() if value is not None}

    def _moved(self, scores: Scores) -> np.ndarray:
        """(N,) mm from the untouched network's joints to these, frame by frame; as `Scores.distance_mm`."""
        assert scores.placed is not None
        return np.linalg.norm(scores.placed - self.baseline.placed, axis=-1).mean(1) * MM

    def _lost(self, forced: ForcedMerges) -> float | None:
        """Person tokens merged away in a frame, over all frames; None where nobody is marked."""
        places = zip(self.test.clip[self.frames].tolist(), self.test.frame[self.frames].tolist(), strict=True)
        return forced.to_json(places).get("forced_person_merges_per_frame")

    def timed(self, cases: Mapping[str, Case]) -> dict[str, dict[str, Any]]:
        """{speedup, speedup_quartiles, fps: {before, after}} of every case against the untouched network, all by turns
        in one measurement; where clips are decoded, of whole clips (`timing.row_bench`). What filters and
        interpolation take is not counted."""
        given = self.recipe.bench
        chosen = self.frames[: given.batch_size]
        plain = next(self.test.batches(chosen, given.batch_size)).to(self.device)
        rows = {"": TimedRow(opening.on_device(self.checkpoint.network, self.device), plain)}
        shared: dict[str, TimedRow] = {}
        for name, case in cases.items():
            network = case.network()
            key = self._pass(network, case)
            if key not in shared:
                masked = next(self.test.batches(chosen, given.batch_size, case.masks)) if case.tokens else plain
                shared[key] = TimedRow(opening.on_device(network, self.device), masked.to(self.device))
            rows[name] = replace(shared[key], **self._of_clips(case))
        timing = time_rows(rows, device=self.device, rounds=given.rounds, progress=self.progress)
        return {
            name: {
                "speedup": timing.speedup(name, over=""),
                "speedup_quartiles": list(timing.speedup_quartiles(name, over="")),
                "fps": {"before": timing.fps(""), "after": timing.fps(name)},
            }
            for name in cases
        }

    def _of_clips(self, case: Case) -> dict[str, Any]:
        """What a timed row has beside its network, where clips are decoded."""
        decode = case.decode
        if decode is None:
            return {}
        if decode.by != "decoder":
            return {"stride": decode.stride}
        settings = PipelineSettings((decode.stride,), steps=decode.steps)
        return {
            "stride": decode.stride,
            "pipeline": opening_decoder.pipeline_of(case.checkpoint, self.body, self.device, clips=settings),
        }


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there; None where none is."""
    given = [value for value in values if value is not None]
    return float(np.mean(given)) if given else None
