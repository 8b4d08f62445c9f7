"""`compress adapter:FILE.py`: a network of other code, budgeted by its own distance."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from live_networks import GRID, pictures, stranger
from test_live_adapter import ADAPTER
from test_live_search import map_distance
from test_model_commands import run as invoke

import hmrcompress as hc
from hmrcompress.api import front_live
from hmrcompress.api.adapter import open_adapter
from hmrcompress.frontier import live
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.ledger import Ledger
from hmrcompress.frontier.live import CandidateProbe, LiveCosts, live_costs
from hmrcompress.live.patching import apply
from hmrcompress.live.searching import called
from hmrcompress.live.trees import sha256_of, source_sha256
from hmrcompress.plan import Plan
from hmrcompress.searching.cache import LayerCache


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """With six batches of two to search and to confirm on, and a clock that counts layers and tokens."""
    path = tmp_path / "wilor.py"
    path.write_text(ADAPTER.replace("range(2)]", "range(6)]"))

    def clocked(calls: Any, frames: int, device: Any, **more: Any) -> Any:
        def seconds(name: str) -> float:
            found = Candidate() if name == "original" else Candidate.parsed(name)
            return 1.0 + found.layers(5) * (1.0 if found.keep is None else found.keep / 30)

        for call in calls.values():
            call()
        taken = {name: [seconds(name)] * 3 for name in calls}

        def figures(name: str, over: str) -> dict[str, Any]:
            return {"fps": frames / seconds(name), "speedup": seconds(over) / seconds(name)}

        return SimpleNamespace(seconds=taken, frames=frames, figures=figures)

    monkeypatch.setattr(live, "take_turns", clocked)
    return f"adapter:{path}"


def test_a_live_network_within_a_budget_and_again(adapter: str, tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    line = ["compress", adapter, "--budget-mm", 700, "--preset", "quick", "-o", fast]
    done = invoke(*line)
    assert done.exit_code == 0, done.output
    found = json.loads((fast / "frontier.json").read_text())
    assert found["sentence"].startswith("Asked for 700 mm at most, chosen: ") and found["shown"]
    chosen = next(each for each in found["points"] if each["name"] == found["chosen"])
    assert chosen["layers"] < 5 and chosen["confirmed"]["n_clips"] == 12
    assert found["speed"]["speedup"] > 1 and "hc.live.restore" in done.output
    # What was confirmed is what the folder's model does, by the user's own code.
    model = stranger("WiLoR", depth=5).float()
    batches = [pictures(2, 20 + seed)[0].float() for seed in range(6)]
    with torch.no_grad():
        wanted = [model(batch)[0] for batch in batches]
        hc.live.restore(model, fast)
        got = []
        for batch in batches:
            with hc.person_mask(model, pictures(2)[1]):
                got.append(model(batch)[0])
    moved = np.concatenate([1000 * (a - b).flatten(1).abs().mean(1) for a, b in zip(got, wanted, strict=True)])
    assert chosen["confirmed"]["increase_mm"] == pytest.approx(moved.mean(), abs=1e-3)
    first = {path.name: path.read_bytes() for path in fast.iterdir()}
    assert invoke(*line).exit_code == 0
    assert {path.name: path.read_bytes() for path in fast.iterdir()} == first, "all of it is in the journal"
    assert b"plotly" in first["report.html"]
    slow = min(each["fps"] for each in found["points"])
    assert invoke("pick", fast, "--fps", slow, "-o", tmp_path / "other.yaml").exit_code == 0
    assert Plan.read(tmp_path / "other.yaml").layers == 5


def test_what_is_not_faster_by_turns_gives_way_to_the_next(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_turns, asked = front_live._timed, list[str]()

    def timed(adapter: Any, candidate: Candidate, *rest: Any) -> dict[str, Any] | None:
        asked.append(candidate.key)
        figures = by_turns(adapter, candidate, *rest)
        return figures and {**figures, "speedup": 0.9 if len(asked) <= slow else figures["speedup"]}

    monkeypatch.setattr(front_live, "_timed", timed)
    for slow in (1, 9):
        asked.clear()
        out = tmp_path / f"fast{slow}"
        done = invoke("compress", adapter, "--budget-mm", 700, "--preset", "quick", "-o", out)
        assert done.exit_code == 0, done.output
        found = json.loads((out / "frontier.json").read_text())
        assert len(set(asked)) == len(asked) > 1
        left_alone = slow == 9
        assert found["chosen"] == (Candidate().key if left_alone else asked[-1]) and left_alone != ("speed" in found)
        words = {Candidate.parsed(key).words(5) for key in asked[:slow] if key != Candidate().key}
        assert {f"wilor: {each} is not faster when both are timed by turns" for each in words} == {*found["notes"]}
        assert {*asked, Candidate().key} <= {each["name"] for each in found["points"]}


def test_plans_are_measured_as_they_run(adapter: str, tmp_path: Path) -> None:
    """Layers and tokens, in any order, against the model compressed by hand: what is replayed of one plan is not taken
    for another."""
    opened = open_adapter(adapter)
    ledger = Ledger(tmp_path / "j.jsonl", {})
    errors = front_live._errors("search", opened, opened.batches("search")[:2], ledger, tmp_path / "out")
    plain, cut = Candidate(), Candidate(((2, "all"),))
    tried = [plain, cut, Candidate(keep=14, way="merge"), Candidate(((2, "all"),), keep=14, way="drop"), cut]
    found = [errors(each).errors for each in tried]
    assert found[0].max() == 0 and np.array_equal(found[1], found[-1])
    model = stranger("WiLoR", depth=5).float()
    batches = [pictures(2, seed)[0].float() for seed in range(2)]
    with torch.no_grad():
        wanted = [model(batch)[0] for batch in batches]
        network = hc.live.network(model, example=lambda: model(batches[0]))
        for candidate, seen in zip(tried[1:], found[1:], strict=True):
            apply(model, candidate.plan(opened.network.reference, 5), network=network)
            got = []
            for batch in batches:
                with hc.person_mask(model, pictures(2)[1]):
                    got.append(model(batch)[0])
            hc.unapply(model)
            moved = [1000 * (a - b).flatten(1).abs().mean(1) for a, b in zip(got, wanted, strict=True)]
            assert np.abs(seen - np.concatenate(moved)).max() < 1e-3, candidate


def test_what_an_adapter_does_without(adapter: str, tmp_path: Path) -> None:
    for more, message in (
        (["--budget-mm", 1, "--data", "starter:calib"], "--data: has no effect on an adapter"),
        (["--budget-mm", 1, "--heal", 1], "--heal: has no effect on an adapter"),
        (["--budget-mm", 1, "--fps", 3], "give exactly one of a budget"),
        (["--speedup", 0], "--speedup: got 0.0, expected a number above 0"),
    ):
        done = invoke("compress", adapter, "-o", tmp_path / "no", *more)
        assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
    none = invoke("compress", "starter", "--budget-mm", 1, "-o", tmp_path / "no")
    assert none.exit_code == 2 and "--data: there are no clips to search on" in none.output


def test_times_of_layers_follow_from_differences() -> None:
    half, way = Candidate(((3, "all"), (4, "all"))), Candidate(keep=14, way="drop")
    timing = SimpleNamespace(
        seconds={"original": [6.0, 8.0, 6.0], half.key: [4.0, 5.0, 4.0], way.key: [3.5] * 3}, frames=2
    )
    found = live_costs(SimpleNamespace(depth=5, tokens=30), [way], timing, half, "cpu")  # type: ignore[arg-type]
    assert found == LiveCosts("cpu", 2, 30, 1.0, 1.0, {"drop 14": 0.5})
    assert found.seconds(Candidate(((1, "all"),), keep=14, way="drop"), 5) == 1.0 + 4 * 0.5
    assert front_live.ROUNDS > 2


def test_what_is_kept_changes_no_error(tmp_path: Path) -> None:
    """Also where the uppermost layers go, so that the layer at which a pass goes on is not there any more."""
    model = stranger("HMR2, ViTPose", depth=5)
    network = hc.live.network(model, grid=GRID)
    batches = [pictures(2, seed)[0] for seed in range(2)]
    caches = [LayerCache(range(4), 1 << 20, size, None) for size in (1 << 24, 0)]
    probes = [
        CandidateProbe(network, batches, [2, 2], called, map_distance, merge_rule="eq4", cache=cache)
        for cache in caches
    ]
    for gone in ([4], [3, 4], [2, 3, 4], [1, 2, 3, 4], [0], [1, 3], [0, 4]):
        plan = Candidate(tuple((layer, "all") for layer in gone)).plan(network.reference, 5)
        one, other = (np.concatenate([probe.errors(plan, number) for number in range(2)]) for probe in probes)
        np.testing.assert_allclose(one, other, rtol=1e-9, err_msg=str(gone))
    assert probes[0].applications < probes[1].applications


def test_functions_and_objects_are_told_apart_by_what_they_hold() -> None:
    def less(value: float, x: float) -> float:
        return x - value

    def bound(value: float) -> Any:
        return lambda x: x - value

    class Batch:
        def __init__(self, img: torch.Tensor) -> None:
            self.img = img

        def moved(self, x: torch.Tensor) -> torch.Tensor:
            return self.img + x

    pairs = [
        (Batch(torch.zeros(2)).moved, Batch(torch.ones(2)).moved),
        (partial(less, 1.0), partial(less, 2.0)),
        (partial(less, 1.0), partial(max, 1.0)),
        (bound(1.0), bound(2.0)),
        (hc.live.vertices(bound(1.0)), hc.live.vertices(bound(2.0))),
    ]
    for one, other in pairs:
        assert source_sha256(one) != source_sha256(other)
    assert source_sha256(hc.live.vertices(bound(1.0))) == source_sha256(hc.live.vertices(bound(1.0)))
    assert sha256_of(Batch(torch.zeros(2))) != sha256_of(Batch(torch.ones(2)))
    assert sha256_of(Batch(torch.ones(2))) == sha256_of(Batch(torch.ones(2)))
    for name, other in (("a", "b"), ({"a"}, {"b"}), (Path("a"), Path("b")), (torch.float32, torch.float16)):
        assert sha256_of([name]) != sha256_of([other]) and sha256_of([name]) == sha256_of([name])


def test_what_holds_itself_has_a_hash() -> None:
    """Modules, loggers, objects that know each other, functions that call each other, variables that come later: the
    same hash every time, and another where a value in it is another."""

    class Node:
        def __init__(self, value: float, deep: int = 0) -> None:
            self.value, self.parent = value, None
            self.children = [Node(value, deep - 1) for _ in range(3)] if deep else []
            for child in self.children:
                child.parent = self  # type: ignore[assignment]

    def held(*values: Any) -> Any:
        return lambda: values

    def both() -> Any:
        def even(number: int) -> bool:
            return number == 0 or odd(number - 1)

        def odd(number: int) -> bool:
            return number != 0 and even(number - 1)

        return even

    def later() -> Any:
        def early() -> Any:
            return never

        if not early:
            never = 1
        return early

    ring: list[Any] = [1.0]
    ring.append(ring)
    log = logging.getLogger("hmrcompress.tests.hash")
    for made in (lambda: held(torch, json), lambda: held(log), lambda: held(Node(1.0, 4)), both, later,
                 lambda: held(ring), lambda: held(torch.nn.Linear(2, 2)).__class__):  # fmt: skip
        assert source_sha256(made()) == source_sha256(made())
    assert source_sha256(held(Node(1.0, 4))) != source_sha256(held(Node(2.0, 4)))
    assert source_sha256(held(torch)) != source_sha256(held(json))
