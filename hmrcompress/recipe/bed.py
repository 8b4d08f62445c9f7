"""What the rows of an ablation are measured on, and how: errors against the baseline, costs, speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress import __version__, api
from hmrcompress.data.masks import MaskSource
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import UserError
from hmrcompress.evaluation.decoded import SequenceSettings, sequence_stages
from hmrcompress.evaluation.evaluate import chosen_frames
from hmrcompress.evaluation.pipeline_bench import PipelineSettings, time_pipeline
from hmrcompress.evaluation.sequences import Timeline, interpolated, observe, sequence_predict, spans
from hmrcompress.evaluation.timing import time_interleaved
from hmrcompress.io.atomic import write_json
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.jsons import read_json
from hmrcompress.merging.apply import forced_merges, merging_settings, token_counts, with_token_merging
from hmrcompress.merging.describe import network_cost
from hmrcompress.metrics.bootstrap import clip_interval
from hmrcompress.metrics.pose import Predict, Scores, network_outputs, network_predict, score
from hmrcompress.models.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.plan import TokenSettings
from hmrcompress.recipe.ablations import Ablations, Decode
from hmrcompress.recipe.opened import Opened
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, pick_device

FORCED_FRAMES = 256
"""Forced merges are counted on so many of the frames."""


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
            self.checkpoint.network, self.tokens, api.probe_for(self.checkpoint, self.masks) if self.tokens else None
        ).eval()


class Bed(Opened):
    """Model, body and data of a recipe, opened when first asked for. `work` keeps the errors of the baseline."""

    def __init__(self, recipe: Ablations, work: Path, *, limit: int | None, device: str, progress: Progress) -> None:
        super().__init__(recipe, progress)
        self.recipe, self.work, self.limit = recipe, work, limit
        self.device = pick_device(device)
        self._observed: dict[str, list[Timeline]] = {}

    @cached_property
    def frames(self) -> np.ndarray:
        """Indices of the frames that are scored."""
        return chosen_frames(self.test, self.limit, self.recipe.frames_per_clip)

    @cached_property
    def baseline(self) -> np.ndarray:
        """(N,) MPJPE of the untouched network by frame, measured once and kept."""
        key = sha256_json(self.common())
        file = self.work / f"baseline-{key[:16]}.json"
        if not file.is_file():
            scores = self._score(self.checkpoint.network, api.open_masks("none"), "baseline")
            write_json(file, scores.per_frame.tolist())
        return np.array(read_json(file))

    def model(self, name: str | None) -> Checkpoint:
        """Another model by its name or path, the baseline's without one."""
        return self.checkpoint if name is None else api.load(name, seed=self.recipe.seed)

    def common(self) -> dict[str, Any]:
        """What every figure depends on."""
        return {
            "model": self.checkpoint.sha256,
            "data": self.test.sha256,
            "frames": sha256_json(self.frames.tolist()),
            "body": self.body.faces_sha256,
            "protocol": self.recipe.protocol,
            "batch_size": self.recipe.batch_size,
            "device": self.device.type,
            "versions": [__version__, torch.__version__],
        }

    def _score(self, network: HMR2, masks: MaskSource, what: str, case: Case | None = None) -> Scores:
        here = api.on_device(network, self.device)
        clips = case is not None and case.decode is not None
        return score(
            self._decoded(here, case, what) if case is not None and clips else network_predict(here),
            self._told(self.test.batches(self.frames, self.recipe.batch_size, masks), what),
            body=api.on_device(self.body, self.device),
            protocol=api.open_protocol(self.recipe.protocol),
            device=self.device,
            pve=False,
        )

    def _decoded(self, network: HMR2, case: Case, what: str) -> Predict:
        """Predicts what comes of whole clips, from the network's predictions for all of their frames."""
        given = case.decode
        assert given is not None
        body, fps = api.on_device(self.body, self.device), self.test.fps
        settings = SequenceSettings(
            (given.stride,),
            given.steps,
            given.lookahead,
            filters=() if given.by in ("decoder", "interpolation") else (given.by,),
            median_shape=given.median_shape,
            seed=self.recipe.seed,
        )
        decoder = api.on_device(api.decoder_for(case.checkpoint), self.device) if given.by == "decoder" else None
        codec = None if decoder is None else PoseCodec(body)
        timelines = self._timelines(network, case)
        stages = sequence_stages(timelines, settings, fps=fps, decoder=decoder, codec=codec)
        if not stages:  # interpolation between all frames: the frames themselves
            return sequence_predict(timelines, [interpolated(each) for each in timelines])
        return stages[list(stages)[-1]]

    def _timelines(self, network: HMR2, case: Case) -> list[Timeline]:
        """What the case's network gives for every frame: computed once for all the ways to decode it."""
        tokens = None if case.tokens is None else case.tokens.model_dump(mode="json")
        masks = case.masks if case.tokens else None
        probe = case.checkpoint.probe
        key = sha256_json([case.checkpoint.sha256, tokens, masks and masks.name, probe and probe.sha256])
        if key not in self._observed:
            self._observed[key] = observe(
                network_outputs(network),
                self.test,
                spans(self.test, self.frames),
                batch_size=self.recipe.batch_size,
                masks=masks,
                progress=self.progress,
            )
        return self._observed[key]

    def _told(self, batches: Iterator[FrameBatch], what: str) -> Iterator[FrameBatch]:
        done = 0
        for batch in batches:
            yield batch
            done += len(batch.clip)
            self.progress(what, done, len(self.frames))

    def scored(self, case: Case) -> dict[str, Any]:
        """Errors, their increase over the baseline with its interval, and costs."""
        network = case.network()
        scores = self._score(network, case.masks, case.checkpoint.name, case)
        if place := scores.first_not_finite():
            raise UserError("the network predicts NaN or infinity", f"{self.test.name}, clip {place[0]}, {place[1]}")
        increase = scores.per_frame - self.baseline
        rows, columns = network.config.grid
        before = network_cost(self.checkpoint.config).macs_with_attention
        cost = network_cost(network.config, merging_settings(network), getattr(network.backbone.reducer, "probe", None))
        groups = case.checkpoint.plan.groups if case.checkpoint.plan else ()
        figures: dict[str, Any] = {
            "layers": network.config.depth,
            "groups": [list(group) for group in groups if len(group) > 1],
            "merge_rule": case.checkpoint.plan.merge_rule if case.checkpoint.plan else None,
            "tokens": token_counts(case.tokens, rows * columns)[-1],
            "token_settings": None if case.tokens is None else case.tokens.model_dump(mode="json"),
            "masks": case.masks.name if case.tokens else None,
            "mpjpe_mm": scores.mpjpe_mm,
            "pa_mpjpe_mm": scores.pa_mpjpe_mm,
            "accel_mm_per_frame2": scores.accel_mm_per_frame2,
            "decode": None if case.decode is None else case.decode.model_dump(mode="json"),
            "increase_mm": float(increase.mean()),
            "increase_ci95_mm": clip_interval(increase, scores.clip, seed=self.recipe.seed),
            "macs_ratio": before / cost.macs_with_attention,
            "n_frames": scores.n_frames,
            "n_clips": scores.n_clips,
            "forced": self._forced(network, case) if case.tokens else None,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def _forced(self, network: HMR2, case: Case) -> float | None:
        """Person tokens merged away in a frame, on the first of evenly spread frames; None where nobody is marked."""
        chosen = self.frames[:: max(1, len(self.frames) // FORCED_FRAMES)]
        taken, here = 0, api.on_device(network, self.device)
        for batch in self.test.batches(chosen, self.recipe.batch_size, case.masks):
            if batch.person_mask is None and case.masks.name != "self":
                return None
            mask = None if batch.person_mask is None else batch.person_mask.to(self.device)
            with torch.no_grad():
                taken += int(forced_merges(here, batch.images.to(self.device), mask).sum())
        return taken / len(chosen)

    def timed(self, case: Case) -> dict[str, Any]:
        """{speedup, speedup_quartiles, fps} against the untouched network, by turns on the same crops; where clips are
        decoded, of whole clips (`evaluation.pipeline_bench`). What filters and interpolation take is not counted."""
        given = self.recipe.bench
        if case.decode is not None and case.decode.by == "decoder":
            return self._timed_clips(case, case.decode)
        chosen = self.frames[: given.batch_size]
        batch = next(self.test.batches(chosen, given.batch_size, case.masks if case.tokens else None))
        networks = {"before": self.checkpoint.network, "after": case.network()}
        timing = time_interleaved(
            {name: network_predict(api.on_device(network, self.device)) for name, network in networks.items()},
            batch.to(self.device),
            rounds=given.rounds,
            progress=self.progress,
        )
        return {
            "speedup": timing.speedup("after", over="before"),
            "speedup_quartiles": timing.speedup_quartiles("after", over="before"),
            "fps": {name: timing.fps(name) for name in networks},
        }

    def _timed_clips(self, case: Case, decode: Decode) -> dict[str, Any]:
        settings = PipelineSettings((decode.stride,), self.recipe.bench.measured_frames, decode.steps)
        pipeline = api.pipeline_of(case.checkpoint, self.body, self.device, clips=settings)
        assert pipeline is not None
        networks = {"before": self.checkpoint.network, "after": case.network()}
        timing = time_pipeline(
            {name: api.on_device(network, self.device) for name, network in networks.items()},
            pipeline,
            batch_size=self.recipe.bench.batch_size,
            device=self.device,
            rounds=self.recipe.bench.rounds,
            progress=self.progress,
        ).to_json()
        found = timing["strides"][str(decode.stride)]
        fps = {"before": timing["before"]["fps"], "after": found["fps"]}
        return {"speedup": found["speedup"], "speedup_quartiles": found["speedup_quartiles"], "fps": fps}
