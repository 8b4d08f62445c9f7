"""The one decoder of pictures, for every command: whatever comes in becomes (H,W,3) uint8 RGB, or is refused.

Which format a file has is told from its first bytes, never from its name, and only the formats below are read: none of
them starts a program, as PostScript does. The size is checked from the header, before a pixel is decoded. How depths,
palettes and transparency become RGB is told in `data.pixels`. Nothing is guessed about colour profiles: they are
ignored, as the field's data sets are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from hmrcompress.data.pixels import rgb
from hmrcompress.errors import UserError, first_line

MOST_PIXELS = 100_000_000
"""A picture with more is refused before it is decoded (it would take 300 MB)."""
LARGEST_FILE = 1 << 30
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif")
"""How files that are taken for pictures are called."""
MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
BRANDS = {
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"},
    "AVIF": {b"avif", b"avis"},
}
PICTURE_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf"}
"""Of files that hold pictures, whatever their codec: HEVC where no other brand says which."""
HEAD = 512
ORIENTATION, SUBFILE, DNG_VERSION, TILE_WIDTH, TILE_LENGTH = 0x0112, 254, 50706, 322, 323
MOST_PAGES = 256
"""Pages of a TIFF file that are counted."""
LARGEST_COUNTED = 1 << 23
"""Bytes of an animated GIF whose pictures are counted."""
KNOWN = "JPEG, PNG, BMP, WebP, TIFF, GIF, AVIF and HEIC are read"


@dataclass(frozen=True)
class Decoded:
    """image (H,W,3) uint8 RGB. note: what should be told of how the file was read, in a few words, or empty."""

    image: np.ndarray
    note: str = ""


def decode(file: IO[bytes], where: object, *, turned: bool = True) -> Decoded:
    """The picture in an open file, which `where` names in messages.

    turned: as Exif says it was held; otherwise as the file holds it, but for formats whose decoders turn it themselves
    (TIFF, AVIF, HEIC). UserError where it is of no known format, too large, damaged, truncated, or means no picture.
    """
    kind = require_kind(file, where)
    with opened(file, where, kind) as image:
        pages, main = _pages(image, kind, file), image.tell() + 1
        pixels = rgb(image, where)
        # Asked after decoding: some decoders turn the picture then, and say no more that it lies.
        orientation = _orientation(image) if (turned or kind == "AVIF") and kind != "HEIC" else 1
    note = "" if pages == 1 else f"only picture {main} of {pages} in it was read"
    return Decoded(turn(pixels, orientation), note)


def size(file: IO[bytes], where: object, *, turned: bool = True) -> tuple[int, int]:
    """(width, height) in pixels of what `decode` would give, from the header. UserError as there."""
    kind = require_kind(file, where)
    with opened(file, where, kind) as image:
        width, height = image.size
        lies = (turned or kind == "AVIF") and kind not in ("HEIC", "TIFF") and _orientation(image) >= 5
    return (height, width) if lies else (width, height)


def kind_of(file: IO[bytes]) -> str | None:
    """The format that the first bytes of an open file are of, None for none of ours. The file is left at its start."""
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    for name, magics in MAGIC.items():
        if head.startswith(magics):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "BMP"
    return _kind_of_brands(head) if head[4:8] == b"ftyp" else None


def _kind_of_brands(head: bytes) -> str | None:
    """Of a file that says what other programs may take it for: the first that is one of ours."""
    length = min(int.from_bytes(head[:4], "big"), HEAD)
    brands = [head[8:12], *(head[place : place + 4] for place in range(16, length - 3, 4))]
    for brand in brands:
        for name, known in BRANDS.items():
            if brand in known:
                return name
    return "HEIC" if PICTURE_BRANDS & set(brands) else None


def require_kind(file: IO[bytes], where: object) -> str:
    """The format of an open file. UserError where it is none of ours, or the file is larger than pictures are."""
    found = kind_of(file)
    length = file.seek(0, 2)
    file.seek(0)
    if not length:
        raise UserError("the file is empty", where)
    if found is None:
        raise UserError(f"not a picture of a known format ({KNOWN})", where)
    if length > LARGEST_FILE:
        raise UserError(f"the file has {length:,} bytes, at most {LARGEST_FILE:,} are read of a picture", where)
    return found


@contextmanager
def opened(file: IO[bytes], where: object, kind: str) -> Iterator[Any]:
    """The PIL image of that kind, header read and size checked, pixels not yet decoded. Whatever is raised by it, or in
    the block, is a UserError."""
    with _no_others_errors(where):
        if kind == "HEIC":
            from hmrcompress.data.heic import open_heic

            image = open_heic(file, where)
        else:
            image = _of_pillow(file, where, kind)
        _check_size(image, where)
        if kind == "TIFF":
            _check_tiff(image, file, where)
    try:
        with _no_others_errors(where):
            yield image
    finally:
        image.close()


def _of_pillow(file: IO[bytes], where: object, kind: str) -> Any:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(file, formats=(kind,))
        except Image.UnidentifiedImageError as error:
            raise UserError("damaged, or of a kind of its format that is not read", where) from error
        except Image.DecompressionBombError as error:
            raise UserError(f"far more pixels than the {MOST_PIXELS:,} that are read", where) from error


def _check_size(image: Any, where: object) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UserError(f"the picture has {width}x{height} pixels, more than {MOST_PIXELS:,}", where)


def _check_tiff(image: Any, file: IO[bytes], where: object) -> None:
    """UserError for cameras' raw files, whose first picture is a preview, and for tiles that would take more memory
    than pictures may."""
    tags = image.tag_v2
    file.seek(8)
    if file.read(2) == b"CR" or DNG_VERSION in tags or int(tags.get(SUBFILE, 0)) & 1:
        raise UserError("its first picture is a preview, as in raw files of cameras", where, "Export it as JPEG or PNG")
    if int(tags.get(TILE_WIDTH, 1)) * int(tags.get(TILE_LENGTH, 1)) > MOST_PIXELS:
        raise UserError(f"it has tiles of more than {MOST_PIXELS:,} pixels", where)


@contextmanager
def _no_others_errors(where: object) -> Iterator[None]:
    """Whatever a decoder raises becomes a UserError naming the picture: on damaged files they raise what comes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"not a picture that can be read ({first_line(error)})", where) from error


def _pages(image: Any, kind: str, file: IO[bytes]) -> int | str:
    """How many pictures there are in the file, in words where they are not counted."""
    if not getattr(image, "is_animated", False):
        return 1
    if kind == "TIFF":
        return _tiff_pages(image)
    if kind == "GIF":
        place = file.tell()
        length = file.seek(0, 2)
        file.seek(place)
        return image.n_frames if length <= LARGEST_COUNTED else "several"
    return image.n_frames


def _tiff_pages(image: Any) -> int | str:
    """Counted page by page: the library's own count takes the square of their number."""
    count: int | str = 1
    for page in range(1, MOST_PAGES + 1):
        try:
            image.seek(page)
        except Exception:  # the last page, or a damaged one, which nobody wants to read
            break
        count = page + 1 if page < MOST_PAGES else f"more than {MOST_PAGES}"
    image.seek(0)
    return count


def _orientation(image: Any) -> int:
    """Exif's 1 to 8; 1 where there is none that can be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged Exif data do not make a picture unreadable
        return 1
    return found if found in range(1, 9) else 1


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """A stored picture (H,W,…) as Exif's orientation (1 to 8) says it is to be shown."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def decode_file(path: Path, *, turned: bool = True) -> Decoded:
    """`decode` of a file. UserError, also where it cannot be opened."""
    with _file(path) as file:
        return decode(file, path, turned=turned)


def size_of_file(path: Path, *, turned: bool = True) -> tuple[int, int]:
    """`size` of a file. UserError, also where it cannot be opened."""
    with _file(path) as file:
        return size(file, path, turned=turned)


def kind_of_file(path: Path) -> str | None:
    """`kind_of` a file. UserError where it cannot be opened."""
    with _file(path) as file:
        return kind_of(file)


def is_animated(path: Path) -> bool:
    """Whether a file of one of our formats holds several pictures. UserError as `size`."""
    with _file(path) as file, opened(file, path, require_kind(file, path)) as image:
        return bool(getattr(image, "is_animated", False))


@contextmanager
def _file(path: Path) -> Iterator[IO[bytes]]:
    if not path.is_file():  # opening a pipe would wait for its other end
        raise UserError("no such file, or not a regular one", path)
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot be opened ({error.strerror})", path) from error
    with file:
        yield file
