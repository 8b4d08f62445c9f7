"""Pictures as people have them: every one is read as its viewer shows it, or refused in one sentence."""

from __future__ import annotations

import builtins
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from cases.isobmff import grid_picture
from cases.pictures import APPLE_DOUBLE, EPS
from cases.scenes import grey, person, png_bytes
from packaging.version import Version
from PIL import Image, ImageCms, ImageFile
from typer.testing import CliRunner, Result

from hmrcompress.data.formats import open_format
from hmrcompress.data.picture_folders import list_pictures
from hmrcompress.data.pictures import MOST_PIXELS, decode, decode_file, kind_of, size, size_of_file, turn
from hmrcompress.errors import UserError
from hmrcompress.pipeline.frames import open_source
from hmrcompress_cli.main import app

PICTURE = person()
GREYS = grey(PICTURE)
LEVELS = np.rint(GREYS).astype(np.uint8)
WIDE = np.rint(GREYS * 257).astype(np.uint16)
EXACT, JPEG_LOSS, SCALED = 0.0, 2.5, 0.51
"""Mean difference of levels: none; a lossy codec (another picture of the person is 20 and more away); rounding."""


@pytest.fixture(scope="module")
def folder(cases: Callable[[str], Path]) -> Path:
    return cases("pictures")


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def read(data: bytes, **how: Any) -> np.ndarray:
    """The picture; its size from the header is the same."""
    image = decode(io.BytesIO(data), "x", **how).image
    assert size(io.BytesIO(data), "x", **how) == (image.shape[1], image.shape[0])
    return image


def apart(image: np.ndarray, expected: np.ndarray) -> float:
    assert image.dtype == np.uint8 and image.shape == (*expected.shape[:2], 3)
    wanted = expected if expected.ndim == 3 else expected[..., None]
    return float(np.abs(image - wanted.astype(float)).mean())


def tiff(values: np.ndarray, bits: int, *, photometric: int = 1, form: int = 1, more: tuple = ()) -> bytes:
    """An uncompressed grey TIFF written by hand, in the byte order of `values`. form: 1 whole, 2 signed, 3 floats."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    data, (height, width) = values.tobytes(), values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, form), *more]
    shorts, longs = order + "HHIHH", order + "HHII"
    entries = b"".join(
        struct.pack(shorts, tag, kind, 1, value, 0) if kind == 3 else struct.pack(longs, tag, kind, 1, value)
        for tag, kind, value in sorted(tags)
    )
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def png(depth: int, colour: int, values: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, 16 bits as they stand in it."""
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in values)
    extra = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return png_bytes(values.shape[1], values.shape[0], depth, colour, rows, *extra)


@pytest.mark.parametrize("name", ["telephone.heic", "telephone_turned.heic"])
def test_tiles_of_telephones_are_put_together_and_turned(folder: Path, name: str) -> None:
    """B5: the first tile alone was read, and not turned."""
    pytest.importorskip("pillow_heif")
    assert apart(decode_file(folder / name).image, PICTURE) < JPEG_LOSS
    assert size_of_file(folder / name) == (192, 256)


@pytest.mark.parametrize(("kind", "turns", "mirror"), [("avif", 0, None), ("avif", 1, None), ("heic", 0, 1)])
def test_grids_of_other_kinds(tmp_path: Path, kind: str, turns: int, mirror: int | None) -> None:
    if kind == "heic":
        pytest.importorskip("pillow_heif")
    stored = np.rot90(PICTURE, -turns) if mirror is None else PICTURE[:, ::-1]
    grid_picture(tmp_path / "p", np.ascontiguousarray(stored), kind=kind, turns=turns, mirror=mirror)
    assert apart(decode_file(tmp_path / "p").image, PICTURE) < JPEG_LOSS
    assert size_of_file(tmp_path / "p") == (192, 256)


def test_a_telephones_picture_without_its_package_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"telephone.heic: HEIC pictures .*pip install 'hmrcompress\[heic\]'"):
        open_source(folder / "telephone.heic")


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif", "grey32.tif", "float01.tif"])
def test_greys_of_every_type_are_those_of_eight_bits(folder: Path, name: str) -> None:
    """B7, B8: 16 bits were clipped to white at 255, floats were black."""
    assert apart(decode_file(folder / name).image, decode_file(folder / "grey8.png").image) < SCALED


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (tiff(WIDE.astype(">u2"), 16), EXACT),
        (tiff(WIDE.astype("<u4"), 32), EXACT),
        (tiff(WIDE.astype("<i4"), 32, form=2), EXACT),
        (tiff((WIDE // 2).astype("<i2"), 16, form=2), SCALED),
        (tiff(65535 - WIDE, 16, photometric=0), EXACT),
        (tiff((GREYS / 255).astype(">f4"), 32, form=3), SCALED),
        (tiff((1 - GREYS / 255).astype("<f4"), 32, photometric=0, form=3), SCALED),
        (png(16, 0, WIDE), EXACT),
        (png(16, 4, np.dstack([WIDE, np.full_like(WIDE, 65535)])), SCALED),
        (saved(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw"), EXACT),
    ],
)
def test_greys_in_other_orders_signs_and_directions(data: bytes, most: float) -> None:
    assert apart(read(data), LEVELS) <= most


def test_twelve_bits_are_of_4095() -> None:
    values = np.rint(GREYS[:, :190] / 255 * 4095).astype(int).reshape(256, -1, 2)
    rows = np.stack([values[..., 0] >> 4, (values[..., 0] & 15) << 4 | values[..., 1] >> 8, values[..., 1] & 255], -1)
    data = bytearray(tiff(rows.reshape(256, -1).astype(np.uint8), 12))
    place = data.index(struct.pack("<HHII", 256, 4, 1, 285))
    data[place : place + 12] = struct.pack("<HHII", 256, 4, 1, 190)
    assert apart(read(bytes(data)), LEVELS[:, :190]) < SCALED


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.where(GREYS > 100, np.nan, GREYS / 255), "NaN or infinity"),
        (np.where(GREYS > 100, np.inf, GREYS / 255), "NaN or infinity"),
        (GREYS, r"greys from \d+\.\d+ to \d+\.\d+, expected 0 to 1"),
        (GREYS / 255 - 0.5, "greys from -0.3"),
        (GREYS / 255 / 255, "all but black"),
    ],
)
def test_floats_that_are_no_greys_are_refused(values: np.ndarray, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        read(tiff(values.astype("<f4"), 32, form=3))


def test_floats_a_little_beyond_are_clipped() -> None:
    values = GREYS / GREYS.max() * 1.1 - 0.05
    assert apart(read(tiff(values.astype("<f4"), 32, form=3)), 255 * np.clip(values, 0, 1)) < SCALED


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (tiff((GREYS * 1000).astype("<i4"), 32, form=2), "expected 0 to 65535"),
        (tiff((GREYS - 100).astype("<i4"), 32, form=2), "greys from -51 to 89"),
        (tiff(LEVELS.astype("<i4"), 32, form=2), "all but black: its greatest grey is 190 of 65535"),
        (tiff(LEVELS.astype("<u2"), 16), "all but black"),
        (tiff((LEVELS // 2).astype(np.int8), 8, form=2), "from -128 to 127"),
        (tiff(LEVELS, 8, more=((254, 4, 1),)), "a preview, as in raw files"),
        (tiff(LEVELS, 8, more=((322, 4, 100_000), (323, 4, 100_000), (324, 4, 8), (325, 4, 9))), "has tiles of more"),
        (saved(Image.fromarray(np.dstack([PICTURE, 0 * LEVELS])), "PNG"), "every pixel is transparent"),
        (b"", "the file is empty"),
        (b"plain text" * 99, "not a picture of a known format"),
        (EPS, "not a picture of a known format"),
        (APPLE_DOUBLE, "not a picture of a known format"),
        (saved(Image.fromarray(PICTURE), "JPEG")[:2000], "not a picture that can be read"),
        (saved(Image.fromarray(PICTURE), "PNG")[:2000], "not a picture that can be read"),
        (saved(Image.fromarray(PICTURE), "PNG")[:20], "not a picture that can be read"),
        (b"\xff\xd8\xff" + bytes(500), "damaged, or of a kind"),
        (b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\2\1\0\0;", "damaged, or of a kind"),
    ],
)
def test_what_means_no_picture_is_refused_in_a_sentence(data: bytes, fault: str) -> None:
    with pytest.raises(UserError, match=f"x: .*{fault}") as refused:
        read(data)
    assert "object at 0x" not in str(refused.value)


def lab(image: np.ndarray) -> Image.Image:
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    made = ImageCms.profileToProfile(Image.fromarray(image), *profiles, outputMode="LAB")
    assert made is not None
    return made


COLOURED = Image.fromarray(PICTURE)


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (saved(COLOURED.convert("CMYK"), "JPEG", quality=95), JPEG_LOSS),
        (saved(COLOURED.convert("CMYK"), "TIFF"), EXACT),
        (saved(COLOURED.convert("YCbCr"), "TIFF"), JPEG_LOSS),
        (saved(lab(PICTURE), "TIFF"), JPEG_LOSS),
        (saved(COLOURED, "TIFF", compression="tiff_lzw"), EXACT),
        (saved(COLOURED, "TIFF", compression="jpeg"), JPEG_LOSS),
        (saved(COLOURED, "TIFF", big_tiff=True), EXACT),
        (saved(COLOURED, "BMP"), EXACT),
        (saved(COLOURED, "WEBP", lossless=True), EXACT),
        (saved(COLOURED, "AVIF"), JPEG_LOSS),
        (saved(COLOURED, "GIF"), JPEG_LOSS),
        (saved(COLOURED.quantize(256), "PNG"), JPEG_LOSS),
        (saved(COLOURED.quantize(255).convert("PA"), "TIFF"), JPEG_LOSS),
        (saved(COLOURED, "PNG", interlace=1), EXACT),
        (png(16, 2, PICTURE.astype(np.uint16) * 257), EXACT),
        (saved(COLOURED, "JPEG", quality=97, icc_profile=b"no profile at all" * 99), JPEG_LOSS),
    ],
)
def test_every_mode_is_read_in_its_colours(data: bytes, most: float) -> None:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:  # pillow 11 and 12 cannot read one of the TIFF files that they write
        if Version(PIL.__version__) >= Version("13"):
            raise
        with pytest.raises(UserError, match="not a picture that can be read"):
            read(data)
        pytest.skip("not with this version of pillow")
    assert apart(read(data), PICTURE) <= most


def test_greys_of_one_bit_and_with_alpha() -> None:
    one = COLOURED.convert("1")
    for data in (saved(one, "PNG"), saved(one, "TIFF", compression="group4")):
        assert apart(read(data), 255 * np.asarray(one).astype(int)) == EXACT
    opaque = Image.fromarray(np.dstack([LEVELS, np.full_like(LEVELS, 255)]), "LA")
    assert apart(read(saved(opaque, "PNG")), LEVELS) == apart(read(saved(opaque, "TIFF")), LEVELS) == EXACT


def test_transparency_is_laid_on_white() -> None:
    alpha = np.tile(np.arange(192, dtype=np.uint8), (256, 1))
    expected = (PICTURE * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None]).round()
    both = Image.fromarray(np.dstack([PICTURE, alpha]))
    for data in (saved(both, "PNG"), saved(both, "TIFF"), saved(both, "WEBP", lossless=True, exact=True)):
        assert np.abs(read(data) - expected).max() <= 1
    grey_too = Image.fromarray(np.dstack([LEVELS, alpha]), "LA")
    assert np.abs(read(saved(grey_too, "PNG"))[..., 0] - (LEVELS * (alpha / 255) + 255 - alpha)).max() <= 1
    corner = tuple(int(value) for value in PICTURE[0, 0])
    keyed = read(png(8, 2, PICTURE, (b"tRNS", struct.pack(">3H", *corner))))
    assert (keyed[(PICTURE == corner).all(-1)] == 255).all() and (keyed == PICTURE)[(PICTURE != corner).any(-1)].all()
    wide = read(png(16, 0, WIDE, (b"tRNS", struct.pack(">H", int(WIDE[0, 0])))))
    clear = WIDE == WIDE[0, 0]
    assert (wide[clear] == 255).all() and (wide[~clear] == LEVELS[~clear][:, None]).all()
    indexed = COLOURED.quantize(255)
    shown = read(saved(indexed, "PNG", transparency=int(np.asarray(indexed)[0, 0])))
    assert (shown[0, 0] == 255).all()


def slow_turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """By Exif's definition: which sides of the picture row 0 and column 0 of the file are."""
    row, column = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[orientation]
    height, width = image.shape[:2]
    lies = row in "lr"
    out = np.zeros((width, height, 3) if lies else image.shape, np.uint8)
    last_y, last_x = out.shape[0] - 1, out.shape[1] - 1
    for i in range(height):
        for j in range(width):
            first = {"t": ("y", i), "b": ("y", last_y - i), "l": ("x", i), "r": ("x", last_x - i)}[row]
            second = {"t": ("y", j), "b": ("y", last_y - j), "l": ("x", j), "r": ("x", last_x - j)}[column]
            place = dict([first, second])
            out[place["y"], place["x"]] = image[i, j]
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_pictures_as_it_is_defined(orientation: int) -> None:
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(turn(small, orientation), slow_turn(small, orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = next(
        each for each in (turn(PICTURE, back) for back in range(1, 9))
        if np.array_equal(turn(each, orientation), PICTURE)
    )  # fmt: skip
    for name, how, most in (
        ("JPEG", {"quality": 97}, JPEG_LOSS),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
    ):
        assert apart(read(saved(Image.fromarray(stored), name, exif=exif, **how)), PICTURE) <= most, name
    as_stored = read(saved(Image.fromarray(stored), "PNG", exif=exif), turned=False)
    assert np.array_equal(as_stored, stored), "data sets are annotated on pictures as they are stored"


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\1" * 3000, b"Exif\0\0", b"Exif\0\0" + bytes(60000)]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_and_huge_exif_leave_a_picture_upright(exif: bytes) -> None:
    assert apart(read(saved(COLOURED, "JPEG", quality=97, exif=exif)), PICTURE) < JPEG_LOSS


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "AVIF", "MPO"])
def test_several_pictures_in_a_file_are_told(kind: str) -> None:
    """B9, and the other formats that hold more than one."""
    others = [Image.fromarray(np.roll(PICTURE, 20 * n, 0)) for n in (1, 2)]
    decoded = decode(io.BytesIO(saved(COLOURED, kind, save_all=True, append_images=others)), "x")
    assert apart(decoded.image, PICTURE) < JPEG_LOSS and decoded.note == "only picture 1 of 3 in it was read"


def test_the_size_is_checked_before_a_pixel_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C5, D2: gigabytes, and an error of the library's own."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for name in ("large.png", "huge.png"):
        for read_it in (decode_file, size_of_file, open_source):
            with pytest.raises(UserError, match=f"{name}: .*pixels"):
                read_it(folder / name)
    assert 13000 * 13000 > MOST_PIXELS > 9000 * 9000


def test_kinds_are_told_by_content() -> None:
    assert kind_of(io.BytesIO(b"BM, a text about cars")) is None
    assert kind_of(io.BytesIO(b"\0\0\0\x1cftypisom\0\0\2\0isomiso2avc1mp41")) is None
    assert kind_of(io.BytesIO(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")) == "HEIC"
    assert kind_of(io.BytesIO(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif")) == "AVIF"
    assert kind_of(io.BytesIO(b"\0\0\0\x18ftypmsf1\0\0\0\0heichevc")) == "HEIC"
    assert kind_of(io.BytesIO(b"\0\0\0\x18ftypmif1\0\0\0\0miafMiHB")) == "HEIC"
    assert kind_of(io.BytesIO(b"\0\0\0\x18ftypmiaf\0\0\0\0mif1avif")) == "AVIF"


# Folders, and the commands


def predicted(folder: Path, tiny_model: Path, tiny_body_file: Path, out: Path, *more: str) -> tuple[Result, Any]:
    """`predict` with the tiny network: how it ended, and frame numbers and sizes of its bodies, None if it failed."""
    command = ["predict", str(tiny_model), str(folder), "--body", str(tiny_body_file), "-o", str(out), *more]
    done = CliRunner().invoke(
        app, [*command, "--no-overlay", "--no-glb", "--device", "cpu", "--set", "predict.overlapped=false"]
    )
    if done.exit_code:
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and not out.exists(), done.output
        return done, None
    with np.load(out / "params.npz") as made:
        return done, [(int(f), tuple(map(int, s))) for f, s in zip(made["frame"], made["image_size"], strict=True)]


@pytest.mark.parametrize(
    ("name", "bodies", "told"),
    [
        ("heic_among_jpegs", [(0, (192, 256)), (1, (192, 256))], ""),
        ("superscript", [(0, (192, 256)), (1, (192, 256))], ""),
        ("apple_double", [(0, (192, 256))], "1 picture; left out: ._IMG_1.png (files that a Mac"),
        ("damaged_among_good", [(0, (192, 256))], "read all but 1 of 2 pictures; left out: 2.png (the file is empty)"),
        ("sizes", [(0, (192, 256)), (1, (400, 300))], ""),
        ("pages.tif", [(0, (192, 256))], "pages.tif: only picture 1 of 3 in it was read"),
        ("nan.tif", None, "nan.tif: holds NaN or infinity"),
        ("postscript.png", None, "postscript.png: not a picture of a known format"),
        ("large.png", None, "large.png: the picture has 13000x13000 pixels"),
        ("huge.png", None, "huge.png: far more pixels than"),
    ],
)
def test_predict_says_what_it_read(
    folder: Path, tiny_model: Path, tiny_body_file: Path, tmp_path: Path, name: str, bodies: Any, told: str
) -> None:
    """B6, D1, D3, F4 and the like: what is left out is told once, with the reason."""
    if name == "heic_among_jpegs":
        pytest.importorskip("pillow_heif")
    done, made = predicted(folder / name, tiny_model, tiny_body_file, tmp_path / "out")
    assert made == bodies and (told in done.stderr if told else not done.stderr), done.output
    assert bodies or done.stderr.startswith(f"hmrcompress: {folder / told}"), "a single picture is named by its path"
    if bodies:
        notes = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
        assert len(notes) == (1 if told else 0) and all(told in note for note in notes)


def test_a_folder_of_everything(tiny_model: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    """Every kind of entry: what is a picture keeps its number, and the rest is named."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("10.png", "9.PNG", ".hidden.png"):
        COLOURED.save(folder / name, "PNG")
    COLOURED.save(folder / "8.jpg", "PNG")
    (folder / "1.png").symlink_to(folder / "1.png")
    (folder / "2.png").symlink_to(folder / "nowhere")
    (folder / "3.png").mkdir()
    os.mkfifo(folder / "4.png")
    (folder / "5.png").write_bytes(b"no picture")
    (folder / "6.png").write_bytes(saved(COLOURED, "PNG")[:1500])
    (folder / "more").mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / "7.mov").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    listed = list_pictures(folder)
    assert [file.name for file in listed.files] == ["5.png", "6.png", "8.jpg", "9.PNG", "10.png"]
    done, made = predicted(folder, tiny_model, tiny_body_file, tmp_path / "out")
    assert [frame for frame, _ in made] == [2, 3, 4]
    left, failed = done.stderr.splitlines()
    for part in (
        "5 pictures; left out: ",
        "1.png, 2.png, 3.png, 4.png, .hidden.png (",
        "2 of other kinds (.mov, .txt)",
        "1 folder in it",
    ):
        assert part in left, left
    assert (
        "read all but 2 of 5 pictures; left out: 5.png (not a picture of a known" in failed and "6.png (not a" in failed
    )
    done, made = predicted(folder, tiny_model, tiny_body_file, tmp_path / "as_one", "--fps", "10")
    assert [frame for frame, _ in made] == [2, 3, 4], "a sequence keeps its times"


def test_a_folder_of_which_nothing_can_be_read(tiny_model: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    done, _ = predicted(folder, tiny_model, tiny_body_file, tmp_path / "out")
    assert "holds no pictures, but 1 of other kinds (.txt)" in done.stderr
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(b"x")
    done = CliRunner().invoke(app, ["predict", str(tiny_model), str(folder), "-o", str(tmp_path / "out")])
    assert done.exit_code == 2 and "none of its 2 pictures can be read; the first, 1.png: not a" in done.stderr
    os.mkfifo(tmp_path / "pipe.png")
    done, _ = predicted(tmp_path / "pipe.png", tiny_model, tiny_body_file, tmp_path / "out")
    assert "neither a file nor a folder" in done.stderr


def test_names_of_any_letters(tiny_model: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["²1.png", "١٢.png", "10 a.png", "9 a.png", "ß.png", "x" * 250 + ".png", "-n.png", "1²3.png"]
    for name in names:
        COLOURED.save(folder / name)
    (folder / os.fsdecode(b"\xff\xfe.png")).write_bytes(saved(COLOURED, "PNG"))
    command = ["predict", str(tiny_model), str(folder), "--body", str(tiny_body_file), "--no-glb", "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out" / "overlay").iterdir())) == 9
    order = [file.name for file in list_pictures(folder).files]
    assert order.index("9 a.png") < order.index("10 a.png")
    again = tmp_path / os.fsdecode(b"\xff.png")
    again.write_bytes(saved(COLOURED, "PNG"))
    done = CliRunner().invoke(app, [*command[:2], str(again), *command[3:], "-o", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("how", ["predict", "images", "folder"])
def test_no_picture_starts_a_program(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """C14: Ghostscript was started on a PostScript file by another name."""
    ran = tmp_path / "ran"
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    inside = tmp_path / "in"
    inside.mkdir()
    for name in ("a.png", "b.jpg", "c.tif"):
        (inside / name).write_bytes(EPS)
    (inside / "boxes.json").write_text(json.dumps([{"image": "a.png", "box": [1, 1, 9, 9]}]))
    if how == "images":
        with pytest.raises(UserError, match="a.png: not a picture of a known format"):
            np.asarray(open_format(f"images:{inside}").arrays["images"])
    else:
        source = inside if how == "folder" else folder / "postscript.png"
        done = CliRunner().invoke(app, ["predict", str(tiny_model), str(source), "-o", str(tmp_path / "out")])
        assert done.exit_code == 2 and "not a picture of a known format" in done.stderr, done.output
    assert not ran.exists()


def test_data_sets_read_what_predict_reads(tmp_path: Path) -> None:
    """A folder with boxes is read by the same decoder, turned as `predict` turns it, its pictures counted alike."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(turn(PICTURE, 8))
    for name in ("p9.jpg", "p10.jpg"):
        lying.save(tmp_path / name, exif=exif, quality=97)
    box = {"centre": [96, 128], "side": 256}
    (tmp_path / "boxes.json").write_text(json.dumps([{"frame": 0, **box}, {"frame": 1, **box}]))
    crops = open_format(f"images:{tmp_path}")
    assert crops.pictures == ["p9.jpg", "p10.jpg"]
    assert apart(np.asarray(crops.arrays["images"][0]), PICTURE) < JPEG_LOSS


def test_hands_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """F1: told after nine seconds, by the shape of a tensor."""
    monkeypatch.setattr("hmrcompress.api.opening.random_checkpoint", lambda *of: pytest.fail("made the network"))
    for command in ("predict", "profile"):
        out = ["-o", str(tmp_path / "out")] if command == "predict" else []
        done = CliRunner().invoke(app, [command, "random:hamer", str(folder / "reference.png"), *out])
        assert done.exit_code == 2 and "random:hamer: predicts hands, and predict and" in done.stderr, done.output
