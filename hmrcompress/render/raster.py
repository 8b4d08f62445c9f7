"""A z-buffer rasteriser for triangle meshes (compiled with numba, CPU only).

Pixel centres lie at (column + 0.5, row + 0.5). Faces that turn their back to the camera are skipped (a face seen from
outside winds counter-clockwise on screen: its signed area is negative with y down), and so are faces with a vertex
behind the near plane.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np
from numpy.typing import NDArray

NEAR_METRES = 0.05

Float = NDArray[np.float32]
Int = NDArray[np.int32]


@nb.njit(cache=True, fastmath=True, nogil=True)
def rasterise(points: Float, depth: Float, faces: Int, face_index: Int, inverse_depth: Float, bary: Float) -> None:
    """Fill the visibility buffers of one mesh; call again with the same buffers to add another.

    points (V,2) pixels, depth (V,) metres along the viewing axis, faces (F,3).
    face_index (H,W) int32 starts at -1, inverse_depth (H,W) float32 at 0; bary (H,W,2) receives the
    perspective-correct weights of the face's first two vertices.
    """
    height, width = face_index.shape
    one = np.float32(1.0)
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        if depth[a] < NEAR_METRES or depth[b] < NEAR_METRES or depth[c] < NEAR_METRES:
            continue
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area >= 0:
            continue
        first_row = max(0, int(math.ceil(min(ay, by, cy) - 0.5)))
        last_row = min(height - 1, int(math.floor(max(ay, by, cy) - 0.5)))
        first_col = max(0, int(math.ceil(min(ax, bx, cx) - 0.5)))
        last_col = min(width - 1, int(math.floor(max(ax, bx, cx) - 0.5)))
        if first_row > last_row or first_col > last_col:
            continue
        scale = one / area
        qa, qb, qc = one / depth[a], one / depth[b], one / depth[c]
        for row in range(first_row, last_row + 1):
            y = np.float32(row + 0.5)
            for col in range(first_col, last_col + 1):
                x = np.float32(col + 0.5)
                wa = ((bx - x) * (cy - y) - (cx - x) * (by - y)) * scale
                wb = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) * scale
                wc = one - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                q = wa * qa + wb * qb + wc * qc
                if q > inverse_depth[row, col]:
                    inverse_depth[row, col] = q
                    face_index[row, col] = f
                    bary[row, col, 0] = wa * qa / q
                    bary[row, col, 1] = wb * qb / q


@nb.njit(cache=True, fastmath=True, nogil=True)
def vertex_normals(vertices: Float, faces: Int) -> Float:
    """Area-weighted unit normals, (V,3) and (F,3) -> (V,3); zero where a vertex belongs to no face of any area."""
    normals = np.zeros_like(vertices)
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in range(3):
            v = faces[f, corner]
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for v in range(normals.shape[0]):
        length = math.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2)
        if length > 1e-12:
            normals[v] /= np.float32(length)
    return normals


def project(vertices: Float, focal: float, centre: tuple[float, float]) -> tuple[Float, Float]:
    """Pinhole projection. vertices (V,3) metres in the camera frame -> ((V,2) pixels, (V,) depth in metres).

    focal in pixels, centre the principal point (x, y) in pixels.
    """
    depth = np.ascontiguousarray(vertices[:, 2], np.float32)
    safe = np.maximum(depth, np.float32(NEAR_METRES))
    points = np.empty((len(vertices), 2), np.float32)
    points[:, 0] = centre[0] + focal * vertices[:, 0] / safe
    points[:, 1] = centre[1] + focal * vertices[:, 1] / safe
    return points, depth


def visibility(
    vertices: Float, faces: Int, focal: float, centre: tuple[float, float], size: tuple[int, int]
) -> tuple[Int, Float, Float]:
    """Which face each pixel sees. vertices (V,3) camera frame, size (height, width).

    Returns face_index (H,W) int32 with -1 for none, inverse_depth (H,W), bary (H,W,2).
    """
    face_index = np.full(size, -1, np.int32)
    inverse_depth = np.zeros(size, np.float32)
    bary = np.zeros((*size, 2), np.float32)
    points, depth = project(vertices, focal, centre)
    rasterise(points, depth, faces, face_index, inverse_depth, bary)
    return face_index, inverse_depth, bary
