"""A network in onnxruntime: its fused graph is what torch computes, in 8 bits nearly so, and `bench` times it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from bounds import int8_bound, network_bound
from traced import MERGED
from typer.testing import CliRunner, Result

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting import onnx as exporting
from hmrcompress.exporting import onnx_runtime as room
from hmrcompress.exporting.onnx_runtime import RuntimeNetwork, runtime_network
from hmrcompress.exporting.parity import HALF_ABS, MAX_ABS, OUTPUTS
from hmrcompress.exporting.session import has_exact_int8, open_session
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.network import HMR2
from hmrcompress.records import FrameBatch
from hmrcompress.timing.made_up import made_up_batch
from hmrcompress_cli.main import app

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

pytestmark = pytest.mark.usefixtures("graphs")

BLOCKS, HEAD_LAYERS = tiny.SHALLOW.depth, tiny.SHALLOW.head_depth
OURS = "com.microsoft:"
INTEGER_PRODUCTS = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul")


@pytest.fixture(scope="module")
def network() -> HMR2:
    return with_token_merging(tiny.network(config=tiny.SHALLOW), MERGED).eval()


@pytest.fixture(scope="module")
def batch() -> FrameBatch:
    return made_up_batch(tiny.CONFIG, 5)


@pytest.fixture(scope="module")
def other() -> FrameBatch:
    """Crops that no comparison of the room's own saw, at a batch size that it did not try."""
    made = made_up_batch(tiny.CONFIG, 3)
    return replace(made, images=torch.randn(made.images.shape, generator=torch.Generator().manual_seed(5)))


@pytest.fixture(scope="module")
def in_float32(network: HMR2, batch: FrameBatch, tiny_body: BodyModel) -> Iterator[RuntimeNetwork]:
    with runtime_network(network, batch, tiny_body, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def in_int8(network: HMR2, batch: FrameBatch, tiny_body: BodyModel) -> Iterator[RuntimeNetwork]:
    """With weights in files of their own, as those of large networks are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "SINGLE_FILE_BYTES", 1000)
        with runtime_network(network, batch, tiny_body, dtype=torch.bfloat16, int8=True, threads=1) as opened:
            yield opened


def outputs(opened: RuntimeNetwork, batch: FrameBatch) -> dict[str, np.ndarray]:
    """Through the binding that is timed."""
    binding: Any = opened.runner(batch)(batch)
    return dict(zip(OUTPUTS, binding.copy_outputs_to_cpu(), strict=True))


def gap(opened: RuntimeNetwork, network: HMR2, batch: FrameBatch) -> float:
    """The largest difference of any output from torch in float32."""
    with torch.no_grad():
        expected = network(*batch.inputs())
    found = outputs(opened, batch)
    return max(float(np.abs(found[name] - getattr(expected, name).numpy()).max()) for name in OUTPUTS)


def test_the_optimised_graph_computes_what_torch_computes(
    network: HMR2, in_float32: RuntimeNetwork, batch: FrameBatch, other: FrameBatch
) -> None:
    assert gap(in_float32, network, other) < network_bound(network, network(*other.inputs()))
    assert in_float32.parity.max_abs_diff < network_bound(
        network, network(*batch.inputs())
    ) and in_float32.parity.batch_sizes == (1, 5)


def test_inputs_in_another_dtype_and_without_a_person(
    network: HMR2, in_float32: RuntimeNetwork, other: FrameBatch
) -> None:
    half = replace(other, images=other.images.half())
    bound = network_bound(network, network(*other.inputs()))
    assert gap(in_float32, network, replace(half, images=half.images.float())) < bound
    np.testing.assert_array_equal(
        outputs(in_float32, half)["betas"], outputs(in_float32, replace(half, images=half.images.float()))["betas"]
    )
    nobody = replace(other, person_mask=None)
    assert gap(in_float32, network, nobody) < bound


def test_attention_and_norms_are_fused(in_float32: RuntimeNetwork) -> None:
    """Every attention: one a block, and in the head's layers one to itself and one to the tokens."""
    nodes = in_float32.nodes
    assert in_float32.graph == "fused" and in_float32.refused is None
    assert nodes[f"{OURS}MultiHeadAttention"] == BLOCKS + 2 * HEAD_LAYERS and "Softmax" not in nodes
    assert nodes[f"{OURS}BiasGelu"] == BLOCKS + HEAD_LAYERS and "Gelu" not in nodes
    assert nodes[f"{OURS}SkipLayerNormalization"] >= BLOCKS
    assert set(in_float32.products) == {"float"}
    figures = in_float32.to_json()
    assert figures["version"] == onnxruntime.__version__ and figures["providers"] == ["CPUExecutionProvider"]
    assert figures["threads"] == in_float32.network.session.get_session_options().intra_op_num_threads == 1


@pytest.mark.slow
def test_int8_is_in_integers_and_near(network: HMR2, in_int8: RuntimeNetwork, other: FrameBatch) -> None:
    """Four linear layers of every block, none of the head's; tens of times nearer than the outputs are large."""
    assert in_int8.dtype == "int8" and in_int8.graph == "fused"
    assert sum(count for name, count in in_int8.nodes.items() if name.endswith(INTEGER_PRODUCTS)) == 4 * BLOCKS
    weights = "int8" if has_exact_int8() else "uint8"
    assert in_int8.products[weights] == 4 * BLOCKS and in_int8.products["float"] > HEAD_LAYERS
    wanted = network(*other.inputs())
    assert network_bound(network, wanted) < gap(in_int8, network, other) < int8_bound(network, wanted)
    assert in_int8.parity.max_abs_diff < int8_bound(network, wanted)


def test_8_bits_saturate_where_told() -> None:
    """The product of the largest numbers that the quantiser makes, in the form that its graphs have, is exact with
    signed weights where that is said, and with unsigned ones everywhere."""
    x, exact = np.full((20, 64), 255, np.uint8), 64 * 255 * 127
    for dtype, right in ((np.int8, has_exact_int8()), (np.uint8, True)):
        weight = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
            "largest",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [20, 64])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [20, 24])],
            [onnx.numpy_helper.from_array(np.full((64, 24), 127, dtype), "weight")],
        )
        model = onnx.helper.make_model(weight, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
        found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
        assert bool((found == exact).all()) == right


@pytest.mark.slow
def test_float16_is_told_from_what_is_computed(network: HMR2, batch: FrameBatch, tiny_body: BodyModel) -> None:
    with runtime_network(network, batch, tiny_body, dtype=torch.float16, threads=1) as opened:
        assert opened.dtype == "float16" and opened.parity.median is not None
        assert 0 < opened.parity.median.max_abs_diff < HALF_ABS
        # The processors' kernels are float32: onnxruntime widens the weights when it opens the file.
        assert set(opened.products) <= {"float", "float16"}


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_not_used(
    network: HMR2, batch: FrameBatch, other: FrameBatch, tiny_body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir

    def spoil(program: Any) -> dict[str, int]:
        value = program.model.graph.initializers["network.backbone.patch_embed.proj.weight"]
        value.const_value = onnx_ir.tensor(np.ones(value.shape.numpy(), np.float32))
        return {"spoilt": 1}

    monkeypatch.setattr(room, "_fuse", spoil)
    with runtime_network(network, batch, tiny_body, threads=1) as opened:
        assert opened.graph == "plain" and opened.fused == {} and "differs from torch" in str(opened.refused)
        assert gap(opened, network, other) < network_bound(network, network(*other.inputs()))


@pytest.mark.slow
def test_no_graph_is_used_that_is_wrong_without_fusions(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_network = tiny.network(seed=3)
    real = exporting.traced_graph
    monkeypatch.setattr(room, "traced_graph", lambda _, batch: real(other_network, batch))
    with (
        pytest.raises(HMRCompressError, match="differs from torch"),
        runtime_network(network, batch, tiny_body, threads=1),
    ):
        pass


def test_what_is_refused(network: HMR2, batch: FrameBatch, tiny_body: BodyModel, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="bfloat16.*float32, float16 or int8"),
        runtime_network(network, batch, tiny_body, dtype=torch.bfloat16),
    ):
        pass
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(UserError, match="--device: .*onnxruntime-gpu"):
            open_session(tmp_path / "none.onnx", device="cuda:0")


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--device", "cpu")])


@pytest.mark.slow
def test_the_command(tiny_model: Path, tmp_path: Path, tiny_body_file: Path) -> None:
    file = tmp_path / "b.json"
    done = hmr(
        "bench", "--against", tiny_model, "--layers", 3, "--keep-tokens", 100, "--set", "bench.runtime=onnxruntime",
        "--batch-sizes", "1,2", "--rounds", 3, "--threads", 1, "--no-memory", "--body", tiny_body_file, "--json", file,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    measured = json.loads(file.read_text())["bench"]
    for size in ("1", "2"):
        found, torch_found = measured["batch_sizes"][size]["onnxruntime"], measured["batch_sizes"][size]["network"]
        assert set(found) == {
            "fps", "fps_quartiles", "speedup", "speedup_quartiles", "over_torch", "over_torch_quartiles",
        }  # fmt: skip
        assert found["fps_quartiles"][0] <= found["fps"] <= found["fps_quartiles"][1]
        assert set(torch_found["fps"]) == {"before", "after"}
    how = measured["onnxruntime"]
    assert how["graph"] == "fused" and how["threads"] == 1 and how["dtype"] == "float32"
    attentions = 3 + 2 * tiny.CONFIG.head_depth
    assert how["nodes"][f"{OURS}MultiHeadAttention"] == attentions and how["parity"]["max_abs_diff"] < MAX_ABS
    assert f"tiny, cut in onnxruntime {onnxruntime.__version__}, CPU: float32" in done.stdout
    assert f"{attentions} MultiHeadAttention" in done.stdout and "over torch" in done.stdout


def test_what_the_command_refuses(tiny_model: Path, tmp_path: Path) -> None:
    cut = ("bench", tiny_model, "--layers", 2, "--set", "bench.runtime=onnxruntime", "--no-memory")
    for arguments, sentence in {
        (*cut, "--dtype", "bfloat16"): "--dtype: got bfloat16",
        (*cut, "--set", "bench.buckets=auto"): "bench.runtime=onnxruntime: takes part neither",
        ("bench", "--suite", "benchmarks", "-o", tmp_path, "--set", "bench.runtime=onnxruntime"): "takes part neither",
        (
            "bench",
            tiny_model,
            "--set",
            "bench.decoder=starter",
            "--set",
            "bench.runtime=onnxruntime",
        ): "no compressed network",
        ("bench", tiny_model, "--set", "bench.runtime=onnxruntime"): "nothing is merged",
    }.items():
        done = hmr(*arguments)
        assert done.exit_code == 2 and sentence in done.stderr, (arguments, done.output)
