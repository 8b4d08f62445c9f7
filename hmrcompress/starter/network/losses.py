"""What the starter network learns from: dense labels on its tokens first, body parameters afterwards.

The dense read-out is thrown away after training; it plays the part that 2D pose pretraining (ViTPose) plays for the
real networks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hmrcompress.body.model import BodyModel
from hmrcompress.records import CROP, HMROutput

JOINTS = 24
FOCAL_OVER_CROP = 5000.0 / 256.0
"""HMR2.0's focal length of 5000 pixels on a crop of 256, in crop heights."""


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch on a grid of R x C tokens, M = R*C.

    parts (B,M,25) shares of body parts and, last, of background; points (B,M,3) template positions in metres;
    spots (B,24,M) how each joint's position spreads over its nearest tokens (zero rows: outside the crop);
    rotations (B,24,3,3), betas (B,10), joints (B,24,3) metres relative to the root, keypoints (B,24,2) in crop heights
    from the centre.
    """

    parts: Tensor
    points: Tensor
    spots: Tensor
    rotations: Tensor
    betas: Tensor
    joints: Tensor
    keypoints: Tensor

    def at(self, chosen: Tensor | None) -> Targets:
        """The targets of the chosen tokens (B,M') alone; None: of all."""
        if chosen is None:
            return self
        points = chosen[..., None]
        return replace(
            self,
            parts=self.parts.gather(1, points.expand(-1, -1, self.parts.shape[-1])),
            points=self.points.gather(1, points.expand(-1, -1, 3)),
            spots=self.spots.gather(2, chosen[:, None].expand(-1, self.spots.shape[1], -1)),
        )


def joint_spots(keypoints: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear weights of every joint on the token grid. keypoints (B,24,2) crop heights -> (B,24,M).

    Joints outside the crop get zeros.
    """
    rows, columns = grid
    x = (keypoints[..., 0] * CROP.height / CROP.width + 0.5) * columns - 0.5
    y = (keypoints[..., 1] + 0.5) * rows - 0.5
    inside = (x > -0.5) & (x < columns - 0.5) & (y > -0.5) & (y < rows - 0.5)
    x, y = x.clamp(0, columns - 1), y.clamp(0, rows - 1)
    along = (1 - (x[..., None] - torch.arange(columns, device=x.device)).abs()).clamp(min=0)
    down = (1 - (y[..., None] - torch.arange(rows, device=y.device)).abs()).clamp(min=0)
    spots = (down[..., :, None] * along[..., None, :]).flatten(-2)
    return spots * inside[..., None]


class DenseReadout(nn.Module):
    """Tokens (B,M,D) -> joint logits (B,24,M), part logits (B,M,25), points (B,M,3), joint places (B,M,24,3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spots = nn.Linear(dim, JOINTS)
        self.parts = nn.Linear(dim, JOINTS + 1)
        self.points = nn.Linear(dim, 3)
        self.places = nn.Linear(dim, 3 * JOINTS)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        places = self.places(tokens).unflatten(-1, (JOINTS, 3))
        return self.spots(tokens).transpose(1, 2), self.parts(tokens), self.points(tokens), places


def dense_losses(readout: tuple[Tensor, Tensor, Tensor, Tensor], target: Targets) -> dict[str, Tensor]:
    """Token losses: cross-entropies of joint spots and parts, L1 of template points and of joint places."""
    spots, parts, points, places = (tensor.float() for tensor in readout)
    inside = target.spots.sum(-1)
    total = inside.sum().clamp(min=1)
    spot = -(target.spots * spots.log_softmax(-1)).sum() / total
    part = -(target.parts * parts.log_softmax(-1)).sum(-1).mean()
    person = 1 - target.parts[..., -1]
    point = ((points - target.points).abs().sum(-1) * person).sum() / person.sum().clamp(min=1)
    # Each joint's place relative to the root is read off the tokens that hold the joint.
    read = torch.einsum("bjm,bmjc->bjc", target.spots, places)
    place = ((read - target.joints * inside[..., None]).abs().sum(-1)).sum() / total
    return {"spot": spot, "part": part, "point": point, "place": place}


def body_losses(output: HMROutput, target: Targets, body: BodyModel) -> dict[str, Tensor]:
    """Losses on 3D joints (L1, metres), rotations (squared Frobenius), betas, projected joints (L1, crop heights)."""
    output = output.to(torch.float32)
    joints = body.joints(output.params)
    root = joints[:, :1]
    predicted = joints - root
    joint = (predicted - target.joints).abs().sum(-1).mean()
    rotations = output.params.rotations
    difference = (rotations - target.rotations).square().sum((-1, -2))
    scale, shift = output.cam[:, :1], output.cam[:, 1:]
    depth = 2 * FOCAL_OVER_CROP / (scale.clamp(min=0.1))
    moved = predicted + torch.cat([shift, depth], dim=-1)[:, None]
    flat = FOCAL_OVER_CROP * moved[..., :2] / moved[..., 2:].clamp(min=0.5)
    keypoint = (flat - target.keypoints).abs().sum(-1).clamp(max=1.0).mean()
    return {
        "joint": joint,
        "root": difference[:, 0].mean(),
        "pose": difference[:, 1:].mean(),
        "betas": (output.betas - target.betas).square().mean(),
        "keypoint": keypoint,
    }


DENSE_WEIGHTS = {"spot": 1.0, "part": 2.0, "point": 1.0, "place": 1.0}
BODY_WEIGHTS = {"joint": 5.0, "root": 0.3, "pose": 2.0, "betas": 0.02, "keypoint": 2.0}


def weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Their sum with the given weights."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
