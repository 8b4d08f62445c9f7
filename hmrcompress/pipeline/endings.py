"""Whether the end of a video file is missing, told from the sizes that its container names; nothing is decoded.

Sources: ISO 14496-12 section 4.2 (boxes), RFC 8794 and 9559 (EBML and Matroska), Microsoft's RIFF and ASF
specifications, Adobe's FLV specification version 10.1 annex E, GIF89a section 27, ISO 13818-1 section 2.4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import BinaryIO

MOST_PARTS = 100_000
"""Parts of a file that are looked at; what lies behind is not known."""
SEGMENT, UNKNOWN_SIZE = 0x18538067, -1


def cut_off(file: BinaryIO, form: str) -> bool:
    """Whether the file (seekable, of the libavformat demuxer `form`) ends before a part that it has begun.

    False also where the container does not say. The file's position is changed.
    """
    name = form.partition(",")[0]
    if name not in _WALKS:
        return False
    total = file.seek(0, 2)
    try:
        return _WALKS[name](file, total)
    except struct.error:  # cut within the head of a part
        return True


def _beyond(parts: Callable[[BinaryIO, int], Iterator[int]]) -> Callable[[BinaryIO, int], bool]:
    """From a walk that gives where every part ends, to whether one ends beyond the file."""

    def walk(file: BinaryIO, total: int) -> bool:
        return any(end > total for end in islice(parts(file, total), MOST_PARTS))

    return walk


def _boxes(file: BinaryIO, total: int) -> Iterator[int]:
    place = 0
    while place + 8 <= total:
        file.seek(place)
        size, _ = struct.unpack(">I4s", file.read(8))
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
        if size < 8:  # 0: to the end of the file, whatever that is; else this is no box
            return
        place += size
        yield place


def _chunks(file: BinaryIO, total: int) -> Iterator[int]:
    place = 0
    while place + 8 <= total:
        file.seek(place)
        kind, size = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or not size:  # a recorder that was stopped leaves 0
            return
        place += 8 + size
        yield place
        place += size % 2


def _objects(file: BinaryIO, total: int) -> Iterator[int]:
    place = 0
    while place + 24 <= total:
        file.seek(place)
        _, size = struct.unpack("<16sQ", file.read(24))
        if size < 24:  # a broadcast, whose length is not known
            return
        place += size
        yield place


def _elements(file: BinaryIO, total: int) -> Iterator[int]:
    place = 0
    while place < total:
        file.seek(place)
        head = file.read(12)
        name, used = _number(head, 4, keep_marker=True)
        size, more = _number(head[used:], 8)
        if size == UNKNOWN_SIZE:
            return
        place += used + more + size
        yield place
        if name == SEGMENT:
            return


def _number(data: bytes, longest: int, *, keep_marker: bool = False) -> tuple[int, int]:
    """A variable-length number of EBML and its bytes; `UNKNOWN_SIZE` for all ones. struct.error where it is torn."""
    length = 9 - data[0].bit_length() if data and data[0] else longest + 1
    if length > longest or length > len(data):
        raise struct.error
    value = int.from_bytes(data[:length], "big")
    if keep_marker:
        return value, length
    value -= 1 << 7 * length
    return (UNKNOWN_SIZE if value == (1 << 7 * length) - 1 else value), length


def _last_tag(file: BinaryIO, total: int) -> bool:
    """FLV: after every tag stands its size, the last one too."""
    file.seek(total - 4)
    (size,) = struct.unpack(">I", file.read(4))
    if not 11 <= size <= total - 17:
        return True
    file.seek(total - 4 - size)
    _, high, low = struct.unpack(">BBH", file.read(4))
    return size - 11 != high << 16 | low


def _trailer(file: BinaryIO, total: int) -> bool:
    """GIF: a semicolon ends it."""
    file.seek(max(0, total - 64))
    return not file.read().rstrip(b"\0\r\n").endswith(b";")


def _packets(file: BinaryIO, total: int) -> bool:
    """Transport streams: 188 bytes a packet, with a time code before it 192, with parity after it 204."""
    file.seek(0)
    head = file.read(3 * 204)
    for length, first in ((188, 0), (192, 4), (204, 0)):
        if head[first::length][:3] == b"GGG":
            return total % length != 0
    return False


_WALKS: dict[str, Callable[[BinaryIO, int], bool]] = {
    "mov": _beyond(_boxes),
    "avi": _beyond(_chunks),
    "asf": _beyond(_objects),
    "matroska": _beyond(_elements),
    "flv": _last_tag,
    "gif": _trailer,
    "mpegts": _packets,
}
