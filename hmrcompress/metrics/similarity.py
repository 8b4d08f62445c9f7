"""Similarity of layers: centred kernel alignment (CKA) with a linear kernel, accumulated over batches.

The estimate of HSIC is the unbiased one, so its average over batches converges to CKA over all frames whatever the
batch size. After Kornblith et al. (2019) and, for batches, Nguyen, Raghu and Kornblith (2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmrcompress.errors import ShapeError

SMALLEST_BATCH = 4


def gram(features: Tensor) -> Tensor:
    """features (B,...) -> inner products of the frames (B,B) float64, with zeros on the diagonal."""
    flat = features.flatten(1).double()
    return (flat @ flat.T).fill_diagonal_(0.0)


def hsic(grams: Tensor) -> Tensor:
    """grams (L,B,B) with zero diagonals -> unbiased estimates (L,L) of the Hilbert-Schmidt independence criterion."""
    count = grams.shape[-1]
    rows = grams.sum(-1)
    totals = rows.sum(-1)
    traces = torch.einsum("lij,mij->lm", grams, grams)
    product = totals[:, None] * totals[None] / ((count - 1) * (count - 2))
    return (traces + product - 2 / (count - 2) * (rows @ rows.T)) / (count * (count - 3))


class LayerSimilarity:
    """CKA between L feature maps of the same frames. Call `add` for each batch, then `matrix`."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, layers: Sequence[Tensor]) -> None:
        """L feature maps (B,...) of one batch; sizes may differ between layers. ShapeError for B < 4."""
        if len(layers[0]) < SMALLEST_BATCH:
            raise ShapeError(f"got a batch of {len(layers[0])} frames, expected at least {SMALLEST_BATCH}", "CKA")
        estimate = hsic(torch.stack([gram(features).cpu() for features in layers]))
        self._sum = estimate if self._sum is None else self._sum + estimate

    def matrix(self) -> Tensor:
        """(L,L) float64: 1 for layers equal up to rotation, shift and scale, about 0 for independent ones.

        NaN where a layer does not vary. ShapeError before the first batch.
        """
        if self._sum is None:
            raise ShapeError("got no batches, expected at least one", "CKA")
        own = self._sum.diagonal()
        return self._sum / torch.sqrt(own[:, None] * own[None])
