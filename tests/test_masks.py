"""Person masks: coverage of tokens against a slow loop, and the sources."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import coverage_grid, mask_source, person_tokens
from hmrcompress.data.rle import decode_rle, unpack_counts
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.records import CROP


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
    with pytest.raises(UserError, match="not a picture of a known format"):
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
    with pytest.raises(UserError, match="0001_000005.png: not a picture that can be read"):
        list(tiny_crops.batches(masks=mask_source(f"files:{tmp_path}")))


@pytest.mark.parametrize("text", ["", "file:x", "files:", "onnx:", "Data", "none:"])
def test_unknown_sources_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected data, self, none, auto, files:DIR or onnx:FILE"):
        mask_source(text)


def slow_degraded(mask: np.ndarray, way: str) -> np.ndarray:
    """(256,192) -> (16,12), one token and one neighbour after the other."""
    if way == "box" and mask.any():
        places = np.argwhere(mask)
        (top, left), (bottom, right) = places.min(0), places.max(0)
        mask = np.array([[top <= y <= bottom and left <= x <= right for x in range(192)] for y in range(256)])
    person = slow_coverage(mask) >= 0.1
    if way == "box":
        return person
    found = person.copy()
    for i in range(16):
        for j in range(12):
            around = [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            near = [person[a, b] for a, b in around if 0 <= a < 16 and 0 <= b < 12]
            found[i, j] = all(near) if way == "eroded" else any(near)
    return found


@pytest.mark.parametrize("way", ["box", "eroded", "dilated"])
def test_degraded_masks_equal_a_loop(way: str) -> None:
    rng = np.random.default_rng(1)
    masks = np.zeros((5, 256, 192), bool)
    masks[0, 40:230, 60:140] = True
    masks[1, :100, :50] = True
    masks[1, 200:, 150:] = True
    masks[2] = rng.random((256, 192)) < 0.001
    masks[3, 20:250, 5:187] = rng.random((230, 182)) < 0.5

    class Frames:
        size = CROP

        def pixel_masks(self, indices: np.ndarray) -> np.ndarray:
            return masks[indices]

    source = mask_source(f"data:{way}")
    assert source.name == f"data:{way}"
    got = source.person(Frames(), np.array([4, 3, 2, 1, 0]))  # type: ignore[arg-type]
    expected = np.stack([slow_degraded(mask, way) for mask in masks[::-1]])
    assert got is not None and (got.numpy() == expected).all()
    assert not expected[0].any()


def test_an_unknown_way_to_degrade_masks_is_refused() -> None:
    with pytest.raises(UserError, match="expected data, data:box, data:eroded, data:dilated"):
        mask_source("data:x")


def slow_rle(text: str, height: int, width: int) -> np.ndarray:
    """Packed run lengths, one bit after the other, then one pixel after the other down the columns."""
    bits, numbers = [], []
    for character in text:
        value = ord(character) - 48
        bits += [(value >> bit) & 1 for bit in range(5)]
        if not value & 0x20:
            number = sum(bit << place for place, bit in enumerate(bits))
            if bits[-1]:
                number -= 1 << len(bits)
            numbers.append(number)
            bits = []
    for index in range(3, len(numbers)):
        numbers[index] += numbers[index - 2]
    mask, place, person = np.zeros((height, width), bool), 0, False
    for number in numbers:
        for _ in range(number):
            mask[place % height, place // height] = person
            place += 1
        person = not person
    assert place == height * width
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


def packed(runs: list[int]) -> str:
    """Run lengths as COCO packs them."""
    text = ""
    for index, run in enumerate(runs):
        number = run - runs[index - 2] if index > 2 else run
        while True:
            low, number = number & 0x1F, number >> 5
            done = number == (-1 if low & 0x10 else 0)
            text += chr(48 + (low if done else low | 0x20))
            if done:
                break
    return text


def test_run_lengths_equal_a_slow_reading(masks: np.ndarray) -> None:
    for mask in masks:
        counts = packed(runs_of(mask))
        np.testing.assert_array_equal(slow_rle(counts, 256, 192), mask)  # the transcription itself
        for form in (counts, runs_of(mask)):
            np.testing.assert_array_equal(decode_rle({"size": [256, 192], "counts": form}, (256, 192), "x"), mask)


def test_run_lengths_by_hand() -> None:
    """Worked out by hand: a 3 x 4 mask whose second column and last pixel are set has the runs 3, 3, 5, 1; the last is
    packed as 1 - 3 = -2, which is 11110 in five bits, 30, the character N."""
    expected = np.zeros((3, 4), bool)
    expected[:, 1] = expected[2, 3] = True
    assert unpack_counts("335N") == [3, 3, 5, 1]
    np.testing.assert_array_equal(decode_rle({"size": [3, 4], "counts": "335N"}, (3, 4), "x"), expected)


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ([[1, 2, 3, 4]], "list of polygons"),
        ({"size": [256, 192]}, "no run lengths"),
        ({"size": [192, 256], "counts": [49152]}, r"is \[192, 256\], expected \[256, 192\]"),
        ({"size": [256, 192], "counts": [49151]}, "do not fill"),
        ({"size": [256, 192], "counts": [49153, -1]}, "do not fill"),
        ({"size": [256, 192], "counts": [1e99]}, "do not fill"),
        ({"size": [256, 192], "counts": "p"}, "damaged"),
        ({"size": [256, 192], "counts": "o"}, "break off"),
        ({"size": [256, 192], "counts": "o" * 1000}, "damaged"),
    ],
)
def test_damaged_run_lengths(segmentation: object, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        decode_rle(segmentation, (256, 192), "x")


def write_archive(folder: Path, crops: CropSet, form: str) -> None:
    """The masks of the data as one file."""
    masks = crops.pixel_masks(np.arange(len(crops)))
    frames = list(zip(crops.clip.tolist(), crops.frame.tolist(), strict=True))
    if form.startswith("npz"):
        stored = np.packbits(masks, axis=-1) if form == "npz packed" else masks.astype(np.uint8)
        np.savez(folder / "masks.npz", clip=crops.clip, frame=crops.frame, masks=stored)
        return
    runs = [{"size": [256, 192], "counts": packed(runs_of(mask))} for mask in masks]
    if form == "json list":
        content: object = [{"clip": c, "frame": f, "segmentation": r} for (c, f), r in zip(frames, runs, strict=True)]
    else:
        images = [{"id": 7 * n, "file_name": f"in/{c:04d}_{f:06d}.jpg"} for n, (c, f) in enumerate(frames)]
        content = {
            "images": images,
            "annotations": [{"image_id": 7 * n, "segmentation": run} for n, run in enumerate(runs)],
        }
    (folder / "masks.json").write_text(json.dumps(content))


@pytest.mark.parametrize("form", ["npz packed", "npz bytes", "json list", "json coco"])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_masks_of_one_file_equal_those_of_the_data(tmp_path: Path, tiny_crops: CropSet, form: str, named: str) -> None:
    write_archive(tmp_path, tiny_crops, form)
    path = tmp_path if named == "folder" else next(tmp_path.iterdir())
    from_files = tiny_crops.batches(batch_size=5, masks=mask_source(f"files:{path}"))
    from_data = tiny_crops.batches(batch_size=5, masks=mask_source("data"))
    for one, other in zip(from_files, from_data, strict=True):
        assert one.person_mask is not None and torch.equal(one.person_mask, other.person_mask)


def test_one_file_of_masks_that_does_not_fit(tmp_path: Path, tiny_crops: CropSet) -> None:
    np.savez(tmp_path / "masks.npz", clip=[0], frame=[0], masks=np.zeros((1, 256, 24), np.uint8))
    source = mask_source(f"files:{tmp_path}")
    with pytest.raises(UserError, match="no mask of clip 0, frame 1"):
        tiny_crops.batches(masks=source)
    with pytest.raises(UserError, match="no mask of clip 0, frame 1"):
        source.person(tiny_crops, np.array([1]))
    (tmp_path / "masks.json").write_text("[]")
    with pytest.raises(UserError, match="holds masks.npz and masks.json"):
        tiny_crops.batches(masks=mask_source(f"files:{tmp_path}"))
    np.savez(tmp_path / "masks.npz", clip=[0], frame=[0], masks=np.zeros((1, 192, 256), bool))
    with pytest.raises(UserError, match=r"masks: got bool \(1, 192, 256\), expected"):
        tiny_crops.batches(masks=mask_source(f"files:{tmp_path / 'masks.npz'}"))


def test_other_kinds_of_pictures_are_not_opened(tmp_path: Path, tiny_crops: CropSet) -> None:
    """A PostScript file by the name of a PNG would start a program."""
    write_masks(tmp_path, tiny_crops)
    (tmp_path / "0000_000000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 192 256\n%%EndComments\n")
    with pytest.raises(UserError, match="not a picture of a known format"):
        tiny_crops.batches(masks=mask_source(f"files:{tmp_path}"))


def test_a_plug_in_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_crops: CropSet) -> None:
    (tmp_path / "halves.py").write_text(
        "import torch\n"
        "class Upper:\n"
        "    name = 'halves'\n"
        "    def __init__(self, rest): self.rows = int(rest or 8)\n"
        "    def check(self, crops, indices): pass\n"
        "    def person(self, crops, indices):\n"
        "        mask = torch.zeros(len(indices), 16, 12, dtype=torch.bool); mask[:, :self.rows] = True; return mask\n"
    )
    about = tmp_path / "halves-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n")
    points = ("upper = halves:Upper", "none = halves:Upper", "broken = halves:Nothing", "odd = halves:torch.zeros")
    (about / "entry_points.txt").write_text("[hmrcompress.masks]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for text, rows in (("upper", 8), ("upper:3", 3)):
        batch = next(tiny_crops.batches(masks=mask_source(text)))
        assert (
            batch.person_mask is not None
            and batch.person_mask[:, :rows].all()
            and not batch.person_mask[:, rows:].any()
        )
    assert mask_source("none").name == "none", "the names of the sources that come with the package are taken"
    with pytest.raises(UserError, match="cannot be imported"):
        mask_source("broken")
    with pytest.raises(
        UserError, match="expected data, self, none, auto, files:DIR or onnx:FILE, broken, none, odd, upper"
    ):
        mask_source("lower")
