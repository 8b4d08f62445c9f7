"""Networks of other crops than 256 x 192: crops and masks against slow loops, and the whole line at each size."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress.api.evaluate import _original
from hmrcompress.body.files import starter_body
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.data.formats import open_format
from hmrcompress.data.masks import coverage_grid, mask_source
from hmrcompress.data.warp import crop, square_side
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_file
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.models.network import config_from_state, usual_grid
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.models.vit import PatchEmbed
from hmrcompress.pipeline.boxes import FullFrame, squares
from hmrcompress.pipeline.camera import default_focal
from hmrcompress.pipeline.checked_boxes import CheckedBoxes
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.recipe.bed import Bed
from hmrcompress.recipe.schema import Start
from hmrcompress.records import CROP, CropSize
from hmrcompress.report.contact import lay_over
from hmrcompress.searching.settings import SearchSettings
from hmrcompress.starter.data.clip_stream import rendered
from hmrcompress.starter.data.dataset import definition_sha256, open_split, split_key
from hmrcompress.starter.data.shards import ShardSettings, make_shard
from hmrcompress.starter.data.stream import ShardStream
from hmrcompress.starter.scene.filming import render_clip, surface_of
from hmrcompress.starter.scene.world import make_clip, split_named
from hmrcompress_cli.main import app

SIZES = {
    "large": CropSize(512, 384, 16),
    "patch14": CropSize(224, 168, 14),
    "square": CropSize(256, 256, 16),
    "landscape": CropSize(192, 256, 16),
    "narrow": CropSize(252, 98, 14),
}
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
HEADS = {"num_heads": 2, "head_heads": 2}


def config_of(size: CropSize) -> Any:
    return replace(tiny.SHALLOW, patch=size.patch, grid=size.grid)


def crop_arrays(size: CropSize, clips: int = 2, frames: int = 4) -> dict[str, np.ndarray]:
    """As `tiny.crop_arrays`, of another size; every mask is a rectangle."""
    rng, count = np.random.default_rng(3), clips * frames
    images = rng.integers(0, 128, (count, *size.pixels, 3), dtype=np.uint8)
    masks = np.zeros((count, *size.pixels), bool)
    for index in range(count):
        top, left = rng.integers(size.height // 5), rng.integers(size.width // 5)
        masks[index, top : top + size.height // 2, left : left + size.width // 3] = True
        images[index][masks[index]] += 100
    found = {"images": images, "masks": np.packbits(masks, axis=-1)}
    return found | {name: each for name, each in tiny.crop_arrays(clips, frames).items() if name not in found}


def test_a_size_knows_its_tokens() -> None:
    assert CROP == CropSize(256, 192, 16) and CROP.grid == (16, 12) and str(CROP) == "256x192"
    assert SIZES["large"].grid == (32, 24) and SIZES["patch14"].grid == (16, 12)
    assert [size.same_shape(CROP) for size in SIZES.values()] == [True, True, False, False, False]
    for size in SIZES.values():
        assert config_of(size).crop == size
    for wrong, fault in (
        ((250, 192, 16), "no whole patches of 16"),
        ((256, 192, 4), "more than 4"),
        ((8, 8, 16), "no whole"),
    ):
        with pytest.raises(UserError, match=fault):
            CropSize(*wrong)


def slowly(picture: np.ndarray, cx: float, cy: float, side: float, size: CropSize, rows: range) -> np.ndarray:
    """Rows of the crop, float64, pixel by pixel, places rounded as OpenCV's warpAffine does (`test_warp.slowly`)."""
    pixels = max(size.height, size.width)
    step, left, top = side / pixels, (pixels - size.width) // 2, (pixels - size.height) // 2
    made = np.zeros((len(rows), size.width, 3))

    def place(middle: float, index: int) -> float:
        return math.floor((round(1024 * (middle - pixels / 2 * step)) + round(1024 * step * index) + 16) / 32) / 32

    for line, i in enumerate(rows):
        for j in range(size.width):
            x, y = place(cx, j + left), place(cy, i + top)
            column, row = math.floor(x), math.floor(y)
            for r, down in ((row, 1 - (y - row)), (row + 1, y - row)):
                for c, right in ((column, 1 - (x - column)), (column + 1, x - column)):
                    if 0 <= r < picture.shape[0] and 0 <= c < picture.shape[1]:
                        made[line, j] += down * right * picture[r, c]
    return made


@every_size
@pytest.mark.parametrize(("cx", "cy", "side"), [(70.3, 50.9, 133.7), (12.5, 140.2, 97)])
def test_crops_are_the_middle_of_a_square(size: CropSize, cx: float, cy: float, side: float) -> None:
    y, x = np.mgrid[0:120, 0:150]
    picture = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), x + y / 2], -1).astype(np.uint8)
    rows = range(3, size.height, size.height // 5)
    made = crop(picture, np.array([cx, cy]), side, size=size)
    assert made.shape == (*size.pixels, 3)
    expected = slowly(picture, float(np.float32(cx)), float(np.float32(cy)), side, size, rows)
    assert made.any() and np.abs(made[list(rows)] - expected).max() <= 1


def test_other_columns_of_the_same_square() -> None:
    """A square crop of 256 holds the usual crop; one of 512 shows the same with twice the pixels, blurred later."""
    rng = np.random.default_rng(0)
    picture, centre = rng.integers(0, 256, (300, 280, 3), dtype=np.uint8), np.array([140.0, 150.0])
    usual, square = crop(picture, centre, 256), crop(picture, centre, 256, size=SIZES["square"])
    np.testing.assert_array_equal(square[:, 32:-32], usual)
    np.testing.assert_array_equal(crop(picture, centre, 256, size=SIZES["large"])[::2, ::2], usual)
    for side, size, blurred in ((1024, CROP, True), (1024, SIZES["large"], False), (1400, SIZES["large"], True)):
        sharp, soft = (crop(picture, centre, side, size=size, antialias=on) for on in (False, True))
        assert np.array_equal(sharp, soft) != blurred


def test_boxes_are_widened_to_the_crop() -> None:
    width, height = np.array([30.0, 90, 100]), np.array([100.0, 100, 50])
    assert square_side(width, height, SIZES["square"]).tolist() == [100, 100, 100]
    assert square_side(width, height, SIZES["landscape"]).tolist() == [100 * 4 / 3, 100 * 4 / 3, 100]
    for size in (SIZES["large"], SIZES["patch14"]):
        np.testing.assert_allclose(square_side(width, height, size), square_side(width, height), rtol=1e-15)
    for size in SIZES.values():  # the kept part of the square holds the box, and touches it
        side = square_side(width, height, size)
        room = np.stack([side * size.width / size.side / width, side * size.height / size.side / height])
        np.testing.assert_allclose(room.min(0), 1)
    corners = np.array([[0.0, 0, 40, 100]])
    assert squares(corners, 1.0, SIZES["square"])[1].tolist() == [100] and squares(corners, 1.0)[1].tolist() == [100]
    assert squares(corners, 1.0, SIZES["landscape"])[1].tolist() == [100 * 4 / 3]
    frame: Any = type("F", (), {"size": (100, 80), "segment": 0, "number": 0})
    full = FullFrame()
    sides = [CheckedBoxes(full, same_size=True, crop=size).boxes(frame)[0].side for size in (CROP, SIZES["square"])]
    assert sides == [100 * 4 / 3, 100], "whoever cuts crops says of what size"


def slow_coverage(mask: np.ndarray, size: CropSize) -> np.ndarray:
    rows, columns = size.grid
    shares = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            for row in range(size.patch * i - 2, size.patch * (i + 1) - 2):
                if 0 <= row < size.height:
                    first, last = size.patch * j - 2, size.patch * (j + 1) - 2
                    shares[i, j] += mask[row, max(first, 0) : last].sum()
    return shares / size.patch**2


@every_size
def test_masks_become_the_tokens_of_the_network(size: CropSize, tmp_path: Path) -> None:
    """Against a loop, and against what the patch embedding sees; of every source."""
    crops = CropSet(crop_arrays(size), tiny.crop_meta()).of_size(size)
    assert crops.size == size
    indices = np.arange(3)
    masks = crops.pixel_masks(indices)
    assert masks is not None and masks.shape == (3, *size.pixels)
    expected = np.stack([slow_coverage(mask, size) for mask in masks])
    got = coverage_grid(torch.from_numpy(masks), size).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    embed = PatchEmbed(1, size.patch)
    torch.nn.init.constant_(embed.proj.weight, 1 / (3 * size.patch**2))
    torch.nn.init.zeros_(embed.proj.bias)
    seen = embed(torch.from_numpy(masks)[:, None].float().expand(-1, 3, -1, -1))[:, 0].detach()
    np.testing.assert_allclose(seen.numpy(), expected, rtol=0, atol=1e-5)
    person = expected >= 0.1
    for name in ("data", "data:box"):  # the person of these crops is a box
        found = mask_source(name).person(crops, indices)
        assert found is not None and (found.numpy() == person).all(), name
    grown = mask_source("data:dilated").person(crops, indices)
    shrunk = mask_source("data:eroded").person(crops, indices)
    assert grown is not None and shrunk is not None and grown.shape[1:] == size.grid
    assert person[~shrunk.numpy()].any() and not (shrunk.numpy() & ~person).any() and (grown.numpy() | ~person).all()
    for index, mask in zip(indices, masks, strict=True):
        Image.fromarray(mask).save(tmp_path / f"{crops.clip[index]:04d}_{crops.frame[index]:06d}.png")
    packed, plain = tmp_path / "packed.npz", tmp_path / "plain.npz"
    about = {"clip": crops.clip[indices], "frame": crops.frame[indices]}
    np.savez(packed, masks=np.packbits(masks, axis=-1), **about)
    np.savez(plain, masks=masks, **about)
    for path in (tmp_path, packed, plain):
        source = mask_source(f"files:{path}")
        source.check(crops, indices)
        found = source.person(crops, indices)
        assert found is not None and (found.numpy() == person).all(), path
        if size.pixels != CROP.pixels:
            other = CropSet(tiny.crop_arrays(2, 4), tiny.crop_meta())
            with pytest.raises(UserError, match=r"expected .*(192x256|256,192)"):
                source.check(other, indices)


def test_stored_crops_serve_one_size() -> None:
    crops = CropSet(crop_arrays(SIZES["large"]), tiny.crop_meta(), where="mine.npz")
    assert crops.of_size(SIZES["large"]) is crops
    coarse = crops.of_size(CropSize(512, 384, 32))
    assert coarse.size.grid == (16, 12) and crops.size.grid == (32, 24) and coarse.sha256 == crops.sha256
    sentence = r"mine.npz: holds crops of 512x384 pixels .*, the network takes 256x192. Give the pictures .* of 256x192"
    with pytest.raises(UserError, match=sentence):
        crops.of_size(CROP)
    for change, fault in (
        ({"images": np.zeros((8, 512, 384), np.uint8)}, r"array images: got shape \(8, 512, 384\), expected"),
        ({"masks": np.zeros((8, 512, 24), np.uint8)}, r"array masks: .* expected \(8, 512, 48\)"),
    ):
        with pytest.raises(UserError, match=fault):
            CropSet(crop_arrays(SIZES["large"]) | change, tiny.crop_meta())


def test_pictures_are_cut_anew(tmp_path: Path) -> None:
    """Boxes are widened to the new aspect; squares that the file gives are used as they are."""
    picture = np.random.default_rng(2).integers(0, 256, (180, 200, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "0.png")
    boxes = [
        {"image": "0.png", "box": [40, 60, 140, 160]},
        {"image": "0.png", "track": 1, "centre": [100, 90], "side": 150},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    usual = open_format(f"images:{tmp_path},antialias=off")
    assert usual.size == CROP and usual.of_size(CROP) is usual
    hashes = {usual.sha256}
    for size in SIZES.values():
        crops = usual.of_size(size)
        assert crops.size == size and crops.arrays["images"].shape == (2, *size.pixels, 3)
        sides = [square_side(np.array(120.0), np.array(120.0), size), 150.0]
        centres = ([90.0, 110.0], [100.0, 90.0])
        for row, (centre, side) in enumerate(zip(centres, sides, strict=True)):
            expected = crop(picture, np.array(centre), float(side), size=size)
            np.testing.assert_array_equal(crops.arrays["images"][row], expected)
        hashes.add(crops.sha256)
        assert crops.of_size(CROP).sha256 == usual.sha256
        assert crops.contents_sha256() != usual.contents_sha256()
    assert len(hashes) == 1 + len(SIZES)


@pytest.fixture(scope="module")
def starter_frame() -> dict[CropSize, Any]:
    """A crop of the starter world by size."""
    body = starter_body()
    clip, surface = make_clip(split_named("val"), 0, body), surface_of(body)
    sizes = (CROP, SIZES["large"], SIZES["square"])
    return {size: next(render_clip(clip, body, surface, np.array([40]), size))[0] for size in sizes}


def test_the_starter_world_at_other_sizes() -> None:
    """The same rays: a person of four times the pixels, and of a square the same columns."""
    body = starter_body()
    clip, surface = make_clip(split_named("val"), 0, body), surface_of(body)
    where = np.array([40])

    def seen(size: CropSize) -> Any:
        ((found, hidden),) = render_clip(clip, body, surface, where, size)
        return found, hidden

    (usual, hidden), (large, hidden_large) = seen(CROP), seen(SIZES["large"])
    assert large.image.shape == (512, 384, 3) and large.person.any()
    quarters = large.person.reshape(256, 2, 192, 2).mean((1, 3))
    assert ((quarters >= 0.5) != usual.person).mean() < 0.01
    assert hidden_large == pytest.approx(hidden, abs=0.02)
    smooth = large.image.reshape(256, 2, 192, 2, 3).mean((1, 3))
    assert np.abs(smooth - usual.image).mean() < 12  # but for noise, which is each pixel's
    square, hidden_square = seen(SIZES["square"])
    assert (square.silhouette[:, 32:-32] != usual.silhouette).mean() < 1e-3
    assert (square.person[:, 32:-32] != usual.person).mean() < 1e-2
    assert np.abs(square.image[:, 32:-32].astype(int) - usual.image).mean() < 12
    assert hidden_square <= hidden + 1e-2
    assert {"size"} == set(split_key("val", body, size=SIZES["large"]).inputs) - set(split_key("val", body).inputs)
    definitions = {definition_sha256([clip], body, size=size) for size in (CROP, *SIZES.values())}
    assert len(definitions) == 1 + len(SIZES)
    assert definition_sha256([clip], body) == definition_sha256([clip], body, size=CropSize(256, 192, 32))


def test_a_mesh_lies_over_a_crop_of_any_size() -> None:
    body, cam = starter_body(), (0.6, 0.05, -0.1)
    vertices = body.v_template.numpy().astype(np.float32)
    covered = [
        (lay_over(np.zeros((*size.pixels, 3), np.uint8), vertices, body.faces, cam) > 0).any(-1)
        for size in (CROP, SIZES["large"], SIZES["square"])
    ]
    assert 0.02 < covered[0].mean() < 0.9
    assert ((covered[1].reshape(256, 2, 192, 2).mean((1, 3)) >= 0.5) != covered[0]).mean() < 0.02
    assert (covered[2][:, 32:-32] != covered[0]).mean() < 1e-3


def test_the_shipped_segmenter_sees_crops_of_any_size(starter_frame: dict[CropSize, Any]) -> None:
    for size, found in starter_frame.items():
        about = {"clip": np.zeros(1, int), "frame": np.zeros(1, int)}
        arrays = {"images": found.image[None], "masks": np.packbits(found.person, axis=-1)[None]}
        crops = CropSet(arrays | about, tiny.crop_meta()).of_size(size)
        true, seen = (mask_source(name).person(crops, np.zeros(1, int)) for name in ("data", "auto"))
        assert true is not None and seen is not None and seen.shape[1:] == size.grid
        assert (true & seen).sum() / (true | seen).sum() > 0.6, size


def test_training_crops_of_other_sizes(tmp_path: Path) -> None:
    """The same people, labelled on the network's patches; whole clips with the masks of theirs."""
    body = starter_body()
    shards = {
        size: make_shard(3, 0, body, surface_of(body), [], ShardSettings(size.pixels, 2, patch=size.patch))
        for size in (CROP, SIZES["large"], SIZES["square"])
    }
    usual, large, square = shards.values()
    assert large["images"].shape == (2, 512, 384, 3) and large["parts"].shape == (2, 32, 24, 24)
    for name in ("joints", "rotations", "betas", "keypoints"):
        np.testing.assert_array_equal(large[name], usual[name])
    fewer = large["parts"].astype(float).reshape(2, 16, 2, 12, 2, 24).mean((2, 4))
    assert np.abs(fewer - usual["parts"]).max() < 0.05 * 255
    assert np.abs(square["parts"][:, :, 2:-2].astype(float) - usual["parts"]).max() < 0.02 * 255
    made = rendered("calib", 0, body, frames=2, size=SIZES["patch14"])
    assert made.images.shape == (2, 224, 168, 3) and made.person is not None and made.person.shape == (2, 16, 12)
    with ShardStream(tmp_path / "s", mask_source("data"), batch_size=2, workers=0, size=SIZES["large"]) as stream:
        stream.source.load = lambda stage, index: large  # type: ignore[method-assign]
        crops = stream.batch(0)
    assert crops.images.shape == (2, 3, 512, 384) and crops.person_mask is not None
    assert crops.person_mask.shape == (2, 32, 24)


def test_grids_by_their_number_of_tokens() -> None:
    """Every 4:3 and every square grid is known by its number, and no other number is taken for one."""
    grids = {(4 * k, 3 * k) for k in range(1, 20)} | {(k, k) for k in range(1, 60)}
    by_number = {rows * columns: (rows, columns) for rows, columns in grids}
    assert len(by_number) == len(grids)
    for number in range(1, 3000):
        if number in by_number:
            assert usual_grid(number, "x") == by_number[number]
        else:
            with pytest.raises(UserError, match=f"x: its positions are for {number} tokens, which are neither"):
                usual_grid(number, "x")


def saved(folder: Path, size: CropSize) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(tiny.network(config=config_of(size)).state_dict(), folder / "a.pt")
    return folder / "a.pt"


@pytest.mark.parametrize("name", ["large", "patch14", "square"])
def test_a_checkpoint_whose_positions_tell(tmp_path: Path, name: str) -> None:
    found = load_checkpoint(saved(tmp_path, SIZES[name]), **HEADS)
    assert found.config.crop == SIZES[name] and found.origins["grid of tokens"] == "the number of positions"
    with torch.no_grad():
        found.network(torch.zeros(1, 3, *SIZES[name].pixels))


def test_a_checkpoint_whose_configuration_tells(tmp_path: Path) -> None:
    """As 4D-Humans writes it: BBOX_SHAPE is width, height, and only its ratio counts."""
    for name, model in (
        ("large", "{IMAGE_SIZE: 512, BBOX_SHAPE: [192, 256]}"),
        ("square", "{IMAGE_SIZE: 256, BBOX_SHAPE: [1, 1]}"),
        ("landscape", "{IMAGE_SIZE: 256, BBOX_SHAPE: [256, 192]}"),
    ):
        path = saved(tmp_path / name, SIZES[name])
        (path.parent / "model_config.yaml").write_text(f"MODEL: {model}\n")
        found = load_checkpoint(path, **HEADS)
        assert found.config.crop == SIZES[name]
        assert found.origins["grid of tokens"] == str(path.parent / "model_config.yaml")
    given = load_checkpoint(path, grid=(16, 12), **HEADS)
    assert given.config.grid == (16, 12) and given.origins["grid of tokens"].startswith("given as grid, where ")
    for shape in ("IMAGE_SIZE: 256", "IMAGE_SIZE: 256, BBOX_SHAPE: [3, no]", "IMAGE_SIZE: 250, BBOX_SHAPE: [1, 1]"):
        (path.parent / "model_config.yaml").write_text(f"MODEL: {{{shape}}}\n")
        assert load_checkpoint(path, **HEADS).config.grid == (16, 12), shape
    (path.parent / "model_config.yaml").write_text("MODEL: {IMAGE_SIZE: 512, BBOX_SHAPE: [192, 256]}\n")
    with pytest.raises(UserError, match=r"has positions for 192 tokens, where .* says 32x24 .* Give grid"):
        load_checkpoint(path, **HEADS)


def test_a_checkpoint_of_which_nothing_tells(tmp_path: Path) -> None:
    """It is refused, the argument helps, and a converted file tells every command."""
    size = SIZES["narrow"]
    path = saved(tmp_path, size)
    count = math.prod(size.grid)
    with pytest.raises(UserError, match=f"for {count} tokens, which are neither 4:3 nor square. Give grid"):
        load_checkpoint(path, **HEADS)
    assert load_checkpoint(path, grid=size.grid, **HEADS).config.crop == size
    with pytest.raises(UserError, match="do not fit a grid of 9x9"):
        load_checkpoint(path, grid=(9, 9), **HEADS)
    rows, columns = size.grid
    out, flags = tmp_path / "b.safetensors", ["--num-heads", "2", "--head-heads", "2"]
    done = CliRunner().invoke(app, ["convert", str(path), *flags, "--grid", f"{rows}x{columns}", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert load_checkpoint(out).config.crop == size
    with pytest.raises(UserError, match=f"header says grid {rows}x{columns}, which cannot be changed to 3x2"):
        load_checkpoint(out, grid=(3, 2))
    done = CliRunner().invoke(app, ["inspect", str(path), *flags, "--grid", "18"])
    assert done.exit_code == 2 and "--grid: got '18', expected rows and columns" in done.output
    with pytest.raises(UserError, match="random:hmr2: the published architecture says grid 16x12"):
        hc.load("random:hmr2", grid=(32, 24))
    assert hc.load(out, grid=[rows, columns]).config.crop == size  # type: ignore[arg-type]
    start = Start(model=str(path), grid=size.grid, **HEADS)
    assert hc.load(start.model_file()).config.crop == size
    state = dict(tiny.network(config=config_of(size)).state_dict())
    assert config_from_state(state, grid=size.grid, **HEADS) == config_of(size)


def test_a_grid_that_was_given_is_part_of_the_hash(tmp_path: Path) -> None:
    """The file is the same, the network is not: a plan or a baseline of the one is none of the other."""
    path, turned = saved(tmp_path, SIZES["patch14"]), (12, 16)
    usual, given = load_checkpoint(path, **HEADS), load_checkpoint(path, grid=turned, **HEADS)
    assert load_checkpoint(path, grid=(16, 12), **HEADS).sha256 == usual.sha256 == sha256_file(path)
    assert given.sha256 != usual.sha256 and given.reference != usual.reference
    groups = ((0,), (1,))
    plan = Plan(checkpoint=given.reference, groups=groups)
    with pytest.raises(UserError, match="checkpoint.sha256: the plan was made for"):
        hc.merge(usual, plan, tmp_path / "out")
    folder = hc.merge(given, plan, tmp_path / "out")
    with pytest.raises(UserError, match="was made from another network"):
        _original(hc.load(folder.path), usual)
    assert _original(hc.load(folder.path), given) is given


def test_a_baseline_with_other_heads_is_another_network(tmp_path: Path) -> None:
    path = saved(tmp_path, SIZES["patch14"])
    model = load_checkpoint(path, **HEADS)
    hc.merge(model, Plan(checkpoint=model.reference, groups=((0,), (1,))), tmp_path / "out")
    other = load_checkpoint(path, num_heads=4, head_heads=2)
    with pytest.raises(UserError, match="has num_heads 4 and out 2, so it was opened as another network"):
        _original(hc.load(tmp_path / "out"), other)


def test_the_focal_length_goes_by_the_side_of_the_crop() -> None:
    """5000 pixels on the network's square, of whatever size it is."""
    for size in (CROP, *SIZES.values()):
        assert default_focal((1920, 1080), size) == pytest.approx(5000 * 1920 / size.side)


def test_rows_of_a_table_take_the_crops_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where crops are of as many pixels and only the patches differ."""
    models = {"same": SIZES["patch14"], "patches": CropSize(224, 168, 28), "pixels": CROP}
    found = {name: SimpleNamespace(config=config_of(size)) for name, size in models.items()}
    monkeypatch.setattr("hmrcompress.recipe.bed.opening.load", lambda name, seed: found[name])
    bed: Any = SimpleNamespace(checkpoint=found["same"], recipe=SimpleNamespace(seed=0))
    assert Bed.model(bed, "same") is Bed.model(bed, None) is found["same"]
    for name, crops in (("patches", "224x168 pixels in patches of 28"), ("pixels", "256x192 pixels in patches of 16")):
        with pytest.raises(UserError, match=f"{name}: takes crops of {crops}, the recipe's model of 224x168"):
            Bed.model(bed, name)


def test_a_video_of_crops_takes_those_of_the_starter_world(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops.npz", crop_arrays(SIZES["large"]), tiny.crop_meta())
    data = f"crops:{tmp_path / 'crops.npz'}"
    done = CliRunner().invoke(app, ["starter", "video", "--data", data, "--clips", "0", "-o", str(tmp_path / "a.mp4")])
    assert done.exit_code == 2 and "512x384" in done.output and "256x192" in done.output, done.output


def tokens_of(size: CropSize) -> TokenSettings:
    """Two thirds of the tokens, in one layer."""
    count = math.prod(size.grid)
    return TokenSettings(keep=2 * count // 3, per_layer=count)


@pytest.mark.parametrize("name", [pytest.param("large", marks=pytest.mark.slow), "patch14", "square"])
def test_the_whole_line(name: str, tmp_path: Path, tiny_body_file: Path) -> None:
    """Search, merge, eval, predict; the prediction is the merged network's on the crop that a slow hand cuts."""
    size = SIZES[name]
    path, data = saved(tmp_path, size), tmp_path / "crops.npz"
    write_crops(data, crop_arrays(size, frames=3), tiny.crop_meta())
    model = hc.load(path, **HEADS)
    options: dict[str, Any] = {"body": tiny_body_file, "device": "cpu"}
    tokens = tokens_of(size)
    settings = SearchSettings(tau_mm=0.0, frames_per_clip=2, batch_size=4, tokens=tokens, with_tokens=True)
    found = hc.search(model, data, journal=tmp_path / "j.jsonl", settings=settings, **options)
    assert found.plan.tokens == tokens
    folder = hc.merge(model, found.plan, tmp_path / "merged")
    assert (folder.config.crop.height, folder.config.crop.width) == size.pixels and folder.network.crop == size
    result = hc.evaluate(folder.path, data, against=model, **options)
    assert np.isfinite(result.stages["merged_tokens"].mpjpe_mm) and result.stages["merged_tokens"].n_frames == 6
    assert result.tokens["counts"] == [math.prod(size.grid), tokens.keep]
    probe = SaliencyProbe(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), 0.0)
    probed = write_model_folder(
        tmp_path / "probed",
        folder.state,
        folder.network,
        plan=folder.plan,
        probe=probe,
        provenance=folder.config.provenance,
    )
    by_itself = hc.evaluate(probed.path, data, masks="self", **options).stages["merged_tokens"]
    assert np.isfinite(by_itself.mpjpe_mm) and by_itself.n_frames == 6
    with pytest.raises(UserError, match=f"holds crops of 256x192 pixels .*, the network takes {size}"):
        hc.evaluate(folder.path, CropSet(tiny.crop_arrays(), tiny.crop_meta()), **options)
    picture = crop_arrays(SIZES["square"])["images"][0][:200]
    Image.fromarray(picture).save(tmp_path / "p.png")
    hc.predict(folder.path, tmp_path / "p.png", tmp_path / "bodies", masks="none", **options)
    with np.load(tmp_path / "bodies" / "params.npz") as made:
        side, betas = float(made["side"][0]), made["betas"][0]
    frame = hc.Predictor(folder.path, boxes="full", masks="none", **options)(picture)
    assert frame["side"][0] == side
    np.testing.assert_allclose(frame["betas"][0], betas, atol=1e-5)
    assert side == pytest.approx(max(256 * size.side / size.width, 200 * size.side / size.height))
    from hmrcompress.api.opening import compressed_network
    from hmrcompress.data.crops import normalise

    images = normalise(crop(picture, np.array([128.0, 100.0]), side, size=size, antialias=True)[None])
    with torch.no_grad():
        expected = compressed_network(hc.load(folder.path))(images)
    np.testing.assert_allclose(betas, expected.betas[0].numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["large", "patch14"])
def test_an_exported_network(name: str, tmp_path: Path, tiny_body_file: Path) -> None:
    size = SIZES[name]
    data = tmp_path / "crops.npz"
    write_crops(data, crop_arrays(size), tiny.crop_meta())
    model = hc.load(saved(tmp_path, size), **HEADS)
    plan = Plan(checkpoint=model.reference, groups=((0,), (1,)), tokens=tokens_of(size))
    merged = hc.merge(model, plan, tmp_path / "merged").path
    folder = hc.export(merged, tmp_path / "out", data=data, body=tiny_body_file)
    inputs = folder.config.inputs
    assert inputs["images"]["shape"] == ["B", 3, *size.pixels] and inputs["person_mask"]["shape"] == ["B", *size.grid]
    with np.load(folder.path / "golden.npz") as golden:
        assert golden["images"].shape[2:] == size.pixels and golden["person_mask"].shape[1:] == size.grid
    options: dict[str, Any] = {"body": tiny_body_file, "device": "cpu"}
    theirs = hc.evaluate(folder.path, data, **options).stages["exported"].mpjpe_mm
    ours = hc.evaluate(merged, data, **options).stages["merged_tokens"].mpjpe_mm
    assert theirs == pytest.approx(ours, abs=0.01)
    Image.fromarray(crop_arrays(size)["images"][0]).save(tmp_path / "p.png")
    summary = hc.predict(folder.path, tmp_path / "p.png", tmp_path / "bodies", masks="none", **options)
    assert summary.bodies == 1


@pytest.mark.slow
def test_a_split_is_rendered_at_the_size_that_is_asked_for(tmp_path: Path) -> None:
    """Once for each size, kept beside the usual one; a set of one size gives those of others."""
    body, size = starter_body(), SIZES["patch14"]
    crops = open_split("val", body, home=tmp_path, clips=1, size=size)
    assert crops.size == size and crops.arrays["images"].shape[1:] == (224, 168, 3)
    kept = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "starter" / "splits").iterdir() if path.is_dir())
    assert len(kept) == 1 and kept[0].endswith("-1-224x168")
    usual = crops.of_size(CROP)
    assert usual.size == CROP and usual.sha256 != crops.sha256
    np.testing.assert_array_equal(usual.arrays["poses"], crops.arrays["poses"])
    np.testing.assert_array_equal(usual.arrays["conditions"], crops.arrays["conditions"])
    np.testing.assert_allclose(crops.arrays["focal"], usual.arrays["focal"] * 224 / 256, rtol=1e-6)
    assert usual.of_size(size).contents_sha256() == crops.contents_sha256()
