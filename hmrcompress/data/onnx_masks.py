"""Person masks by a segmentation network in an ONNX file: `--masks onnx:FILE`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.masks import MaskedFrames, coverage_grid, person_tokens
from hmrcompress.data.onnx_segment import Segmenter
from hmrcompress.data.people import SEGMENTER_FILE, choose
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.onnx_file import check_onnx, sha256_onnx

AT_A_TIME = 8
LONGEST_GAP = 15
"""Frames over which a person who is not found keeps the mask of before."""


@dataclass
class _Clip:
    """Frames in use of one clip, in the order of time, and what was found so far: `tokens` (*grid) bool by index."""

    indices: list[int]
    done: int = 0
    box: np.ndarray | None = None
    last: np.ndarray | None = None
    missed: int = 0
    tokens: dict[int, np.ndarray] = field(default_factory=dict)


class OnnxMasks:
    """The person of each crop, found by a network and followed through the clip.

    Which frames are in use is said by `check`; frames are looked at in the order of time, each once, when they or
    later ones are first asked for. So a frame's mask depends on the frames in use, and not on the order of asking. A
    frame without anybody keeps the mask of the frame before for 15 frames; then nobody is marked, and token merging
    treats all tokens alike.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        """name: of the source, if not that of the file. UserError where there is no such file, or it is no ONNX file;
        it is opened when masks are needed."""
        check_onnx(path)
        self.path = path
        self.name = f"onnx:{path}" if name is None else name
        self._clips: WeakKeyDictionary[MaskedFrames, dict[int, _Clip]] = WeakKeyDictionary()
        self._last: WeakKeyDictionary[Any, dict[int, _Clip]] = WeakKeyDictionary()

    @cached_property
    def sha256(self) -> str:
        """Hash of the network, with the files that it keeps weights in, and the version of what runs it."""
        return sha256_json([sha256_onnx(self.path), version("onnxruntime")])

    @cached_property
    def segmenter(self) -> Segmenter:
        """The network, opened when first needed. Raises UserError, MissingExtra."""
        opened = Segmenter(self.path)
        _ = self.sha256  # of the file that was opened, whatever takes its place
        return opened

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """UserError where the file is not a network that finds people, or the data have no images."""
        if crops.column("images") is None:
            raise UserError("these data come without images", crops.name)
        _ = self.segmenter
        wanted = _by_clip(crops, indices)
        known = self._clips.setdefault(crops, {})
        for clip, frames in wanted.items():
            if clip not in known or known[clip].indices != frames:
                known[clip] = self._begun(crops, clip, frames)

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """(n,*grid) bool."""
        known = self._clips.setdefault(crops, {})
        for clip, frames in _by_clip(crops, indices).items():
            if clip not in known or not set(frames) <= set(known[clip].indices):
                known[clip] = self._begun(crops, clip, _whole_clip(crops, clip))
            self._advance(crops, known[clip], frames[-1])
        numbers = _clips_of(crops)
        return torch.from_numpy(np.stack([known[int(numbers[i])].tokens[int(i)] for i in indices]))

    def _begun(self, crops: MaskedFrames, clip: int, indices: list[int]) -> _Clip:
        """A clip; where crops are a part of a `run`, one that goes on where the part before ended."""
        run = getattr(crops, "run", None)
        if run is None:
            return _Clip(indices)
        clips = self._last.setdefault(run, {})
        before = clips.get(clip)
        clips[clip] = made = _Clip(indices)
        if before is not None:
            made.box, made.last, made.missed = before.box, before.last, before.missed
        return made

    def _advance(self, crops: MaskedFrames, clip: _Clip, upto: int) -> None:
        """Looks at frames until that of index `upto` is known."""
        images = crops.column("images")
        assert images is not None
        while upto not in clip.tokens:
            part = clip.indices[clip.done : clip.done + AT_A_TIME]
            for index, found in zip(part, self.segmenter.people(np.asarray(images[part])), strict=True):
                chosen = choose(found.boxes, clip.box, crops.size)
                if chosen is None:
                    clip.missed += 1
                    if clip.missed > LONGEST_GAP:
                        clip.box = clip.last = None
                else:
                    clip.box, clip.missed = found.boxes[chosen], 0
                    mask = torch.from_numpy(found.masks[chosen : chosen + 1])
                    clip.last = person_tokens(coverage_grid(mask, crops.size))[0].numpy()
                nobody = np.zeros(crops.size.grid, bool)
                clip.tokens[index] = nobody if clip.last is None else clip.last
            clip.done += len(part)


def shipped_masks() -> OnnxMasks:
    """The segmenter that the package carries, as `auto`."""
    return OnnxMasks(SEGMENTER_FILE, "auto")


def _by_clip(crops: MaskedFrames, indices: np.ndarray) -> dict[int, list[int]]:
    """Indices of the frames by clip, in the order of time, each once."""
    chosen, numbers = np.unique(np.asarray(indices, dtype=np.int64)), _clips_of(crops)
    ordered = chosen[np.lexsort((crops.frame[chosen], numbers[chosen]))]
    found: dict[int, list[int]] = {}
    for index in ordered.tolist():
        found.setdefault(int(numbers[index]), []).append(index)
    return found


def _clips_of(crops: MaskedFrames) -> np.ndarray:
    """Numbers of the clips by frame: those of the data, or, where pictures have nothing to do with each other (`run` is
    None), one of its own for each."""
    apart = getattr(crops, "run", crops) is None
    return np.arange(len(crops.clip)) if apart else np.asarray(crops.clip)


def _whole_clip(crops: MaskedFrames, clip: int) -> list[int]:
    return _by_clip(crops, np.flatnonzero(_clips_of(crops) == clip))[clip]
