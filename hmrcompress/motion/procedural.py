"""Clips of human motion made from nothing but a seed.

A clip is a script of one to four segments of different kinds, cross-faded into each other; many segments mix the legs
of one kind with the arms of another. Everything happens on controls (controls.py), so that blends stay inside joint
limits; then the feet are levelled, the body balanced and the root placed on the floor (floor.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.motion import actions, controls, floor, gaits, gestures, ground, limits, rotvec, skeleton
from hmrcompress.motion.arrays import Array
from hmrcompress.motion.clip import Motion
from hmrcompress.motion.controls import INDEX, TORSO_COLUMNS, UPPER_COLUMNS
from hmrcompress.motion.curves import blur, ease, wander
from hmrcompress.motion.style import Style

Maker = Callable[[np.random.Generator, Array, Style], Array]

_LEGS: dict[str, tuple[Maker, float]] = {
    "walk": (gaits.walk, 8), "run": (gaits.run, 5), "march": (gaits.march, 3), "sneak": (gaits.sneak, 3),
    "backwards": (gaits.backwards, 3), "sidestep": (gaits.sidestep, 3), "limp": (gaits.limp, 2), "climb": (gaits.climb, 3),
    "idle": (actions.idle, 6), "bounce": (actions.bounce, 5), "turn": (actions.turn, 4), "squat": (actions.squat, 5),
    "lunge": (actions.lunge, 5), "bend": (actions.bend, 5), "kick": (actions.kick, 4), "jump": (actions.jump, 4),
    "hop": (actions.hop, 3), "freeform": (actions.freeform, 8), "sit_chair": (ground.sit_chair, 7),
    "sit_floor": (ground.sit_floor, 5), "kneel": (ground.kneel, 4), "crawl": (ground.crawl, 4), "lie": (ground.lie, 4),
    "fall": (ground.fall, 4), "get_up": (ground.get_up, 4), "exercise": (ground.push_up, 4),
}  # fmt: skip
_ARMS: dict[str, tuple[Maker, float]] = {
    "idle_arms": (gestures.idle_arms, 3), "wave": (gestures.wave_hand, 2), "reach": (gestures.reach_out, 6),
    "point": (gestures.point_at, 2), "box": (gestures.box, 2), "carry": (gestures.carry, 2),
    "dance": (gestures.dance_arms, 3), "stretch": (gestures.stretch, 3), "talk": (gestures.talk, 2),
    "throw": (gestures.throw, 2), "circles": (gestures.circles, 2), "any_arms": (gestures.any_posture, 5),
}  # fmt: skip
_BUSY_ARMS = ("crawl", "fall", "get_up", "exercise")
"""Kinds whose arms carry or catch the body: no gesture is laid over them."""
_STEADY = ("idle", "bounce", "walk", "sit_chair", "turn", "kneel", "sit_floor", "squat", "freeform")
"""Kinds that gestures are made on when the gesture is the point."""

_TURNS = controls.columns("pitch", "roll", "spin")
_BENDS = controls.columns("thigh", "knee", "raise", "abduct")
_LONGEST_FADE = 2.2

KINDS = tuple(_LEGS) + tuple(_ARMS)
"""Every kind of motion. A clip is named after the kind that fills most of it: its arms where a gesture leads."""


def generate(seed: int, frames: int, fps: float = 30.0, kind: str | None = None) -> Motion:
    """A clip of `frames` frames, the same for the same arguments. kind: one of KINDS for the longest part, or any.

    Root at the origin over the floor y = 0, first heading uniform over the circle. Raises UserError for a count of
    frames below 1 or an unknown kind.
    """
    if frames < 1 or not fps > 0:
        raise UserError(f"got {frames} frames at {fps} frames a second", "motion", "Both must be above 0.")
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}", "motion", f"Known: {', '.join(KINDS)}.")
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    style = Style.draw(rng)
    seconds = frames / fps
    lead = float(rng.uniform(0.0, 2.0))
    t = lead + np.arange(frames) / fps
    track, name = _script(rng, t, lead + seconds + 0.5, style, kind)
    return _finish(rng, t, fps, track, style, name)


def _script(rng: np.random.Generator, t: Array, end: float, style: Style, kind: str | None) -> tuple[Array, str]:
    """Segments that cover 0..end, cross-faded: the track at times t, and the name of the longest segment."""
    bounds = [0.0]
    while bounds[-1] < end:
        bounds.append(bounds[-1] + rng.uniform(2.0, 7.5))
    shown = [min(b, t[-1]) - max(a, t[0]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    longest = int(np.argmax(shown))
    step = t[1] - t[0] if len(t) > 1 else 1 / 30
    total, name = np.zeros((len(t), controls.WIDTH)), ""
    for i, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        # The segment's own clock reaches a little beyond it on the clip's frame grid, for the fade.
        first, last = int(np.floor((a - t[0]) / step)), int(np.ceil((b + _LONGEST_FADE - t[0]) / step))
        segment, label = _segment(rng, t[0] + step * np.arange(first, last + 1), style, kind if i == longest else None)
        placed = segment[np.clip(np.arange(len(t)) - first, 0, len(segment) - 1)]
        name = label if i == longest else name
        if i == 0:
            total = placed
            continue
        start = int(np.clip(np.searchsorted(t, a), 0, len(t) - 1))
        placed[:, INDEX["yaw"]] += total[start, INDEX["yaw"]] - placed[start, INDEX["yaw"]]
        change = np.abs(placed[start] - total[start])
        fade = max(rng.uniform(0.5, 1.1), 0.012 * change[_TURNS].max(), 0.008 * change[_BENDS].max())
        total += ease((t - a) / min(fade, _LONGEST_FADE))[:, None] * (placed - total)
    return total, name


def _segment(rng: np.random.Generator, t: Array, style: Style, kind: str | None) -> tuple[Array, str]:
    """One kind of motion, or legs and arms of two; either may be mirrored. The track at times t and its name."""
    if kind is None:
        kind = _draw(rng, _LEGS) if rng.random() < 0.66 else _draw(rng, _ARMS)
    if kind in _LEGS:
        legs, gesture = kind, _draw(rng, _ARMS) if kind not in _BUSY_ARMS and rng.random() < 0.45 else None
    else:
        legs, gesture = str(rng.choice(_STEADY)), kind
    track = _maybe_flipped(rng, _LEGS[legs][0](rng, t, style))
    if gesture is not None:
        upper = _maybe_flipped(rng, _ARMS[gesture][0](rng, t, style))
        share = rng.choice([1.0, 1.0, 0.7])
        arms = UPPER_COLUMNS if rng.random() < 0.75 else controls.ARM_COLUMNS["l"] + controls.HEAD_COLUMNS
        track[:, arms] += share * (upper[:, arms] - track[:, arms])
        track[:, TORSO_COLUMNS] += share * upper[:, TORSO_COLUMNS]
    return track, kind


def _draw(rng: np.random.Generator, table: dict[str, tuple[Maker, float]]) -> str:
    weights = np.array([weight for _, weight in table.values()])
    return str(rng.choice(list(table), p=weights / weights.sum()))


def _maybe_flipped(rng: np.random.Generator, track: Array) -> Array:
    return controls.flipped(track) if rng.random() < 0.5 else track


def _finish(rng: np.random.Generator, t: Array, fps: float, track: Array, style: Style, name: str) -> Motion:
    """Noise, arms off the trunk, limits, balance, level feet, floor: controls -> poses and root path."""
    track = blur(track + style.wandering(rng, t), 0.03 * fps)
    track[:, INDEX["yaw"]] += rng.uniform(0, 360)
    angles = controls.to_angles(controls.clear_of_body(track), style.spine, style.neck)
    angles[:, 1:] += (rng.normal(0, 1.2, 69) + 1.0 * wander(rng, t, 69, 0.1, 0.8)).reshape(-1, 23, 3)
    angles = controls.limited(angles)
    for _ in range(2):
        joints, turned = _posed(track, angles)
        tilt = floor.balance(track, joints, skeleton.contact_points(joints, turned), fps)
        track[:, [INDEX["pitch"], INDEX["roll"]]] += tilt
    _, turned = _posed(track, angles)
    floor.level_feet(track, angles, turned)
    angles = controls.limited(angles)
    joints, turned = _posed(track, angles)
    trans = floor.root_path(track, skeleton.contact_points(joints, turned), fps)
    poses = limits.to_poses(angles)
    poses[:, 0] = floor.root_rotation(track)
    return Motion(poses.astype(np.float32), trans.astype(np.float32), fps, name)


def _posed(track: Array, angles: Array) -> tuple[Array, Array]:
    poses = limits.to_poses(angles)
    poses[:, 0] = floor.root_rotation(track)
    return skeleton.forward(rotvec.to_matrix(poses))
