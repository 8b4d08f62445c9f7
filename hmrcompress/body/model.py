"""The body model: shape directions, forward kinematics and linear blend skinning in SMPL's manner (Loper et al. 2015).

Differentiable, any batch, float32 and float64, and traceable: nothing in it depends on the data. smplx is the
reference in the tests. The joint regressor is folded into a joint template and joint shape directions when the model
is made, so that joints cost no mesh.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hmrcompress.body.topology import hash_faces
from hmrcompress.errors import ShapeError
from hmrcompress.io.hashes import sha256_arrays
from hmrcompress.records import BodyOutput, BodyParams


class BodyModel(nn.Module):
    """A skinned body of V vertices and J joints.

    name: str; faces (F,3) int32; faces_sha256 identifies the surface; parents (J,) with -1 for the root;
    leaf_vertices: five vertex numbers in the order of `joints.LEAF_NAMES`, or () where the file names none.
    Buffers, metres: v_template (V,3), shapedirs (V,3,S), posedirs (V,3,9(J-1)) or None, joint_template (J,3),
    joint_shapedirs (J,3,S), weights (V,J), joint_regressor (J,V), which the joints of posed vertices are measured by.
    """

    v_template: Tensor
    shapedirs: Tensor
    posedirs: Tensor | None
    weights: Tensor
    parent_index: Tensor
    joint_template: Tensor
    joint_shapedirs: Tensor
    joint_order: Tensor
    joint_regressor: Tensor

    def __init__(
        self,
        *,
        name: str,
        faces: np.ndarray,
        v_template: np.ndarray,
        shapedirs: np.ndarray,
        joint_regressor: np.ndarray,
        weights: np.ndarray,
        parents: tuple[int, ...],
        posedirs: np.ndarray | None = None,
        leaf_vertices: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Arrays as the class describes them, joint_regressor (J,V) with rows that sum to 1; `load_body` checks files.

        Parents must come before their children.
        """
        super().__init__()
        self.name = name
        self.faces = np.array(faces, np.int32)
        self.faces_sha256 = hash_faces(self.faces)
        self.parents = tuple(int(parent) for parent in parents)
        self.leaf_vertices = tuple(int(vertex) for vertex in leaf_vertices)
        exact = {"v_template": v_template, "shapedirs": shapedirs, "weights": weights, "posedirs": posedirs}
        regressor = np.asarray(joint_regressor, np.float64)
        exact["joint_template"] = regressor @ np.asarray(v_template, np.float64)
        exact["joint_shapedirs"] = np.einsum("jv,vcs->jcs", regressor, np.asarray(shapedirs, np.float64))
        for key, array in exact.items():
            self.register_buffer(
                key, None if array is None else torch.tensor(np.asarray(array, np.float64), dtype=dtype)
            )
        # Not in the state: joint_template and joint_shapedirs hold all that posing needs of it.
        self.register_buffer("joint_regressor", torch.tensor(regressor, dtype=dtype), persistent=False)
        self._register_levels()

    def _register_levels(self) -> None:
        """Joints sorted by their depth in the tree: those of one depth are posed together."""
        depth: list[int] = []
        for parent in self.parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        levels = [[j for j, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]
        order = [j for level in levels for j in level]
        for index, level in enumerate(levels):
            self.register_buffer(f"level{index}_joints", torch.tensor(level), persistent=False)
            if index > 0:
                above = torch.tensor([levels[index - 1].index(self.parents[j]) for j in level])
                self.register_buffer(f"level{index}_parents", above, persistent=False)
        self.num_levels = len(levels)
        self.register_buffer("joint_order", torch.tensor([order.index(j) for j in range(len(order))]), persistent=False)
        parents = torch.tensor([max(parent, 0) for parent in self.parents])
        self.register_buffer("parent_index", parents, persistent=False)

    @property
    def sha256(self) -> str:
        """Hash of all that posing depends on; `faces_sha256` is that of the surface's topology alone."""
        arrays: dict[str, np.ndarray | Tensor] = dict(self.named_buffers())
        arrays |= {"faces": self.faces, "leaf_vertices": np.array(self.leaf_vertices, np.int64)}
        return sha256_arrays(arrays | {"parents": np.array(self.parents, np.int64)})

    @property
    def num_joints(self) -> int:
        """J."""
        return len(self.parents)

    @property
    def num_vertices(self) -> int:
        """V."""
        return int(self.v_template.shape[0])

    @property
    def num_betas(self) -> int:
        """S, the length of a shape vector."""
        return int(self.shapedirs.shape[-1])

    def forward(self, params: BodyParams) -> BodyOutput:
        """Pose and skin: vertices (B,V,3) and joints (B,J,3), metres, no translation.

        The root joint stays where the shaped template has it. Raises ShapeError.
        """
        rotations = self._rotations(params)
        vertices, rest = self.rest(params.betas)
        turned, joints = self._kinematics(rotations, rest)
        if self.posedirs is not None:
            bend = rotations[:, 1:] - torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            vertices = vertices + torch.einsum("vcp,bp->bvc", self.posedirs, bend.flatten(1))
        shift = joints - (turned @ rest[..., None]).squeeze(-1)
        transforms = torch.cat([turned, shift[..., None]], dim=-1).flatten(2)
        blended = torch.matmul(self.weights, transforms).unflatten(-1, (3, 4))
        posed = (blended[..., :3] @ vertices[..., None]).squeeze(-1) + blended[..., 3]
        return BodyOutput(posed, joints)

    def joints(self, params: BodyParams) -> Tensor:
        """Forward kinematics alone: (B,J,3) metres, equal to `forward(params).joints`. Raises ShapeError."""
        return self.kinematics(params)[1]

    def kinematics(self, params: BodyParams) -> tuple[Tensor, Tensor]:
        """Rotations of all joints in the body's frame (B,J,3,3), and `joints(params)`. Raises ShapeError."""
        return self._kinematics(self._rotations(params), self.rest_joints(params.betas))

    def rest(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """betas (B,S) -> shaped template (B,V,3) and its joints (B,J,3), metres. Raises ShapeError."""
        joints = self.rest_joints(betas)
        return self.v_template + torch.einsum("vcs,bs->bvc", self.shapedirs, betas), joints

    def rest_joints(self, betas: Tensor) -> Tensor:
        """betas (B,S) -> joints of the shaped template (B,J,3), metres. Raises ShapeError."""
        if betas.ndim != 2 or betas.shape[1] != self.num_betas:
            raise ShapeError(f"got shape {tuple(betas.shape)}, expected (B, {self.num_betas})", f"{self.name}: betas")
        return self.joint_template + torch.einsum("jcs,bs->bjc", self.joint_shapedirs, betas)

    def _rotations(self, params: BodyParams) -> Tensor:
        rotations = params.rotations
        wanted = (self.num_joints, 3, 3)
        if tuple(rotations.shape[1:]) != wanted:
            raise ShapeError(f"got shape {tuple(rotations.shape)}, expected (B, *{wanted})", f"{self.name}: rotations")
        return rotations

    def _kinematics(self, rotations: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Local rotations (B,J,3,3) and rest joints (B,J,3) -> rotations in the body's frame and posed joints."""
        offsets = rest - rest[:, self.parent_index]
        turned, placed = rotations[:, :1], rest[:, :1]
        all_turned, all_placed = [turned], [placed]
        for level in range(1, self.num_levels):
            mine = getattr(self, f"level{level}_joints")  # dynamo of torch 2.7 does not know get_buffer
            above = getattr(self, f"level{level}_parents")
            parent = turned[:, above]
            placed = placed[:, above] + (parent @ offsets[:, mine][..., None]).squeeze(-1)
            turned = parent @ rotations[:, mine]
            all_turned.append(turned)
            all_placed.append(placed)
        return torch.cat(all_turned, 1)[:, self.joint_order], torch.cat(all_placed, 1)[:, self.joint_order]
