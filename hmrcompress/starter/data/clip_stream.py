"""Whole clips of the starter world with their truth, rendered in the background while a network reads them."""

from __future__ import annotations

import multiprocessing as mp
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

from hmrcompress.body.files import starter_body
from hmrcompress.body.model import BodyModel
from hmrcompress.data.masks import MaskSource, coverage_grid, person_tokens
from hmrcompress.errors import UserError
from hmrcompress.io.code import code_sha256
from hmrcompress.io.hashes import sha256_json
from hmrcompress.records import CROP, CropSize
from hmrcompress.runtime import become_helper
from hmrcompress.starter.scene.filming import render_clip, surface_of
from hmrcompress.starter.scene.world import CLIP_FRAMES, FPS, VERSION, make_clip, split_named, to_params
from hmrcompress.training.features import ClipCrops

AHEAD = 1
"""Clips that each process has ready beyond the one that it works on; a clip takes 36 MB."""


class StarterClips:
    """Clips of a split as a `training.features.ClipSource`. They are what `starter.data.dataset` renders, but never all
    in memory, and nothing is kept. UserError for masks that they do not have."""

    fps = FPS

    def __init__(
        self,
        split: str,
        masks: MaskSource,
        *,
        frames: int = CLIP_FRAMES,
        workers: int = 1,
        size: CropSize = CROP,
    ) -> None:
        if masks.name not in ("data", "self", "none"):
            raise UserError(f"got {masks.name!r}, expected data, self or none with starter:{split}", "--masks")
        self.split, self.masked, self.frames, self.workers = split, masks.name == "data", frames, workers
        self.name, self.masks_name, self.size = f"starter:{split}", masks.name, size
        self.clip_ids: Sequence[int] = range(split_named(split).clips)
        self.identity: dict[str, Any] = {
            "data": [self.name, VERSION],
            "frames": frames,
            "masks": masks.name,
            "body": starter_body().sha256,
            "renderer": code_sha256("starter.data.clip_stream"),
            **({} if size == CROP else {"size": [*size.pixels, size.patch]}),
        }

    def clip_sha256(self, clip: int) -> str:
        """Hash of the clip's number, which tells what it shows."""
        return sha256_json(clip)

    def clips(self, wanted: Sequence[int]) -> Iterator[ClipCrops]:
        """These clips, in this order. Raises UserError for a clip that the split does not have."""
        context = mp.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context, initializer=become_helper) as pool:
            queue: deque[Future[Rendered]] = deque()
            left = iter(wanted)
            try:
                while True:
                    while len(queue) < self.workers * (1 + AHEAD) and (index := next(left, None)) is not None:
                        queue.append(pool.submit(_render, self.split, index, self.frames, self.masked, self.size))
                    if not queue:
                        return
                    yield _clip(*queue.popleft().result())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


Rendered = tuple[int, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]
"""What passes between processes: clip, images, person tokens, poses (T,24,3) axis-angle, betas (10,)."""


def rendered(
    split: str,
    index: int,
    body: BodyModel,
    *,
    frames: int = CLIP_FRAMES,
    masked: bool = True,
    size: CropSize = CROP,
) -> ClipCrops:
    """Clip `index` of a split, rendered here and now. Raises UserError for a clip that the split does not have."""
    return _clip(*_arrays(split, index, body, frames, masked, size))


def _arrays(split: str, index: int, body: BodyModel, frames: int, masked: bool, size: CropSize) -> Rendered:
    clip = make_clip(split_named(split), index, body, frames)
    crops = [crop for crop, _ in render_clip(clip, body, surface_of(body), size=size)]
    person = None
    if masked:
        pixels = torch.from_numpy(np.stack([crop.person for crop in crops]))
        person = person_tokens(coverage_grid(pixels, size)).numpy()
    return index, np.stack([crop.image for crop in crops]), person, clip.poses, clip.betas


def _clip(index: int, images: np.ndarray, person: np.ndarray | None, poses: np.ndarray, betas: np.ndarray) -> ClipCrops:
    params = to_params(poses, np.broadcast_to(betas, (len(poses), 10)))
    return ClipCrops(index, images, None if person is None else torch.from_numpy(person), params, np.arange(len(poses)))


_own_body = cache(starter_body)
"""The body of a rendering process, opened once."""


def _render(split: str, index: int, frames: int, masked: bool, size: CropSize) -> Rendered:
    return _arrays(split, index, _own_body(), frames, masked, size)
