"""Masks in every kind of picture file mean one thing, the same as in an array, or are refused by name."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cases.scenes import png_bytes
from cases.tables import FRAMES, mask_pictures, palette, person_masks
from PIL import Image
from typer.testing import CliRunner

from hmrcompress.data.crops import CropSet
from hmrcompress.data.mask_pixels import parse_value, person_of_levels, person_of_png
from hmrcompress.data.masks import mask_source
from hmrcompress.errors import UserError, hearing
from hmrcompress_cli.main import app

PERSON = person_masks()[0]
GOOD = ("white", "zero_one", "sixteen_bit", "sixteen_bit_labels", "palette_dark", "red", "cut_out", "grey_alpha")


@pytest.fixture(scope="module")
def folder(cases: Callable[[str], Path]) -> Path:
    return cases("masks")


@pytest.fixture(scope="module")
def crops(folder: Path) -> CropSet:
    return CropSet.open(folder / "crops.npz")


def tokens(crops: CropSet, text: str) -> torch.Tensor:
    source = mask_source(text)
    source.check(crops, np.arange(FRAMES))
    person = source.person(crops, np.arange(FRAMES))
    assert person is not None
    return person


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_mask_shows_the_same_person(folder: Path, crops: CropSet, name: str) -> None:
    """B15: nobody was found in most of them."""
    assert torch.equal(tokens(crops, f"files:{folder / name}"), tokens(crops, "data"))


@pytest.mark.parametrize("level", [1, 100, 127, 200, 255])
def test_arrays_and_pictures_agree(tmp_path: Path, crops: CropSet, level: int) -> None:
    """B16: of the levels 0 and 100 the array showed a person and the picture nobody."""
    masks = person_masks().astype(np.uint8) * np.uint8(level)
    mask_pictures(tmp_path / "png", Image.fromarray(masks[0]))
    np.savez(tmp_path / "masks.npz", clip=crops.clip, frame=crops.frame, masks=masks)
    one, other = tokens(crops, f"files:{tmp_path / 'png'}"), tokens(crops, f"files:{tmp_path / 'masks.npz'}")
    assert torch.equal(one, other) and torch.equal(one, tokens(crops, "data"))


def saved(path: Path, image: Image.Image, **how: object) -> Path:
    image.save(path, "PNG", **how)
    return path


def colours(person: tuple[int, ...], back: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(PERSON[..., None], person, back).astype(np.uint8))


def packed_greys(depth: int, value: int) -> bytes:
    """A PNG of greys of fewer bits, its rows packed by hand."""
    bits = (np.where(PERSON, value, 0)[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(256, -1).astype(np.uint8), axis=-1)
    return png_bytes(192, 256, depth, 0, b"".join(b"\0" + row.tobytes() for row in rows))


def numbered(order: tuple[int, int], colours: tuple[tuple[int, int, int], tuple[int, int, int]]) -> Image.Image:
    """Indices of the background and of the person, and the colours of indices 0 and 1."""
    image = Image.fromarray(np.where(PERSON, order[1], order[0]).astype(np.uint8), "P")
    image.putpalette([*colours[0], *colours[1]])
    return image


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 200, 0)
SOFT = np.where(PERSON, 255, 0).astype(np.uint8)
SOFT[19, 40:150] = 90


@pytest.mark.parametrize(
    "image",
    [
        numbered((0, 1), (BLACK, WHITE)),
        numbered((1, 0), (WHITE, BLACK)),  # as optimisers number them, the more frequent colour first
        numbered((1, 0), (RED, BLACK)),
        colours((255, 255, 255, 255), (0, 0, 0, 255)),
        colours((255, 255, 255, 255), (255, 255, 255, 0)),  # a white silhouette on nothing
        colours((9, 200, 7, 255), (0, 0, 0, 0)),
        colours((9, 200, 7, 130), (30, 40, 50, 90)),  # half transparent
        Image.fromarray(PERSON),
        Image.fromarray(np.where(PERSON, 7, 0).astype(np.uint16)),
    ],
)
def test_other_ways_to_say_it(tmp_path: Path, image: Image.Image) -> None:
    assert np.array_equal(person_of_png(saved(tmp_path / "m.png", image), None), PERSON)


@pytest.mark.parametrize(("depth", "value"), [(1, 1), (2, 1), (2, 3), (4, 1), (4, 9)])
def test_greys_of_few_bits(tmp_path: Path, depth: int, value: int) -> None:
    (tmp_path / "m.png").write_bytes(packed_greys(depth, value))
    assert np.array_equal(person_of_png(tmp_path / "m.png", None), PERSON)
    assert np.array_equal(person_of_png(tmp_path / "m.png", (value, value)), PERSON), "values are those in the file"
    assert not person_of_png(tmp_path / "m.png", (value + 1, value + 1)).any()


def test_one_level_is_nobody_or_everybody(tmp_path: Path) -> None:
    blank, full = np.zeros((256, 192), np.uint8), np.full((256, 192), 1, np.uint8)
    assert not person_of_png(saved(tmp_path / "0.png", Image.fromarray(blank)), None).any()
    assert person_of_png(saved(tmp_path / "1.png", Image.fromarray(full)), None).all()
    clear = Image.fromarray(np.zeros((256, 192, 4), np.uint8))
    assert not person_of_png(saved(tmp_path / "c.png", clear), None).any()
    grey = Image.fromarray(np.where(PERSON, 255, 0).astype(np.uint8))
    keyed = saved(tmp_path / "k.png", grey, transparency=0)
    assert np.array_equal(person_of_png(keyed, None), PERSON)


def two_black(index: int) -> Image.Image:
    """Indices without any colours."""
    return palette(PERSON, index, (0, 0, 0))


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (Image.fromarray(SOFT), r"it has 3 levels \(0, 90, 255\)"),
        (Image.fromarray(np.where(PERSON, 200, 50).astype(np.uint8)), "its two levels are 50 and 200, of which none"),
        (colours(RED, GREEN), r"of its two colours \(#00c800, #c80000\) none is black"),
        (numbered((0, 1), (GREEN, RED)), "the colours of its two levels, 0 and 1, are neither of them black"),
        (two_black(1), "the colours of its two levels, 0 and 1, are both black"),
        (Image.fromarray(np.mgrid[0:256, 0:192].sum(0).astype(np.uint8)), "is no mask: it has 256 levels"),
        (colours((0, 0, 0, 255), (255, 255, 255, 9)), "another mask than its transparent pixels"),
        (Image.new("L", (256, 192)), "the mask is 256x192 pixels, expected 192x256"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(tmp_path: Path, image: Image.Image, fault: str) -> None:
    with pytest.raises(UserError, match=f"m.png: .*{fault}"):
        person_of_png(saved(tmp_path / "m.png", image), None)


def test_files_that_are_no_mask_are_refused_by_name(tmp_path: Path, folder: Path) -> None:
    colour16 = png_bytes(192, 256, 16, 2, b"".join(b"\0" + bytes(6 * 192) for _ in range(256)))
    frames = [Image.new("L", (192, 256), n) for n in (0, 255)]
    moving = io.BytesIO()
    frames[0].save(moving, "PNG", save_all=True, append_images=frames[1:])
    picture = io.BytesIO()
    frames[0].save(picture, "JPEG")
    torn = (folder / "white" / "0000_000000.png").read_bytes()[:-30]
    for data, fault in (
        (colour16, "has colours of 16 bits"),
        (moving.getvalue(), "holds several pictures"),
        (picture.getvalue(), "not a PNG"),
        (torn, "not a picture that can be read"),
        (torn[:20], "its header is cut off"),
        (b"", "the file is empty"),
        (png_bytes(20000, 20000, 8, 0), "more pixels than"),
    ):
        (tmp_path / "m.png").write_bytes(data)
        with pytest.raises(UserError, match=f"m.png: .*{fault}"):
            person_of_png(tmp_path / "m.png", None)


def test_a_value_chooses_among_levels(tmp_path: Path) -> None:
    labels = np.where(PERSON, 15, 7).astype(np.uint8)
    labels[:10] = 0
    image = Image.fromarray(labels, "P")
    image.putpalette([0, 0, 0] * 256)
    indices = saved(tmp_path / "p.png", image)
    greys = saved(tmp_path / "g.png", Image.fromarray(labels))
    wide = saved(tmp_path / "w.png", Image.fromarray(labels.astype(np.uint16) * 256 + 2))
    coloured = saved(tmp_path / "c.png", colours(RED, BLACK))
    same = saved(tmp_path / "s.png", Image.fromarray(np.repeat(labels[..., None], 3, 2)))
    for path in (indices, greys, same):
        assert np.array_equal(person_of_png(path, (15, 15)), PERSON)
        assert np.array_equal(person_of_png(path, (8, 20)), PERSON)
        assert not person_of_png(path, (16, 20)).any()
    assert np.array_equal(person_of_png(wide, (15 * 256 + 2,) * 2), PERSON)
    assert np.array_equal(person_of_levels(labels, (15, 15), "x"), PERSON)
    soft = saved(tmp_path / "soft.png", Image.fromarray(SOFT))
    assert np.array_equal(person_of_png(soft, (128, 255)), PERSON)
    with pytest.raises(UserError, match=r"c.png: has colours, of which no number"):
        person_of_png(coloured, (1, 1))
    assert (parse_value("3"), parse_value("128-255")) == ((3, 3), (128, 255))
    for text in ("", "-3", "x", "1-", "9-3", "70000", "1.5", "²", "1-2-3"):
        with pytest.raises(UserError, match="value=…"):
            parse_value(text)


def test_a_value_is_part_of_the_name_and_not_for_bits(tmp_path: Path, folder: Path, crops: CropSet) -> None:
    assert mask_source(f"files:{folder / 'red'},value=3-9").name == f"files:{folder / 'red'},value=3-9"
    odd = tmp_path / "a,value=b"
    odd.mkdir()
    with pytest.raises(UserError, match="got 'b'"):
        mask_source(f"files:{odd}")
    with pytest.raises(UserError, match="masks: bits have no values"):
        tokens(crops, f"files:{folder / 'first.npz'},value=3")
    labels = person_masks().astype(np.int32) * 3 + 1
    np.savez(tmp_path / "l.npz", clip=crops.clip, frame=crops.frame, masks=labels)
    assert torch.equal(tokens(crops, f"files:{tmp_path / 'l.npz'},value=4"), tokens(crops, "data"))
    with pytest.raises(UserError, match=r"l.npz: masks of clip 0, frame 0: its two levels are 1 and 4"):
        tokens(crops, f"files:{tmp_path / 'l.npz'}")
    np.savez(tmp_path / "t.npz", clip=[0, 0], frame=[1, 1], masks=np.zeros((2, 256, 24), np.uint8))
    with pytest.raises(UserError, match="clip 0, frame 1 occurs twice"):
        tokens(crops, f"files:{tmp_path / 't.npz'}")


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
def test_masks_of_nobody_are_told(folder: Path, crops: CropSet) -> None:
    with hearing() as told:
        tokens(crops, f"files:{folder / 'white'}")
        assert told == []
        assert not tokens(crops, f"files:{folder / 'white'},value=7").any()
    assert told == [f"files:{folder / 'white'},value=7: nobody on 8 masks one after the other, to clip 1, frame 3"]


def test_the_commands_refuse_masks_that_are_not_there(
    tmp_path: Path, folder: Path, tiny_model: Path, cases: Callable[[str], Path]
) -> None:
    """B17: a folder that is not there was accepted, as the model merges no tokens; and what a value is for."""
    picture, out = str(cases("pictures") / "reference.png"), str(tmp_path / "out")
    data = ["--data", f"crops:{folder / 'crops.npz'}"]
    for command, fault in (
        (["predict", str(tiny_model), picture, "-o", out, "--masks", "files:nowhere"], "nowhere: no such folder"),
        (["profile", str(tiny_model), picture, "--masks", "files:nowhere"], "nowhere: no such folder"),
        (["eval", str(tiny_model), *data, "--masks", "files:nowhere"], "nowhere: no such folder"),
        (["search", str(tiny_model), *data, "--masks", "files:nowhere", "-o", out], "nowhere: no such folder"),
        (["eval", str(tiny_model), *data, "--mask-value", "3"], "give --masks files:DIR,value=N"),
    ):
        done = CliRunner().invoke(app, [*command, "--device", "cpu"])
        assert done.exit_code == 2 and fault in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not Path(out).exists()


def test_masks_that_are_not_used_are_told(
    tmp_path: Path, folder: Path, tiny_model: Path, tiny_body_file: Path, cases: Callable[[str], Path]
) -> None:
    command = ["predict", str(tiny_model), str(cases("pictures") / "reference.png"), "--body", str(tiny_body_file)]
    command += ["--masks", f"files:{folder / 'white'}", "--no-overlay", "--no-glb", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "merges no tokens, so that masks are not used" in done.stderr, done.output


def test_a_postscript_mask_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind of C14, where masks are read."""
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "m.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 192 256\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="m.png: not a picture of a known format"):
        person_of_png(tmp_path / "m.png", None)
    assert not ran.exists()


def test_headers_say_what_the_maker_meant() -> None:
    """The hand-made PNG of two bits reads as the library reads it, spread over 8 bits."""
    data = packed_greys(2, 3)
    assert struct.unpack(">II", data[16:24]) == (192, 256)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))) == 255, PERSON)
