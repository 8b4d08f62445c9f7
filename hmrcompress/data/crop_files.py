"""The files of a `CropSet`: reading a folder or an .npz, checking what is in them, writing them whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.data.on_demand import npy_rows
from hmrcompress.errors import UserError
from hmrcompress.io.figures import json_text
from hmrcompress.io.jsons import parse_json
from hmrcompress.io.manifests import FILES, FolderKind
from hmrcompress.io.npz import UNREADABLE, write_npz
from hmrcompress.io.npz import read_npz as read_arrays
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import without_seal

SCHEMA = 1
META_FILE = "meta.json"
META_ARRAY = "meta"
SHAPES: dict[str, tuple[int, ...]] = {
    "images": (0, 0, 3),
    "poses": (24, 3),
    "betas": (10,),
    "clip": (),
    "frame": (),
    "masks": (0, 0),
    "transl": (3,),
    "focal": (),
    "conditions": (3,),
    "occluded": (),
    "kind": (),
    "gender": (),
    "keypoints": (19, 3),
}
"""Arrays and the shape of one frame's part of them; 0 is what the size of the crops decides (`shape_of`)."""
KIND = FolderKind("crops", META_FILE, tuple(f"{name}.npy" for name in SHAPES))
REQUIRED = ("images", "clip", "frame")
TRUTH = ("poses", "betas")
"""The ground truth, which is there in full or not at all."""
WHOLE_NUMBERS = ("clip", "frame", "kind", "masks", "gender")
Arrays = dict[str, Any]


def read_folder(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """The arrays (see `npy_rows`) and meta data of a folder. UserError naming the file that is missing or torn."""
    if not (path / META_FILE).is_file():
        raise UserError(f"no {META_FILE} in this folder", path, "Is it a set of crops?")
    arrays = {}
    for name in SHAPES:
        file = path / f"{name}.npy"
        if file.exists():
            try:
                arrays[name] = npy_rows(file)
            except UNREADABLE as error:
                raise UserError(f"torn or not an .npy file ({error})", file) from error
    try:
        text = (path / META_FILE).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError("not a text file", path / META_FILE) from error
    return arrays, _parsed(text, path / META_FILE)


def read_npz(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and meta data of an .npz file. UserError where it is torn, no .npz, or lacks its meta data."""
    arrays = read_arrays(path, (*SHAPES, META_ARRAY))
    if META_ARRAY not in arrays:
        raise UserError(f"no array {META_ARRAY!r} in this file", path, "Is it a set of crops?")
    text = str(arrays.pop(META_ARRAY))
    return {name: arrays[name] for name in SHAPES if name in arrays}, _parsed(text, path)


def _parsed(text: str, where: Path) -> dict[str, Any]:
    meta = parse_json(text, where, "the text of meta data")
    if not isinstance(meta, dict):
        raise UserError("the meta data are not a JSON object", where)
    return {name: value for name, value in without_seal(meta).items() if name != FILES}


def check_meta(meta: Mapping[str, Any], where: object) -> None:
    """UserError unless schema, name and fps are there and make sense."""
    if meta.get("schema") != SCHEMA:
        raise UserError(f"meta schema: got {meta.get('schema')!r}, expected {SCHEMA}", where)
    if not isinstance(meta.get("name"), str) or not meta["name"]:
        raise UserError(f"meta name: got {meta.get('name')!r}, expected a text", where)
    fps = meta.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < float("inf"):
        raise UserError(f"meta fps: got {fps!r}, expected frames per second", where)
    if not isinstance(meta.get("body") or {}, dict):
        raise UserError(f"meta body: got {meta['body']!r}, expected an object of name and faces_sha256", where)


def shape_of(name: str, pixels: tuple[int, int]) -> tuple[int, ...]:
    """Shape of one frame's part of an array, in a set of crops of (height, width)."""
    if name == "images":
        return (*pixels, 3)
    return (pixels[0], -(-pixels[1] // 8)) if name == "masks" else SHAPES[name]


def check_arrays(arrays: Mapping[str, np.ndarray], where: object) -> None:
    """UserError unless the required arrays are there, and all have their shape, N in common, and a fitting dtype."""
    needed = REQUIRED + (TRUTH if any(name in arrays for name in TRUTH) else ())
    if missing := [name for name in SHAPES if name in needed and name not in arrays]:
        raise UserError(f"no array {', '.join(missing)}", where, f"A set of crops has {', '.join((*REQUIRED, *TRUTH))}")
    count = len(arrays["clip"]) if arrays["clip"].ndim else 0
    if count == 0:
        raise UserError("there are no frames in it", where)
    images = arrays["images"].shape
    if len(images) != 4 or images[3] != 3 or 0 in images:
        raise UserError(f"array images: got shape {images}, expected ({count}, height, width, 3)", where)
    for name, values in arrays.items():
        wanted = (count, *shape_of(name, images[1:3]))
        if values.shape != wanted:
            raise UserError(f"array {name}: got shape {values.shape}, expected {wanted}", where)
        whole = np.issubdtype(values.dtype, np.integer)
        fits = whole if name in WHOLE_NUMBERS else np.issubdtype(values.dtype, np.floating)
        if not (fits or (name == "images" and values.dtype == np.uint8)) or (
            name == "masks" and values.dtype != np.uint8
        ):
            raise UserError(f"array {name}: got dtype {values.dtype}, expected {_expected_dtype(name)}", where)


def _expected_dtype(name: str) -> str:
    if name in ("images", "masks"):
        return "uint8, or floats in 0..1" if name == "images" else "uint8 (np.packbits along each row)"
    return "whole numbers" if name in WHOLE_NUMBERS else "floats"


def content_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of names, dtypes, shapes and bytes of the arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        for row in arrays[name]:
            digest.update(np.ascontiguousarray(row).tobytes())
    return digest.hexdigest()


def save(
    path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, overwrite: bool | OutputRule = False
) -> None:
    """Writes an .npz file (by its suffix) or else a folder, in full or not at all; a set of crops there is replaced.

    UserError where something other than a set of crops is in the way (`io.outputs`).
    """
    outputs = OutputRule.of(overwrite)
    text = json.dumps(dict(meta), indent=1, sort_keys=True, ensure_ascii=False)
    if path.suffix == ".npz":
        with outputs.file(path, KIND.name) as file:
            write_npz(file, {META_ARRAY: np.array(text), **arrays})
        return
    with outputs.folder(path, KIND) as folder:
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
        (folder / META_FILE).write_text(json_text(dict(meta)), encoding="utf-8")
