"""The saliency probe: its fit against an independent solution, and the network that finds the person by itself."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import hmrcompress as hc
from hmrcompress.api import finetune as tuning
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import mask_source
from hmrcompress.errors import UserError
from hmrcompress.merging.apply import counts_of, forced_merges, with_token_merging
from hmrcompress.merging.background import kept_places
from hmrcompress.metrics.cost import cost
from hmrcompress.models.files.folder import PROBE, read_model_folder
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.models.network import HMR2, NetworkConfig, build
from hmrcompress.models.probe import SaliencyProbe, read_probe, write_probe
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.training import probe_fit
from hmrcompress.training.probe_fit import RIDGE, attended_tokens, fit_logistic, fit_probe, quality
from hmrcompress.training.streams import Crops


def planted(count: int = 400, dim: int = 6, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    direction = torch.randn(dim, generator=random)
    tokens = torch.randn(count, dim, generator=random) * torch.logspace(-1, 1, dim) + 3
    logits = (tokens - 3) @ (direction / torch.logspace(-1, 1, dim))
    return tokens, logits + noise * torch.randn(count, generator=random) > 0.7, direction


def test_the_fit_is_the_minimum_that_scipy_finds() -> None:
    tokens, person, _ = planted()
    weight, bias = fit_logistic(tokens, person)
    x, y = tokens.double().numpy(), person.numpy()
    mean, deviation = x.mean(0), x.std(0)

    def objective(values: np.ndarray) -> float:
        z = (x - mean) / deviation @ values[:-1] + values[-1]
        losses = np.logaddexp(0, np.where(y, -z, z))
        return 0.5 * losses[y].mean() + 0.5 * losses[~y].mean() + 0.5 * RIDGE * (values[:-1] ** 2).sum()

    found = scipy.optimize.minimize(objective, np.zeros(x.shape[1] + 1), method="BFGS", options={"gtol": 1e-9}).x
    assert np.allclose(weight.numpy(), found[:-1] / deviation, rtol=1e-4, atol=1e-5)
    assert bias == pytest.approx(found[-1] - (found[:-1] / deviation * mean).sum(), rel=1e-4)
    again, _ = fit_logistic(tokens, person)
    assert torch.equal(weight, again)


def test_a_planted_direction_is_found() -> None:
    tokens, person, direction = planted(4000, noise=0.0)
    weight, bias = fit_logistic(tokens, person)
    standardised = weight.float() * torch.logspace(-1, 1, 6)
    assert torch.nn.functional.cosine_similarity(standardised, direction, dim=0) > 0.999
    probe = SaliencyProbe(weight.float()[None], bias)
    assert (probe.person(tokens[None], (40, 100))[0] == person).float().mean() > 0.99


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="0 of 9 tokens show a person"):
        fit_logistic(torch.randn(9, 2), torch.zeros(9, dtype=torch.bool))


def test_quality_by_counting() -> None:
    random = torch.Generator().manual_seed(3)
    scores, person = torch.randn(60, generator=random), torch.rand(60, generator=random) < 0.4
    figures = quality(scores, person, 0.2)
    pairs = [float(a > b) for a, b in itertools.product(scores[person].tolist(), scores[~person].tolist())]
    assert figures["auc"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-4)
    hits = sum(bool(p) and float(s) > 0.2 for s, p in zip(scores, person, strict=True))
    assert figures["recall"] == pytest.approx(hits / int(person.sum()), abs=1e-4)
    assert figures["precision"] == pytest.approx(hits / int((scores > 0.2).sum()), abs=1e-4)


def crops_of(crops: CropSet, masks: str = "data") -> list[Crops]:
    return [Crops(batch.images, batch.person_mask) for batch in crops.batches(None, 4, mask_source(masks))]


@pytest.fixture(scope="module")
def fitted(tiny_network: HMR2, tiny_crops: CropSet) -> SaliencyProbe:
    return fit_probe(tiny_network, crops_of(tiny_crops), crops_of(tiny_crops), frames=12).probe


def test_bright_people_are_found(tiny_network: HMR2, tiny_crops: CropSet, fitted: SaliencyProbe) -> None:
    crops = crops_of(tiny_crops)
    fit = fit_probe(tiny_network, crops, crops, frames=12)
    assert fit.labels == "masks" and fit.frames == len(tiny_crops) and fit.figures["auc"] > 0.9
    assert fit_probe(tiny_network, crops, crops[1:], frames=7).frames == 7
    assert torch.equal(fit.probe.weight, fitted.weight) and fit.probe.bias == fitted.bias


def read_by_hand(network: HMR2, image: torch.Tensor, layer: int) -> torch.Tensor:
    """(M,D): what enters a layer, plus what its attention adds."""
    tokens = network.backbone.embed(image[None])
    for block in network.backbone.blocks[:layer]:
        tokens = block(tokens)
    block = network.backbone.blocks[layer]
    return (tokens + block.attn(block.norm1(tokens))[0])[0]


def scored_by_hand(read: Tensor, probe: SaliencyProbe) -> Tensor:
    """(16,12): the log-odds of each place, from the token and the means of the up to 9 and 25 around it."""
    plane = read.double().unflatten(0, (16, 12))
    scores = torch.zeros(16, 12)
    for row, column in itertools.product(range(16), range(12)):
        for reach, weight in enumerate(probe.weight.double()):
            rows, columns = (
                slice(max(0, row - reach), row + reach + 1),
                slice(max(0, column - reach), column + reach + 1),
            )
            scores[row, column] += plane[rows, columns].flatten(0, 1).mean(0) @ weight
    return scores + probe.bias


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("options", [{}, {"size_weighted": True, "attention_bias": True}, {"metric": "features"}])
@torch.no_grad()
def test_self_masks_equal_the_probe_s_mask_handed_in(
    tiny_network: HMR2, tiny_crops: CropSet, options: dict[str, object], layer: int
) -> None:
    """Merging begins in the layer that the probe reads, as if the schedule had said so."""
    crops = crops_of(tiny_crops)
    fitted = fit_probe(tiny_network, crops, crops, frames=12, layer=layer).probe
    settings = TokenSettings.model_validate({"keep": 100, **options})
    images = next(tiny_crops.batches(batch_size=4)).images
    by_hand = torch.stack([scored_by_hand(read_by_hand(tiny_network, image, layer), fitted) for image in images])
    rising = by_hand[by_hand > 0].sort().values
    middle = len(rising) // 2
    fitted = replace(fitted, threshold=float(rising[middle - 1 : middle + 1].mean()))
    mask = by_hand > fitted.threshold
    assert mask.any() and (mask != (by_hand > 0)).any()
    itself = with_token_merging(tiny_network, settings, fitted)
    told = with_token_merging(tiny_network, settings.changed(schedule=[0] * layer + [40, 40, 12]))
    assert torch.equal(itself.backbone(images), told.backbone(images, mask))
    assert not torch.equal(itself.backbone(images), told.backbone(images))
    assert torch.equal(itself.backbone(images, ~mask), told.backbone(images, ~mask)), "a mask that is given counts"
    assert torch.equal(forced_merges(itself, images, None), forced_merges(told, images, mask))


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_background_is_dropped_where_the_probe_sees_it(tiny_network: HMR2, tiny_crops: CropSet, layer: int) -> None:
    """Layer by layer by hand: all tokens up to the probe's attention, from there on only those that stay."""
    crops = crops_of(tiny_crops)
    probe = fit_probe(tiny_network, crops, crops, frames=12, layer=layer).probe
    settings = TokenSettings.model_validate({"keep": 60, "drop_background": {"ring": 1, "coarse": 4}})
    itself = with_token_merging(tiny_network, settings, probe)
    images = next(tiny_crops.batches(batch_size=4)).images
    found, lost = [], []
    for image in images:
        read = read_by_hand(tiny_network, image, layer)
        person = scored_by_hand(read, probe) > probe.threshold
        places = kept_places(person[None], 60, ring=1, coarse=4)[0]
        lost.append(int(person.sum() - person.flatten()[places].sum()))
        tokens = tiny_network.backbone.blocks[layer].feed(read[None, places])
        for block in tiny_network.backbone.blocks[layer + 1 :]:
            tokens = block(tokens)
        found.append(tiny_network.backbone.last_norm(tokens))
    assert torch.allclose(itself.backbone(images), torch.cat(found), atol=1e-5)
    assert forced_merges(itself, images, None).tolist() == lost
    assert list(counts_of(itself)) == [192] * (layer + 1) + [60]
    told = itself.backbone(images, torch.ones(4, 16, 12, dtype=torch.bool))
    assert told.shape == (4, 60, 32) and not torch.allclose(told, torch.cat(found), atol=1e-3)


def test_it_costs_next_to_nothing() -> None:
    """Counted on the full-size network: two products a token, far below 0.5 %."""
    config = NetworkConfig()
    probe = SaliencyProbe(torch.zeros(2, config.dim, device="meta"), 0.0)
    image = torch.zeros(1, 3, 256, 192, device="meta")
    plain, probed = (
        cost(with_token_merging(build(config, "meta"), TokenSettings(), each), image) for each in (None, probe)
    )
    assert probed.macs == plain.macs and probed.other_macs - plain.other_macs == 2 * 192 * 1280
    assert 2 * 192 * 1280 < 0.005 * plain.macs


def test_the_first_layer_that_knows_the_person_is_read(
    tiny_network: HMR2, tiny_crops: CropSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = crops_of(tiny_crops)
    alone = [fit_probe(tiny_network, crops, crops, frames=12, layer=layer) for layer in range(3)]
    auc = [fit.figures["auc"] for fit in alone]
    assert [fit.probe.layer for fit in alone] == [0, 1, 2]
    for bar, wanted in ((0.5, 0), (1.1, auc.index(max(auc)))):
        monkeypatch.setattr(probe_fit, "GOOD_AUC", bar)
        chosen = fit_probe(tiny_network, crops, crops, frames=12)
        assert chosen.probe.layer == wanted and torch.equal(chosen.probe.weight, alone[wanted].probe.weight)
    with pytest.raises(UserError, match="got 4, expected 0 … 3"):
        fit_probe(tiny_network, crops, crops, frames=12, layer=4)


def test_files(tmp_path: Path) -> None:
    probe = SaliencyProbe(torch.randn(2, 8), 0.123456789, -1.5, layer=2)
    write_probe(tmp_path / "probe.safetensors", probe)
    read = read_probe(tmp_path / "probe.safetensors", 8)
    assert torch.equal(read.weight, probe.weight)
    assert (read.bias, read.threshold, read.layer) == (probe.bias, probe.threshold, 2)
    assert read.sha256 == probe.sha256 != replace(probe, bias=0.0).sha256
    with pytest.raises(UserError, match="expected a saliency probe"):
        read_probe(tmp_path / "probe.safetensors", 9)


def test_a_model_with_a_probe(tiny_model: Path, tiny_crops: CropSet, tiny_body_file: Path, tmp_path: Path) -> None:
    """Fitted, written, read, merged, evaluated and searched with `--masks self`."""
    options = {"data": tiny_crops, "body": tiny_body_file}
    folder, fit = tuning.fit_probe(tiny_model, tmp_path / "probed", images=64, **options)
    assert (tmp_path / "probed" / PROBE).is_file()
    before, after = load_checkpoint(tiny_model), load_checkpoint(tmp_path / "probed")
    assert after.sha256 == before.sha256 == folder.sha256, "the weights are the same"
    assert after.probe is not None and torch.equal(after.probe.weight, fit.probe.weight)
    assert after.source["probe"]["labels"] == "masks"
    assert "saliency probe" in (tmp_path / "probed" / "README.md").read_text()

    tokens = TokenSettings(keep=100)
    plan = Plan(checkpoint=after.reference, groups=((0,), (1,), (2, 3)), tokens=tokens)
    merged = hc.merge(tmp_path / "probed", plan, tmp_path / "merged")
    assert merged.probe is not None and torch.equal(merged.probe.weight, fit.probe.weight)
    lost = plan.model_copy(update={"groups": ((0, 1), (2,), (3,))})
    assert hc.merge(tmp_path / "probed", lost, tmp_path / "lost").probe is None
    scores = {
        masks: hc.evaluate(tmp_path / "merged", masks=masks, **options).stages["merged_tokens"].mpjpe_mm
        for masks in ("self", "data", "none")
    }
    assert len(set(scores.values())) == 3, "each sort of mask has its effect"
    with pytest.raises(UserError, match="holds no saliency probe for --masks self.*finetune MODEL --stage probe"):
        hc.evaluate(tmp_path / "lost", masks="self", **options)

    from hmrcompress.searching.search import SearchSettings

    settings = SearchSettings(tokens=tokens, with_tokens=True, frames_per_clip=2)
    found = hc.search(tmp_path / "probed", journal=tmp_path / "j.jsonl", settings=settings, masks="self", **options)
    assert found.plan.checkpoint.layers == 4
    with pytest.raises(UserError, match="holds no saliency probe"):
        hc.search(tiny_model, journal=tmp_path / "k.jsonl", settings=settings, masks="self", **options)

    data = bytearray((tmp_path / "probed" / PROBE).read_bytes())
    data[-1] ^= 1
    (tmp_path / "probed" / PROBE).write_bytes(data)
    with pytest.raises(UserError, match=r"probe\.safetensors: the file was changed"):
        read_model_folder(tmp_path / "probed")


@torch.no_grad()
def test_without_masks_the_head_s_attention_tells(tiny_network: HMR2, tiny_crops: CropSet) -> None:
    """The attention of the head, written out by hand for one image."""
    images = next(tiny_crops.batches(batch_size=2)).images
    head = tiny_network.smpl_head
    context = tiny_network.backbone(images)
    query = head.transformer.to_token_embedding(torch.zeros(2, 1, 1)) + head.transformer.pos_embedding
    mass = torch.zeros(2, 192)
    for own, cross, feed in head.transformer.transformer.layers:
        query = own(query)
        normed = cross.norm(query)
        keys = cross.fn.to_kv(context)[..., : cross.fn.to_q.out_features]
        for part in range(cross.fn.heads):
            width = keys.shape[-1] // cross.fn.heads
            place = slice(part * width, (part + 1) * width)
            logits = torch.einsum("bqc,bmc->bqm", cross.fn.to_q(normed)[..., place], keys[..., place]) / width**0.5
            mass += logits.softmax(-1)[:, 0] / cross.fn.heads / 2
        query = feed(cross(query, context, None))
    away = (mass - 1 / 192).abs() > 1e-7  # rounding decides there
    assert torch.equal(attended_tokens(tiny_network, images)[away], (mass > 1 / 192)[away])
    bare = crops_of(tiny_crops, "none")
    fit = fit_probe(tiny_network, bare, bare, frames=12)
    assert fit.labels == "attention"


def test_faults(tiny_model: Path, tiny_crops: CropSet, tiny_body_file: Path, tmp_path: Path) -> None:
    options = {"data": tiny_crops, "body": tiny_body_file}
    with pytest.raises(UserError, match="on its own masks"):
        tuning.fit_probe(tiny_model, tmp_path / "x", masks="self", **options)
    with pytest.raises(UserError, match="starter:train has no end that could be limited"):
        tuning.fit_probe(
            tiny_model, tmp_path / "x", "starter:train", limit=3, validation=tiny_crops, body=tiny_body_file
        )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("x")
    with pytest.raises(UserError, match="Choose another name"):
        tuning.fit_probe(tiny_model, tmp_path / "thesis", **options)
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("graphs")
def test_onnx_needs_no_mask(
    tiny_model: Path, tiny_crops: CropSet, tiny_body_file: Path, fitted: SaliencyProbe, tmp_path: Path
) -> None:
    """The graph finds the person itself: images are its only input, and it agrees with torch on every crop."""
    model = load_checkpoint(tiny_model)
    plan = Plan(checkpoint=model.reference, groups=((0,), (1, 2, 3)), tokens=TokenSettings(keep=100, per_layer=92))
    hc.merge(replace(model, probe=fitted), plan, tmp_path / "merged")
    made = hc.export_onnx(
        tmp_path / "merged", tmp_path / "m.onnx", data=tiny_crops, masks="self", body=tiny_body_file, batch_size=3
    )
    contract = json.loads(made.contract.read_text())
    assert list(contract["inputs"]) == ["images"] and made.parity.max_abs_diff < 1e-3
