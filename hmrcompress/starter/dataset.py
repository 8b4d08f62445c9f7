"""The evaluation splits of the starter world as sets of crops, rendered on demand and cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.errors import UserError
from hmrcompress.io.locks import alone_in
from hmrcompress.motion import procedural
from hmrcompress.records import CROP_HEIGHT, CROP_WIDTH, BodyParams
from hmrcompress.render.scene import Crop, Surface, View, render_crop
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.starter.captured import MOCAP_SPLIT, film_held_out, held_out
from hmrcompress.starter.world import FPS, SPLITS, VERSION, Clip, make_clip, open_seal, split_named

SIZE = (CROP_HEIGHT, CROP_WIDTH)
POSED_AT_ONCE = 27
"""Frames whose meshes are in memory together (2.2 MB each in the body model's intermediate results)."""


def cache_home() -> Path:
    """Where rendered sets are kept: $HMRCOMPRESS_HOME, by default ~/.cache/hmrcompress."""
    return Path(os.environ.get("HMRCOMPRESS_HOME") or Path.home() / ".cache" / "hmrcompress")


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
    clip: Clip, body: BodyModel, surface: Surface, places: NDArray[np.int64] | None = None
) -> Iterator[tuple[Crop, float]]:
    """Frames of a clip in order, with the share of the person that an occluder or the crop's edge hides.

    places: numbers of the frames (None: all). The share beyond the edge is counted in vertices, that behind occluders
    in pixels.
    """
    place, params = clip.placement, clip.params
    places = np.arange(len(clip.poses)) if places is None else places
    for start in range(0, len(places), POSED_AT_ONCE):
        part = places[start : start + POSED_AT_ONCE]
        chunk = BodyParams(params.global_orient[part], params.body_pose[part], params.betas[part])
        meshes = camera_vertices(body, chunk, place.transl[part])
        for t, vertices in zip(part, meshes, strict=True):
            view = View(float(place.focal[t]), (float(place.centre[t, 0]), float(place.centre[t, 1])), SIZE)
            shift = tuple((place.centre[0] - place.centre[t]) / CROP_HEIGHT)
            crop = render_crop(vertices, surface, view, clip.appearance, clip.surroundings, frame=int(t), shift=shift)
            yield crop, hidden_share(crop, vertices, view)


def hidden_share(crop: Crop, vertices: NDArray[np.float32], view: View) -> float:
    """Share of the person that cannot be seen, in [0, 1]."""
    points = view.focal * vertices[:, :2] / np.maximum(vertices[:, 2:], 0.05) + np.asarray(view.centre)
    inside = ((points >= 0) & (points < (view.size[1], view.size[0]))).all(axis=1).mean()
    silhouette = int(crop.silhouette.sum())
    return float(1 - inside * (int(crop.person.sum()) / silhouette if silhouette else 0.0))


def open_split(
    name: str,
    body: BodyModel,
    *,
    home: Path | None = None,
    clips: int | None = None,
    motions: Path | None = None,
    progress: Progress = no_progress,
) -> CropSet:
    """A split of the starter world as crops (see `CropSet`), rendered at the first call and then read from the cache.

    clips limits the number of clips (the first ones). motions: folder of motion capture, needed when `test-mocap` is
    rendered. A second process that asks for the same waits for the first. Raises UserError for an unknown split, and
    where motion capture is missing.
    """
    split = None if name == MOCAP_SPLIT else split_named(name)
    if split is not None:
        open_seal(split)
    count = None if split is None or clips is None or clips >= split.clips else clips
    label = f"{name}.{split.number}" if split else name
    label = label if count is None else f"{label}-{count}"
    folder = (home or cache_home()) / "starter" / f"v{VERSION}-{body.faces_sha256[:8]}" / label
    if (folder / "meta.json").is_file():
        return CropSet.open(folder)
    with alone_in(folder.parent):
        if (folder / "meta.json").is_file():  # another process has rendered it meanwhile
            return CropSet.open(folder)
        if split is not None:
            made = [make_clip(split, index, body) for index in range(count or split.clips)]
        elif motions is not None:
            made = film_held_out(held_out(motions), body)
        else:
            remedy = f"`hmrcompress starter build --data {name} --motions amass:DIR` renders it"
            raise UserError("needs motion capture, which does not come with hmrcompress", f"starter:{name}", remedy)
        _render_split(name, made, body, folder, progress, split.places if split and split.scored else None)
    return CropSet.open(folder)


def _render_split(
    name: str,
    made: list[Clip],
    body: BodyModel,
    folder: Path,
    progress: Progress,
    places: NDArray[np.int64] | None = None,
) -> None:
    """Render the frames at `places` of all clips (None: all frames) into a folder of crops."""
    surface = surface_of(body)
    shown = [np.arange(len(clip.poses)) if places is None else places[places < len(clip.poses)] for clip in made]
    lengths = [len(numbers) for numbers in shown]
    total, starts = sum(lengths), np.cumsum([0, *lengths])
    images = np.empty((total, *SIZE, 3), np.uint8)
    masks = np.empty((total, CROP_HEIGHT, CROP_WIDTH // 8), np.uint8)
    hidden = np.empty(total, np.float32)

    def work(index: int) -> None:
        for row, (crop, share) in enumerate(
            render_clip(made[index], body, surface, shown[index]), start=int(starts[index])
        ):
            images[row], masks[row], hidden[row] = crop.image, np.packbits(crop.person, axis=-1), share

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, _ in enumerate(pool.map(work, range(len(made))), start=1):
            progress(f"rendering starter:{name}", done, len(made))
    kinds = list(procedural.KINDS) if name in SPLITS else sorted({clip.kind for clip in made})
    filmed = list(zip(made, shown, strict=True))
    arrays = {
        "images": images,
        "masks": masks,
        "poses": np.concatenate([clip.poses[at] for clip, at in filmed]),
        "betas": np.repeat(np.stack([clip.betas for clip in made]), lengths, axis=0),
        "transl": np.concatenate([clip.placement.transl[at] for clip, at in filmed]).astype(np.float32),
        "focal": np.concatenate([clip.placement.focal[at] for clip, at in filmed]).astype(np.float32),
        "conditions": np.concatenate([clip.placement.conditions[at] for clip, at in filmed]),
        "occluded": hidden,
        "kind": np.repeat(np.array([kinds.index(clip.kind) for clip in made], np.int16), lengths),
        "clip": np.repeat(np.arange(len(made), dtype=np.int32), lengths),
        "frame": np.concatenate(shown).astype(np.int32),
    }
    meta = {
        "schema": 1,
        "name": "starter",
        "split": name,
        "fps": FPS,
        "sha256": definition_sha256(made, body, places),
        "body": {"name": body.name, "faces_sha256": body.faces_sha256},
        "kinds": kinds,
        "version": VERSION,
    }
    write_crops(folder, arrays, meta)


def definition_sha256(clips: list[Clip], body: BodyModel, places: NDArray[np.int64] | None = None) -> str:
    """Hash of what the clips are (quantised parameters, see `Clip.digest`), not of their pixels; places: the frames of
    each that are shown (None: all)."""
    hasher = hashlib.sha256(f"starter world {VERSION} {body.faces_sha256}".encode())
    for clip in clips:
        hasher.update(clip.digest())
    if places is not None:
        hasher.update(places.astype("<i8").tobytes())
    return hasher.hexdigest()
