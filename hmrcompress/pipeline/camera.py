"""From the camera of a crop to that of the whole picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hmrcompress.records import CROP, CropSize

Array = NDArray[np.float64]
CROP_FOCAL = 5000.0
"""Focal length in pixels of a crop, which the networks' weak-perspective cameras stand for."""


def default_focal(size: tuple[int, int], crop: CropSize = CROP) -> float:
    """Focal length of a picture (width, height) of which nothing is known, in its pixels: 5000 over the side of the
    network's square crop (256 for HMR2.0) of its longer side, as the demonstration of HMR2.0 takes it."""
    return CROP_FOCAL / crop.side * max(size)


def cam_crop_to_full(cam: Array, centre: Array, side: Array, size: Array, focal: Array) -> Array:
    """Translation (N,3) metres in the camera frame of the whole picture, principal point in its middle.

    cam (N,3) = (s, tx, ty) of the crop; centre (N,2) and side (N,) of its square box and size (N,2) = (W, H) in
    pixels; focal (N,) pixels. With b = side: x = tx + 2 (cx - W/2) / (s b), y = ty + 2 (cy - H/2) / (s b),
    z = 2 f / (s b), as `cam_crop_to_full` of HMR2.0 (Goel et al. 2023): the person keeps its size and place on screen.
    """
    scaled = side * cam[:, 0] + 1e-9
    plane = cam[:, 1:] + 2 * (centre - size / 2) / scaled[:, None]
    return np.concatenate([plane, (2 * focal / scaled)[:, None]], axis=1)
