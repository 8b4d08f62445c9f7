"""What a temporal decoder is trained and validated on: clips, the features of a model on them, held-out motions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from hmrcompress.api.opening import Data, compressed_network, of_starter, on_device, open_data
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource
from hmrcompress.io.together import process_of
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.records import BodyParams, CropSize
from hmrcompress.runtime import Progress
from hmrcompress.starter.data.clip_stream import StarterClips
from hmrcompress.starter.scene.world import SPLITS, make_clip, split_named
from hmrcompress.training.distributed import Team
from hmrcompress.training.features import ClipFeatures, ClipSource, CropClips, FeatureSet
from hmrcompress.training.features import extract_features as extract_from_clips

TRAIN, VAL = "starter:train", "starter:dev"
CLIPS = 500
"""Clips of `starter:train` that a decoder is trained on where nothing else is said."""
HELD_SHARE = 0.1


def features_of(
    extract: Callable[[ClipSource, Sequence[int]], FeatureSet],
    found: ClipSource,
    masks: MaskSource,
    data: Data,
    validation: Data | None,
    clips: int | None,
    body: BodyModel,
    size: CropSize,
    progress: Progress,
) -> tuple[list[ClipFeatures], list[ClipFeatures]]:
    """Features to train on (of the first `clips` clips found) and to validate on, from
    crops of that size. Raises UserError."""
    wanted = list(found.clip_ids)[: CLIPS if clips is None and isinstance(found, StarterClips) else clips]
    given = validated_on(data, validation)
    if given is not None:
        held: ClipSource = CropClips(open_data(given, body=body, split="dev", size=size, progress=progress), masks)
        rest = list(held.clip_ids)
    else:
        held = found
        wanted, rest = _split(wanted)
    kept, judged = extract(found, wanted), extract(held, rest)
    return list(kept.clips(wanted)), list(judged.clips(rest))


def validated_on(data: Data, validation: Data | None) -> Data | None:
    """What to validate on; None: on a part of the data."""
    return VAL if validation is None and of_starter(data) else validation


def said_of_validation(data: Data, validation: Data | None) -> str:
    """The same for the record."""
    given = validated_on(data, validation)
    if given is None:
        return "a part of the data"
    return f"{given.name}:{given.split}".rstrip(":") if isinstance(given, CropSet) else str(given)


def extract_for(
    checkpoint: Checkpoint,
    masks: MaskSource,
    source: ClipSource,
    wanted: Sequence[int],
    *,
    device: torch.device,
    batch_size: int,
    home: Path,
    progress: Progress,
) -> FeatureSet:
    """Features of a model on the `wanted` clips, kept below `home`; all processes leave when all of them are there."""
    network = on_device(compressed_network(checkpoint, masks if checkpoint.tokens else None), device)
    found = extract_from_clips(
        network,
        source,
        home / "features",
        name=checkpoint.name,
        clips=wanted,
        batch_size=batch_size,
        process=process_of(),
        progress=progress,
    )
    Team(device).wait()
    return found


def clips_of(
    data: Data, masks: MaskSource, body: BodyModel, frames: int, workers: int, size: CropSize, progress: Progress
) -> ClipSource:
    """The clips of data, in crops of that size. `frames` and `workers` are heeded where they are rendered on the way.
    Raises UserError."""
    if not isinstance(data, CropSet) and str(data) in (TRAIN, "starter"):
        return StarterClips("train", masks, frames=frames, workers=workers, size=size)
    return CropClips(open_data(data, body=body, split="train", size=size, progress=progress), masks)


def _split(clips: Sequence[int]) -> tuple[list[int], list[int]]:
    """Clips to train on and, the last ones, to hold out; a single clip is both."""
    held = max(1, round(HELD_SHARE * len(clips)))
    return (list(clips[:-held]), list(clips[-held:])) if len(clips) > 1 else (list(clips), list(clips))


def held_motions(data: Data, validation: Data | None, body: BodyModel, progress: Progress) -> list[BodyParams]:
    """True motions of the clips to validate on. Those of a starter split come from seeds: nothing is rendered."""
    given = validated_on(data, validation)
    name = "" if given is None or isinstance(given, CropSet) else str(given).partition(":")[2] or "dev"
    if given is not None and of_starter(given) and name in SPLITS:
        split = split_named(name)
        return [make_clip(split, index, body).params for index in range(split.clips)]
    crops = open_data(data if given is None else given, body=body, split="dev", progress=progress)
    clips = crops.clip_ids if given is not None else _split(crops.clip_ids)[1]
    found = (next(crops.batches(crops.frames_of(clip), len(crops.frames_of(clip)))) for clip in clips)
    return [batch.params for batch in found]
