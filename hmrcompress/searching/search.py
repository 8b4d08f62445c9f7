"""From a network and calibration data to a plan."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hmrcompress import __version__
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import MaskSource
from hmrcompress.errors import UserError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.metrics.pose import STARTER24, Protocol
from hmrcompress.models.network import HMR2
from hmrcompress.plan import CheckpointRef, Plan, TokenSettings
from hmrcompress.runtime import Progress, dtype_name, no_progress
from hmrcompress.searching.eclm import Groups, Trace, eclm
from hmrcompress.searching.journal import Journal
from hmrcompress.searching.probe import ErrorProbe

METHODS = ("eclm",)


@dataclass(frozen=True)
class SearchSettings:
    """What a search is told. `tokens` go into the plan; merging of tokens is off while searching unless `with_tokens`.

    `limit` bounds the number of frames after `frames_per_clip`; `as_printed` drops a window still open at the end.
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


@dataclass(frozen=True)
class SearchResult:
    """The plan and how it came about. `evaluated` errors were measured now, the others came from the journal.

    `set_aside` is where a journal made for other settings went, or None.
    """

    plan: Plan
    trace: Trace
    clips: int
    protocol: str
    evaluated: int
    set_aside: Path | None

    def to_json(self) -> dict[str, Any]:
        """{stages: {baseline, merged}, layers: {before, after}, search: {…, steps, open_window}}."""
        record = self.plan.search
        assert record is not None
        frames = {"n_frames": record.frames, "n_clips": self.clips, "protocol": self.protocol}
        steps = [asdict(step) | {"error_mm": _json_number(step.error_mm)} for step in self.trace.steps]
        return {
            "stages": {
                "baseline": {"mpjpe_mm": record.base_mpjpe_mm, **frames},
                "merged": {"mpjpe_mm": record.final_mpjpe_mm, **frames},
            },
            "layers": {"before": self.plan.checkpoint.layers, "after": len(self.plan.groups)},
            "search": {
                **record.model_dump(mode="json"),
                "evaluated_now": self.evaluated,
                "steps": steps,
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
    cache_bytes: int | None = None,
    progress: Progress = no_progress,
) -> SearchResult:
    """Chooses the layers of `network` to merge: L-1 evaluations beside the baseline, each written to `journal` at once.

    Network (float32, in evaluation mode) and body lie on the same device. Evaluations that the journal holds already
    are not repeated; the plan is the same, byte for byte. `masks` are used only with `settings.with_tokens`.
    Raises UserError for an unknown method, data without usable masks, or a network that predicts NaN.
    """
    settings = settings or SearchSettings()
    if settings.method not in METHODS:
        raise UserError(f"got {settings.method!r}, expected one of {', '.join(METHODS)}", "--method")
    if settings.with_tokens and settings.tokens is None:
        raise UserError("there are no token settings to search with", "--with-tokens", "Give --keep-tokens")
    if settings.limit is not None and settings.limit < 1:
        raise UserError(f"got {settings.limit}, expected at least 1", "--limit")
    crops.check_body(body)
    indices = crops.sample(settings.frames_per_clip)
    if settings.limit is not None:
        indices = evenly(indices, settings.limit)
    probe = ErrorProbe(
        with_token_merging(network, settings.tokens if settings.with_tokens else None),
        crops,
        indices,
        body=body,
        protocol=protocol,
        merge_rule=settings.merge_rule,
        masks=masks if settings.with_tokens else None,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        cache_bytes=cache_bytes,
    )
    depends = _depends_on(checkpoint, crops, indices, body, protocol, masks, settings, probe.device)
    book = Journal(journal, depends)
    error = _JournalledError(probe, book, len(indices), checkpoint.layers, progress)
    trace = eclm(checkpoint.layers, error, settings.tau_mm, as_printed=settings.as_printed)
    record = {
        "method": settings.method,
        "tau_mm": settings.tau_mm,
        "frames": len(indices),
        "base_mpjpe_mm": trace.base_mm,
        "final_mpjpe_mm": trace.final_mm,
        "evaluations": len(trace.steps),
        "seed": settings.seed,
        "data": {"name": crops.name, "split": crops.split, "sha256": crops.sha256},
    }
    plan = Plan.from_dict(
        {
            "schema": 1,
            "checkpoint": checkpoint.model_dump(),
            "groups": trace.groups,
            "merge_rule": settings.merge_rule,
            "tokens": settings.tokens.model_dump() if settings.tokens else None,
            "search": record,
        }
    )
    clips = len(np.unique(crops.clip[indices]))
    return SearchResult(plan, trace, clips, protocol.name, error.evaluated, book.set_aside)


class _JournalledError:
    """The probe behind its journal, telling of progress in frames over all evaluations."""

    def __init__(self, probe: ErrorProbe, journal: Journal, frames: int, layers: int, progress: Progress) -> None:
        self.probe, self.journal, self.progress = probe, journal, progress
        self.frames, self.total = frames, frames * layers
        self.asked = self.evaluated = 0

    def __call__(self, groups: Groups) -> float:
        window = next((group for group in groups if len(group) > 1), None)
        what = f"search: layers {window[0]}-{window[-1]}" if window else "search: untouched"
        done, self.asked = self.asked * self.frames, self.asked + 1
        known = self.journal.get(groups)
        if known is None:
            known = self.probe(groups, self._counter(what, done))
            self.evaluated += 1
            if window is None and not math.isfinite(known):  # there is nothing to search: leave no journal behind
                return known
            known = self.journal.add(groups, known)
        self.progress(what, self.asked * self.frames, self.total)
        return known

    def _counter(self, what: str, done: int) -> Callable[[int], None]:
        def count(frames: int) -> None:
            nonlocal done
            done += frames
            self.progress(what, done, self.total)

        return count


def _depends_on(
    checkpoint: CheckpointRef,
    crops: CropSet,
    indices: np.ndarray,
    body: BodyModel,
    protocol: Protocol,
    masks: MaskSource | None,
    settings: SearchSettings,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that an evaluation's figure depends on, for the journal; tau is not in it."""
    tokens = settings.tokens.model_dump() if settings.with_tokens and settings.tokens else None
    return {
        "checkpoint": checkpoint.model_dump(),
        "data": {"name": crops.name, "split": crops.split, "sha256": crops.sha256},
        "frames": hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest(),
        "body": _sha256_of(body),
        "protocol": protocol.name,
        "merge_rule": settings.merge_rule,
        "tokens": tokens,
        "masks": masks.name if tokens and masks else "none",
        "batch_size": settings.batch_size,
        "dtype": dtype_name(settings.dtype),
        "device": device.type,
        "versions": {"hmrcompress": __version__, "torch": torch.__version__},
    }


def _sha256_of(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _json_number(value: float) -> float | None:
    return value if np.isfinite(value) else None
