"""Frames of a video as a player shows them: upright, with square pixels, each with its time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmrcompress.errors import UserError
from hmrcompress.pipeline.stamps import StampLog, counted, evenly, risen
from hmrcompress.pipeline.video_file import MOST_PIXELS, Header, check_size, opened_video

Picture = NDArray[np.uint8]
SQUARE = 0.005
"""Pixels whose sides differ by less are square: players round the sizes that they store."""
MOST_STRETCH = 8
"""Pixels whose sides are further apart than so many to one are a mistake in the file."""
MOST_REORDERED = 16
"""Frames that a decoder may hold back, whose times of decoding are gone when the last of them come out."""
LARGE = 9_000_000
"""Pixels above which frames are decoded one at a time: every thread keeps some."""


class Shot(NamedTuple):
    """A frame as shown: image (H,W,3) uint8 RGB, seconds of the stream's clock, the number of its segment."""

    image: Picture
    seconds: float
    segment: int


@dataclass
class VideoLog:
    """What reading a video came upon. frames given; damaged packets that could not be decoded; incomplete frames that
    the decoder patched up; resized: changes of size; first, last: seconds of the first and last frame; odd_pixels: a
    ratio of their sides that was not believed; slanted: turned by no quarter; finished: the end was reached; broken:
    the reading of the file ended in an error."""

    stamps: StampLog = field(default_factory=StampLog)
    frames: int = 0
    damaged: int = 0
    incomplete: int = 0
    resized: int = 0
    first: float | None = None
    last: float | None = None
    odd_pixels: Fraction | None = None
    slanted: bool = False
    finished: bool = False
    broken: bool = False

    def expected(self, header: Header) -> int | None:
        """How many frames the header promises, where it does, by their number or by its duration."""
        if header.frames is not None:
            return header.frames
        if header.seconds is None or header.form not in ("matroska", "flv"):
            return None  # elsewhere the duration is a guess from what is there
        span = (self.last or 0) - (self.first or 0)
        rate = (self.frames - 1) / span if self.frames > 1 and span > 0 else 1 / header.step
        return round(header.seconds * rate)

    def ends_early(self, header: Header) -> bool:
        """Whether the file ended before it should have."""
        return self.finished and (header.cut or self.broken)

    def notes(self, header: Header) -> list[str]:
        """What a user has to know, a sentence each."""
        found = []
        if header.streams > 1:
            found.append(f"holds {header.streams} videos, of which stream {header.stream} was read")
        if self.ends_early(header):
            expected = self.expected(header)
            if expected is not None and expected > self.frames:
                about = "" if header.frames is not None else "about "
                found.append(f"ends before its header says: {self.frames} of {about}{expected} frames could be read")
            else:
                found.append(f"its end is missing; {self.frames} frames could be read")
        if self.damaged:
            found.append(f"{counted(self.damaged, 'piece')} could not be decoded; frames are numbered without such")
        if self.incomplete:
            found.append(f"{counted(self.incomplete, 'frame')} damaged in part, patched up by the decoder")
        if self.frames and self.stamps.missing == self.frames:
            found.append(f"has no time stamps; its frames were taken to follow each other {1 / header.step:g} a second")
        else:
            found += self.stamps.notes(MOST_REORDERED if header.by_decoding else 0)
        if self.resized:
            found.append(f"its frames change their size, {counted(self.resized, 'time')}; nobody is followed across")
        if self.odd_pixels is not None:
            found.append(f"its pixels are said to be {self.odd_pixels} as wide as high; they were taken to be square")
        if self.slanted:
            found.append("is to be shown turned by no multiple of 90 degrees; the nearest one was taken")
        return found


def shots(header: Header, log: VideoLog, fps: float | None = None) -> Iterator[Shot]:
    """The frames in the order in which they are shown. What cannot be decoded is left out and counted in `log`.

    fps: they follow each other at that rate, whatever their stamps say. Raises UserError where there is no frame at
    all, and for frames of too many pixels.
    """
    decoded, segment = _decoded(header, log), 0
    size: tuple[int, int] | None = None
    for timed in risen(decoded, header.step, log.stamps) if fps is None else evenly(decoded, fps):
        frame, ratio = timed.item
        image = _shown(frame, ratio, header, log)
        if image is None:
            log.damaged += 1
            continue
        before, size = size, (image.shape[1], image.shape[0])
        resized = before is not None and size != before
        log.resized += resized
        segment += resized or timed.jumped
        log.first = timed.seconds if log.first is None else log.first
        log.last = timed.seconds
        log.frames += 1
        yield Shot(image, timed.seconds, segment)
    if not log.frames:
        raise UserError("holds no frame that can be decoded", header.path)
    log.finished = True


def _decoded(header: Header, log: VideoLog) -> Iterator[tuple[float | None, tuple[Any, Fraction | None]]]:
    """(stamp in seconds or None, (PyAV's frame, width to height of its pixels)) for every frame that can be decoded."""
    import av

    with opened_video(header.path) as container:
        stream = container.streams[header.stream]
        stream.thread_type = "AUTO"
        if header.size[0] * header.size[1] > LARGE:
            stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        first_ratio: Fraction | None = None
        for number, frame in enumerate(_frames(container, stream, log, av.FFmpegError)):
            # The container's ratio counts, until the coded frames change theirs, as broadcasts do.
            coded = stream.codec_context.sample_aspect_ratio
            first_ratio = coded if number == 0 else first_ratio
            log.incomplete += bool(frame.is_corrupt)
            yield _stamp(frame, header), (frame, stream.sample_aspect_ratio if coded == first_ratio else coded)


def _frames(container: Any, stream: Any, log: VideoLog, failure: type[Exception]) -> Iterator[Any]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except failure:
            log.broken = True
            packets, packet = iter(()), None
        try:
            yield from stream.decode(packet)
        except EOFError:
            pass
        except failure:
            log.damaged += 1


def _stamp(frame: Any, header: Header) -> float | None:
    """Seconds, by the stream's clock."""
    ticks, unit = frame.dts if header.by_decoding else frame.pts, frame.time_base or header.tick
    return None if ticks is None or not unit else float(ticks * unit)


def _shown(frame: Any, ratio: Fraction | None, header: Header, log: VideoLog) -> Picture | None:
    """(H,W,3) uint8 RGB as a player shows it, None where it cannot be made. UserError for too many pixels."""
    import av
    from av.video.reformatter import Interpolation

    width, height = stored = frame.width, frame.height
    check_size(stored, header.path)
    if ratio and abs(ratio - 1) > SQUARE:
        if Fraction(1, MOST_STRETCH) <= ratio <= MOST_STRETCH:
            # Pixels are made longer, never shorter, so that nothing is lost.
            width, height = (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))
            check_size((width, height), header.path)
        else:
            log.odd_pixels = ratio
    matrix = _display_matrix(frame)
    way = (
        {} if (width, height) == stored else {"width": width, "height": height, "interpolation": Interpolation.BICUBIC}
    )
    try:
        image: Picture = frame.to_ndarray(format="rgb24", threads=1, **way)
    except (av.FFmpegError, ValueError):
        return None
    return image if matrix is None else turned(image, matrix, log)


def _display_matrix(frame: Any) -> NDArray[np.int32] | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX" and len(raw := bytes(data)) >= 36:
            return np.frombuffer(raw[:36], np.int32)
    return None


def turned(image: Picture, matrix: NDArray[np.int32], log: VideoLog | None = None) -> Picture:
    """A stored picture as its display matrix (9 numbers; ISO 14496-12 section 6.2.2) has it shown: x' = a x + c y,
    y' = b x + d y, of which the nearest of the eight ways to lay down a picture is taken."""
    a, b, _, c, d = (float(number) for number in matrix[:5])
    upright, lying = abs(a) + abs(d), abs(b) + abs(c)
    if log is not None and min(upright, lying) > 0.01 * max(upright, lying):
        log.slanted = True
    if lying > upright:  # x' comes from y
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
