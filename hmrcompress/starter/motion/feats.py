"""Upside down, off the ground, at arm's length: acrobatics, and hanging and climbing by the hands."""

from __future__ import annotations

import numpy as np

from hmrcompress.motion.arrays import Array
from hmrcompress.motion.curves import flowing, phase, wander
from hmrcompress.starter.motion import postures
from hmrcompress.starter.motion.controls import BOTH_ARMS, INDEX, add, add_side, posture, still
from hmrcompress.starter.motion.style import Style

Rng = np.random.Generator


def _stand(rng: Rng, style: Style) -> Array:
    return postures.stand(rng) + style.rest() + style.habit


def acrobatics(rng: Rng, t: Array, style: Style) -> Array:
    """Cartwheels, rolls, somersaults in the air and handstands, one after another, upright in between."""
    now, stand = t[0] + rng.uniform(-0.6, 0.4), _stand(rng, style)
    times, rows, flights = [now - 5.0], [stand], []
    turned = np.zeros_like(stand)
    while now < t[-1]:
        steps, flight = _FEATS[rng.integers(len(_FEATS))](rng, style)
        stand = _stand(rng, style)
        times.append(now)
        rows.append(rows[-1])
        if flight is not None:
            flights.append((now + flight[0], flight[1], flight[2]))
        for seconds, row in steps:
            now += seconds / style.tempo**0.5
            times.append(now)
            rows.append(row + turned)
        for name in ("pitch", "roll"):  # whole turns stay turned
            turned[INDEX[name]] += 360.0 * np.round(steps[-1][1][INDEX[name]] / 360.0)
        now += rng.uniform(0.5, 0.8)
        times.append(now)
        rows.append(stand + turned)
        now += rng.uniform(0.05, 0.8)
    track = flowing(t, np.array(times), np.stack(rows))
    for start, span, height in flights:
        u = np.clip((t - start) / span, 0.0, 1.0)
        track[:, INDEX["air"]] += 16 * height * (u * (1 - u)) ** 2
    return track


Steps = tuple[list[tuple[float, Array]], tuple[float, float, float] | None]


def _cartwheel(rng: Rng, style: Style) -> Steps:
    up = postures.arms(rng, "overhead", spread=0.5) + style.habit
    legs = posture(spread=rng.uniform(20, 45), knee=5, point=20)
    beat = rng.uniform(0.28, 0.4)
    ready = up + posture(l_thigh=25, r_thigh=-10, spread=8, pitch=5)
    return [(0.5, ready)] + [(beat, up + legs + posture(roll=-turn)) for turn in (70, 140, 215, 285)] + [
        (beat, up + posture(spread=20, knee=15, roll=-360))
    ], None


def _forward_roll(rng: Rng, style: Style) -> Steps:
    ball = posture(thigh=120, knee=125, torso_flex=65, head_flex=45) + postures.arms(rng, "hold") + 0.5 * style.habit
    squat = postures.squat(rng)
    squat[BOTH_ARMS] = postures.arms(rng, "forward")[BOTH_ARMS]
    squat[[INDEX["balance"], INDEX["pitch"]]] = 0.0
    beat = rng.uniform(0.22, 0.32)
    turns = [(beat, ball + posture(pitch=turn)) for turn in (75, 150, 225, 295)]
    return [(0.5, squat), *turns, (0.4, squat + posture(pitch=360))], None


def _somersault(rng: Rng, style: Style) -> Steps:
    sign = rng.choice([-1.0, 1.0])
    crouch = postures.squat(rng) * 0.6 + postures.arms(rng, "back") + 0.5 * style.habit
    crouch[[INDEX["balance"], INDEX["pitch"]]] = 0.0
    tuck = rng.uniform(60, 115)
    ball = posture(thigh=tuck, knee=tuck + 10, torso_flex=30, point=25) + postures.arms(rng, "hold")
    reach = postures.arms(rng, "overhead") + posture(point=30)
    beat = rng.uniform(0.14, 0.18)
    steps = [(0.5, crouch), (0.2, reach + posture(pitch=sign * 25))]
    steps += [(beat, ball + posture(pitch=sign * turn)) for turn in (110, 200, 290)]
    return [*steps, (0.2, crouch + posture(pitch=sign * 360))], (0.6, 3 * beat + 0.3, rng.uniform(0.35, 0.6))


def _handstand(rng: Rng, style: Style) -> Steps:
    up = postures.arms(rng, "overhead", spread=0.3) + 0.5 * style.habit + posture(head_flex=-35)
    over = up + posture(pitch=rng.uniform(168, 186), point=30, torso_flex=-5)
    legs = posture(
        l_thigh=rng.normal(0, 30), r_thigh=rng.normal(0, 30), spread=rng.uniform(0, 40), knee=rng.uniform(0, 60)
    )
    half = up + posture(pitch=95, l_thigh=75, r_thigh=-5, l_knee=10)
    return [
        (0.5, up + posture(l_thigh=40, r_thigh=-5, l_knee=15, pitch=15)),
        (0.45, half),
        (0.4, over),
        (rng.uniform(0.4, 1.5), over + legs),
        (0.4, over),
        (0.45, half),
    ], None


_FEATS = (_cartwheel, _forward_roll, _somersault, _handstand)


def hang(rng: Rng, t: Array, style: Style) -> Array:
    """Hanging from a bar by both hands: swinging, pulling up, kicking; or climbing a ladder hand over hand."""
    track = still(t, posture(air=rng.uniform(0.15, 0.6)) + style.habit)
    reach = postures.arms(rng, "overhead", spread=0.4)
    if rng.random() < 0.55:
        swing = rng.uniform(0, 22) * wander(rng, t, 1, 0.3, 0.7)[:, 0]
        pull = np.clip(rng.uniform(-0.6, 1.0) * wander(rng, t, 1, 0.15, 0.5)[:, 0], 0, 1)
        track += reach
        add(track, pitch=swing, elbow=90 * pull, abduct=30 * pull, shrug=6, head_flex=rng.normal(-10, 12))
        size = rng.uniform(0, 30, 4)
        legs = wander(rng, t, 4, 0.3, 1.0)
        lift = np.clip(rng.uniform(-0.5, 1) * wander(rng, t, 1, 0.15, 0.5)[:, 0], 0, 1) * rng.uniform(30, 95)
        add(track, l_thigh=8 + size[0] * legs[:, 0] + lift, r_thigh=8 + size[1] * legs[:, 1] + lift, point=25)
        knees = rng.uniform(0, 1) * lift
        return add(
            track, l_knee=20 + size[2] * (1 + legs[:, 2]) + knees, r_knee=20 + size[3] * (1 + legs[:, 3]) + knees
        )
    beat = phase(rng, t, rng.uniform(0.35, 0.7) * style.tempo)
    track += reach
    add(track, pitch=rng.uniform(-5, 20), head_flex=-rng.uniform(0, 35), torso_twist=rng.uniform(0, 10) * np.cos(beat))
    high = rng.uniform(25, 45)
    for side, sign in (("l", 1.0), ("r", -1.0)):
        wave = sign * np.cos(beat)
        add_side(track, side, thigh=high + high * wave, knee=1.1 * high * (1 + wave), spread=10.0)
        add_side(track, side, elbow=35 - 35 * wave, lift=-30 + 25 * wave, abduct=-5.0)
    return add(track, roll=rng.uniform(0, 6) * np.cos(beat), torso_bend=rng.uniform(0, 8) * np.cos(beat))
