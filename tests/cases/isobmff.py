"""Boxes of MP4, MOV, HEIC and AVIF files (ISO 14496-12, 23008-12): taken apart, changed, and put together again."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder writes a page a picture
import av  # noqa: E402
import numpy as np  # noqa: E402

ONE = 1 << 16
"""1 in the 16.16 numbers of a display matrix; its last column has 1 << 30."""


def box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", len(data) + 8, kind) + data


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", (version << 24) | flags), *parts)


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, the whole box) of every box in `data`."""
    place = 0
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        if size == 1:
            size = struct.unpack(">Q", data[place + 8 : place + 16])[0]
        yield kind, data[place : place + size]
        place += size


# Videos


def display_matrices(width: int, height: int) -> dict[str, tuple[int, ...]]:
    """The eight ways that a picture can be turned and mirrored, as the nine numbers of `tkhd`."""
    w, h, last = width * ONE, height * ONE, 1 << 30
    return {
        "plain": (ONE, 0, 0, 0, ONE, 0, 0, 0, last),
        "hflip": (-ONE, 0, 0, 0, ONE, 0, w, 0, last),
        "vflip": (ONE, 0, 0, 0, -ONE, 0, 0, h, last),
        "rot180": (-ONE, 0, 0, 0, -ONE, 0, w, h, last),
        "rot90": (0, ONE, 0, -ONE, 0, 0, h, 0, last),
        "rot270": (0, -ONE, 0, ONE, 0, 0, 0, w, last),
        "transpose": (0, ONE, 0, ONE, 0, 0, 0, 0, last),
        "transverse": (0, -ONE, 0, -ONE, 0, 0, h, w, last),
    }


def shown(image: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """A stored picture (H,W,3) as a player shows it under one of `display_matrices`: x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = (np.sign(number) for number in matrix[:5])
    out = image
    if a == 0:  # x' comes from y
        out = out.transpose(1, 0, 2)
        a, d = c, b
    out = out[:, ::-1] if a < 0 else out
    return np.ascontiguousarray(out[::-1] if d < 0 else out)


def set_display_matrix(movie: bytes, matrix: tuple[int, ...]) -> bytes:
    """The MP4 with this matrix in its first track header."""
    data = bytearray(movie)
    start = data.find(b"tkhd")
    place = start + 8 + (32 if data[start + 4] else 20) + 8 + 8
    data[place : place + 36] = struct.pack(">9i", *matrix)
    return bytes(data)


def with_cover(movie: bytes, jpeg: bytes, *, first: bool) -> bytes:
    """The MP4 with a cover picture in `moov/udta`, before its tracks as tagging tools leave it, or after them.

    `moov` has to stand behind `mdat`, so that no offset changes.
    """
    handler = full(b"hdlr", 0, 0, b"\0" * 4, b"mdir", b"appl", b"\0" * 9)
    item = box(b"ilst", box(b"covr", box(b"data", struct.pack(">II", 13, 0), jpeg)))
    cover = (b"udta", box(b"udta", full(b"meta", 0, 0, handler, item)))
    kinds = [kind for kind, _ in boxes(movie)]
    assert kinds.index(b"moov") > kinds.index(b"mdat")
    out = b""
    for kind, data in boxes(movie):
        if kind == b"moov":
            children = [child for child in boxes(data[8:]) if child[0] != b"udta"]
            children.insert(1 if first else len(children), cover)
            data = box(b"moov", *(child for _, child in children))
        out += data
    return out


# Pictures

CODECS = {
    "heic": ("libx265", b"hvc1", b"hvcC", {"x265-params": "log-level=none:keyint=1:qp=8", "preset": "fast"}),
    "avif": ("libsvtav1", b"av01", b"av1C", {"crf": "8", "preset": "8", "svtav1-params": "keyint=1"}),
}


def _tiles(pictures: list[np.ndarray], kind: str) -> tuple[bytes, list[bytes]]:
    """Codec configuration and coded bytes of pictures of one size, each coded by itself."""
    codec, _, configuration, options = CODECS[kind]
    coded: list[bytes] = []
    settings = b""
    for picture in pictures:
        with io.BytesIO() as file:
            with av.open(file, "w", format="mp4") as container:
                stream = container.add_stream(codec, rate=1)
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
                stream.options = options
                for frame in (av.VideoFrame.from_ndarray(picture, format="rgb24"), None):
                    for packet in stream.encode(frame):
                        container.mux(packet)
            data = file.getvalue()
        place = data.find(configuration)
        size = struct.unpack(">I", data[place - 4 : place])[0]
        settings = data[place + 4 : place - 4 + size]
        with av.open(io.BytesIO(data)) as container:
            coded.append(b"".join(bytes(packet) for packet in container.demux(video=0) if packet.size))
    return settings, coded


def grid_picture(
    path: Path, image: np.ndarray, *, kind: str = "heic", tile: int = 128, turns: int = 0, mirror: int | None = None
) -> None:
    """Writes (H,W,3) as telephones do: square tiles, coded one by one, that a `grid` puts together.

    turns: of 90 degrees counter-clockwise that a reader has to add (`irot`); mirror: the axis of `imir`.
    """
    height, width = image.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    padded = np.pad(image, ((0, rows * tile - height), (0, columns * tile - width), (0, 0)), mode="edge")
    parts = [padded[r * tile :, c * tile :][:tile, :tile] for r in range(rows) for c in range(columns)]
    settings, coded = _tiles([np.ascontiguousarray(part) for part in parts], kind)
    _, sample, configuration, _ = CODECS[kind]
    count, grid = len(coded), len(coded) + 1
    layout = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)

    entries = [full(b"infe", 2, 1, struct.pack(">HH4s", i + 1, 0, sample), b"\0") for i in range(count)]
    entries.append(full(b"infe", 2, 0, struct.pack(">HH4s", grid, 0, b"grid"), b"\0"))
    properties = [
        box(configuration, settings),
        full(b"ispe", 0, 0, struct.pack(">II", tile, tile)),
        full(b"ispe", 0, 0, struct.pack(">II", width, height)),
        full(b"pixi", 0, 0, bytes([3, 8, 8, 8])),
    ]
    of_grid = [3, 4]
    if turns:
        properties.append(box(b"irot", bytes([turns])))
        of_grid.append(0x80 | len(properties))
    if mirror is not None:
        properties.append(box(b"imir", bytes([mirror])))
        of_grid.append(0x80 | len(properties))
    uses = [struct.pack(">HB", i + 1, 3) + bytes([0x81, 2, 4]) for i in range(count)]
    uses.append(struct.pack(">HB", grid, len(of_grid)) + bytes(of_grid))
    links = struct.pack(">HH", grid, count) + b"".join(struct.pack(">H", i + 1) for i in range(count))

    def whole(data_at: int) -> bytes:
        places, at = struct.pack(">BBH", 0x44, 0, count + 1), data_at
        for number, data in enumerate(coded, start=1):
            places += struct.pack(">HHHHII", number, 0, 0, 1, at, len(data))
            at += len(data)
        places += struct.pack(">HHHHII", grid, 1, 0, 1, 0, len(layout))
        return full(
            b"meta", 0, 0,
            full(b"hdlr", 0, 0, b"\0" * 4, b"pict", b"\0" * 13),
            full(b"pitm", 0, 0, struct.pack(">H", grid)),
            full(b"iloc", 1, 0, places),
            full(b"iinf", 0, 0, struct.pack(">H", count + 1), *entries),
            full(b"iref", 0, 0, box(b"dimg", links)),
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", 0, 0, struct.pack(">I", count + 1), *uses)),
            box(b"idat", layout),
        )  # fmt: skip

    brand = {"heic": b"heic", "avif": b"avif"}[kind]
    head = box(b"ftyp", brand, b"\0" * 4, b"mif1", brand, b"miaf")
    start = len(head) + len(whole(0)) + 8
    path.write_bytes(head + whole(start) + box(b"mdat", *coded))
