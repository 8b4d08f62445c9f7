"""The few dozen named numbers a person is animated by, and how joint angles follow from them.

A control track is an array (T, WIDTH), one column per name, in degrees but for the last few. Tracks of any two kinds
can be added, mixed and cross-faded, because every control is a plain number with the same meaning everywhere, and
limits are convex in them.
"""

from __future__ import annotations

import numpy as np

from hmrcompress.body.joints import joint
from hmrcompress.motion.arrays import Array
from hmrcompress.starter.motion import limits

_TORSO = ("torso_flex", "torso_bend", "torso_twist")
_HEAD = ("head_flex", "head_bend", "head_twist")
_ARM = ("shrug", "protract", "lift", "abduct", "turn_in", "elbow", "supinate", "wrist", "deviate")
_LEG = ("thigh", "spread", "turn_out", "knee", "point", "invert", "toes")
_ROOT = ("yaw", "pitch", "roll", "spin")
_FOOT = ("plant", "touch")
_SUPPORT = ("balance", "tip", "air", "forward", "left")
SIDED = _ARM + _LEG + _FOOT
NAMES = (*_TORSO, *_HEAD, *(f"{side}_{name}" for side in "lr" for name in SIDED), *_ROOT, *_SUPPORT)
"""Degrees, positive as in limits.ANGLES (bends and twists to the left), but for

- plant: weight 0..1, keep that sole level; touch: weight 0..1, keep that foot on the floor with the other one
- balance: weight 0..1, keep the centre of mass over the feet; tip: weight 0..1, let the body come to rest on the floor
- air: metres between the floor and the lowest point; forward, left: m/s, in flight

The root turns by yaw (heading, left positive), then pitch (forward positive), roll (to the right) and spin about the
body's own long axis: on the back is pitch -90, on the front pitch 90, or -90 with spin 180."""

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
BOTH_ARMS = ARM_COLUMNS["l"] + ARM_COLUMNS["r"]
UPPER_COLUMNS = BOTH_ARMS + HEAD_COLUMNS
ANGLE_COLUMNS = UPPER_COLUMNS + TORSO_COLUMNS + LEG_COLUMNS["l"] + LEG_COLUMNS["r"]


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


def add_side(track: Array, side: str, **curves: Array | float) -> Array:
    """`add` for the controls of one side, `l` or `r`, named without it."""
    return add(track, **{f"{side}_{name}": curve for name, curve in curves.items()})


_OTHER_SIDE = {"l_": "r_", "r_": "l_"}
_FLIP_ORDER = np.array([INDEX.get(_OTHER_SIDE.get(n[:2], "") + n[2:], INDEX[n]) for n in NAMES])
_FLIP_SIGN = np.ones(WIDTH)
_FLIP_SIGN[columns("torso_bend", "torso_twist", "head_bend", "head_twist", "yaw", "roll", "spin", "left")] = -1


def flipped(track: Array) -> Array:
    """The mirror image of controls (..., WIDTH): left and right change places, turns change sign."""
    return track[..., _FLIP_ORDER] * _FLIP_SIGN


def steadied(rows: list[Array]) -> list[Array]:
    """Rows whose root turns are written so that each is near the one before: copies, headings kept.

    A turn (yaw, pitch, roll, spin) is the same as (yaw + 180, -pitch, -roll, spin + 180): in the second way of writing,
    somebody on his front comes from lying on his back by rolling over, not by sitting up through a headstand.
    """
    pitch, roll, spin = columns("pitch", "roll", "spin")
    out = [rows[0].copy()]
    for row in rows[1:]:
        last, choices = out[-1], []
        for sign, shift in ((1.0, 0.0), (-1.0, 180.0)):
            choice = row.copy()
            choice[[pitch, roll]] *= sign
            turns = row[spin] + shift
            choice[spin] = turns + 360.0 * np.round((last[spin] - turns) / 360.0)
            choices.append(choice)
        out.append(min(choices, key=lambda c: float(np.abs(c[[pitch, roll, spin]] - last[[pitch, roll, spin]]).sum())))
    return out


def to_angles(track: Array, spine: Array, neck: float, carry: float) -> Array:
    """Track (T,WIDTH) -> joint angles (T,24,3) in degrees (see limits.py), not yet clamped; the root's stay zero.

    spine (3,) shares the torso's angles out over the three spine joints, neck is the neck's share of the head's; carry
    is the elbows' carrying angle. The collars take their part of a raised arm, about a fifth beyond the first 30
    degrees (scapulohumeral rhythm); the forearm's turn is shared between elbow and wrist.
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
        angles[:, joint(word + "elbow")] = np.stack([elbow, 0.6 * supinate, np.full(len(track), carry)], axis=-1)
        angles[:, joint(word + "wrist")] = np.stack([wrist, deviate, -0.4 * supinate], axis=-1)
        thigh, spread, turn_out, knee, point, invert, toes = track[:, LEG_COLUMNS[side]].T
        angles[:, joint(word + "hip")] = np.stack([thigh, spread, turn_out], axis=-1)
        angles[:, joint(word + "knee"), 0] = knee
        angles[:, joint(word + "ankle"), 0] = point
        angles[:, joint(word + "ankle"), 1] = invert
        angles[:, joint(word + "foot"), 0] = toes
    return angles


def clear_of_body(track: Array) -> Array:
    """A copy of the track with the arms kept out of the trunk, roughly.

    A hanging arm must be abducted a few degrees, an arm in front may cross the middle; a bent elbow at the side may
    not turn so far in that the forearm passes through the belly, unless the arm is behind the back.
    """
    track = track.copy()
    for side in "lr":
        raised, abduct, turn_in = (INDEX[f"{side}_{n}"] for n in ("lift", "abduct", "turn_in"))
        front, behind = _ramp(track[:, raised], 20.0, 75.0), _ramp(-track[:, raised], 12.0, 30.0)
        track[:, abduct] = _soft_max(track[:, abduct], 9.0 - 45.0 * front, 6.0)
        away = np.maximum(np.maximum(front, behind), _ramp(track[:, abduct], 25.0, 60.0))
        track[:, turn_in] = -_soft_max(-track[:, turn_in], -(48.0 + 45.0 * away), 6.0)
    return track


def _ramp(x: Array, low: float, high: float) -> Array:
    u = np.clip((x - low) / (high - low), 0.0, 1.0)
    return u * u * (3 - 2 * u)


def _soft_max(x: Array, floor: Array, width: float) -> Array:
    """The larger of the two, rounded off over about `width` so that velocities stay continuous."""
    gap = x - floor
    return floor + 0.5 * (gap + np.sqrt(gap * gap + width * width))


def limited(angles: Array) -> Array:
    """Angles (T,24,3) degrees inside limits.LIMITS, approached smoothly over the last few degrees, then clamped."""
    low, high = limits.LIMITS[1:, :, 0], limits.LIMITS[1:, :, 1]
    width = np.minimum(5.0, 0.25 * (high - low))
    soft = angles.copy()
    body = high - _soft_excess(high - soft[:, 1:], width)
    soft[:, 1:] = low + _soft_excess(body - low, width)
    return limits.clamp(soft)


def _soft_excess(room: Array, width: Array) -> Array:
    """Distance to a limit, kept positive: itself when above `width`, then levelling out smoothly towards zero."""
    bent = width * np.exp(np.minimum(room / width, 1.0) - 1.0)
    return np.where(room > width, room, bent)
