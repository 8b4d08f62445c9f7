"""AMASS motion files (npz): SMPL-H (156 numbers a frame) or SMPL-X (165), z up, any frame rate.

Of each frame the first 66 numbers are used (root and 21 body joints, the same in both layouts); SMPL's two hand
joints stay at rest. Format: https://github.com/nghorbani/amass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.io.npz import read_npz
from hmrcompress.motion import rotvec
from hmrcompress.motion.arrays import Array
from hmrcompress.motion.clip import NUM_JOINTS, Motion
from hmrcompress.motion.resample import at_frames

WIDTHS = {156: "SMPL-H", 165: "SMPL-X"}
BODY_NUMBERS = 66
RATE_KEYS = ("mocap_framerate", "mocap_frame_rate")
_Z_UP_TO_Y_UP = np.array([-np.pi / 2, 0.0, 0.0])
REMEDY = "Use a motion file of AMASS (npz with poses, trans and mocap_framerate)."


def load_amass(path: str | Path, fps: float = 30.0) -> Motion:
    """The longest stretch of valid frames of a file; see `load_amass_segments`."""
    return max(load_amass_segments(path, fps), key=len)


def load_amass_segments(path: str | Path, fps: float = 30.0, shortest: float = 0.5) -> list[Motion]:
    """All stretches of valid frames of at least `shortest` seconds, resampled to `fps`, y up, kind = the file's stem.

    `trans` is taken for the root joint's position; the constant from there to the joint (in SMPL's files the rest
    position of the pelvis, nearly horizontal) is left out, as it depends on the body. A file may hold `valid` (T,).
    Raises UserError for a file that is missing, torn or no npz, a key that is missing, a wrong shape, NaN, a frame
    rate that is not above 0, and where no stretch is long enough. Pickles inside are never opened.
    """
    path = Path(path)
    arrays = _read(path)
    poses, trans, rate = _poses(arrays, path), _trans(arrays, path), _rate(arrays, path)
    if len(trans) != len(poses):
        raise UserError(f"trans has {len(trans)} frames, poses {len(poses)}", path, REMEDY)
    valid = np.asarray(arrays.get("valid", np.ones(len(poses), dtype=bool)))
    if valid.shape != (len(poses),) or valid.dtype != np.bool_:
        raise UserError(f"valid is {valid.dtype} {valid.shape}, expected bool ({len(poses)},)", path, REMEDY)
    for name, array in (("poses", poses), ("trans", trans)):
        if not np.isfinite(array[valid]).all():
            bad = int(np.flatnonzero(valid & ~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
            raise UserError(f"{name}: NaN or infinity in frame {bad}", path, "Repair it, or mark it false in `valid`.")
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


def _read(path: Path) -> dict[str, Array]:
    return read_npz(path, ("poses", "trans", "valid", *RATE_KEYS), remedy=REMEDY)


def _array(arrays: dict[str, Array], name: str, path: Path) -> Array:
    if name not in arrays:
        raise UserError(f"no array {name!r}", path, REMEDY)
    if not np.issubdtype(arrays[name].dtype, np.floating):
        raise UserError(f"{name} is {arrays[name].dtype}, expected floating point", path, REMEDY)
    return arrays[name].astype(np.float64)


def _poses(arrays: dict[str, Array], path: Path) -> Array:
    """(T,24,3) radians, hands at rest, still z up."""
    rows = _array(arrays, "poses", path)
    if rows.ndim != 2 or rows.shape[1] not in WIDTHS or not len(rows):
        known = " or ".join(f"(T,{width}) for {name}" for width, name in WIDTHS.items())
        raise UserError(f"poses has shape {rows.shape}, expected {known}", path, REMEDY)
    poses = np.zeros((len(rows), NUM_JOINTS, 3))
    poses[:, : BODY_NUMBERS // 3] = rows[:, :BODY_NUMBERS].reshape(len(rows), -1, 3)
    return poses


def _trans(arrays: dict[str, Array], path: Path) -> Array:
    trans = _array(arrays, "trans", path)
    if trans.ndim != 2 or trans.shape[1] != 3:
        raise UserError(f"trans has shape {trans.shape}, expected (T,3)", path, REMEDY)
    return trans


def _rate(arrays: dict[str, Array], path: Path) -> float:
    for name in RATE_KEYS:
        if name in arrays:
            rate = np.asarray(arrays[name])
            if rate.size == 1 and np.issubdtype(rate.dtype, np.number) and 0 < float(rate.item()) < np.inf:
                return float(rate.item())
            raise UserError(f"{name} is {rate}, expected frames a second above 0", path, REMEDY)
    raise UserError(f"no frame rate ({' or '.join(RATE_KEYS)})", path, REMEDY)


def _runs(valid: Array) -> list[tuple[int, int]]:
    """First and one past last index of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], valid, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
