"""Stages that look at whole clips: the temporal decoder, and what it has to beat, interpolation and classical filters.

All start from the same predictions of one network. Shape stays with the network's own read-out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hmrcompress.decoder.clips import decode_clip, decode_streaming
from hmrcompress.decoder.filters import one_euro, savgol
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.readout import decoder_inputs
from hmrcompress.decoder.windows import check_stride
from hmrcompress.errors import UserError
from hmrcompress.evaluation.timelines import Timeline, betas_in_time, interpolated, sequence_predict, stage_name
from hmrcompress.metrics.pose import Predict
from hmrcompress.records import BodyParams

INTERPOLATED, DECODED = "interpolated", "decoded"


class Filter(NamedTuple):
    """A stage's name, and what it does: (params, clip (N,), fps) -> params."""

    stage: str
    smooth: Callable[[BodyParams, Tensor, float], BodyParams]


FILTERS = {"one-euro": Filter("filtered_one_euro", one_euro), "savgol": Filter("filtered_savgol", savgol)}


@dataclass(frozen=True)
class SequenceSettings:
    """How clips are decoded.

    strides: the network runs on every k-th frame, one set of stages for each; the first is the stage `decoded`, another
    k `decoded_stride_k`. steps: denoising steps. lookahead: frames that may be waited for; None: the whole clip.
    filters: names of `FILTERS` to measure too. median_shape: one shape a clip, the median of those predicted.
    """

    strides: tuple[int, ...] = (1,)
    steps: int = 1
    lookahead: int | None = None
    filters: tuple[str, ...] = ()
    median_shape: bool = False
    seed: int = 0

    @property
    def wanted(self) -> bool:
        """Whether anything is asked for that a model without a decoder gives: strides or filters."""
        return bool(self.filters) or any(stride > 1 for stride in self.strides)

    def check(self) -> None:
        """UserError for what makes no sense."""
        for value, flag in ((self.steps, "eval.steps"), *((stride, "--stride") for stride in self.strides)):
            if value < 1:
                raise UserError(f"got {value}, expected at least 1", flag)
        if not self.strides:
            raise UserError("got none, expected at least one", "--stride")
        if self.lookahead is not None and self.lookahead < 0:
            raise UserError(f"got {self.lookahead}, expected at least 0", "eval.lookahead")
        if odd := [name for name in self.filters if name not in FILTERS]:
            raise UserError(f"got {odd[0]!r}, expected one of {', '.join(FILTERS)}", "eval.filters")
        if self.median_shape and self.lookahead is not None:
            raise UserError(
                "the median of a clip is known at its end only", "eval.median_shape", "Leave eval.lookahead out"
            )

    def to_json(self, fps: float) -> dict[str, Any]:
        """Plain values; with a lookahead also the milliseconds that it takes at `fps`."""
        latency = {} if self.lookahead is None else {"latency_ms": 1000.0 * self.lookahead / fps}
        return asdict(self) | {"strides": list(self.strides), "filters": list(self.filters)} | latency


def decode(
    timeline: Timeline,
    decoder: TemporalDecoder,
    codec: PoseCodec,
    *,
    steps: int = 1,
    lookahead: int | None = None,
    median_shape: bool = False,
    seed: int = 0,
) -> BodyParams:
    """Bodies of all T frames from what the network gives for the K known ones; noise is drawn by `seed` and the clip's
    number.

    Decoder and codec lie where the timeline does, float32.
    """
    inputs = timeline.spread(decoder_inputs(decoder.config, codec, timeline.features, timeline.params))
    known, noise = timeline.known, seed + timeline.clip
    if lookahead is None:
        pose = decode_clip(decoder, inputs, known, steps=steps, seed=noise)
    else:
        pose = decode_streaming(decoder, inputs, known, lookahead=lookahead, steps=steps, seed=noise)
    return codec.decode(pose, betas_in_time(timeline, lookahead=lookahead, median=median_shape))


def filtered(timeline: Timeline, name: str, *, fps: float, median_shape: bool = False) -> BodyParams:
    """The network's own read-out after a filter of `FILTERS`; frames without a prediction are interpolated before."""
    full = interpolated(timeline, median_shape=median_shape)
    clip = torch.full((timeline.length,), timeline.clip, device=full.betas.device)
    return FILTERS[name].smooth(full, clip, fps)


@torch.no_grad()
def sequence_stages(
    timelines: Sequence[Timeline],
    settings: SequenceSettings,
    *,
    fps: float,
    decoder: TemporalDecoder | None = None,
    codec: PoseCodec | None = None,
) -> dict[str, Predict]:
    """Predictors by stage, in the order of the table: interpolation for strides above 1, filters on all frames, and the
    decoder where there is one (then with its codec). Raises UserError."""
    settings.check()
    stages: dict[str, list[BodyParams]] = {}
    sparse = {stride: [timeline.every(stride) for timeline in timelines] for stride in settings.strides}
    for stride, found in sparse.items():
        if stride > 1:
            stages[stage_name(INTERPOLATED, stride, settings.strides)] = [
                interpolated(each, lookahead=settings.lookahead, median_shape=settings.median_shape) for each in found
            ]
    for name in settings.filters:
        stages[FILTERS[name].stage] = [
            filtered(each, name, fps=fps, median_shape=settings.median_shape) for each in timelines
        ]
    if decoder is not None and codec is not None:
        check_stride(max(settings.strides), decoder.config.frames)
        for stride, found in sparse.items():
            stages[stage_name(DECODED, stride, settings.strides)] = [
                decode(
                    each,
                    decoder,
                    codec,
                    steps=settings.steps,
                    lookahead=settings.lookahead,
                    median_shape=settings.median_shape,
                    seed=settings.seed,
                )
                for each in found
            ]
    return {stage: sequence_predict(timelines, bodies) for stage, bodies in stages.items()}
