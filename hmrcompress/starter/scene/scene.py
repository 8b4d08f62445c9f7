"""One crop of one person: geometry in, RGB, person mask and dense labels out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmrcompress.render.raster import project, rasterise, vertex_normals
from hmrcompress.starter.scene import shading
from hmrcompress.starter.scene.appearance import Appearance, Surroundings
from hmrcompress.starter.scene.backdrop import paint_backdrop, paint_shapes

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Surface:
    """The topology that the renderer draws: faces (F,3) int32, template vertices (V,3) metres in the rest pose,
    part (V,) int32 the dominant joint of each vertex, joints (24,3) of the template."""

    faces: NDArray[np.int32]
    template: Float
    part: NDArray[np.int32]
    joints: Float


@dataclass(frozen=True)
class View:
    """A pinhole camera looking at a crop: focal length and principal point in pixels, `size` is (height, width)."""

    focal: float
    centre: tuple[float, float]
    size: tuple[int, int]

    def resized(self, size: tuple[int, int]) -> View:
        """The same view drawn with another number of pixels: of the square of the longer side, the middle is shown."""
        scale = max(size) / max(self.size)
        y, x = (
            at * scale + (new - old * scale) / 2
            for at, new, old in zip(reversed(self.centre), size, self.size, strict=True)
        )
        return View(self.focal * scale, (x, y), size)


@dataclass(frozen=True)
class Crop:
    """image (H,W,3) uint8 RGB; person (H,W) bool, visible pixels of the person; silhouette (H,W) bool, the same
    without occluders; parts (R,C,24) and points (R,C,3) dense labels of `shading.surface_labels`, or None."""

    image: NDArray[np.uint8]
    person: NDArray[np.bool_]
    silhouette: NDArray[np.bool_]
    parts: Float | None = None
    points: Float | None = None


def render_crop(
    vertices: Float,
    surface: Surface,
    view: View,
    appearance: Appearance,
    surroundings: Surroundings,
    *,
    frame: int = 0,
    shift: tuple[float, float] = (0.0, 0.0),
    label_grid: tuple[int, int] | None = None,
) -> Crop:
    """Draw a person. vertices (V,3) metres in the camera frame (x right, y down, z forward).

    frame varies the sensor noise within a clip; shift pans the backdrop and the occluders (fractions of the crop's
    height); label_grid (rows, columns) asks for dense labels.
    """
    vertices = np.ascontiguousarray(vertices, np.float32)
    faces, template = surface.faces, surface.template
    normals = vertex_normals(vertices, faces)
    dressed = shading.dress(vertices, normals, template, appearance.cuts, appearance.thickness, appearance.seed)
    height, width = view.size
    face_index = np.full((height, width), -1, np.int32)
    inverse_depth = np.zeros((height, width), np.float32)
    bary = np.zeros((height, width, 2), np.float32)
    points, depth = project(dressed, view.focal, view.centre)
    rasterise(points, depth, faces, face_index, inverse_depth, bary)

    image = np.empty((height, width, 3), np.float32)
    covered = np.zeros((height, width), np.uint8)
    around = surroundings
    paint_backdrop(image, around.colours, around.numbers, around.seed, shift[0], shift[1])
    paint_shapes(image, around.clutter, covered, shift[0], shift[1])
    shading.shade(
        image,
        face_index,
        bary,
        faces,
        normals,
        template,
        appearance.cuts,
        appearance.colours,
        appearance.textures,
        around.lights,
        around.ambient,
        appearance.seed,
    )
    hidden = np.zeros((height, width), np.uint8)
    if len(around.occluders):
        paint_shapes(image, around.occluders, hidden, shift[0], shift[1])
    out = np.empty((height, width, 3), np.uint8)
    sensor_seed = (around.seed + 7919 * frame) & 0xFFFFFF
    shading.expose(image, out, around.gain, around.offset, around.gamma, around.noise, around.blur, sensor_seed)

    silhouette = face_index >= 0
    parts = where = None
    if label_grid is not None:
        parts = np.zeros((*label_grid, len(surface.joints)), np.float32)
        where = np.zeros((*label_grid, 3), np.float32)
        shading.surface_labels(face_index, bary, hidden, faces, template, surface.part, parts, where)
    return Crop(out, silhouette & (hidden == 0), silhouette, parts, where)
