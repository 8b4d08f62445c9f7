"""Tracks as BVH files, a skeleton with its motion each, for Blender, Maya, MotionBuilder and game engines.

Lengths are centimetres, y points up, z towards the viewer. A joint's channels are Zrotation Xrotation Yrotation in
degrees, so that its rotation relative to its parent is Rz Rx Ry; the root has its position before them. The format:
"Biovision BVH", M. Meredith and S. Maddock, Motion Capture File Formats Explained (2001).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.body.model import BodyModel
from hmrcompress.errors import tell
from hmrcompress.pipeline.columns import MOST_KEYFRAMES
from hmrcompress.pipeline.glb import Motion

Array = NDArray[np.float64]
CENTIMETRES = 100.0
UPRIGHT = np.diag([1.0, -1.0, -1.0])
"""From the camera frame (y down, z forward), half a turn about x."""
ORDER = "ZXY"
STILL_STEP = 1 / 30
"""Seconds of a frame that stands alone."""
MOST_STEPS = 5 * MOST_KEYFRAMES
UNEVEN = 0.01
"""Share of a step by which frames may be off and still count as even."""


def write_bvh(path: Path, motion: Motion, body: BodyModel) -> bool:
    """Writes a track. BVH knows even steps only: frames that are not even are put on the median of their steps,
    rotations by the shortest turn, the root along straight lines. A track that is away for so long that this would make
    more than `MOST_STEPS` of its frames is not written, which is told; says whether it was."""
    if (count := _steps(motion)) > max(MOST_STEPS, len(motion.seconds)):
        tell(
            f"would have {count:,} frames at even steps, as track {motion.track} is away for long; left out", path.name
        )
        return False
    step, motion = _even(motion)
    names = SMPL_JOINTS if body.num_joints == len(SMPL_JOINTS) else [f"joint_{n}" for n in range(body.num_joints)]
    betas = torch.from_numpy(np.asarray(motion.betas, np.float32))[None].to(body.v_template.device)
    with torch.no_grad():
        rest = body.rest(betas)[1][0].double().cpu().numpy() * CENTIMETRES
    lines = ["HIERARCHY"]
    order = _joint(lines, 0, 0, names, body.parents, rest)
    rotations = np.asarray(motion.rotations, np.float64).copy()
    rotations[:, 0] = UPRIGHT @ rotations[:, 0]
    angles = _angles(rotations)[:, order].reshape(len(rotations), -1)
    values = np.concatenate([motion.root @ UPRIGHT.T * CENTIMETRES, angles], axis=1)
    lines += ["MOTION", f"Frames: {len(values)}", f"Frame Time: {step:.9g}"]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in values]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return True


def _joint(
    lines: list[str], number: int, depth: int, names: Sequence[str], parents: Sequence[int], rest: Array
) -> list[int]:
    """A joint with all below it; the joints in the order in which their channels stand."""
    space, inside = "\t" * depth, "\t" * (depth + 1)
    # The root's place comes from its channels.
    offset = rest[number] - rest[parents[number]] if parents[number] >= 0 else np.zeros(3)
    channels = "Zrotation Xrotation Yrotation"
    channels = f"3 {channels}" if depth else f"6 Xposition Yposition Zposition {channels}"
    lines += [f"{space}{'JOINT' if depth else 'ROOT'} {names[number]}", f"{space}{{"]
    lines += [f"{inside}OFFSET {_numbers(offset)}", f"{inside}CHANNELS {channels}"]
    order, children = [number], [child for child, above in enumerate(parents) if above == number]
    for child in children:
        order += _joint(lines, child, depth + 1, names, parents, rest)
    if not children:  # half as long as the bone before, so that it is seen
        lines += [f"{inside}End Site", f"{inside}{{", f"{inside}\tOFFSET {_numbers(offset / 2)}", f"{inside}}}"]
    lines.append(f"{space}}}")
    return order


def _numbers(values: Array) -> str:
    return " ".join(f"{value:.6f}" for value in values)


def _angles(rotations: Array) -> Array:
    """(T,J,3,3) -> degrees (T,J,3) about z, x, y, without jumps by a whole turn."""
    from scipy.spatial.transform import Rotation

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an x of 90 degrees, where z and y turn alike: any split of them is right
        found = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_euler(ORDER, degrees=True)
    return np.unwrap(found.reshape(*rotations.shape[:2], 3), axis=0, period=360.0)


def _steps(motion: Motion) -> int:
    """Frames of a track at even steps."""
    seconds = motion.seconds
    if len(seconds) < 2:
        return len(seconds)
    step = float(np.median(np.diff(seconds)))
    return round(float((seconds[-1] - seconds[0]) / step)) + 1 if step > 0 else MOST_STEPS + len(seconds)


def _even(motion: Motion) -> tuple[float, Motion]:
    """The step in seconds, and the motion on even steps."""
    from scipy.spatial.transform import Rotation, Slerp

    seconds = motion.seconds
    if len(seconds) < 2:
        return STILL_STEP, motion
    step, count = float(np.median(np.diff(seconds))), _steps(motion)
    if count == len(seconds):
        step = float(seconds[-1] - seconds[0]) / (count - 1)
    grid = seconds[0] + step * np.arange(count)
    if count == len(seconds) and np.abs(grid - seconds).max() <= UNEVEN * step:
        return step, motion
    grid = np.clip(grid, seconds[0], seconds[-1])
    turned = [Slerp(seconds, Rotation.from_matrix(each))(grid).as_matrix() for each in motion.rotations.swapaxes(0, 1)]
    root = np.stack([np.interp(grid, seconds, column) for column in motion.root.T], axis=1)
    return step, Motion(motion.track, grid, np.stack(turned, axis=1), root, motion.betas)
