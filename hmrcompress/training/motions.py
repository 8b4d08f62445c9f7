"""Windows of motion for the motion VAE: procedural and captured, made in the background, augmented at every draw.

A shard is an .npz of joint rotations told by (seed, number) alone: it is made once, read from memory afterwards, and
may be deleted at any time. Mirroring, time reversal, body shape and camera are drawn anew whenever a window is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hmrcompress.body.joints import ARMS, LEGS, MIRROR
from hmrcompress.errors import UserError
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.keys import Key, folder_of
from hmrcompress.io.npz import write_npz
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.together import process_of
from hmrcompress.motion import augment
from hmrcompress.motion.amass import amass_files, load_amass_segments
from hmrcompress.motion.clip import Motion
from hmrcompress.records import BodyParams
from hmrcompress.training.background import Background

Generate = Callable[[int, int, float], Motion]
"""Makes up a motion: a seed, frames, frames a second. A function of a module, so that processes can be told of it."""
KIND = "motions"
SCHEMA = 1
MOTIONS_A_SHARD = 48
SPEEDS = (0.8, 1.25)
SWAPPED, JITTERED = 0.15, 0.3
"""Chances that a window gets arms or legs of another one, or a slow wobble of JITTER_DEGREES in all joints."""
JITTER_DEGREES = 4.0
LIMIT = 2.5
"""Shape coefficients are standard normal, cut off there, as those of the starter world."""
_MIRROR_AXIS = torch.tensor([1.0, -1.0, -1.0])
_CAMERA = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
"""From y up to the camera frame: x right, y down, z forward."""


@dataclass(frozen=True)
class MotionSettings:
    """frames: of a stored motion, at `fps`; captured: share of those taken from motion capture where there is any.
    shards: how many there are, after which they come again."""

    frames: int
    fps: float = 30.0
    captured: float = 0.3
    shards: int = 64

    @property
    def longest(self) -> int:
        """Frames that a stored motion is made of at the highest speed."""
        return int(np.ceil(self.frames * SPEEDS[1])) + 1


def motion_files(motions: str, settings: MotionSettings, *, held_out: Sequence[str] = ()) -> list[Path]:
    """The AMASS files that `starter` (none) or `amass:DIR` names, without motions of the names `held_out`, those that
    are too short for a window, and files without a motion, which are told.

    Raises UserError for another name, for a folder without any, and for damaged files.
    """
    folder = motion_folder(motions)
    if folder is None:
        return []
    found = amass_files(folder, settings.longest / settings.fps, held_out=held_out)
    found.tell()
    return list(found.files)


def motion_folder(motions: str) -> Path | None:
    """The folder of `amass:DIR`; None for `starter`, which needs no files. UserError for another name."""
    kind, _, rest = motions.partition(":")
    if motions == "starter":
        return None
    if kind != "amass" or not rest:
        raise UserError(f"got {motions!r}, expected starter or amass:DIR", "--motions")
    return Path(rest)


def read_captured(files: Sequence[Path], settings: MotionSettings) -> list[Motion]:
    """The motions of AMASS files that are long enough for a window at the highest speed. UserError for a damaged file,
    and where none is long enough."""
    segments = (motion for file in files for motion in load_amass_segments(file, settings.fps))
    found = [motion for motion in segments if len(motion) >= settings.longest]
    if files and not found:
        needed = settings.longest / settings.fps
        raise UserError(f"no motion is {needed:.1f} s long, as a window needs", files[0].parent, "Add longer ones")
    return found


def make_shard(
    seed: int, number: int, settings: MotionSettings, captured: Sequence[Motion], generate: Generate
) -> np.ndarray:
    """Motions of shard `number`: (N,frames,24,3) float32 axis-angle, radians, y up. Told by the arguments alone."""
    rng = np.random.default_rng(np.random.SeedSequence([SCHEMA, seed, number]))
    weights = np.array([len(motion) for motion in captured], np.float64)
    made: list[Motion] = []
    for _ in range(MOTIONS_A_SHARD):
        speed = float(np.exp(rng.uniform(*np.log(SPEEDS))))
        needed = int(np.ceil(settings.frames * speed)) + 1
        if len(captured) and rng.random() < settings.captured:
            source = captured[int(rng.choice(len(captured), p=weights / weights.sum()))]
            start = int(rng.integers(len(source) - needed + 1))
            part = slice(start, start + needed)
            motion = Motion(source.poses[part], source.trans[part], source.fps, source.kind)
        else:
            motion = generate(int(rng.integers(1 << 62)), needed, settings.fps)
        motion = augment.change_speed(motion, speed)
        made.append(Motion(motion.poses[: settings.frames], motion.trans[: settings.frames], motion.fps, motion.kind))
    mixed = []
    for motion in made:
        if rng.random() < SWAPPED:
            other, limbs = made[int(rng.integers(len(made)))], ARMS if rng.random() < 0.6 else LEGS
            motion = augment.swap_limbs(motion, other, limbs)
        mixed.append(augment.jitter(motion, rng, JITTER_DEGREES) if rng.random() < JITTERED else motion)
    return np.stack([motion.poses for motion in mixed])


def motion_key(settings: MotionSettings, files: Sequence[Path], seed: int, generate: Generate) -> Key:
    """What a shard depends on beside its number; how many there are in all does not matter to it."""
    captured = {"share": settings.captured, "files": [sha256_file(file) for file in files]} if files else None
    return Key.of(
        "motions",
        ("training.motions", generate.__module__.partition(".")[2]),
        schema=SCHEMA,
        frames=settings.frames,
        fps=settings.fps,
        seed=seed,
        captured=captured,
    )


class MotionBank:
    """The shards of a run, made in the background; used in a `with` statement, or to be closed.

    folder: where they are kept, below a name that tells all they depend on. files: AMASS files to draw from, beside
    what `generate` makes up. workers: processes that make them; of several that train, one has them and the others
    none. `identity`: plain values that the windows depend on.
    """

    def __init__(
        self,
        folder: Path,
        settings: MotionSettings,
        files: Sequence[Path] = (),
        *,
        generate: Generate,
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.settings, self.seed = settings, seed
        key = motion_key(settings, files, seed, generate)
        self.identity: dict[str, Any] = {**key.inputs, "shards": settings.shards}
        named = {"motions": str(files[0].parent) if files else "procedural", "frames": str(settings.frames)}
        self.folder = folder_of(folder, key, named, "motions to train on")
        self._shards: dict[int, np.ndarray] = {}
        self._workers = Background("motions")
        missing = [number for number in range(settings.shards) if not self._path(number).exists()]
        for worker in range(min(workers, len(missing))):
            part = missing[worker::workers]
            told = [str(file) for file in files]
            self._workers.start(_make_shards, str(self.folder), seed, settings, told, part, generate)

    def shard(self, number: int) -> np.ndarray:
        """Motions (N,frames,24,3) of shard `number`; waits for it. UserError where it cannot be made."""
        if number not in self._shards:
            path = self._path(number)
            self._workers.wait(path, others=process_of()[1] > 1 and not self._workers.started)
            with np.load(path, allow_pickle=False) as file:
                self._shards[number] = file["poses"]
        return self._shards[number]

    def draw(self, rng: np.random.Generator, count: int, frames: int, newest: int) -> Tensor:
        """`count` windows (count,frames,24,3) float32 axis-angle, y up, from the shards up to `newest`."""
        last = min(newest, self.settings.shards - 1)
        windows = []
        for number in rng.integers(last + 1, size=count).tolist():
            poses = self.shard(number)
            start = int(rng.integers(poses.shape[1] - frames + 1))
            windows.append(poses[int(rng.integers(len(poses))), start : start + frames])
        return torch.from_numpy(np.stack(windows))

    def close(self) -> None:
        """Stops making motions."""
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.npz"


def _make_shards(
    folder: str, seed: int, settings: MotionSettings, files: list[str], numbers: list[int], generate: Generate
) -> None:
    """A background process: makes these shards."""
    captured = read_captured([Path(file) for file in files], settings)
    for number in numbers:
        path = Path(folder) / f"{number:04d}.npz"
        if not path.exists():
            with OutputRule().file(path, KIND, hashed=False) as temporary:
                write_npz(temporary, {"poses": make_shard(seed, number, settings, captured, generate)})


def augmented(poses: Tensor, rng: np.random.Generator) -> BodyParams:
    """Windows of motion (B,T,24,3), axis-angle, y up -> BodyParams of B*T frames as a camera sees them.

    Half are mirrored, half run backwards; every window has a shape of its own, and a camera that stands anywhere around
    the person, tilted by some degrees and turning slowly.
    """
    count, frames = poses.shape[:2]
    flip, back = (torch.from_numpy(rng.random(count) < 0.5) for _ in range(2))
    poses = torch.where(flip[:, None, None, None], poses[:, :, list(MIRROR)] * _MIRROR_AXIS, poses)
    poses = torch.where(back[:, None, None, None], poses.flip(1), poses)
    rotations = axis_angle_to_matrix(poses)
    root = random_views(rng, count, frames) @ rotations[:, :, 0]
    betas = torch.from_numpy(np.clip(rng.normal(size=(count, 10)), -LIMIT, LIMIT).astype(np.float32))
    return BodyParams(
        root.flatten(0, 1)[:, None],
        rotations[:, :, 1:].flatten(0, 1),
        betas[:, None].expand(-1, frames, -1).flatten(0, 1),
    )


def random_views(rng: np.random.Generator, count: int, frames: int) -> Tensor:
    """Rotations from y up to the camera frame (count,frames,3,3): heading uniform, pitch 5 +- 13 and roll +- 4 degrees
    (deviations), all three drifting through the window as a hand-held camera does."""
    time = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    heading = rng.uniform(0, 2 * np.pi, count)
    pitch = np.radians(np.clip(5 + 13 * rng.normal(size=count), -35, 50))
    roll = np.radians(4 * rng.normal(size=count))
    drifts = rng.normal(size=(3, count)) * np.array([[0.4], [0.06], [0.02]])
    angles = [
        torch.from_numpy(start.astype(np.float32))[:, None] + torch.from_numpy(drift.astype(np.float32))[:, None] * time
        for start, drift in zip((heading, pitch, roll), drifts, strict=True)
    ]
    zero = torch.zeros_like(angles[0])
    yaw = axis_angle_to_matrix(torch.stack([zero, angles[0], zero], -1))
    tilt = axis_angle_to_matrix(torch.stack([angles[1], zero, zero], -1))
    lean = axis_angle_to_matrix(torch.stack([zero, zero, angles[2]], -1))
    return _CAMERA @ lean @ tilt @ yaw
