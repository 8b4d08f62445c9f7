"""From a clip of the starter world to its pictures: the body posed and rendered frame by frame."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from hmrcompress.body.model import BodyModel
from hmrcompress.records import CROP, BodyParams, CropSize
from hmrcompress.starter.scene.scene import Crop, Surface, View, render_crop
from hmrcompress.starter.scene.world import Clip

POSED_AT_ONCE = 27
"""Frames whose meshes are in memory together (2.2 MB each in the body model's intermediate results)."""


def surface_of(body: BodyModel) -> Surface:
    """What the renderer needs to know of a body."""
    return Surface(
        faces=np.ascontiguousarray(body.faces, np.int32),
        template=np.ascontiguousarray(body.v_template.numpy(), np.float32),
        part=body.weights.argmax(dim=1).to(torch.int32).numpy(),
        joints=np.ascontiguousarray(body.joint_template.numpy(), np.float32),
    )


def camera_vertices(body: BodyModel, params: BodyParams, transl: NDArray[np.float64]) -> NDArray[np.float32]:
    """Vertices (T,V,3) in the camera frame, with the root joint at transl (T,3) metres."""
    with torch.no_grad():
        posed = body(params)
    return (posed.vertices - posed.joints[:, :1]).numpy() + transl[:, None].astype(np.float32)


def render_clip(
    clip: Clip, body: BodyModel, surface: Surface, places: NDArray[np.int64] | None = None, size: CropSize = CROP
) -> Iterator[tuple[Crop, float]]:
    """Frames of a clip in order, in crops of that size, with the share of the person that an occluder or the crop's
    edge hides.

    places: numbers of the frames (None: all). The share beyond the edge is counted in vertices, that behind occluders
    in pixels.
    """
    place, params = clip.placement, clip.params
    places = np.arange(len(clip.poses)) if places is None else places
    # Surroundings are told in heights of the crop, from its top left.
    zoom = size.side / size.height
    scaled = np.array([CROP.width, CROP.height]) * (size.side / CROP.side)
    beside = (scaled - (size.width, size.height)) / 2 / size.height
    for start in range(0, len(places), POSED_AT_ONCE):
        part = places[start : start + POSED_AT_ONCE]
        chunk = BodyParams(params.global_orient[part], params.body_pose[part], params.betas[part])
        meshes = camera_vertices(body, chunk, place.transl[part])
        for t, vertices in zip(part, meshes, strict=True):
            full = View(float(place.focal[t]), (float(place.centre[t, 0]), float(place.centre[t, 1])), CROP.pixels)
            view = full.resized(size.pixels)
            shift = tuple((place.centre[0] - place.centre[t]) / CROP.height * zoom + beside)
            crop = render_crop(vertices, surface, view, clip.appearance, clip.surroundings, frame=int(t), shift=shift)
            yield crop, hidden_share(crop, vertices, view)


def hidden_share(crop: Crop, vertices: NDArray[np.float32], view: View) -> float:
    """Share of the person that cannot be seen, in [0, 1]."""
    points = view.focal * vertices[:, :2] / np.maximum(vertices[:, 2:], 0.05) + np.asarray(view.centre)
    inside = ((points >= 0) & (points < (view.size[1], view.size[0]))).all(axis=1).mean()
    silhouette = int(crop.silhouette.sum())
    return float(1 - inside * (int(crop.person.sum()) / silhouette if silhouette else 0.0))
