"""The few dozen named numbers a person is animated by, and how joint angles follow from them.

A control track is an array (T, len(NAMES)) of degrees (metres and weights for the last few). Tracks of any two kinds
can be added, mixed and cross-faded, because every control is a plain number with the same meaning everywhere; limits
are convex in them.
"""

from __future__ import annotations

import numpy as np

from hmrcompress.body.joints import joint
from hmrcompress.motion import limits
from hmrcompress.motion.arrays import Array

_TORSO = ("torso_flex", "torso_bend", "torso_twist")
_HEAD = ("head_flex", "head_bend", "head_twist")
_ARM = ("shrug", "protract", "raise", "abduct", "turn_in", "elbow", "supinate", "wrist", "deviate")
_LEG = ("thigh", "spread", "turn_out", "knee", "point", "invert", "toes")
_ROOT = ("yaw", "pitch", "roll", "spin")
_SUPPORT = ("air", "plant_l", "plant_r", "balance", "forward", "left")
SIDED = _ARM + _LEG
NAMES = (
    _TORSO
    + _HEAD
    + tuple("l_" + n for n in _ARM)
    + tuple("r_" + n for n in _ARM)
    + tuple("l_" + n for n in _LEG)
    + tuple("r_" + n for n in _LEG)
    + _ROOT
    + _SUPPORT
)
"""Degrees, but for `air` (metres the lowest point is above the floor), `forward`, `left` (m/s, used in flight only),
and the weights 0..1 `plant_l`, `plant_r` (level that foot) and `balance` (keep the centre of mass over the feet).
The root turns by `yaw` (heading, left positive), then `pitch` (forward positive), `roll` (right positive) and `spin`
about the body's own long axis: lying on the back is pitch -90."""

INDEX = {name: i for i, name in enumerate(NAMES)}
WIDTH = len(NAMES)


def columns(*names: str) -> list[int]:
    """Columns of controls; a name of a limb's control without its side (`elbow`) stands for both sides."""
    found: list[int] = []
    for name in names:
        found += [INDEX["l_" + name], INDEX["r_" + name]] if name in SIDED else [INDEX[name]]
    return found


ARM_COLUMNS = {side: [INDEX[f"{side}_{n}"] for n in _ARM] for side in "lr"}
LEG_COLUMNS = {side: [INDEX[f"{side}_{n}"] for n in _LEG] for side in "lr"}
TORSO_COLUMNS = columns(*_TORSO)
HEAD_COLUMNS = columns(*_HEAD)
ROOT_COLUMNS = columns(*_ROOT)
UPPER_COLUMNS = ARM_COLUMNS["l"] + ARM_COLUMNS["r"] + HEAD_COLUMNS
ANGLE_COLUMNS = UPPER_COLUMNS + TORSO_COLUMNS + LEG_COLUMNS["l"] + LEG_COLUMNS["r"]
_NEGATED = columns("torso_bend", "torso_twist", "head_bend", "head_twist", "yaw", "roll", "spin", "left")


def posture(**values: float) -> Array:
    """One row of controls, (WIDTH,): zero but for what is named; names without a side set both sides."""
    row = np.zeros(WIDTH)
    for name, value in values.items():
        row[columns(name)] = value
    return row


def still(t: Array, row: Array) -> Array:
    """A track that stays at one row: (len(t), WIDTH)."""
    return np.repeat(row[None], len(t), axis=0)


def add(track: Array, **curves: Array | float) -> Array:
    """Add curves (T,) or numbers to named columns of a track, in place, and return it."""
    for name, curve in curves.items():
        for column in columns(name):
            track[:, column] += curve
    return track


def flipped(track: Array) -> Array:
    """The mirror image of controls (..., WIDTH): left and right change places, turns change sign."""
    order = np.arange(WIDTH)
    for name in SIDED + ("plant",):
        left, right = INDEX["l_" + name] if name != "plant" else INDEX["plant_l"], 0
        right = INDEX["r_" + name] if name != "plant" else INDEX["plant_r"]
        order[left], order[right] = right, left
    mirrored = track[..., order].copy()
    mirrored[..., _NEGATED] *= -1
    return mirrored


def to_angles(track: Array, spine: Array, neck: float) -> Array:
    """Track (T,WIDTH) -> joint angles (T,24,3) in degrees (see limits.py), not yet clamped; the root's stay zero.

    spine (3,) shares the torso's angles out over the three spine joints, neck is the neck's share of the head's.
    The collars take their part of a raised arm, about a fifth beyond the first 30 degrees (scapulohumeral rhythm).
    """
    angles = np.zeros((len(track), 24, 3))
    for share, name in zip(spine, ("spine1", "spine2", "spine3"), strict=True):
        angles[:, joint(name)] = share * track[:, TORSO_COLUMNS]
    angles[:, joint("neck")] = neck * track[:, HEAD_COLUMNS]
    angles[:, joint("head")] = (1 - neck) * track[:, HEAD_COLUMNS]
    for side, word in (("l", "left_"), ("r", "right_")):
        shrug, protract, raised, abduct, turn_in, elbow, supinate, wrist, deviate = track[:, ARM_COLUMNS[side]].T
        elevation = np.hypot(raised, abduct)
        carried = 0.2 * np.maximum(0.0, elevation - 30.0)
        rest = 1 - carried / np.maximum(elevation, 30.0)
        forwards = np.clip(raised, 0.0, 90.0) / 90.0
        angles[:, joint(word + "collar"), 0] = shrug + carried * (1 - 0.4 * forwards)
        angles[:, joint(word + "collar"), 1] = protract + 0.5 * carried * forwards
        angles[:, joint(word + "shoulder")] = np.stack([raised * rest, abduct * rest, turn_in], axis=-1)
        angles[:, joint(word + "elbow"), 0] = elbow
        angles[:, joint(word + "elbow"), 1] = 0.6 * supinate
        angles[:, joint(word + "wrist")] = np.stack([wrist, deviate, -0.4 * supinate], axis=-1)
        thigh, spread, turn_out, knee, point, invert, toes = track[:, LEG_COLUMNS[side]].T
        angles[:, joint(word + "hip")] = np.stack([thigh, spread, turn_out], axis=-1)
        angles[:, joint(word + "knee"), 0] = knee
        angles[:, joint(word + "ankle"), 0] = point
        angles[:, joint(word + "ankle"), 1] = invert
        angles[:, joint(word + "foot"), 0] = toes
    return limits_free_root(angles)


def limits_free_root(angles: Array) -> Array:
    """Zero the root's entries, which limits.py passes through unchanged."""
    angles[:, 0] = 0.0
    return angles


def clear_of_body(track: Array) -> Array:
    """Keep the arms out of the trunk, roughly: a copy of the track with the arms' angles raised or cut.

    A hanging arm must be abducted a few degrees, an arm in front may cross the middle; a bent elbow at the side may
    not turn so far in that the forearm passes through the belly.
    """
    track = track.copy()
    for side in "lr":
        raised, abduct, turn_in = (INDEX[f"{side}_{n}"] for n in ("raise", "abduct", "turn_in"))
        front = _ramp(track[:, raised], 20.0, 75.0)
        lowest = 12.0 - 48.0 * front
        track[:, abduct] = _soft_max(track[:, abduct], lowest, 6.0)
        away = np.maximum(front, _ramp(track[:, abduct], 25.0, 60.0))
        highest = 48.0 + 45.0 * away
        track[:, turn_in] = -_soft_max(-track[:, turn_in], -highest, 6.0)
    return track


def _ramp(x: Array, low: float, high: float) -> Array:
    u = np.clip((x - low) / (high - low), 0.0, 1.0)
    return u * u * (3 - 2 * u)


def _soft_max(x: Array, floor: Array, width: float) -> Array:
    """The larger of the two, rounded off over about `width` so that velocities stay continuous."""
    gap = x - floor
    return floor + 0.5 * (gap + np.sqrt(gap * gap + width * width))


def limited(angles: Array) -> Array:
    """Angles (T,24,3) degrees inside limits.LIMITS, approached smoothly over the last 5 degrees, then clamped."""
    low, high = limits.LIMITS[1:, :, 0], limits.LIMITS[1:, :, 1]
    width = np.minimum(5.0, 0.25 * (high - low))
    soft = angles.copy()
    body = soft[:, 1:]
    body = high - _soft_excess(high - body, width)
    soft[:, 1:] = low + _soft_excess(body - low, width)
    return limits.clamp(soft)


def _soft_excess(room: Array, width: Array) -> Array:
    """Distance to a limit, kept positive: itself when above `width`, then levelling out smoothly towards zero."""
    bent = width * np.exp(np.minimum(room / width, 1.0) - 1.0)
    return np.where(room > width, room, bent)
