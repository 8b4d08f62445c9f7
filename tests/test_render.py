"""The renderer against independent rasterisers and float64 geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hmrcompress.body.files import starter_body
from hmrcompress.render.raster import project, rasterise, vertex_normals, visibility
from hmrcompress.starter.scene import shading
from hmrcompress.starter.scene.appearance import draw_shapes
from hmrcompress.starter.scene.filming import camera_vertices, surface_of
from hmrcompress.starter.scene.noise import lattice, smooth_noise
from hmrcompress.starter.scene.scene import View, render_crop
from hmrcompress.starter.scene.world import SPLITS, make_clip

SIZE = (256, 192)


@pytest.fixture(scope="module")
def stage():
    """A body, its surface, and a clip with a mesh, without clutter or occluders."""
    body = starter_body()
    surface = surface_of(body)
    shots = []
    for index in range(6):
        clip = make_clip(SPLITS["val"], index, body, frames=1)
        clip = replace(
            clip,
            surroundings=replace(clip.surroundings, occluders=clip.surroundings.occluders[:0], noise=0.0),
        )
        mesh = camera_vertices(body, clip.params, clip.placement.transl)[0]
        view = View(float(clip.placement.focal[0]), tuple(clip.placement.centre[0]), SIZE)
        shots.append((clip, mesh, view))
    return surface, shots


def polygon_mask(points: np.ndarray, faces: np.ndarray, scale: int = 24) -> np.ndarray:
    """Union of all projected triangles by PIL, drawn `scale` times larger and sampled at pixel centres."""
    picture = Image.new("1", (SIZE[1] * scale, SIZE[0] * scale))
    draw = ImageDraw.Draw(picture)
    for triangle in points[faces] * scale - 0.5:
        draw.polygon([tuple(corner) for corner in triangle], fill=1)
    return np.asarray(picture)[scale // 2 :: scale, scale // 2 :: scale]


def test_masks_agree_with_a_polygon_rasteriser(stage):
    surface, shots = stage
    for clip, mesh, view in shots:
        crop = render_crop(mesh, surface, view, clip.appearance, clip.surroundings)
        look = clip.appearance
        normals = vertex_normals(mesh, surface.faces)
        dressed = shading.dress(mesh, normals, surface.template, look.cuts, look.thickness, look.seed)
        depth = dressed[:, 2:].astype(np.float64)
        points = view.focal * dressed[:, :2].astype(np.float64) / depth + np.asarray(view.centre)
        expected = polygon_mask(points, surface.faces)
        overlap = (crop.person & expected).sum() / (crop.person | expected).sum()
        assert overlap > 0.99


def test_the_nearer_face_wins_and_weights_are_those_of_the_ray():
    vertices = np.array(
        [[-1, -1, 4], [-1, 1, 5], [1, 1, 3], [-0.5, -0.4, 2], [-0.5, 0.4, 2.5], [0.6, 0.3, 3.1]], np.float32
    )
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    focal, centre, size = 90.0, (48.0, 64.0), (128, 96)
    face_index, inverse_depth, bary = visibility(vertices, faces, focal, centre, size)
    assert {0, 1} <= set(np.unique(face_index))
    exact = vertices.astype(np.float64)
    for row, col in np.argwhere(face_index >= 0)[::17]:
        ray = np.array([(col + 0.5 - centre[0]) / focal, (row + 0.5 - centre[1]) / focal, 1.0])
        hits = []
        for corners in exact[faces]:
            # ray * t = a * A + b * B + c * C with a + b + c = 1
            system = np.vstack([np.column_stack([corners.T, -ray]), [1, 1, 1, 0]])
            a, b, c, t = np.linalg.solve(system, [0, 0, 0, 1])
            hits.append((t, a, b) if min(a, b, c) > 1e-4 else (np.inf, a, b))
        nearest = int(np.argmin([hit[0] for hit in hits]))
        if np.isinf(hits[nearest][0]):
            continue
        assert face_index[row, col] == nearest
        assert 1 / inverse_depth[row, col] == pytest.approx(hits[nearest][0], rel=1e-4)
        assert bary[row, col] == pytest.approx(hits[nearest][1:], abs=1e-3)


def test_faces_that_look_away_or_lie_behind_the_camera_are_not_drawn():
    triangle = np.array([[-1, -1, 4], [-1, 1, 4], [1, 1, 4]], np.float32)
    faces = np.array([[0, 1, 2]], np.int32)
    look = (60.0, (32.0, 32.0), (64, 64))
    assert (visibility(triangle, faces, *look)[0] >= 0).any()
    assert (visibility(triangle, faces[:, ::-1].copy(), *look)[0] < 0).all()
    assert (visibility(triangle * [1, 1, -1], faces, *look)[0] < 0).all()


def test_normals_of_a_sphere_point_outwards():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    from scipy.spatial import ConvexHull

    hull = ConvexHull(points)
    faces = hull.simplices.astype(np.int32)
    corners = points[faces]
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flipped = (outward * corners.mean(1)).sum(1) < 0
    faces[flipped] = faces[flipped][:, ::-1]
    normals = vertex_normals(points.astype(np.float32), faces)
    assert (normals * points).sum(1).min() > 0.95
    assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-5


def test_projection_is_the_pinhole_formula():
    vertices = np.random.default_rng(1).uniform(-1, 1, (50, 3)).astype(np.float32) + np.array([0, 0, 4], np.float32)
    points, depth = project(vertices, 700.0, (90.0, 130.0))
    exact = vertices.astype(np.float64)
    assert np.abs(points - (700 * exact[:, :2] / exact[:, 2:] + [90, 130])).max() < 1e-3
    assert (depth == vertices[:, 2]).all()


def test_noise_is_uniform_on_the_lattice_and_smooth_between():
    values = np.array([lattice(x, y, 3) for x in range(60) for y in range(60)])
    assert 0 <= values.min() and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.02 and abs(values.std() - 12**-0.5) < 0.01
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05
    line = np.array([smooth_noise(x * 0.01, 0.3, 3) for x in range(1000)])
    assert np.abs(np.diff(line)).max() < 0.02 and line.std() > 0.1


def test_the_same_call_gives_the_same_bytes_and_only_the_sensor_changes_with_the_frame(stage):
    surface, shots = stage
    clip, mesh, view = shots[0]
    noisy = replace(clip.surroundings, noise=0.08)
    first = render_crop(mesh, surface, view, clip.appearance, noisy)
    again = render_crop(mesh, surface, view, clip.appearance, noisy)
    later = render_crop(mesh, surface, view, clip.appearance, noisy, frame=1)
    assert (first.image == again.image).all() and (first.person == again.person).all()
    difference = np.abs(first.image.astype(int) - later.image)
    assert 0.2 < difference.mean() < 20 and (first.person == later.person).all()


def test_occluders_hide_and_the_silhouette_stays(stage):
    surface, shots = stage
    clip, mesh, view = shots[1]
    wall = draw_shapes(np.random.default_rng(0), 1, 0.3, 0.31)
    wall[0, :6] = 0.375, 0.5, 0.2, 0.2, 0.0, 0.0
    crop = render_crop(mesh, surface, view, clip.appearance, replace(clip.surroundings, occluders=wall))
    rows, cols = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] + 0.5
    covered = (np.abs(cols / SIZE[0] - 0.375) < 0.2) & (np.abs(rows / SIZE[0] - 0.5) < 0.2)
    assert (crop.person == (crop.silhouette & ~covered)).mean() > 0.995
    assert crop.person.sum() < crop.silhouette.sum()


def test_dense_labels_equal_a_slow_loop(stage):
    surface, shots = stage
    clip, mesh, view = shots[2]
    small = view.resized((128, 96))
    crop = render_crop(mesh, surface, small, clip.appearance, clip.surroundings, label_grid=(8, 6))
    look = clip.appearance
    dressed = shading.dress(
        mesh, vertex_normals(mesh, surface.faces), surface.template, look.cuts, look.thickness, look.seed
    )
    face_index = np.full((128, 96), -1, np.int32)
    bary = np.zeros((128, 96, 2), np.float32)
    points, depth = project(dressed, small.focal, small.centre)
    rasterise(points, depth, surface.faces, face_index, np.zeros((128, 96), np.float32), bary)
    parts, places = np.zeros((8, 6, 24)), np.zeros((8, 6, 3))
    for row, col in np.argwhere(face_index >= 0):
        corners = surface.faces[face_index[row, col]]
        weights = np.array([*bary[row, col], 1 - bary[row, col].sum()], np.float64)
        parts[row // 16, col // 16, surface.part[corners[weights.argmax()]]] += 1
        places[row // 16, col // 16] += weights @ surface.template[corners].astype(np.float64)
    total = parts.sum(-1, keepdims=True)
    assert np.abs(crop.parts - parts / 256).max() < 0.02
    assert np.abs(crop.parts.sum(-1) - total[..., 0] / 256).max() < 1e-5
    seen = total[..., 0] > 0
    assert np.abs((crop.points - places / np.maximum(total, 1))[seen]).max() < 1e-4


def test_a_view_drawn_smaller_shows_the_same(stage):
    surface, shots = stage
    clip, mesh, view = shots[3]
    large = render_crop(mesh, surface, view, clip.appearance, clip.surroundings)
    small = render_crop(mesh, surface, view.resized((128, 96)), clip.appearance, clip.surroundings)
    halved = large.person.reshape(128, 2, 96, 2).mean((1, 3)) > 0.5
    assert (halved == small.person).mean() > 0.99
    means = large.image.reshape(128, 2, 96, 2, 3).mean((1, 3))
    assert np.abs(means - small.image).mean() < 12
