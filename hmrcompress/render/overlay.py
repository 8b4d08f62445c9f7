"""Meshes laid over a picture: shaded, smooth at their edges, the nearest in front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba as nb
import numpy as np
from numpy.typing import NDArray

from hmrcompress.render.raster import Float, Int, project, rasterise, vertex_normals

Picture = NDArray[np.uint8]
COLOURS = (
    (0.35, 0.62, 0.95), (0.93, 0.82, 0.38), (0.45, 0.80, 0.47), (0.70, 0.52, 0.95),
    (0.38, 0.82, 0.84), (0.72, 0.88, 0.36), (0.88, 0.46, 0.86), (0.78, 0.80, 0.84),
)  # fmt: skip
"""Of people, one after the other; none of them looks like skin."""
OPACITY = 0.85
SAMPLES = 2
"""Samples a pixel, each way."""
AMBIENT, LIGHT_FRONT, LIGHT_TOP, RIM = 0.26, 0.62, 0.22, 0.35


@nb.njit(cache=True, fastmath=True, nogil=True)
def _blend(
    image: Picture, top: int, left: int, face_index: Int, bary: Float, faces: Int, normals: Float, colours: Float,
    faces_each: int, samples: int, opacity: float,
) -> None:  # fmt: skip
    """Averages the samples of each pixel over image, whose row `top` and column `left` hold the first of them."""
    rows, columns = face_index.shape[0] // samples, face_index.shape[1] // samples
    share = np.float32(1.0 / (samples * samples))
    for row in range(rows):
        for col in range(columns):
            covered = red = green = blue = np.float32(0)
            for i in range(samples):
                for j in range(samples):
                    y, x = row * samples + i, col * samples + j
                    f = face_index[y, x]
                    if f < 0:
                        continue
                    wa, wb = bary[y, x, 0], bary[y, x, 1]
                    wc = np.float32(1) - wa - wb
                    a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
                    nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
                    ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
                    nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
                    length = max(math.sqrt(nx * nx + ny * ny + nz * nz), np.float32(1e-6))
                    front = max(-nz / length, np.float32(0))
                    up = max(-ny / length, np.float32(0))
                    # Darker where the surface turns away, so that limbs stand out from each other.
                    edge = np.float32(1) - np.float32(RIM) * (np.float32(1) - front) ** 3
                    light = (AMBIENT + LIGHT_FRONT * front + LIGHT_TOP * up) * edge
                    person = f // faces_each
                    covered += share
                    red += share * min(colours[person, 0] * light, np.float32(1))
                    green += share * min(colours[person, 1] * light, np.float32(1))
                    blue += share * min(colours[person, 2] * light, np.float32(1))
            if covered > 0:
                strength = np.float32(opacity)
                stays = np.float32(1) - strength * covered
                scale = strength * np.float32(255)
                pixel = image[top + row, left + col]
                pixel[0] = np.uint8(stays * pixel[0] + scale * red + np.float32(0.5))
                pixel[1] = np.uint8(stays * pixel[1] + scale * green + np.float32(0.5))
                pixel[2] = np.uint8(stays * pixel[2] + scale * blue + np.float32(0.5))


def draw_meshes(
    image: Picture,
    vertices: Float,
    faces: Int,
    focal: float,
    centre: tuple[float, float],
    colours: Sequence[Sequence[float]],
    *,
    opacity: float = OPACITY,
) -> Picture:
    """A copy of image (H,W,3) RGB with P meshes of one topology over it.

    vertices (P,V,3) metres in the camera frame, faces (F,3), focal and centre (x, y) of the camera in pixels, colours
    (P,3) RGB in 0..1. Only the part of the picture where somebody is gets drawn on.
    """
    drawn = np.ascontiguousarray(image).copy()
    height, width = drawn.shape[:2]
    flat = np.ascontiguousarray(vertices.reshape(-1, 3), np.float32)
    points, depth = project(flat, focal, centre)
    ahead = points[depth > 0]
    if not len(ahead):
        return drawn
    left, top = np.clip(np.floor(ahead.min(0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(ahead.max(0)), 0, (width, height)).astype(int)
    if left >= right or top >= bottom:
        return drawn
    size = (SAMPLES * int(bottom - top), SAMPLES * int(right - left))
    face_index, inverse_depth = np.full(size, -1, np.int32), np.zeros(size, np.float32)
    bary = np.zeros((*size, 2), np.float32)
    each = vertices.shape[1]
    every = np.concatenate([faces + person * each for person in range(len(vertices))]).astype(np.int32)
    inside = ((points - np.array([left, top], np.float32)) * np.float32(SAMPLES)).astype(np.float32)
    rasterise(inside, depth, every, face_index, inverse_depth, bary)
    normals = vertex_normals(flat, every)
    tones = np.ascontiguousarray(colours, np.float32)
    _blend(drawn, int(top), int(left), face_index, bary, every, normals, tones, len(faces), SAMPLES, opacity)
    return drawn
