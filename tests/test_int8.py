"""Calibrated 8 bits: numbers are rounded as the graph rounds them, and joints stay within the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from bounds import network_bound
from torch import nn

from hmrcompress.api.bench import bench
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting import int8, opened
from hmrcompress.exporting.folder import export_folder
from hmrcompress.exporting.int8 import Int8Choice, calibrated, choose, linear_layers, rounding
from hmrcompress.exporting.parity import Difference, Parity
from hmrcompress.exporting.rival import check_rival, made_rival
from hmrcompress.exporting.runtimes.runtime import Source
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.plan import CheckpointRef, Plan
from hmrcompress.records import FrameBatch
from hmrcompress.timing.bench import BenchSettings

pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture(scope="module")
def batch(tiny_crops: CropSet) -> FrameBatch:
    return next(iter(tiny_crops.batches(batch_size=8, masks=DataMasks())))


@pytest.fixture(scope="module")
def network() -> HMR2:
    """Without merged tokens: no choice between tokens can fall the other way."""
    return tiny.network(config=tiny.SHALLOW)


@pytest.fixture(scope="module")
def graph(network: HMR2, batch: FrameBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "float32.onnx"
    made = Source(network, batch).with_graph(path.parent)
    assert made.graph == path
    return path


def all_of(network: HMR2, batch: FrameBatch, **more: Any) -> Int8Choice:
    ranges = calibrated(network, batch)
    given = {"layers": tuple(ranges), "kept": (), "ranges": ranges, "damage_mm": {}, "found_mm": 0.0, "budget_mm": 1.0}
    return Int8Choice(**(given | {"crops": len(batch.images)} | more))


def test_numbers_are_rounded_as_the_standard_says() -> None:
    """QuantizeLinear and DequantizeLinear of ONNX, number by number in float64."""
    random = np.random.default_rng(0)
    x = random.normal(size=(5, 7)).astype(np.float32)
    low, high = -1.5, 0.9  # some numbers lie outside, and are cut off
    step = (high - low) / 255
    zero = round(-low / step)
    expected = [[(min(max(round(float(v) / step) + zero, 0), 255) - zero) * step for v in row] for row in x]
    found = int8.rounded_input(torch.from_numpy(x), low, high).numpy()
    assert np.abs(found - np.array(expected)).max() < 1e-6
    for bits, largest in ((8, 127), (7, 63)):
        weight = int8.rounded_weight(torch.from_numpy(x), bits).numpy()
        for row, given in zip(weight, x, strict=True):
            step = float(np.abs(given).max()) / largest
            assert np.abs(row - np.array([round(float(v) / step) * step for v in given])).max() < 1e-6
    assert torch.equal(int8.rounded_input(torch.zeros(3), 0.0, 0.0), torch.zeros(3))


def test_ranges_are_of_all_crops_and_hold_zero(network: HMR2, batch: FrameBatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, []).append(given[0]))
        for name, layer in linear_layers(network).items()
    ]
    with torch.no_grad():
        network(batch.images)
    for hook in hooks:
        hook.remove()
    found = calibrated(network, batch)
    assert len(found) == 4 * tiny.SHALLOW.depth and list(found) == list(seen)
    for name, (low, high) in found.items():
        given = torch.cat(seen[name])
        assert low == pytest.approx(min(0.0, given.min().item()), rel=1e-4)
        assert high == pytest.approx(max(0.0, given.max().item()), rel=1e-4)


def test_the_graph_computes_what_was_tried_in_torch(
    network: HMR2, batch: FrameBatch, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every second layer in 8 bits, through onnxruntime with nothing fused: rounding apart, only few numbers may fall
    to the other side of a step, so the median over outputs is what float32 allows."""
    import onnx
    import onnxruntime

    names = list(linear_layers(network))[::2]
    choice = all_of(network, batch, layers=tuple(names))
    int8.quantise_onnx(graph, tmp_path / "q.onnx", network, batch, choice)
    assert not caplog.records, "nothing is advised that nobody asked for"
    made = onnx.load(tmp_path / "q.onnx").graph
    kinds = [node.op_type for node in made.node]
    assert kinds.count("QuantizeLinear") == len(names) and kinds.count("DequantizeLinear") == 2 * len(names)
    weights = [each for each in made.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2]
    assert len(weights) == len(names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"images": batch.images.numpy()})
    with torch.no_grad():
        plain = network(batch.images).features
        with rounding(network, names, choice.ranges):
            expected = network(batch.images).features
        assert torch.equal(network(batch.images).features, plain)  # put back as it was
    gap = torch.from_numpy(features) - expected
    moved = (expected - plain).abs().median().item()
    assert gap.abs().median().item() < max(moved / 20, network_bound(network, network(batch.images)))


def test_the_longest_order_within_the_budget_is_taken(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With damages that add up: 1, 2, … mm by layer, in the reverse order of the network."""
    names = list(linear_layers(network))
    damage = {name: float(len(names) - number) for number, name in enumerate(names)}
    asked: list[tuple[str, ...]] = []

    class Rounding:
        def __init__(self, network: HMR2, names: Any, *more: Any) -> None:
            asked.append(tuple(names))

        def __enter__(self) -> None:
            state["now"] = sum(damage[name] for name in asked[-1])

        def __exit__(self, *more: Any) -> None:
            state["now"] = 0.0

    state = {"now": 0.0}
    monkeypatch.setattr(int8, "rounding", Rounding)
    monkeypatch.setattr(int8, "_joints", lambda *more: torch.tensor([[[state["now"] / 1000, 0.0, 0.0]]] * 3))
    order = sorted(names, key=lambda name: damage[name])
    for budget, count in ((50.0, 8), (36.1, 8), (35.9, 7), (6.1, 3), (5.9, 2), (1.1, 1)):
        made = choose(network, batch, tiny_body, budget)
        assert list(made.layers) == order[:count] and list(made.kept) == order[count:], budget
        assert made.found_mm == pytest.approx(sum(damage[name] for name in made.layers)) and made.found_mm <= budget
    with pytest.raises(HMRCompressError, match=r"no linear layer stays within 0.5 mm \(the least damage is 1 mm\)"):
        choose(network, batch, tiny_body, 0.5)


def test_real_damage_is_finite_and_small(network: HMR2, batch: FrameBatch, tiny_body: BodyModel) -> None:
    made = choose(network, batch, tiny_body, 1e3)
    assert len(made.layers) == 8 and 0 < made.found_mm < 100 and all(0 < each < 100 for each in made.damage_mm.values())
    layer = linear_layers(network)[made.layers[0]]
    assert isinstance(layer.weight, nn.Parameter) and not layer._forward_pre_hooks


def test_the_plan_says_which_layers_of_the_checkpoint(network: HMR2, batch: FrameBatch) -> None:
    names = list(linear_layers(network))
    choice = all_of(network, batch, layers=tuple(names[:7]), kept=(names[7],))
    assert choice.whole_blocks() == (0,)
    reference = CheckpointRef(family="hmr2", sha256="0" * 64, layers=4)
    plan = Plan(checkpoint=reference, groups=((0, 1), (2, 3)))
    made = int8.planned(plan, reference, replace(choice, layers=tuple(names[4:]), kept=tuple(names[:4])), "onnx")
    assert made.run is not None and made.run.int8 == (2,) and made.run.runtime == "onnxruntime"
    alone = int8.planned(None, CheckpointRef(family="hmr2", sha256="0" * 64, layers=2), choice, "openvino")
    assert alone.run is not None and alone.run.int8 == (0,) and alone.run.runtime == "openvino"
    fewer = replace(choice, layers=tuple(names), kept=()).fewer()
    assert fewer.layers == tuple(names[:7]) and fewer.kept == (names[7],)


def test_a_budget_is_held_by_what_the_runtime_gives(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose layers in 8 bits move joints more on other crops has fewer of them; the record says which."""
    import shutil

    from hmrcompress.exporting import folder

    monkeypatch.setattr(Source, "write_onnx", lambda self, path, precision="float32": shutil.copy(graph, path))
    checkpoint = Checkpoint(network, "hmr2", "tiny", known_sha256="0" * 64)
    honest, seen = folder.measure, []

    def strict(*given: Any) -> Parity:
        found = honest(*given)
        seen.append(found)
        far = 1.0 if len(seen) < 3 else 0.2
        return replace(found, median=Difference(0.0, far))

    monkeypatch.setattr(folder, "measure", strict)
    monkeypatch.setattr(folder, "has_exact_int8", lambda: True)
    made = export_folder(
        network, tmp_path / "made", batch, tiny_body, checkpoint, runtime="onnx", precision="int8", budget_mm=0.9,
    )  # fmt: skip
    chosen = made.config.about["int8"]
    assert len(seen) == 3 and len(chosen["layers"]) == 6 and len(chosen["kept"]) == 2
    assert made.plan is not None and made.plan.run is not None
    whole = {block for block in range(2) if not any(f"blocks.{block}." in name for name in chosen["kept"])}
    assert set(made.plan.run.int8) == whole

    # What uses the whole range of 8 bits is not run where their products overflow, whatever made it.
    assert made.config.exact_int8
    images = batch.images[:2]
    for made_exact, here_exact in ((True, True), (False, True), (False, False), (True, False)):
        config = made.config.model_copy(update={"exact_int8": made_exact})
        monkeypatch.setattr(opened, "has_exact_int8", lambda exact=here_exact: exact)
        running = opened.ExportedNetwork(replace(made, config=config))
        if made_exact and not here_exact:
            with pytest.raises(UserError, match="made: was exported where products of 8-bit numbers are exact"):
                running(images)
        else:
            assert torch.isfinite(running(images).betas).all()
            running.running.close()


def test_budgets_are_bounds() -> None:
    crops = (5, (1,))
    Parity(0.5, 9.0, *crops, Difference(0.4, 0.3)).require("f", "int8", budget_mm=0.3)
    for parity in (
        Parity(0.5, 9.0, *crops, Difference(0.4, 0.31)),
        Parity(float("nan"), 9.0, *crops, Difference(0.4, 0.1)),
    ):
        with pytest.raises(HMRCompressError, match="the budget is 0.3 mm; nothing was written"):
            parity.require("f", "int8", budget_mm=0.3)


def test_a_bench_in_8_bits_has_them_in_every_layer(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    seen: list[Int8Choice] = []
    quantise = int8.quantise_onnx

    def looking(*args: Any, **more: Any) -> None:
        seen.append(args[4])
        quantise(*args, **more)

    monkeypatch.setattr("hmrcompress.exporting.runtimes.runtime.quantise_onnx", looking)
    with made_rival("openvino", network, batch, tiny_body, precision="int8", threads=1) as found:
        assert found.dtype == "int8" and found.parity is not None and 0 < found.parity["joints_mm"] < 1000  # type: ignore[index]
    assert seen[0].layers == tuple(linear_layers(network)) and seen[0].kept == ()

    def asked(runtime: str, *args: object, **more: object) -> None:
        raise UserError(f"{runtime} in {more['precision']}")

    for wrong, fault in (("openvino", "got float64"), ("onnxruntime", "float64")):
        with pytest.raises(UserError, match=fault):
            check_rival(wrong, "float64")

    monkeypatch.setattr("hmrcompress.api.bench.made_rival", asked)
    for way, precision in ((RunPath(fast=True, int8=True), "int8"), (RunPath(), "float32")):
        for runtime in ("openvino", "onnxruntime"):
            with pytest.raises(UserError, match=f"{runtime} in {precision}"):
                bench(tiny_model, layers=2, runtime=runtime, settings=BenchSettings(path=way), device="cpu")  # type: ignore[arg-type]
