"""HMR2.0 (Goel et al., ICCV 2023), the network of 4D-Humans; its class is the base of all families."""

from __future__ import annotations

from hmrcompress.models.families.family import BACKBONE, DepthLine, Family
from hmrcompress.models.network import HMR2

FAMILY = Family(
    name="hmr2",
    title="HMR2.0",
    network=HMR2,
    has=(*BACKBONE, "smpl_head.decpose.weight", "smpl_head.init_body_pose"),
    lacks=("smpl_head.deckp.weight", "st_module.l1.weight", "motion_module.l1.weight"),  # CameraHMR, TRAM
    depth_line=DepthLine(
        "4D-Humans",
        "hmr2/models/backbones/vit.py",
        "vit(cfg)",
        note="in the last of the two calls; the first is a smaller variant",
    ),
)
