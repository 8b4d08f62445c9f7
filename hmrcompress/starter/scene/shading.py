"""Shading of the visible surface: clothing regions, procedural textures, lights, sensor (compiled kernels)."""

from __future__ import annotations

import math

import numba as nb
import numpy as np
from numpy.typing import NDArray

from hmrcompress.starter.scene.noise import smooth_noise

Float = NDArray[np.float32]
Int = NDArray[np.int32]
Byte = NDArray[np.uint8]

SKIN, HAIR, TOP, BOTTOM, SHOES = range(5)
REGIONS = 5
PLAIN, BANDS, STRIPES, CHECKS, CLOUDS, SPOTS = range(6)


@nb.njit(inline="always", fastmath=True)
def region_of(x: float, y: float, z: float, cuts: Float) -> int:
    """Which garment covers a point of the template (rest pose, metres).

    cuts: hairline height, hair height at the back, back of the head (z), neck height, shoulder (|x|), sleeve end (|x|),
    waist height, hem of the top, hem of the trousers, top of the shoes, chest height above which arms begin.
    """
    side = abs(x)
    if y > cuts[3] and side < cuts[4]:
        return HAIR if (y > cuts[0] or (z < cuts[2] and y > cuts[1])) else SKIN
    if y < cuts[9]:
        return SHOES
    if side > cuts[4] and y > cuts[10]:
        return TOP if side < cuts[5] else SKIN
    if y > cuts[7]:
        return TOP
    return BOTTOM if y > cuts[8] else SKIN


@nb.njit(cache=True, fastmath=True, nogil=True)
def dress(vertices: Float, normals: Float, template: Float, cuts: Float, thickness: Float, seed: int) -> Float:
    """Push vertices out along their normals by the thickness of the garment over them (metres). Returns (V,3)."""
    out = vertices.copy()
    for v in range(vertices.shape[0]):
        x, y, z = template[v, 0], template[v, 1], template[v, 2]
        amount = thickness[region_of(x, y, z, cuts)]
        if amount > 0:
            amount *= np.float32(0.5) + smooth_noise(x * 12 + 64, y * 12 + z * 7 + 64, seed)
            for k in range(3):
                out[v, k] += normals[v, k] * amount
    return out


@nb.njit(inline="always", fastmath=True)
def pattern(kind: int, x: float, y: float, z: float, frequency: float, seed: int) -> np.floating | float:
    """Blend between a garment's two colours at a template point, in [0, 1]."""
    if kind == BANDS:
        return float(int(math.floor(y * frequency)) % 2)
    if kind == STRIPES:
        return float(int(math.floor(x * frequency)) % 2)
    if kind == CHECKS:
        return float((int(math.floor(x * frequency)) + int(math.floor(y * frequency))) % 2)
    if kind == CLOUDS:
        return smooth_noise(x * frequency + 80, y * frequency + z * frequency + 80, seed)
    if kind == SPOTS:
        return 1.0 if smooth_noise(x * frequency + 80, y * frequency + z * frequency + 80, seed) > 0.6 else 0.0
    return 0.0


@nb.njit(cache=True, fastmath=True, nogil=True)
def shade(
    image: Float,
    face_index: Int,
    bary: Float,
    faces: Int,
    normals: Float,
    template: Float,
    cuts: Float,
    colours: Float,
    textures: Float,
    lights: Float,
    ambient: Float,
    seed: int,
) -> None:
    """Colour every pixel of image (H,W,3) that sees a face.

    colours (REGIONS,2,3); textures (REGIONS,4): kind, frequency (1/m), strength, wrinkles; lights (L,7): direction
    towards the light (3, camera frame), colour (3), wrap; ambient (3).
    """
    height, width = face_index.shape
    half = np.float32(0.5)
    for row in range(height):
        for col in range(width):
            f = face_index[row, col]
            if f < 0:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            wa, wb = bary[row, col, 0], bary[row, col, 1]
            wc = np.float32(1) - wa - wb
            x = wa * template[a, 0] + wb * template[b, 0] + wc * template[c, 0]
            y = wa * template[a, 1] + wb * template[b, 1] + wc * template[c, 1]
            z = wa * template[a, 2] + wb * template[b, 2] + wc * template[c, 2]
            nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
            ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
            nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
            r = region_of(x, y, z, cuts)
            wrinkles = textures[r, 3]
            grain = (smooth_noise(x * 38 + z * 21 + 90, y * 38 + 90, seed + 4) - half) * wrinkles
            nx += grain
            ny += (smooth_noise(x * 24 + 120, y * 31 + z * 17 + 120, seed + 5) - half) * wrinkles
            length = np.float32(1) / math.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-9))
            nx *= length
            ny *= length
            nz *= length
            t = pattern(int(textures[r, 0]), x, y, z, textures[r, 1], seed + 6) * textures[r, 2]
            for ch in range(3):
                light = ambient[ch] * (np.float32(0.8) - np.float32(0.2) * ny)
                for q in range(lights.shape[0]):
                    wrap = lights[q, 6]
                    d = (nx * lights[q, 0] + ny * lights[q, 1] + nz * lights[q, 2] + wrap) / (1 + wrap)
                    if d > 0:
                        light += d * lights[q, 3 + ch]
                base = colours[r, 0, ch] * (1 - t) + colours[r, 1, ch] * t
                image[row, col, ch] = (base + grain * np.float32(0.12)) * light


@nb.njit(cache=True, fastmath=True, nogil=True)
def expose(
    image: Float, out: Byte, gain: float, offset: float, gamma: float, noise: float, blur: float, seed: int
) -> None:
    """From radiance to 8 bits: a small blur (0..1), gain and offset, uniform noise of the given width, gamma."""
    height, width = image.shape[:2]
    table = np.empty(1024, np.uint8)
    for i in range(1024):
        table[i] = np.uint8(255.0 * (i / 1023.0) ** gamma + 0.5)
    state = np.uint32(np.uint32(seed) * np.uint32(2654435761) + np.uint32(1))
    centre, side = np.float32(gain * (1 - blur)), np.float32(gain * blur * 0.25)
    grain = np.float32(noise * 2.0**-32)
    base = np.float32(offset - 0.5 * noise)
    for row in range(height):
        up, down = max(row - 1, 0), min(row + 1, height - 1)
        for col in range(width):
            left, right = max(col - 1, 0), min(col + 1, width - 1)
            for ch in range(3):
                value = image[row, col, ch] * centre
                if side > 0:
                    value += side * (
                        image[row, left, ch] + image[row, right, ch] + image[up, col, ch] + image[down, col, ch]
                    )
                state = np.uint32(state ^ np.uint32(state << np.uint32(13)))
                state = np.uint32(state ^ np.uint32(state >> np.uint32(17)))
                state = np.uint32(state ^ np.uint32(state << np.uint32(5)))
                level = int((value + base + np.float32(state) * grain) * np.float32(1023.0) + np.float32(0.5))
                out[row, col, ch] = table[min(max(level, 0), 1023)]


@nb.njit(cache=True, fastmath=True, nogil=True)
def surface_labels(
    face_index: Int, bary: Float, hidden: Byte, faces: Int, template: Float, part: Int, parts: Float, points: Float
) -> None:
    """Dense labels on a token grid, for the visible person.

    parts (R,C,P) receives the share of each token's pixels that shows body part p (part (V,) is the dominant joint of
    each vertex); points (R,C,3) the mean template position of those pixels in metres. The pixel grid must be a whole
    multiple of the token grid.
    """
    height, width = face_index.shape
    rows, cols = parts.shape[0], parts.shape[1]
    step_y, step_x = height // rows, width // cols
    unit = np.float32(1.0 / (step_x * step_y))
    parts[:] = 0
    points[:] = 0
    for row in range(height):
        for col in range(width):
            f = face_index[row, col]
            if f < 0 or hidden[row, col] != 0:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            wa, wb = bary[row, col, 0], bary[row, col, 1]
            wc = np.float32(1) - wa - wb
            nearest = a if (wa >= wb and wa >= wc) else (b if wb >= wc else c)
            i, j = row // step_y, col // step_x
            parts[i, j, part[nearest]] += unit
            for k in range(3):
                points[i, j, k] += wa * template[a, k] + wb * template[b, k] + wc * template[c, k]
    for i in range(rows):
        for j in range(cols):
            share = parts[i, j].sum()
            if share > 0:
                for k in range(3):
                    points[i, j, k] *= unit / share
