"""Motion capture of the user's own, for training and for the split `test-mocap`: which clips serve which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import UserError
from hmrcompress.motion.amass import MotionFiles, amass_files, load_amass_segments, motion_name
from hmrcompress.motion.clip import Motion
from hmrcompress.starter.scene.world import CLIP_FRAMES, Clip, Split, film

HELD_OUT = ("02_06", "02_10", "01_06", "01_11", "03_04", "11_01", "amp_humanoid_dance")
"""Motions (`amass.motion_name`) that training never sees; they are the split `test-mocap`."""
MOCAP_SPLIT = "test-mocap"
MOCAP_NUMBER = 4
SHORTEST = 60
"""Frames that a stretch of `test-mocap` has at least."""


def training_files(folder: Path) -> MotionFiles:
    """The motion capture below a folder that training uses: none of the held-out motions. Raises UserError when the
    folder holds none, or damaged files."""
    return amass_files(folder, held_out=HELD_OUT)


def load_captured(folder: Path | None) -> list[Motion]:
    """The motions of `training_files`, none without a folder."""
    if folder is None:
        return []
    return [motion for file in training_files(folder).files for motion in load_amass_segments(file)]


def held_out(folder: Path) -> list[Motion]:
    """The held-out files' motions, cut into stretches no longer than a clip. Raises UserError for a missing file."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.npz")):
        found.setdefault(motion_name(file), file)
    missing = [name for name in HELD_OUT if name not in found]
    if missing:
        raise UserError(f"{missing[0]}.npz is not below this folder", folder, f"{MOCAP_SPLIT} is {', '.join(HELD_OUT)}")
    return [part for name in HELD_OUT for motion in load_amass_segments(found[name]) for part in stretches(motion)]


def stretches(motion: Motion) -> list[Motion]:
    """Consecutive parts of nearly equal length, none longer than a clip; none at all of a motion that is too short."""
    count = len(motion.poses)
    if count < SHORTEST:
        return []
    edges = np.linspace(0, count, -(-count // CLIP_FRAMES) + 1).astype(int)
    return [
        Motion(motion.poses[a:b], motion.trans[a:b], motion.fps, motion.kind)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]


def film_held_out(motions: Sequence[Motion], body: BodyModel) -> list[Clip]:
    """The clips of `test-mocap`: bodies, clothes and cameras from seeds of its own."""
    split = Split(MOCAP_SPLIT, MOCAP_NUMBER, len(motions))
    return [film(split, index, motion, body) for index, motion in enumerate(motions)]
