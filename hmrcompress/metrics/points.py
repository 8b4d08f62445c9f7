"""Pose errors between point sets, and the named protocols that say which points.

All functions compute in float64, whatever they are given, and leave their inputs alone. Points are in metres in any
frame that prediction and target share; errors are millimetres, accelerations millimetres per frame squared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.errors import ShapeError
from hmrcompress.records import BodyOutput

MM = 1000.0
DEGENERATE = 1e-24
"""Variance (square metres, float64) under which a cloud of points counts as one single point."""


H36M_TO_14 = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)
"""The 14 joints of the field's comparisons among Human3.6M's 17: ankles, knees, hips, wrists, elbows, shoulders (right
leg up, left leg down, right arm up, left arm down), neck, top of the head."""
NAMES_14 = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head",
)  # fmt: skip
H36M_PELVIS, H36M_HIPS = (0,), (4, 1)
EXTRA_14 = (*range(13), 18)
"""The same 14 among the 19 extra keypoints of 4D-Humans: keypoints 25-37 and 43 of its 44."""
EXTRA_PELVIS = (14,)
"""Keypoint 39 of the 44."""
Source = Literal["kinematic", "own regressor", "h36m", "extra"]
ROWS: dict[Source, int] = {"h36m": 17, "extra": 19}
"""Points of the sources that need a regressor from the user."""


@dataclass(frozen=True)
class Protocol:
    """What a pose error is measured on.

    joints: which of the source's points count; pelvis: the points whose mean is the pelvis. source: where the points
    come from: the body's kinematic joints; its own joint regressor on posed vertices; the Human3.6M regressor (17 rows)
    or that of 4D-Humans' extra keypoints (19 rows) on posed vertices. truth: whether the ground truth are poses of a
    body, or keypoints that the data give. gendered: whether true poses are those of bodies of the person's gender;
    predictions are always those of the neutral body.
    """

    name: str
    joints: tuple[int, ...]
    pelvis: tuple[int, ...]
    note: str = ""
    source: Source = "kinematic"
    truth: Literal["body", "keypoints"] = "body"
    gendered: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the joints that count: those of SMPL, or the 14 of comparisons; else (hands) their numbers."""
        known = {"h36m": NAMES_14, "extra": NAMES_14}.get(self.source, SMPL_JOINTS)
        return known if len(self.joints) == len(known) else tuple(str(joint) for joint in self.joints)


STARTER24 = Protocol("starter24", tuple(range(24)), (0,), "the body's 24 kinematic joints, aligned at joint 0")
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        STARTER24,
        Protocol(
            "3dpw14-wham",
            H36M_TO_14,
            H36M_HIPS,
            "14 joints by the Human3.6M regressor, aligned between the hips; gendered ground truth, neutral prediction",
            source="h36m",
            gendered=True,
        ),
        Protocol(
            "3dpw14-camerahmr",
            H36M_TO_14,
            H36M_PELVIS,
            "the same 14 joints, aligned at Human3.6M's joint 0; gendered ground truth, neutral prediction",
            source="h36m",
            gendered=True,
        ),
        Protocol(
            "3dpw14-4dhumans",
            EXTRA_14,
            EXTRA_PELVIS,
            "keypoints 25-37 and 43 of the 44 of 4D-Humans, aligned at keypoint 39; the data's own keypoints are true",
            source="extra",
            truth="keypoints",
        ),
        Protocol(
            "emdb24-kinematic",
            tuple(range(24)),
            (1, 2),
            "the 24 kinematic joints, aligned between the hips; gendered ground truth, neutral prediction",
            gendered=True,
        ),
        Protocol(
            "emdb24-regressed",
            tuple(range(24)),
            (1, 2),
            "24 joints by the body's own regressor on posed vertices, aligned between the hips; neutral on both sides",
            source="own regressor",
        ),
    )
}


def centred(points: Tensor, joints: Tensor, protocol: Protocol) -> Tensor:
    """points (B,P,3) minus the pelvis of joints (B,J,3) -> (B,P,3) float64 metres."""
    joints = _checked(joints, "joints")
    if max((*protocol.joints, *protocol.pelvis)) >= joints.shape[1]:
        raise ShapeError(f"got {joints.shape[1]} joints, too few for protocol {protocol.name}", "joints")
    return _checked(points, "points") - joints[:, list(protocol.pelvis)].mean(1, keepdim=True)


def joint_errors(pred: Tensor, target: Tensor, protocol: Protocol = STARTER24) -> Tensor:
    """pred, target: all joints (B,J,3) metres -> distances (B,K) mm of the protocol's K joints, pelvis on pelvis."""
    _same(pred, target)
    chosen = list(protocol.joints)
    difference = centred(pred, pred, protocol)[:, chosen] - centred(target, target, protocol)[:, chosen]
    return difference.norm(dim=-1) * MM


def mpjpe(pred: Tensor, target: Tensor, protocol: Protocol = STARTER24) -> Tensor:
    """Mean per-joint position error, pelvis on pelvis. (B,J,3) metres -> (B,) mm. After Human3.6M (Ionescu 2014)."""
    return joint_errors(pred, target, protocol).mean(1)


def pa_mpjpe(pred: Tensor, target: Tensor, protocol: Protocol = STARTER24) -> Tensor:
    """The same after the best similarity per frame. (B,J,3) metres -> (B,) mm; NaN only for inputs not finite."""
    _same(pred, target)
    chosen = list(protocol.joints)
    pred, target = _checked(pred, "pred")[:, chosen], _checked(target, "target")[:, chosen]
    return (similarity_aligned(pred, target) - target).norm(dim=-1).mean(1) * MM


def similarity_aligned(points: Tensor, target: Tensor) -> Tensor:
    """points moved onto target by the least-squares scale, rotation and translation. (B,K,3) -> (B,K,3) float64.

    A rotation never mirrors. Points that all coincide go to the target's centroid (scale 0). Frames with values that
    are not finite become NaN. After Umeyama (1991).
    """
    _same(points, target)
    points, target = _checked(points, "points"), _checked(target, "target")
    finite = (points.isfinite() & target.isfinite()).all(-1).all(-1)[:, None, None]
    points, target = (torch.where(finite, values, 0.0) for values in (points, target))
    middle = target.mean(1, keepdim=True)
    source, goal = points - points.mean(1, keepdim=True), target - middle
    u, s, vh = torch.linalg.svd(source.transpose(1, 2) @ goal)
    sign = torch.ones_like(s)
    sign[:, 2] = torch.where(torch.det(u @ vh) < 0, -1.0, 1.0)
    variance = source.square().sum((1, 2))
    apart = variance > DEGENERATE
    scale = torch.where(apart, (s * sign).sum(1) / torch.where(apart, variance, 1.0), 0.0)
    aligned = scale[:, None, None] * (source @ (u * sign[:, None]) @ vh) + middle
    return torch.where(finite, aligned, torch.nan)


def pve(pred: BodyOutput, target: BodyOutput, protocol: Protocol = STARTER24) -> Tensor:
    """Per-vertex error, pelvis on pelvis. vertices (B,V,3), joints (B,J,3) metres -> (B,) mm."""
    _same(pred.vertices, target.vertices)
    difference = centred(pred.vertices, pred.joints, protocol) - centred(target.vertices, target.joints, protocol)
    return difference.norm(dim=-1).mean(1) * MM


def accel(
    pred: Tensor,
    target: Tensor,
    clip: Tensor,
    frame: Tensor,
    protocol: Protocol = STARTER24,
    *,
    as_published: bool = False,
) -> tuple[Tensor, Tensor]:
    """Error of the second difference in time of the pelvis-centred joints, over consecutive frames of a clip.

    pred, target (N,J,3) metres, clip and frame (N,) in any order -> errors (M,) in mm per frame squared (mean over
    joints) and the index (M,) of each triple's middle frame; M is 0 where no three frames follow each other.

    as_published: as the scripts of WHAM and its followers count. Frames of a clip follow each other as they are listed,
    across gaps, and the first and the last difference of every clip are dropped.
    """
    _same(pred, target)
    order = torch.from_numpy(np.lexsort((frame.cpu().numpy(), clip.cpu().numpy()))).to(pred.device)
    clip, frame, chosen = clip.to(pred.device)[order], frame.to(pred.device)[order], list(protocol.joints)
    follows = clip[1:] == clip[:-1]
    if not as_published:
        follows = follows & (frame[1:] == frame[:-1] + 1)
    triples = follows[1:] & follows[:-1]
    if as_published:
        padded = torch.nn.functional.pad(triples, (1, 1))
        triples = triples & padded[:-2] & padded[2:]
    middle = torch.nonzero(triples)[:, 0] + 1
    offset = (centred(pred, pred, protocol) - centred(target, target, protocol))[order][:, chosen]
    second = offset[middle + 1] - 2 * offset[middle] + offset[middle - 1]
    return second.norm(dim=-1).mean(1) * MM, order[middle]


def _checked(points: Tensor, what: str) -> Tensor:
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ShapeError(f"got shape {tuple(points.shape)}, expected (B, points, 3)", what)
    return points.double()


def _same(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape:
        raise ShapeError(
            f"got {tuple(pred.shape)} for the prediction and {tuple(target.shape)} for the target", "points"
        )
