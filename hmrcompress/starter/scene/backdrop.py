"""What stands behind and in front of the person: a wall and a floor, clutter, occluders (compiled kernels)."""

from __future__ import annotations

import math

import numba as nb
import numpy as np
from numpy.typing import NDArray

from hmrcompress.starter.scene.noise import smooth_noise

Float = NDArray[np.float32]

SHAPE_FIELDS = 13
"""Columns of a shape: x, y (fractions of the crop's height, from its top left), half width, half height, angle,
kind (0 box, 1 ellipse, 2 blob), red, green, blue, gradient, texture strength, texture frequency, noise seed."""


@nb.njit(cache=True, fastmath=True, nogil=True)
def paint_backdrop(image: Float, colours: Float, numbers: Float, seed: int, shift_x: float, shift_y: float) -> None:
    """Wall and floor. image (H,W,3) is overwritten; colours (4,3) are wall low/high and floor low/high.

    numbers: horizon row (fraction of the height), its slope, coarse / middle / fine noise frequency per crop height,
    fine strength, tile strength, tiles per crop height, middle share. shift (fractions) pans the whole backdrop.
    """
    height, width = image.shape[:2]
    unit = np.float32(1.0 / height)
    horizon, slope, coarse, middle, fine, fine_strength, tile, tiles, share = numbers
    for row in range(height):
        y = (row + np.float32(0.5)) * unit + shift_y
        for col in range(width):
            x = (col + np.float32(0.5)) * unit + shift_x
            floor = y > horizon + slope * x
            depth = np.float32(1)
            if floor:
                depth = np.float32(0.25) + (y - horizon - slope * x)
            u = x / depth if floor else x
            v = np.float32(1) / depth if floor else y
            t = (
                smooth_noise(x * coarse, y * coarse, seed) * (1 - share)
                + smooth_noise(u * middle, v * middle, seed + 1) * share
            )
            grain = (smooth_noise(x * fine, y * fine, seed + 2) - np.float32(0.5)) * fine_strength
            if tile > 0 and (int(math.floor(u * tiles)) + int(math.floor(v * tiles))) % 2 == 0:
                grain += tile
            k = 2 if floor else 0
            for ch in range(3):
                image[row, col, ch] = colours[k, ch] * (1 - t) + colours[k + 1, ch] * t + grain


@nb.njit(cache=True, fastmath=True, nogil=True)
def paint_shapes(image: Float, shapes: Float, covered: NDArray[np.uint8], shift_x: float, shift_y: float) -> None:
    """Draw shapes over the image in order. shapes (S,SHAPE_FIELDS); covered (H,W) is set to 1 where one was drawn."""
    height, width = image.shape[:2]
    unit = np.float32(1.0 / height)
    for s in range(shapes.shape[0]):
        x0, y0, rx, ry, angle, kind, red, green, blue, gradient, strength, frequency, tag = shapes[s]
        x0 -= shift_x
        y0 -= shift_y
        seed = int(tag)
        cos, sin = math.cos(angle), math.sin(angle)
        reach = math.sqrt(rx * rx + ry * ry) * np.float32(1.3)
        for row in range(max(0, int((y0 - reach) * height)), min(height, int((y0 + reach) * height) + 1)):
            y = (row + np.float32(0.5)) * unit - y0
            for col in range(max(0, int((x0 - reach) * height)), min(width, int((x0 + reach) * height) + 1)):
                x = (col + np.float32(0.5)) * unit - x0
                u = (cos * x + sin * y) / rx
                v = (cos * y - sin * x) / ry
                if kind < 0.5:
                    inside = abs(u) < 1 and abs(v) < 1
                elif kind < 1.5:
                    inside = u * u + v * v < 1
                else:
                    wobble = smooth_noise(u * 2 + 17, v * 2 + 17, seed) - np.float32(0.5)
                    inside = u * u + v * v < 1 + wobble
                if inside:
                    t = (
                        smooth_noise(x * frequency + 9, y * frequency + 9, seed + 3) - np.float32(0.5)
                    ) * strength + gradient * u
                    image[row, col, 0] = red + t
                    image[row, col, 1] = green + t
                    image[row, col, 2] = blue + t
                    covered[row, col] = 1
