"""What a person wears and what surrounds them, drawn at random from a generator that is handed in."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmrcompress.body.joints import joint
from hmrcompress.starter.scene import shading
from hmrcompress.starter.scene.backdrop import SHAPE_FIELDS

Float = NDArray[np.float32]

# Diffuse colours from light to dark (skin) and common hair colours; linear blends between neighbours are drawn.
SKIN_TONES = np.array(
    [
        (0.93, 0.77, 0.67),
        (0.87, 0.68, 0.55),
        (0.76, 0.56, 0.42),
        (0.60, 0.42, 0.29),
        (0.43, 0.29, 0.20),
        (0.29, 0.19, 0.14),
    ]
)
HAIR_TONES = np.array(
    [
        (0.07, 0.06, 0.05),
        (0.19, 0.12, 0.08),
        (0.34, 0.22, 0.13),
        (0.62, 0.48, 0.28),
        (0.56, 0.55, 0.53),
        (0.42, 0.17, 0.08),
    ]
)


@dataclass(frozen=True)
class Appearance:
    """Clothes and skin; the arrays are those of `shading.shade` and `shading.dress`."""

    cuts: Float
    colours: Float
    textures: Float
    thickness: Float
    seed: int


@dataclass(frozen=True)
class Surroundings:
    """Backdrop, clutter behind, occluders in front, lights and sensor; arrays as the kernels take them."""

    colours: Float
    numbers: Float
    clutter: Float
    occluders: Float
    lights: Float
    ambient: Float
    gain: float
    offset: float
    gamma: float
    noise: float
    blur: float
    seed: int


def _colour(rng: np.random.Generator, saturation: float = 0.9) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(rng.random(), saturation * rng.random() ** 1.4, rng.uniform(0.05, 0.97))


def draw_appearance(rng: np.random.Generator, rest_joints: Float) -> Appearance:
    """Clothes for a body whose template joints in the rest pose are rest_joints (24,3) metres."""
    at = {name: rest_joints[joint(name)] for name in ("head", "neck", "pelvis", "left_shoulder", "left_elbow")}
    at |= {name: rest_joints[joint(name)] for name in ("left_wrist", "left_knee", "left_ankle", "spine1", "spine2")}
    head, shoulder, elbow, wrist = at["head"], at["left_shoulder"][0], at["left_elbow"][0], at["left_wrist"][0]
    bald = rng.random() < 0.1
    sleeves = (shoulder + 0.03, shoulder + rng.uniform(0.35, 0.8) * (elbow - shoulder), wrist - rng.uniform(0, 0.06))
    knee, ankle = at["left_knee"][1], at["left_ankle"][1]
    trousers = (knee + rng.uniform(0.02, 0.2), knee - rng.uniform(0.0, 0.2), ankle + rng.uniform(-0.02, 0.08))
    cuts = np.array(
        [
            9.0 if bald else head[1] + rng.uniform(0.09, 0.14),
            9.0 if bald else head[1] + rng.uniform(-0.16, 0.06),
            head[2] - rng.uniform(-0.01, 0.05),
            at["neck"][1] + rng.uniform(-0.03, 0.03),
            shoulder - 0.03,
            sleeves[rng.choice(3, p=[0.12, 0.43, 0.45])],
            at["spine1"][1],
            at["pelvis"][1] + rng.uniform(-0.14, 0.09),
            trousers[rng.choice(3, p=[0.25, 0.1, 0.65])],
            -9.0 if rng.random() < 0.12 else ankle + rng.uniform(-0.03, 0.14),
            at["spine2"][1],
        ],
        np.float32,
    )
    colours = np.zeros((shading.REGIONS, 2, 3), np.float32)
    textures = np.zeros((shading.REGIONS, 4), np.float32)
    tone = rng.uniform(0, len(SKIN_TONES) - 1.001)
    lower = int(tone)
    colours[shading.SKIN] = SKIN_TONES[lower] * (1 - tone + lower) + SKIN_TONES[lower + 1] * (tone - lower)
    textures[shading.SKIN] = (shading.PLAIN, 1, 0, 0.08)
    colours[shading.HAIR] = HAIR_TONES[rng.integers(len(HAIR_TONES))] * rng.uniform(0.7, 1.3)
    textures[shading.HAIR] = (shading.PLAIN, 1, 0, 0.6)
    for garment in (shading.TOP, shading.BOTTOM, shading.SHOES):
        colours[garment] = _colour(rng), _colour(rng)
        kind = rng.choice(6, p=[0.42, 0.13, 0.08, 0.1, 0.15, 0.12]) if garment != shading.SHOES else shading.PLAIN
        textures[garment] = (kind, rng.uniform(6, 36), rng.uniform(0.3, 1), rng.uniform(0.1, 0.9))
    if rng.random() < 0.15:
        colours[shading.BOTTOM], textures[shading.BOTTOM] = colours[shading.TOP], textures[shading.TOP]
    thickness = np.array(
        [0, rng.uniform(0.006, 0.03), rng.uniform(0, 0.016), rng.uniform(0, 0.016), rng.uniform(0.002, 0.01)],
        np.float32,
    )
    return Appearance(cuts, colours, textures, thickness, int(rng.integers(1 << 24)))


def draw_shapes(rng: np.random.Generator, count: int, smallest: float, largest: float, skin: float = 0.15) -> Float:
    """`count` random shapes (see `SHAPE_FIELDS`), half sizes between smallest and largest fractions of the crop height.

    A share `skin` of them is coloured like skin or drawn as long bars, so that limb-like things are no proof of a limb.
    """
    shapes = np.zeros((count, SHAPE_FIELDS), np.float32)
    for row in shapes:
        row[0:2] = rng.uniform(-0.08, 0.83), rng.uniform(-0.08, 1.08)
        row[2:4] = np.exp(rng.uniform(np.log(smallest), np.log(largest), 2))
        if rng.random() < 0.25:
            row[3] = max(0.006, row[3] * 0.15)
        row[4], row[5] = rng.uniform(0, np.pi), rng.integers(3)
        row[6:9] = SKIN_TONES[rng.integers(len(SKIN_TONES))] if rng.random() < skin else _colour(rng)
        row[9:12] = rng.normal() * 0.15, rng.uniform(0, 0.5), rng.uniform(4, 60)
        row[12] = rng.integers(1 << 20)
    return shapes


def draw_surroundings(rng: np.random.Generator, difficulty: float = 1.0) -> Surroundings:
    """Backdrop, clutter, occluders and light. difficulty in [0, 1] scales clutter and the chance of occluders.

    At difficulty 1 there are occluders in 35 % of the draws.
    """
    colours = np.array([_colour(rng, 0.6) for _ in range(4)], np.float32)
    numbers = np.array(
        [
            rng.uniform(0.3, 1.1),
            rng.normal() * 0.06,
            rng.uniform(1, 5),
            rng.uniform(4, 16),
            rng.uniform(30, 90),
            rng.uniform(0, 0.25),
            rng.normal() * 0.05 if rng.random() < 0.35 else 0.0,
            rng.uniform(3, 14),
            rng.uniform(0.1, 0.6),
        ],
        np.float32,
    )
    clutter = draw_shapes(rng, int(difficulty * rng.integers(0, 13)), 0.02, 0.3)
    hidden = rng.random() < 0.35 * difficulty
    occluders = draw_shapes(rng, int(rng.integers(1, 4)) if hidden else 0, 0.04, 0.22)
    count = int(rng.integers(1, 3))
    lights = np.zeros((count, 7), np.float32)
    for row in lights:
        towards = rng.normal(size=3)
        towards[1] = -abs(towards[1])
        if rng.random() < 0.8:
            towards[2] = -abs(towards[2])
        row[:3] = towards / np.linalg.norm(towards)
        row[3:6] = rng.uniform(0.35, 1.1) / count * (1 + 0.06 * rng.normal(size=3))
        row[6] = rng.uniform(0, 0.4)
    ambient = (rng.uniform(0.18, 0.6) * (1 + 0.06 * rng.normal(size=3))).astype(np.float32)
    return Surroundings(
        colours,
        numbers,
        clutter,
        occluders,
        lights,
        ambient,
        gain=rng.uniform(0.8, 1.35),
        offset=rng.normal() * 0.03,
        gamma=rng.uniform(0.62, 1.1),
        noise=rng.uniform(0, 0.09),
        blur=rng.uniform(0, 0.9) if rng.random() < 0.5 else 0.0,
        seed=int(rng.integers(1 << 24)),
    )
