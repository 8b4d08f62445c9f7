"""What the readers of recorded sequences (EMDB, 3DPW) share: one person's frames, joined to a data set."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from hmrcompress.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle


@dataclass(frozen=True)
class Sequence:
    """T frames of one person; the arrays are as `annotations.Annotations` describes them, `name` is the clip's."""

    name: str
    picture: np.ndarray
    center: np.ndarray
    side: np.ndarray
    extent: np.ndarray
    frame: np.ndarray
    poses: np.ndarray
    betas: np.ndarray
    gender: np.ndarray
    focal: np.ndarray
    principal: np.ndarray


def joined(sequences: Several[Sequence]) -> dict[str, Any]:
    """The columns of all of them, one after the other, and `sequence`, the name of each frame's clip."""
    names = [each.name for each in sequences for _ in range(len(each.frame))]
    columns = [field.name for field in fields(Sequence) if field.name != "name"]
    return {"sequence": names} | {
        column: np.concatenate([getattr(each, column) for each in sequences]) for column in columns
    }


def in_camera(poses: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """poses (T,24,3) axis-angle with the root in the world, turns (T,3,3) from the world to the camera -> the same with
    the root in the camera frame, float64."""
    root = torch.from_numpy(turns) @ axis_angle_to_matrix(torch.from_numpy(poses[:, 0]))
    turned = matrix_to_axis_angle(root).numpy() if len(poses) else poses[:, 0]
    return np.concatenate([turned[:, None], poses[:, 1:]], axis=1)
