"""`hc.compress` for networks of other code: `adapter:FILE.py`, budgeted by the distance that the file gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from hmrcompress.api.adapter import Adapter, open_adapter
from hmrcompress.api.front import CACHE_BYTES, PRESETS
from hmrcompress.api.front_files import KIND, command_line, sentence
from hmrcompress.errors import UserError, hearing, tell
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.costs import device_name
from hmrcompress.frontier.depth import Sized, greedy, increase
from hmrcompress.frontier.errors import Errors
from hmrcompress.frontier.joint import Choice, Goal, Point, combinations, increase_of, race, settle
from hmrcompress.frontier.ledger import Ledger
from hmrcompress.frontier.live import CandidateProbe, LiveCosts, LiveErrors, live_costs, live_ways, turns
from hmrcompress.frontier.summary import FRONTIER, PAGE, listed, told
from hmrcompress.io.figures import json_text
from hmrcompress.io.hashes import sha256_file, sha256_json
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import sealed_json
from hmrcompress.live.saving import KIND as MODEL
from hmrcompress.live.saving import save as save_live
from hmrcompress.live.searching import evaluating, search_key, sha256_of_masks
from hmrcompress.plan import ALL
from hmrcompress.report.frontier import frontier_page
from hmrcompress.runtime import Progress, environment, no_progress
from hmrcompress.searching.cache import LayerCache
from hmrcompress.searching.settings import SearchSettings
from hmrcompress.timing.live_bench import ORIGINAL

ROUNDS = 7


def compress_adapter(
    name: str,
    out: Path | str,
    *,
    asked: Mapping[str, float | None],
    preset: str,
    seed: int = 0,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Searches layers, and tokens where the adapter has masks and the grid is known, on its batches `search`, confirms
    on its batches `test`, and writes the folder of `live.saving` with `frontier.json` and `report.html`. Gives what
    that holds. asked: budget_mm, fps or speedup. Journalled as of `compress`. Raises UserError."""
    out = Path(out)
    outputs = OutputRule.of(overwrite)
    outputs.check_folder(out, MODEL)
    chosen = PRESETS[preset]
    with hearing() as notes:
        adapter = open_adapter(name)
        outputs.reads(adapter.path)
        network = adapter.network
        with evaluating(adapter.model):
            batches = {split: adapter.batches(split) for split in ("search", "test")}
            every, masks = [*batches["search"], *batches["test"]], adapter.given["masks"]
            masked = [sha256_of_masks(masks(batch)) for batch in every] if masks else None
            key = search_key(
                network, every, adapter.distance, adapter.given["run"], SearchSettings(target="teacher"), None, None,
                sha256_json([sha256_file(adapter.path), len(batches["search"]), masked]),
                ("searching", "live", "frontier"),
            )  # fmt: skip
            ledger = Ledger(out.with_name(f"{out.name}.journal.jsonl"), key.inputs)
            search, confirm = (_errors(split, adapter, given, ledger, out) for split, given in batches.items())
            keeps = sorted({round(network.tokens * share) for share in chosen.shares})
            ways = live_ways(network, keeps) if adapter.given["masks"] and network.refusal is None else []
            table = _costs(adapter, batches["test"][0], ways, ledger, progress)
            depth, base = network.depth, table.seconds(Candidate(), network.depth)
            goal = Goal.of(asked, table.batch, base)
            like, fewest = cast(Errors, search), max(1, round(depth * (1 - chosen.deepest)))
            sizes = greedy(like, fewest, replace(chosen.effort, parts=(ALL,)), progress=progress)
            tokens = {each: increase(like, each) for each in ways}
            found = combinations(sizes, tokens, cast(Any, table), depth)
            points = race(like, found, goal, chosen.raced, seed=seed, progress=progress)
            untouched = Point(Candidate(), base, increase_of(like, Candidate(), seed=seed))
            choice, points, speed, slower = settle(
                cast(Errors, confirm), points, goal, untouched, asked,
                lambda each: _timed(adapter, each, batches["test"][0], ledger, progress),
                depth=depth, most=chosen.confirmed, seed=seed, progress=progress,
            )  # fmt: skip
            for each in slower:
                tell(f"{each.candidate.words(depth)} is not faster when both are timed by turns", adapter.name)
            frontier = _described(adapter, search, confirm, choice, [*points, untouched], table, sizes, asked, speed)
            frontier |= {"preset": preset, "seed": seed, "evaluations": len(ledger), "notes": list(notes)}
            frontier["journal"] = ledger.path.name
            save_live(adapter.model, choice.point.candidate.plan(network.reference, depth), out, network=network,
                 overwrite=outputs)  # fmt: skip
        with outputs.additions(out, MODEL) as more:
            (more / FRONTIER).write_text(json_text(sealed_json(frontier, KIND)), encoding="utf-8")
            (more / PAGE).write_text(frontier_page(frontier), encoding="utf-8")
    return frontier


def _errors(split: str, adapter: Adapter, batches: Sequence[Any], ledger: Ledger, out: Path) -> LiveErrors:
    network, given = adapter.network, adapter.given
    sizes = [given["count"](batch) for batch in batches]
    each = 4 * sum(sizes) * (network.tokens + network.prefix + network.suffix) * network.dim
    cache = LayerCache(range(max(network.depth - 1, 0)), each, CACHE_BYTES, out.absolute().parent)
    probe = CandidateProbe(network, batches, sizes, given["run"], adapter.distance, merge_rule="eq4", cache=cache,
                           masks=given["masks"])  # fmt: skip
    return LiveErrors(split, probe, ledger)


def _costs(adapter: Adapter, batch: Any, ways: Sequence[Candidate], ledger: Ledger, progress: Progress) -> LiveCosts:
    """From the journal, or measured now."""
    network, given = adapter.network, adapter.given
    if network.depth < 2:
        raise UserError("has a single layer, of which none can be removed", adapter.path)
    half = Candidate(tuple((layer, ALL) for layer in range(network.depth - network.depth // 2, network.depth)))
    device = device_name(next(network.blocks.parameters()).device)
    name = f"costs {device} {[each.key for each in ways]}"
    if (known := ledger.get(name)) is None:
        timing = turns(network, [half, *ways], batch, given["count"](batch), run=given["run"], masks=given["masks"],
                       rounds=ROUNDS, progress=progress)  # fmt: skip
        known = ledger.put(name, asdict(live_costs(network, ways, timing, half, device)))
    return LiveCosts(**known)


def _timed(
    adapter: Adapter, candidate: Candidate, batch: Any, ledger: Ledger, progress: Progress
) -> dict[str, Any] | None:
    """As `front.Bench.timed`."""
    if candidate == Candidate():
        return None
    name, given = f"speed {candidate.key}", adapter.given
    if (known := ledger.get(name)) is None:
        timing = turns(adapter.network, [candidate], batch, given["count"](batch), run=given["run"],
                       masks=given["masks"], rounds=ROUNDS, progress=progress)  # fmt: skip
        known = ledger.put(name, timing.figures(candidate.key, over=ORIGINAL))
    return dict(known)


def _described(
    adapter: Adapter,
    search: LiveErrors,
    confirm: LiveErrors,
    choice: Choice,
    points: Sequence[Point],
    table: LiveCosts,
    sizes: Mapping[float, Sized],
    asked: Mapping[str, float | None],
    speed: dict[str, Any] | None,
) -> dict[str, Any]:
    """What `frontier.json` holds."""
    network = adapter.network
    depth, base = network.depth, table.seconds(Candidate(), network.depth)
    ordered = listed(points, sizes, cast(Errors, search), lambda each: table.seconds(each, depth))
    first = [search(Candidate().without((layer, ALL)), 1).errors.mean() for layer in range(depth)]
    zero = search(Candidate(), 1).errors.mean()
    device = next(network.blocks.parameters()).device
    return {
        "schema": 1,
        "command": "compress",
        "model": adapter.name,
        "sentence": sentence(choice, asked, speed, base, depth, "by turns").replace(" clips that", " samples that"),
        "asked": dict(asked),
        "chosen": choice.point.candidate.key,
        **({"speed": speed} if speed else {}),
        "shown": choice.shown,
        "why": choice.why,
        "weights": {"name": f"{type(adapter.model).__name__} of {adapter.path.name}", "sha256": network.sha256},
        "data": {"search": f"{adapter.name}, batches search", "confirm": f"{adapter.name}, batches test"},
        "baseline_mm": float(confirm(Candidate()).errors.mean()),
        "points": [
            told(each, each.candidate.plan(network.reference, depth), depth, table.batch, on_front)
            for each, on_front in ordered
        ],
        "damage_mm": {str(layer): float(each - zero) for layer, each in enumerate(first)},
        "costs": asdict(table) | {"dtype": str(next(network.blocks.parameters()).dtype).removeprefix("torch.")},
        "command_line": command_line(),
        **environment(device),
    }
