"""Video files: which are read at all, which stream of one is the video, and what its header says.

Names in a file are never paths: the formats that are read hold everything themselves (no playlists, no lists of files,
no descriptions of a network's streams), are recognised by content, and are read through an open file, with every
protocol of libavformat shut off.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from hmrcompress.errors import MissingExtra, UserError, first_line
from hmrcompress.pipeline.endings import cut_off

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut", "ivf",
    "gxf", "dv", "wtv", "gif", "yuv4mpegpipe", "h264", "hevc", "m4v", "mpegvideo", "obu", "av1",
)  # fmt: skip
"""Demuxers of libavformat that open the file that they are given and no other."""
LISTS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"[playlist]", b"v=0", b"[Reference]", b"<ASX")
"""How files begin that only name others."""
MOST_PIXELS = 36_000_000
"""Of a frame: a little more than 8192 x 4320. A video with more is refused before a frame is decoded."""
SMALLER = "Make it smaller"
RAW_SIZE = re.compile(rb"YUV4MPEG2 (?:[^\n]*? )?W(\d{1,9}) H(\d{1,9})")
"""libavformat says nothing of use where it refuses such a file for its size."""
READ_AHEAD = 1 << 20
SANE_RATES = (0.01, 1000.0)
USUAL_RATE = 30.0


@dataclass(frozen=True)
class Header:
    """What a file says of its video, before any of it is decoded.

    stream: number of the stream, out of `streams` that are videos; size: (width, height) in stored pixels; rate: frames
    a second, as the header has it (an average), None where it makes no sense; even: frames are said to follow each
    other evenly; frames: how many there are said to be, None where that is not said; seconds: how long it is said to
    last; tick: the unit of its stamps in seconds; start: when the file's clock starts, in seconds; cut: the end of the
    file is missing; form: the name of the demuxer.
    """

    path: Path
    form: str
    stream: int
    streams: int
    size: tuple[int, int]
    rate: float | None
    even: bool
    frames: int | None
    seconds: float | None
    tick: Fraction | None
    start: float | None
    cut: bool

    @property
    def step(self) -> float:
        """Seconds from frame to frame where nothing else is known."""
        return 1 / (self.rate or USUAL_RATE)

    @property
    def by_decoding(self) -> bool:
        """Whether only the times of decoding are stored, as in AVI, whose frames have no times of showing."""
        return self.form == "avi"


def read_header(path: Path) -> Header:
    """What the file says of its best stream of video. UserError for what is no video, a list of other files, too
    large, or has no stream that can be decoded; MissingExtra."""
    with opened_video(path) as container:
        stream = _best_stream(container, path)
        others = [each for each in container.streams.video if not _is_cover(each)]
        size = stream.width, stream.height
        check_size(size, path)
        average, base = _sane(stream.average_rate), _sane(stream.base_rate)
        # Where there are no stamps, the average is a default of the demuxer, and the guess comes from the coded frames.
        rate = (_sane(stream.guessed_rate) if stream.start_time is None else None) or average or base
        seconds = stream.duration and stream.time_base and float(stream.duration * stream.time_base)
        whole = container.duration and container.duration / 1e6
        with open(path, "rb") as file:
            cut = cut_off(file, container.format.name)
        return Header(
            path=path,
            form=container.format.name.partition(",")[0],
            stream=stream.index,
            streams=len(others),
            size=size,
            rate=rate,
            even=average is not None and base is not None and abs(average / base - 1) < 0.01,
            frames=stream.frames if stream.frames > 0 else None,
            seconds=seconds or whole or None,
            tick=Fraction(stream.time_base) if stream.time_base else None,
            start=None if container.start_time is None else container.start_time / 1e6,
            cut=cut,
        )


@contextmanager
def opened_video(path: Path) -> Iterator[Any]:
    """PyAV's container of a file in one of `FORMATS`, for as long as the block runs. Raises UserError, MissingExtra."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video") from error
    with _opened(path) as file:
        options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none", "max_pixels": str(MOST_PIXELS)}
        try:
            container = av.open(_Nameless(file), options=options, buffer_size=READ_AHEAD, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _refusal(path, file, error) from error
        with container:
            yield container


def check_size(size: tuple[int, int], path: Path) -> None:
    """UserError for a picture (width, height) with no pixels, or more than `MOST_PIXELS`."""
    width, height = size
    if width < 1 or height < 1:
        raise UserError(f"its frames have no size, or more than {MOST_PIXELS:,} pixels", path)
    if width * height > MOST_PIXELS:
        raise UserError(_too_large(width, height), path, SMALLER)


def _too_large(width: int, height: int) -> str:
    return f"its frames have {width}x{height} pixels, more than {MOST_PIXELS:,}"


class _Nameless:
    """An open file without its name, which libavformat would otherwise be given."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.read, self.tell, self.seekable = file, file.read, file.tell, file.seekable

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new place; -1, an error to libavformat, for one that damaged files ask for and no file has."""
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def _opened(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError("is no file: videos are read twice, and from places in between", path, "Save it first")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be opened ({first_line(error)})", path) from error


def _refusal(path: Path, file: BinaryIO, error: Exception) -> UserError:
    """Why libavformat would not open a file."""
    file.seek(0)
    head = file.read(4096)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(LISTS) or (text.startswith(b"<?xml") and b"<MPD" in text):
        fault = "is a list that names other files or addresses, which are never opened"
        return UserError(fault, path, "Give the video itself")
    if (found := RAW_SIZE.match(text)) and int(found[1]) * int(found[2]) > MOST_PIXELS:
        return UserError(_too_large(int(found[1]), int(found[2])), path, SMALLER)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and cut_off(file, "mov"):
        fault = "its end is missing, and with it the index, without which none of its frames can be found"
        return UserError(fault, path, "Download or copy it again")
    known = ", ".join(name.partition(",")[0] for name in FORMATS[:7])
    reason = getattr(error, "strerror", None) or first_line(error)
    return UserError(
        f"not a picture or video that can be read ({reason})", path, f"Videos are read as {known} and others"
    )


def _is_cover(stream: Any) -> bool:
    """Whether a stream is a picture that goes with the file: a cover, a thumbnail."""
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _best_stream(container: Any, path: Path) -> Any:
    """The video among the streams: no cover, one that can be decoded; of those one with more than a single frame before
    one without, a default one before another, the largest, the first. UserError where there is none."""
    from av.stream import Disposition

    every = list(container.streams.video)
    found = [each for each in every if not _is_cover(each)]
    if not found:
        has = "only a cover picture" if every else "only sound" if container.streams.audio else "nothing to be seen"
        raise UserError(f"holds no video, {has}", path)
    able = [each for each in found if each.codec_context is not None and each.codec_context.name]
    if not able:
        raise UserError("its video is in a coding that this PyAV cannot decode", path)

    def rank(stream: Any) -> tuple[bool, bool, int]:
        default = bool(stream.disposition & Disposition.default)
        return stream.frames != 1, default, (stream.width or 0) * (stream.height or 0)

    return max(able, key=rank)


def _sane(rate: Any) -> float | None:
    """A header's rate as a float, None where it is none or absurd."""
    try:
        found = float(rate)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return found if SANE_RATES[0] <= found <= SANE_RATES[1] else None
