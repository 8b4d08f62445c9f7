"""The clips of the open starter world, defined by seeds alone: who moves how, dressed how, seen from where.

A split is a name, a number and a count of clips. Every random stream is a `SeedSequence` over (world version, split
number, clip, stream), so that splits share neither motions, bodies nor appearances.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import UserError
from hmrcompress.motion import rotvec
from hmrcompress.motion.clip import Motion
from hmrcompress.records import BodyParams
from hmrcompress.starter.motion import procedural
from hmrcompress.starter.scene.appearance import Appearance, Surroundings, draw_appearance, draw_surroundings
from hmrcompress.starter.scene.camera import Placement, place

VERSION = 1
"""Raise it whenever a clip of the world changes: caches and published figures are tied to it."""
FPS = 30.0
CLIP_FRAMES = 243
BETA_LIMIT = 2.5
MOTION, BODY, LOOK, CAMERA = range(4)


@dataclass(frozen=True)
class Split:
    """A named set of clips; `number` enters the seeds.

    frames is the length of its clips, scored the number of frames of each that are rendered, evenly spread (None: all).
    A sealed split is for the last word on a released network; see `open_seal`.
    """

    name: str
    number: int
    clips: int
    frames: int = CLIP_FRAMES
    scored: int | None = None
    sealed: bool = False

    @property
    def places(self) -> NDArray[np.int64]:
        """Numbers of the frames of a clip that are rendered."""
        if self.scored is None:
            return np.arange(self.frames)
        return np.linspace(0, self.frames - 1, self.scored).round().astype(np.int64)


SPLITS = {
    split.name: split
    for split in (
        Split("train", 0, 4096),
        Split("calib", 1, 16),
        Split("dev", 2, 8),
        Split("val", 3, 24),
        Split("confirm", 5, 96, frames=16),
        Split("test", 6, 192, scored=15, sealed=True),
        Split("test-whole", 6, 48, sealed=True),
    )
}
"""What each is for: `train` for training; `calib` for searching; `confirm` for confirming what a search offers; `dev`
for watching a training run; `val` for every choice, ablation and figure but those of `test`, on which a released
network is scored once. `test-whole` is the first clips of `test` with all of their frames, for the decoder.

Clips vary more than frames. On `val` 90 tokens by the network's own mask cost 1.4 +- 1.4 mm (20 frames of each of 24
clips, network of 1,739,744 crops); an interval of +- 0.5 mm takes (1.4 / 0.5)^2 = 8 times as many clips.
"""
SEAL = "HMRCOMPRESS_OPEN_TEST"
"""Environment variable that opens sealed splits; `make evidence` sets it."""


def split_named(name: str) -> Split:
    """A split by its name; UserError for an unknown one."""
    if name not in SPLITS:
        raise UserError(
            f"there is no split {name!r} of the starter world", "--data", f"Choose one of {', '.join(SPLITS)}"
        )
    return SPLITS[name]


def open_seal(split: Split) -> None:
    """UserError for a sealed split, unless the environment opens it: choices made on it would spoil it."""
    if split.sealed and os.environ.get(SEAL) != "1":
        raise UserError(
            "is scored once for each released network, by `make evidence`, and nothing else may look at it",
            f"starter:{split.name}",
            "Use starter:val",
        )


def stream(split: Split, clip: int, purpose: int) -> np.random.Generator:
    """The generator of one clip for one purpose (MOTION, BODY, LOOK, CAMERA)."""
    return np.random.default_rng(np.random.SeedSequence([VERSION, split.number, clip, purpose]))


def draw_betas(rng: np.random.Generator) -> NDArray[np.float32]:
    """Shape coefficients (10,), standard normal within +-BETA_LIMIT."""
    return np.clip(rng.normal(size=10), -BETA_LIMIT, BETA_LIMIT).astype(np.float32)


@dataclass(frozen=True)
class Clip:
    """One clip, ready to be rendered.

    poses (T,24,3) float32 axis-angle, root in the camera frame; betas (10,); placement as `camera.place` gives it;
    kind is the motion's label.
    """

    poses: NDArray[np.float32]
    betas: NDArray[np.float32]
    placement: Placement
    appearance: Appearance
    surroundings: Surroundings
    kind: str

    @cached_property
    def params(self) -> BodyParams:
        """The same as tensors, a row a frame."""
        return to_params(self.poses, np.broadcast_to(self.betas, (len(self.poses), 10)))

    def digest(self) -> bytes:
        """sha256 over the parameters, quantised to 1e-4 rad, 1e-4 (betas), 0.1 mm and 0.01 pixel."""
        hasher = hashlib.sha256(self.kind.encode())
        rotations = rotvec.to_matrix(self.poses)
        for values, step in (
            (rotations, 1e-4),
            (self.betas, 1e-4),
            (self.placement.transl, 1e-4),
            (self.placement.focal, 1e-2),
            (self.placement.centre, 1e-2),
        ):
            hasher.update(np.round(np.asarray(values, np.float64) / step).astype("<i8").tobytes())
        return hasher.digest()


def to_params(poses: NDArray[np.float32], betas: NDArray[np.float32]) -> BodyParams:
    """poses (T,24,3) axis-angle, betas (T,10) -> BodyParams in float32."""
    rotations = torch.from_numpy(rotvec.to_matrix(poses).astype(np.float32))
    return BodyParams(rotations[:, :1], rotations[:, 1:], torch.from_numpy(np.array(betas, np.float32)))


def stage(
    motion: Motion,
    betas: NDArray[np.float32],
    body: BodyModel,
    camera: np.random.Generator,
    look: np.random.Generator,
    rest_joints: NDArray[np.float32],
    *,
    difficulty: float = 1.0,
) -> Clip:
    """Dress a motion, put it somewhere and film it. rest_joints (24,3) are the template's."""
    local = to_params(motion.poses, np.broadcast_to(betas, (len(motion.poses), 10)))

    def joints_of(roots: NDArray[np.float64]) -> NDArray[np.float64]:
        turned = BodyParams(torch.from_numpy(roots.astype(np.float32))[:, None], local.body_pose, local.betas)
        with torch.no_grad():
            joints = body.joints(turned).numpy()
        return joints - joints[:, :1]

    root = rotvec.to_matrix(motion.poses[:, 0])
    placement = place(camera, root, np.asarray(motion.trans, np.float64), joints_of, difficulty=difficulty)
    poses = motion.poses.copy()
    poses[:, 0] = rotvec.from_matrix(placement.root)
    return Clip(
        poses, betas, placement, draw_appearance(look, rest_joints), draw_surroundings(look, difficulty), motion.kind
    )


def make_clip(split: Split, index: int, body: BodyModel, frames: int | None = None) -> Clip:
    """Clip `index` of a split, of its length or of `frames`. Raises UserError when the split has fewer clips."""
    if not 0 <= index < split.clips:
        raise UserError(f"split {split.name} has {split.clips} clips, got index {index}", "starter world")
    seed = int(stream(split, index, MOTION).integers(1 << 62))
    return film(split, index, procedural.generate(seed, frames or split.frames, FPS), body)


def film(split: Split, index: int, motion: Motion, body: BodyModel) -> Clip:
    """A motion as clip `index` of a split: its body, clothes, surroundings and camera come from the clip's seeds."""
    rest = body.joint_template.numpy()
    betas = draw_betas(stream(split, index, BODY))
    return stage(motion, betas, body, stream(split, index, CAMERA), stream(split, index, LOOK), rest)
