"""CameraHMR (Patel and Black, 3DV 2025): HMR2.0's backbone, and a head whose query is told the crop's box and the
focal length; one more read-out, `deckp`, gives dense keypoints. Key names are those of the original checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hmrcompress.data.conditions import CONDITION
from hmrcompress.errors import UserError
from hmrcompress.models.families.family import BACKBONE, DepthLine, Family
from hmrcompress.models.heads import SMPLHead
from hmrcompress.models.layers import Linear
from hmrcompress.models.network import HMR2, NetworkConfig, Shape


@dataclass(frozen=True)
class CameraHMRConfig(NetworkConfig):
    """Every size of a CameraHMR network; the defaults are the published one. Its query always holds the mean
    parameters; `keypoints` are those of `deckp`."""

    family: ClassVar[str] = "camerahmr"
    token_input: str = "mean_shape"
    keypoints: int = 44

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_input != "mean_shape":
            raise UserError(f"got {self.token_input!r}, CameraHMR's query is always mean_shape", "token_input")


class CameraHead(SMPLHead):
    """The query is (condition, pose, betas, camera): 3 + 144 + 10 + 3 numbers at the published size."""

    def __init__(self, *, width: int, keypoints: int, **sizes: Any) -> None:
        super().__init__(width=width, more_inputs=CONDITION, **sizes)
        self.deckp = Linear(width, 2 * keypoints)

    def query(self, estimate: Tensor, condition: Tensor | None) -> Tensor:
        """estimate (B,6J+S+3), condition (B,3) -> (B,3+6J+S+3)."""
        assert condition is not None
        return torch.cat([condition.to(estimate.dtype), estimate], dim=-1)

    def read_keypoints(self, features: Tensor) -> Tensor:
        """Features (B,width) -> (B,K,2)."""
        return self.deckp(features).unflatten(-1, (-1, 2))


class CameraHMR(HMR2):
    """images (B,3,H,W), person_mask, condition (B,3) of `data.conditions.bbox_info` -> HMROutput with keypoints."""

    config_class = CameraHMRConfig
    head_class = CameraHead
    conditioned = True

    @classmethod
    def head_arguments(cls, config: NetworkConfig) -> dict[str, Any]:
        assert isinstance(config, CameraHMRConfig)
        return super().head_arguments(config) | {"keypoints": config.keypoints}

    @classmethod
    def head_sizes(cls, state: Mapping[str, Tensor], shape: Shape) -> dict[str, Any]:
        return super().head_sizes(state, shape) | {"keypoints": shape("smpl_head.deckp.weight")[0] // 2}


FAMILY = Family(
    name="camerahmr",
    title="CameraHMR",
    network=CameraHMR,
    has=(*BACKBONE, "smpl_head.decpose.weight", "smpl_head.deckp.weight"),
    depth_line=DepthLine("CameraHMR", "core/backbones/vit.py", "vit()"),
)
