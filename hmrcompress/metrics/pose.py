"""The one accumulator of pose errors, for search, evaluation, export and training; the errors are in `points.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmrcompress.errors import ShapeError
from hmrcompress.metrics import points
from hmrcompress.metrics.measure import Measure, ScoringBody
from hmrcompress.metrics.points import PROTOCOLS, STARTER24, Protocol, accel, joint_errors, mpjpe, pa_mpjpe, pve
from hmrcompress.records import BodyParams, FrameBatch, HMROutput
from hmrcompress.runtime import autocast

__all__ = [
    "Measure",
    "PROTOCOLS",
    "STARTER24",
    "Outputs",
    "Predict",
    "Protocol",
    "Scores",
    "ScoringBody",
    "accel",
    "constant_predict",
    "joint_errors",
    "mpjpe",
    "network_outputs",
    "network_predict",
    "pa_mpjpe",
    "pve",
    "score",
    "score_all",
]

Outputs = Callable[[FrameBatch], HMROutput]
Predict = Callable[[FrameBatch], BodyParams]


@dataclass(frozen=True)
class Raw:
    """What a batch of B frames gives: clip and frame (B,), the true points (B,P,3), and by predictor the predicted ones
    and the errors (B,) in mm of the vertices, where they are wanted."""

    clip: Tensor
    frame: Tensor
    target: Tensor
    joints: dict[str, Tensor]
    vertex_errors: dict[str, Tensor]

    def on_cpu(self) -> Raw:
        """The same, to be sent to another process."""
        parts = ({name: each.cpu() for name, each in part.items()} for part in (self.joints, self.vertex_errors))
        return Raw(self.clip, self.frame, self.target.cpu(), *parts)


Together = Callable[[Iterable[Raw]], list[Raw]]


def network_outputs(network: torch.nn.Module, *, dtype: torch.dtype = torch.float32) -> Outputs:
    """How a network (see `HMR2.forward`) -> HMROutput runs on a batch: where it lies, computing in `dtype`."""
    device = next(network.parameters()).device

    def outputs(batch: FrameBatch) -> HMROutput:
        with torch.no_grad(), autocast(device, dtype):
            return network(*batch.inputs(device))

    return outputs


def network_predict(network: torch.nn.Module, *, dtype: torch.dtype = torch.float32) -> Predict:
    """The bodies that `network_outputs` gives."""
    outputs = network_outputs(network, dtype=dtype)
    return lambda batch: outputs(batch).params


def constant_predict(params: BodyParams) -> Predict:
    """Predicts the same parameters (a batch of one) for every frame."""

    def predict(batch: FrameBatch) -> BodyParams:
        count = len(batch.clip)
        parts = (part.expand(count, *part.shape[1:]) for part in (params.global_orient, params.body_pose, params.betas))
        return BodyParams(*parts)

    return predict


@dataclass(frozen=True)
class Scores:
    """The errors of N frames. Means are over frames (for accelerations over triples); None where not measured."""

    protocol: str
    clip: np.ndarray
    """(N,) clip of each frame."""
    frame: np.ndarray
    """(N,) its number in the clip."""
    per_joint: np.ndarray
    """(N,K) mm, the joints of the protocol, pelvis on pelvis."""
    per_frame_pa: np.ndarray
    """(N,) mm after the best similarity."""
    per_frame_pve: np.ndarray | None
    """(N,) mm over vertices."""
    per_triple_accel: np.ndarray
    """(M,) mm per frame squared."""
    triple: np.ndarray
    """(M,) index of each triple's middle frame among the N."""
    published_accel: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(P,) the same as the field's scripts count it: across gaps, without the first and the last of each clip."""
    published_triple: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(P,) index of each middle frame."""
    fps: float | None = None
    """Frames a second, where accelerations are wanted in m/s² too."""
    placed: np.ndarray | None = None
    """(N,K,3) metres: the predicted joints of the protocol, relative to the predicted pelvis."""

    @property
    def per_frame(self) -> np.ndarray:
        """(N,) MPJPE in mm."""
        return self.per_joint.mean(1)

    @property
    def mpjpe_mm(self) -> float:
        """MPJPE; NaN as soon as one prediction is not finite."""
        return float(self.per_frame.mean())

    @property
    def pa_mpjpe_mm(self) -> float:
        """MPJPE after the best similarity per frame."""
        return float(self.per_frame_pa.mean())

    @property
    def pve_mm(self) -> float | None:
        """Per-vertex error."""
        return None if self.per_frame_pve is None else float(self.per_frame_pve.mean())

    @property
    def accel_mm_per_frame2(self) -> float | None:
        """Acceleration error; None where no three frames follow each other."""
        return float(self.per_triple_accel.mean()) if len(self.per_triple_accel) else None

    @property
    def accel_m_per_s2(self) -> float | None:
        """The same in m/s²: 1 mm per frame squared is 0.9 m/s² at 30 frames a second."""
        return self._per_second(self.accel_mm_per_frame2)

    @property
    def accel_published_m_per_s2(self) -> float | None:
        """Acceleration error in m/s² as published figures count it; see `points.accel`."""
        return self._per_second(float(self.published_accel.mean())) if len(self.published_accel) else None

    def _per_second(self, mm_per_frame2: float | None) -> float | None:
        return None if mm_per_frame2 is None or self.fps is None else mm_per_frame2 * self.fps**2 / points.MM

    @property
    def per_joint_mm(self) -> np.ndarray:
        """(K,) mean over the frames."""
        return self.per_joint.mean(0)

    @property
    def n_frames(self) -> int:
        """N."""
        return len(self.clip)

    @property
    def n_clips(self) -> int:
        """How many clips the frames come from."""
        return len(np.unique(self.clip))

    def distance_mm(self, other: Scores) -> np.ndarray:
        """(N,) mm: how far these joints are from another prediction's for the same frames, pelvis on pelvis, mean over
        the joints. An error may stay as it was while the bodies change; this does not. ShapeError for other frames."""
        if self.placed is None or other.placed is None or self.placed.shape != other.placed.shape:
            raise ShapeError("got predictions of other frames or joints", "distance")
        return np.linalg.norm(self.placed - other.placed, axis=-1).mean(1) * points.MM

    def first_not_finite(self) -> tuple[int, int] | None:
        """(clip, frame) of the first frame whose prediction is not finite, or None."""
        bad = np.flatnonzero(~np.isfinite(self.per_joint).all(1))
        return (int(self.clip[bad[0]]), int(self.frame[bad[0]])) if len(bad) else None

    def of_clip(self, clip: int) -> Scores:
        """The scores of one clip's frames alone."""
        kept = np.flatnonzero(self.clip == clip)
        inside, published = np.isin(self.triple, kept), np.isin(self.published_triple, kept)
        return Scores(
            protocol=self.protocol,
            clip=self.clip[kept],
            frame=self.frame[kept],
            per_joint=self.per_joint[kept],
            per_frame_pa=self.per_frame_pa[kept],
            per_frame_pve=None if self.per_frame_pve is None else self.per_frame_pve[kept],
            per_triple_accel=self.per_triple_accel[inside],
            triple=np.searchsorted(kept, self.triple[inside]),
            published_accel=self.published_accel[published],
            published_triple=np.searchsorted(kept, self.published_triple[published]),
            fps=self.fps,
            placed=None if self.placed is None else self.placed[kept],
        )

    def to_json(self) -> dict[str, Any]:
        """{mpjpe_mm, pa_mpjpe_mm[, pve_mm][, accel_mm_per_frame2][, accel_m_per_s2][, accel_published_m_per_s2],
        n_frames, n_clips, protocol}."""
        figures = {
            "mpjpe_mm": self.mpjpe_mm,
            "pa_mpjpe_mm": self.pa_mpjpe_mm,
            "pve_mm": self.pve_mm,
            "accel_mm_per_frame2": self.accel_mm_per_frame2,
            "accel_m_per_s2": self.accel_m_per_s2,
            "accel_published_m_per_s2": self.accel_published_m_per_s2,
            "n_frames": self.n_frames,
            "n_clips": self.n_clips,
            "protocol": self.protocol,
        }
        return {name: value for name, value in figures.items() if value is not None}


def score(
    predict: Predict,
    batches: Iterable[FrameBatch],
    *,
    body: ScoringBody | Measure,
    protocol: Protocol = STARTER24,
    device: torch.device | str = "cpu",
    pve: bool = True,
    fps: float | None = None,
) -> Scores:
    """The errors of `predict` over all batches. Both sides' points come from `body`, which lies on `device`.

    `body` may be a `Measure`, for protocols that look at more than one body's joints; its protocol then counts.
    Vertices are computed only for `pve`. Predictions that are not finite make NaN; see `Scores.first_not_finite`.
    Raises ShapeError where there is no batch at all.
    """
    return score_all({"": predict}, batches, body=body, protocol=protocol, device=device, pve=pve, fps=fps)[""]


@torch.no_grad()
def score_all(
    predictors: Mapping[str, Predict],
    batches: Iterable[FrameBatch],
    *,
    body: ScoringBody | Measure,
    protocol: Protocol = STARTER24,
    device: torch.device | str = "cpu",
    pve: bool = True,
    fps: float | None = None,
    together: Together = list,
) -> dict[str, Scores]:
    """`score` of several predictors in one pass over the data. together: makes of what was measured on these batches
    that of all batches, where other processes have others of them."""
    measure = body if isinstance(body, Measure) else Measure(body, protocol)
    pve = pve and measure.has_true_vertices
    found = together(_raw(batch, predictors, measure, device, pve) for batch in batches)
    if not found:
        raise ShapeError("got no frames, expected at least one", "score")
    times = torch.cat([each.clip for each in found]), torch.cat([each.frame for each in found])
    targets = torch.cat([each.target.to(device) for each in found])
    return {
        name: _scores(
            torch.cat([each.joints[name].to(device) for each in found]),
            targets,
            times,
            [each.vertex_errors[name].to(device) for each in found] if pve else [],
            measure.protocol,
            fps,
        )
        for name in predictors
    }


def _raw(
    batch: FrameBatch, predictors: Mapping[str, Predict], measure: Measure, device: torch.device | str, pve: bool
) -> Raw:
    there = batch.without_images().to(device=device, dtype=torch.float32)
    target = measure.truth(there, vertices=pve)
    joints: dict[str, Tensor] = {}
    vertex_errors: dict[str, Tensor] = {}
    for name, predict in predictors.items():
        pred = measure.predicted(predict(batch).to(device=device, dtype=torch.float32), vertices=pve)
        joints[name] = pred.joints
        if pve:
            vertex_errors[name] = points.pve(pred, target, measure.protocol)
    return Raw(batch.clip.cpu(), batch.frame.cpu(), target.joints, joints, vertex_errors)


def _scores(
    pred: Tensor,
    target: Tensor,
    times: tuple[Tensor, Tensor],
    vertex_errors: list[Tensor],
    protocol: Protocol,
    fps: float | None,
) -> Scores:
    errors, triple = accel(pred, target, *times, protocol)
    published, published_triple = accel(pred, target, *times, protocol, as_published=True)
    return Scores(
        protocol=protocol.name,
        clip=times[0].numpy(),
        frame=times[1].numpy(),
        per_joint=joint_errors(pred, target, protocol).cpu().numpy(),
        per_frame_pa=pa_mpjpe(pred, target, protocol).cpu().numpy(),
        per_frame_pve=torch.cat(vertex_errors).cpu().numpy() if vertex_errors else None,
        per_triple_accel=errors.cpu().numpy(),
        triple=triple.cpu().numpy(),
        published_accel=published.cpu().numpy(),
        published_triple=published_triple.cpu().numpy(),
        fps=fps,
        placed=points.centred(pred, pred, protocol)[:, list(protocol.joints)].cpu().numpy(),
    )
