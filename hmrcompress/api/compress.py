"""`hc.compress`: from a checkpoint to the fastest model within a budget on this device."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from hmrcompress.errors import UserError, hearing
from hmrcompress.evaluation.similarity import layer_similarity
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.costs import CostTable, cost_key, measure_costs, read_costs
from hmrcompress.frontier.depth import Effort, Sized, greedy, increase
from hmrcompress.frontier.errors import Errors, PatchFitter, check_tokens
from hmrcompress.frontier.joint import Choice, Goal, Point, choose, combinations, front_of, increase_of, race
from hmrcompress.frontier.ledger import Ledger
from hmrcompress.frontier.summary import FRONTIER, PAGE, breakdown
from hmrcompress.io.figures import json_text
from hmrcompress.io.keys import Key
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import sealed_json
from hmrcompress.merging.fit import fit_batches
from hmrcompress.merging.merge import merge_checkpoint, merged_config
from hmrcompress.metrics.measure import Measure
from hmrcompress.metrics.points import STARTER24
from hmrcompress.metrics.pose import network_predict
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.files.folder import KIND as MODEL
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2, build, network_sha256, share
from hmrcompress.plan import ALL, FittedOn, Plan, RunSettings
from hmrcompress.report.frontier import frontier_page
from hmrcompress.runtime import Progress, environment, no_progress, pick_device
from hmrcompress.searching.cache import LayerCache, layer_bytes
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress.timing.rounds import time_interleaved

KIND, COSTS = "frontier", "costs"
FEWEST_CONFIRMING = 12
KEPT_BACK = 3
"""Of data without a split to confirm on, every third clip is kept back."""
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


PRESETS = {
    "quick": Preset(6, 12, 4, (0.75, 0.5, 0.375), 10, 4, Effort(first=1, finalists=1, swaps=0), 0.5),
    "full": Preset(16, 32, 16, (0.83, 0.75, 0.62, 0.5, 0.375, 0.25), 16, 6, Effort(first=1, finalists=3, swaps=1), 0.7),
}


@dataclass(frozen=True)
class Compressed:
    """What was made: the folder, what `frontier.json` holds, and the choice."""

    path: Path
    frontier: dict[str, Any]
    choice: Choice


def compress(
    model: Model,
    data: Data,
    out: Path | str,
    *,
    budget_mm: float | None = None,
    fps: float | None = None,
    speedup: float | None = None,
    preset: Literal["quick", "full"] = "full",
    target: Literal["truth", "teacher"] = "truth",
    masks: Masks = "data",
    costs: Path | str | None = None,
    body: Body = "starter",
    device: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> Compressed:
    """Searches layers and tokens together for the fastest model within a budget, or the most accurate at a speed, on
    this device, confirms it on clips that the search did not see, and writes it to the folder `out` with
    `frontier.json` and `report.html`.

    Exactly one of `budget_mm` (mm more error; with the target teacher, mm from the uncompressed network's vertices),
    `fps` and `speedup` is given. `costs`: a cost table that was measured before, or where to write it. Every
    measurement is kept in `OUT.journal.jsonl` beside the folder, so that a command that was killed goes on where it was
    and ends with the same bytes. Raises UserError.
    """
    if sum(each is not None for each in (budget_mm, fps, speedup)) != 1:
        raise UserError("give exactly one of a budget, a speed and a speed-up", "--budget-mm, --fps, --speedup")
    for name, value in (("--budget-mm", budget_mm), ("--fps", fps), ("--speedup", speedup)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise UserError(f"got {value}, expected a number above 0", name)
    out, chosen = Path(out), PRESETS[preset]
    outputs = OutputRule.of(overwrite, model, data)
    outputs.check_folder(out, MODEL)
    if costs is not None and Path(costs).exists():
        outputs.reads(costs)
    elif costs is not None:
        outputs.check_file(costs, COSTS, "json")
    with hearing() as notes:
        bench = _Bench.opened(model, data, chosen, target, masks, body, device, batch_size, seed, out, progress)
        table = bench.costs(costs, outputs, progress)
        base_seconds = table.seconds(Candidate(), bench.depth)
        goal = Goal(budget_mm=budget_mm)
        if budget_mm is None:
            goal = Goal(seconds=batch_size / fps if fps else base_seconds / (speedup or 1.0))
        sizes = bench.sizes(chosen, progress)
        tokens = bench.token_increases()
        found = combinations(sizes, tokens, table, bench.depth)
        points = race(bench.search, found, goal, chosen.raced, seed=seed, progress=progress)
        untouched = Point(Candidate(), base_seconds, increase_of(bench.search, Candidate(), seed=seed))
        choice, points = choose(bench.confirm, points, goal, untouched, chosen.confirmed, seed=seed, progress=progress)
        speed = bench.timed(choice.point.candidate, table, progress)
        if speed is not None and speed["speedup"] <= 1:
            why = f"{choice.point.candidate.words(bench.depth)} is not faster when both are timed by turns"
            choice, speed = replace(choice, point=untouched, why=why), None
        asked = {"budget_mm": budget_mm, "fps": fps, "speedup": speedup}
        frontier = bench.described(choice, [*points, untouched], table, sizes, asked, preset, speed, list(notes))
        bench.write(out, choice, frontier, outputs)
    return Compressed(out, frontier, choice)


@dataclass
class _Bench:
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
    ) -> _Bench:
        """UserError for whatever does not fit together."""
        checkpoint = load(model, seed=seed)
        if checkpoint.plan is not None and checkpoint.plan.compresses_layers:
            raise UserError("is compressed already", checkpoint.name, "Give the network that it was made from")
        if target == "truth":
            require_truth(checkpoint)
        surface, where, source = body_for(checkpoint, body), pick_device(device), open_masks(masks)
        crops = open_data(data, body=surface, split="calib", progress=progress)
        protocol = protocol_for(checkpoint, crops.protocol if target == "truth" else STARTER24)
        measure = open_measure(protocol, crops, body, surface, device=where)
        network = on_device(checkpoint.network, where)
        if of_starter(data):
            other, kept = open_data("starter:confirm", body=surface, progress=progress), np.array(crops.clip_ids)
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
        )  # fmt: skip
        ledger = Ledger(out.with_name(f"{out.name}.journal.jsonl"), key.inputs)
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
        names = {
            "search": f"{crops.name}:{crops.split}, {len(indices)} frames of {len(measuring)} clips",
            "confirm": f"{other.name}:{other.split}, {len(confirm_indices)} frames of {len(confirming)} clips",
        }
        return cls(checkpoint, network, crops, search, confirm, ledger, fitted_on, source, measure, preset, batch_size,
                   seed, names)  # fmt: skip

    def ways(self) -> list[Candidate]:
        """The ways of having fewer tokens that this network and these masks allow."""
        rows, columns = self.network.config.grid
        if isinstance(self.masks, NoMasks):
            return []
        keeps = sorted({round(rows * columns * share) for share in self.chosen.shares})
        found = [Candidate(keep=keep, way=way) for keep in keeps for way in ("drop", "merge")]
        return [each for each in found if check_tokens(self.network, each)]

    def costs(self, given: Path | str | None, outputs: OutputRule, progress: Progress) -> CostTable:
        """The cost table of the device: read where it is there, else from the journal, else measured and kept."""
        ways = self.ways()
        key = cost_key(self.network, self.batch_size, torch.float32, ways)
        path = None if given is None else Path(given)
        if path is not None and path.exists():
            return read_costs(path, key)
        name = f"costs {key.sha256}"
        known = self.ledger.get(name)
        if known is None:
            table = measure_costs(self.network, ways, batch=self.batch_size, progress=progress)
            known = self.ledger.put(name, table.to_json())
        if path is not None:
            outputs.write_json(path, {"schema": 1, "command": "compress", **known}, COSTS)
        return CostTable.from_json(known, "costs")

    def sizes(self, chosen: Preset, progress: Progress) -> dict[float, Sized]:
        """The best sets of layers, by their number."""
        fewest = max(1, round(self.depth * (1 - chosen.deepest)))
        return greedy(self.search, fewest, chosen.effort, progress=progress)

    def token_increases(self) -> dict[Candidate, float]:
        """What each way of having fewer tokens costs by itself, in mm."""
        return {each: increase(self.search, each) for each in self.ways()}

    def timed(self, candidate: Candidate, table: CostTable, progress: Progress) -> dict[str, Any] | None:
        """{fps, fps_quartiles, speedup, speedup_quartiles} of a candidate and the untouched network by turns, both on
        the fast path; kept in the journal, as a clock gives no bytes twice. None for the untouched network itself."""
        if candidate == Candidate():
            return None
        name = f"speed {candidate.key} {table.key}"
        if (known := self.ledger.get(name)) is None:
            device = next(self.network.parameters()).device
            batch = made_up_batch(self.network.config, self.batch_size).to(device)
            networks = {"untouched": share(self.network), "chosen": self.search.made(candidate)}
            runs = {each_name: network_predict(make_fast(each, torch.float32)) for each_name, each in networks.items()}
            timing = time_interleaved(runs, batch, progress=progress, what="timing the choice")
            known = self.ledger.put(name, timing.figures("chosen", over="untouched"))
        return dict(known)

    def plan(self, candidate: Candidate) -> Plan:
        """The plan of a candidate, as it is written."""
        made = candidate.plan(self.checkpoint.reference, self.depth, self.fitted_on if candidate.strength else None)
        return made.model_copy(update={"run": RunSettings(runtime="fast")})

    def described(
        self,
        choice: Choice,
        points: Sequence[Point],
        table: CostTable,
        sizes: Mapping[float, Sized],
        asked: Mapping[str, float | None],
        preset: str,
        speed: dict[str, Any] | None,
        notes: list[str],
    ) -> dict[str, Any]:
        """What `frontier.json` holds."""
        depth = self.depth
        measured = {each.candidate: each for each in points}
        for sized in sizes.values():
            measured.setdefault(
                sized.candidate,
                Point(
                    sized.candidate, table.seconds(sized.candidate, depth), increase_of(self.search, sized.candidate)
                ),
            )
        rows = [(each.candidate, each.seconds, each.best_known.mean) for each in measured.values() if each.best_known]
        front = {each for each, _, _ in front_of(rows)}
        listed = sorted(measured.values(), key=lambda each: (each.seconds, each.candidate))
        base = table.seconds(Candidate(), depth)
        chosen = choice.point
        known = chosen.best_known
        assert known is not None
        errors = self.confirm(Candidate()).errors
        words = chosen.candidate.words(depth)
        asking = next(f"{value:g} {_UNITS[name]}" for name, value in asked.items() if value is not None)
        interval = "" if known.low is None else f" (95 % interval {known.low:+.2f} to {known.high:+.2f})"
        faster = "as fast as it was"
        if speed is not None:
            faster = (
                f"{speed['speedup']:.2f} times the speed (by turns on the fast path, --fast; predicted "
                f"{base / chosen.seconds:.2f})"
            )
        sentence = (
            f"Asked for {asking}, chosen: {words}, {faster} at {known.mean:+.2f} mm{interval} on {known.clips} clips "
            f"that the search did not see; {choice.why}."
        )
        first = [self.search(Candidate().without((layer, ALL)), self.chosen.effort.first) for layer in range(depth)]
        zero = self.search(Candidate(), self.chosen.effort.first).errors.mean()
        similarity = layer_similarity(self.network, self.crops, frames=32, batch_size=16)
        return {
            "schema": 1,
            "command": "compress",
            "model": self.checkpoint.name,
            "sentence": sentence,
            "asked": dict(asked),
            "preset": preset,
            "chosen": chosen.candidate.key,
            **({"speed": speed} if speed else {}),
            "shown": choice.shown,
            "why": choice.why,
            "weights": {"name": self.checkpoint.name, "sha256": self.checkpoint.sha256},
            "data": dict(self.names),
            "baseline_mm": float(errors.mean()),
            "points": [self._point(each, table, each.candidate in front) for each in listed],
            "damage_mm": {str(layer): float(each.errors.mean() - zero) for layer, each in enumerate(first)},
            "cka": [[round(float(value), 4) for value in row] for row in similarity],
            **breakdown(self.confirm, chosen.candidate),
            "costs": table.to_json(),
            "evaluations": len(self.ledger),
            "journal": self.ledger.path.name,
            "seed": self.seed,
            "notes": notes,
            "command_line": " ".join(["hmrcompress", *sys.argv[1:]]) if "hmrcompress" in sys.argv[0] else "hc.compress",
            **environment(next(self.network.parameters()).device),
        }

    def _point(self, point: Point, table: CostTable, on_front: bool) -> dict[str, Any]:
        candidate = point.candidate
        plan = self.plan(candidate)
        sizes = build(merged_config(self.network.config, plan), "meta")
        return {
            "name": candidate.key,
            "words": candidate.words(self.depth),
            "candidate": candidate.to_json(),
            "layers": candidate.layers(self.depth),
            "seconds": point.seconds,
            "fps": table.batch / point.seconds,
            "parameters": sum(each.numel() for each in sizes.parameters()),
            "search": None if point.search is None else point.search.to_json(),
            "confirmed": None if point.confirmed is None else point.confirmed.to_json(),
            "on_front": on_front,
            "plan": plan.to_dict(),
        }

    def write(self, out: Path, choice: Choice, frontier: dict[str, Any], outputs: OutputRule) -> None:
        """The model with its report."""
        candidate, plan = choice.point.candidate, self.plan(choice.point.candidate)
        patches = self.search.fitter(candidate) if candidate.strength and self.search.fitter else None
        merge_checkpoint(
            self.checkpoint,
            plan,
            out,
            cut_patches=patches,
            fitted_on={"data": self.fitted_on.model_dump(mode="json")} if patches else None,
            overwrite=outputs,
        )
        with outputs.additions(out, MODEL) as more:
            (more / FRONTIER).write_text(json_text(sealed_json(frontier, KIND)), encoding="utf-8")
            (more / PAGE).write_text(frontier_page(frontier), encoding="utf-8")


_UNITS = {"budget_mm": "mm at most", "fps": "frames a second", "speedup": "times the speed"}


def _frames(crops: CropSet, clips: np.ndarray, per_clip: int) -> np.ndarray:
    indices = crops.sample(per_clip)
    return indices[np.isin(crops.clip[indices], clips)]
