"""Training crops of the starter world: independent frames, each with its own body, clothes, camera and surroundings.

A shard is an .npz of a few thousand crops, defined by (seed, index) and the settings; it is rendered once, read from
memory afterwards, and can be deleted at any time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hmrcompress.body.joints import ARMS, LEGS
from hmrcompress.body.model import BodyModel
from hmrcompress.io.npz import write_npz
from hmrcompress.io.outputs import OutputRule
from hmrcompress.motion import augment
from hmrcompress.motion.clip import Motion
from hmrcompress.records import CROP, BodyParams, CropSize
from hmrcompress.starter.motion import procedural
from hmrcompress.starter.scene.filming import POSED_AT_ONCE, camera_vertices
from hmrcompress.starter.scene.scene import Surface, View, render_crop
from hmrcompress.starter.scene.world import FPS, VERSION, Clip, draw_betas, stage

KIND = "shard"
FRAMES_PER_MOTION = 32
MOTION_FRAMES = 160
SHARD_NAME = re.compile(r"\d+x\d+(?:p\d+)?-d[\d.e+-]+-m[\d.e+-]+-n\d+-\d{5,}\.npz")
"""Names that `shard_path` gives."""


@dataclass(frozen=True)
class ShardSettings:
    """What the crops of a shard look like: size (height, width) in pixels, patch those of the patches that are
    labelled, difficulty in [0, 1] (see `camera.place`), mocap the share of frames taken from motion capture where there
    is any."""

    size: tuple[int, int] = (128, 96)
    crops: int = 4096
    difficulty: float = 1.0
    mocap: float = 0.4
    patch: int = CROP.patch


def draw_motion(rng: np.random.Generator, captured: Sequence[Motion], share: float) -> Motion:
    """A stretch of motion: captured with probability `share`, else procedural."""
    if captured and rng.random() < share:
        weights = np.sqrt([len(motion.poses) for motion in captured])
        return captured[rng.choice(len(captured), p=weights / weights.sum())]
    return procedural.generate(int(rng.integers(1 << 62)), MOTION_FRAMES, FPS)


def draw_frames(rng: np.random.Generator, captured: Sequence[Motion], settings: ShardSettings) -> list[Motion]:
    """Single-frame motions, augmented: mirrored, with limbs of another frame, with joint noise of a few degrees."""
    frames: list[Motion] = []
    while len(frames) < settings.crops:
        motion = draw_motion(rng, captured, settings.mocap)
        for t in rng.choice(len(motion.poses), min(FRAMES_PER_MOTION, len(motion.poses)), replace=False):
            still = Motion(motion.poses[t : t + 1], motion.trans[t : t + 1], motion.fps, motion.kind)
            frames.append(augment.mirror(still) if rng.random() < 0.5 else still)
    frames = [frames[i] for i in rng.permutation(len(frames))[: settings.crops]]
    mixed = []
    for frame in frames:
        choice = rng.random()
        if choice < 0.35:
            limbs = ARMS if choice < 0.22 else LEGS
            frame = augment.swap_limbs(frame, frames[rng.integers(len(frames))], limbs)
        mixed.append(augment.jitter(frame, rng, degrees=3.0))
    return mixed


def make_shard(
    seed: int, index: int, body: BodyModel, surface: Surface, captured: Sequence[Motion], settings: ShardSettings
) -> dict[str, NDArray]:
    """Render shard `index` of the training run `seed`.

    Arrays, N crops on a grid of R x C tokens: images (N,H,W,3) uint8; parts (N,R,C,24) uint8 share of each token's
    pixels times 255; points (N,R,C,3) float16 metres; rotations (N,24,3,3), betas (N,10), joints (N,24,3) metres
    relative to the root joint in the camera frame, keypoints (N,24,2) in crop heights from the crop's centre.
    """
    rng = np.random.default_rng(np.random.SeedSequence([VERSION, 1000 + seed, index]))
    clips: list[Clip] = []
    for frame in draw_frames(rng, captured, settings):
        camera, look = rng.spawn(2)
        difficulty = settings.difficulty
        clips.append(stage(frame, draw_betas(rng), body, camera, look, surface.joints, difficulty=difficulty))
    count, size = len(clips), CropSize(*settings.size, settings.patch)
    grid = size.grid
    arrays: dict[str, NDArray] = {
        "images": np.empty((count, *size.pixels, 3), np.uint8),
        "parts": np.empty((count, *grid, 24), np.uint8),
        "points": np.empty((count, *grid, 3), np.float16),
        "keypoints": np.empty((count, 24, 2), np.float32),
    }
    joints, rotations = [], []
    for start in range(0, count, POSED_AT_ONCE):
        group = clips[start : start + POSED_AT_ONCE]
        params = _stack([clip.params for clip in group])
        transl = np.concatenate([clip.placement.transl for clip in group])
        meshes = camera_vertices(body, params, transl)
        with torch.no_grad():
            posed = body.joints(params)
        joints.append((posed - posed[:, :1]).numpy())
        rotations.append(params.rotations.numpy())
        for row, (clip, mesh) in enumerate(zip(group, meshes, strict=True), start=start):
            focal, centre = clip.placement.focal[0], clip.placement.centre[0]
            view = View(float(focal), tuple(centre), CROP.pixels).resized(size.pixels)
            crop = render_crop(mesh, surface, view, clip.appearance, clip.surroundings, label_grid=grid)
            arrays["images"][row] = crop.image
            arrays["parts"][row] = np.round(255 * crop.parts)  # type: ignore[operator]
            arrays["points"][row] = crop.points
            place = joints[-1][row - start] + transl[row - start]
            pixels = focal * place[:, :2] / place[:, 2:] + centre
            arrays["keypoints"][row] = (pixels - (CROP.width / 2, CROP.height / 2)) / CROP.height
    arrays["joints"] = np.concatenate(joints)
    arrays["rotations"] = np.concatenate(rotations)
    arrays["betas"] = np.stack([clip.betas for clip in clips])
    return arrays


def _stack(parts: list[BodyParams]) -> BodyParams:
    return BodyParams(
        torch.cat([p.global_orient for p in parts]),
        torch.cat([p.body_pose for p in parts]),
        torch.cat([p.betas for p in parts]),
    )


def shard_path(folder: Path, index: int, settings: ShardSettings) -> Path:
    """Where shard `index` is kept; the name carries the settings."""
    height, width = settings.size
    patch = "" if settings.patch == CROP.patch else f"p{settings.patch}"
    label = f"{height}x{width}{patch}-d{settings.difficulty:g}-m{settings.mocap:g}-n{settings.crops}"
    return folder / f"{label}-{index:05d}.npz"


def write_shard(path: Path, arrays: dict[str, NDArray]) -> None:
    """Writes a shard, whole or not at all."""
    with OutputRule().file(path, KIND, hashed=False) as temporary:
        write_npz(temporary, arrays)


def read_shard(path: Path) -> dict[str, NDArray]:
    """The arrays of a shard."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
