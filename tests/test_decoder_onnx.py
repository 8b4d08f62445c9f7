"""The decoder's ONNX file equals the decoder at any batch size, or does not come into being."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bounds import network_bound
from test_decoder_nets import TINY, draw

from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting import decoder_onnx
from hmrcompress.exporting.onnx import OnnxExport
from hmrcompress.exporting.parity import MAX_ABS, MAX_JOINTS_MM
from hmrcompress.io.hashes import sha256_file

onnxruntime = pytest.importorskip("onnxruntime")

SMALL = replace(TINY, vae_layers=1)
"""Tracing takes its time by layer, and those of the VAE are all alike; two are slow in `test_other_decoders`."""

pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture(scope="module")
def decoder() -> TemporalDecoder:
    made = TemporalDecoder(SMALL, seed=1).eval()
    made.set_statistics(pose_std=0.1 + draw(133).abs(), feature_mean=draw(8), latent_std=torch.tensor(2.0))
    return made


@pytest.fixture(scope="module")
def exported(decoder: TemporalDecoder, tmp_path_factory: pytest.TempPathFactory) -> OnnxExport:
    path = tmp_path_factory.mktemp("onnx") / "deep" / "model.decoder.onnx"
    return decoder_onnx.export_decoder(decoder, path, about={"model": "tiny"})


def inputs(batch: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(batch)
    valid = torch.arange(12) < torch.randint(4, 13, (batch, 1), generator=random)
    known = torch.rand(batch, 12, generator=random) < 0.4
    made = {"features": draw(batch, 12, 8, seed=batch), "known": known, "valid": valid}
    return made | {"noise": draw(batch, 3, 8, seed=9)}


@torch.no_grad()
def test_the_file_computes_what_the_decoder_computes(decoder: TemporalDecoder, exported: OnnxExport) -> None:
    """At batch sizes that its own check did not use; features of missing frames are never read."""
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["features", "known", "valid", "noise"]
    for batch in (1, 3, 8):
        given = inputs(batch)
        expected = decoder(given["features"], given["known"], given["valid"], noise=given["noise"])
        read = given["known"] & given["valid"]
        given["features"] = given["features"].masked_fill(~read[..., None], float("nan"))
        (pose,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        assert np.abs(pose - expected.numpy()).max() < network_bound(decoder, expected)
    moved = decoder(given["features"], given["known"], given["valid"], noise=-given["noise"])
    assert (moved - expected).abs().max() > 1e-3


def test_the_contract_beside_the_file(decoder: TemporalDecoder, exported: OnnxExport) -> None:
    contract = json.loads(exported.contract.read_text())
    names = {"model.decoder.onnx", "model.decoder.onnx.json", "model.decoder.onnx.golden.npz"}
    assert {file.name for file in exported.path.parent.iterdir()} == names
    assert contract["model"] == "tiny" and contract["decoder"] == SMALL.to_dict() and contract["steps"] == 1
    assert contract["inputs"]["features"]["shape"] == ["B", 12, 8] and contract["inputs"]["noise"]["shape"] == [
        "B",
        3,
        8,
    ]
    assert contract["outputs"]["pose"]["shape"] == ["B", 12, 133]
    parity = contract["parity"]
    assert parity["windows"] == 5 and parity["batch_sizes"] == [1, 5]
    assert 0 < parity["max_abs_diff"] < MAX_ABS and 0 < parity["joints_mm"] < MAX_JOINTS_MM
    assert contract["files"]["model.decoder.onnx"]["sha256"] == sha256_file(exported.path)
    assert contract["files"]["model.decoder.onnx"]["bytes"] == exported.size_bytes
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    with np.load(exported.golden) as golden:
        (pose,) = session.run(None, {each.name: golden[each.name] for each in session.get_inputs()})
        assert np.abs(pose - golden["pose"]).max() < network_bound(decoder, torch.from_numpy(golden["pose"]))
        assert not golden["known"].all() and not golden["valid"].all()


@pytest.fixture
def quick(exported: OnnxExport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the file that was exported before for the graph, which saves the seconds of tracing it again."""
    monkeypatch.setattr(decoder_onnx, "_write_graph", lambda _, path, __: shutil.copy(exported.path, path))


@pytest.mark.usefixtures("quick")
def test_parity_is_in_metres_and_refuses(decoder: TemporalDecoder, tmp_path: Path) -> None:
    """A decoder whose joint 5 lies 3, 4 and 0 mm elsewhere than the file's: 5 mm, and nothing is written."""
    moved = TemporalDecoder(SMALL, seed=1).eval()
    moved.load_state_dict(decoder.state_dict())
    moved.pose_mean[15:18] += torch.tensor([0.003, 0.004, 0.0])
    (tmp_path / "old.onnx").write_text("what was there before")
    for name in ("old.onnx", "new.onnx"):
        with pytest.raises(HMRCompressError, match=r"by 0\.004 and 5 mm on joints.*nothing was written"):
            decoder_onnx.export_decoder(moved, tmp_path / name, overwrite=True)
    moved.pose_mean[15] = float("nan")
    with pytest.raises(HMRCompressError, match="nan"):
        decoder_onnx.export_decoder(moved, tmp_path / "new.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_text() == "what was there before"


def test_wrong_requests_are_refused(decoder: TemporalDecoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"end in \.onnx"):
        decoder_onnx.export_decoder(decoder, tmp_path / "decoder.pt")
    with pytest.raises(UserError, match="frames: got 13, expected 1 to 12"):
        decoder_onnx.export_decoder(decoder, tmp_path / "decoder.onnx", frames=13)
    with pytest.raises(UserError, match="steps: got 0"):
        decoder_onnx.export_decoder(decoder, tmp_path / "decoder.onnx", steps=0)
    with pytest.raises(UserError, match="expected float32 on the CPU"):
        decoder_onnx.export_decoder(TemporalDecoder(TINY).double(), tmp_path / "decoder.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("objective", ["regress", "both"])
def test_every_argument_has_a_batch(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses a tuple of dynamic dimensions for arguments that there are not; `test_other_decoders` traces."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(torch.onnx, "export", lambda _, given, path, **named: told.update(named, given=given))
    decoder = TemporalDecoder(replace(TINY, objective=objective)).eval()
    decoder_onnx._write_graph(
        decoder_onnx._Exported(decoder, 1), tmp_path / "d.onnx", decoder_onnx._windows(decoder, 12)
    )
    more = len(told["given"]) - 3
    assert more == (objective != "regress")
    fixed, rest = told["dynamic_shapes"][:3], told["dynamic_shapes"][3:]
    assert [list(each) for each in fixed] == [[0]] * 3 and [len(each) for each in rest] == ([more] if more else [])


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "steps", "frames"), [("regress", 1, 12), ("both", 3, 12), ("velocity", 1, 7)])
@torch.no_grad()
def test_other_decoders(objective: str, steps: int, frames: int, tmp_path: Path) -> None:
    decoder = TemporalDecoder(replace(TINY, objective=objective)).eval()
    made = decoder_onnx.export_decoder(decoder, tmp_path / "d.onnx", frames=frames, steps=steps)
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    given = {name: tensor[:, :frames] if name != "noise" else tensor for name, tensor in inputs(3).items()}
    expected = decoder(given["features"], given["known"], given["valid"], steps=steps, noise=given["noise"])
    names = [each.name for each in session.get_inputs()]
    assert ("noise" in names) == (objective != "regress")
    (pose,) = session.run(None, {name: given[name].numpy() for name in names})
    assert np.abs(pose - expected.numpy()).max() < network_bound(decoder, expected)


@torch.no_grad()
@pytest.mark.slow
def test_with_a_read_out(tmp_path: Path) -> None:
    """The read-out is an input of its own; where a frame has none it is never read."""
    decoder = TemporalDecoder(replace(TINY, vae_layers=1, layers=1, objective="regress", readout=True), seed=1).eval()
    decoder.denoiser.latent_out.reset_parameters()
    decoder.vae.pieces.copy_(0.1 * draw(*decoder.vae.pieces.shape))
    decoder.denoiser.blend.confidence.weight.normal_(generator=torch.Generator().manual_seed(1))
    decoder.set_statistics(pose_std=torch.tensor(0.3), feature_mean=draw(8))
    made = decoder_onnx.export_decoder(decoder, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["features", "known", "valid", "readout"]
    assert json.loads(made.contract.read_text())["inputs"]["readout"]["shape"] == ["B", 12, 133]
    given = {name: tensor for name, tensor in inputs(3).items() if name != "noise"}
    readout = 0.3 * draw(3, 12, 133, seed=2)
    expected = decoder(torch.cat([given["features"], readout], -1), given["known"], given["valid"])
    read = (given["known"] & given["valid"])[..., None]
    given["readout"] = readout.masked_fill(~read, float("nan"))
    (pose,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    there = given["valid"].numpy()
    assert np.abs(pose - expected.numpy())[there].max() < network_bound(decoder, expected)
    moved = decoder(torch.cat([given["features"], 0.9 * readout], -1), *list(given.values())[1:3])
    assert (moved - expected).abs().max() > 1e-2
