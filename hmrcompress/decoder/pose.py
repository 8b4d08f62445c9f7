"""The pose representation of the decoder: 133 numbers a frame, and back to SMPL rotations.

29 joint locations (24 kinematic joints, then the leaves of `body.joints.LEAF_NAMES`) and the twists of 23 joints as
(cos, sin), as in HybrIK (Li et al. 2021) and FastHMR (2025).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmrcompress.body.joints import LEAF_NAMES, LEAF_PARENTS, SMPL_JOINTS, SMPL_PARENTS
from hmrcompress.body.model import BodyModel
from hmrcompress.body.swing_twist import inverse_kinematics, twists_of
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.records import BodyParams

JOINTS = len(SMPL_JOINTS) + len(LEAF_NAMES)
TWISTS = len(SMPL_JOINTS) - 1
POSE_DIM = 3 * JOINTS + 2 * TWISTS


class PoseCodec(nn.Module):
    """Rotations <-> 133 pose numbers on one body. Differentiable, any batch; computes in the body's dtype.

    A leaf is a vertex of the shaped template, rigidly attached to its parent joint, without skinning and without
    pose-dependent offset: it differs from the posed mesh's vertex by those, and the round trip is exact.
    """

    leaf_index: Tensor
    leaf_parents: Tensor

    def __init__(self, body: BodyModel) -> None:
        """Raises UserError for a body whose tree is not SMPL's, or that names no leaf vertices."""
        super().__init__()
        if body.parents != SMPL_PARENTS:
            raise UserError("the joints are not SMPL's 24, which the pose numbers are made for", f"body {body.name}")
        if len(body.leaf_vertices) != len(LEAF_NAMES):
            raise UserError(
                "names no leaf vertices, which the pose numbers need",
                f"body {body.name}",
                f"Add leaf_vertices to its file: the vertex numbers of {', '.join(LEAF_NAMES)}.",
            )
        self.body = body
        self.register_buffer("leaf_index", torch.tensor(body.leaf_vertices), persistent=False)
        self.register_buffer("leaf_parents", torch.tensor(LEAF_PARENTS), persistent=False)

    def rest(self, betas: Tensor) -> Tensor:
        """betas (N,10) -> the 29 joints of the shaped template (N,29,3), metres. Raises ShapeError."""
        joints = self.body.rest_joints(betas)
        directions = self.body.shapedirs[self.leaf_index]
        leaves = self.body.v_template[self.leaf_index] + torch.einsum("kcs,ns->nkc", directions, betas)
        return torch.cat([joints, leaves], 1)

    def encode(self, params: BodyParams) -> Tensor:
        """Pose numbers (N,133) of params (camera frame; any frame works and stays).

        The first 87 are the 29 joints relative to joint 0, metres, xyz by joint (the first three are zero); then
        (cos, sin) by joint for joints 1..23. Raises ShapeError.
        """
        params = params.to(self.body.v_template.dtype)
        with torch.autocast(params.betas.device.type, enabled=False):
            rest = self.rest(params.betas)
            turned, joints = self.body.kinematics(params)
            arms = rest[:, len(SMPL_JOINTS) :] - rest[:, self.leaf_parents]
            leaves = joints[:, self.leaf_parents] + (turned[:, self.leaf_parents] @ arms[..., None]).squeeze(-1)
            located = torch.cat([joints, leaves], 1) - joints[:, :1]
            return torch.cat([located.flatten(1), twists_of(params.rotations, rest).flatten(1)], 1)

    def decode(self, pose: Tensor, betas: Tensor) -> BodyParams:
        """Rotations of pose numbers (...,133) on the template of betas (...,10), whose leading axes broadcast.

        `pose` need not be consistent (a network's output): bone lengths are those of the template, see
        `body.swing_twist` for the rules. Leading axes are flattened: N = their product. Raises ShapeError.
        """
        if pose.shape[-1:] != (POSE_DIM,):
            raise ShapeError(f"got shape {tuple(pose.shape)}, expected (..., {POSE_DIM})", "pose")
        if betas.shape[-1:] != (self.body.num_betas,):
            raise ShapeError(f"got shape {tuple(betas.shape)}, expected (..., {self.body.num_betas})", "betas")
        dtype = self.body.v_template.dtype
        try:
            leading = torch.broadcast_shapes(pose.shape[:-1], betas.shape[:-1])
        except RuntimeError as error:
            shapes = f"{tuple(pose.shape)} and {tuple(betas.shape)}"
            raise ShapeError(f"the leading axes of {shapes} do not broadcast", "pose and betas") from error
        pose = pose.to(dtype).expand(*leading, -1).reshape(-1, POSE_DIM)
        betas = betas.to(dtype).expand(*leading, -1).reshape(-1, self.body.num_betas)
        joints = pose[:, : 3 * JOINTS].unflatten(1, (JOINTS, 3))
        twists = pose[:, 3 * JOINTS :].unflatten(1, (TWISTS, 2))
        with torch.autocast(pose.device.type, enabled=False):
            rotations = inverse_kinematics(joints, twists, self.rest(betas))
        return BodyParams(rotations[:, :1], rotations[:, 1:], betas)
