"""Where to put the shoulder and elbow so that the hand is somewhere: a two-bone arm solved in closed form."""

from __future__ import annotations

import numpy as np

from hmrcompress.motion import rotvec
from hmrcompress.motion.arrays import Array

UPPER, FORE = 0.26, 0.31
"""Metres: upper arm, and forearm with half the hand, of the canonical skeleton."""


def aim(rng: np.random.Generator, azimuth: float, elevation: float, stretch: float) -> Array:
    """Arm controls (9,) that put the hand in a direction seen from the shoulder, at a share of the arm's length.

    azimuth in degrees: 0 straight ahead, 90 to the arm's own side, negative across the body; elevation in degrees
    above the shoulder's height; stretch 0.3..1 of the arm's length. Elbow swivel, wrist and forearm are drawn.
    """
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    distance = np.clip(stretch, 0.3, 0.995) * (UPPER + FORE)
    to_hand = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    swing, turn_in, elbow = solve(distance * to_hand, float(rng.normal(0, 22)))
    reach_shrug = max(0.0, elevation) / 12 + rng.normal(0, 2)
    protract = 12 * stretch * max(0.0, np.cos(a) * np.cos(e)) + rng.normal(0, 3)
    hand = rng.normal(0, (25, 15, 8))
    return np.array([reach_shrug, protract, swing[0], swing[1], turn_in, elbow, *hand])


def solve(hand: Array, swivel: float) -> tuple[tuple[float, float], float, float]:
    """Left arm with the hand at `hand` (3,) metres from the shoulder in the chest's frame.

    swivel in degrees turns the elbow about the line from shoulder to hand, from its natural place (down, out and a
    little back), outwards positive. Returns (lift, abduct), turn_in and elbow flexion in degrees.
    """
    distance = float(np.linalg.norm(hand))
    way = hand / distance
    cos_elbow = (UPPER**2 + FORE**2 - distance**2) / (2 * UPPER * FORE)
    elbow = np.pi - np.arccos(np.clip(cos_elbow, -1, 1))
    cos_open = (UPPER**2 + distance**2 - FORE**2) / (2 * UPPER * distance)
    opening = np.arccos(np.clip(cos_open, -1, 1))
    natural = np.array([0.45, -0.8, -0.4])
    natural = natural - (natural @ way) * way
    natural /= max(float(np.linalg.norm(natural)), 1e-6)
    natural = rotvec.rotate(np.deg2rad(swivel) * way, natural)
    upper = np.cos(opening) * way + np.sin(opening) * natural
    fore = hand - UPPER * upper
    axis = np.cross([0.0, -1.0, 0.0], upper)
    sine = float(np.linalg.norm(axis))
    swing = np.arctan2(sine, -upper[1]) * (axis / sine if sine > 1e-6 else np.array([-1.0, 0.0, 0.0]))
    inward = rotvec.rotate(-swing, fore / np.linalg.norm(fore))
    turn_in = np.arctan2(-inward[0], inward[2]) if elbow > 0.15 else 0.0
    turn_in = np.deg2rad(np.clip(np.rad2deg(turn_in), -70, 90))
    raised, abduct, turn, bend = np.rad2deg([-swing[0], swing[2], turn_in, elbow])
    return (float(raised), float(abduct)), float(turn), float(bend)
