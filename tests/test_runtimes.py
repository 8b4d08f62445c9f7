"""Folders of exported networks: what a runtime gives is what torch gives, and the folder is a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from bounds import network_bound
from traced import MERGED
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress.api import export as api_export
from hmrcompress.api.opening import load
from hmrcompress.api.predict import pipeline_reader
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting import folder as exporting
from hmrcompress.exporting.folder import MAIN, ExportedFolder, export_folder, read_export_folder
from hmrcompress.exporting.opened import open_exported
from hmrcompress.exporting.rival import rival_of
from hmrcompress.exporting.runtimes.coreml import in_known_operators
from hmrcompress.exporting.runtimes.registry import RUNTIMES, require_precision
from hmrcompress.exporting.runtimes.runtime import Compiled, Source
from hmrcompress.exporting.runtimes.tensorrt import layer_norms
from hmrcompress.io.seals import sealed_json
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.plan import CheckpointRef, Plan, trivial_groups
from hmrcompress.records import FrameBatch
from hmrcompress.timing.bench import BenchSettings
from hmrcompress_cli.main import app

pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("graphs")

HERE = [name for name in ("onnx", "openvino") if name == "onnx" or __import__("importlib").util.find_spec("openvino")]


@pytest.fixture(scope="module")
def batch(tiny_crops: CropSet) -> FrameBatch:
    return next(iter(tiny_crops.batches(batch_size=6, masks=DataMasks())))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    made = tiny.network(config=tiny.SHALLOW)
    plan = Plan(
        checkpoint=CheckpointRef(family="hmr2", sha256="0" * 64, layers=2), groups=trivial_groups(2), tokens=MERGED
    )
    return Checkpoint(made, "hmr2", "tiny", plan=plan, known_sha256="0" * 64, body="tiny", source={"a": 1})


@pytest.fixture(scope="module")
def network(checkpoint: Checkpoint) -> HMR2:
    return with_token_merging(checkpoint.network, MERGED).eval()


@pytest.fixture(scope="module")
def graph(network: HMR2, batch: FrameBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traced once for all tests: that takes the seconds."""
    path = tmp_path_factory.mktemp("graph") / "network.onnx"
    Source(network, batch).write_onnx(path)
    return path


@pytest.fixture
def quick(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "write_onnx", lambda self, path, precision="float32": shutil.copy(graph, path))


@pytest.fixture(scope="module", params=HERE)
def exported(
    request: pytest.FixtureRequest,
    graph: Path,
    network: HMR2,
    batch: FrameBatch,
    tiny_body: BodyModel,
    checkpoint: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportedFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "write_onnx", lambda self, path, precision="float32": shutil.copy(graph, path))
        path = tmp_path_factory.mktemp("exported") / request.param
        return export_folder(network, path, batch, tiny_body, checkpoint, runtime=request.param)


def write(network: HMR2, path: Path, batch: FrameBatch, body: BodyModel, checkpoint: Checkpoint, **more: Any) -> Any:
    return export_folder(network, path, batch, body, checkpoint, **({"runtime": "onnx"} | more))


def test_a_runtime_gives_what_torch_gives(network: HMR2, batch: FrameBatch, exported: ExportedFolder) -> None:
    """Through the folder as it was read, at batches that the export did not compare; as near as rounding allows."""
    opened = open_exported(exported.path)
    assert opened.exported is not None
    for rows in (slice(0, 3), slice(2, 6)):
        images, mask = batch.images[rows], batch.person_mask[rows]  # type: ignore[index]
        with torch.no_grad():
            expected = network(images, mask)
        found = opened.exported(images, mask)
        for name in ("global_orient", "body_pose", "betas", "cam", "features"):
            gap = (getattr(found, name) - getattr(expected, name)).abs().max()
            assert gap < network_bound(network, expected), name
    without = opened.exported(images, None)
    assert (without.body_pose - expected.body_pose).abs().max() > 1e-6  # the mask reaches the graph


def test_the_folder_says_what_it_is(exported: ExportedFolder, checkpoint: Checkpoint, network: HMR2) -> None:
    names = {each.name for each in exported.path.iterdir()}
    files = {"onnx": {"network.onnx"}, "openvino": {"network.xml", "network.bin"}}[exported.config.runtime]
    assert names == files | {"export.json", "golden.npz", "plan.yaml", "README.md"}
    assert set(exported.config.files) == names - {MAIN}
    assert exported.size_bytes == sum((exported.path / name).stat().st_size for name in files)
    assert not exported.config.exact_int8, "it has none"
    assert exported.plan == checkpoint.plan and exported.network == checkpoint.config
    parity = exported.config.parity
    assert parity is not None and parity["batch_sizes"] == [1, 5] and parity["crops"] == 6
    assert set(exported.config.inputs) == {"images", "person_mask"} and exported.config.precision == "float32"
    card = (exported.path / "README.md").read_text()
    assert f"{parity['joints_mm']:.2g} mm" in card and exported.config.main in card
    mean, expected = exported.mean, network.head.mean_params()
    assert torch.equal(mean.body_pose, expected.body_pose) and torch.equal(mean.betas, expected.betas)


def test_golden_tensors_are_what_torch_gives(network: HMR2, exported: ExportedFolder) -> None:
    with np.load(exported.path / "golden.npz") as golden:
        given = {name: golden[name] for name in ("images", "person_mask")}
        opened = open_exported(exported.path).exported
        assert opened is not None
        found = opened(*map(torch.from_numpy, given.values()))
        for name in ("body_pose", "features"):
            gap = np.abs(getattr(found, name).numpy() - golden[name]).max()
            assert gap < network_bound(network, torch.from_numpy(golden["features"])), name


def test_eval_scores_an_exported_network_as_its_own(
    exported: ExportedFolder, checkpoint: Checkpoint, tiny_crops: CropSet, tiny_body: BodyModel
) -> None:
    """The stage `exported` is `merged_tokens` of the model in torch, but for rounding: micrometres."""
    options: dict[str, Any] = {"body": tiny_body, "limit": 8, "device": "cpu"}
    found = hc.evaluate(exported.path, tiny_crops, **options).stages
    expected = hc.evaluate(checkpoint, tiny_crops, **options).stages
    assert list(found) == ["mean_pose", "exported"]
    for name, other in (("mean_pose", "mean_pose"), ("exported", "merged_tokens")):
        assert abs(found[name].mpjpe_mm - expected[other].mpjpe_mm) < 1e-3, name
    for more, fault in (
        ({"dtype": torch.bfloat16}, "is an exported network, which runs in float32"),
        ({"path": RunPath(fast=True)}, "Leave --fast"),
        ({"buckets": (90,)}, "Leave buckets out"),
        ({"masks": "self"}, "merges tokens by a mask from outside"),
    ):
        with pytest.raises(UserError, match=fault):
            hc.evaluate(exported.path, tiny_crops, **options, **more)


def test_pictures_are_read_by_an_exported_network(
    exported: ExportedFolder, network: HMR2, batch: FrameBatch, tiny_body: BodyModel
) -> None:
    model = load(exported.path, exported=True)
    reader = pipeline_reader(model, "none", tiny_body, "cpu")
    found = reader.outputs(replace(batch, person_mask=None))
    with torch.no_grad():
        expected = network(batch.images, None)
    assert (found.body_pose - expected.body_pose).abs().max() < network_bound(network, expected)
    with pytest.raises(UserError, match="Give --masks auto, files:DIR"):
        pipeline_reader(model, "self", tiny_body, "cpu")


def test_bench_lets_an_exported_network_take_its_turns(
    exported: ExportedFolder, tiny_body: BodyModel, tiny_body_file: Path, tmp_path: Path
) -> None:
    settings = BenchSettings(batch_sizes=(2,), rounds=1, warmup=0, memory=False)
    figures = hc.bench(exported.path, body=tiny_body, settings=settings, device="cpu").to_json()
    name = exported.config.runtime
    assert figures["bench"]["batch_sizes"]["2"][name]["fps"] > 0
    assert figures["bench"][name]["parity"]["joints_mm"] < 0.1
    assert figures["bench"]["names"] == {"before": "random weights", "after": str(exported.path)}
    assert figures["tokens"]["after"] == 90 and figures["tokens"]["before"] == 192
    with pytest.raises(UserError, match="not exported yet"):
        hc.bench(exported.path, body=tiny_body, runtime="openvino", settings=settings)
    line = ["bench", exported.path, "--body", tiny_body_file, "--batch-sizes", 1, "--rounds", 1, "--no-memory"]
    done = CliRunner().invoke(app, [str(each) for each in (*line, "--device", "cpu", "--json", tmp_path / "b.json")])
    assert done.exit_code == 0, done.output
    assert name in json.loads((tmp_path / "b.json").read_text())["bench"] and name in done.output


def test_what_needs_weights_refuses_an_exported_network(exported: ExportedFolder, tmp_path: Path) -> None:
    for command in (
        ["inspect", str(exported.path)],
        ["export", str(exported.path), "-o", str(tmp_path / "again")],
        ["search", str(exported.path), "-o", str(tmp_path / "plan.yaml")],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2 and "no weights to work on. predict, profile, eval and bench" in result.stderr


class Elsewhere:
    """A runtime that does not run on this machine."""

    name, extra, precisions, writes = "elsewhere", "elsewhere", ("float32",), ("network.bin",)

    def check(self, precision: str) -> None:
        pass

    def compile(self, source: Source, folder: Path, precision: str) -> Compiled:
        (folder / "network.bin").write_bytes(b"made")
        return Compiled("network.bin", prepared="there is none here", lines=("type this",))

    def run(self, path: Path, precision: str, *, threads: int, cuda: bool = False) -> Any:
        raise AssertionError("it does not run here")


def test_what_cannot_run_here_is_prepared_and_says_so(
    network: HMR2,
    batch: FrameBatch,
    tiny_body: BodyModel,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RUNTIMES, "elsewhere", Elsewhere())
    made = write(network, tmp_path / "made", batch, tiny_body, checkpoint, runtime="elsewhere")
    assert made.config.parity is None and made.config.prepared == "there is none here"
    card = (made.path / "README.md").read_text()
    assert "prepared, not run" in card and "type this" in card and "mm" not in card.split("```")[0].split("golden")[0]


@pytest.mark.usefixtures("quick")
def test_tensorrt_gets_fixed_shapes_and_its_exact_line(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import onnx

    made = write(network, tmp_path / "made", batch, tiny_body, checkpoint, runtime="tensorrt", batch_sizes=(1, 4))
    for size in (1, 4):
        graph = onnx.load(made.path / f"network.b{size}.onnx").graph
        shapes = [[side.dim_value for side in each.type.tensor_type.shape.dim] for each in graph.input]
        assert shapes == [[size, 3, 256, 192], [size, 16, 12]]
        outputs = {each.name: each.type.tensor_type.shape.dim[0].dim_value for each in graph.output}
        assert outputs == dict.fromkeys(("global_orient", "body_pose", "betas", "cam", "features"), size)
    assert made.config.lines[1] == "trtexec --onnx=network.b4.onnx --saveEngine=network.b4.plan --stronglyTyped"
    norms = 2 * tiny.SHALLOW.depth + 1 + 3 * tiny.SHALLOW.head_depth
    assert made.config.about["layer_norms_in_float32"] == norms
    parity = made.config.parity  # 6 crops at batch 4: the second file is filled up
    assert parity is not None and parity["joints_mm"] < 0.1 and "not tensorrt" in parity["through"]
    assert made.config.prepared and "prepared, not run" in (made.path / "README.md").read_text()
    opened = open_exported(made.path).exported
    assert opened is not None
    with pytest.raises(UserError, match="is prepared for TensorRT, whose engines hmrcompress does not run"):
        opened(batch.images[:1], None)


def test_layer_norms_in_16_bits_are_refused(graph: Path) -> None:
    import onnx

    model = onnx.load(graph)
    assert layer_norms(model) > 0
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    kept = [each for each in norm.attribute if each.name != "stash_type"]
    del norm.attribute[:]
    norm.attribute.extend([*kept, onnx.helper.make_attribute("stash_type", onnx.TensorProto.FLOAT16)])
    with pytest.raises(HMRCompressError, match="does not compute in float32"):
        layer_norms(model)


class Odd(torch.nn.Module):
    """What coremltools has no operator for."""

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        low, high = x < 0.2, x > 0.8
        told = (low | high).gather(1, places) & (places > 1)
        return torch.where(told, x.gather(1, places), -1.0) + told.sum(1, keepdim=True)


def test_operators_that_core_ml_has_compute_the_same() -> None:
    random = torch.Generator().manual_seed(0)
    x, places = torch.rand(1, 9, generator=random), torch.randint(0, 9, (1, 5), generator=random)
    program = torch.export.export(Odd(), (x, places)).run_decompositions({})
    names = {str(node.target) for node in program.graph.nodes}
    assert {"aten.__and__.Tensor", "aten.__or__.Tensor", "aten.where.ScalarOther"} <= names
    changed = in_known_operators(program)
    names = {str(node.target) for node in changed.graph.nodes}
    assert not {"aten.__and__.Tensor", "aten.__or__.Tensor", "aten.where.ScalarOther"} & names
    for node in changed.graph.nodes:
        assert (
            node.op != "call_function"
            or "gather" not in str(node.target)
            or (node.args[0].meta["val"].dtype != torch.bool)
        )
    for _ in range(3):
        assert torch.equal(changed.module()(x, places), Odd()(x, places))
        x = torch.rand(1, 9, generator=random)


@pytest.mark.slow
def test_core_ml_packages_have_the_structure_of_the_network(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    pytest.importorskip("coremltools")
    made = write(network, tmp_path / "made", batch, tiny_body, checkpoint, runtime="coreml")
    told = made.config.about["structure"]
    assert told["inputs"] == {"images": [1, 3, 256, 192], "person_mask": [1, 16, 12]}
    assert told["outputs"]["body_pose"] == [1, 23, 3, 3] and told["operators"] > 100
    assert made.config.parity is None and made.config.main == "network.mlpackage"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [float("nan"), 1.0])
def test_what_differs_is_not_written(
    fault: float,
    network: HMR2,
    batch: FrameBatch,
    tiny_body: BodyModel,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hmrcompress.exporting.runtimes.helper import HelperNetwork

    honest = HelperNetwork.__call__

    def broken(self: HelperNetwork, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array + np.float32(fault) for name, array in honest(self, given).items()}

    monkeypatch.setattr(HelperNetwork, "__call__", broken)
    with pytest.raises(HMRCompressError, match="nothing was written"):
        write(network, tmp_path / "made", batch, tiny_body, checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_no_other_device_runs_in_the_place_of_cuda(graph: Path) -> None:
    """onnxruntime without CUDA would run on the CPU, and everybody would be told cuda."""
    from hmrcompress.exporting.runtimes.helper import HelperNetwork

    with pytest.raises(UserError, match=r"--device: the installed onnxruntime [\d.]+ cannot run on CUDA"):
        HelperNetwork(graph, engine="onnxruntime", threads=1, cuda=True)


def test_a_rival_runs_where_the_others_do(exported: ExportedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_exported(exported.path)
    assert opened.exported is not None
    moved: list[Any] = []
    monkeypatch.setattr(type(opened.exported), "to", lambda self, device: moved.append(device) or self)
    with rival_of(opened, 1, torch.device("meta")):
        assert moved == [torch.device("meta")]


def test_fewer_layers_in_8_bits_leave_nothing_of_the_graph_before(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, checkpoint: Checkpoint, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Weights beside a graph are added to the file that is there, so it must not be."""
    from hmrcompress.exporting import folder

    honest, seen = folder._made, []

    def made(chosen: Any, source: Source, staged: Path, *more: Any) -> Any:
        seen.append(sorted(each.name for each in staged.iterdir()))
        return honest(chosen, source, staged, *more)

    monkeypatch.setattr(folder, "_made", made)
    monkeypatch.setattr(folder, "_over", lambda parity, budget: len(seen) == 1)
    write(network, tmp_path / "made", batch, tiny_body, checkpoint, precision="int8", budget_mm=1e6)
    assert seen == [[], []]


def test_wrong_requests_are_refused(
    network: HMR2, batch: FrameBatch, tiny_body: BodyModel, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for more, fault in (
        ({"runtime": "caffe"}, "--format: got 'caffe', expected one of onnx, openvino"),
        ({"precision": "bfloat16"}, "--dtype: got bfloat16, onnx takes float32, float16"),
    ):
        with pytest.raises(UserError, match=fault):
            write(network, tmp_path / "made", batch, tiny_body, checkpoint, **more)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        write(network, tmp_path / "mine", batch, tiny_body, checkpoint)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def forged(folder: Path, **changes: Any) -> None:
    """Another `export.json` with a seal that fits it: what somebody who means harm would write."""
    values = json.loads((folder / MAIN).read_text())
    values.pop("seal")
    text = json.dumps(sealed_json(values | changes, exporting.KIND.name))
    (folder / MAIN).write_text(text)


def test_damaged_and_forged_folders_end_in_a_sentence(exported: ExportedFolder, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(exported.path, tmp_path / name))

    main = exported.config.main
    (short := copy("short") / main).write_bytes((exported.path / main).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{short.name}: the file was truncated"):
        read_export_folder(short.parent)
    (gone := copy("gone") / "golden.npz").unlink()
    with pytest.raises(UserError, match="golden.npz: the file is missing"):
        read_export_folder(gone.parent)
    edited = copy("edited")
    (edited / MAIN).write_text((edited / MAIN).read_text().replace('"float32"', '"float16"'))
    with pytest.raises(UserError, match="was edited since it was written"):
        read_export_folder(edited)
    for changes, fault in (
        ({"main": "../network.onnx"}, "got '../network.onnx', which is none"),
        ({"main": "/etc/passwd"}, "which is none of an exported network"),
        ({"runtime": "caffe"}, "expected one of onnx"),
        ({"network": exported.config.network | {"dim": 10**9}}, "dim"),
        ({"files": {}}, "is not listed"),
        ({"more": 1}, "more: Extra inputs"),
    ):
        forged(folder := copy(f"forged {len(list(tmp_path.iterdir()))}"), **changes)
        with pytest.raises(UserError, match=fault):
            read_export_folder(folder)
    with pytest.raises(UserError, match="not an exported network"):
        read_export_folder(tmp_path)


def test_another_graph_in_the_folder_is_no_network_of_ours(exported: ExportedFolder, tmp_path: Path) -> None:
    if exported.config.runtime != "onnx":
        pytest.skip("one runtime is enough")
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n"])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    made = helper.make_graph([helper.make_node("Identity", ["images"], ["y"])], "g", [value], [other])
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(UserError, match="is no network that hmrcompress exported: it gives no global_orient"):
        RUNTIMES["onnx"].run(path, "float32", threads=1)


def test_every_runtime_of_the_registry_has_what_the_protocol_names() -> None:
    for name, each in RUNTIMES.items():
        assert each.name == name and "float32" in each.precisions and each.writes
        assert require_precision(name, "float32") is each
    assert replace(Compiled("a"), prepared="b").prepared == "b"


@pytest.mark.usefixtures("quick")
def test_the_command_writes_a_folder_and_says_how_close_it_is(
    network: HMR2,
    batch: FrameBatch,
    tiny_body: BodyModel,
    tiny_crops: CropSet,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = api_export._Given(checkpoint, network, tiny_body, tiny_crops, batch, batch)
    asked: list[Any] = []
    monkeypatch.setattr(api_export, "_given", lambda *arguments: asked.append(arguments) or given)

    def hmr(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["export", "tiny", "-o", str(tmp_path / "made"), *arguments])

    done = hmr("--dtype", "int8", "--budget-mm", "50", "--json", str(tmp_path / "figures.json"))
    assert done.exit_code == 0, done.output
    assert "8 of 8 linear layers in 8 bits, weights in 8" in done.output and "through onnx, CPU" in done.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["dtype"] == "int8" and figures["about"]["int8"]["budget_mm"] == 50.0
    assert figures["onnx_joints_mm"] == figures["parity"]["joints_mm"] and figures["size_bytes"] > 0
    assert asked[-1][-1] == api_export.CALIBRATION_CROPS
    again = hmr("--format", "tensorrt", "--overwrite")
    assert again.exit_code == 0 and "prepared, not run" in again.output and "  trtexec --onnx=" in again.output
    for words, fault in (
        (("--budget-mm", "0", "--dtype", "int8"), "--budget-mm: got 0, expected millimetres above 0"),
        (("--format", "openvino", "--dtype", "float64"), "float64"),
        (("--dtype", "bfloat16"), "--dtype: got bfloat16, onnx takes float32, float16, int8"),
    ):
        refused = hmr(*words)
        assert refused.exit_code == 2 and fault in refused.output, refused.output
    file = CliRunner().invoke(app, ["export", "tiny", "-o", str(tmp_path / "a.onnx"), "--dtype", "int8"])
    assert file.exit_code == 2 and "-o FOLDER, without .onnx" in file.output
