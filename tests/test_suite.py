"""The suite of speed runs: ratios from a clock of our own, runs that are kept, the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from hmrcompress.errors import UserError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.network import HMR2
from hmrcompress.plan import TokenSettings
from hmrcompress.recipe.benchmarks import read_suite, run_suite
from hmrcompress.records import FrameBatch
from hmrcompress.report.benchmarks import markdown, read_runs, section
from hmrcompress.timing import suite as room
from hmrcompress.timing.bare import bare_products
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress.timing.suite import INT8, ORIGINAL, VARIANTS, RunSettings, run_suite_row
from hmrcompress_cli.main import app

VERSIONS = {"torch": "2", "python": "3"}
TOKENS = TokenSettings(keep=90)
RECIPE = """
model: {model}
layers: 3
tokens: {{keep: 90, per_layer: 40}}
runs:
  - {{name: first, dtype: float32, batch_size: 1, rounds: 1, warmup: 0, threads: 1}}
  - {{name: second, dtype: bfloat16, batch_size: 2, rounds: 1, warmup: 0, threads: 1, int8: true, float32: true}}
"""


def test_ratios_with_a_clock_of_our_own(tiny_network: HMR2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Original 8 s, in float32 24 s, every other variant one second more than the one before it."""
    spent = {variant.name: 1.0 + number for number, variant in enumerate((*VARIANTS, INT8))}
    spent |= {ORIGINAL: 8.0, room.ORIGINAL_FLOAT32: 24.0}
    now = 0.0
    made = room._candidates

    def candidates(*arguments: object) -> object:
        found = made(*arguments)
        for name, network in found.networks.items():
            network.register_forward_hook(lambda *_, name=name: advance(name))
        return found

    def advance(name: str) -> None:
        nonlocal now
        now += spent[name]

    monkeypatch.setattr(room, "_candidates", candidates)
    settings = RunSettings(torch.bfloat16, 2, 2, int8=True, float32=True, threads=1)
    found = run_suite_row(tiny_network, settings, layers=3, tokens=TOKENS, clock=lambda: now)
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows) == [variant.name for variant in (*VARIANTS, INT8)] and found["rounds"] == 2
    for name, row in rows.items():
        assert row["fps"] == pytest.approx(2 / spent[name])
        assert row["speedup"] == pytest.approx(8 / spent[name])
        assert row["over_float32"] == pytest.approx(24 / spent[name])
    best = rows[VARIANTS[-1].name]
    assert (best["layers"], best["tokens"]) == (3, 90) and rows[ORIGINAL]["macs_ratio"] == 1.0
    assert best["share_of_macs_ratio"] == pytest.approx(best["speedup"] / best["macs_ratio"])


def test_other_runtimes_and_bare_products_take_their_turns(tiny_network: HMR2, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's products take a second a layer, the runtime 4 s, and 9 s in the last of three rounds."""
    now, spent = 0.0, {"onnxruntime int8": [4.0, 4.0, 9.0]}
    given: list[object] = []

    class Rival:
        name = "onnxruntime"

        def runner(self, batch: FrameBatch) -> Callable[[FrameBatch], object]:
            def run(_: FrameBatch) -> None:
                nonlocal now
                assert "closed" not in given
                now += spent["onnxruntime int8"].pop(0)

            return run

        def to_json(self) -> dict[str, object]:
            return {"threads": 1}

    @contextmanager
    def rivals(network: HMR2) -> Iterator[dict[str, Rival]]:
        given.append(network)
        yield {"onnxruntime int8": Rival()}
        given.append("closed")

    def bare(network: HMR2, batch: FrameBatch) -> Callable[[object], None]:
        def run(_: object) -> None:
            nonlocal now
            now += len(network.backbone.blocks)

        return run

    monkeypatch.setattr(room, "bare_products", bare)

    def runner(network: HMR2, batch: FrameBatch) -> Callable[[FrameBatch], object]:
        def run(_: FrameBatch) -> None:
            nonlocal now
            now += 1

        return run

    monkeypatch.setattr(room, "_runner", runner)
    settings = RunSettings(torch.float32, 2, 3, warmup=0, bare=True, threads=1)
    found = run_suite_row(tiny_network, settings, layers=3, tokens=TOKENS, rivals=rivals, clock=lambda: now)  # type: ignore[arg-type]
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows)[-2:] == ["layers + tokens, onnxruntime int8", "layers + tokens, its matrix products alone"]
    ours, alone = list(rows.values())[-2:]
    assert ours["run"] == {"threads": 1} and (ours["layers"], ours["tokens"]) == (3, 90)
    assert ours["fps"] == pytest.approx(2 / 4) and ours["spread"] == pytest.approx(2.5 / 4)
    assert ours["share_of_bare"] == pytest.approx(3 / 4) and alone["share_of_bare"] == 1.0
    assert alone["fps"] == pytest.approx(2 / 3) and alone["macs_ratio"] == ours["macs_ratio"]
    assert isinstance(given[0], HMR2) and given[0].config.depth == 3 and given[1] == "closed"
    page = section(found | {"settings": {"run": {"device": "cpu"}}, "cpu": "a CPU", "versions": VERSIONS})
    assert "| layers + tokens, onnxruntime int8 * | 3 | 90 | 0.50 |" in page and "| 75% |" in page


def test_bare_products_are_those_of_the_network(tiny_network: HMR2) -> None:
    """As many multiply-accumulates as linear layers, the patch embedding, attention and matching have."""
    network = with_token_merging(tiny_network, TOKENS).eval()
    batch = made_up_batch(network.config, 2)
    with FlopCounterMode(display=False) as counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(*batch.inputs())
    run = bare_products(network, batch)
    with FlopCounterMode(display=False) as alone, torch.no_grad():
        run(None)
    assert alone.get_total_flops() == counted.get_total_flops() > 0
    half = network.to(torch.bfloat16)
    with torch.no_grad():
        bare_products(half, batch)(None)


def test_clips_are_sums_of_parts() -> None:
    taken = {ORIGINAL: np.array([8.0]), "fast": np.array([2.0]), "decoder 4": np.array([1.5]), "pose": np.array([0.5])}
    found = room._strides("fast", taken, RunSettings(torch.float32, 4, 1, strides=(4,)), 243)["4"]
    whole = 61 / 4 * 2.0 + 1.5 + 0.5  # 61 of 243 frames, four at a time
    assert found["fps"] == pytest.approx(243 / whole) and found["speedup"] == pytest.approx(243 / 4 * 8.0 / whole)


def test_runs_are_kept_and_shown(tiny_model: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "suite.yaml", tmp_path / "out"
    recipe.write_text(RECIPE.format(model=tiny_model))
    arguments = ("bench", "--suite", recipe, "-o", out)
    hmr = CliRunner()
    done = hmr.invoke(app, [str(each) for each in (*arguments, "--set", "bench.only=[second]")])
    assert done.exit_code == 0 and not (out / "first.json").exists(), done.output
    kept = (out / "second.json").read_bytes()
    done = hmr.invoke(app, [str(each) for each in (*arguments, "--json", tmp_path / "runs.json")])
    assert json.loads((tmp_path / "runs.json").read_text())["runs"] == [
        str(out / f"{name}.json") for name in ("first", "second")
    ]
    assert done.exit_code == 0 and "(known)" in done.output and (out / "second.json").read_bytes() == kept

    record = json.loads(kept)
    assert record["command"] == "bench suite" and record["cpu"] and record["versions"]["torch"]
    done = hmr.invoke(app, ["report", str(out), "-o", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.md").read_text()
    assert "CUDA was not measured" in page and page.index("float32, batch 1") < page.index("bfloat16, batch 2")
    best = record["rows"][-1]
    assert f"| {best['variant']} | 3 | 90 | {best['fps']:.2f} | {best['speedup']:.2f}x |" in page
    assert page.rpartition("\n<!-- written by hmrcompress (report), ")[0] == markdown(read_runs(out))

    recipe.write_text(RECIPE.format(model=tiny_model).replace("layers: 3", "layers: 4"))
    with pytest.raises(UserError, match="other settings"):
        run_suite(read_suite(recipe), out)


def test_a_recipe_names_runtimes_and_their_precision(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    checked: list[tuple[object, ...]] = []

    class Rival:
        def runner(self, batch: FrameBatch) -> Callable[[FrameBatch], object]:
            return lambda _: sum(range(1000))

        def to_json(self) -> dict[str, object]:
            return {"threads": torch.get_num_threads()}

    @contextmanager
    def made(runtime: str, network: HMR2, batch: FrameBatch, body: object, **how: object) -> Iterator[Rival]:
        asked.append(
            (runtime, how["precision"], how["threads"], network.config.depth, network.backbone.reducer is None)
        )
        yield Rival()

    monkeypatch.setattr("hmrcompress.exporting.rival.made_rival", made)
    monkeypatch.setattr("hmrcompress.exporting.rival.check_rival", lambda *what: checked.append(what))
    recipe = tmp_path / "suite.yaml"
    recipe.write_text(RECIPE.format(model=tiny_model).replace("threads: 1}", "threads: 1, bare: true, "
                      "runtimes: [onnxruntime, openvino int8]}", 1))  # fmt: skip
    run_suite(read_suite(recipe), tmp_path / "out", only=["first"])
    assert checked == [("onnxruntime", "float32"), ("openvino", "int8")]
    assert asked == [("onnxruntime", "float32", 1, 3, False), ("openvino", "int8", 1, 3, False)]
    rows = {row["variant"]: row for row in json.loads((tmp_path / "out" / "first.json").read_text())["rows"]}
    assert rows["layers + tokens, openvino int8"]["run"] == {"threads": 1} and "share_of_bare" in rows[ORIGINAL]
    recipe.write_text(recipe.read_text().replace("openvino int8", "tensorrt"))
    with pytest.raises(UserError, match=r"runs\.0\.runtimes\.1"):
        read_suite(recipe)


def test_the_shipped_suite() -> None:
    suite = read_suite("benchmarks")
    assert (suite.layers, suite.tokens.keep, suite.strides) == (26, 90, (1, 2, 4))
    cpu = {(run.dtype, run.batch_size) for run in suite.runs if run.device == "cpu"}
    assert cpu == {("float32", 1), ("float32", 8), ("bfloat16", 1), ("bfloat16", 8)}
    with pytest.raises(UserError, match="expected one of cpu_float32_b1"):
        suite.only(["nothing"])


def test_what_is_refused(tmp_path: Path) -> None:
    right = RECIPE.format(model="starter")
    for wrong, fault in {"layers: 0": "layers", "layers: 3\nlayres: 3": "layres", "layers: [": "YAML"}.items():
        (tmp_path / "s.yaml").write_text(right.replace("layers: 3", wrong))
        with pytest.raises(UserError, match=fault):
            read_suite(tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_text(right.replace("name: second", "name: first"))
    with pytest.raises(UserError, match="two runs 'first'"):
        read_suite(tmp_path / "s.yaml")
    done = CliRunner().invoke(app, ["bench", "--suite", "benchmarks"])
    assert done.exit_code == 2 and "--suite and -o" in done.output
    for flag, more in (("--rounds", ["--rounds", "3"]), ("--set bench.rounds", ["--set", "bench.rounds=3"]),
                       ("model", ["starter"]), ("--device", ["--device", "cpu"])):  # fmt: skip
        done = CliRunner().invoke(app, ["bench", *more, "--suite", "benchmarks", "-o", str(tmp_path / "out")])
        assert done.exit_code == 2 and f"{flag}: is for the suite's file to say" in done.output, done.output
    assert not (tmp_path / "out").exists()


def test_an_original_in_bench(tiny_model: Path, tmp_path: Path) -> None:
    arguments = [
        "bench",
        str(tiny_model),
        "--layers",
        "3",
        "--keep-tokens",
        "90",
        "--batch-sizes",
        "1",
        "--rounds",
        "1",
    ]
    more = [
        "--baseline",
        "original",
        "--dtype",
        "int8",
        "--no-memory",
        "--device",
        "cpu",
        "--json",
        str(tmp_path / "b"),
    ]
    done = CliRunner().invoke(app, arguments + more)
    assert done.exit_code == 0 and "int8 on cpu" in done.output and "fast path" in done.output, done.output
    measured = json.loads((tmp_path / "b").read_text())["bench"]
    assert (measured["baseline"], measured["fast"], measured["dtype"]) == ("original", True, "int8")
