"""What `hc.compress` leaves: the model, `frontier.json` and the page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hmrcompress.api.front import Bench
from hmrcompress.api.front_pictures import seen
from hmrcompress.evaluation.similarity import layer_similarity
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.costs import CostTable
from hmrcompress.frontier.depth import Sized
from hmrcompress.frontier.joint import Choice, Point
from hmrcompress.frontier.summary import FRONTIER, PAGE, breakdown, listed, told
from hmrcompress.io.figures import json_text
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import sealed_json
from hmrcompress.merging.describe import network_cost
from hmrcompress.merging.merge import merge_checkpoint, merged_config
from hmrcompress.models.files.folder import CARD, write_model_folder
from hmrcompress.models.files.folder import KIND as MODEL
from hmrcompress.models.network import build
from hmrcompress.plan import ALL
from hmrcompress.report.card import card_section
from hmrcompress.report.frontier import frontier_page
from hmrcompress.runtime import environment

KIND = "frontier"
_UNITS = {"budget_mm": "mm at most", "fps": "frames a second", "speedup": "times the speed"}


def described(
    bench: Bench,
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
    depth = bench.depth
    ordered = listed(points, sizes, bench.search, lambda each: table.seconds(each, depth))
    base = table.seconds(Candidate(), depth)
    chosen = choice.point
    errors = bench.confirm(Candidate()).errors
    first = [bench.search(Candidate().without((layer, ALL)), bench.chosen.effort.first) for layer in range(depth)]
    zero = bench.search(Candidate(), bench.chosen.effort.first).errors.mean()
    similarity = layer_similarity(bench.network, bench.crops, frames=32, batch_size=16)
    return {
        "schema": 1,
        "command": "compress",
        "model": bench.checkpoint.name,
        "sentence": sentence(choice, asked, speed, base, depth, "by turns on the fast path, --fast"),
        "asked": dict(asked),
        "preset": preset,
        "chosen": chosen.candidate.key,
        **({"speed": speed} if speed else {}),
        "shown": choice.shown,
        "why": choice.why,
        "weights": {"name": bench.checkpoint.name, "sha256": bench.checkpoint.sha256},
        "data": dict(bench.names),
        "baseline_mm": float(errors.mean()),
        "points": [_point(bench, each, table, on_front) for each, on_front in ordered],
        "damage_mm": {str(layer): float(each.errors.mean() - zero) for layer, each in enumerate(first)},
        "cka": [[round(float(value), 4) for value in row] for row in similarity],
        **breakdown(bench.confirm, chosen.candidate),
        **(seen(bench, chosen.candidate) if chosen.candidate != Candidate() else {}),
        "costs": table.to_json(),
        "evaluations": len(bench.ledger),
        "journal": bench.ledger.path.name,
        "seed": bench.seed,
        "notes": notes,
        "command_line": command_line(),
        **environment(next(bench.network.parameters()).device),
    }


def sentence(
    choice: Choice, asked: Mapping[str, float | None], speed: dict[str, Any] | None, base: float, depth: int, how: str
) -> str:
    """What was asked and what was chosen. base: the untouched network's predicted seconds; how: it was timed."""
    chosen, known = choice.point, choice.point.best_known
    assert known is not None
    asking = next(f"{value:g} {_UNITS[name]}" for name, value in asked.items() if value is not None)
    interval = "" if known.low is None else f" (95 % interval {known.low:+.2f} to {known.high:+.2f})"
    faster = "as fast as it was"
    seen = "were searched on" if chosen.confirmed is None else "the search did not see"
    if speed is not None:
        faster = f"{speed['speedup']:.2f} times the speed ({how}; predicted {base / chosen.seconds:.2f})"
    return (
        f"Asked for {asking}, chosen: {chosen.candidate.words(depth)}, {faster} at {known.mean:+.2f} mm{interval} on "
        f"{known.clips} clips that {seen}; {choice.why}."
    )


def command_line() -> str:
    """The command that runs, or the function that was called."""
    return " ".join(["hmrcompress", *sys.argv[1:]]) if "hmrcompress" in sys.argv[0] else "hc.compress"


def not_faster(
    bench: Bench, found: Sequence[tuple[Candidate, float, float]], slower: Sequence[Point], table: CostTable
) -> list[dict[str, Any]]:
    """[{words, macs, speed, by}] of plans that have fewer MACs than the untouched network and are not faster here: by
    the clock (`turns`), though the cost table had them faster, or by that (`table`). Shares of its MACs, and of its
    speed as the table has it."""
    base, plain = table.seconds(Candidate(), bench.depth), network_cost(bench.network.config).macs_with_attention
    clocked = {each.candidate for each in slower}
    listed = [(each.candidate, each.seconds, "turns") for each in slower]
    listed += [(each, seconds, "table") for each, seconds, _ in found if seconds >= base and each not in clocked]
    rows: list[dict[str, Any]] = []
    for candidate, seconds, by in listed:
        plan = bench.plan(candidate)
        cost = network_cost(merged_config(bench.network.config, plan), plan.tokens)
        macs = cost.macs_with_attention / plain / candidate.stride
        if macs < 1:
            rows.append({"words": candidate.words(bench.depth), "macs": macs, "speed": base / seconds, "by": by})
    return rows


def _point(bench: Bench, point: Point, table: CostTable, on_front: bool) -> dict[str, Any]:
    plan = bench.plan(point.candidate)
    sizes = build(merged_config(bench.network.config, plan), "meta")
    return told(point, plan, bench.depth, table.batch, on_front) | {
        "parameters": sum(each.numel() for each in sizes.parameters())
    }


def write(
    bench: Bench,
    out: Path,
    choice: Choice,
    frontier: dict[str, Any],
    pictures: Mapping[str, bytes],
    outputs: OutputRule,
) -> None:
    """The model with its report, and the pictures of that, by name."""
    candidate, plan = choice.point.candidate, bench.plan(choice.point.candidate)
    if candidate.healed:
        model = bench.models[candidate.healed]
        write_model_folder(
            out,
            model.state(),
            model.config,
            plan=plan,
            provenance={**model.source, **bench.chosen_on},
            body=model.body,
            overwrite=outputs,
        )
        _add_report(out, frontier, pictures, outputs)
        return
    patches = bench.search.fitter(candidate) if candidate.strength and bench.search.fitter else None
    merge_checkpoint(
        bench.checkpoint,
        plan,
        out,
        cut_patches=patches,
        fitted_on={"data": bench.fitted_on.model_dump(mode="json")} if patches else None,
        chosen_on=bench.chosen_on,
        overwrite=outputs,
    )
    _add_report(out, frontier, pictures, outputs)


def _add_report(out: Path, frontier: dict[str, Any], pictures: Mapping[str, bytes], outputs: OutputRule) -> None:
    with outputs.additions(out, MODEL) as more:
        for name, picture in pictures.items():
            (more / name).write_bytes(picture)
        (more / FRONTIER).write_text(json_text(sealed_json(frontier, KIND)), encoding="utf-8")
        (more / PAGE).write_text(frontier_page(frontier, pictures), encoding="utf-8")
        card = (out / CARD).read_text(encoding="utf-8")
        (more / CARD).write_text(card + card_section(frontier), encoding="utf-8")
