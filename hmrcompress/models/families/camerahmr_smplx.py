"""CameraHMR's network for SMPL-X (Patel and Black, 3DV 2025): HMR2.0's backbone, and a head whose query is the crop's
box and the focal length alone. Body and hands have read-outs of their own. Key names are those of the original files.

`HMROutput.body_pose` are SMPL-X's 54 joints below the pelvis: 21 of the body, jaw and eyes, 15 of the left hand, 15 of
the right. The head reads numbers for jaw and eyes out too; the original poses the body without them, and so they stand
still here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hmrcompress.body.whole import FACE, WHOLE_JOINTS
from hmrcompress.data.conditions import CONDITION
from hmrcompress.errors import UserError
from hmrcompress.models.families.family import BACKBONE, DepthLine, Family
from hmrcompress.models.heads import SMPLHead
from hmrcompress.models.layers import Linear
from hmrcompress.models.network import HMR2, NetworkConfig, Shape

BODY, HANDS = 25, 30
"""Rotations of the two read-outs."""


@dataclass(frozen=True)
class CameraHMRXConfig(NetworkConfig):
    """Every size of CameraHMR's network for SMPL-X; the defaults are the published one. Its query never holds the mean
    parameters."""

    family: ClassVar[str] = "camerahmr_smplx"
    num_joints: int = len(WHOLE_JOINTS)
    num_betas: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_input != "zero":
            raise UserError(f"got {self.token_input!r}, this query holds no mean parameters: zero", "token_input")
        if self.num_joints != len(WHOLE_JOINTS):
            raise UserError(f"got {self.num_joints}, SMPL-X has {len(WHOLE_JOINTS)} joints", "num_joints")


class WholeBodyHead(SMPLHead):
    """The query is the condition; `decpose` reads 25 rotations, `dechandpose` those of both hands."""

    init_body_pose: Tensor
    init_hand_pose: Tensor

    def __init__(self, **sizes: Any) -> None:
        super().__init__(more_inputs=CONDITION, **sizes)

    def make_mean_pose(self, pose: int) -> None:
        self.register_buffer("init_body_pose", torch.zeros(1, 6 * BODY))
        self.register_buffer("init_hand_pose", torch.zeros(6 * HANDS))  # without a batch, as in the original

    def own_inputs(self, estimate: int) -> int:
        return 0

    def make_pose_readout(self, width: int, pose: int) -> None:
        self.decpose = Linear(width, 6 * BODY)
        self.dechandpose = Linear(width, 6 * HANDS)

    @property
    def init_pose(self) -> Tensor:
        return torch.cat([self.init_body_pose, self.init_hand_pose[None]], dim=-1)

    def query(self, estimate: Tensor, condition: Tensor | None) -> Tensor:
        """estimate (B,346), condition (B,3) -> the condition."""
        assert condition is not None
        return condition.to(estimate.dtype)

    def read_pose(self, features: Tensor) -> Tensor:
        return torch.cat([self.decpose(features), self.dechandpose(features)], dim=-1)

    def rotations(self, pose: Tensor) -> Tensor:
        """(B,330) -> (B,55,3,3), those of the face identities."""
        found = super().rotations(pose)
        still = torch.eye(3, dtype=found.dtype, device=found.device).expand(found.shape[0], len(FACE), 3, 3)
        return torch.cat([found[:, : FACE[0]], still, found[:, FACE[-1] + 1 :]], dim=1)


class CameraHMRX(HMR2):
    """images (B,3,H,W), person_mask, condition (B,3) of `data.conditions.bbox_info` -> HMROutput with 1 + 54
    rotations and 16 betas."""

    config_class = CameraHMRXConfig
    head_class = WholeBodyHead
    head_name = "smplx_head"
    conditioned = True

    @classmethod
    def head_sizes(cls, state: Mapping[str, Tensor], shape: Shape) -> dict[str, Any]:
        readouts = (f"{cls.head_name}.{name}.weight" for name in ("decpose", "dechandpose"))
        return {"num_joints": sum(shape(name)[0] for name in readouts) // 6}


FAMILY = Family(
    name="camerahmr_smplx",
    title="CameraHMR (SMPL-X)",
    network=CameraHMRX,
    has=(*BACKBONE, "smplx_head.decpose.weight", "smplx_head.dechandpose.weight"),
    ignored=("discriminator.", "smplx.", "smplx_layer.", "initialized"),
    depth_line=DepthLine("CameraHMR", "core/backbones/vit.py", "vit()"),
)
