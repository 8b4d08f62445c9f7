"""Which frames something was searched or trained on, so that scoring on them can be noticed.

A record is {name, split, sha256, frames}: the data set, and `frames`, six bytes of a hash of every frame, sorted, in
base64 after a word that says what was hashed. Frames of pictures are known by their picture (its file name without the
suffix, and the folder that names the sequence), also where another reader, another folder or another crop of it comes
along. Frames of other sets of crops are known by clip and number within the same data: the same hash, or the same name
and split.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from hmrcompress.data.crops import CropSet
from hmrcompress.errors import UserError

BYTES = 6
KEY = "seen"
"""Where records stand in the provenance of a model."""
BY_PICTURE, BY_NUMBER = "picture", "number"
NOT_NAMES = frozenset({"images", "image", "imagefiles", "imgs", "img", "rgb", "frames", "jpg", "png"})
"""Folders that say nothing about which sequence a picture is of."""


def record(crops: CropSet, indices: np.ndarray) -> dict[str, str]:
    """What is to be kept of having seen these frames."""
    kind, hashes = _hashes(crops, indices)
    raw = np.unique(hashes).astype(">u8").tobytes()
    packed = b"".join(raw[start + 8 - BYTES : start + 8] for start in range(0, len(raw), 8))
    frames = f"{kind}:{base64.b64encode(packed).decode()}"
    return {"name": crops.name, "split": crops.split, "sha256": crops.sha256, "frames": frames}


def records_in(provenance: Any) -> Iterator[Mapping[str, Any]]:
    """All records that stand under `seen` somewhere in plain values."""
    if isinstance(provenance, Mapping):
        for name, value in provenance.items():
            if name == KEY and isinstance(value, Mapping):
                yield value
            else:
                yield from records_in(value)
    elif isinstance(provenance, Sequence) and not isinstance(provenance, str):
        for value in provenance:
            yield from records_in(value)


def seen(record: Mapping[str, Any], crops: CropSet, indices: np.ndarray) -> np.ndarray:
    """(n,) bool: which of these frames are in a record. A record without `frames` holds all frames of its data.

    UserError for one that is damaged.
    """
    same_split = bool(crops.split) and (record.get("name"), record.get("split")) == (crops.name, crops.split)
    same_data = record.get("sha256") == crops.sha256 or same_split
    if not record.get("frames"):
        return np.full(len(indices), same_data)
    kind, _, text = str(record["frames"]).partition(":")
    known, hashes = _hashes(crops, indices)
    if kind != known or (kind == BY_NUMBER and not same_data):
        return np.zeros(len(indices), bool)
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, BYTES)
    except (binascii.Error, ValueError) as error:
        raise UserError("the hashes of the frames are damaged", "frames seen", "Leave `frames` out") from error
    whole = np.pad(packed, ((0, 0), (8 - BYTES, 0)))
    return np.isin(hashes, np.ascontiguousarray(whole).view(">u8")[:, 0].astype(np.uint64))


def picture_key(name: str, data: str) -> str:
    """What a picture is known by: the folder that names its sequence (that of the data set, if the name has none) and
    the stem of its file."""
    path = PurePosixPath(name.replace("\\", "/"))
    folders = [part for part in path.parts[:-1] if part.lower() not in NOT_NAMES]
    return f"{folders[-1] if folders else data}/{path.stem}"


def _hashes(crops: CropSet, indices: np.ndarray) -> tuple[str, np.ndarray]:
    """What is hashed, and the hashes (n,) uint64 of which the upper two bytes are zero."""
    if crops.pictures is not None:
        kind, keys = BY_PICTURE, [picture_key(crops.pictures[index], crops.name) for index in indices]
    else:
        kind, keys = BY_NUMBER, [f"{crops.clip[index]}/{crops.frame[index]}" for index in indices]
    made = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:BYTES], "big") for key in keys]
    return kind, np.array(made, np.uint64)
