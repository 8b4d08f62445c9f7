"""Things done on the spot with the whole body: a script of postures and the moves between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hmrcompress.motion.arrays import Array
from hmrcompress.motion.curves import bump, keyed, phase, wander
from hmrcompress.starter.motion import postures
from hmrcompress.starter.motion.controls import BOTH_ARMS, INDEX, LEG_COLUMNS, WIDTH, add, posture, still
from hmrcompress.starter.motion.gestures import moments
from hmrcompress.starter.motion.style import Style

Rng = np.random.Generator


def _upright(rng: Rng, style: Style) -> Array:
    return postures.stand(rng) + style.rest() + style.habit


def _with_arms(rng: Rng, row: Array, style: Style, *names: str) -> Array:
    """The row with its arms replaced: one of the named postures, or at rest."""
    name = str(rng.choice(names))
    drawn = style.rest() if name == "rest" else postures.arms(rng, name)
    out = row.copy()
    out[BOTH_ARMS] = drawn[BOTH_ARMS]
    return out


def idle(rng: Rng, t: Array, style: Style) -> Array:
    """Standing about: weight from leg to leg, small steps on the spot, looking around."""
    times = moments(rng, t, 1.5, 4.0)
    rows = []
    for _ in times:
        row = _upright(rng, style)
        hip = rng.normal(0, 5)
        relaxed = rng.uniform(5, 25)
        row += posture(roll=hip, torso_bend=1.2 * hip, head_twist=rng.normal(0, 22), yaw=rng.normal(0, 10))
        row += (
            posture(l_knee=relaxed, l_thigh=0.6 * relaxed)
            if hip < 0
            else posture(r_knee=relaxed, r_thigh=0.6 * relaxed)
        )
        rows.append(row)
    held = np.stack([times, times + 0.5 * np.diff(times, append=times[-1] + 2)], 1).ravel()
    return keyed(t, held, np.repeat(np.stack(rows), 2, axis=0))


def bounce(rng: Rng, t: Array, style: Style) -> Array:
    """Dancing or fighting legs: knees, hips and weight in rhythm, feet stepping, the heading drifting."""
    beat = phase(rng, t, rng.uniform(0.5, 1.2) * style.tempo)
    base = postures.stand(rng) + style.habit + style.rest() + posture(spread=rng.uniform(0, 14))
    bent = rng.uniform(5, 40)
    base += posture(knee=bent, thigh=0.6 * bent, pitch=0.1 * bent)
    track = still(t, base)
    size = style.energy * rng.uniform(0, 1, 6) * (12, 9, 12, 10, 35, 12)
    left, right = bump(beat, 0.25, 0.1), bump(beat, 0.75, 0.1)
    step = size[4]
    add(track, l_knee=size[0] * np.cos(2 * beat) + step * left, r_knee=size[0] * np.cos(2 * beat) + step * right)
    add(track, l_thigh=0.5 * size[0] * np.cos(2 * beat) + 0.7 * step * left, l_plant=-left, r_plant=-right)
    add(track, l_touch=-left, r_touch=-right)
    add(track, r_thigh=0.5 * size[0] * np.cos(2 * beat) + 0.7 * step * right)
    add(
        track,
        l_spread=size[5] * left,
        r_spread=size[5] * right,
        roll=size[1] * np.sin(beat),
        torso_bend=size[1] * np.sin(beat),
    )
    turning = rng.choice([0.0, rng.normal(0, 60)])
    return add(track, yaw=turning * (t - t[0]) + size[2] * np.sin(beat), torso_twist=-size[3] * np.sin(beat))


def turn(rng: Rng, t: Array, style: Style) -> Array:
    """Stepping round on the spot, by a quarter to more than a whole turn, both ways."""
    beat = phase(rng, t, rng.uniform(0.8, 1.4) * style.tempo)
    track = still(t, _upright(rng, style) + posture(knee=6, thigh=4))
    left, right, lift = bump(beat, 0.25, 0.1), bump(beat, 0.75, 0.1), rng.uniform(18, 45)
    times = moments(rng, t, 1.2, 3.0)
    course = keyed(t, times, np.cumsum(rng.normal(0, 130, len(times))))
    rate = np.gradient(course, t) if len(t) > 1 else np.zeros(len(t))
    busy = np.clip(np.abs(rate) / 60, 0, 1)
    add(track, l_knee=busy * lift * left, r_knee=busy * lift * right, l_plant=-busy * left, r_plant=-busy * right)
    add(track, l_touch=-busy * left, r_touch=-busy * right)
    add(track, l_thigh=busy * 0.7 * lift * left, r_thigh=busy * 0.7 * lift * right)
    add(track, yaw=course, torso_twist=np.clip(0.1 * rate, -25, 25), head_twist=np.clip(0.16 * rate, -45, 45))
    return add(track, l_lift=np.clip(0.06 * rate, -20, 20), r_lift=np.clip(-0.06 * rate, -20, 20))


def _repeated(rng: Rng, t: Array, style: Style, low: Sequence[Array], quick: float, rest: float) -> Array:
    """Up, down into one of the low rows, hold, up, hold, and again. quick and rest in seconds."""
    times, rows, now = [t[0] - 2.0], [_upright(rng, style)], t[0] + rng.uniform(-1.5, 0.6)
    while now < t[-1]:
        down, hold, up = quick * rng.uniform(0.7, 1.4), rng.uniform(0.05, 2 * rest), quick * rng.uniform(0.7, 1.4)
        row = low[int(rng.integers(len(low)))]
        row = row if rng.random() < 0.5 else postures.flipped_sides(row)
        stand = rows[0] if rng.random() < 0.6 else _upright(rng, style)
        times += [now, now + down, now + down + hold, now + down + hold + up]
        rows += [rows[-1], row, row + 0.4 * postures.legs(rng, 0.6), stand]
        now = times[-1] + rng.uniform(0.05, rest)
    return keyed(t, np.array(times), np.stack(rows))


def squat(rng: Rng, t: Array, style: Style) -> Array:
    """Squats of all depths, arms forward, hanging, on the knees or behind the head."""
    low = [
        _with_arms(
            rng,
            postures.squat(rng) + style.habit,
            style,
            "rest",
            "forward",
            "hold",
            "knee",
            "behind_head",
            "chest",
            "out",
        )
        for _ in range(2)
    ]
    return _repeated(rng, t, style, low, rng.uniform(0.5, 1.1) / style.tempo, rng.uniform(0.2, 1.2))


def lunge(rng: Rng, t: Array, style: Style) -> Array:
    """Lunges to the front and side."""
    low = [
        _with_arms(rng, postures.lunge(rng) + style.habit, style, "rest", "hips", "out", "overhead", "guard")
        for _ in range(2)
    ]
    return _repeated(rng, t, style, low, rng.uniform(0.5, 1.0) / style.tempo, rng.uniform(0.2, 1.2))


def bend(rng: Rng, t: Array, style: Style) -> Array:
    """Bowing, touching the toes, lifting from the floor, leaning to a side, picking things up."""
    low = []
    for _ in range(3):
        deep = rng.uniform(0.2, 1.0)
        knee = rng.choice([rng.uniform(0, 12), rng.uniform(15, 70)])
        row = posture(
            pitch=55 * deep, torso_flex=70 * deep, knee=knee, plant=1, touch=1, balance=1, spread=rng.uniform(2, 14)
        )
        row += posture(thigh=55 * deep + 0.55 * knee, head_flex=rng.normal(-5, 15), torso_twist=rng.normal(0, 12))
        row += posture(torso_bend=rng.normal(0, 10))
        row = _with_arms(rng, row + style.habit, style, "rest", "hold", "knee", "forward", "hips", "forward")
        low.append(row + posture(lift=rng.uniform(0, 70) * deep))
    return _repeated(rng, t, style, low, rng.uniform(0.6, 1.3) / style.tempo, rng.uniform(0.2, 1.5))


def kick(rng: Rng, t: Array, style: Style) -> Array:
    """Kicks to the front, side and back, and legs swung or balanced on."""
    times, rows, now = [t[0] - 2.0], [_upright(rng, style)], t[0] + rng.uniform(-0.5, 0.5)
    while now < t[-1]:
        stand = _upright(rng, style) + posture(knee=10, thigh=6)
        ready, out = stand.copy(), stand.copy()
        high, way = rng.uniform(0.25, 1.0), rng.random()
        if way < 0.5:
            ready += posture(l_thigh=70 * high, l_knee=85, l_point=20)
            out += posture(l_thigh=95 * high, l_knee=5, l_point=25, pitch=-15 * high, torso_flex=10)
        elif way < 0.8:
            ready += posture(l_thigh=60 * high, l_spread=25, l_knee=95)
            out += posture(l_spread=65 * high, l_thigh=20 * high, l_turn_out=-15, roll=28 * high, torso_bend=15 * high)
        else:
            ready += posture(l_thigh=20 * high, l_knee=40)
            out += posture(l_thigh=-35, l_knee=rng.uniform(0, 60), pitch=50 * high, r_thigh=50 * high, torso_flex=-15)
        for row in (ready, out):
            row[[INDEX["l_plant"], INDEX["l_touch"]]] = 0
            row += posture(abduct=rng.uniform(0, 40), elbow=rng.uniform(0, 60), lift=rng.normal(5, 20))
        quick = rng.uniform(0.22, 0.5) / style.tempo
        hold = rng.choice([0.03, rng.uniform(0.1, 1.5)])
        times += [now, now + 1.3 * quick, now + 2.3 * quick, now + 2.3 * quick + hold, now + 4.3 * quick + hold]
        pair = [rows[-1], ready, out, out, stand]
        rows += pair if rng.random() < 0.5 else [pair[0], *(postures.flipped_sides(row) for row in pair[1:])]
        now = times[-1] + rng.uniform(0.1, 1.0)
    return keyed(t, np.array(times), np.stack(rows))


def jump(rng: Rng, t: Array, style: Style) -> Array:
    """Jumps on the spot or to somewhere: crouch, take-off, flight (straight, tucked, spread or split), landing."""
    times, rows, flights, now = [t[0] - 2.0], [_upright(rng, style)], [], t[0] + rng.uniform(-0.8, 0.5)
    turned = 0.0
    while now < t[-1]:
        height = rng.uniform(0.06, 0.4) * style.energy
        crouch = postures.squat(rng) * rng.uniform(0.5, 1.0)
        crouch = _with_arms(rng, crouch + style.habit, style, "back", "rest", "hips", "forward")
        flight = _flight(rng, style)
        soft = 0.6 * crouch + 0.4 * _upright(rng, style)
        span = 2 * np.sqrt(2 * height / 9.81)
        turn_by = rng.choice([0.0, 0.0, rng.normal(0, 120)])
        take_off = now + rng.uniform(0.35, 0.7) / style.tempo
        flights.append((take_off, span, height))
        ahead = rng.choice([0.0, rng.normal(0.6, 0.9)])
        flight += posture(forward=ahead)
        pattern = [rows[-1], crouch, flight, soft, _upright(rng, style)]
        clock = [
            now,
            take_off - 0.12,
            take_off + 0.5 * span,
            take_off + span + 0.12,
            take_off + span + rng.uniform(0.5, 0.9),
        ]
        for row, by in zip(pattern[1:], (0.0, 0.5, 1.0, 1.0), strict=True):
            row[INDEX["yaw"]] = turned + by * turn_by
        turned += turn_by
        times, rows = times + clock, rows + pattern
        now = times[-1] + rng.choice([0.02, rng.uniform(0.1, 1.2)])
    track = keyed(t, np.array(times), np.stack(rows))
    for start, span, height in flights:
        u = (t - start) / span
        track[:, INDEX["air"]] += np.where((u > 0) & (u < 1), 4 * height * u * (1 - u), 0.0)
    return track


def _flight(rng: Rng, style: Style) -> Array:
    """A posture in the air."""
    way = rng.random()
    row = posture(point=35, toes=10)
    if way < 0.4:
        row += posture(thigh=5, knee=10)
    elif way < 0.6:
        tuck = rng.uniform(30, 105)
        row += posture(thigh=tuck, knee=tuck + 10, torso_flex=0.3 * tuck)
    elif way < 0.8:
        row += posture(spread=rng.uniform(15, 40))
    else:
        row += posture(
            l_thigh=rng.uniform(20, 80),
            r_thigh=-rng.uniform(5, 35),
            l_knee=rng.uniform(0, 60),
            r_knee=rng.uniform(0, 80),
        )
    drawn = postures.any_arms(rng) if rng.random() < 0.7 else style.rest()
    return row + drawn + style.habit


def hop(rng: Rng, t: Array, style: Style) -> Array:
    """Hopping on both legs or one, jumping jacks, skipping with a rope: periodic flights."""
    rate = rng.uniform(1.2, 2.2) * style.tempo
    beat = phase(rng, t, rate, 0.02)
    up = np.maximum(0.0, np.sin(beat))
    track = still(t, _upright(rng, style) + posture(knee=8, thigh=5))
    load = 0.5 * (1 - np.sin(beat))
    bent = rng.uniform(10, 35)
    add(track, air=rng.uniform(0.03, 0.1) * up**2 / rate * 1.5, knee=bent * load, thigh=0.6 * bent * load)
    add(track, point=28 * up, plant=-up, touch=-up, forward=rng.normal(0, 0.4), left=rng.normal(0, 0.2))
    way = rng.random()
    if way < 0.35:  # jumping jack: legs and arms out on every second beat
        wide = 0.5 - 0.5 * np.cos(0.5 * beat)
        add(track, spread=rng.uniform(12, 25) * wide, abduct=rng.uniform(60, 145) * wide)
    elif way < 0.65:
        add(track, l_knee=rng.uniform(40, 90), l_thigh=rng.uniform(0, 60), l_plant=-1.0, l_touch=-1.0)
    return add(track, yaw=rng.normal(0, 30) * (t - t[0]))


def freeform(rng: Rng, t: Array, style: Style) -> Array:
    """The whole body wandering through its range on the spot: odd but possible postures that no script contains."""
    times = moments(rng, t, 0.9, 2.4)
    rows = []
    for _ in times:
        name = str(rng.choice(("stand", "squat", "lunge", "sit_chair", "kneel", "stand", "lunge")))
        row = postures.WHOLE_BODY[name](rng) + postures.any_arms(rng) + style.habit
        row += posture(torso_flex=rng.normal(0, 14), torso_bend=rng.normal(0, 12), torso_twist=rng.normal(0, 15))
        row += posture(
            head_twist=rng.normal(0, 20), yaw=rng.normal(0, 30), pitch=rng.normal(0, 6), roll=rng.normal(0, 6)
        )
        for side in "lr":
            row[LEG_COLUMNS[side]] += rng.normal(0, (12, 8, 10, 12, 8, 4, 5))
        rows.append(row if rng.random() < 0.5 else postures.flipped_sides(row))
    return keyed(t, times, np.stack(rows)) + 0.5 * style.sway * wander(rng, t, WIDTH, 0.2, 0.8)
