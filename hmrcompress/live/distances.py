"""How far the outputs of a compressed network are from those of the untouched one, in millimetres for each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.live.trees import picked

MM = 1000.0


class Distance(Protocol):
    """What a search measures. It may have a method `kept(outputs)`, which says what of the untouched network's outputs
    is kept and given as `teacher`; without it all of them are."""

    def __call__(self, outputs: Any, teacher: Any, batch: Any) -> Any:
        """(samples,) millimetres, none negative."""


class Points:
    """Mean distance of points, such as vertices or joints, after taking the root away.

    key: where outputs hold them, (B,…,3) metres, such as `pred_vertices` or `mhr.pred_keypoints_3d`, or a function of
    outputs. root: number of the point that is the root, or several whose mean it is; None where points have no
    translation. unit: millimetres of one unit of the points.
    """

    def __init__(
        self,
        key: str | Callable[[Any], Tensor],
        root: int | Sequence[int] | None = None,
        *,
        unit: float = MM,
    ) -> None:
        self.key, self.root, self.unit = key, root, unit

    def kept(self, outputs: Any) -> Tensor:
        """The points alone, (B,P,3) float32, the root at zero. UserError where there are none."""
        points = picked(outputs, self.key) if isinstance(self.key, str) else self.key(outputs)
        points = torch.as_tensor(points)
        if points.ndim < 3 or points.shape[-1] != 3:
            raise UserError(f"is of shape {tuple(points.shape)}, expected (B, points, 3)", f"outputs, {self.key}")
        points = points.flatten(1, -2).float()
        if self.root is None:
            return points
        roots = [self.root] if isinstance(self.root, int) else list(self.root)
        return points - points[:, roots].mean(1, keepdim=True)

    def __call__(self, outputs: Any, teacher: Tensor, batch: Any) -> Tensor:
        """(B,) millimetres."""
        points = self.kept(outputs)
        return torch.linalg.vector_norm(points - teacher.to(points.device), dim=-1).mean(1) * self.unit


def vertices(key: str | Callable[[Any], Tensor] = "pred_vertices", root: int | Sequence[int] | None = None) -> Points:
    """Mean distance of vertices to those of the untouched network."""
    return Points(key, root)


def joints(key: str | Callable[[Any], Tensor] = "pred_keypoints_3d", root: int | Sequence[int] | None = 0) -> Points:
    """Mean distance of joints to those of the untouched network, root on root."""
    return Points(key, root)


def measured(distance: Distance, outputs: Any, teacher: Any, batch: Any, count: int) -> np.ndarray:
    """(count,) float64 mm. UserError where the distance gives something else."""
    found = distance(outputs, teacher, batch)
    values = found.detach().cpu().double().numpy() if isinstance(found, Tensor) else np.asarray(found, dtype=np.float64)
    if values.shape != (count,):
        raise UserError(
            f"gave {values.shape}, expected a number for each of {count} samples",
            "distance",
            "Say how many samples a batch holds: count=…",
        )
    if (values < 0).any():
        raise UserError(f"gave {values.min():.3g} mm, and errors are not negative", "distance")
    return values
