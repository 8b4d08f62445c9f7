"""The saliency probe: a linear read-out of an early layer's tokens that stands in for a segmenter.

It reads tokens between attention and MLP of its layer, which is where token merging then begins, so that a network that
holds one needs no person mask. `training.probe_fit` fits it; a compressed-model folder keeps it in `probe.safetensors`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.safetensors_file import read_safetensors, write_safetensors


def reads(layer: int) -> tuple[str, ...]:
    """Beginnings of the keys of all weights that the tokens read in `layer` depend on: where one of them changes, the
    probe has to be fitted anew."""
    below = (f"backbone.blocks.{index}." for index in range(layer))
    block = f"backbone.blocks.{layer}"
    return ("backbone.pos_embed", "backbone.patch_embed.", *below, f"{block}.norm1.", f"{block}.attn.")


REACH = (0, 1, 2)
"""A token is read together with the means of the squares of 2 r + 1 tokens' width around it, for these r."""


def surroundings(tokens: Tensor, grid: tuple[int, int], reach: int) -> Tensor:
    """The mean of the square of tokens around each token, as far as it lies in the grid: (B,M,C) -> (B,M,C)."""
    if not reach:
        return tokens
    plane = tokens.transpose(1, 2).unflatten(2, grid)
    mean = F.avg_pool2d(plane, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    return mean.flatten(2).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class SaliencyProbe:
    """weight (R,D) float32, a row for each of REACH (or the first of them). A token belongs to the person where
    `sum_r mean_r(x . weight[r]) + bias > threshold` (log-odds). layer: the one whose tokens it reads.

    Frozen tensors outside of the network's state dict: they move to where the tokens are when they are used.
    """

    weight: Tensor
    bias: float
    threshold: float = 0.0
    layer: int = 0

    @property
    def sha256(self) -> str:
        """Hash of its numbers."""
        numbers = self.weight.cpu().contiguous().numpy().astype("<f4").tobytes()
        return hashlib.sha256(numbers + struct.pack("<2dq", self.bias, self.threshold, self.layer)).hexdigest()

    def to(self, device: torch.device) -> SaliencyProbe:
        """The same on `device`, so that nothing has to move while it is used."""
        return self if self.weight.device == device else replace(self, weight=self.weight.to(device))

    def scores(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Log-odds that each token belongs to the person: (B,M,D), M = rows * columns of the grid -> (B,M) float32."""
        read = torch.matmul(tokens.float(), self.weight.to(tokens.device).T)
        parts = [surroundings(read[..., row : row + 1], grid, reach) for row, reach in enumerate(self.reaches)]
        return torch.cat(parts, dim=-1).sum(-1) + self.bias

    @property
    def reaches(self) -> tuple[int, ...]:
        """The reach of each row of `weight`."""
        return REACH[: len(self.weight)]

    def person(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Which tokens belong to the person: (B,M,D) -> (B,M) bool. Every shape is known ahead."""
        return self.scores(tokens, grid) > self.threshold


def write_probe(path: Path | str, probe: SaliencyProbe) -> None:
    """Writes weight (R,D), bias (1,), threshold (1,) and layer (1,); the same probe gives the same bytes."""
    numbers = {"bias": probe.bias, "threshold": probe.threshold}
    exact = {name: torch.tensor([value], dtype=torch.float64) for name, value in numbers.items()}
    write_safetensors(path, {"weight": probe.weight, "layer": torch.tensor([probe.layer])} | exact)


def read_probe(path: Path | str, dim: int) -> SaliencyProbe:
    """Reads what `write_probe` wrote. Raises UserError where it does not fit tokens of `dim` channels."""
    state, _ = read_safetensors(path)
    rows = len(state["weight"]) if "weight" in state and state["weight"].ndim == 2 else 1
    _check(state, {"weight": (min(rows, len(REACH)), dim), "bias": (1,), "threshold": (1,), "layer": (1,)}, path)
    return SaliencyProbe(state["weight"].clone(), float(state["bias"]), float(state["threshold"]), int(state["layer"]))


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], where: Any) -> None:
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if got != dict(wanted):
        raise UserError(f"got {got}, expected a saliency probe with {dict(wanted)}", where)
