"""HaMeR (Pavlakos et al., CVPR 2024): HMR2.0's architecture on crops of right hands, with MANO's 16 rotations.

Key names are those of the original checkpoints (`mano_head.*`). `HMROutput.global_orient` is the wrist, `body_pose`
the 15 joints of the fingers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hmrcompress.models.families.family import BACKBONE, DepthLine, Family
from hmrcompress.models.heads import SMPLHead
from hmrcompress.models.network import HMR2, NetworkConfig


@dataclass(frozen=True)
class HaMeRConfig(NetworkConfig):
    """Every size of a HaMeR network; the defaults are the published one."""

    family: ClassVar[str] = "hamer"
    num_joints: int = 16


class ManoHead(SMPLHead):
    """The same head, whose mean pose is called `init_hand_pose`."""

    pose_name = "init_hand_pose"


class HaMeR(HMR2):
    """images (B,3,H,W) of right hands -> HMROutput with 1 + 15 rotations."""

    config_class = HaMeRConfig
    head_class = ManoHead
    head_name = "mano_head"


FAMILY = Family(
    name="hamer",
    title="HaMeR",
    network=HaMeR,
    has=(*BACKBONE, "mano_head.decpose.weight", "mano_head.init_hand_pose"),
    ignored=("discriminator.", "mano.", "initialized"),
    depth_line=DepthLine("HaMeR", "hamer/models/backbones/vit.py", "vit(cfg)"),
)
