"""What CameraHMR is told of each crop beside its pixels: where its box lies in the picture, and the focal length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hmrcompress.errors import ShapeError, UserError

CONDITION = 3
"""Numbers of a condition."""
FOCAL = "focal lengths"
Values = Tensor | np.ndarray | Sequence[float] | float


def bbox_info(center: Values, size: Values, image_size: Values, focal: Values) -> Tensor:
    """Boxes in their pictures -> the condition (N,3) float32: (cx - W/2, cy - H/2, b) / f.

    center (N,2) = (cx, cy) of the box, size (N,) = b, the side of the square box that is scaled to 256 pixels,
    image_size (N,2) or (2,) = (W, H) of the picture, focal (N,) or one number; all in pixels of the same picture, f
    being the first entry of its intrinsics. The condition has no unit: the first two numbers are the tangents of the
    angles under which the box's centre is seen, where the principal point is the picture's centre. Computed in
    float64. Raises ShapeError for other shapes, UserError for values that are not finite and for sides, pictures and
    focal lengths that are not positive. After CameraHMR (Patel and Black, 3DV 2025).
    """
    centers = torch.as_tensor(center, dtype=torch.float64)
    if centers.ndim != 2 or centers.shape[1] != 2:
        raise ShapeError(f"got shape {tuple(centers.shape)}, expected (N, 2)", "box centres")
    count = len(centers)
    sides, focals = (_expanded(values, (count,), name) for values, name in ((size, "box sizes"), (focal, FOCAL)))
    pictures = _expanded(image_size, (count, 2), "image sizes")
    if not bool(torch.isfinite(centers).all()):
        raise UserError("hold NaN or infinity", "box centres")
    for values, name in ((sides, "box sizes"), (pictures, "image sizes"), (focals, FOCAL)):
        wrong = ~(torch.isfinite(values) & (values > 0)).flatten()
        if bool(wrong.any()):
            raise UserError(f"got {values.flatten()[wrong][0].item():g}, expected pixels above 0", name)
    numbers = torch.cat([centers - pictures / 2, sides[:, None]], dim=1) / focals[:, None]
    return numbers.to(torch.float32)


def missing_condition(where: object = "condition") -> UserError:
    """What to raise where a network needs conditions and there are none; `where` names the data."""
    return UserError(
        "this network has to know each crop's box and the focal length, and the data come without them",
        where,
        "Data need an array `conditions`: hmrcompress.data.conditions.bbox_info makes it",
    )


def check_condition(condition: Tensor | None, count: int) -> Tensor:
    """The condition of `count` crops. UserError where there is none, ShapeError where it is not (count,3) floats."""
    if condition is None:
        raise missing_condition()
    if tuple(condition.shape) != (count, CONDITION) or not condition.is_floating_point():
        found = f"{condition.dtype} of shape {tuple(condition.shape)}"
        raise ShapeError(f"got {found}, expected floats of shape ({count}, {CONDITION})", "condition")
    return condition


def _expanded(values: Values, shape: tuple[int, ...], name: str) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float64)
    if tuple(tensor.shape) not in (shape, shape[1:]):
        raise ShapeError(f"got shape {tuple(tensor.shape)}, expected {shape} or {shape[1:]}", name)
    return tensor.expand(shape)
