"""What a search is told, and the checks on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hmrcompress.data.crops import CropSet
from hmrcompress.errors import UserError
from hmrcompress.plan import TokenSettings
from hmrcompress.searching.error import TARGETS, Target

METHODS = ("eclm",)
CACHE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Not float16: tokens of a ViT-H hold values beyond its range."""


@dataclass(frozen=True)
class SearchSettings:
    """What a search is told. `tokens` go into the plan; merging of tokens is off while searching unless `with_tokens`.

    `layers` asks for a number of layers instead of an error of `tau_mm`. `target` teacher measures from the untouched
    model's vertices instead of the data's poses. `limit` bounds the number of frames after `frames_per_clip`;
    `as_printed` drops a window still open at the end. `cache`, `cache_gb` (memory; the rest goes to the disk) and
    `reject_early` save work and change no result. `cache_dtype` bfloat16 halves the cache and rounds what enters
    layers, which changes errors a little, and decisions near tau with them.
    """

    tau_mm: float = 0.1
    frames_per_clip: int = 80
    limit: int | None = None
    method: str = "eclm"
    merge_rule: str = "eq4"
    tokens: TokenSettings | None = None
    with_tokens: bool = False
    as_printed: bool = False
    batch_size: int = 32
    dtype: torch.dtype = torch.float32
    seed: int = 0
    layers: int | None = None
    target: Target = "truth"
    cache: bool = True
    cache_gb: float | None = None
    cache_dtype: torch.dtype = torch.float32
    reject_early: bool = True

    def check(self, layers: int, crops: CropSet) -> None:
        """UserError for what cannot be searched in a network of so many layers on these crops."""
        self.check_options(layers)
        if self.target == "truth" and not (crops.has_truth or "keypoints" in crops.arrays):
            fault = "these data come without ground truth (poses and betas)"
            raise UserError(fault, crops.name, "Try --set search.target=teacher")

    def check_options(self, layers: int) -> None:
        """UserError for what cannot be searched in a network of so many layers."""
        if self.method not in METHODS:
            raise UserError(f"got {self.method!r}, expected one of {', '.join(METHODS)}", "--method")
        if self.with_tokens and self.tokens is None:
            raise UserError("there are no token settings to search with", "--with-tokens", "Give --keep-tokens")
        if not math.isfinite(self.tau_mm):
            raise UserError(f"got {self.tau_mm}, expected a finite tau", "--tau")
        if self.layers is not None and not 1 <= self.layers <= layers:
            raise UserError(f"got {self.layers}, expected 1 … {layers}", "search.layers")
        if self.cache_gb is not None and not 0 <= self.cache_gb < math.inf:
            raise UserError(f"got {self.cache_gb}, expected gigabytes", "search.cache_gb")
        if self.cache_dtype not in CACHE_DTYPES.values():
            raise UserError(f"got {self.cache_dtype}, expected one of {', '.join(CACHE_DTYPES)}", "search.cache_dtype")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"got {self.limit}, expected at least 1", "search.limit")


def as_target(text: str) -> Target:
    """`truth` or `teacher`. UserError for anything else."""
    for target in TARGETS:
        if text == target:
            return target
    raise UserError(f"got {text!r}, expected one of {', '.join(TARGETS)}", "search.target")


def as_cache_dtype(text: str) -> torch.dtype:
    """`float32` or `bfloat16`. UserError for anything else."""
    if text not in CACHE_DTYPES:
        raise UserError(f"got {text!r}, expected one of {', '.join(CACHE_DTYPES)}", "search.cache_dtype")
    return CACHE_DTYPES[text]
