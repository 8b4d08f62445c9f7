"""What sections of settings become for the functions that work by them: one translation for recipes and commands."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hmrcompress.evaluation.decoded import SequenceSettings
from hmrcompress.merging.buckets import BUCKETS
from hmrcompress.models.fast.running import RunPath
from hmrcompress.recipe.schema import Eval, Finetune, Run, Search
from hmrcompress.searching.search import SearchSettings
from hmrcompress.searching.settings import as_cache_dtype
from hmrcompress.training.heal import HealSettings
from hmrcompress.training.loop import LoopSettings


def search_settings(given: Search, *, batch_size: int, dtype: torch.dtype, seed: int) -> SearchSettings:
    """Those of the search; the protocol is for whoever opens the data."""
    fields = {name: getattr(given, name) for name in Search.model_fields if name not in ("protocol", "cache_dtype")}
    cache = as_cache_dtype(given.cache_dtype)
    return SearchSettings(**fields, cache_dtype=cache, batch_size=batch_size, dtype=dtype, seed=seed)


def run_path(given: Run, *, int8: bool = False) -> RunPath:
    """How the compressed network is run; int8: with linear layers in 8 bits."""
    return RunPath(fast=given.fast, int8=int8, compiled=given.compile, graphs=given.graphs)


def asked_path(given: Run, *, fast: bool | None, int8: bool) -> RunPath | None:
    """The same where a command's line says anything of it, `fast` being its flag; None leaves it to the model's
    plan."""
    if fast is None and not int8 and not {"fast", "compile", "graphs"} & given.model_fields_set:
        return None
    return run_path(given.model_copy(update={"fast": bool(fast)}), int8=int8)


def buckets_of(given: Run) -> tuple[int, ...] | None:
    """Numbers of tokens to choose from for each person, None for as many as the model was made for."""
    return BUCKETS if given.buckets == "auto" else given.buckets


def sequence_settings(given: Eval, strides: Sequence[int], *, seed: int) -> SequenceSettings:
    """How clips are decoded."""
    return SequenceSettings(
        tuple(strides),
        given.steps,
        given.lookahead,
        filters=given.filters,
        median_shape=given.median_shape,
        seed=seed,
    )


def heal_settings(given: Finetune, *, dtype: torch.dtype, seed: int) -> HealSettings:
    """What learns when layers are healed."""
    return HealSettings(given.rank, given.reach, given.full, given.with_head, dtype=dtype, seed=seed)


def heal_loop(given: Finetune, max_minutes: float | None) -> LoopSettings:
    """How long, and at which rate."""
    rate = LoopSettings.rate if given.rate is None else given.rate
    return LoopSettings(None, max_minutes=max_minutes, rate=rate)
