"""What the arms, head and trunk do while the legs stand, sit or walk. Each returns a track for the upper body only."""

from __future__ import annotations

import numpy as np

from hmrcompress.motion.arrays import Array
from hmrcompress.motion.curves import flowing, keyed, phase, wander
from hmrcompress.starter.motion.controls import ARM_COLUMNS, WIDTH, add, add_side, posture, still
from hmrcompress.starter.motion.postures import ARM_POSTURES, any_arms, arm, arms
from hmrcompress.starter.motion.reach import aim
from hmrcompress.starter.motion.style import Style

Rng = np.random.Generator


def moments(rng: Rng, t: Array, shortest: float, longest: float) -> Array:
    """Increasing times from before t[0] to after t[-1], spaced at random between the two bounds (seconds)."""
    times = [t[0] - rng.uniform(0, longest)]
    while times[-1] < t[-1]:
        times.append(times[-1] + rng.uniform(shortest, longest))
    return np.array(times)


def _two_by_two(times: Array, rows: Array, hold: float) -> tuple[Array, Array]:
    """Every key held for a share of the time to the next one."""
    spans = np.diff(times, append=times[-1] + 1.0)
    return np.stack([times, times + hold * spans], 1).ravel(), np.repeat(rows, 2, axis=0)


def idle_arms(rng: Rng, t: Array, style: Style) -> Array:
    """Arms at rest, or in one posture after another."""
    times = moments(rng, t, 1.5, 5.0)
    rows = np.stack([style.rest() if rng.random() < 0.5 else any_arms(rng) for _ in times])
    return keyed(t, *_two_by_two(times, rows, rng.uniform(0.4, 0.75)))


def wave_hand(rng: Rng, t: Array, style: Style) -> Array:
    """One or both hands waving, high or low."""
    track = still(t, style.rest())
    beat = np.sin(phase(rng, t, rng.uniform(0.8, 2.2) * style.tempo))
    sides = ("l",) if rng.random() < 0.8 else ("l", "r")
    for side in sides:
        low = rng.random() < 0.35
        held = (5, 0, 30, 45, -40, 100, 0, 0, 0) if low else (8, 0, 60, 105, -35, 55, 0, 0, 0)
        track[:, ARM_COLUMNS[side]] = np.array(held) + rng.normal(0, 8, 9)
        big = rng.uniform(8, 28) * style.energy
        add_side(track, side, turn_in=big * beat, abduct=0.3 * big * beat, deviate=0.6 * big * beat)
    return track


def reach_out(rng: Rng, t: Array, style: Style) -> Array:
    """Hands sent to one place after another, anywhere in reach; the trunk bends and turns after them."""
    times = moments(rng, t, 0.7, 2.2)
    both, left_first = rng.random() < 0.4, rng.random() < 0.5
    rows = []
    for _ in times:
        row = style.rest()
        azimuth, elevation = rng.normal(15, 45), rng.uniform(-75, 80)
        side_twist, stoop = np.clip(0.4 * azimuth, -30, 30), np.clip(-0.55 * (elevation + 15), -12, 45)
        for side in "lr":
            if both or (side == "l") == left_first:
                out = azimuth - side_twist if side == "l" else -azimuth + side_twist
                row[ARM_COLUMNS[side]] = aim(rng, out, elevation + 0.7 * stoop, rng.uniform(0.5, 1.0))
        row += posture(torso_twist=side_twist, torso_flex=stoop, torso_bend=rng.normal(0, 8))
        rows.append(row + posture(head_twist=0.5 * azimuth, head_flex=-0.35 * elevation))
    return keyed(t, *_two_by_two(times, np.stack(rows), rng.uniform(0.1, 0.5)))


def point_at(rng: Rng, t: Array, style: Style) -> Array:
    """A straight arm pointing at things, the head looking there."""
    times = moments(rng, t, 1.0, 3.0)
    rows = []
    for _ in times:
        row = style.rest()
        if rng.random() < 0.8:
            azimuth, elevation = rng.normal(15, 40), rng.normal(5, 25)
            row[ARM_COLUMNS["l"]] = aim(rng, azimuth, elevation, rng.uniform(0.9, 1.0))
            row += posture(head_twist=0.7 * azimuth, head_flex=-0.4 * elevation, torso_twist=0.2 * azimuth)
        rows.append(row)
    return keyed(t, *_two_by_two(times, np.stack(rows), rng.uniform(0.3, 0.6)))


def box(rng: Rng, t: Array, style: Style) -> Array:
    """A guard, and straight, hooked and upward punches out of it."""
    guard = arms(rng, "guard")
    times, rows, now = [t[0] - 1.0], [guard], t[0] + rng.uniform(-0.3, 0.4)
    while now < t[-1]:
        side = "l" if rng.random() < 0.5 else "r"
        sign = 1.0 if side == "l" else -1.0
        row = guard.copy()
        kind = rng.random()
        if kind < 0.6:
            row[ARM_COLUMNS[side]] = aim(rng, rng.normal(-8, 10), rng.normal(8, 15), rng.uniform(0.92, 1.0))
        elif kind < 0.8:
            row[ARM_COLUMNS[side]] = (5, 15, 55, 65, 45, 85, 0, 0, 0) + rng.normal(0, 8, 9)
        else:
            row[ARM_COLUMNS[side]] = (8, 10, 85, 0, 10, 95, 40, 0, 0) + rng.normal(0, 8, 9)
        row += posture(torso_twist=-sign * rng.uniform(10, 35), torso_flex=rng.uniform(0, 15))
        punch = rng.uniform(0.2, 0.4) / style.tempo
        times += [now, now + punch, now + 2.1 * punch]
        rows += [guard, row, guard]
        now += 2.1 * punch + (rng.uniform(0.02, 0.2) if rng.random() < 0.6 else rng.uniform(0.4, 1.2))
    return keyed(t, np.array(times), np.stack(rows))


def carry(rng: Rng, t: Array, style: Style) -> Array:
    """Something held: in front of the body, on a shoulder, in one hand, above the head."""
    way = rng.integers(4)
    if way == 0:
        row = arms(rng, "hold") + posture(torso_flex=-rng.uniform(0, 12))
    elif way == 1:
        row = arms(rng, "phone", "hang") + posture(torso_bend=-rng.uniform(0, 10))
    elif way == 2:
        row = style.rest() + posture(torso_bend=-rng.uniform(3, 14), l_shrug=-4, r_abduct=rng.uniform(5, 25))
        row += posture(l_elbow=-10)
    else:
        row = arms(rng, "overhead") + posture(elbow=rng.uniform(0, 50))
    return still(t, row) + 0.6 * style.wandering(rng, t)


def dance_arms(rng: Rng, t: Array, style: Style) -> Array:
    """Arms flowing from posture to posture in time with a beat, the trunk with them."""
    step = rng.uniform(0.4, 1.1) / style.tempo
    times = np.arange(t[0] - 2 * step, t[-1] + 3 * step, step)
    loop = [any_arms(rng) for _ in range(rng.integers(2, 6))]
    rows = np.stack([loop[i % len(loop)] for i in range(len(times))])
    beat = phase(rng, t, 0.5 / step)
    track = flowing(t, times, rows)
    groove = style.energy * rng.uniform(0, 9, 4)
    add(track, torso_twist=groove[0] * np.sin(beat), torso_bend=groove[1] * np.cos(beat))
    return add(track, torso_flex=0.6 * groove[2] * np.sin(2 * beat), head_flex=groove[3] * np.sin(2 * beat + 1))


def stretch(rng: Rng, t: Array, style: Style) -> Array:
    """Arms and trunk to the ends of their range, one after another, and held."""
    times = moments(rng, t, 1.5, 3.5)
    choices = ("overhead", "wide_up", "out", "behind_head", "back", "forward", "hug", "behind_back")
    rows = []
    for _ in times:
        left, right = map(str, rng.choice(choices, 2))
        row = arms(rng, left, None if rng.random() < 0.6 else right)
        bend = rng.choice(("side", "twist", "back", "front", "none"))
        row += posture(
            torso_bend=rng.normal(0, 28) if bend == "side" else 0.0,
            torso_twist=rng.normal(0, 30) if bend == "twist" else 0.0,
            torso_flex=-rng.uniform(5, 35) if bend == "back" else rng.uniform(5, 60) * (bend == "front"),
            head_bend=rng.normal(0, 14),
            head_twist=rng.normal(0, 20),
            head_flex=rng.normal(0, 18),
        )
        rows.append(row)
    return keyed(t, *_two_by_two(times, np.stack(rows), rng.uniform(0.2, 0.6)))


def talk(rng: Rng, t: Array, style: Style) -> Array:
    """Hands that talk: forearms up in front, beating and opening."""
    rest = arms(rng, str(rng.choice(("hold", "chest", "hang", "hold"))), str(rng.choice(("hold", "chest", "hang"))))
    track = still(t, rest)
    size = posture(lift=9, abduct=8, turn_in=14, elbow=16, supinate=18, wrist=9)
    size += posture(head_twist=8, head_flex=6, torso_twist=4)
    return track + style.energy * size * wander(rng, t, WIDTH, 0.3, 1.2)


def throw(rng: Rng, t: Array, style: Style) -> Array:
    """Winding up and throwing over or under arm, or swinging something with both hands."""
    times, rows, now = [t[0] - 1.0], [style.rest()], t[0] + rng.uniform(-0.5, 0.6)
    both = rng.random() < 0.35
    while now < t[-1]:
        twist = rng.uniform(15, 40)
        back, front = style.rest(), style.rest()
        sides = "lr" if both else "l"
        under = rng.random() < 0.3
        for side in sides:
            if under:
                back[ARM_COLUMNS[side]] = arm(rng, "back")
                front[ARM_COLUMNS[side]] = arm(rng, "forward")
            elif both:
                across = 40.0 if side == "r" else -40.0
                back[ARM_COLUMNS[side]] = aim(rng, -across, rng.uniform(-10, 50), 0.85)
                front[ARM_COLUMNS[side]] = aim(rng, across, rng.uniform(-30, 30), 0.9)
            else:
                back[ARM_COLUMNS[side]] = (5, -8, 20, 100, -70, 95, 0, -20, 0) + rng.normal(0, 8, 9)
                front[ARM_COLUMNS[side]] = (5, 12, 70, -5, 30, 25, 0, 30, 0) + rng.normal(0, 8, 9)
        back += posture(torso_twist=twist, torso_flex=-8)
        front += posture(torso_twist=-twist, torso_flex=rng.uniform(5, 35))
        quick = rng.uniform(0.22, 0.4) / style.tempo
        times += [now, now + rng.uniform(0.5, 0.9), now + 0.95 + quick, now + 2.0 + quick]
        rows += [style.rest(), back, front, style.rest()]
        now = times[-1] + rng.uniform(0.1, 1.0)
    return keyed(t, np.array(times), np.stack(rows))


def circles(rng: Rng, t: Array, style: Style) -> Array:
    """Arm circles, swimming strokes, clapping, jumping-jack arms: anything periodic."""
    rate = rng.uniform(0.35, 1.1) * style.tempo
    left = phase(rng, t, rate)
    right = left + rng.choice([0.0, np.pi])
    track = still(t, style.rest())
    a, b = any_arms(rng), any_arms(rng)
    for side, beat in (("l", left), ("r", right)):
        mid, size = 0.5 * (a + b)[ARM_COLUMNS[side]], 0.5 * (a - b)[ARM_COLUMNS[side]]
        quarter = rng.normal(0, 14, 9) * style.energy
        track[:, ARM_COLUMNS[side]] = mid + np.cos(beat)[:, None] * size + np.sin(beat)[:, None] * quarter
    return add(track, torso_twist=rng.uniform(0, 8) * np.sin(left))


def any_posture(rng: Rng, t: Array, style: Style) -> Array:
    """Arms anywhere in their range, passing slowly from one draw to the next: covers what no action does."""
    times = moments(rng, t, 0.9, 2.5)
    rows = []
    for _ in times:
        row = np.zeros(WIDTH)
        for side in "lr":
            if rng.random() < 0.5:
                row[ARM_COLUMNS[side]] = aim(rng, rng.uniform(-50, 120), rng.uniform(-85, 85), rng.uniform(0.35, 1.0))
            else:
                row[ARM_COLUMNS[side]] = arm(rng, str(rng.choice(ARM_POSTURES)), 1.5)
        row += posture(torso_flex=rng.normal(8, 16), torso_bend=rng.normal(0, 11), torso_twist=rng.normal(0, 15))
        rows.append(
            row + posture(head_flex=rng.normal(5, 15), head_bend=rng.normal(0, 12), head_twist=rng.normal(0, 25))
        )
    return flowing(t, times, np.stack(rows))
