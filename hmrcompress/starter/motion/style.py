"""What makes one clip's person different from the next: habits that all segments of the clip share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hmrcompress.motion import curves
from hmrcompress.motion.arrays import Array
from hmrcompress.starter.motion.controls import (
    ANGLE_COLUMNS,
    ARM_COLUMNS,
    HEAD_COLUMNS,
    LEG_COLUMNS,
    TORSO_COLUMNS,
    WIDTH,
    posture,
)
from hmrcompress.starter.motion.postures import arm


@dataclass(frozen=True)
class Style:
    """Habits of one person.

    tempo scales speeds and energy amplitudes (both about 1); habit (WIDTH,) degrees is added to every posture;
    rest_left, rest_right (9,) are the arms at rest; sway (WIDTH,) the amplitude of slow wandering in degrees;
    spine (3,), neck and carry are those of controls.to_angles; asymmetry is the left-right difference.
    """

    tempo: float
    energy: float
    habit: Array
    rest_left: Array
    rest_right: Array
    sway: Array
    spine: Array
    neck: float
    carry: float
    asymmetry: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """A random person."""
        left = arm(rng, "hang")
        habit = posture(torso_flex=rng.normal(3, 5), head_flex=rng.normal(3, 7), shrug=rng.normal(0, 3))
        habit += posture(turn_out=rng.normal(4, 5), spread=rng.normal(1, 2), protract=rng.normal(2, 4))
        uneven = posture(torso_bend=1.5, torso_twist=2, head_bend=2.5, head_twist=3, thigh=1.5, spread=1.5)
        uneven += posture(turn_out=2.5, knee=1.5, shrug=2)
        habit += uneven * rng.standard_normal(WIDTH)
        sway = np.zeros(WIDTH)
        for columns, size in (
            (ARM_COLUMNS["l"] + ARM_COLUMNS["r"], 4.0),
            (TORSO_COLUMNS, 2.0),
            (HEAD_COLUMNS, 5.0),
            (LEG_COLUMNS["l"] + LEG_COLUMNS["r"], 1.5),
        ):
            sway[columns] = size * rng.uniform(0.3, 1.4, len(columns))
        return Style(
            tempo=float(np.exp(rng.normal(0, 0.16))),
            energy=float(np.clip(np.exp(rng.normal(0, 0.22)), 0.6, 1.6)),
            habit=habit,
            rest_left=left,
            rest_right=0.7 * left + 0.3 * arm(rng, "hang"),
            sway=sway * rng.uniform(0.5, 1.3),
            spine=rng.dirichlet((14.0, 11.0, 9.0)),
            neck=float(rng.uniform(0.35, 0.6)),
            carry=float(rng.uniform(0, 16)),
            asymmetry=float(rng.normal(0, 0.08)),
        )

    def rest(self) -> Array:
        """A row with the arms at rest, nothing else."""
        row = np.zeros(WIDTH)
        row[ARM_COLUMNS["l"]], row[ARM_COLUMNS["r"]] = self.rest_left, self.rest_right
        return row

    def wandering(self, rng: np.random.Generator, t: Array) -> Array:
        """Slow noise on all angles, (len(t), WIDTH) degrees."""
        noise = np.zeros((len(t), WIDTH))
        noise[:, ANGLE_COLUMNS] = curves.wander(rng, t, len(ANGLE_COLUMNS), 0.08, 0.6)
        return noise * self.sway
