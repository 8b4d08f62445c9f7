"""AMASS motion files (npz): SMPL-H (156 numbers a frame), SMPL-X (165) or SMPL (72), z up, any frame rate.

Of each frame the first 66 numbers are used (root and 21 body joints, the same in all layouts); SMPL's two hand joints
stay at rest. Format: https://github.com/nghorbani/amass. Folders are read as the archives unpack (`amass_files`): there
are files of a subject's shape beside the motions, motions too short for anything, and what file systems leave behind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hmrcompress.errors import UserError, some, tell
from hmrcompress.io.npz import read_headers, read_npz
from hmrcompress.motion import rotvec
from hmrcompress.motion.arrays import Array
from hmrcompress.motion.clip import NUM_JOINTS, Motion
from hmrcompress.motion.resample import at_frames

WIDTHS = {72: "SMPL", 156: "SMPL-H", 165: "SMPL-X"}
BODY_NUMBERS = 66
RATE_KEYS = ("mocap_framerate", "mocap_frame_rate")
_Z_UP_TO_Y_UP = np.array([-np.pi / 2, 0.0, 0.0])
REMEDY = "Use a motion file of AMASS (npz with poses, trans and mocap_framerate)."
RATES = (1, 10_000)
"""Frames a second that a file may claim."""
MOST_RADIANS = 4 * np.pi
"""Of a rotation: twice around, where fits of markers wind up."""
MOST_METRES = 300
"""That somebody is away from the origin: of millimetres, a pelvis at the height of most people."""
SHORTEST = 0.5
"""Seconds below which a stretch of valid frames is left out."""
APPLE_DOUBLE = "._"
"""How the names begin of what macOS writes beside files on foreign file systems: no npz, whatever it is called."""
SUFFIXES = ("_poses", "_stageii")
"""What SMPL-H's and SMPL-X's files have behind the name of the motion."""
ARCHIVES = (".tar.bz2", ".tar.xz", ".tar", ".zip")


@dataclass(frozen=True)
class MotionFiles:
    """The files of a folder that hold a motion of the length that was asked for, and the names of the others, by why
    they were left out."""

    folder: Path
    files: tuple[Path, ...]
    left_out: dict[str, list[str]]

    def tell(self) -> None:
        """Says how many were left out, and why, if any were."""
        if count := sum(map(len, self.left_out.values())):
            reasons = [f"{len(names)} {reason} ({some(names)})" for reason, names in self.left_out.items()]
            tell(f"left out {count} of {count + len(self.files)} files: {'; '.join(reasons)}", self.folder)


def amass_files(folder: Path | str, shortest: float = SHORTEST, *, held_out: Collection[str] = ()) -> MotionFiles:
    """The motions of at least `shortest` seconds below a folder, sorted, told from what files say of themselves.

    held_out: names of motions (`motion_name`) that are not to be used. UserError where there is no .npz file, none that
    can be used, and for one that claims a motion of another kind or is damaged.
    """
    folder = Path(folder)
    found = sorted(path for path in folder.rglob("*.npz") if not path.is_dir())
    files: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for file in found:
        reason = "held out" if motion_name(file) in held_out else _unusable(file, shortest)
        if reason is None:
            files.append(file)
        else:
            left_out.setdefault(reason, []).append(file.name)
    if not found:
        raise UserError("there is no .npz file below this folder", folder, _remedy_of_none(folder))
    if not files:
        reasons = "; ".join(f"{len(names)} {reason} ({some(names)})" for reason, names in left_out.items())
        raise UserError(f"no file below this folder can be used: {reasons}", folder, "Add longer motions of AMASS")
    return MotionFiles(folder, tuple(files), left_out)


def motion_name(file: Path) -> str:
    """What a motion is called, whichever body its file is of: `01_06` of `01_06_poses.npz`."""
    return next((file.stem.removesuffix(end) for end in SUFFIXES if file.stem.endswith(end)), file.stem)


def _unusable(file: Path, shortest: float) -> str | None:
    """Why a file cannot be used, from its headers and frame rate; None where it can. UserError for a damaged one."""
    if file.name.startswith(APPLE_DOUBLE):
        return "left behind by macOS"
    headers = read_headers(file, ("poses", "trans"), remedy=REMEDY)
    if "poses" not in headers:
        return "without a motion"
    shape, dtype = headers["poses"]
    if len(shape) == 2 and shape[0] == 0:
        return "without frames"
    _check_poses(shape, dtype, file)
    if "trans" not in headers:
        raise UserError("no array 'trans'", file, REMEDY)
    _check_trans(*headers["trans"], shape[0], file)
    arrays = read_npz(file, ("valid", *RATE_KEYS), remedy=REMEDY)
    valid = _valid(arrays, shape[0], file)
    longest = max((stop - start for start, stop in _runs(valid)), default=0) / _rate(arrays, file)
    return None if longest >= shortest else f"shorter than {shortest:.3g} s"


def _remedy_of_none(folder: Path) -> str:
    packed = sorted(file.name for file in folder.rglob("*") if file.name.endswith(ARCHIVES)) if folder.is_dir() else []
    return f"Unpack {packed[0]} there" if packed else "Give --motions amass:DIR an AMASS folder"


def load_amass_segments(path: str | Path, fps: float = 30.0, shortest: float = SHORTEST) -> list[Motion]:
    """All stretches of valid frames of at least `shortest` seconds, resampled to `fps`, y up, kind = the file's stem.

    `trans` is taken for the root joint's position; the constant from there to the joint (in SMPL's files the rest
    position of the pelvis, nearly horizontal) is left out, as it depends on the body. A file may hold `valid` (T,).
    Raises UserError for a file that is missing, torn or no npz, a key that is missing, a wrong shape, NaN, a frame
    rate that is not above 0, and where no stretch is long enough. Pickles inside are never opened.
    """
    path = Path(path)
    arrays = _read(path)
    poses, trans, rate = _poses(arrays, path), _array(arrays, "trans", path), _rate(arrays, path)
    _check_trans(trans.shape, trans.dtype, len(poses), path)
    valid = _valid(arrays, len(poses), path)
    for name, array in (("poses", poses), ("trans", trans)):
        if not np.isfinite(array[valid]).all():
            bad = int(np.flatnonzero(valid & ~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
            raise UserError(f"{name}: NaN or infinity in frame {bad}", path, "Repair it, or mark it false in `valid`.")
    _check_units(poses[valid], trans[valid], path)
    poses[:, 0] = rotvec.compose(_Z_UP_TO_Y_UP, np.where(valid[:, None], poses[:, 0], 0.0))
    trans = trans[:, [0, 2, 1]] * np.array([1.0, 1.0, -1.0])
    clips = []
    for start, stop in _runs(valid):
        frames = np.arange(start, stop - 1 + 1e-6, rate / fps) - start
        if (stop - start) / rate >= shortest:
            clips.append(Motion(*at_frames(poses[start:stop], trans[start:stop], frames), fps, path.stem))
    if not clips:
        raise UserError(f"no stretch of valid frames of at least {shortest:g} s", path, "Leave this file out.")
    return clips


def _check_units(poses: Array, trans: Array, path: Path) -> None:
    """UserError for rotations (T,24,3) and places (T,3) that can be no radians and no metres."""
    turned = float(np.linalg.norm(poses, axis=-1).max(initial=0.0))
    if turned > MOST_RADIANS:
        raise UserError(f"poses: got a rotation of {turned:.4g}, expected radians", path, "Are they degrees?")
    away = float(np.abs(trans).max(initial=0.0))
    if away > MOST_METRES:
        raise UserError(f"trans: got {away:.4g}, expected metres, at most {MOST_METRES}", path, "Are they millimetres?")


def _read(path: Path) -> dict[str, Array]:
    return read_npz(path, ("poses", "trans", "valid", *RATE_KEYS), remedy=REMEDY)


def _valid(arrays: dict[str, Array], frames: int, path: Path) -> Array:
    valid = np.asarray(arrays.get("valid", np.ones(frames, dtype=bool)))
    if valid.shape != (frames,) or valid.dtype != np.bool_:
        raise UserError(f"valid is {valid.dtype} {valid.shape}, expected bool ({frames},)", path, REMEDY)
    return valid


def _array(arrays: dict[str, Array], name: str, path: Path) -> Array:
    if name not in arrays:
        raise UserError(f"no array {name!r}", path, REMEDY)
    _check_floats(name, arrays[name].dtype, path)
    return arrays[name].astype(np.float64)


def _check_floats(name: str, dtype: np.dtype, path: Path) -> None:
    if not np.issubdtype(dtype, np.floating):
        raise UserError(f"{name} is {dtype}, expected floating point", path, REMEDY)


def _check_poses(shape: tuple[int, ...], dtype: np.dtype, path: Path) -> None:
    _check_floats("poses", dtype, path)
    if len(shape) != 2 or shape[1] not in WIDTHS or not shape[0]:
        known = " or ".join(f"(T,{width}) for {name}" for width, name in WIDTHS.items())
        raise UserError(f"poses has shape {shape}, expected {known}", path, REMEDY)


def _poses(arrays: dict[str, Array], path: Path) -> Array:
    """(T,24,3) radians, hands at rest, still z up."""
    rows = _array(arrays, "poses", path)
    _check_poses(rows.shape, rows.dtype, path)
    poses = np.zeros((len(rows), NUM_JOINTS, 3))
    poses[:, : BODY_NUMBERS // 3] = rows[:, :BODY_NUMBERS].reshape(len(rows), -1, 3)
    return poses


def _check_trans(shape: tuple[int, ...], dtype: np.dtype, frames: int, path: Path) -> None:
    _check_floats("trans", dtype, path)
    if len(shape) != 2 or shape[1] != 3:
        raise UserError(f"trans has shape {shape}, expected (T,3)", path, REMEDY)
    if shape[0] != frames:
        raise UserError(f"trans has {shape[0]} frames, poses {frames}", path, REMEDY)


def _rate(arrays: dict[str, Array], path: Path) -> float:
    for name in RATE_KEYS:
        if name in arrays:
            rate = np.asarray(arrays[name])
            real = np.issubdtype(rate.dtype, np.floating) or np.issubdtype(rate.dtype, np.integer)
            if rate.size == 1 and real and RATES[0] <= float(rate.item()) <= RATES[1]:
                return float(rate.item())
            raise UserError(f"{name} is {rate}, expected {RATES[0]} to {RATES[1]:,} frames a second", path, REMEDY)
    raise UserError(f"no frame rate ({' or '.join(RATE_KEYS)})", path, REMEDY)


def _runs(valid: Array) -> list[tuple[int, int]]:
    """First and one past last index of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], valid, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
