"""What a search for the frontier stands on: the network, the frames to search, fit and confirm on, and what measures on
them. Shared by all that `hc.compress` does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hmrcompress.api.opening import (
    Body,
    Data,
    Masks,
    Model,
    body_for,
    load,
    of_starter,
    on_device,
    open_data,
    open_masks,
    open_measure,
    protocol_for,
    require_truth,
)
from hmrcompress.data import provenance
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource, NoMasks, masks_sha256
from hmrcompress.errors import UserError
from hmrcompress.frontier.candidates import Candidate, Dtype, Way
from hmrcompress.frontier.costs import CostTable, cost_key, measure_costs, read_costs
from hmrcompress.frontier.depth import Effort, Sized, greedy, increase
from hmrcompress.frontier.errors import Errors, Measured, PatchFitter, check_strides, check_tokens
from hmrcompress.frontier.ledger import Ledger
from hmrcompress.io.keys import Key
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.together import leads, own_device
from hmrcompress.merging.fit import fit_batches
from hmrcompress.metrics.measure import Measure
from hmrcompress.metrics.points import STARTER24
from hmrcompress.metrics.pose import network_predict
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2, network_sha256, share
from hmrcompress.plan import FittedOn, Plan, RunSettings
from hmrcompress.runtime import Progress, fast_dtype, pick_device, pick_dtype
from hmrcompress.searching.cache import LayerCache, layer_bytes
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress.timing.rounds import time_interleaved

COSTS = "costs"
FEWEST_CONFIRMING = 12
KEPT_BACK = 3
"""Of data without a split to confirm on, every third clip is kept back."""
WAYS: tuple[Way, ...] = ("drop", "merge")
FIRST_LOOK = 2
"""Batches of frames."""
CACHE_BYTES = 1 << 29
"""Each of the two caches of tokens takes at most."""


@dataclass(frozen=True)
class Preset:
    """How much is looked at: frames of each clip to search, to fit and to confirm on, numbers of tokens, combinations
    raced and confirmed."""

    search_frames: int
    fit_frames: int
    confirm_frames: int
    shares: tuple[float, ...]
    raced: int
    confirmed: int
    effort: Effort
    deepest: float
    """The share of layers that is removed at most."""


FAR, FAR_MM = 3.0, 2.0
"""So many times the budget, and mm at least, may a set of layers cost before smaller ones are not looked for: neither
patches nor healing of minutes bring that back."""
PRESETS = {
    "quick": Preset(6, 12, 4, (0.75, 0.5, 0.375), 10, 5, Effort(first=1, finalists=1, swaps=0, patched=1), 0.5),
    "full": Preset(16, 32, 16, (0.83, 0.75, 0.62, 0.5, 0.375, 0.25), 20, 8, Effort(first=1, finalists=3, swaps=1), 0.7),
}


def check_asked(asked: Mapping[str, float | None]) -> None:
    """UserError unless exactly one of a budget, a speed and a speed-up is asked for, and is above 0."""
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise UserError("give exactly one of a budget, a speed and a speed-up", "--budget-mm, --fps, --speedup")
    for name, value in given.items():
        if not (np.isfinite(value) and value > 0):
            raise UserError(f"got {value}, expected a number above 0", f"--{name.replace('_', '-')}")


@dataclass
class Bench:
    """Everything opened: the network, the frames to search, fit and confirm on, and what measures on them."""

    checkpoint: Checkpoint
    network: HMR2
    crops: CropSet
    search: Errors
    confirm: Errors
    ledger: Ledger
    fitted_on: FittedOn
    masks: MaskSource
    measure: Measure
    chosen: Preset
    batch_size: int
    seed: int
    names: dict[str, str]
    searched: np.ndarray
    """The clips of `crops` that may be looked at: none of those that confirm."""
    of_starter: bool
    chosen_on: dict[str, Any]
    """The frames that the choice saw, for the provenance: those searched and fitted on, and those that confirm."""
    models: dict[str, Checkpoint] = field(default_factory=dict)
    """Those that were healed, by the hash of their weights."""

    @property
    def depth(self) -> int:
        """Layers of the network."""
        return self.network.config.depth

    @classmethod
    def opened(
        cls,
        model: Model,
        data: Data,
        preset: Preset,
        target: Literal["truth", "teacher"],
        masks: Masks,
        body: Body,
        device: str,
        batch_size: int,
        seed: int,
        out: Path,
        progress: Progress,
        strides: Sequence[int] = (1,),
    ) -> Bench:
        """UserError for whatever does not fit together."""
        checkpoint = load(model, seed=seed)
        if checkpoint.plan is not None and checkpoint.plan.compresses_layers:
            raise UserError("is compressed already", checkpoint.name, "Give the network that it was made from")
        if target == "truth":
            require_truth(checkpoint)
        surface, where, source = body_for(checkpoint, body), pick_device(own_device(device)), open_masks(masks)
        size = checkpoint.config.crop
        crops = open_data(data, body=surface, split="calib", size=size, progress=progress)
        protocol = protocol_for(checkpoint, crops.protocol if target == "truth" else STARTER24)
        measure = open_measure(protocol, crops, body, surface, device=where)
        if source.name == "self":
            fault = "are made inside the network, whose layers change with every candidate"
            raise UserError(
                fault, "--masks self", "Search with data, files:DIR or auto, and fit a probe for the result"
            )
        network = on_device(checkpoint.network, where)
        if of_starter(data):
            other = open_data("starter:confirm", body=surface, size=size, progress=progress)
            if crops.split == other.split:
                fault = f"is what the choice is confirmed on, so that nothing may be searched on {crops.split}"
                raise UserError(fault, str(data), "Search on starter:calib")
            kept = np.array(crops.clip_ids)
            confirming = np.array(other.clip_ids)
        else:
            every = np.array(crops.clip_ids)
            confirming, other = every[KEPT_BACK - 1 :: KEPT_BACK], crops
            kept = np.setdiff1d(every, confirming)
            if len(confirming) < FEWEST_CONFIRMING:
                fault = (
                    f"has {len(every)} clips; to confirm on clips not searched on takes {KEPT_BACK * FEWEST_CONFIRMING}"
                )
                raise UserError(fault, crops.name, "Give data with more clips")
        if target == "truth":
            for each in (crops, other):
                each.check_measure(measure)
        fitting, measuring = (kept, kept) if len(kept) < 2 else (kept[::2], kept[1::2])
        fit_indices = _frames(crops, fitting, preset.fit_frames)
        indices = _frames(crops, measuring, preset.search_frames)
        confirm_indices = _frames(other, confirming, preset.confirm_frames)
        key = Key.of(
            "compress",
            ("frontier", "merging", "models", "metrics"),
            network=network_sha256(network),
            search=crops.contents_sha256(indices),
            fit=crops.contents_sha256(fit_indices),
            confirm=other.contents_sha256(confirm_indices),
            masks=None if isinstance(source, NoMasks) else [
                masks_sha256(source, of, frames)
                for of, frames in ((crops, indices), (crops, fit_indices), (other, confirm_indices))
            ],
            **measure.identity(),
            target=target,
            device=where,
            **_between(source, strides, (crops, measuring), (other, confirming)),
        )  # fmt: skip
        ledger = Ledger(out.with_name(f"{out.name}.journal.jsonl"), key.inputs, read=leads())
        weighing = None if isinstance(source, NoMasks) else source
        batches = fit_batches(crops, fit_indices, weighing)
        depth = network.config.depth
        cache = LayerCache(range(depth + 1), layer_bytes(network, len(fit_indices)), CACHE_BYTES, out.absolute().parent)
        fitter = PatchFitter(network, crops, batches, cache)
        shared: dict[str, Any] = {"masks": weighing, "fitter": fitter, "target": target, "batch_size": 16}
        search = Errors(
            "search", network, crops, indices, measure, ledger, cache_bytes=CACHE_BYTES, folder=out.absolute().parent,
            **shared,
        )  # fmt: skip
        confirm = Errors("confirm", network, other, confirm_indices, measure, ledger, **shared)
        record = provenance.record(crops, fit_indices)
        fitted_on = FittedOn(
            **{name: record[name] for name in ("name", "split", "sha256", "frames") if name in record},
            source=None if isinstance(data, CropSet) else str(data),
            frames_per_clip=preset.fit_frames,
            clips=tuple(int(each) for each in fitting),
            masks=None if weighing is None else weighing.name,
        )
        chosen_on = {
            "searched": {provenance.KEY: provenance.record(crops, np.union1d(indices, fit_indices))},
            "confirmed": {provenance.KEY: provenance.record(other, confirm_indices)},
        }
        names = {
            "search": f"{crops.name}:{crops.split}, {len(indices)} frames of {len(measuring)} clips",
            "confirm": f"{other.name}:{other.split}, {len(confirm_indices)} frames of {len(confirming)} clips",
        }
        return cls(checkpoint, network, crops, search, confirm, ledger, fitted_on, source, measure, preset, batch_size,
                   seed, names, kept, of_starter(data), chosen_on)  # fmt: skip

    def measured(self, order: tuple[str, Candidate, int]) -> Measured:
        """A batch of the frames to search or to confirm on: which of them, a candidate, and the batch's number."""
        name, candidate, number = order
        return (self.search if name == self.search.name else self.confirm).measured(candidate, number)

    def ways(self) -> list[Candidate]:
        """The ways of having fewer tokens that this network and these masks allow."""
        rows, columns = self.network.config.grid
        if isinstance(self.masks, NoMasks):
            return []
        keeps = sorted({round(rows * columns * share) for share in self.chosen.shares})
        found = [
            Candidate(keep=keep, way=way, weighted=by) for keep in keeps for way, by in product(WAYS, (True, False))
        ]
        return [each for each in found if check_tokens(self.network, each)]

    def costs(self, given: Path | str | None, outputs: OutputRule, progress: Progress) -> CostTable:
        """The cost table of the device: read where it is there, else from the journal, else measured and kept."""
        ways, dtypes = self.ways(), self.dtypes()
        keys = [cost_key(self.network, self.batch_size, pick_dtype(each), ways) for each in dtypes]
        key = keys[0]
        path = None if given is None else Path(given)
        if path is not None and path.exists():
            return read_costs(path, keys)
        name = f"costs {key.sha256}"
        known = self.ledger.get(name)
        if known is None:
            first, *more = (
                measure_costs(self.network, ways, batch=self.batch_size, dtype=pick_dtype(each), progress=progress)
                for each in dtypes
            )
            known = self.ledger.put(name, replace(first, also=tuple(more)).to_json())
        if path is not None:
            outputs.write_json(path, {"schema": 1, "command": "compress", **known}, COSTS)
        return CostTable.from_json(known, "costs")

    def sizes(self, chosen: Preset, budget_mm: float | None, progress: Progress) -> dict[float, Sized]:
        """The best sets of layers, by their number; with a budget, down to the first that is far beyond it."""
        fewest = max(1, round(self.depth * (1 - chosen.deepest)))
        ceiling = math.inf if budget_mm is None else max(FAR * budget_mm, FAR_MM)
        return greedy(self.search, fewest, chosen.effort, ceiling_mm=ceiling, progress=progress)

    def token_increases(self) -> dict[Candidate, float]:
        """What each way of having fewer tokens costs by itself, in mm. Whether sizes weigh is decided, for each number
        of tokens, on the first frames."""
        pairs: dict[tuple[int | None, str | None], list[Candidate]] = {}
        for each in self.ways():
            pairs.setdefault((each.keep, each.way), []).append(each)
        better = [min(pair, key=lambda each: increase(self.search, each, FIRST_LOOK)) for pair in pairs.values()]
        return {each: increase(self.search, each) for each in better}

    def dtypes(self) -> list[Dtype]:
        """What is timed and searched: float32, and bfloat16 where the device has units for it."""
        best = fast_dtype(next(self.network.parameters()).device)
        return ["float32", "bfloat16"] if best == torch.bfloat16 else ["float32"]

    def dtype_increases(self, table: CostTable) -> dict[Candidate, float]:
        """What each dtype costs by itself, in mm, of those in which the untouched network is faster here."""
        plain = table.seconds(Candidate(), self.depth)
        found = (Candidate(dtype=each) for each in table.dtypes[1:])
        return {each: increase(self.search, each) for each in found if table.seconds(each, self.depth) < plain}

    def stride_increases(self, strides: Sequence[int]) -> dict[Candidate, float]:
        """What running on every so manieth frame costs by itself, in mm. UserError where the data cannot tell."""
        for errors in (self.search, self.confirm):
            check_strides(errors.crops, np.unique(errors.clip).tolist(), strides)
        return {each: increase(self.search, each) for each in (Candidate(stride=k) for k in strides if k > 1)}

    def timed(self, candidate: Candidate, table: CostTable, progress: Progress) -> dict[str, Any] | None:
        """{fps, fps_quartiles, speedup, speedup_quartiles} of a candidate and the untouched network by turns, both on
        the fast path, the latter in float32, a stride counted by the frames that it stands for; kept in the journal, as
        a clock gives no bytes twice. None for the untouched network itself."""
        if candidate == Candidate():
            return None
        name = f"speed {candidate.key} {table.key}"
        if (known := self.ledger.get(name)) is None:
            device = next(self.network.parameters()).device
            batch = made_up_batch(self.network.config, self.batch_size).to(device)
            networks = {
                "untouched": make_fast(share(self.network), torch.float32),
                "chosen": make_fast(share(self.search.made(candidate)), pick_dtype(candidate.dtype)),
            }
            runs = {each_name: network_predict(each) for each_name, each in networks.items()}
            timing = time_interleaved(runs, batch, progress=progress, what="timing the choice")
            known = self.ledger.put(name, timing.figures("chosen", over="untouched"))
        many = candidate.stride
        return {
            name: [many * each for each in value] if isinstance(value, list) else many * value
            for name, value in known.items()
        }

    def plan(self, candidate: Candidate) -> Plan:
        """The plan of a candidate, as it is written."""
        made = candidate.plan(self.checkpoint.reference, self.depth, self.fitted_on if candidate.strength else None)
        return made.model_copy(update={"run": RunSettings(dtype=candidate.dtype, stride=candidate.stride)})


def _between(source: MaskSource, strides: Sequence[int], *clips: tuple[CropSet, np.ndarray]) -> dict[str, Any]:
    """For the key, where a network may run on every so manieth frame only: hashes of all frames of these clips, as
    those that it runs on lie beside the frames that are scored."""
    if max(strides) == 1:
        return {}
    whole = [(crops, np.concatenate([crops.frames_of(int(clip)) for clip in numbers])) for crops, numbers in clips]
    found: dict[str, Any] = {"strides": [crops.contents_sha256(frames) for crops, frames in whole]}
    if not isinstance(source, NoMasks):
        found["strides_masks"] = [masks_sha256(source, crops, frames) for crops, frames in whole]
    return found


def _frames(crops: CropSet, clips: np.ndarray, per_clip: int) -> np.ndarray:
    indices = crops.sample(per_clip)
    return indices[np.isin(crops.clip[indices], clips)]
