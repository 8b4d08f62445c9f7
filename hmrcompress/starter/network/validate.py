"""Validation while training: a few frames of every clip of `val`, at the resolution of the stage."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hmrcompress.body.files import starter_body
from hmrcompress.body.model import BodyModel
from hmrcompress.data.masks import mask_source
from hmrcompress.geometry.rotations import matrix_to_sixd, sixd_to_matrix
from hmrcompress.metrics.pose import constant_predict, score
from hmrcompress.models.network import HMR2
from hmrcompress.motion import rotvec
from hmrcompress.records import CROP, BodyParams, FrameBatch
from hmrcompress.runtime import autocast, fast_dtype
from hmrcompress.starter.data.dataset import open_split
from hmrcompress.starter.scene.camera import FLIP
from hmrcompress.starter.scene.world import SPLITS, make_clip

FRAMES_PER_CLIP = 36
MEAN_CLIPS, MEAN_FRAMES = 128, 96
MEAN_CAMERA = (0.95, 0.0, 0.0)
"""A person that fills the crop as the boxes of the data set have it, in HMR2.0's weak-perspective terms."""


@cache
def mean_state() -> dict[str, Tensor]:
    """The mean parameters of the starter network, by their keys in the state dict.

    The chordal mean of every joint's rotation over training clips, upright and facing the camera; betas zero.
    """
    body = starter_body()
    total = np.zeros((24, 3, 3))
    for index in range(MEAN_CLIPS):
        total += rotvec.to_matrix(make_clip(SPLITS["train"], index, body, MEAN_FRAMES).poses[::8]).sum(axis=0)
    left, _, right = np.linalg.svd(total)
    left[..., -1] *= np.linalg.det(left @ right)[..., None]
    mean = left @ right
    mean[0] = FLIP
    sixd = matrix_to_sixd(torch.from_numpy(mean.astype(np.float32)))
    return {
        "smpl_head.init_body_pose": sixd.reshape(1, 144),
        "smpl_head.init_betas": torch.zeros(1, 10),
        "smpl_head.init_cam": torch.tensor([MEAN_CAMERA]),
    }


def shrunk(batch: FrameBatch, size: tuple[int, int]) -> FrameBatch:
    """The crops at another resolution that divides theirs (means over blocks); masks are left out then."""
    factor = CROP.height // size[0]
    if factor == 1:
        return batch
    return replace(batch, images=F.avg_pool2d(batch.images, factor), person_mask=None)


class Validator:
    """Scores a network on a sample of `starter:dev`. Renders the split at the first use."""

    def __init__(self, body: BodyModel, device: torch.device) -> None:
        self.body, self.device = body, device
        self.data = open_split("dev", body)
        self.indices = self.data.sample(FRAMES_PER_CLIP)
        state = mean_state()
        rotations = sixd_to_matrix(state["smpl_head.init_body_pose"].view(1, 24, 6))
        constant = BodyParams(rotations[:, :1], rotations[:, 1:], state["smpl_head.init_betas"])
        batches = self.data.batches(self.indices, 48, mask_source("none"))
        mean = score(constant_predict(constant), batches, body=starter_body(), pve=False)
        self.mean = {"mean_pose_mpjpe_mm": round(mean.mpjpe_mm, 2), "mean_pose_pa_mpjpe_mm": round(mean.pa_mpjpe_mm, 2)}

    def __call__(self, network: HMR2, size: tuple[int, int]) -> dict[str, float]:
        """{mpjpe_mm, pa_mpjpe_mm, and those of the mean pose} of a network in evaluation mode, on crops of `size`."""

        def predict(batch: FrameBatch) -> BodyParams:
            with torch.inference_mode(), autocast(self.device, fast_dtype(self.device)):
                output = network(shrunk(batch, size).images.to(self.device))
            return output.to(torch.float32).params

        batches = (batch.to(self.device) for batch in self.data.batches(self.indices, 48, mask_source("none")))
        scores = score(predict, batches, body=self.body, device=self.device, pve=False)
        figures = {"mpjpe_mm": round(scores.mpjpe_mm, 2), "pa_mpjpe_mm": round(scores.pa_mpjpe_mm, 2)}
        return figures | self.mean
