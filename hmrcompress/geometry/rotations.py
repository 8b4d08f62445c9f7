"""Rotations: axis-angle, 6D and matrices. Matrices act on column vectors; angles are radians.

The two conversions on the inference and training paths are written out here because they must trace to ONNX with
static shapes and run where only torch is installed; everything else delegates to roma.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula. axis_angle (...,3) radians -> (...,3,3). Differentiable at zero."""
    squared = (axis_angle * axis_angle).sum(-1)
    tiny = squared < 1e-8
    angle = torch.sqrt(torch.where(tiny, torch.ones_like(squared), squared))
    sin_over = torch.where(tiny, 1 - squared / 6, torch.sin(angle) / angle)[..., None, None]
    cos_over = torch.where(tiny, 0.5 - squared / 24, (1 - torch.cos(angle)) / (angle * angle))[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + sin_over * skew + cos_over * (skew @ skew)


def sixd_to_matrix(sixd: Tensor, *, layout: Literal["columns", "rows"] = "columns") -> Tensor:
    """Six numbers (a1, a2) -> rotation by Gram-Schmidt (Zhou et al. 2019). sixd (...,6) -> (...,3,3).

    `columns` (HMR2.0, CameraHMR, HaMeR) puts b1, b2, b1 x b2 in the columns; `rows` (TokenHMR) is its transpose.
    """
    first, second = sixd[..., :3], sixd[..., 3:]
    b1 = torch.nn.functional.normalize(first, dim=-1)
    b2 = torch.nn.functional.normalize(second - (b1 * second).sum(-1, keepdim=True) * b1, dim=-1)
    b3 = torch.cross(b1, b2, dim=-1)
    return torch.stack([b1, b2, b3], dim=-1 if layout == "columns" else -2)


def matrix_to_sixd(matrix: Tensor) -> Tensor:
    """(...,3,3) -> (...,6): the first column, then the second (layout `columns` of `sixd_to_matrix`)."""
    return torch.cat([matrix[..., 0], matrix[..., 1]], dim=-1)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """(...,3,3) rotation -> (...,3) axis times angle in [0, pi]."""
    import roma

    return roma.rotmat_to_rotvec(matrix)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """(...,3,3) -> (...,3,3): the rotation nearest to each matrix in the Frobenius norm (orthogonal Procrustes).

    In inference mode too: roma keeps a tensor of its own from the first call on, and one made in inference mode could
    not take part in training later in the same process.
    """
    import roma

    if not torch.is_inference_mode_enabled():
        return roma.special_procrustes(matrix)
    with torch.inference_mode(False), torch.no_grad():
        return roma.special_procrustes(matrix)
