"""Clips as stretches of time: what a network predicts on their frames, on every k-th of them, and in between.

A timeline runs from the first to the last frame wanted of a clip, frame by frame, whether a crop exists for each or
not. With a stride k the network sees the frames 0, k, 2k, … of it: ceil(T/k) of T. The last frame is not added where it
is not among them, as somebody who watches live does not know which frame is the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.io.together import in_turn, own_batches, process_of
from hmrcompress.metrics.pose import Outputs, Predict
from hmrcompress.records import BodyParams, FrameBatch, HMROutput
from hmrcompress.runtime import Progress, no_progress

LONGEST_HOLE = 30
"""Frames missing in a row beyond which a clip is cut in two: what lies on either side is no longer one movement."""


@dataclass(frozen=True)
class Timeline:
    """`length` frames of a clip (T), the first of which has the number `first`, and predictions for K of them.

    positions (K,) int64, ascending from 0; features (K,D) float32; params of K bodies, float32; seconds (T,) float64,
    rising, where frames do not follow each other evenly; all on one device.
    """

    clip: int
    first: int
    length: int
    positions: Tensor
    features: Tensor
    params: BodyParams
    seconds: Tensor | None = None

    @property
    def known(self) -> Tensor:
        """(T,) bool: for which frames there is a prediction."""
        known = torch.zeros(self.length, dtype=torch.bool, device=self.positions.device)
        known[self.positions] = True
        return known

    def spread(self, rows: Tensor) -> Tensor:
        """Rows (K,C) of the predictions in their places, zeros where there is none -> (T,C)."""
        spread = rows.new_zeros(self.length, rows.shape[1])
        spread[self.positions] = rows
        return spread

    def every(self, stride: int) -> Timeline:
        """The same stretch of time with the predictions at 0, k, 2k, … alone. UserError for a stride below 1."""
        if stride < 1:
            raise UserError(f"got {stride}, expected at least 1", "--stride")
        kept = self.positions % stride == 0
        return replace(
            self, positions=self.positions[kept], features=self.features[kept], params=_rows(self.params, kept)
        )


def spans(crops: CropSet, indices: np.ndarray) -> np.ndarray:
    """Indices of all frames from the first to the last chosen one of each clip, by clip and frame."""
    found = []
    for clip in np.unique(crops.clip[indices]):
        wanted = crops.frame[indices[crops.clip[indices] == clip]]
        frames = crops.frames_of(int(clip))
        inside = (crops.frame[frames] >= wanted.min()) & (crops.frame[frames] <= wanted.max())
        found.append(frames[inside])
    return np.concatenate(found)


@torch.no_grad()
def observe(
    outputs: Outputs,
    crops: CropSet,
    indices: np.ndarray,
    *,
    batch_size: int = 32,
    masks: MaskSource | None = None,
    progress: Progress = no_progress,
) -> list[Timeline]:
    """Runs a network once over these frames (indices by clip and frame, as `spans` gives them) -> a timeline a clip,
    more where more than `LONGEST_HOLE` frames are missing in a row. Processes that were launched together share the
    batches, and all have the timelines."""
    own, device = indices[own_batches(len(indices), batch_size)], torch.device("cpu")

    def run() -> Iterator[HMROutput]:
        nonlocal device
        done = 0
        for batch in crops.batches(own, batch_size, masks, truth=False) if len(own) else ():
            made = outputs(batch).to(torch.float32)
            device = made.features.device
            yield made if process_of()[1] == 1 else made.to("cpu")
            done += len(batch.clip)
            progress("network", done, len(own))

    made = in_turn(lambda: list(run()))
    features = torch.cat([each.features for each in made]).to(device)
    params = BodyParams(
        *(
            torch.cat([getattr(each, name) for each in made]).to(device)
            for name in ("global_orient", "body_pose", "betas")
        )
    )
    clip, frame = crops.clip[indices], crops.frame[indices]
    new = (clip[1:] != clip[:-1]) | (frame[1:] - frame[:-1] > LONGEST_HOLE + 1)
    timelines = []
    for part in np.split(np.arange(len(indices)), np.flatnonzero(new) + 1):
        first, rows = int(frame[part[0]]), torch.from_numpy(part).to(features.device)
        positions = torch.from_numpy(frame[part] - first).to(features.device)
        length = int(frame[part[-1]]) - first + 1
        timelines.append(Timeline(int(clip[part[0]]), first, length, positions, features[rows], _rows(params, rows)))
    return timelines


def neighbours(timeline: Timeline, lookahead: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """For every frame the predictions before and after it, rows (T,) and (T,) of the K, and the weight (T,) in 0..1 of
    the one after, by the time that has passed. It is 0 on a frame that has a prediction, after the last one, and where
    the next one is more than `lookahead` frames away and so not there yet."""
    positions = timeline.positions
    frame = torch.arange(timeline.length, device=positions.device)
    before = (torch.searchsorted(positions, frame, right=True) - 1).clamp(min=0)
    after = (before + 1).clamp(max=len(positions) - 1)
    waited = after > before
    if lookahead is not None:
        waited &= positions[after] - frame <= lookahead
    time = frame if timeline.seconds is None else timeline.seconds
    start, end = time[positions[before]], time[positions[after]]
    weight = ((time - start) / torch.where(end > start, end - start, 1)).to(torch.float32).clamp(max=1.0)
    return before, after, torch.where(waited, weight, 0.0)


def betas_in_time(timeline: Timeline, *, lookahead: int | None = None, median: bool = False) -> Tensor:
    """Shape coefficients (T,10): those predicted, linear in between, held where nothing follows within `lookahead`; or
    with `median` the median of all that were predicted."""
    betas = timeline.params.betas
    if median:
        return betas.quantile(0.5, dim=0).expand(timeline.length, -1)
    before, after, weight = neighbours(timeline, lookahead)
    return torch.lerp(betas[before], betas[after], weight[:, None])


def interpolated(timeline: Timeline, *, lookahead: int | None = None, median_shape: bool = False) -> BodyParams:
    """Every joint turned at a constant rate from one prediction to the next (slerp; Shoemake 1985), shape as
    `betas_in_time` -> T bodies. What is given for known frames is what was predicted."""
    before, after, weight = neighbours(timeline, lookahead)
    rotations = timeline.params.rotations
    between = turned(rotations[before], rotations[after], weight)
    betas = betas_in_time(timeline, lookahead=lookahead, median=median_shape)
    return BodyParams(between[:, :1], between[:, 1:], betas)


def turned(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Rotations (T,J,3,3) that are `weight` (T,) of the way from `start` to `end` along the shortest arc."""
    import roma

    turn = roma.rotmat_to_rotvec(start.transpose(-1, -2) @ end)
    between = start @ roma.rotvec_to_rotmat(weight[:, None, None] * turn)
    return torch.where((weight == 0)[:, None, None, None], start, between)


def sequence_predict(timelines: Sequence[Timeline], bodies: Sequence[BodyParams]) -> Predict:
    """Predicts, for a frame of a clip, what stands in `bodies` (T bodies a timeline) at that place.

    ShapeError for lengths that do not fit, UserError when asked for a frame outside of all timelines.
    """
    rows: dict[tuple[int, int], int] = {}
    for timeline, made in zip(timelines, bodies, strict=True):
        if len(made.betas) != timeline.length:
            raise ShapeError(f"got {len(made.betas)} bodies for {timeline.length} frames", "sequence")
        start = len(rows)
        rows |= {(timeline.clip, timeline.first + i): start + i for i in range(timeline.length)}
    joined = _joined(bodies)

    def predict(batch: FrameBatch) -> BodyParams:
        places = list(zip(batch.clip.tolist(), batch.frame.tolist(), strict=True))
        if missing := next((place for place in places if place not in rows), None):
            raise UserError("nothing was decoded there", f"clip {missing[0]}, frame {missing[1]}")
        return _rows(joined, torch.tensor([rows[place] for place in places], device=joined.betas.device))

    return predict


def stage_name(base: str, stride: int, strides: Sequence[int]) -> str:
    """`base` for the first of the strides, `base_stride_k` for the others."""
    return base if stride == strides[0] else f"{base}_stride_{stride}"


def _rows(params: BodyParams, rows: Tensor) -> BodyParams:
    return BodyParams(params.global_orient[rows], params.body_pose[rows], params.betas[rows])


def _joined(bodies: Sequence[BodyParams]) -> BodyParams:
    parts: Mapping[str, list[Tensor]] = {
        name: [getattr(each, name) for each in bodies] for name in ("global_orient", "body_pose", "betas")
    }
    return BodyParams(*(torch.cat(tensors) for tensors in parts.values()))
