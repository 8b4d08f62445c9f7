"""One motion clip: what every source of motion (generator, AMASS files, augmentation) makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.errors import ShapeError
from hmrcompress.motion.arrays import Array

NUM_JOINTS = len(SMPL_JOINTS)


@dataclass(frozen=True)
class Motion:
    """A clip of one person.

    poses (T,24,3) float32: axis-angle in radians, SMPL's joint order, root first; the root's rotation takes the body
    from its rest pose (y up, facing +z) to the world. trans (T,3) float32: the root joint's position, metres, y up.
    fps: frames a second. kind: a word for what is done. Raises ShapeError for arrays of another shape or for NaN.
    """

    poses: Array
    trans: Array
    fps: float
    kind: str

    def __post_init__(self) -> None:
        frames = len(self.poses)
        for name, array, shape in (
            ("poses", self.poses, (frames, NUM_JOINTS, 3)),
            ("trans", self.trans, (frames, 3)),
        ):
            if array.shape != shape:
                raise ShapeError(f"got shape {array.shape}, expected {shape}", f"Motion.{name}")
            if not np.isfinite(array).all():
                raise ShapeError("got NaN or infinity", f"Motion.{name}")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ShapeError(f"got {self.fps}, expected frames a second above 0", "Motion.fps")
        object.__setattr__(self, "poses", np.asarray(self.poses, dtype=np.float32))
        object.__setattr__(self, "trans", np.asarray(self.trans, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def seconds(self) -> float:
        """Length of the clip: frames over fps."""
        return len(self) / self.fps
