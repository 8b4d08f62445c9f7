"""Where the masks of a live network's passes come from: one for all, one after the other, or made from the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from hmrcompress.errors import ShapeError, UserError

Masks = Tensor | Iterable[Tensor | None] | Callable[[Tensor], Tensor | None] | None
"""A mask (B,rows,columns) bool; or an iterable of them, of which every pass of the backbone takes the next; or a
function of what the patch embedding is given (B,3,H,W). None, itself or among them: nobody is there."""


class MaskSource:
    """Gives each pass its mask. Raises ShapeError for what is no mask, at once where one is given."""

    def __init__(self, masks: Masks) -> None:
        self._call: Callable[[Tensor], Tensor | None] | None = None
        self._items: Iterator[Tensor | None] | None = None
        self._fixed: Tensor | None = None
        if masks is None or isinstance(masks, Tensor):
            self._fixed = checked(masks)
        elif callable(masks):
            self._call = masks
        elif isinstance(masks, Iterable):
            self._items = iter(masks)
        else:
            raise ShapeError(f"got a {type(masks).__name__}, expected a mask, several, or a function", "mask")

    def next(self, pictures: Tensor | None) -> Tensor | None:
        """The mask of the pass that begins, for what the patch embedding was given. UserError where there is none."""
        if self._call is not None:
            if pictures is None:
                raise UserError(
                    "masks are made from the input, but no patch embedding of the network is known",
                    "hc.person_mask",
                    "Give the masks themselves",
                )
            return checked(self._call(pictures))
        if self._items is None:
            return self._fixed
        missing: Any = object()
        found = next(self._items, missing)
        if found is missing:
            raise UserError("there are fewer masks than passes of the backbone", "hc.person_mask")
        return checked(found)


def checked(mask: Tensor | None) -> Tensor | None:
    """The mask itself. Raises ShapeError."""
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 3 or mask.dtype != torch.bool):
        what = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ShapeError(f"got {what}, expected torch.bool (B, rows, columns)", "mask")
    return mask
