"""Where the camera stands, and which part of its picture becomes the crop.

World: y up, metres. Camera frame: x right, y down, z forward. Crops are told of as if they had 256 x 192 pixels, cut
square by the person's box and narrowed to its middle columns, as HMR2.0 does; `scene.View.resized` draws the same
square with more or fewer pixels, and with other columns kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmrcompress.body.joints import joint
from hmrcompress.records import CROP

Array = NDArray[np.float64]

FLIP = np.diag([1.0, -1.0, -1.0])
"""From y up, z towards the viewer to y down, z away from the viewer."""
HEAD_TOP_SHARE = 1.9
"""The top of the head lies this many neck-to-head vectors beyond the neck; the box has to contain it."""
BOX_SMOOTHING = 9
"""Frames over which the box of a clip is averaged, as a tracker would."""


@dataclass(frozen=True)
class Placement:
    """A clip seen by a camera: root (T,3,3) rotations in the camera frame, transl (T,3) root joint in metres in the
    camera frame, focal (T,) and centre (T,2) of the 256 x 192 crop in pixels."""

    root: Array
    transl: Array
    focal: Array
    centre: Array

    @property
    def conditions(self) -> NDArray[np.float32]:
        """(T,3) what `data.conditions.bbox_info` says of the crops. Their boxes are 256 pixels high, and (96, 128) is
        the middle of each; the camera's principal point is `centre`."""
        offset = np.array([CROP.width / 2, CROP.height / 2]) - self.centre
        size = np.full((len(offset), 1), float(CROP.height))
        return (np.concatenate([offset, size], axis=1) / self.focal[:, None]).astype(np.float32)


def rotation(axis: str, angle: NDArray[np.float64] | float) -> Array:
    """Right-handed rotations about a coordinate axis. angle (...) radians -> (...,3,3)."""
    angle = np.asarray(angle, np.float64)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    out = np.zeros((*angle.shape, 3, 3))
    out[..., range(3), range(3)] = 1
    out[..., first, first] = out[..., second, second] = np.cos(angle)
    out[..., first, second], out[..., second, first] = -np.sin(angle), np.sin(angle)
    return out


def smoothed(values: Array, window: int) -> Array:
    """Centred moving average over the first axis, shrinking at the ends. (T,...) -> (T,...)."""
    if len(values) == 1 or window < 2:
        return values
    total = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), axis=0)
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low).reshape(-1, *[1] * (values.ndim - 1))


def place(
    rng: np.random.Generator,
    root: Array,
    trans: Array,
    joints_of: Callable[[Array], Array],
    *,
    difficulty: float = 1.0,
) -> Placement:
    """Put a camera in front of a clip and cut the crops.

    root (T,3,3) world rotations of the root joint, trans (T,3) its positions in metres; joints_of maps camera-frame
    root rotations (T,3,3) to joint positions (T,24,3) relative to the root joint. The heading is uniform over 360
    degrees at every difficulty; difficulty in [0, 1] scales tilt, off-axis placement and truncation.
    """
    frames = len(root)
    time = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    yaw = rng.uniform(0, 2 * np.pi) + rng.normal() * 0.4 * time
    pitch = np.radians(np.clip(5 + difficulty * rng.normal() * 13, -35, 50)) + rng.normal() * 0.06 * time
    roll = np.radians(difficulty * rng.normal() * 4) + rng.normal() * 0.02 * time
    world_to_camera = FLIP @ rotation("z", roll) @ rotation("x", pitch) @ rotation("y", yaw)
    distance = np.exp(rng.uniform(np.log(2.4), np.log(8.0)))
    angles = np.radians(np.clip(difficulty * rng.normal(size=2) * 5, -12, 12))
    anchor = smoothed(trans, 31)
    offset = distance * np.array([np.tan(angles[0]), np.tan(angles[1]), 1.0])
    transl = np.einsum("tij,tj->ti", world_to_camera, trans - anchor) + offset
    camera_root = world_to_camera @ root
    joints = joints_of(camera_root) + transl[:, None]
    focal, centre = _crop(rng, joints, difficulty)
    return Placement(camera_root, transl, focal, centre)


def _crop(rng: np.random.Generator, joints: Array, difficulty: float) -> tuple[Array, Array]:
    """The box of the joints (T,24,3), with a detector's sloppiness and sometimes far too tight."""
    neck, head = joints[:, joint("neck")], joints[:, joint("head")]
    points = np.concatenate([joints, (neck + HEAD_TOP_SHARE * (head - neck))[:, None]], axis=1)
    plane = points[..., :2] / np.maximum(points[..., 2:], 0.2)
    low, high = plane.min(axis=1), plane.max(axis=1)
    middle = smoothed((low + high) / 2, BOX_SMOOTHING)
    extent = smoothed(high - low, BOX_SMOOTHING)
    side = np.maximum(extent[:, 1], extent[:, 0] * CROP.height / CROP.width)
    side = side * 1.22 * np.exp(rng.normal() * 0.08)
    middle = middle + side[:, None] * rng.normal(size=2) * 0.03
    if rng.random() < 0.22 * difficulty:
        zoom = rng.uniform(0.6, 0.88)
        middle = middle + (1 - zoom) * side[:, None] * np.array([rng.uniform(-0.2, 0.2), rng.uniform(-0.45, 0.25)])
        side = side * zoom
    focal = CROP.height / side
    centre = np.array([CROP.width / 2, CROP.height / 2]) - focal[:, None] * middle
    return focal, centre
