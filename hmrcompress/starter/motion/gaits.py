"""Ways of getting about: periodic controls of the legs with the trunk and arms that go with them.

Phase 0 is the left heel's strike. The curves follow the usual sagittal kinematics of gait (Winter, Biomechanics and
Motor Control of Human Movement): a hip that swings like a cosine, a knee that bends a little under load and far in
swing, an ankle that rolls over and pushes off. The root's path is derived from the feet afterwards (floor.py).
"""

from __future__ import annotations

import numpy as np

from hmrcompress.motion.arrays import Array
from hmrcompress.motion.curves import bump, phase, wander
from hmrcompress.starter.motion.controls import ARM_COLUMNS, INDEX, add, add_side, posture, still
from hmrcompress.starter.motion.style import Style

Rng = np.random.Generator


def heading(rng: Rng, t: Array, rate: float) -> Array:
    """A smoothly changing heading in degrees: mean curvature and bends of about `rate` degrees a second."""
    turning = rate * (wander(rng, t, 1, 0.05, 0.3)[:, 0] + rng.normal(0, 0.5))
    step = t[1] - t[0] if len(t) > 1 else 0.0
    return np.cumsum(turning) * step


def _leg(
    track: Array,
    side: str,
    angle: Array,
    *,
    swing: float,
    mean: float,
    fold: float,
    load: float,
    push: float,
    bent: float,
) -> None:
    """One leg's sagittal cycle, degrees: hip amplitude and mean, knee in swing, under load and always, ankle's push."""
    hip = mean + swing * (np.cos(angle + 0.4) + 0.12 * np.cos(2 * angle + 0.9))
    knee = bent + load * bump(angle, 0.14, 0.07) + fold * bump(angle, 0.73, 0.085)
    point = (
        -0.5 * bent
        + push * bump(angle, 0.63, 0.05)
        - 0.5 * push * bump(angle, 0.42, 0.12)
        + 4 * bump(angle, 0.08, 0.04)
    )
    toes = -1.1 * push * bump(angle, 0.58, 0.06)
    add_side(track, side, thigh=hip + 0.35 * bent, knee=knee, point=point, toes=toes)


def _arms(
    track: Array, style: Style, angle: Array, swing: float, bend: float, pump: float, carriage: Array | None
) -> None:
    """Arms at rest, or at `carriage` (WIDTH,), swinging against the legs by `swing` degrees, elbows by `pump`."""
    rest = style.rest() if carriage is None else carriage
    track += rest
    for side, sign in (("l", -1.0), ("r", 1.0)):
        wave = np.cos(angle + 0.25)
        add_side(track, side, lift=sign * swing * wave, elbow=bend + pump * (sign * wave + 0.3))


def _cycle(
    rng: Rng,
    t: Array,
    style: Style,
    hertz: float,
    *,
    swing: float,
    mean: float,
    fold: float,
    load: float,
    push: float,
    bent: float,
    arm_swing: float,
    elbow: float = 0.0,
    pump: float = 8.0,
    lean: float = 3.0,
    torso: float = 0.0,
    turning: float = 18.0,
    reverse: bool = False,
    carriage: Array | None = None,
) -> tuple[Array, Array]:
    """A forward or backward gait. Returns the track and its phase."""
    angle = phase(rng, t, hertz * style.tempo)
    if reverse:
        angle = -angle
    track = still(t, style.habit)
    lively = np.sqrt(style.energy) * (1 + 0.12 * wander(rng, t, 1, 0.05, 0.3)[:, 0])
    for side, offset, sign in (("l", 0.0, 1.0), ("r", np.pi * (1 + 0.1 * style.asymmetry), -1.0)):
        scale = lively * (1 + sign * style.asymmetry)
        _leg(
            track,
            side,
            angle + offset,
            swing=swing * scale,
            mean=mean,
            fold=fold * scale,
            load=load,
            push=push,
            bent=bent,
        )
    _arms(track, style, angle, arm_swing * style.energy, elbow, pump, carriage)
    twist = rng.uniform(2, 7) * style.energy * np.cos(angle + 0.3)
    drop = rng.uniform(1, 4) * np.sin(angle)
    track = add(track, yaw=heading(rng, t, turning) - twist, torso_twist=1.8 * twist, head_twist=-0.8 * twist)
    track = add(track, roll=-drop, torso_bend=-drop, pitch=lean + 1.5 * np.cos(2 * angle), torso_flex=torso)
    gaze = rng.uniform(5, 22) * wander(rng, t, 2, 0.08, 0.35)
    return add(track, head_twist=gaze[:, 0], head_flex=0.4 * gaze[:, 1] - 0.5 * torso), angle


def walk(rng: Rng, t: Array, style: Style) -> Array:
    """From strolling to striding, with all sorts of arm swing."""
    brisk = rng.uniform(0.0, 1.0)
    swing = 15 + 12 * brisk + rng.normal(0, 2)
    return _cycle(
        rng, t, style, 0.7 + 0.45 * brisk, swing=swing, mean=rng.uniform(4, 12), fold=rng.uniform(45, 65),
        load=rng.uniform(5, 20), push=rng.uniform(10, 24), bent=rng.uniform(2, 14),
        arm_swing=rng.uniform(2, 32) * (0.5 + 0.5 * brisk), elbow=rng.uniform(-5, 25) * brisk,
        lean=rng.normal(2, 3), torso=rng.normal(2, 6), turning=rng.uniform(0, 35),
    )[0]  # fmt: skip


def run(rng: Rng, t: Array, style: Style) -> Array:
    """Jogging to sprinting: two flights a cycle, elbows bent."""
    fast = rng.uniform(0.0, 1.0)
    track, angle = _cycle(
        rng, t, style, 1.2 + 0.35 * fast, swing=22 + 20 * fast, mean=14 + 10 * fast, fold=55 + 45 * fast,
        load=rng.uniform(15, 28), push=rng.uniform(20, 32), bent=rng.uniform(12, 22),
        arm_swing=rng.uniform(18, 32) + 18 * fast, elbow=rng.uniform(50, 85), pump=rng.uniform(5, 18),
        lean=rng.uniform(3, 14), torso=rng.normal(5, 5), turning=rng.uniform(0, 30),
    )  # fmt: skip
    flight = np.maximum(0.0, -np.cos(2 * (angle - 0.55)))
    return add(track, air=(0.03 + 0.06 * fast) * flight**2, forward=2.2 + 2.2 * fast)


def march(rng: Rng, t: Array, style: Style) -> Array:
    """High knees and big straight arms, on the way or almost on the spot."""
    high = rng.uniform(15, 34)
    return _cycle(
        rng, t, style, rng.uniform(0.7, 1.1), swing=high, mean=0.8 * high, fold=rng.uniform(60, 95), load=4.0,
        push=rng.uniform(5, 15), bent=rng.uniform(0, 6), arm_swing=rng.uniform(20, 55), elbow=rng.uniform(-15, 50),
        lean=rng.normal(-1, 3), torso=rng.normal(-3, 4), turning=rng.uniform(0, 40),
    )[0]  # fmt: skip


def sneak(rng: Rng, t: Array, style: Style) -> Array:
    """Slow and crouched, feet lifted high, arms held ready."""
    low = rng.uniform(25, 60)
    carriage = style.rest()
    for side in "lr":
        ready = posture(lift=rng.uniform(10, 45), abduct=rng.uniform(0, 25), elbow=rng.uniform(35, 85), shrug=5)
        carriage[ARM_COLUMNS[side]] += ready[ARM_COLUMNS[side]] + (0, 5, 0, 0, 15, 0, 0, 10, 0)
    return _cycle(
        rng, t, style, rng.uniform(0.35, 0.65), swing=rng.uniform(16, 28), mean=20 + 0.25 * low,
        fold=rng.uniform(30, 60), load=6.0, push=8.0, bent=low, arm_swing=rng.uniform(0, 18),
        lean=rng.uniform(8, 28), torso=rng.uniform(10, 35), turning=rng.uniform(5, 40), carriage=carriage,
    )[0]  # fmt: skip


def backwards(rng: Rng, t: Array, style: Style) -> Array:
    """Walking or hurrying backwards."""
    return _cycle(
        rng, t, style, rng.uniform(0.6, 1.0), swing=rng.uniform(12, 20), mean=rng.uniform(6, 14),
        fold=rng.uniform(35, 60), load=8.0, push=rng.uniform(6, 14), bent=rng.uniform(6, 22),
        arm_swing=rng.uniform(0, 18), lean=rng.normal(3, 5), torso=rng.normal(6, 7),
        turning=rng.uniform(0, 35), reverse=True,
    )[0]  # fmt: skip


def sidestep(rng: Rng, t: Array, style: Style) -> Array:
    """Steps to the side, legs closing or crossing, bent or upright."""
    angle = phase(rng, t, rng.uniform(0.6, 1.3) * style.tempo)
    track = still(t, style.habit + style.rest())
    bent, wide = rng.uniform(5, 50), rng.uniform(10, 20) * np.sqrt(style.energy)
    fold = rng.uniform(15, 50)
    open_, cross = wide * np.cos(angle), rng.uniform(0, 14)
    left, right = bump(angle, 0.8, 0.09), bump(angle, 0.3, 0.09)
    add(track, l_spread=6 + open_, r_spread=6 + open_, l_knee=bent + fold * left, r_knee=bent + fold * right)
    add(track, l_thigh=0.55 * bent + 0.6 * fold * left, r_thigh=0.55 * bent + 0.6 * fold * right + cross * open_ / wide)
    add(
        track,
        point=-0.45 * bent,
        roll=rng.uniform(0, 5) * np.sin(angle),
        pitch=0.15 * bent,
        torso_flex=rng.uniform(0, 20),
    )
    add(track, lift=rng.uniform(0, 45), elbow=rng.uniform(0, 70), abduct=rng.uniform(0, 25))
    return add(
        track,
        yaw=heading(rng, t, rng.uniform(0, 30)),
        head_twist=rng.uniform(-40, 40),
        l_plant=1 - left,
        r_plant=1 - right,
        l_touch=1 - left,
        r_touch=1 - right,
    )


def limp(rng: Rng, t: Array, style: Style) -> Array:
    """One stiff or sore leg: uneven steps, trunk thrown over the standing leg."""
    track, angle = _cycle(
        rng, t, style, rng.uniform(0.55, 0.85), swing=rng.uniform(12, 18), mean=6.0,
        fold=rng.uniform(40, 55), load=10.0, push=12.0, bent=rng.uniform(3, 12), arm_swing=rng.uniform(0, 15),
        torso=rng.uniform(0, 15), turning=rng.uniform(0, 25),
    )  # fmt: skip
    stiff = INDEX["l_knee"]
    track[:, stiff] *= rng.uniform(0.1, 0.5)
    sway = rng.uniform(4, 10) * np.cos(angle)
    return add(track, torso_bend=sway, roll=-0.4 * sway, l_spread=4)


def climb(rng: Rng, t: Array, style: Style) -> Array:
    """Up steps or a slope: high thighs, leaning in, hands sometimes on a rail."""
    high = rng.uniform(22, 32)
    return _cycle(
        rng, t, style, rng.uniform(0.45, 0.8), swing=high, mean=high + rng.uniform(2, 10), fold=rng.uniform(45, 70),
        load=rng.uniform(30, 55), push=rng.uniform(10, 20), bent=rng.uniform(8, 20), arm_swing=rng.uniform(3, 20),
        elbow=rng.uniform(0, 40), lean=rng.uniform(5, 16), torso=rng.uniform(4, 22), turning=rng.uniform(0, 25),
    )[0]  # fmt: skip
