"""ONNX files equal the network they came from at any batch size, or do not come into being."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from bounds import network_bound
from traced import MERGED

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting import onnx as exporting
from hmrcompress.exporting.onnx import traced_graph
from hmrcompress.exporting.parity import MAX_ABS, Difference, OnnxNetwork, Parity, measure
from hmrcompress.io.hashes import sha256_file
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.network import HMR2
from hmrcompress.plan import DropBackground, TokenSettings
from hmrcompress.records import FrameBatch

pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture(scope="module")
def batch(tiny_crops: CropSet) -> FrameBatch:
    return next(iter(tiny_crops.batches(batch_size=8, masks=DataMasks())))


HALF = torch.float16
DROPPED = TokenSettings(attention_bias=True, drop_background=DropBackground())


@pytest.fixture(scope="module")
def plain() -> HMR2:
    return tiny.network(config=tiny.SHALLOW)


@pytest.fixture(
    scope="module",
    # Without tokens to merge it is quick in `test_large_weights_go_to_a_file_of_their_own`, dropping in
    # `test_half_precision`.
    params=[pytest.param(None, marks=pytest.mark.slow), MERGED, pytest.param(DROPPED, marks=pytest.mark.slow)],
    ids=["all tokens", "merged tokens", "dropped background"],
)
def network(request: pytest.FixtureRequest, plain: HMR2) -> HMR2:
    return with_token_merging(plain, request.param)


@pytest.fixture(scope="module")
def exported(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, tmp_path_factory: pytest.TempPathFactory
) -> exporting.OnnxExport:
    path = tmp_path_factory.mktemp("onnx") / "deep" / "model.onnx"
    return exporting.export_onnx(network, path, batch, tiny_body, about={"model": "tiny"})


def test_the_file_computes_what_the_network_computes(
    network: HMR2, batch: FrameBatch, exported: exporting.OnnxExport
) -> None:
    """At batch sizes that neither the export nor its own check used, with raw onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    assert names == (["images"] if network.backbone.reducer is None else ["images", "person_mask"])
    for rows in (slice(0, 3), slice(1, 8), slice(4, 5)):
        assert batch.person_mask is not None
        images, mask = batch.images[rows], batch.person_mask[rows]
        given = {"images": images.numpy(), "person_mask": mask.numpy()}
        outputs = dict(
            zip(
                ("global_orient", "body_pose", "betas", "cam", "features"),
                session.run(None, {name: given[name] for name in names}),
                strict=True,
            )
        )
        with torch.no_grad():
            expected = network(images, mask)
        for name, values in outputs.items():
            apart = np.abs(values - getattr(expected, name).numpy()).max()
            assert apart < network_bound(network, expected), name


def test_the_mask_reaches_the_graph(network: HMR2, batch: FrameBatch, exported: exporting.OnnxExport) -> None:
    run = OnnxNetwork(exported.path)
    with_people, without = run(batch.images, batch.person_mask), run(batch.images, None)
    moved = (with_people["body_pose"] - without["body_pose"]).abs().max()
    assert (moved > 1e-6) == (network.backbone.reducer is not None)


def test_the_contract_beside_the_file(network: HMR2, exported: exporting.OnnxExport) -> None:
    contract = json.loads(exported.contract.read_text())
    assert exported.contract.name == "model.onnx.json"
    assert contract["model"] == "tiny" and contract["parity"]["batch_sizes"] == [1, 5]
    assert contract["parity"]["crops"] == 8
    assert contract["files"]["model.onnx"]["sha256"] == sha256_file(exported.path)
    assert contract["inputs"]["images"]["shape"] == ["B", 3, 256, 192]
    assert ("person_mask" in contract["inputs"]) == (network.backbone.reducer is not None)
    assert contract["outputs"]["body_pose"]["shape"] == ["B", 23, 3, 3]
    names = {"model.onnx", "model.onnx.json", "model.onnx.golden.npz"}
    assert {file.name for file in exported.path.parent.iterdir()} == names
    assert contract["dtype"] == "float32" and contract["golden"] == exported.golden.name == "model.onnx.golden.npz"
    assert set(contract["files"]) == names - {"model.onnx.json"}


def test_golden_tensors_check_a_file_without_torch(network: HMR2, exported: exporting.OnnxExport) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    with np.load(exported.golden) as golden:
        given = {each.name: golden[each.name] for each in session.get_inputs()}
        outputs = {each.name: golden[each.name] for each in session.get_outputs()}
        assert set(golden.files) == set(given) | set(outputs) and len(golden["images"]) == 2
    for name, values in zip(outputs, session.run(list(outputs), given), strict=True):
        assert np.abs(values - outputs[name]).max() < network_bound(network, torch.from_numpy(outputs["features"])), (
            name
        )


def test_large_weights_go_to_a_file_of_their_own(
    plain: HMR2, batch: FrameBatch, tiny_body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "SINGLE_FILE_BYTES", 1000)
    made = exporting.export_onnx(plain, tmp_path / "big.onnx", batch, tiny_body)
    names = {"big.onnx", "big.onnx.data", "big.onnx.json", "big.onnx.golden.npz"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert made.size_bytes == sum((tmp_path / name).stat().st_size for name in ("big.onnx", "big.onnx.data"))
    assert measure(plain, OnnxNetwork(made.path), batch, tiny_body).max_abs_diff < MAX_ABS


def test_parity_sees_a_changed_network(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, exported: exporting.OnnxExport
) -> None:
    """A root turned by 0.01 rad: 0.01 in the outputs, and joints move by that angle times their distance."""
    bound = network_bound(network, network(batch.images, batch.person_mask))
    # Joints lie up to a metre or two from the root, and everything on the way may turn by the bound.
    assert exported.parity.max_abs_diff < bound and exported.parity.joints_mm < 2000 * bound
    turned = torch.tensor([[0.99995, -0.0099998, 0], [0.0099998, 0.99995, 0], [0, 0, 1.0]])
    run = OnnxNetwork(exported.path)

    def off(images: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        outputs = run(images, mask)
        return outputs | {"global_orient": turned @ outputs["global_orient"]}

    seen = measure(network, off, batch, tiny_body)  # type: ignore[arg-type]
    assert 0.001 < seen.max_abs_diff < 0.02 and 1.0 < seen.joints_mm < 20.0


@pytest.fixture
def quick(exported: exporting.OnnxExport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the file that was exported before for the graph, which saves the seconds of tracing it again."""
    monkeypatch.setattr(exporting, "_write_graph", lambda network, path, batch: shutil.copy(exported.path, path))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [float("nan"), 1.0])
def test_a_file_that_differs_leaves_nothing_behind(
    fault: float,
    network: HMR2,
    batch: FrameBatch,
    tiny_body: BodyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporting.export_onnx(network, tmp_path / "good.onnx", batch, tiny_body)
    (tmp_path / "old.onnx").write_text("what was there before")
    honest = OnnxNetwork.__call__

    def broken(self: OnnxNetwork, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: values + fault for name, values in honest(self, *args).items()}

    monkeypatch.setattr(OnnxNetwork, "__call__", broken)
    for name in ("old.onnx", "new.onnx"):
        with pytest.raises(HMRCompressError, match="nothing was written"):
            exporting.export_onnx(network, tmp_path / name, batch, tiny_body, overwrite=True)
    good = {"good.onnx", "good.onnx.json", "good.onnx.golden.npz"}
    assert {file.name for file in tmp_path.iterdir()} == good | {"old.onnx"}
    assert (tmp_path / "old.onnx").read_text() == "what was there before"


def test_half_precision(batch: FrameBatch, tiny_body: BodyModel, tmp_path: Path) -> None:
    """Half the bytes, float32 at both ends, and outputs that differ by rounding."""
    import onnx

    config = replace(tiny.SHALLOW, depth=1)
    network = with_token_merging(tiny.network(config=config), DROPPED)
    made = exporting.export_onnx(network, tmp_path / "half.onnx", batch, tiny_body, dtype=torch.float16)
    graph = onnx.load(made.path).graph
    kinds = [tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2]
    products = 4 * config.depth + 7 * config.head_depth
    assert kinds.count(onnx.TensorProto.FLOAT16) >= products and kinds.count(onnx.TensorProto.FLOAT) <= 6
    ends = [each for each in (*graph.input, *graph.output) if each.name != "person_mask"]
    assert {each.type.tensor_type.elem_type for each in ends} == {onnx.TensorProto.FLOAT}
    bounds = [
        network_bound(network, network(batch.images, batch.person_mask), dtype) for dtype in (torch.float32, HALF)
    ]
    assert bounds[0] < made.parity.max_abs_diff < bounds[1] and made.parity.median is not None
    assert json.loads(made.contract.read_text())["dtype"] == "float16"


def test_bounds_of_half_precision_look_at_the_median() -> None:
    """One crop of five may differ by a choice between tokens; most of them, or a NaN, may not."""
    crops = (5, (1,))
    Parity(0.5, 30.0, *crops, Difference(1e-3, 0.5)).require("f", torch.float16)
    for parity in (
        Parity(0.5, 30.0, *crops, Difference(0.02, 0.5)),
        Parity(0.5, 30.0, *crops, Difference(1e-3, 3.0)),
        Parity(float("nan"), 30.0, *crops, Difference(1e-3, 0.5)),
    ):
        with pytest.raises(HMRCompressError, match="differs from torch"):
            parity.require("f", torch.float16)
    with pytest.raises(HMRCompressError, match="allowed are 0.001 and 0.1 mm"):
        Parity(0.5, 30.0, *crops, Difference(1e-4, 0.01)).require("f")


def test_bounds_are_strict_and_nan_breaks_them() -> None:
    Parity(0.9e-3, 0.09, 5, (1,)).require("f")
    for parity in (Parity(1e-3, 0.0, 5, (1,)), Parity(0.0, 0.1, 5, (1,)), Parity(float("nan"), 0.0, 5, (1,))):
        with pytest.raises(HMRCompressError, match="differs from torch"):
            parity.require("f")


@pytest.mark.parametrize("fixed", ["2", 2])
def test_a_graph_for_one_number_of_crops_is_refused(
    plain: HMR2, batch: FrameBatch, monkeypatch: pytest.MonkeyPatch, fixed: str | int
) -> None:
    """torch 2.6 names the batch so where tokens are merged, and the graph fails for every other number."""
    images = SimpleNamespace(shape=[fixed, 3, 256, 192])
    program = SimpleNamespace(model=SimpleNamespace(graph=SimpleNamespace(inputs=[images])))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    with pytest.raises(UserError, match="graph for 2 crops at a time only. Install a newer torch"):
        traced_graph(plain, batch)


@pytest.mark.usefixtures("quick")
def test_wrong_requests_are_refused(network: HMR2, batch: FrameBatch, tiny_body: BodyModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"end in \.onnx"):
        exporting.export_onnx(network, tmp_path / "model.pt", batch, tiny_body)
    with pytest.raises(UserError, match="expected float32"):
        exporting.export_onnx(copy.deepcopy(network).double(), tmp_path / "model.onnx", batch, tiny_body)
    with pytest.raises(UserError, match="at batch 5 needs"):
        exporting.export_onnx(network, tmp_path / "model.onnx", replace(batch, images=batch.images[:4]), tiny_body)
    with pytest.raises(UserError, match="got bfloat16, expected float32 or float16"):
        exporting.export_onnx(network, tmp_path / "model.onnx", batch, tiny_body, dtype=torch.bfloat16)
    assert list(tmp_path.iterdir()) == []
