"""Clips of human motion made from nothing but a seed.

A clip is a script of one to four segments of different kinds, cross-faded into each other; many segments mix the legs
of one kind with the arms of another. Everything happens on controls (controls.py), so that blends stay inside joint
limits; then the body is balanced and its feet planted (stance.py) and the root placed on the floor (floor.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.motion import rotvec, skeleton
from hmrcompress.motion.arrays import Array
from hmrcompress.motion.clip import Motion
from hmrcompress.motion.curves import blur, ease, wander
from hmrcompress.starter.motion import actions, controls, feats, floor, gaits, gestures, ground, limits, stance
from hmrcompress.starter.motion.controls import TORSO_COLUMNS, UPPER_COLUMNS
from hmrcompress.starter.motion.style import Style

Rng = np.random.Generator
Maker = Callable[[Rng, Array, Style], Array]

_LEGS: dict[str, tuple[Maker, float]] = {
    "walk": (gaits.walk, 10), "run": (gaits.run, 5), "march": (gaits.march, 3), "sneak": (gaits.sneak, 3),
    "backwards": (gaits.backwards, 3), "sidestep": (gaits.sidestep, 3), "limp": (gaits.limp, 2),
    "climb": (gaits.climb, 3),
    "idle": (actions.idle, 8), "bounce": (actions.bounce, 5), "turn": (actions.turn, 4), "squat": (actions.squat, 5),
    "lunge": (actions.lunge, 5), "bend": (actions.bend, 5), "kick": (actions.kick, 4), "jump": (actions.jump, 4),
    "hop": (actions.hop, 3), "freeform": (actions.freeform, 6), "sit_chair": (ground.sit_chair, 5),
    "sit_floor": (ground.sit_floor, 1), "kneel": (ground.kneel, 4), "crawl": (ground.crawl, 1), "lie": (ground.lie, 1),
    "fall": (ground.fall, 1), "get_up": (ground.get_up, 1), "exercise": (ground.push_up, 1),
    "acrobatics": (feats.acrobatics, 1), "hang": (feats.hang, 1),
}  # fmt: skip
_ARMS: dict[str, tuple[Maker, float]] = {
    "idle_arms": (gestures.idle_arms, 3), "wave": (gestures.wave_hand, 2), "reach": (gestures.reach_out, 6),
    "point": (gestures.point_at, 2), "box": (gestures.box, 2), "carry": (gestures.carry, 2),
    "dance": (gestures.dance_arms, 3), "stretch": (gestures.stretch, 3), "talk": (gestures.talk, 2),
    "throw": (gestures.throw, 2), "circles": (gestures.circles, 2), "any_arms": (gestures.any_posture, 5),
}  # fmt: skip
_BUSY_ARMS = ("crawl", "fall", "get_up", "exercise", "acrobatics", "hang")
"""Kinds whose arms carry or catch the body: no gesture is laid over them."""
_STEADY = ("idle", "bounce", "walk", "sit_chair", "turn", "kneel", "sit_floor", "squat", "freeform")
"""Kinds that gestures are made on when the gesture is the point."""

_BENDS = controls.columns("thigh", "knee", "lift", "abduct")
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
    track, root, name = _script(rng, t, lead + seconds + 0.5, style, kind)
    poses, trans = _finish(rng, t, fps, track, root, style)
    return Motion(poses.astype(np.float32), trans.astype(np.float32), fps, name)


def _script(rng: Rng, t: Array, end: float, style: Style, kind: str | None) -> tuple[Array, Array, str]:
    """Cross-faded segments over 0..end: controls and root rotation vectors at times t, and the longest one's name."""
    bounds = [0.0]
    while bounds[-1] < end:
        bounds.append(bounds[-1] + rng.uniform(2.0, 7.5))
    shown = [min(b, t[-1]) - max(a, t[0]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    longest = int(np.argmax(shown))
    step = t[1] - t[0] if len(t) > 1 else 1 / 30
    total, root, name = np.zeros((len(t), controls.WIDTH)), np.zeros((len(t), 3)), ""
    for i, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        # The segment's own clock reaches a little beyond it on the clip's frame grid, for the fade.
        first, last = int(np.floor((a - t[0]) / step)), int(np.ceil((b + _LONGEST_FADE - t[0]) / step))
        segment, label = _segment(rng, t[0] + step * np.arange(first, last + 1), style, kind if i == longest else None)
        placed = segment[np.clip(np.arange(len(t)) - first, 0, len(segment) - 1)]
        turned = floor.root_rotation(placed)
        name = label if i == longest else name
        if i == 0:
            total, root = placed, turned
            continue
        start = int(np.clip(np.searchsorted(t, a), 0, len(t) - 1))
        heading = floor.nearest_heading(root[start], turned[start])
        turned = rotvec.compose(np.array([0.0, heading, 0.0]), turned)
        apart = np.rad2deg(rotvec.angle_between(root[start], turned[start]))
        change = np.abs(placed[start] - total[start])[_BENDS].max()
        fade = min(max(rng.uniform(0.5, 1.1), 0.012 * apart, 0.008 * change), _LONGEST_FADE)
        weight = ease((t - a) / fade)
        total += weight[:, None] * (placed - total)
        way = rotvec.continuous(rotvec.compose(-root[start:], turned[start:]))
        root[start:] = rotvec.compose(root[start:], weight[start:, None] * way)
    return total, root, name


def _segment(rng: Rng, t: Array, style: Style, kind: str | None) -> tuple[Array, str]:
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


def _draw(rng: Rng, table: dict[str, tuple[Maker, float]]) -> str:
    weights = np.array([weight for _, weight in table.values()])
    return str(rng.choice(list(table), p=weights / weights.sum()))


def _maybe_flipped(rng: Rng, track: Array) -> Array:
    return controls.flipped(track) if rng.random() < 0.5 else track


def _finish(rng: Rng, t: Array, fps: float, track: Array, root: Array, style: Style) -> tuple[Array, Array]:
    """Noise, arms off the trunk, limits, stance, floor: controls and root -> poses (T,24,3) and root path (T,3)."""
    track = blur(track + style.wandering(rng, t), 0.03 * fps)
    root = rotvec.compose(np.array([0.0, rng.uniform(0, 2 * np.pi), 0.0]), floor.smoothed(root, 0.03 * fps))
    angles = controls.to_angles(controls.clear_of_body(track), style.spine, style.neck, style.carry)
    noise = rng.standard_normal(72) + 0.35 * wander(rng, t, 72, 0.1, 0.8)
    angles += limits.HABIT * noise.reshape(-1, 24, 3)
    angles, root = stance.settle(track, controls.limited(angles), root, fps)
    angles, root = limits.clamp(blur(angles, 0.025 * fps)), floor.smoothed(root, 0.025 * fps)
    trans = floor.root_path(track, root, skeleton.contact_points(*stance.posed(angles, root)), fps)
    poses = limits.to_poses(angles)
    poses[:, 0] = root
    return poses, trans
