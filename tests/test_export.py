"""ONNX files equal the network they came from at any batch size, or do not come into being."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting import onnx as exporting
from hmrcompress.exporting.parity import MAX_ABS, OnnxNetwork, Parity, measure
from hmrcompress.io.hashes import sha256_file
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.network import HMR2
from hmrcompress.plan import TokenSettings
from hmrcompress.records import FrameBatch

pytest.importorskip("onnxruntime")
TOKENS = TokenSettings(keep=90, per_layer=40)


@pytest.fixture(scope="module")
def batch(tiny_crops: CropSet) -> FrameBatch:
    return next(iter(tiny_crops.batches(batch_size=8, masks=DataMasks())))


@pytest.fixture(scope="module", params=[None, TOKENS], ids=["all tokens", "merged tokens"])
def network(request: pytest.FixtureRequest, tiny_network: HMR2) -> HMR2:
    return with_token_merging(tiny_network, request.param)


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
                ("global_orient", "body_pose", "betas", "cam"),
                session.run(None, {name: given[name] for name in names}),
                strict=True,
            )
        )
        with torch.no_grad():
            expected = network(images, mask)
        for name, values in outputs.items():
            np.testing.assert_allclose(values, getattr(expected, name).numpy(), atol=1e-4)


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
    assert sorted(file.name for file in exported.path.parent.iterdir()) == ["model.onnx", "model.onnx.json"]


def test_large_weights_go_to_a_file_of_their_own(
    tiny_network: HMR2, batch: FrameBatch, tiny_body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "SINGLE_FILE_BYTES", 1000)
    made = exporting.export_onnx(tiny_network, tmp_path / "big.onnx", batch, tiny_body)
    assert {file.name for file in tmp_path.iterdir()} == {"big.onnx", "big.onnx.data", "big.onnx.json"}
    assert made.size_bytes == sum((tmp_path / name).stat().st_size for name in ("big.onnx", "big.onnx.data"))
    assert measure(tiny_network, OnnxNetwork(made.path), batch, tiny_body).max_abs_diff < MAX_ABS


def test_parity_sees_a_changed_network(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, exported: exporting.OnnxExport
) -> None:
    """A root turned by 0.01 rad: 0.01 in the outputs, and joints move by that angle times their distance."""
    assert exported.parity.max_abs_diff < 1e-5 and exported.parity.joints_mm < 0.01
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
            exporting.export_onnx(network, tmp_path / name, batch, tiny_body)
    assert {file.name for file in tmp_path.iterdir()} == {"good.onnx", "good.onnx.json", "old.onnx"}
    assert (tmp_path / "old.onnx").read_text() == "what was there before"


def test_bounds_are_strict_and_nan_breaks_them() -> None:
    Parity(0.9e-3, 0.09, 5, (1,)).require("f")
    for parity in (Parity(1e-3, 0.0, 5, (1,)), Parity(0.0, 0.1, 5, (1,)), Parity(float("nan"), 0.0, 5, (1,))):
        with pytest.raises(HMRCompressError, match="differs from torch"):
            parity.require("f")


@pytest.mark.usefixtures("quick")
def test_wrong_requests_are_refused(network: HMR2, batch: FrameBatch, tiny_body: BodyModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"end in \.onnx"):
        exporting.export_onnx(network, tmp_path / "model.pt", batch, tiny_body)
    with pytest.raises(UserError, match="expected float32"):
        exporting.export_onnx(copy.deepcopy(network).double(), tmp_path / "model.onnx", batch, tiny_body)
    with pytest.raises(UserError, match="at batch 5 needs"):
        exporting.export_onnx(network, tmp_path / "model.onnx", replace(batch, images=batch.images[:4]), tiny_body)
    assert list(tmp_path.iterdir()) == []
