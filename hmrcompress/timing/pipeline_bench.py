"""Frames per second of whole clips: network on every k-th frame, temporal decoder, pose numbers to rotations.

What it is compared with is the uncompressed network on every frame. All parts take turns in each round; a pipeline's
time is the sum of its parts' in that round. Where a network would take too long for a whole clip it is timed on the
first frames and its time scaled up to the clip, for it costs the same for every frame; decoder and pose numbers are
always timed on the whole clip. Decoder and body are float32 whatever the networks compute in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from hmrcompress.decoder.clips import decode_clip
from hmrcompress.decoder.model import TemporalDecoder, decoder_cost
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.readout import decoder_inputs
from hmrcompress.decoder.windows import OVERLAP_SHARE, window_starts
from hmrcompress.errors import UserError
from hmrcompress.geometry.rotations import sixd_to_matrix
from hmrcompress.models.fast.running import backbone_of, unwrapped
from hmrcompress.models.network import HMR2
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.timing.contenders import AFTER, BACKBONE, BEFORE
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress.timing.rounds import time_interleaved

CLIP_FRAMES = 243
POSE = "pose"


@dataclass(frozen=True)
class PipelineSettings:
    """strides: the network runs on every k-th frame. measured: frames of the clip that networks are timed on, None for
    all of them. steps: of denoising."""

    strides: tuple[int, ...] = (1, 2, 4)
    measured: int | None = None
    steps: int = 1
    clip_frames: int = CLIP_FRAMES

    def frames(self, stride: int) -> int:
        """Frames of the clip that a network runs on."""
        return -(-self.clip_frames // stride)

    def check(self) -> None:
        """UserError for what makes no sense."""
        if not self.strides or min(self.strides) < 1:
            raise UserError(f"got {list(self.strides)}, expected numbers from 1", "bench.strides")
        if self.measured is not None and self.measured < 1:
            raise UserError(f"got {self.measured}, expected at least 1", "bench.measured_frames")


@dataclass(frozen=True)
class Pipeline:
    """What is timed: a decoder, its name, and the codec of the body that poses are turned into rotations of."""

    decoder: TemporalDecoder
    codec: PoseCodec
    name: str
    settings: PipelineSettings = PipelineSettings()

    def sizes(self) -> dict[str, Any]:
        """{name, dtype, steps, params, window_frames, windows, macs, macs_with_attention}: MACs of a clip in one
        step."""
        config = self.decoder.config
        windows = len(window_starts(self.settings.clip_frames, config.frames, config.frames // OVERLAP_SHARE))
        counted = decoder_cost(config)
        return {
            "name": self.name,
            "dtype": "float32",
            "steps": self.settings.steps,
            "params": counted.parameters,
            "window_frames": config.frames,
            "windows": windows,
            "macs": windows * counted.macs,
            "macs_with_attention": windows * counted.macs_with_attention,
        }


@dataclass(frozen=True)
class PipelineTiming:
    """Seconds for a clip by part, one a round: `before` and `backbone` (the uncompressed one's, all frames), `pose`,
    and by stride the network after compression and the decoder."""

    pipeline: Pipeline
    batch_size: int
    parts: dict[str, np.ndarray]
    networks: dict[int, np.ndarray]
    decoders: dict[int, np.ndarray]
    timed_on: dict[str, int] = field(default_factory=dict)
    """Frames that each network was timed on: `before` and the strides."""

    def seconds(self, stride: int) -> np.ndarray:
        """Of a whole clip through the whole pipeline, by round."""
        return self.networks[stride] + self.decoders[stride] + self.parts[POSE]

    def share_of_backbone(self) -> np.ndarray:
        """The decoder's seconds, all frames known, over the uncompressed backbone's for the same clip, by round."""
        return self.decoders[min(self.decoders)] / self.parts[BACKBONE]

    def to_json(self) -> dict[str, Any]:
        """{clip_frames, …, decoder: {…, share_of_backbone}, before: {…}, strides: {k: {fps, speedup, …}}}."""
        settings = self.pipeline.settings
        frames = settings.clip_frames
        before, share = self.parts[BEFORE], self.share_of_backbone()
        decoder = self.pipeline.sizes() | {
            "seconds": _median(self.decoders[min(self.decoders)]),
            "pose_seconds": _median(self.parts[POSE]),
            "backbone_seconds": _median(self.parts[BACKBONE]),
            "share_of_backbone": _median(share),
            "share_quartiles": _quartiles(share),
        }
        strides = {}
        for stride in settings.strides:
            whole = self.seconds(stride)
            strides[str(stride)] = {
                "network_frames": settings.frames(stride),
                "timed_on": self.timed_on[str(stride)],
                "fps": frames / _median(whole),
                "fps_quartiles": _quartiles(frames / whole),
                "speedup": _median(before / whole),
                "speedup_quartiles": _quartiles(before / whole),
                "seconds": {
                    "network": _median(self.networks[stride]),
                    "decoder": _median(self.decoders[stride]),
                    "pose": _median(self.parts[POSE]),
                },
            }
        return {
            "clip_frames": frames,
            "batch_size": self.batch_size,
            "rounds": len(before),
            "decoder": decoder,
            "before": {
                "fps": frames / _median(before),
                "fps_quartiles": _quartiles(frames / before),
                "seconds": _median(before),
                "timed_on": self.timed_on[BEFORE],
            },
            "strides": strides,
        }


def time_pipeline(
    networks: Mapping[str, nn.Module],
    pipeline: Pipeline,
    *,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rounds: int = 5,
    warmup: int = 1,
    max_seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
) -> PipelineTiming:
    """Times the networks `before` and `after` (in `dtype` on `device`; the same object twice is timed once), on
    `batch_size` crops a call, with the decoder (float32, on `device`). Raises UserError for sizes that make no sense.
    """
    settings = pipeline.settings
    settings.check()
    device, whole = torch.device(device), settings.clip_frames
    limit = whole if settings.measured is None else settings.measured
    config = cast(HMR2, unwrapped(networks[BEFORE])).config
    batch = made_up_batch(config, batch_size, dtype).to(device)
    runs: dict[str, Callable[[FrameBatch], object]] = {}

    def network_run(module: nn.Module, frames: int) -> tuple[str, int]:
        """The candidate that runs a module on so many frames of the clip, or on as many as are timed; those."""
        count = min(frames, limit)
        name = f"{id(module)} {count}"
        runs.setdefault(name, _over(module, count, batch_size))
        return name, count

    before = network_run(networks[BEFORE], whole)
    backbone = network_run(backbone_of(networks[BEFORE]), whole)
    after = {stride: network_run(networks[AFTER], settings.frames(stride)) for stride in settings.strides}
    runs |= {f"decoder {stride}": decoding(pipeline, stride, device) for stride in settings.strides}
    runs[POSE] = posing(pipeline, device)
    timing = time_interleaved(
        runs,
        batch,
        rounds=rounds,
        warmup=warmup,
        max_seconds=max_seconds,
        clock=clock,
        progress=progress,
        what="pipeline",
    )
    taken = {name: np.array(seconds) for name, seconds in timing.seconds.items()}

    def scaled(run: tuple[str, int], frames: int) -> np.ndarray:
        name, count = run
        return taken[name] * (frames / count)

    return PipelineTiming(
        pipeline=pipeline,
        batch_size=batch_size,
        parts={BEFORE: scaled(before, whole), BACKBONE: scaled(backbone, whole), POSE: taken[POSE]},
        networks={stride: scaled(run, settings.frames(stride)) for stride, run in after.items()},
        decoders={stride: taken[f"decoder {stride}"] for stride in settings.strides},
        timed_on={BEFORE: before[1]} | {str(stride): count for stride, (_, count) in after.items()},
    )


def _over(module: nn.Module, frames: int, batch_size: int) -> Callable[[FrameBatch], object]:
    """Runs a network or backbone on so many frames, batch by batch."""
    sizes = [min(batch_size, frames - start) for start in range(0, frames, batch_size)]

    def run(batch: FrameBatch) -> None:
        inputs = batch.inputs() if isinstance(unwrapped(module), HMR2) else batch.inputs()[:2]
        for size in sizes:
            module(*(part[:size] for part in inputs if part is not None))

    return run


def decoding(pipeline: Pipeline, stride: int, device: torch.device) -> Callable[[FrameBatch], object]:
    """Decodes a clip of made-up features and read-outs, of which every k-th is known."""
    seeded, frames, config = torch.Generator().manual_seed(0), pipeline.settings.clip_frames, pipeline.decoder.config
    known = torch.arange(frames, device=device) % stride == 0
    count, joints = int(known.sum()), len(pipeline.codec.body.parents)
    features = torch.randn(count, config.feature_dim, generator=seeded).to(device)
    turned = sixd_to_matrix(torch.randn(count, joints, 6, generator=seeded)).to(device)
    said = BodyParams(turned[:, :1], turned[:, 1:], torch.zeros(count, pipeline.codec.body.num_betas, device=device))

    def run(batch: FrameBatch) -> None:
        inputs = torch.zeros(frames, config.input_dim, device=device)
        inputs[known] = decoder_inputs(config, pipeline.codec, features, said)
        decode_clip(pipeline.decoder, inputs, known, steps=pipeline.settings.steps)

    return run


def posing(pipeline: Pipeline, device: torch.device) -> Callable[[FrameBatch], object]:
    """Turns made-up pose numbers of a clip into rotations."""
    seeded = torch.Generator().manual_seed(0)
    pose = torch.randn(pipeline.settings.clip_frames, pipeline.decoder.config.pose_dim, generator=seeded).to(device)
    betas = torch.zeros(pipeline.settings.clip_frames, pipeline.codec.body.num_betas, device=device)
    return lambda batch: pipeline.codec.decode(pose, betas)


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _quartiles(values: np.ndarray) -> list[float]:
    """Between which the middle half lies."""
    return [float(value) for value in np.percentile(values, (25, 75))]
