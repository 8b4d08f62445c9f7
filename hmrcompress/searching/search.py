"""From a network and calibration data to a plan."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.body.model import BodyModel
from hmrcompress.data import provenance
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import MaskSource, masks_sha256
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.keys import Key
from hmrcompress.io.places import is_stream
from hmrcompress.io.together import crew, processes_here
from hmrcompress.merging.apply import fewest_layers, with_token_merging
from hmrcompress.merging.fit import fitted_and_measured
from hmrcompress.merging.layers import FITTED
from hmrcompress.metrics.pose import STARTER24, Measure, Protocol
from hmrcompress.models.network import HMR2, network_sha256
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import CheckpointRef, Plan
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.searching.cache import usual_memory
from hmrcompress.searching.eclm import Groups, Trace
from hmrcompress.searching.error import CandidateError, Counts, Measured
from hmrcompress.searching.evaluations import Evaluations
from hmrcompress.searching.fitter import CandidateFitter
from hmrcompress.searching.journal import Journal
from hmrcompress.searching.settings import METHODS, SearchSettings
from hmrcompress.searching.sized import eclm_with_layers, found, run_eclm

__all__ = ["METHODS", "SearchResult", "SearchSettings", "search"]


@dataclass(frozen=True)
class SearchResult:
    """The plan and how it came about. `trace` is that of the run of ECLM which found the plan or came nearest to it.

    `candidates` are all groupings in the order in which they were asked for. `evaluated` errors were measured now, the
    others came from the journal; `counts` tell what those took. `set_aside` is where a journal made for other settings
    went, or None.
    """

    plan: Plan
    trace: Trace
    candidates: dict[Groups, Measured]
    clips: int
    protocol: str
    evaluated: int
    counts: Counts
    set_aside: Path | None

    def to_json(self) -> dict[str, Any]:
        """{stages: {baseline, merged}, layers: {before, after}, search: {…, counts, steps, candidates, …}}.

        A step or candidate with `at_least` was rejected early: its error is a lower bound.
        """
        record = self.plan.search
        assert record is not None
        frames = {"n_frames": record.frames, "n_clips": self.clips, "protocol": self.protocol}
        steps = [asdict(step) | {"error_mm": _json_number(step.error_mm)} for step in self.trace.steps]
        candidates = [
            {"groups": groups, "error_mm": _json_number(measured.error_mm), "at_least": not measured.exact}
            for groups, measured in self.candidates.items()
        ]
        stages = {"baseline": record.base_mpjpe_mm, "merged": record.final_mpjpe_mm}
        return {
            "stages": {name: {"mpjpe_mm": error, **frames} for name, error in stages.items()}
            if record.target == "truth"
            else {},
            "layers": {"before": self.plan.layers, "after": len(self.plan.kept_groups)},
            "search": {
                **record.model_dump(mode="json"),
                "evaluated_now": self.evaluated,
                "counts": asdict(self.counts),
                "steps": steps,
                "candidates": candidates,
                "open_window": self.trace.open_window,
                "open_window_merged": self.trace.open_window_merged,
            },
        }


def search(
    network: HMR2,
    checkpoint: CheckpointRef,
    crops: CropSet,
    *,
    body: BodyModel,
    journal: Path,
    protocol: Protocol = STARTER24,
    masks: MaskSource | None = None,
    settings: SearchSettings | None = None,
    source: str | None = None,
    mask_probe: SaliencyProbe | None = None,
    measure: Measure | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> SearchResult:
    """Chooses the layers of `network` to merge. ECLM makes L-1 evaluations beside the baseline for a tau.

    Network (float32, in evaluation mode) and body lie on the same device. Every evaluation is written to `journal` at
    once; those that it holds already are not repeated, and the plan is the same, byte for byte. `masks` are used with
    `settings.with_tokens` and by the rule `lstsq`. `source` is what the crops were opened from, for the plan.
    `mask_probe` finds the person where tokens are merged without masks. `measure` says what is compared where that
    takes more than `body` and `protocol` (which then do not count). The rule `lstsq` fits on every second clip and
    measures on the others; the plan's number of frames counts both. `overwrite` replaces a `journal` that is none.
    With `settings.tokens` no candidate is looked at that has too few layers to merge so many tokens.
    Processes that were launched together share the batches, for the same plan and journal; all but the first end in
    `processes.Helped`.
    Raises UserError for settings that do not fit, data without usable masks or, for the target truth, without ground
    truth, and a network that predicts NaN.
    """
    settings = settings or SearchSettings()
    settings.check(checkpoint.layers, crops)
    measure = measure or Measure(body, protocol)
    if settings.target == "truth":
        crops.check_measure(measure)
    with_token_merging(network, settings.tokens, mask_probe)  # says what does not fit before anything is done
    rows, columns = network.config.grid
    fewest = fewest_layers(settings.tokens, rows * columns, mask_probe)
    if settings.layers is not None and settings.layers < fewest:
        fault = f"got {settings.layers}, but {settings.tokens and settings.tokens.keep} tokens need {fewest} layers"
        raise UserError(fault, "search.layers", "Ask for more, or raise --keep-tokens or --merge-per-layer")
    count, fitted_on, indices = _frames(crops, settings)
    folder = Path(tempfile.gettempdir()) if is_stream(journal) else journal.absolute().parent
    key = search_key(network, crops, measure=measure, masks=masks, settings=settings, mask_probe=mask_probe)
    fitter, probe = _probe(network, crops, indices, fitted_on, measure, masks, settings, folder, mask_probe)
    with crew(probe.measure_batch) as probe.crew:
        book = Journal(journal, key.inputs, overwrite=overwrite)
        evaluations = Evaluations(probe, book, checkpoint.layers, settings.reject_early, progress, fewest)
        result = choose(
            evaluations,
            settings,
            checkpoint,
            frames=count,
            frames_per_clip=settings.frames_per_clip,
            clips=len(np.unique(crops.clip[indices])),
            data=provenance.record(crops, np.union1d(indices, fitted_on)) | {"source": source},
            masks=masks.name if masks and _uses_masks(settings) else None,
            protocol=measure.protocol.name,
        )
    if fitter is not None:
        probe.counts.fitting = fitter.applications
    return result


def choose(
    evaluations: Evaluations,
    settings: SearchSettings,
    checkpoint: CheckpointRef,
    *,
    frames: int,
    frames_per_clip: int | None,
    clips: int,
    data: dict[str, Any],
    masks: str | None,
    protocol: str,
) -> SearchResult:
    """ECLM's plan for a tau or a number of layers. Knows errors alone, no network: of the rest, which goes into the
    plan's record, it is told. UserError where the untouched network's error is not finite."""
    if settings.layers is not None:
        best, trace = eclm_with_layers(evaluations, settings.layers, settings.tau_mm, as_printed=settings.as_printed)
    else:
        trace = run_eclm(evaluations, settings.tau_mm, as_printed=settings.as_printed)
        best = found(trace.final_mm, trace.groups)
    base = evaluations.base()
    record = {
        "method": settings.method,
        "tau_mm": settings.tau_mm if settings.layers is None else best.error_mm - base,
        "frames": frames,
        "base_mpjpe_mm": base,
        "final_mpjpe_mm": best.error_mm,
        "evaluations": len(evaluations.asked),
        "seed": settings.seed,
        "data": data,
        "target": settings.target,
        "layers": settings.layers,
        "frames_per_clip": frames_per_clip,
        "masks": masks,
    }
    plan = Plan.from_dict(
        {
            "schema": 2,
            "checkpoint": checkpoint.model_dump(),
            "groups": best.groups,
            "merge_rule": settings.merge_rule,
            "tokens": settings.tokens.model_dump() if settings.tokens else None,
            "search": record,
        }
    )
    return SearchResult(
        plan=plan,
        trace=trace,
        candidates=evaluations.asked,
        clips=clips,
        protocol=protocol,
        evaluated=evaluations.evaluated,
        counts=evaluations.probe.counts,
        set_aside=evaluations.journal.set_aside,
    )


def search_key(
    network: HMR2,
    crops: CropSet,
    *,
    measure: Measure,
    masks: MaskSource | None,
    settings: SearchSettings,
    mask_probe: SaliencyProbe | None,
) -> Key:
    """Everything that an evaluation's figure depends on, for the journal; arguments as of `search`.

    Of the settings tau, the method and what belongs to it are not in it, nor how the work is saved.
    """
    _, fitted_on, indices = _frames(crops, settings)
    fits = settings.merge_rule == FITTED
    seen = np.union1d(indices, fitted_on) if fits else indices
    return Key.of(
        "search",
        ("searching",),
        network=network_sha256(network),
        data=crops.contents_sha256(indices),
        frames=sha256_json(indices.tolist()),
        fitted_on=[crops.contents_sha256(fitted_on), sha256_json(fitted_on.tolist())] if fits else None,
        masks=masks_sha256(masks, crops, seen) if masks and _uses_masks(settings) else "none",
        mask_probe=None if mask_probe is None else mask_probe.sha256,
        **measure.identity(),
        target=settings.target,
        merge_rule=settings.merge_rule,
        tokens=settings.tokens if settings.with_tokens else None,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        cache_dtype=settings.cache_dtype,
        device=next(network.parameters()).device,
    )


def _frames(crops: CropSet, settings: SearchSettings) -> tuple[int, np.ndarray, np.ndarray]:
    """How many frames are looked at, those that patches are fitted on, and those that errors are measured on: the same,
    unless the rule fits."""
    indices = crops.sample(settings.frames_per_clip)
    if settings.limit is not None:
        indices = evenly(indices, settings.limit)
    return len(indices), *(fitted_and_measured(crops, indices) if settings.merge_rule == FITTED else (indices, indices))


def _probe(
    network: HMR2,
    crops: CropSet,
    indices: np.ndarray,
    fitted_on: np.ndarray,
    measure: Measure,
    masks: MaskSource | None,
    settings: SearchSettings,
    folder: Path,
    mask_probe: SaliencyProbe | None,
) -> tuple[CandidateFitter | None, CandidateError]:
    """The probe, and what fits its patches if the rule needs any; both share the memory that the cache may take."""
    given = usual_memory() // processes_here() if settings.cache_gb is None else int(settings.cache_gb * 2**30)
    memory, spill = (given, folder) if settings.cache else (0, None)
    fitter = None
    if settings.merge_rule == FITTED:
        memory //= 2
        fitter = CandidateFitter(
            network, crops, fitted_on, masks, dtype=settings.dtype, cache_bytes=memory, spill=spill,
            cache_dtype=settings.cache_dtype,
        )  # fmt: skip
    probe = CandidateError(
        with_token_merging(network, settings.tokens if settings.with_tokens else None, mask_probe),
        crops,
        indices,
        body=measure,
        protocol=measure.protocol,
        merge_rule=settings.merge_rule,
        masks=masks if settings.with_tokens else None,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        target=settings.target,
        cache_bytes=memory,
        spill=spill,
        cache_dtype=settings.cache_dtype,
        patches=fitter,
    )
    return fitter, probe


def _uses_masks(settings: SearchSettings) -> bool:
    return settings.with_tokens or settings.merge_rule == FITTED


def _json_number(value: float) -> float | None:
    return value if np.isfinite(value) else None
