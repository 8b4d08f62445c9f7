"""The evaluation splits of the starter world as sets of crops, rendered on demand and cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crop_files import META_FILE
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.errors import UserError, tell
from hmrcompress.io.atomic import clear_leftovers_in
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.home import cache_home
from hmrcompress.io.jsons import read_json
from hmrcompress.io.keys import Key, earlier, listed
from hmrcompress.io.locks import alone_in
from hmrcompress.motion.amass import motion_name
from hmrcompress.records import CROP, CropSize
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.starter.data.captured import HELD_OUT, MOCAP_SPLIT, film_held_out, held_out
from hmrcompress.starter.motion import procedural
from hmrcompress.starter.scene.filming import render_clip, surface_of
from hmrcompress.starter.scene.world import FPS, SPLITS, VERSION, Clip, make_clip, open_seal, split_named

MAKERS = ("starter.scene.world", "starter.scene.filming")
"""The modules that, with what they import, tell how a split looks."""


def open_split(
    name: str,
    body: BodyModel,
    *,
    home: Path | None = None,
    clips: int | None = None,
    motions: Path | None = None,
    size: CropSize = CROP,
    progress: Progress = no_progress,
) -> CropSet:
    """A split of the starter world as crops (see `CropSet`), rendered at the first call and then read from the cache.

    clips limits the number of clips (the first ones). size: of the crops. motions: folder of motion capture, needed
    when `test-mocap` is rendered. A second process that asks for the same waits for the first. Raises UserError for an
    unknown split, and where motion capture is missing.
    """
    split = None if name == MOCAP_SPLIT else split_named(name)
    if split is not None:
        open_seal(split)
    count = None if split is None or clips is None or clips >= split.clips else clips
    label = f"{name}.{split.number}" if split else name
    label = label if count is None else f"{label}-{count}"
    label = label if size.pixels == CROP.pixels else f"{label}-{size}"
    kept = (home or cache_home()) / "starter" / "splits"
    key = split_key(name, body, clips=count, motions=motions, size=size)
    folder, named = kept / f"{label}-{key.short}", {"split": label, "body": body.name}
    if split is None and motions is None:
        folder = _any_of(kept, name, body, size) or folder
    anew = partial(open_split, name, body, home=home, clips=clips, motions=motions, progress=progress)
    clear_leftovers_in(kept)
    if (folder / META_FILE).is_file():
        return _read(folder, size, anew)
    with alone_in(kept):
        if (folder / META_FILE).is_file():  # another process has rendered it meanwhile
            return _read(folder, size, anew)
        if split is not None:
            made = [make_clip(split, index, body) for index in range(count or split.clips)]
        elif motions is not None:
            made = film_held_out(held_out(motions), body)
        else:
            remedy = f"`hmrcompress starter build --data {name} --motions amass:DIR` renders it"
            raise UserError("needs motion capture, which does not come with hmrcompress", f"starter:{name}", remedy)
        if (fresh := earlier(sorted(kept.glob(f"*/{META_FILE}")), key, named)) is not None:
            tell(f"rendered anew, as {listed(fresh)} changed since it was", f"starter:{name}")
        about = {"named": named, "inputs": dict(key.inputs)}
        places = split.places if split and split.scored else None
        _render_split(name, made, body, folder, progress, places, about, size)
    return _read(folder, size, anew)


def _read(folder: Path, size: CropSize, anew: Callable[..., CropSet]) -> CropSet:
    """A rendered split; `anew(size=…)` gives it in another size."""
    found = CropSet.open(folder)
    found.anew = lambda other: anew(size=other)
    return found.of_size(size)


def split_key(
    name: str, body: BodyModel, *, clips: int | None = None, motions: Path | None = None, size: CropSize = CROP
) -> Key:
    """What the pixels of a split depend on: which clips, on which body, rendered how, in another size than the usual;
    of motion capture the files."""
    split = None if name == MOCAP_SPLIT else split_named(name)
    captured = sorted(motions.rglob("*.npz")) if motions is not None and split is None else []
    return Key.of(
        "split",
        MAKERS if split is not None else (*MAKERS, "starter.data.captured"),
        split=split or name,
        clips=clips,
        body=body.sha256,
        motions=[[motion_name(file), sha256_file(file)] for file in captured if motion_name(file) in HELD_OUT],
        numba=version("numba"),
        **({} if size.pixels == CROP.pixels else {"size": size.pixels}),
    )


def _any_of(kept: Path, name: str, body: BodyModel, size: CropSize) -> Path | None:
    """A folder of the split of motion capture as this code renders it on this body, whatever the files were."""
    for path in sorted(kept.glob(f"{name}-*/{META_FILE}")):
        meta = read_json(path)
        inputs = meta.get("inputs", {}) if isinstance(meta, dict) else {}
        if split_key(name, body, size=size).changed(inputs) in ([], ["motions"]):
            return path.parent
    return None


def _render_split(
    name: str,
    made: list[Clip],
    body: BodyModel,
    folder: Path,
    progress: Progress,
    places: NDArray[np.int64] | None = None,
    about: Mapping[str, Any] | None = None,
    size: CropSize = CROP,
) -> None:
    """Render the frames at `places` of all clips (None: all frames) into a folder of crops of that size; about: more
    meta data."""
    surface = surface_of(body)
    shown = [np.arange(len(clip.poses)) if places is None else places[places < len(clip.poses)] for clip in made]
    lengths = [len(numbers) for numbers in shown]
    total, starts = sum(lengths), np.cumsum([0, *lengths])
    images = np.empty((total, *size.pixels, 3), np.uint8)
    masks = np.empty((total, *size.packed), np.uint8)
    hidden = np.empty(total, np.float32)

    def work(index: int) -> None:
        for row, (crop, share) in enumerate(
            render_clip(made[index], body, surface, shown[index], size), start=int(starts[index])
        ):
            images[row], masks[row], hidden[row] = crop.image, np.packbits(crop.person, axis=-1), share

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, _ in enumerate(pool.map(work, range(len(made))), start=1):
            progress(f"rendering starter:{name}", done, len(made))
    kinds = list(procedural.KINDS) if name in SPLITS else sorted({clip.kind for clip in made})
    filmed, zoom = list(zip(made, shown, strict=True)), size.side / CROP.side
    arrays = {
        "images": images,
        "masks": masks,
        "poses": np.concatenate([clip.poses[at] for clip, at in filmed]),
        "betas": np.repeat(np.stack([clip.betas for clip in made]), lengths, axis=0),
        "transl": np.concatenate([clip.placement.transl[at] for clip, at in filmed]).astype(np.float32),
        "focal": np.concatenate([clip.placement.focal[at] * zoom for clip, at in filmed]).astype(np.float32),
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
        "sha256": definition_sha256(made, body, places, size),
        "body": {"name": body.name, "faces_sha256": body.faces_sha256},
        "kinds": kinds,
        "version": VERSION,
        **(about or {}),
    }
    write_crops(folder, arrays, meta)


def definition_sha256(
    clips: list[Clip], body: BodyModel, places: NDArray[np.int64] | None = None, size: CropSize = CROP
) -> str:
    """Hash of what the clips are (quantised parameters, see `Clip.digest`), not of their pixels; places: the frames of
    each that are shown (None: all); size: of the crops."""
    hasher = hashlib.sha256(f"starter world {VERSION} {body.faces_sha256}".encode())
    for clip in clips:
        hasher.update(clip.digest())
    if places is not None:
        hasher.update(places.astype("<i8").tobytes())
    if size.pixels != CROP.pixels:
        hasher.update(str(size).encode())
    return hasher.hexdigest()
