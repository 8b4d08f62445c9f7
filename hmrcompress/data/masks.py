"""Where person masks come from, and their reduction to the token grid of the backbone.

Token (i, j) of the patch embedding sees rows 16i-2 .. 16i+13 of the crop, columns likewise (16x16 patches at stride 16
after a padding of 2), so that is the window over which a mask is averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.records import CROP_HEIGHT, CROP_WIDTH

PATCH, PATCH_PADDING = 16, 2
PERSON_THRESHOLD = 0.1
PERSON_GREY = 128
MASK_FILE = "{clip:04d}_{frame:06d}.png"


def coverage_grid(mask: Tensor) -> Tensor:
    """Share of person pixels in each token's window. mask (B,256,192) bool -> (B,16,12) float32 in 0..1.

    Windows that reach over the edge of the crop count what is outside as background. ShapeError for another size.
    """
    if mask.ndim != 3 or mask.shape[1:] != (CROP_HEIGHT, CROP_WIDTH):
        raise ShapeError(f"got a mask of shape {tuple(mask.shape)}, expected (B, {CROP_HEIGHT}, {CROP_WIDTH})")
    return torch.nn.functional.avg_pool2d(mask.float()[:, None], PATCH, padding=PATCH_PADDING)[:, 0]


def person_tokens(coverage: Tensor, threshold: float = PERSON_THRESHOLD) -> Tensor:
    """The tokens that belong to the person: coverage (B,16,12) of at least `threshold` -> bool of the same shape."""
    return coverage >= threshold


class MaskedFrames(Protocol):
    """What a mask source asks of a data set (`data.crops.CropSet` is one)."""

    name: str
    clip: np.ndarray
    frame: np.ndarray

    def pixel_masks(self, indices: np.ndarray) -> np.ndarray | None:
        """(n,256,192) bool, or None where the data set has no masks."""


class MaskSource(Protocol):
    """Person masks for the frames of a data set. `name` is the source as the command line writes it."""

    name: str

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """UserError where these frames have no usable mask; called once, before any work."""

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """(n,16,12) bool on the token grid for these frames, or None for no masks at all."""


class DataMasks:
    """The masks that come with the data."""

    name = "data"

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """UserError naming `--masks none` where the data set has no masks."""
        if crops.pixel_masks(np.asarray(indices[:1], dtype=np.int64)) is None:
            raise UserError("these data come without person masks", crops.name, "Try --masks none or --masks files:DIR")

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """(n,16,12) bool."""
        masks = crops.pixel_masks(indices)
        return None if masks is None else person_tokens(coverage_grid(torch.from_numpy(masks)))


class NoMasks:
    """No masks: token merging treats every token alike."""

    name = "none"

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """Always content."""

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """None."""
        return None


class SelfMasks:
    """No masks are handed in: the saliency probe inside the network finds the person."""

    name = "self"

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """Always content; whether the model holds a probe is for whoever opens the model to check."""

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """None."""
        return None


class FileMasks:
    """Grey PNG files of 192x256 pixels (width x height), one a frame, `{clip:04d}_{frame:06d}.png`; person from 128."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"files:{folder}"

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """UserError for the first frame whose file is missing, unreadable, or of another size."""
        if not self.folder.is_dir():
            raise UserError("no such folder of masks", self.folder)
        for path in self._paths(crops, indices):
            with _opened(path):
                pass

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """(n,16,12) bool."""
        masks = np.stack([_read(path) for path in self._paths(crops, indices)])
        return person_tokens(coverage_grid(torch.from_numpy(masks)))

    def _paths(self, crops: MaskedFrames, indices: np.ndarray) -> Sequence[Path]:
        return [self.folder / MASK_FILE.format(clip=crops.clip[i], frame=crops.frame[i]) for i in indices]


def _opened(path: Path):  # noqa: ANN202 - PIL.Image.Image, not imported at module level
    """The image file, header read and size checked, pixels not yet decoded."""
    from PIL import Image

    try:
        image = Image.open(path)
    except FileNotFoundError:
        raise UserError("there is no such mask file", path, "One PNG a frame is needed") from None
    except OSError as error:
        raise UserError(f"not a readable image ({error})", path) from error
    if image.size != (CROP_WIDTH, CROP_HEIGHT):
        got = "x".join(map(str, image.size))
        image.close()
        raise UserError(f"the mask is {got} pixels, expected {CROP_WIDTH}x{CROP_HEIGHT} (width x height)", path)
    return image


def _read(path: Path) -> np.ndarray:
    """(256,192) bool."""
    with _opened(path) as image:
        try:
            return np.asarray(image.convert("L")) >= PERSON_GREY
        except (OSError, SyntaxError) as error:
            raise UserError(f"not a readable image ({error})", path) from error


def mask_source(text: str) -> MaskSource:
    """`data`, `self`, `none` or `files:DIR` -> the source. UserError for anything else."""
    kind, _, rest = text.partition(":")
    if text == "data":
        return DataMasks()
    if text == "none":
        return NoMasks()
    if text == "self":
        return SelfMasks()
    if kind == "files" and rest:
        return FileMasks(Path(rest))
    raise UserError(f"got {text!r}, expected data, self, none or files:DIR", "--masks")
