"""Decimation of a mirror-symmetric closed mesh to an exact number of vertices, keeping original vertices only.

One half of the body is simplified and mirrored, so that the result is symmetric as well. Edges collapse onto one of
their two ends (Garland and Heckbert's quadrics decide which goes first), so every vertex that stays is an original one
and inherits its blend shapes, weights and names. The seam between the halves only shrinks along itself.
"""

from __future__ import annotations

import heapq

import numpy as np

from hmrcompress.starter.body.rotation import unit

LENGTH_PENALTY = 2e-3
"""Weight of (edge length)^4 beside the quadric error: spends vertices evenly where the surface is flat."""
SEAM_STIFFNESS = 0.1
MAX_NORMAL_TURN = 0.2
"""Smallest cosine allowed between a face's normals before and after a collapse."""


def decimate_symmetric(
    points: np.ndarray, faces: np.ndarray, partner: np.ndarray, vertices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a closed symmetric mesh to exactly `vertices` vertices.

    points (V,3) metres, faces (F,3), no face across x = 0, partner (V,) each vertex's mirror image -> (kept (vertices,)
    original indices in rising order, faces (F',3) numbered within `kept`). Raises ValueError where it can't be reached.
    """
    seam = partner == np.arange(len(points))
    half = _HalfMesh(points, faces[points[faces][..., 0].sum(1) > 0], seam)
    half.reduce(vertices, len(points))
    left = np.asarray([face for face in half.faces if face is not None], np.int64)
    both = np.concatenate([left, partner[left][:, ::-1]])
    kept = np.unique(both)
    number = np.full(len(points), -1, np.int64)
    number[kept] = np.arange(len(kept))
    return kept, number[both]


class _HalfMesh:
    """The half with x >= 0 under edge collapses."""

    def __init__(self, points: np.ndarray, faces: np.ndarray, seam: np.ndarray) -> None:
        self.points, self.seam = points, seam
        self.faces: list[list[int] | None] = [[int(v) for v in face] for face in faces]
        self.around: dict[int, set[int]] = {}
        for index, face in enumerate(faces):
            for vertex in face:
                self.around.setdefault(int(vertex), set()).add(index)
        self.quadrics = self._quadrics(faces)

    def _quadrics(self, faces: np.ndarray) -> np.ndarray:
        corners = self.points[faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(cross, axis=1) / 2
        normal = unit(cross)
        plane = np.concatenate([normal, -(normal * corners[:, 0]).sum(1, keepdims=True)], axis=1)
        own = area[:, None, None] * plane[:, :, None] * plane[:, None, :]
        quadrics = np.zeros((len(self.points), 4, 4))
        for corner in range(3):
            np.add.at(quadrics, faces[:, corner], own)
        for a, b in ((0, 1), (1, 2), (2, 0)):
            rim = np.nonzero(self.seam[faces[:, a]] & self.seam[faces[:, b]])[0]
            for index in rim:
                edge = self.points[faces[index, b]] - self.points[faces[index, a]]
                side = np.cross(edge, [1.0, 0.0, 0.0])
                wall = np.append(side, -side @ self.points[faces[index, a]]) / max(np.linalg.norm(side), 1e-12)
                for vertex in faces[index, [a, b]]:
                    quadrics[vertex] += SEAM_STIFFNESS * (edge @ edge) * np.outer(wall, wall)
        return quadrics

    def reduce(self, target: int, count: int) -> None:
        """Collapse edges until the whole (both halves) has `target` vertices, `count` being what it has now."""
        queue = [entry for vertex in self.around for entry in self._entries(vertex)]
        heapq.heapify(queue)
        stale: dict[int, int] = {}
        while count > target and queue:
            cost, gone, stays, stamp = heapq.heappop(queue)
            if gone not in self.around or stays not in self.around:
                continue
            if stamp != 0 and stamp != stale.get(gone, 0) + stale.get(stays, 0):
                continue
            if stamp == 0 and (stale.get(gone) or stale.get(stays)):
                continue
            lost = 1 if self.seam[gone] else 2
            if count - lost < target or not self._may_collapse(gone, stays):
                continue
            self._collapse(gone, stays)
            count -= lost
            for vertex in sorted(self._neighbours(stays) | {stays}):
                stale[vertex] = stale.get(vertex, 0) + 1
            for vertex in sorted(self._neighbours(stays) | {stays}):
                for entry in self._entries(vertex, stale):
                    heapq.heappush(queue, entry)
        if count != target:
            raise ValueError(f"decimation stopped at {count} vertices, {target} wanted")

    def _neighbours(self, vertex: int) -> set[int]:
        return {v for index in self.around[vertex] for v in self.faces[index] or ()} - {vertex}

    def _entries(self, gone: int, stale: dict[int, int] | None = None) -> list[tuple[float, int, int, int]]:
        entries = []
        for stays in sorted(self._neighbours(gone)):
            if self.seam[gone] and not self.seam[stays]:
                continue
            place = np.append(self.points[stays], 1.0)
            error = place @ (self.quadrics[gone] + self.quadrics[stays]) @ place
            length = self.points[stays] - self.points[gone]
            stamp = stale.get(gone, 0) + stale.get(stays, 0) if stale else 0
            entries.append((float(error + LENGTH_PENALTY * (length @ length) ** 2), gone, stays, stamp))
        return entries

    def _may_collapse(self, gone: int, stays: int) -> bool:
        shared = self.around[gone] & self.around[stays]
        rim = self.seam[gone] and self.seam[stays]
        if len(shared) != (1 if rim else 2):
            return False
        opposite = {v for index in shared for v in self.faces[index] or ()} - {gone, stays}
        theirs, ours = self._neighbours(gone), self._neighbours(stays)
        if theirs & ours != opposite:
            return False
        if not rim and self.seam[stays] and any(self.seam[v] for v in theirs - ours - {stays}):
            return False  # an edge across the half between two seam vertices would double when mirrored
        if any(len(self.around[v]) <= (2 if self.seam[v] else 3) for v in opposite):
            return False
        for index in self.around[gone] - shared:
            face = self.faces[index] or []
            before, after = (self._normal([replaced if v == gone else v for v in face]) for replaced in (gone, stays))
            size = np.linalg.norm(before) * np.linalg.norm(after)
            if size < 1e-14 or before @ after < MAX_NORMAL_TURN * size:
                return False
        return True

    def _normal(self, face: list[int]) -> np.ndarray:
        a, b, c = self.points[face]
        return np.cross(b - a, c - a)

    def _collapse(self, gone: int, stays: int) -> None:
        for index in sorted(self.around.pop(gone)):
            face = self.faces[index] or []
            if stays in face:
                self.faces[index] = None
                for vertex in face:
                    if vertex != gone:
                        self.around[vertex].discard(index)
            else:
                self.faces[index] = [stays if v == gone else v for v in face]
                self.around[stays].add(index)
        self.quadrics[stays] += self.quadrics[gone]
