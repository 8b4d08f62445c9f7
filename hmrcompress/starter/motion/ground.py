"""Down and up again: sitting, kneeling, crawling, lying, falling, rolling, getting up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hmrcompress.motion.arrays import Array
from hmrcompress.motion.curves import bump, keyed, phase, wander
from hmrcompress.starter.motion import postures
from hmrcompress.starter.motion.controls import BOTH_ARMS, WIDTH, add, add_side, columns, posture, steadied, still
from hmrcompress.starter.motion.gestures import moments
from hmrcompress.starter.motion.style import Style

Rng = np.random.Generator


def _stand(rng: Rng, style: Style) -> Array:
    return postures.stand(rng) + style.rest() + style.habit


def _arms_from(row: Array, source: Array) -> Array:
    out = row.copy()
    out[BOTH_ARMS] = source[BOTH_ARMS]
    return out


def _go_and_stay(
    rng: Rng, t: Array, style: Style, low: Sequence[Array], down: float, way_down: Sequence[Array] = ()
) -> Array:
    """Standing, down into the first low row, through the others at leisure, mostly up again at the end."""
    span = t[-1] - t[0] if len(t) > 1 else 1.0
    start = t[0] + rng.uniform(-1.0, 0.05) * span
    times, rows = [start - 10.0, start], [_stand(rng, style)] * 2
    now = start
    for row in way_down:
        now += down * rng.uniform(0.5, 0.8)
        times.append(now)
        rows.append(row)
    now += down
    for row in low:
        times += [now, now + rng.uniform(0.3, 2.0)]
        rows += [row, row]
        now = times[-1] + rng.uniform(0.6, 1.5)
    leave = t[0] + rng.uniform(0.6, 1.6) * span
    if leave > now:
        times += [leave, leave + down * rng.uniform(0.9, 1.4)]
        rows += [rows[-1], _stand(rng, style)]
    return keyed(t, np.array(times), np.stack(steadied(rows)))


def sit_chair(rng: Rng, t: Array, style: Style) -> Array:
    """Sitting down on a chair, fidgeting, getting up."""
    base = postures.sit_chair(rng)
    low = []
    for _ in range(rng.integers(1, 5)):
        row = base if rng.random() < 0.5 else postures.sit_chair(rng)
        hands = postures.arms(rng, "knee") if rng.random() < 0.4 else postures.any_arms(rng)
        row = _arms_from(row, hands) + style.habit
        low.append(
            row + posture(torso_twist=rng.normal(0, 12), torso_bend=rng.normal(0, 8), head_twist=rng.normal(0, 22))
        )
    return _go_and_stay(rng, t, style, low, rng.uniform(0.9, 1.6) / style.tempo)


def sit_floor(rng: Rng, t: Array, style: Style) -> Array:
    """Sitting on the floor in several ways, hands on the knees, behind or free."""
    low = []
    for _ in range(rng.integers(1, 4)):
        hands = (
            postures.arms(rng, str(rng.choice(("knee", "prop", "knee"))))
            if rng.random() < 0.6
            else postures.any_arms(rng)
        )
        low.append(_arms_from(postures.sit_floor(rng), hands) + style.habit + posture(head_twist=rng.normal(0, 20)))
    return _go_and_stay(rng, t, style, low, rng.uniform(0.9, 1.5) / style.tempo, [postures.squat(rng) + style.rest()])


def kneel(rng: Rng, t: Array, style: Style) -> Array:
    """Down on one knee or both."""
    low = []
    for _ in range(rng.integers(1, 4)):
        hands = style.rest() if rng.random() < 0.4 else postures.any_arms(rng)
        low.append(_arms_from(postures.kneel(rng), hands) + style.habit + posture(torso_flex=rng.uniform(0, 30)))
    return _go_and_stay(rng, t, style, low, rng.uniform(0.7, 1.3) / style.tempo, [postures.lunge(rng) + style.rest()])


def crawl(rng: Rng, t: Array, style: Style) -> Array:
    """On hands and knees, or on hands and feet."""
    beat = phase(rng, t, rng.uniform(0.5, 1.1) * style.tempo)
    track = still(t, postures.crawl(rng) + 0.5 * style.habit)
    if rng.random() < 0.3:  # bear: knees off the floor
        add(track, knee=-rng.uniform(25, 45), thigh=rng.uniform(5, 20), point=-45, toes=-25, pitch=rng.uniform(-5, 20))
    swing, lift = rng.uniform(8, 22), rng.uniform(10, 30)
    for side, other, offset in (("l", "r", 0.0), ("r", "l", np.pi)):
        angle = beat + offset
        up = bump(angle, 0.75, 0.1)
        add_side(track, side, thigh=swing * np.cos(angle) + 0.3 * lift * up, knee=lift * up)
        add_side(track, other, lift=swing * np.cos(angle), elbow=0.9 * lift * up)
    add(
        track,
        yaw=rng.normal(0, 25) * (t - t[0]),
        torso_bend=rng.uniform(0, 10) * np.cos(beat),
        roll=rng.uniform(0, 5) * np.sin(beat),
    )
    return track


def lie(rng: Rng, t: Array, style: Style) -> Array:
    """Lying on back, front or side, moving arms and legs, rolling over."""
    times = moments(rng, t, 1.2, 3.5)
    base = postures.lie(rng)
    rows = []
    for _ in times:
        if rng.random() < 0.25:
            base = postures.lie(rng)
        rows.append(postures.lying_arms(rng, base + 0.7 * postures.legs(rng)) + 0.5 * style.habit)
    held = np.stack([times, times + 0.4 * np.diff(times, append=times[-1] + 2)], 1).ravel()
    return keyed(t, held, np.repeat(np.stack(steadied(rows)), 2, axis=0))


def fall(rng: Rng, t: Array, style: Style) -> Array:
    """Losing balance or collapsing forwards, backwards or sideways, and staying down."""
    span = t[-1] - t[0] if len(t) > 1 else 1.0
    start = t[0] + rng.uniform(0.05, 0.4) * span
    quick = rng.uniform(0.45, 0.9)
    end = postures.lying_arms(rng, postures.lie(rng))
    crumple = _stand(rng, style) + posture(knee=rng.uniform(30, 90), thigh=rng.uniform(20, 60), plant=-1, touch=-1)
    turns = columns("pitch", "roll", "spin")
    crumple[turns] += rng.uniform(0.2, 0.45) * end[turns]
    crumple = _arms_from(crumple, postures.any_arms(rng)) + posture(balance=-1)
    times = [start - 20, start, start + quick, start + 2.1 * quick, start + 2.1 * quick + rng.uniform(0.5, 2)]
    rows = [_stand(rng, style), _stand(rng, style), crumple, end, end]
    now = times[-1]
    while now < t[-1]:
        now += rng.uniform(1.0, 2.5)
        times.append(now)
        rows.append(postures.lying_arms(rng, end + 0.6 * postures.legs(rng)))
    track = keyed(t, np.array(times), np.stack(steadied(rows)))
    stagger = bump(np.clip((t - start) / quick, -1, 1) * np.pi, 0.0, 0.12)[:, None] * wander(rng, t, WIDTH, 0.8, 1.8)
    return track + 0.8 * stagger * style.sway


def get_up(rng: Rng, t: Array, style: Style) -> Array:
    """From lying through sitting or hands and knees to the feet."""
    span = t[-1] - t[0] if len(t) > 1 else 1.0
    now = t[0] + rng.uniform(0.0, 0.35) * span
    down = postures.lying_arms(rng, postures.lie(rng))
    pace = rng.uniform(0.7, 1.3) / style.tempo
    middle = [
        _arms_from(postures.sit_floor(rng), postures.arms(rng, "prop")) if rng.random() < 0.5 else postures.crawl(rng),
        postures.kneel(rng) + style.rest() if rng.random() < 0.6 else postures.squat(rng) + style.rest(),
    ]
    times, rows = [now - 20, now], [down, down]
    for row in [*middle, _stand(rng, style)]:
        now += pace * rng.uniform(0.8, 1.4)
        times += [now, now + rng.uniform(0.02, 0.4)]
        rows += [row, row]
        now = times[-1]
    return keyed(t, np.array(times), np.stack(steadied(rows)))


def push_up(rng: Rng, t: Array, style: Style) -> Array:
    """Exercises on the floor: press-ups, planks, sit-ups, bridges, leg raises, cycling legs."""
    beat = 0.5 - 0.5 * np.cos(phase(rng, t, rng.uniform(0.3, 0.7) * style.tempo))
    way = rng.integers(5)
    if way == 0:
        track = still(t, posture(pitch=78, point=-25, toes=-40, head_flex=-20, abduct=25, wrist=-60, elbow=12, lift=78))
        add(track, elbow=75 * beat, abduct=30 * beat, pitch=8 * beat, lift=-50 * beat)
    elif way == 1:
        bent = rng.uniform(40, 100)
        track = still(t, posture(pitch=-88, thigh=0.5 * bent, knee=bent) + postures.arms(rng, "behind_head"))
        sit = rng.uniform(0.3, 1.0)
        add(track, pitch=sit * 60 * beat, thigh=sit * 55 * beat, torso_flex=15 + sit * 40 * beat, head_flex=25 * beat)
    elif way == 2:
        track = still(t, posture(pitch=-92, knee=85, thigh=45, point=0) + style.rest())
        add(track, pitch=-28 * beat, thigh=-50 * beat, torso_flex=-12 * beat)
    elif way == 3:
        track = still(t, posture(pitch=-90, knee=8, point=25) + postures.arms(rng, "hang"))
        cycle = phase(rng, t, rng.uniform(0.4, 1.0) * style.tempo)
        size = rng.uniform(15, 40)
        add(track, l_thigh=55 + size * np.cos(cycle), r_thigh=55 - size * np.cos(cycle))
        together = rng.uniform(0, 1)
        add(track, l_knee=together * (45 + 40 * np.sin(cycle)), r_knee=together * (45 - 40 * np.sin(cycle)))
    else:
        side = posture(pitch=-90, spin=80, roll=0, torso_bend=-14, l_spread=4, head_bend=10)
        track = still(t, side + postures.arms(rng, "out", str(rng.choice(("out", "hips", "hang")))))
        add(track, r_spread=rng.uniform(10, 45) * beat, torso_bend=8 * beat)
    return add(track, tip=1.0) + 0.4 * style.habit
