"""Person masks: coverage of tokens against a slow loop, and the sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import coverage_grid, mask_source, person_tokens
from hmrcompress.errors import ShapeError, UserError


def slow_coverage(mask: np.ndarray) -> np.ndarray:
    """(256,192) -> (16,12): the share of person pixels among the 256 of each token's window, nobody being outside."""
    shares = np.zeros((16, 12))
    for i in range(16):
        for j in range(12):
            for row in range(16 * i - 2, 16 * i + 14):
                for column in range(16 * j - 2, 16 * j + 14):
                    if 0 <= row < 256 and 0 <= column < 192:
                        shares[i, j] += mask[row, column]
    return shares / 256


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.random((256, 192)) < 0.3
    corner = np.zeros((256, 192), bool)
    corner[:40, :30] = True
    return np.stack([noise, corner, np.ones_like(noise), np.zeros_like(noise)])


def test_coverage_equals_a_loop(masks: np.ndarray) -> None:
    got = coverage_grid(torch.from_numpy(masks))
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), np.stack([slow_coverage(mask) for mask in masks]))


def test_coverage_is_exactly_what_a_token_sees() -> None:
    """The patch embedding with weights of ones, applied to a mask as an image, says the same."""
    from hmrcompress.models.vit import PatchEmbed

    mask = torch.rand(2, 256, 192, generator=torch.Generator().manual_seed(0)) < 0.4
    embed = PatchEmbed(1, 16)
    torch.nn.init.constant_(embed.proj.weight, 1 / (3 * 256))
    torch.nn.init.zeros_(embed.proj.bias)
    seen = embed(mask[:, None].float().expand(-1, 3, -1, -1))[:, 0]
    torch.testing.assert_close(coverage_grid(mask), seen, rtol=0, atol=1e-5)


def test_threshold_is_inclusive() -> None:
    coverage = torch.tensor([[[0.0, 0.0999, 0.1, 1.0]]])
    assert person_tokens(coverage).tolist() == [[[False, False, True, True]]]
    assert person_tokens(coverage, 0.5).tolist() == [[[False, False, False, True]]]


@pytest.mark.parametrize("shape", [(1, 192, 256), (1, 256, 256), (256, 192)])
def test_a_mask_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected \\(B, 256, 192\\)"):
        coverage_grid(torch.zeros(shape, dtype=torch.bool))


def test_masks_of_the_data(tiny_crops: CropSet) -> None:
    indices = np.array([7, 2])
    person = mask_source("data").person(tiny_crops, indices)
    packed = tiny.crop_arrays()["masks"][indices]
    expected = [slow_coverage(np.unpackbits(mask, axis=-1)) >= 0.1 for mask in packed]
    assert person is not None and person.dtype == torch.bool
    np.testing.assert_array_equal(person.numpy(), np.stack(expected))


def test_data_without_masks_name_the_way_out() -> None:
    arrays = {name: values for name, values in tiny.crop_arrays().items() if name != "masks"}
    crops = CropSet(arrays, tiny.crop_meta())
    with pytest.raises(UserError, match="--masks none"):
        crops.batches(masks=mask_source("data"))
    assert next(crops.batches(masks=mask_source("none"))).person_mask is None


def write_masks(folder: Path, crops: CropSet) -> None:
    everything = np.arange(len(crops))
    for mask, clip, frame in zip(crops.pixel_masks(everything), crops.clip, crops.frame, strict=True):
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / f"{clip:04d}_{frame:06d}.png")


def test_masks_from_files_equal_those_of_the_data(tmp_path: Path, tiny_crops: CropSet) -> None:
    write_masks(tmp_path, tiny_crops)
    from_files = tiny_crops.batches(batch_size=5, masks=mask_source(f"files:{tmp_path}"))
    from_data = tiny_crops.batches(batch_size=5, masks=mask_source("data"))
    for one, other in zip(from_files, from_data, strict=True):
        assert one.person_mask is not None and torch.equal(one.person_mask, other.person_mask)


def test_files_that_do_not_fit_are_refused_before_any_batch(tmp_path: Path, tiny_crops: CropSet) -> None:
    write_masks(tmp_path, tiny_crops)
    victim, source = tmp_path / "0001_000005.png", mask_source(f"files:{tmp_path}")
    Image.new("L", (256, 192)).save(victim)
    with pytest.raises(UserError, match="0001_000005.png: the mask is 256x192 pixels, expected 192x256"):
        tiny_crops.batches(masks=source)
    victim.write_bytes(b"not a picture")
    with pytest.raises(UserError, match="not a readable image"):
        tiny_crops.batches(masks=source)
    victim.unlink()
    with pytest.raises(UserError, match="no such mask file"):
        tiny_crops.batches(masks=source)
    with pytest.raises(UserError, match="no such folder"):
        tiny_crops.batches(masks=mask_source(f"files:{tmp_path / 'nowhere'}"))


def test_a_torn_file_is_refused(tmp_path: Path, tiny_crops: CropSet) -> None:
    write_masks(tmp_path, tiny_crops)
    victim = tmp_path / "0001_000005.png"
    victim.write_bytes(victim.read_bytes()[:-30])
    with pytest.raises(UserError, match="0001_000005.png: not a readable image"):
        list(tiny_crops.batches(masks=mask_source(f"files:{tmp_path}")))


@pytest.mark.parametrize("text", ["", "file:x", "files:", "onnx:x.onnx", "Data"])
def test_unknown_sources_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected data, self, none or files:DIR"):
        mask_source(text)
