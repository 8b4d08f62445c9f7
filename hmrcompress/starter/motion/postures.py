"""Named postures of the arms and of the whole body, each drawn with its own natural spread. Degrees throughout.

Every function takes a generator and returns controls (see controls.py): one arm (9,), or a row (WIDTH,).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hmrcompress.motion.arrays import Array
from hmrcompress.starter.motion.controls import ARM_COLUMNS, BOTH_ARMS, INDEX, columns, flipped, posture

# Means and spreads of: shrug, protract, lift, abduct, turn_in, elbow, supinate, wrist, deviate.
_ARMS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "hang": ((-3, 0, 4, 13, 18, 22, 0, 5, 0), (3, 4, 8, 6, 14, 12, 15, 10, 6)),
    "hips": ((0, -3, -12, 42, 62, 95, 20, 25, 0), (4, 4, 8, 7, 10, 10, 15, 15, 8)),
    "crossed": ((0, 12, 38, 0, 62, 112, 0, 5, 0), (3, 5, 6, 5, 8, 8, 15, 12, 8)),
    "behind_back": ((0, -8, -35, 16, 78, 55, 20, 10, 0), (3, 4, 8, 6, 8, 15, 15, 15, 8)),
    "behind_head": ((5, -5, 55, 115, -40, 135, 0, 10, 0), (5, 5, 12, 12, 12, 8, 15, 15, 8)),
    "overhead": ((8, 0, 132, 78, 0, 20, 0, 0, 0), (5, 4, 14, 18, 20, 18, 25, 15, 10)),
    "wide_up": ((6, 0, 40, 130, -20, 20, 0, 0, 0), (5, 4, 18, 16, 20, 18, 25, 15, 10)),
    "out": ((2, 0, 0, 88, 0, 12, 0, 0, 0), (4, 5, 15, 14, 25, 12, 25, 15, 10)),
    "forward": ((0, 8, 88, 4, 10, 15, 0, 0, 0), (4, 6, 14, 12, 20, 14, 30, 15, 10)),
    "chest": ((0, 5, 32, 8, 50, 118, 0, -10, 0), (3, 5, 10, 8, 12, 12, 20, 20, 10)),
    "guard": ((5, 6, 48, 12, 20, 125, 0, 0, 0), (4, 5, 12, 8, 14, 12, 20, 12, 8)),
    "phone": ((4, 0, 30, 40, 5, 142, 10, 10, 0), (4, 4, 15, 14, 18, 5, 20, 15, 8)),
    "pocket": ((0, -4, -10, 22, 35, 42, 0, 15, 0), (3, 4, 6, 5, 10, 10, 10, 10, 6)),
    "knee": ((-2, 4, 38, 10, 15, 45, -20, 5, 0), (3, 4, 8, 6, 14, 14, 20, 12, 8)),
    "hold": ((0, 6, 30, 8, 12, 88, 30, 0, 0), (3, 5, 12, 8, 14, 14, 25, 15, 8)),
    "salute": ((6, 0, 60, 75, 10, 130, 0, 0, 0), (4, 4, 12, 12, 14, 8, 20, 12, 8)),
    "chin": ((2, 6, 52, 4, 40, 138, 20, 15, 0), (3, 5, 10, 8, 12, 6, 20, 15, 8)),
    "hug": ((4, 18, 70, -18, 40, 90, 0, 0, 0), (4, 5, 12, 8, 14, 14, 20, 15, 8)),
    "prop": ((2, -6, -42, 22, -20, 14, 30, -40, 0), (3, 4, 8, 8, 12, 10, 20, 15, 8)),
    "wing": ((4, 0, 20, 85, 30, 110, 0, 10, 0), (4, 5, 18, 14, 30, 18, 25, 15, 10)),
    "cactus": ((3, -4, 5, 88, -75, 90, 0, 0, 0), (4, 5, 12, 12, 15, 15, 25, 15, 10)),
    "push": ((0, 8, 62, 8, 25, 90, 0, -50, 0), (4, 6, 14, 10, 20, 20, 20, 15, 10)),
    "drink": ((2, 4, 45, 25, 20, 125, 0, 0, 0), (3, 5, 14, 12, 15, 10, 20, 12, 8)),
    "spread_back": ((4, -12, -26, 96, -20, 18, 0, 0, 0), (4, 5, 12, 18, 28, 14, 25, 15, 10)),
    "back": ((0, -8, -40, 22, 0, 18, 0, 0, 0), (3, 4, 10, 8, 20, 14, 25, 15, 8)),
}
ARM_POSTURES = tuple(_ARMS)
SYMMETRIC = ("hips", "crossed", "behind_back", "behind_head", "overhead", "wide_up", "out", "forward", "chest",
             "guard", "hold", "hug", "cactus", "wing", "push", "back", "spread_back")  # fmt: skip
"""Arm postures that people take with both arms at once."""


def arm(rng: np.random.Generator, name: str, spread: float = 1.0) -> Array:
    """One arm (9,) in a named posture, drawn around its mean; `spread` scales the deviation."""
    mean, deviation = _ARMS[name]
    return np.array(mean) + spread * np.clip(rng.standard_normal(9), -2, 2) * deviation


def arms(rng: np.random.Generator, left: str, right: str | None = None, spread: float = 1.0) -> Array:
    """A row with both arms in named postures, alike but not identical where `right` is not given."""
    row = posture()
    row[ARM_COLUMNS["l"]] = arm(rng, left, spread)
    if right is None:
        row[ARM_COLUMNS["r"]] = 0.75 * row[ARM_COLUMNS["l"]] + 0.25 * arm(rng, left, spread)
    else:
        row[ARM_COLUMNS["r"]] = arm(rng, right, spread)
    return row


def any_arms(rng: np.random.Generator) -> Array:
    """A row with arms in any posture: both alike half the time."""
    if rng.random() < 0.5:
        return arms(rng, str(rng.choice(SYMMETRIC)))
    return arms(rng, str(rng.choice(ARM_POSTURES)), str(rng.choice(ARM_POSTURES)))


def legs(rng: np.random.Generator, loose: float = 1.0, /, **means: float) -> Array:
    """A row with legs, trunk and root at `means`, jittered by a few degrees on every angle named or not."""
    row = posture(**means)
    jitter = posture(thigh=5, spread=4, turn_out=5, knee=5, point=4, torso_flex=6, torso_bend=3, torso_twist=4)
    jitter += posture(head_flex=7, head_bend=4, head_twist=7)
    return row + loose * jitter * np.clip(rng.standard_normal(len(row)), -2, 2)


def stand(rng: np.random.Generator) -> Array:
    """Upright, feet about hip-wide, level and balanced."""
    row = posture(plant=1, touch=1, balance=1)
    row += posture(spread=rng.uniform(-2, 9), turn_out=rng.uniform(-5, 16))
    if rng.random() < 0.4:  # a leg to the front
        row += posture(l_thigh=rng.uniform(-12, 20), r_thigh=rng.uniform(-15, 8))
    row += posture(knee=rng.uniform(0, 12), thigh=rng.uniform(0, 8))
    return row + legs(rng, 0.4, torso_flex=rng.uniform(-4, 10))


def sit_chair(rng: np.random.Generator) -> Array:
    """On a chair: upright, slumped or leaning forward; sometimes legs crossed or one foot forward."""
    lean = rng.choice([rng.uniform(-25, -5), rng.uniform(-8, 10), rng.uniform(10, 35)])
    row = legs(rng, 1.0, thigh=88 + 0.6 * lean, knee=88, spread=rng.uniform(0, 22), pitch=lean, plant=1, touch=0)
    row += posture(torso_flex=rng.uniform(0, 30), head_flex=-0.5 * lean)
    way = rng.random()
    if way < 0.2:  # one leg over the other
        row += posture(l_thigh=14, l_spread=-18, l_knee=rng.uniform(-10, 10), l_plant=-1, l_turn_out=8)
    elif way < 0.3:  # ankle on the knee
        row += posture(l_turn_out=42, l_spread=15, l_knee=rng.uniform(10, 25), l_plant=-1)
    elif way < 0.6:  # feet at different distances
        row += posture(l_knee=rng.uniform(-60, -10), r_knee=rng.uniform(-10, 20))
    return row


def _knee_up(knee: float) -> float:
    """Hip flexion in degrees that puts the sole on the floor, sitting there upright with the knee at this angle."""
    over = np.deg2rad(knee - 90.0)
    return 90.0 + float(np.rad2deg(np.arctan2(0.4 * np.cos(over), 0.38 - 0.4 * np.sin(over))))


def sit_floor(rng: np.random.Generator) -> Array:
    """On the floor: legs out in front, knees up or one of them, cross-legged, or both legs to one side."""
    way = rng.integers(5)
    if way == 0:
        lean = rng.uniform(-25, 8)
        return legs(rng, 1.0, thigh=88 + lean, knee=8, spread=rng.uniform(2, 30), pitch=lean, torso_flex=18, point=15)
    if way == 1:
        knee, lean = rng.uniform(95, 120), rng.uniform(-32, -15)
        bent = min(_knee_up(knee) + lean, 122.0)
        return legs(rng, 1.0, thigh=bent, knee=knee, spread=rng.uniform(0, 15), pitch=lean, torso_flex=35)
    if way == 2:
        return legs(rng, 1.0, thigh=100, spread=46, turn_out=62, knee=128, pitch=-10, torso_flex=22, point=20)
    if way == 3:
        row = legs(rng, 1.0, thigh=90, knee=115, pitch=-8, torso_flex=15, point=20)
        return row + posture(l_spread=40, l_turn_out=58, r_spread=12, r_turn_out=-42, torso_bend=rng.normal(0, 6))
    knee, lean = rng.uniform(85, 115), rng.uniform(-25, -5)
    row = legs(rng, 1.0, r_thigh=86 + lean, r_knee=8, spread=8, pitch=lean, torso_flex=25)
    return row + posture(l_thigh=min(_knee_up(knee) + lean, 122.0), l_knee=knee)


def squat(rng: np.random.Generator) -> Array:
    """Feet level, hips between slightly bent and right down on the heels."""
    depth = rng.uniform(0.35, 1.0)
    knee = 15 + 120 * depth
    lean = rng.uniform(8, 30) * depth
    row = legs(rng, 0.6, knee=knee, thigh=0.72 * knee + 0.8 * lean, pitch=lean, plant=1, touch=1, balance=1)
    wide = rng.uniform(6, 32)
    return row + posture(spread=wide, turn_out=0.8 * wide, torso_flex=rng.uniform(0, 25), head_flex=-rng.uniform(0, 25))


def lunge(rng: np.random.Generator) -> Array:
    """One leg bent in front, the other stretched or kneeling behind; or sideways."""
    deep = rng.uniform(0.3, 1.0)
    if rng.random() < 0.3:
        row = legs(rng, 0.6, l_thigh=80 * deep, l_knee=95 * deep, l_spread=28, r_spread=38 * deep, plant=1, touch=1)
        return row + posture(l_turn_out=22, pitch=20 * deep, torso_flex=rng.uniform(0, 20), balance=0.6)
    row = legs(rng, 0.6, l_thigh=20 + 75 * deep, l_knee=20 + 75 * deep, r_thigh=-5 - 25 * deep, l_plant=1, touch=1)
    row += posture(
        r_knee=rng.uniform(5, 70) * deep, r_point=-15, r_toes=-30 * deep, pitch=rng.uniform(-5, 20), spread=4
    )
    return row + posture(torso_flex=rng.uniform(-10, 20), balance=0.3)


def kneel(rng: np.random.Generator) -> Array:
    """On both knees upright or sitting on the heels, or on one knee."""
    way = rng.integers(3)
    if way == 0:
        return legs(rng, 0.8, knee=92, thigh=rng.uniform(-5, 15), point=35, spread=8, pitch=rng.uniform(0, 8))
    if way == 1:
        lean = rng.uniform(0, 30)
        return legs(rng, 0.8, knee=145, thigh=75 + lean, point=45, spread=10, pitch=8 + lean, torso_flex=10)
    lean = rng.uniform(-2, 20)
    row = legs(rng, 0.8, l_thigh=85 + lean, l_knee=88, r_thigh=lean, r_knee=92, r_point=30, pitch=lean, spread=6)
    return row + posture(l_plant=1)


def crawl(rng: np.random.Generator) -> Array:
    """On hands and knees."""
    pitch = rng.uniform(75, 95)
    row = legs(
        rng, 0.7, pitch=pitch, thigh=85, knee=92, point=35, spread=6, head_flex=-35, torso_flex=rng.uniform(-5, 20)
    )
    return row + posture(lift=88, abduct=6, elbow=10, wrist=-60, turn_in=5, tip=1)


def lie(rng: np.random.Generator) -> Array:
    """On the floor: on the back, on the front, on a side; stretched out or curled up."""
    way = rng.integers(4)
    if way <= 1:
        row = legs(rng, 1.2, pitch=-90, thigh=-5, spread=rng.uniform(2, 25), turn_out=15, point=25)
        row += posture(head_flex=rng.uniform(-5, 25))
        if rng.random() < 0.4:  # knees up, or one
            up = rng.uniform(25, 70)
            bent = posture(l_thigh=up, l_knee=min(2 * up, 125), point=-10)
            row += bent if rng.random() < 0.5 else bent + flipped(bent)
    elif way == 2:
        row = legs(rng, 1.2, pitch=90, spread=rng.uniform(2, 22), point=45, head_flex=-15)
        row += posture(head_twist=50 * rng.choice([-1, 1]))
        if rng.random() < 0.4:  # one knee drawn up to the side
            row += posture(
                l_spread=25, l_turn_out=35, l_thigh=rng.uniform(20, 70), l_knee=rng.uniform(30, 100), spin=12
            )
    else:
        curl = rng.uniform(0, 1)
        row = legs(rng, 1.2, pitch=-90, spin=90, thigh=15 + 85 * curl, knee=15 + 95 * curl, point=20, spread=-3)
        row += posture(torso_flex=5 + 35 * curl, head_flex=25 * curl)
        row += posture(r_thigh=rng.uniform(-15, 15), r_knee=rng.uniform(-10, 20))
    return row + posture(tip=1)


_LYING_ARMS = {
    "up": ("hang", "out", "cactus", "chest", "overhead", "behind_head", "chin", "wing", "forward"),
    "down": ("hang", "cactus", "overhead", "spread_back", "out", "behind_back"),
    "under": ("forward", "overhead", "chin", "chest"),
}


def lying_arms(rng: np.random.Generator, row: Array) -> Array:
    """The row with arms that suit how it lies: on the back anything; on the front beside the body or overhead; on a
    side the lower arm in front of the body."""
    pitch, spin = np.deg2rad(row[columns("pitch", "spin")])
    face, left = -np.sin(pitch) * np.cos(spin), np.sin(pitch) * np.sin(spin)  # how far up they point
    names = {side: "down" if face < -0.5 else "up" for side in "lr"}
    if abs(left) > 0.5:
        names["l" if left < 0 else "r"] = "under"
    picked = {side: str(rng.choice(_LYING_ARMS[name])) for side, name in names.items()}
    drawn = arms(rng, picked["l"], None if names["l"] == names["r"] and rng.random() < 0.4 else picked["r"])
    out = row.copy()
    out[BOTH_ARMS] = drawn[BOTH_ARMS]
    return out


WHOLE_BODY: dict[str, Callable[[np.random.Generator], Array]] = {
    "stand": stand,
    "sit_chair": sit_chair,
    "sit_floor": sit_floor,
    "squat": squat,
    "lunge": lunge,
    "kneel": kneel,
    "crawl": crawl,
    "lie": lie,
}


def flipped_sides(row: Array) -> Array:
    """The row's mirror image, keeping its heading."""
    out = flipped(row)
    out[INDEX["yaw"]] = row[INDEX["yaw"]]
    return out
