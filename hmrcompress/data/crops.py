"""`CropSet`: crops of people, mostly with ground truth, the one record type that every data set is read into.

On disk it is a folder of .npy files (read memory-mapped) or one .npz, with these arrays over N frames:
images (N,H,W,3) RGB, uint8 or floats in 0..1, 256x192 for HMR2.0 and its kin; masks (N,H,W/8 rounded up) uint8,
`np.packbits(person, axis=-1)`, optional;
poses (N,24,3) axis-angle radians, camera frame, root first, and betas (N,10), both or neither; clip (N,) and
frame (N,) integers, where frames of one clip follow each other at `fps`; and, all optional, transl (N,3) metres,
focal (N,) pixels, conditions (N,3) box and focal length as `data.conditions.bbox_info` puts them, occluded (N,) share
of the person that is hidden or cut off, kind (N,) index into the `kinds` of the meta data, gender (N,) 0 neutral, 1
male, 2 female, of the body that poses and betas belong to, keypoints (N,19,3) metres, the extra keypoints of 4D-Humans.
`meta.json` (in an .npz the text array `meta`) says schema, name, split, fps, sha256, body {name, faces_sha256}, kinds,
protocol (how to score them by default) and clips (names by number).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hmrcompress.body.files import refuse_starter, require_topology
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crop_files import (
    SHAPES,
    TRUTH,
    check_arrays,
    check_meta,
    content_sha256,
    read_folder,
    read_npz,
    save,
    shape_of,
)
from hmrcompress.data.masks import MaskSource, NoMasks
from hmrcompress.data.on_demand import OnDemand
from hmrcompress.errors import UserError
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.io.outputs import OutputRule
from hmrcompress.metrics.measure import Measure
from hmrcompress.metrics.points import STARTER24
from hmrcompress.records import CROP, IMAGENET_MEAN, IMAGENET_STD, BodyParams, CropSize, FrameBatch
from hmrcompress.runtime import GIVE_BACK_EVERY, give_back_memory

SHORTEST_STRETCH = 3
"""Frames that a stretch needs to have a second difference in time."""
CHECKED_AT_A_TIME = 64


def normalise(images: np.ndarray) -> Tensor:
    """(n,H,W,3) RGB, uint8 or floats in 0..1 -> (n,3,H,W) float32 with ImageNet's mean and deviation."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    scaled = pixels.float() / 255 if images.dtype == np.uint8 else pixels.float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((scaled - mean) / std).contiguous()


class CropSet:
    """N crops. Made by `open`, or from arrays as the module describes them; checked when made."""

    def __init__(
        self,
        arrays: Mapping[str, Any],
        meta: Mapping[str, Any],
        where: object = "crops",
        pictures: Sequence[str] | None = None,
        anew: Callable[[CropSize], CropSet] | None = None,
    ) -> None:
        """`pictures`: the name of the picture that each crop is cut from, where the data set is one of pictures. Arrays
        may be `OnDemand`. anew: gives the same crops in another size, where they are cut or drawn on demand."""
        self.where = str(where)
        self.pictures = pictures
        self.anew = anew
        self.meta = dict(meta)
        self.arrays = {name: arrays[name] for name in SHAPES if name in arrays}
        check_meta(self.meta, self.where)
        check_arrays(self.arrays, self.where)
        self.pixels: tuple[int, int] = self.arrays["images"].shape[1:3]
        self.patch = CROP.patch
        self.name = str(self.meta["name"])
        self.split = str(self.meta.get("split", ""))
        self.fps = float(self.meta["fps"])
        self.clip = np.asarray(self.arrays["clip"], dtype=np.int64)
        self.frame = np.asarray(self.arrays["frame"], dtype=np.int64)
        self._order = np.lexsort((self.frame, self.clip))
        self._check_frames()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a folder, its pictures read as they are needed, or an .npz file. UserError for what is missing, torn or
        misshapen."""
        path = Path(path)
        if path.is_dir():
            return cls(*read_folder(path), where=path)
        if not path.exists():
            raise UserError("no such file or folder", path)
        return cls(*read_npz(path), where=path)

    @property
    def size(self) -> CropSize:
        """That of the crops, and of the patches that a network cuts them into (`of_size`). UserError where there are no
        such patches in crops of this size."""
        return CropSize(*self.pixels, self.patch)

    def of_size(self, size: CropSize) -> CropSet:
        """The same as a network of that size sees them: cut or drawn anew where they can be, else as they are. Raises
        UserError for stored crops of another size."""
        if self.pixels == size.pixels:
            if self.patch == size.patch:
                return self
            other = copy(self)
            other.patch = size.patch
            return other
        if self.anew is None:
            have = "x".join(map(str, self.pixels))
            raise UserError(
                f"holds crops of {have} pixels (height x width), the network takes {size}",
                self.where,
                f"Give the pictures that they were cut from, or crops of {size}",
            )
        return self.anew(size).of_size(size)

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def has_truth(self) -> bool:
        """Whether poses and betas are known."""
        return TRUTH[0] in self.arrays

    @property
    def clip_ids(self) -> list[int]:
        """Numbers of the clips, ascending."""
        return np.unique(self.clip).tolist()

    @property
    def body(self) -> dict[str, str]:
        """{name, faces_sha256} of the body that the poses and betas are parameters of; empty where unknown."""
        return dict(self.meta.get("body") or {})

    @cached_property
    def sha256(self) -> str:
        """Hash of the data's definition as the meta data give it, else of its arrays."""
        return str(self.meta.get("sha256") or content_sha256(self.arrays))

    def contents_sha256(self, indices: np.ndarray | None = None) -> str:
        """Hash of all that these frames hold (without `indices` all, by clip and frame), and of what is said of them,
        but for their name. Unlike `sha256`, which tells what the data are, it changes with every pixel."""
        chosen = self._order if indices is None else np.asarray(indices, dtype=np.int64)
        about = {name: self.meta.get(name) for name in ("fps", "body", "protocol")}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name, values in self.arrays.items():
            digest.update(f"{name} {values.dtype} {len(chosen)}".encode())
            if isinstance(values, OnDemand) and values.made_of is not None:
                digest.update(values.made_of(chosen).encode())
                continue
            for start in range(0, len(chosen), CHECKED_AT_A_TIME):
                digest.update(np.ascontiguousarray(values[chosen[start : start + CHECKED_AT_A_TIME]]).data)
        return digest.hexdigest()

    @property
    def protocol(self) -> str:
        """The name of the protocol that such data are scored by, unless another is asked for."""
        return str(self.meta.get("protocol") or STARTER24.name)

    def clip_name(self, clip: int) -> str:
        """What a clip is called in the data set; its number where clips have no names."""
        names = self.meta.get("clips") or ()
        return str(names[clip]) if 0 <= clip < len(names) else str(clip)

    def check_body(self, body: BodyModel) -> None:
        """UserError where the ground truth is known to belong to another body than this one."""
        if wanted := self.body.get("faces_sha256"):
            require_topology(body, wanted, f"the ground truth of {self.name}")
        elif self.body.get("name") == "SMPL":
            refuse_starter(body, f"the ground truth of {self.name}")

    def check_measure(self, measure: Measure) -> None:
        """UserError where these data cannot serve what is to be measured on them."""
        if measure.protocol.truth == "keypoints":
            if "keypoints" not in self.arrays:
                fault = f"protocol {measure.protocol.name} needs the keypoints of 4D-Humans' files, which these lack"
                raise UserError(fault, self.name, f"Try --protocol {self.protocol}")
            return
        self.check_body(measure.body)
        gender = self.arrays.get("gender")
        measure.check_genders(set() if gender is None else set(np.unique(gender).tolist()), self.name)

    def column(self, name: str) -> np.ndarray | None:
        """An array by its name, all N frames, or None where the data set has none."""
        return self.arrays.get(name)

    @property
    def conditions(self) -> np.ndarray | None:
        """(N,3): each crop's box and focal length (`data.conditions`), or None where the data set has none."""
        return self.arrays.get("conditions")

    def condition(self, indices: np.ndarray) -> Tensor | None:
        """(n,3) float32 conditions of these frames, or None."""
        known = self.conditions
        return None if known is None else torch.from_numpy(np.asarray(known[indices], dtype=np.float32))

    def frames_of(self, clip: int) -> np.ndarray:
        """Indices of a clip's frames, in the order of time."""
        return self._order[self.clip[self._order] == clip]

    def sample(self, frames_per_clip: int) -> np.ndarray:
        """Indices of at most `frames_per_clip` frames of every clip, evenly spread over it, clips ascending."""
        if frames_per_clip < 1:
            raise UserError(f"got {frames_per_clip}, expected at least 1", "--frames-per-clip")
        return np.concatenate([evenly(self.frames_of(clip), frames_per_clip) for clip in self.clip_ids])

    def stretches(self, limit: int | None = None) -> np.ndarray:
        """Indices of at most `limit` frames; all of them, by clip and frame, without a limit.

        They are equally long runs from the middle of clips, as many clips, evenly spread, as leave each run three
        frames, so that there are accelerations.
        """
        if limit is None or limit >= len(self):
            return self._order
        if limit < 1:
            raise UserError(f"got {limit}, expected at least 1", "--limit")
        clips = evenly(np.array(self.clip_ids), max(1, limit // SHORTEST_STRETCH))
        return np.concatenate([_middle(self.frames_of(clip), limit // len(clips)) for clip in clips])

    def pixel_masks(self, indices: np.ndarray) -> np.ndarray | None:
        """(n,H,W) bool person masks of these frames, or None where the data set has none."""
        packed = self.arrays.get("masks")
        if packed is None:
            return None
        return np.unpackbits(packed[indices], axis=-1, count=self.pixels[1]).astype(bool)

    def batches(
        self,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int = 32,
        masks: MaskSource | None = None,
        *,
        truth: bool = True,
    ) -> Iterator[FrameBatch]:
        """Batches of these frames (without `indices` all, by clip and frame), without masks where there is no source.

        UserError, before the first batch, where the source has no usable masks for these frames, or where there is no
        ground truth; with `truth` false it is not asked for, and where there is none the body is in its rest pose.
        """
        if truth and not self.has_truth:
            raise UserError("these data come without ground truth (poses and betas)", self.name, "Errors need it")
        chosen = self._order if indices is None else np.asarray(indices, dtype=np.int64)
        source = NoMasks() if masks is None else masks
        source.check(self, chosen)
        return self._batches(chosen, batch_size, source)

    def _batches(self, chosen: np.ndarray, size: int, source: MaskSource) -> Iterator[FrameBatch]:
        for number, start in enumerate(range(0, len(chosen), size)):
            if number % GIVE_BACK_EVERY == GIVE_BACK_EVERY - 1:
                give_back_memory()
            yield self._batch(chosen[start : start + size], source)

    def _batch(self, indices: np.ndarray, masks: MaskSource) -> FrameBatch:
        poses, betas = (
            torch.from_numpy(self.arrays[name][indices].astype(np.float32))
            if self.has_truth
            else torch.zeros(len(indices), *SHAPES[name])
            for name in TRUTH
        )
        rotations = axis_angle_to_matrix(poses)
        return FrameBatch(
            images=normalise(self.arrays["images"][indices]),
            person_mask=masks.person(self, indices),
            params=BodyParams(rotations[:, :1], rotations[:, 1:], betas),
            clip=torch.from_numpy(self.clip[indices]),
            frame=torch.from_numpy(self.frame[indices]),
            condition=self.condition(indices),
            gender=self._column("gender", indices, torch.int64),
            keypoints=self._column("keypoints", indices, torch.float32),
        )

    def _column(self, name: str, indices: np.ndarray, dtype: torch.dtype) -> Tensor | None:
        values = self.arrays.get(name)
        return None if values is None else torch.from_numpy(np.ascontiguousarray(values[indices])).to(dtype)

    def _check_frames(self) -> None:
        """UserError for frames that occur twice and for values that are not finite or, in float images, not in 0..1."""
        ordered = np.stack([self.clip, self.frame])[:, self._order]
        twice = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).all(0))
        if len(twice):
            raise UserError(f"{self._place(self._order[twice[0]])} occurs twice", self.where)
        for name, values in self.arrays.items():
            if not np.issubdtype(values.dtype, np.floating) or isinstance(values, OnDemand):
                continue
            for start in range(0, len(values), CHECKED_AT_A_TIME):
                part = np.asarray(values[start : start + CHECKED_AT_A_TIME])
                part = part.reshape(len(part), int(np.prod(shape_of(name, self.pixels))))
                self._check_part(name, part, start)

    def _check_part(self, name: str, part: np.ndarray, start: int) -> None:
        bad = ~np.isfinite(part).all(1)
        if bad.any():
            raise UserError(f"{name} of {self._place(start + int(bad.argmax()))} hold NaN or infinity", self.where)
        if name == "images" and ((part < 0) | (part > 1)).any():
            bad = ((part < 0) | (part > 1)).any(1)
            raise UserError(f"images of {self._place(start + int(bad.argmax()))} leave the range 0..1", self.where)

    def _place(self, index: int) -> str:
        return f"{self.name}, clip {self.clip[index]}, frame {self.frame[index]}"


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, one from the middle of each of `count` equal parts."""
    count = min(count, len(values))
    return values[(2 * np.arange(count) + 1) * len(values) // (2 * count)]


def _middle(values: np.ndarray, count: int) -> np.ndarray:
    start = max(0, (len(values) - count) // 2)
    return values[start : start + count]


def write_crops(
    path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, overwrite: bool | OutputRule = False
) -> None:
    """Checks and writes a set of crops: one file where `path` ends in .npz, else a folder. Whole, or not at all.

    `sha256` is added to the meta data where it is not given, from the contents. UserError as `CropSet` and
    `io.outputs`.
    """
    crops = CropSet(arrays, meta, where=path)
    save(Path(path), crops.arrays, {**crops.meta, "sha256": crops.sha256}, overwrite=overwrite)
