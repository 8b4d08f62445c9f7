"""The search for layers to merge in a live network: the engine of `searching`, and the user's own distance."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.io.keys import Key
from hmrcompress.live.distances import Distance
from hmrcompress.live.masks import Masks
from hmrcompress.live.probing import LiveProbe, Run
from hmrcompress.live.structure import Network, hash_of
from hmrcompress.live.structure import network as found_network
from hmrcompress.live.trees import length_of, sha256_of, source_sha256
from hmrcompress.merging.apply import fewest_layers, settled
from hmrcompress.merging.layers import FITTED
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.searching.cache import LayerCache, usual_memory
from hmrcompress.searching.evaluations import Evaluations
from hmrcompress.searching.journal import Journal
from hmrcompress.searching.search import SearchResult, choose
from hmrcompress.searching.settings import SearchSettings


def called(model: nn.Module, batch: Any) -> Any:
    """model(batch)."""
    return model(batch)


def search(
    network: Network | nn.Module,
    batches: Iterable[Any],
    distance: Distance,
    tau: float | None = None,
    *,
    run: Run = called,
    journal: Path | str | None = None,
    settings: SearchSettings | None = None,
    masks: Callable[[Any], Masks] | None = None,
    count: Callable[[Any], int] = length_of,
    name: str = "live",
    probe: SaliencyProbe | None = None,
    identity: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> SearchResult:
    """Chooses the layers of a live model to merge; `result.plan.write(path)` keeps the plan.

    batches: all of them are held, and run again and again by `run(model, batch)`, the model in evaluation mode without
    gradients. distance(outputs, teacher, batch) gives millimetres for each sample, where `teacher` are the untouched
    network's outputs (`distances.vertices`, `joints`), or measures from the truth in the batch. tau: what a merge may
    cost, mm; `settings` says more (method, number of layers, rule, token settings, with_tokens, cache). masks(batch)
    gives what `person_mask` takes, where tokens are merged while searching; `probe` finds persons there itself. count:
    samples of a batch. `journal` receives every evaluation and lets a search that was stopped go on; `overwrite`
    replaces what stands there and is none; `identity` is a hash of code that the sources of the functions do not show.
    Token settings that read restored tokens (`tokens.read`) are measured as they will run. The model is left as it was.

    UserError for settings that do not fit, a network that cannot be read, and a distance that is not one.
    """
    settings = settings or SearchSettings(target="teacher")
    settings = settings if tau is None else replace(settings, tau_mm=tau)
    given, model = list(batches), network.model if isinstance(network, Network) else network
    if not given:
        raise UserError("there are no batches to search on", "batches")
    with evaluating(model):
        found = network if isinstance(network, Network) else found_network(model, example=lambda: run(model, given[0]))
        settings.check_options(found.depth)
        if settings.merge_rule == FITTED:
            raise UserError(f"{FITTED} is fitted on the tokens of our own networks", "merge_rule", "Try eq4")
        if settings.tokens is not None:
            settled(settings.tokens, found.tokens, found.depth, probe)  # says what does not fit
        fewest = fewest_layers(settings.tokens, found.tokens, probe)
        if settings.layers is not None and settings.layers < fewest:
            raise UserError(f"got {settings.layers}, but the token settings need {fewest} layers", "layers")
        sizes, tokens = [count(batch) for batch in given], settings.tokens if settings.with_tokens else None
        with _folder(journal) as path:
            key = search_key(found, given, distance, run, settings, masks, probe, identity)
            prober = LiveProbe(
                found, given, sizes, run, distance,
                merge_rule=settings.merge_rule, cache=_cache(found, sum(sizes), settings, path), tokens=tokens,
                masks=masks, probe=probe,
            )  # fmt: skip
            book = Journal(path, key.inputs, overwrite=overwrite)
            evaluations = Evaluations(prober, book, found.depth, settings.reject_early, progress, fewest)
            return choose(
                evaluations,
                settings,
                found.reference,
                frames=prober.frames,
                frames_per_clip=None,
                clips=len(given),
                data={"name": name, "split": "", "sha256": str(key.inputs["batches"])},
                masks=name if masks is not None and tokens is not None else None,
                protocol=name,
            )


def search_key(
    network: Network,
    batches: Sequence[Any],
    distance: Distance,
    run: Run,
    settings: SearchSettings,
    masks: Callable[[Any], Masks] | None,
    probe: SaliencyProbe | None,
    identity: str | None = None,
    code: tuple[str, ...] = ("searching", "live"),
) -> Key:
    """Everything that an evaluation's figure depends on, for the journal; code of the user's by its source, of ours by
    the rooms in `code`."""
    tokens = settings.tokens if settings.with_tokens else None
    return Key.of(
        "live search",
        code,
        network=hash_of(network.model.state_dict()),
        stack=[network.name, *network.grid, network.prefix, network.suffix],
        batches=sha256_of(list(batches)),
        run=source_sha256(run),
        distance=source_sha256(distance),
        identity=identity,
        masks=None if masks is None or tokens is None else [sha256_of_masks(masks(batch)) for batch in batches],
        mask_probe=None if probe is None else probe.sha256,
        merge_rule=settings.merge_rule,
        tokens=tokens,
        cache_dtype=settings.cache_dtype,
        device=next(network.blocks.parameters()).device,
    )


def sha256_of_masks(masks: Masks) -> str:
    """Hash of the masks of a batch; of a function that makes them, of its source."""
    if masks is None or isinstance(masks, Tensor) or not callable(masks):
        return sha256_of(masks if masks is None or isinstance(masks, Tensor) else list(masks))
    return source_sha256(masks)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module is put back as it was."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def _cache(network: Network, samples: int, settings: SearchSettings, journal: Path) -> LayerCache:
    given = usual_memory() if settings.cache_gb is None else int(settings.cache_gb * 2**30)
    memory, spill = (given, journal.absolute().parent) if settings.cache else (0, None)
    count, size = network.tokens + network.prefix + network.suffix, settings.cache_dtype.itemsize
    if network.seen is not None and network.seen.tokens is not None:
        count, calls = network.seen.tokens, network.seen.calls
        size = min(size, network.seen.itemsize) if settings.cache_dtype != torch.float32 else network.seen.itemsize
        count *= max(1, calls)
    each = size * samples * count * network.dim
    return LayerCache(range(max(network.depth - 1, 0)), each, memory, spill, settings.cache_dtype)


@contextmanager
def _folder(journal: Path | str | None) -> Iterator[Path]:
    """Where evaluations are written, for good or while the search lasts."""
    if journal is not None:
        yield Path(journal)
        return
    with tempfile.TemporaryDirectory(prefix="hmrcompress-") as folder:
        yield Path(folder) / "journal"
