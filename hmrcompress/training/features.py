"""Per-frame features of a frozen network over clips, computed once and kept on disk clip by clip.

A temporal decoder reads nothing of a crop but these features, so its training never runs the backbone. A clip is one
.npz, written whole or not at all: extraction that was killed goes on with the first clip that is missing. The folder is
named after network, masks and code, and every clip says which crops it is of: a changed one is computed anew.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.crops import CropSet, normalise
from hmrcompress.data.masks import MaskSource, masks_sha256
from hmrcompress.data.provenance import record
from hmrcompress.errors import UserError, tell
from hmrcompress.geometry.rotations import axis_angle_to_matrix, matrix_to_sixd, sixd_to_matrix
from hmrcompress.io.hashes import sha256_arrays
from hmrcompress.io.keys import Key, folder_of
from hmrcompress.io.npz import write_npz
from hmrcompress.io.outputs import OutputRule
from hmrcompress.merging.apply import network_identity
from hmrcompress.models.network import HMR2
from hmrcompress.records import BodyParams
from hmrcompress.runtime import Progress, autocast, no_progress

KIND = "features"
SCHEMA = 2
META = "meta.json"


@dataclass(frozen=True)
class ClipCrops:
    """One clip with ground truth: images (T,H,W,3) RGB, uint8 or floats in 0..1; person (T,*grid) bool or None;
    params of T frames; frame (T,) int64, ascending; condition (T,3) float32 or None (`data.conditions`)."""

    clip: int
    images: np.ndarray
    person: Tensor | None
    params: BodyParams
    frame: np.ndarray
    condition: Tensor | None = None


class ClipSource(Protocol):
    """Clips with ground truth, read one after the other. `identity` is what the crops of all clips depend on, beside
    what `clip_sha256` tells of one; `fps` their frame rate, `clip_ids` the clips there are, `masks` the name of the
    source of masks."""

    name: str
    masks_name: str
    identity: dict[str, Any]
    fps: float
    clip_ids: Sequence[int]

    def clip_sha256(self, clip: int) -> str:
        """Hash of what a clip holds."""

    def clips(self, wanted: Sequence[int]) -> Iterator[ClipCrops]:
        """These clips, in this order; one or a few of them in memory at a time."""


class CropClips:
    """The clips of a data set as a `ClipSource`. Raises UserError where ground truth or masks are missing."""

    def __init__(self, crops: CropSet, masks: MaskSource) -> None:
        if not crops.has_truth:
            raise UserError("these data come without ground truth (poses and betas)", crops.name, "Training needs it")
        masks.check(crops, crops.stretches())
        self.crops, self.masks = crops, masks
        self.name = f"{crops.name}:{crops.split}" if crops.split else crops.name
        self.masks_name = masks.name
        self.identity: dict[str, Any] = {"masks": masks_sha256(masks, crops, crops.stretches())}
        self.fps = crops.fps
        self.clip_ids: Sequence[int] = crops.clip_ids

    def clip_sha256(self, clip: int) -> str:
        """Hash of the clip's frames, pixels, poses and masks that come with them."""
        return self.crops.contents_sha256(self.crops.frames_of(clip))

    def seen(self, clips: Sequence[int]) -> dict[str, str]:
        """The record (`data.provenance`) of having seen all frames of these clips."""
        return record(self.crops, np.concatenate([self.crops.frames_of(clip) for clip in clips]))

    def clips(self, wanted: Sequence[int]) -> Iterator[ClipCrops]:
        """These clips, in this order."""
        for clip in wanted:
            rows = self.crops.frames_of(clip)
            poses, betas = (self.crops.arrays[name][rows].astype(np.float32) for name in ("poses", "betas"))
            rotations = axis_angle_to_matrix(torch.from_numpy(poses))
            params = BodyParams(rotations[:, :1], rotations[:, 1:], torch.from_numpy(betas))
            images = np.asarray(self.crops.arrays["images"][rows])
            person, condition = self.masks.person(self.crops, rows), self.crops.condition(rows)
            yield ClipCrops(clip, images, person, params, self.crops.frame[rows], condition)


@dataclass(frozen=True)
class ClipFeatures:
    """What is kept of a clip of T frames.

    frame (T,) int64, ascending; features (T,D) float16, as the head reads them out. True and predicted pose as the
    first two columns of every rotation (layout `columns`): rotations, predicted (T,J,6) float32, camera frame; true and
    predicted shape betas, predicted_betas (T,10) float32; predicted camera cam (T,3) float32.
    """

    clip: int
    frame: np.ndarray
    features: np.ndarray
    rotations: np.ndarray
    betas: np.ndarray
    predicted: np.ndarray
    predicted_betas: np.ndarray
    cam: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        return sha256_arrays({"clip": np.array(self.clip)} | {name: getattr(self, name) for name in _ARRAYS})

    @property
    def truth(self) -> BodyParams:
        """The true pose and shape, float32."""
        return to_params(self.rotations, self.betas)

    @property
    def prediction(self) -> BodyParams:
        """What the network's linear read-outs say, float32."""
        return to_params(self.predicted, self.predicted_betas)

    def runs(self) -> list[slice]:
        """The longest slices of frames that follow each other without a gap."""
        edges = [0, *(np.flatnonzero(np.diff(self.frame) != 1) + 1).tolist(), len(self.frame)]
        return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]


def to_params(sixd: np.ndarray, betas: np.ndarray) -> BodyParams:
    """sixd (T,J,6) in the layout `columns`, betas (T,10) -> BodyParams."""
    rotations = sixd_to_matrix(torch.from_numpy(sixd))
    return BodyParams(rotations[:, :1], rotations[:, 1:], torch.from_numpy(betas))


_ARRAYS = tuple(field.name for field in fields(ClipFeatures) if field.name != "clip")


class FeatureSet:
    """A folder of clips (see `io.keys.folder_of`), one .npz a clip; name and fps of the data."""

    def __init__(self, folder: Path, name: str, fps: float) -> None:
        self.folder, self.name, self.fps = folder, name, fps

    @property
    def clip_ids(self) -> list[int]:
        """Numbers of the clips that are there, ascending."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.npz"))

    def made_of(self, clip: int) -> str | None:
        """What a clip that is there was made of (`ClipSource.clip_sha256`); None where it is not there, or damaged."""
        try:
            with np.load(self._path(clip), allow_pickle=False) as file:
                return str(file["made_of"])
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def append(self, found: ClipFeatures, made_of: str) -> None:
        """Adds a clip, or replaces it."""
        with OutputRule().file(self._path(found.clip), KIND, hashed=False) as temporary:
            arrays = {name: getattr(found, name) for name in _ARRAYS}
            write_npz(temporary, {"made_of": np.array(made_of), **arrays})

    def read(self, clip: int) -> ClipFeatures:
        """One clip. UserError where its file is not there or damaged."""
        path = self._path(clip)
        try:
            with np.load(path, allow_pickle=False) as file:
                return ClipFeatures(clip, **{name: file[name] for name in _ARRAYS})
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                "no readable features of a clip", path, "Remove the file, so that it is made anew"
            ) from error

    def clips(self, wanted: Sequence[int] | None = None) -> Iterator[ClipFeatures]:
        """These clips, without `wanted` all, one at a time."""
        return (self.read(clip) for clip in (self.clip_ids if wanted is None else wanted))

    def _path(self, clip: int) -> Path:
        return self.folder / f"{clip:05d}.npz"


def extract_features(
    network: HMR2,
    source: ClipSource,
    home: Path,
    *,
    name: str = "network",
    clips: Sequence[int] | None = None,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    process: tuple[int, int] = (0, 1),
    progress: Progress = no_progress,
) -> FeatureSet:
    """Runs a network over clips, where their features are not kept below `home` already, and gives the set.

    network: in evaluation mode, with the token merging it is used with, on the device to compute on; name: what it is
    called where a change of it is told. The folder is named after all that the features depend on. clips: those wanted,
    by default all of the source. process: (rank, count) where several processes share the work; each makes its part.
    Raises UserError.
    """
    named = {"network": name, "data": source.name, "masks": source.masks_name}
    key = feature_key(network, source, batch_size=batch_size, dtype=dtype)
    kept = FeatureSet(folder_of(home, key, named, f"features of {source.name}"), source.name, source.fps)
    rank, count = process
    wanted = list(source.clip_ids if clips is None else clips)[rank::count]
    made_of = {clip: source.clip_sha256(clip) for clip in wanted}
    before = {clip: kept.made_of(clip) for clip in wanted}
    missing = [clip for clip in wanted if before[clip] != made_of[clip]]
    if others := sum(before[clip] is not None for clip in missing):
        tell(f"{others} clips are made anew, as they changed since they were kept", f"features of {source.name}")
    done = len(wanted) - len(missing)
    progress(f"features of {source.name}", done, len(wanted))
    for clip in source.clips(missing) if missing else ():
        kept.append(clip_features(network, clip, batch_size=batch_size, dtype=dtype), made_of[clip.clip])
        done += 1
        progress(f"features of {source.name}", done, len(wanted))
    return kept


def feature_key(network: HMR2, source: ClipSource, *, batch_size: int, dtype: torch.dtype) -> Key:
    """What the features of all clips of a source depend on, beside the clips themselves."""
    return Key.of(
        "features",
        ("training.features", "merging.apply"),
        **network_identity(network),
        **{"fps": source.fps, **source.identity},
        batch_size=batch_size,
        dtype=dtype,
        device=next(network.parameters()).device,
    )


@torch.inference_mode()
def clip_features(
    network: HMR2, clip: ClipCrops, *, batch_size: int = 32, dtype: torch.dtype = torch.float32
) -> ClipFeatures:
    """What a network, computing in `dtype`, makes of a clip. UserError where that is not finite."""
    device = next(network.parameters()).device
    features, rotations, betas, cam = [], [], [], []
    for start in range(0, len(clip.frame), batch_size):
        part = slice(start, start + batch_size)
        person, condition = (
            None if given is None else given[part].to(device) for given in (clip.person, clip.condition)
        )
        with autocast(device, dtype):
            output = network(normalise(clip.images[part]).to(device), person, condition)
        features.append(output.features.half().cpu())
        rotations.append(output.params.rotations.float().cpu())
        betas.append(output.betas.float().cpu())
        cam.append(output.cam.float().cpu())
    made = ClipFeatures(
        clip=clip.clip,
        frame=np.asarray(clip.frame, np.int64),
        features=torch.cat(features).numpy(),
        rotations=matrix_to_sixd(clip.params.rotations.float()).numpy(),
        betas=clip.params.betas.float().numpy(),
        predicted=matrix_to_sixd(torch.cat(rotations)).numpy(),
        predicted_betas=torch.cat(betas).numpy(),
        cam=torch.cat(cam).numpy(),
    )
    if odd := [name for name in _ARRAYS if not np.isfinite(getattr(made, name)).all()]:
        raise UserError(f"the network's {odd[0]} hold NaN, infinity, or more than float16 holds", f"clip {clip.clip}")
    return made
