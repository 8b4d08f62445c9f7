"""A motion read at other times: slerp between frames for rotations, straight lines for positions."""

from __future__ import annotations

import numpy as np

from hmrcompress.motion import rotvec
from hmrcompress.motion.arrays import Array


def at_frames(poses: Array, trans: Array, frames: Array) -> tuple[Array, Array]:
    """poses (T,24,3), trans (T,3) read at fractional frame numbers (K,) in 0..T-1 -> (K,24,3), (K,3) float64."""
    before = np.clip(np.floor(frames).astype(int), 0, max(len(poses) - 2, 0))
    after = np.minimum(before + 1, len(poses) - 1)
    share = np.clip(frames - before, 0.0, 1.0)
    turned = rotvec.slerp(poses[before], poses[after], np.repeat(share[:, None], poses.shape[1], axis=1))
    start, end = np.asarray(trans, dtype=np.float64)[before], np.asarray(trans, dtype=np.float64)[after]
    return turned, start + share[:, None] * (end - start)
