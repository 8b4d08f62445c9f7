"""Where person masks come from, and their reduction to the token grid of the backbone.

Token (i, j) of the patch embedding sees rows 16i-2 .. 16i+13 of the crop, columns likewise (16x16 patches at stride 16
after a padding of 2, or PxP at stride P), so that is the window over which a mask is averaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.records import CROP, PATCH_PADDING, CropSize

PERSON_THRESHOLD = 0.1
MASKS_AT_A_TIME = 64
SHIPPED = "auto"
PLUG_IN_GROUP = "hmrcompress.masks"


def coverage_grid(mask: Tensor, size: CropSize = CROP) -> Tensor:
    """Share of person pixels in each token's window. mask (B,H,W) bool, of crops of that size -> (B,*grid) float32 in
    0..1.

    Windows that reach over the edge of the crop count what is outside as background. ShapeError for another size.
    """
    if mask.ndim != 3 or mask.shape[1:] != size.pixels:
        raise ShapeError(f"got a mask of shape {tuple(mask.shape)}, expected (B, {size.height}, {size.width})")
    return torch.nn.functional.avg_pool2d(mask.float()[:, None], size.patch, padding=PATCH_PADDING)[:, 0]


def person_tokens(coverage: Tensor, threshold: float = PERSON_THRESHOLD) -> Tensor:
    """The tokens that belong to the person: coverage (B,*grid) of at least `threshold` -> bool of the same shape."""
    return coverage >= threshold


class MaskedFrames(Protocol):
    """What a mask source asks of a data set (`data.crops.CropSet` is one)."""

    name: str
    clip: np.ndarray
    frame: np.ndarray

    @property
    def size(self) -> CropSize:
        """Of the crops, and of the patches that the network which looks at them cuts them into."""

    def column(self, name: str) -> np.ndarray | None:
        """An array over all frames, such as `images` (N,H,W,3) RGB, uint8 or floats in 0..1; None for no such."""

    def pixel_masks(self, indices: np.ndarray) -> np.ndarray | None:
        """(n,H,W) bool, or None where the data set has no masks."""


class MaskSource(Protocol):
    """Person masks for the frames of a data set. `name` is the source as the command line writes it.

    A source may have a `sha256` too, of all that its masks depend on beside the data; see `masks_sha256`.
    """

    name: str

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """UserError where these frames have no usable mask; called once, before any work."""

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """(n,*crops.size.grid) bool on the token grid for these frames, or None for no masks at all."""


def masks_sha256(source: MaskSource, crops: MaskedFrames, indices: np.ndarray) -> str:
    """Hash of all that a source's masks of these frames depend on beside the frames: its `sha256`, or where it has none
    (a plug-in need not have one) that of the masks. UserError where they cannot be read."""
    known = getattr(source, "sha256", None)
    if known is not None:
        return str(known)
    source.check(crops, indices)
    digest = hashlib.sha256()
    for start in range(0, len(indices), MASKS_AT_A_TIME):
        person = source.person(crops, indices[start : start + MASKS_AT_A_TIME])
        digest.update(b"none" if person is None else np.packbits(person.numpy()).tobytes())
    return digest.hexdigest()


class DataMasks:
    """The masks that come with the data."""

    name = "data"

    @property
    def sha256(self) -> str:
        """The name: the data's own hash tells of their masks."""
        return self.name

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """UserError naming `--masks none` where the data set has no masks."""
        if crops.pixel_masks(np.asarray(indices[:1], dtype=np.int64)) is None:
            raise UserError(
                "these data come without person masks", crops.name, "Try --masks none, auto, files:DIR or onnx:FILE"
            )

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """(n,*grid) bool."""
        masks = crops.pixel_masks(indices)
        return None if masks is None else person_tokens(coverage_grid(torch.from_numpy(masks), crops.size))


class DegradedMasks(DataMasks):
    """The masks that come with the data, made as much worse as what a user has may be: `box` fills the person's box, as
    where only a detector ran; `eroded` takes the person's tokens next to others away, `dilated` adds those next to the
    person's (a token's neighbours are the eight around it; the crop's edge is no neighbour)."""

    WAYS = ("box", "eroded", "dilated")

    def __init__(self, way: str) -> None:
        if way not in self.WAYS:
            raise UserError(f"got data:{way}, expected data, data:{', data:'.join(self.WAYS)}", "--masks")
        self.way, self.name = way, f"data:{way}"

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """(n,*grid) bool."""
        masks = crops.pixel_masks(indices)
        if masks is None:
            return None
        pixels = torch.from_numpy(masks)
        if self.way == "box":
            return person_tokens(coverage_grid(filled_boxes(pixels), crops.size))
        person = person_tokens(coverage_grid(pixels, crops.size))
        return dilated(person) if self.way == "dilated" else ~dilated(~person)


def filled_boxes(masks: Tensor) -> Tensor:
    """masks (B,H,W) bool -> the smallest boxes that hold their pixels, filled; nothing where there is none."""
    rows, columns = masks.any(dim=2), masks.any(dim=1)

    def between(marked: Tensor) -> Tensor:
        """(B,n): from the first marked place to the last."""
        after = marked.cumsum(dim=1) > 0
        before = marked.flip(1).cumsum(dim=1).flip(1) > 0
        return after & before

    return between(rows)[:, :, None] & between(columns)[:, None, :]


def dilated(person: Tensor) -> Tensor:
    """person (B,R,C) bool -> these tokens and the eight around each."""
    grown = torch.nn.functional.max_pool2d(person.float()[:, None], 3, stride=1, padding=1)
    return grown[:, 0] > 0


class NoMasks:
    """No masks: token merging treats every token alike."""

    name = sha256 = "none"

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """Always content."""

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """None."""
        return None


class SelfMasks:
    """No masks are handed in: the saliency probe inside the network finds the person. The probe is the network's, so
    that the hash does not tell of it."""

    name = sha256 = "self"

    def check(self, crops: MaskedFrames, indices: np.ndarray) -> None:
        """Always content; whether the model holds a probe is for whoever opens the model to check."""

    def person(self, crops: MaskedFrames, indices: np.ndarray) -> Tensor | None:
        """None."""
        return None


def built_in() -> dict[str, str]:
    """Names of sources and where they are made: `module:callable`, called with what follows the name and its colon."""
    return {
        "files": "hmrcompress.data.mask_files:open_file_masks",
        "onnx": "hmrcompress.data.onnx_masks:OnnxMasks",
    }


def plug_ins() -> dict[str, EntryPoint]:
    """Sources that other installed packages offer: the entry points of the group `hmrcompress.masks`, by name."""
    return {point.name: point for point in sorted(entry_points(group=PLUG_IN_GROUP), key=lambda point: point.value)}


def mask_source(text: str) -> MaskSource:
    """`data`, `data:box|eroded|dilated`, `self`, `none`, `auto`, `files:PATH`, `onnx:FILE`, `NAME[:REST]` of a plug-in
    -> the source. `auto` is the segmenter that the package carries.

    A plug-in is a callable that takes REST (a text, empty where there is none) and gives a `MaskSource`. Raises
    UserError for anything else, and where a plug-in does not give one.
    """
    kind, colon, rest = text.partition(":")
    simple: dict[str, Callable[[], MaskSource]] = {"data": DataMasks, "none": NoMasks, "self": SelfMasks}
    if text in simple:
        return simple[text]()
    if kind == "data":
        return DegradedMasks(rest)
    if text == SHIPPED:
        return import_module("hmrcompress.data.onnx_masks").shipped_masks()
    if kind in built_in() and rest:
        module, _, name = built_in()[kind].partition(":")
        return getattr(import_module(module), name)(Path(rest))
    found = plug_ins()
    if kind in found and kind not in (*simple, *built_in(), SHIPPED) and (rest or not colon):
        return _of_plug_in(found[kind], rest)
    more = "".join(f", {name}" for name in sorted(found))
    raise UserError(f"got {text!r}, expected data, self, none, auto, files:DIR or onnx:FILE{more}", "--masks")


def _of_plug_in(point: EntryPoint, rest: str) -> MaskSource:
    where = f"--masks {point.name} ({point.value})"
    try:
        make = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"the plug-in cannot be imported ({error})", where) from error
    made = make(rest)
    if not all(hasattr(made, name) for name in ("name", "check", "person")):
        raise UserError(f"the plug-in gave a {type(made).__name__}, expected name, check and person", where)
    return made
