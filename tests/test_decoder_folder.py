"""A temporal decoder in a model folder: stored, read back, damaged, handed on or left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from test_decoder_nets import TINY, draw, every
from typer.testing import CliRunner

from hmrcompress.api import opening
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.decoder.files import build_decoder, decoder_part, decoder_tensors
from hmrcompress.decoder.model import STATISTICS, TemporalDecoder
from hmrcompress.errors import UserError
from hmrcompress.io.safetensors_file import read_safetensors
from hmrcompress.io.seals import sealed_json
from hmrcompress.merging.merge import merge_checkpoint
from hmrcompress.models.files.convert import write_half
from hmrcompress.models.files.decoder_part import DecoderPart
from hmrcompress.models.files.folder import DECODER, read_model_folder, write_model_folder
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.plan import Plan
from hmrcompress.training.finetune import add_probe
from hmrcompress.training.streams import Crops
from hmrcompress_cli.main import app


@pytest.fixture(scope="module")
def decoder() -> TemporalDecoder:
    made = TemporalDecoder(TINY, seed=1).eval()
    made.set_statistics(pose_mean=draw(133), pose_std=draw(133).abs(), feature_mean=draw(8))
    return made


def write(path: Path, part: DecoderPart) -> Path:
    return write_model_folder(path, tiny.network().state_dict(), tiny.CONFIG, decoder=part).path


def test_stored_and_read_back(tmp_path: Path, decoder: TemporalDecoder) -> None:
    path = write(tmp_path / "model", decoder_part(decoder))
    stored, _ = read_safetensors(path / "decoder.safetensors")
    assert set(stored) == set(decoder.state_dict())
    assert json.loads((path / "config.json").read_text())["decoder"] == TINY.to_dict()
    assert "windows of 12 frames, objective `both`" in (path / "README.md").read_text()
    part = load_checkpoint(path).decoder
    assert part is not None and part.parameters == sum(t.numel() for t in decoder.state_dict().values())
    again = build_decoder(part.config, part.tensors, path)
    assert again.config == TINY and not again.training and not any(p.requires_grad for p in again.parameters())
    args = draw(2, 12, 8), every(2, 12), every(2, 12)
    stored = decoder.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in again.state_dict().items())
    # Not equal bit by bit: a mapped file is aligned differently, and products sum in another order then.
    torch.testing.assert_close(again(*args), decoder(*args), rtol=1e-4, atol=1e-5)
    twice = write(tmp_path / "twice", decoder_part(decoder))
    assert (twice / DECODER).read_bytes() == (path / DECODER).read_bytes()
    assert (
        load_checkpoint(write_model_folder(tmp_path / "none", tiny.network().state_dict(), tiny.CONFIG).path).decoder
        is None
    )


def test_half_precision_keeps_statistics_exact(tmp_path: Path, decoder: TemporalDecoder) -> None:
    part = decoder_part(decoder)
    path = write(tmp_path / "half", part.half())
    loaded = read_model_folder(path).decoder
    assert loaded is not None
    for name, tensor in decoder.state_dict().items():
        assert loaded.tensors[name].dtype == (torch.float32 if name in STATISTICS else torch.float16)
        kept = tensor if name in STATISTICS else tensor.half()
        assert torch.equal(loaded.tensors[name], kept)
    again = build_decoder(loaded.config, loaded.tensors)
    assert {tensor.dtype for tensor in decoder_tensors(again).values()} == {torch.float32}
    assert {tensor.dtype for tensor in part.tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", r"decoder\.safetensors: the file was truncated: it has \d+ bytes"),
        ("flip", r"decoder\.safetensors: the file was changed: its hash"),
        ("remove", r"decoder\.safetensors: the file is missing"),
        ("settings", r"config\.json: decoder: its settings and decoder\.safetensors belong together"),
    ],
)
def test_damage_is_noticed(tmp_path: Path, decoder: TemporalDecoder, damage: str, message: str) -> None:
    path = write(tmp_path / "model", decoder_part(decoder))
    file, config = path / DECODER, path / "config.json"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-10])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "remove":
        file.unlink()
    else:
        config.write_text(json.dumps(sealed_json(json.loads(config.read_text()) | {"decoder": None}, "model")))
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)


def test_parts_that_make_no_decoder(decoder: TemporalDecoder) -> None:
    config, tensors = TINY.to_dict(), decoder_tensors(decoder)
    fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith("vae.encoder.norm")}
    wrong = [
        (config | {"latents": 4}, tensors, r"m: 6 keys of another shape: .*vae\.latent_queries 3x16 instead of 4x16"),
        (config, fewer, r"m: 2 keys missing: vae\.encoder\.norm\.weight, vae\.encoder\.norm\.bias"),
        (config, tensors | {"pose_mean": torch.zeros(133, dtype=torch.int64)}, "m: pose_mean is torch.int64"),
        ({"frames": 3}, tensors, "m: unknown or missing fields"),
        (config | {"objective": "noise"}, tensors, "m: objective: noise cannot"),
    ]
    for settings, state, message in wrong:
        with pytest.raises(UserError, match=message):
            build_decoder(settings, state, "m")


def test_merging_leaves_the_decoder_behind(tmp_path: Path, decoder: TemporalDecoder) -> None:
    """It was trained on the features of the network as it was."""
    checkpoint = load_checkpoint(write(tmp_path / "model", decoder_part(decoder)))
    plan = Plan(checkpoint=checkpoint.reference, groups=((0,), (1,), (2, 3)))
    merge_checkpoint(checkpoint, plan, tmp_path / "merged")
    assert load_checkpoint(tmp_path / "merged").decoder is None


def test_merging_takes_over_the_decoder_of_another_version(tmp_path: Path, decoder: TemporalDecoder) -> None:
    donor = load_checkpoint(write(tmp_path / "donor", decoder_part(decoder)))
    plain = load_checkpoint(write_model_folder(tmp_path / "plain", tiny.network().state_dict(), tiny.CONFIG).path)
    groups = [[0, 1], *([layer] for layer in range(2, tiny.CONFIG.depth))]
    plan = Plan.from_dict({"checkpoint": plain.reference.model_dump(), "groups": groups})
    made = load_checkpoint(merge_checkpoint(plain, plan, tmp_path / "made", decoder_of=donor).path)
    assert made.config.depth == tiny.CONFIG.depth - 1 and made.decoder is not None
    assert (made.path / DECODER).read_bytes() == (donor.path / DECODER).read_bytes()
    with pytest.raises(UserError, match="holds no temporal decoder"):
        merge_checkpoint(plain, plan, tmp_path / "none", decoder_of=plain)
    state = {name: t + (name == "smpl_head.decpose.bias") for name, t in tiny.network().state_dict().items()}
    other = write_model_folder(tmp_path / "other", state, tiny.CONFIG, decoder=decoder_part(decoder)).path
    with pytest.raises(UserError, match="another head"):
        merge_checkpoint(plain, plan, tmp_path / "none", decoder_of=load_checkpoint(other))
    assert not (tmp_path / "none").exists()


def test_a_probe_beside_a_decoder(tmp_path: Path, decoder: TemporalDecoder, tiny_crops: CropSet) -> None:
    """Fitting a probe changes no weights, so the decoder is handed on, in the precision that it has."""
    path = write(tmp_path / "model", decoder_part(decoder).half())
    checkpoint = load_checkpoint(path)
    batch = next(iter(tiny_crops.batches(batch_size=12, masks=DataMasks())))

    class OneBatch:
        name, identity, seen = "tiny", {"stream": "tiny"}, None

        def batch(self, step: int) -> Crops:
            return Crops(batch.images, batch.person_mask)

    frames = torch.arange(12).numpy()
    add_probe(
        checkpoint, checkpoint.network, OneBatch(), (tiny_crops, frames), DataMasks(), tmp_path / "probed",
        frames=12, batch_size=12,
    )  # fmt: skip
    probed = tmp_path / "probed"
    assert load_checkpoint(probed).probe is not None
    assert (probed / DECODER).read_bytes() == (path / DECODER).read_bytes()


def test_starter_fast_is_made_of_starter_a_plan_and_a_decoder(
    tmp_path: Path, decoder: TemporalDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMRCOMPRESS_HOME", str(tmp_path / "home"))
    starter = write_model_folder(tmp_path / "starter", tiny.network().state_dict(), tiny.CONFIG).path
    monkeypatch.setattr(opening, "STARTER_MODEL", starter)
    monkeypatch.setattr(opening, "STARTER_FAST", tmp_path / "parts")
    with pytest.raises(UserError, match="starter-fast: is not part of this installation"):
        opening.load("starter-fast")
    plain, donor = load_checkpoint(starter), load_checkpoint(write(tmp_path / "donor", decoder_part(decoder)))
    groups = [[0, 1], *([layer] for layer in range(2, tiny.CONFIG.depth))]
    plan = Plan.from_dict({"checkpoint": plain.reference.model_dump(), "groups": groups})
    compressed = merge_checkpoint(plain, plan, tmp_path / "compressed", decoder_of=donor).path
    done = CliRunner().invoke(app, ["starter", "build", "--fast", str(compressed), "-o", str(tmp_path / "parts")])
    assert done.exit_code == 0 and "decoder.safetensors" in done.output, done.output
    fast, whole = opening.load("starter-fast"), load_checkpoint(compressed)
    assert fast.plan == whole.plan and fast.path.is_relative_to(tmp_path / "home")
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(fast.network.state_dict()[name], tensor), name
    made = build_decoder(fast.decoder.config, fast.decoder.tensors).state_dict()
    assert torch.equal(made["pose_mean"], decoder.pose_mean)
    assert torch.equal(made["vae.pose_in.weight"], decoder.vae.pose_in.weight.half().float())


def test_packed_for_shipping(tmp_path: Path, decoder: TemporalDecoder) -> None:
    """`convert --format half`: half the bytes, the decoder with it."""
    path, packed = write(tmp_path / "model", decoder_part(decoder)), tmp_path / "packed"
    done = CliRunner().invoke(app, ["convert", str(path), "-o", str(packed), "--format", "half"])
    assert done.exit_code == 0 and "decoder.safetensors" in done.output, done.output
    for name in ("model.safetensors", "decoder.safetensors"):
        ratio = (packed / name).stat().st_size / (path / name).stat().st_size
        assert 0.45 < ratio < 0.75, name
    half, full = load_checkpoint(packed), load_checkpoint(path)
    assert half.stored_dtype == "float16" and half.plan == full.plan and half.source
    for name, tensor in full.network.state_dict().items():
        assert torch.equal(half.network.state_dict()[name], tensor.half().float()), name
    assert half.decoder is not None
    made = build_decoder(half.decoder.config, half.decoder.tensors).state_dict()
    assert torch.equal(made["pose_mean"], decoder.pose_mean)
    assert torch.equal(made["vae.pose_in.weight"], decoder.vae.pose_in.weight.half().float())
    with pytest.raises(UserError, match="is an input"):
        write_half(full, path)
    again = write_half(half, tmp_path / "again")
    assert again.sha256 == half.sha256, "what is in half precision already stays as it is"
