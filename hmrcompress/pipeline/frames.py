"""Where pictures come from: one picture, a folder of them, a video or a camera, one at a time in any case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmrcompress.data import pictures
from hmrcompress.data.picture_folders import list_pictures
from hmrcompress.errors import UserError
from hmrcompress.pipeline.camera_device import Camera, camera_number
from hmrcompress.pipeline.stamps import StampLog, risen
from hmrcompress.pipeline.stills import read_pictures
from hmrcompress.pipeline.video_file import Header, read_header
from hmrcompress.pipeline.video_frames import VideoLog, shots

Picture = NDArray[np.uint8]
AVERAGE_SLACK = 0.02
"""Share by which a header's rate may be off and still be called the average."""


@dataclass(frozen=True)
class Frame:
    """number counts from 0; image (H,W,3) uint8 RGB; name of the file, or of the video and the number. seconds: when it
    is shown, rising from frame to frame, None where pictures are no sequence in time. segment: counts the stretches
    without a change of size or a jump of the clock; nothing is followed from one into the next."""

    number: int
    image: Picture
    name: str
    seconds: float | None = None
    segment: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.shape[1], self.image.shape[0]


@dataclass
class SourceLog:
    """What the last pass over the pictures came upon. frames given; first, last: seconds of the first and last;
    largest: (width, height), the first such; video: what there is to say of a video."""

    frames: int = 0
    segments: int = 1
    first: float | None = None
    last: float | None = None
    largest: tuple[int, int] = (0, 0)
    video: VideoLog | None = None

    def note(self, frame: Frame) -> None:
        """Takes the next frame into account."""
        self.frames += 1
        self.segments = frame.segment + 1
        self.first = frame.seconds if self.frames == 1 else self.first
        self.last = frame.seconds
        self.largest = max(self.largest, frame.size, key=lambda size: size[0] * size[1])


@dataclass
class Source:
    """Pictures in order. `fps` is None where they are not a sequence in time, else on average, as a header or the user
    says; `length` None where it is not known. header: of a video. stated: the user gave `fps`, which overrides time
    stamps. camera: what they come from, once. left_out: what else lies in the folder, in words."""

    path: Path
    files: tuple[Path, ...]
    fps: float | None
    length: int | None
    left_out: str = ""
    header: Header | None = None
    stated: bool = False
    camera: Camera | None = None
    log: SourceLog = field(default_factory=SourceLog, init=False)

    @property
    def is_video(self) -> bool:
        """Whether the pictures come out of one video file or camera."""
        return not self.files

    @property
    def stamped(self) -> bool:
        """Whether times are those of a video's own stamps."""
        return (self.header is not None or self.camera is not None) and not self.stated

    def frames(self, limit: int | None = None) -> Iterator[Frame]:
        """The pictures, at most `limit`, decoded one at a time; `log` is begun anew. UserError for a picture that is
        damaged, and for a video none of which can be decoded."""
        self.log = log = SourceLog()
        if limit is not None and limit < 1:
            return
        for frame in self._frames(limit):
            log.note(frame)
            yield frame
            if log.frames == limit:
                return

    def _frames(self, limit: int | None) -> Iterator[Frame]:
        if self.camera is not None:
            return self._camera_frames(self.camera)
        return self._video_frames() if self.header is not None else self._pictures(limit)

    def count(self, limit: int | None = None) -> int:
        """How many frames to expect, for progress; 0 where it is not known."""
        known = self.length or limit or 0
        return known if limit is None else min(known, limit)

    def notes(self) -> list[str]:
        """What there is to tell of the last pass, a sentence each."""
        return self.log.video.notes(self.header) if self.log.video and self.header else []

    def average(self) -> float | None:
        """Frames a second of the last pass: as the header or the user says, or by the stamps where they are far from
        that. None where pictures are no sequence."""
        log = self.log
        if not self.stamped or self.fps is None or log.frames < 2 or log.first is None or log.last is None:
            return self.fps
        found = (log.frames - 1) / (log.last - log.first)
        # Two whole milliseconds are what the stamps of the first and last frame may be off by.
        slack = AVERAGE_SLACK + 2e-3 / (log.last - log.first)
        return self.fps if abs(found / self.fps - 1) <= slack else found

    def time(self) -> dict[str, Any]:
        """What the times of the last pass rest on, as plain values: {base: stamps, fps or none, fps, first, last,
        shortest_step, longest_step}, seconds."""
        if self.fps is None:
            return {"base": "none"}
        stamps = self.log.video.stamps if self.log.video and self.stamped else StampLog()
        found = {
            "base": "stamps" if self.stamped and stamps.missing < self.log.frames else "fps",
            "fps": self.average(),
            "first": self.log.first,
            "last": self.log.last,
            "shortest_step": stamps.shortest or 1 / self.fps,
            "longest_step": stamps.longest or 1 / self.fps,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _video_frames(self) -> Iterator[Frame]:
        assert self.header is not None
        self.log.video = log = VideoLog()
        for number, shot in enumerate(shots(self.header, log, self.fps if self.stated else None)):
            yield Frame(number, shot.image, f"{self.path.name} frame {number}", shot.seconds, shot.segment)

    def _camera_frames(self, camera: Camera) -> Iterator[Frame]:
        self.log.video = log = VideoLog()
        step, segment = 1 / (self.fps or camera.fps), 0
        for number, timed in enumerate(risen(camera.frames(), step, log.stamps)):
            segment += timed.jumped
            yield Frame(number, timed.item, f"{camera.name} frame {number}", timed.seconds, segment)

    def _pictures(self, limit: int | None) -> Iterator[Frame]:
        """Without `fps` every picture stands by itself; with it, a change of size begins another segment."""
        shape, segment = None, 0
        for number, image in read_pictures(self.path, self.files, limit):
            seconds = None if self.fps is None else number / self.fps
            segment += self.fps is not None and shape is not None and image.shape != shape
            shape = image.shape
            yield Frame(number, image, self.files[number].name, seconds, segment)


def open_source(path: Path | str, fps: float | None = None) -> Source:
    """A picture, a folder of pictures (by name, numbers in their order), a video file, or `camera:0` where no file is
    called so.

    `fps` makes a sequence of a folder, or overrides a video's time stamps. Raises UserError, MissingExtra for a video
    or camera where PyAV is missing.
    """
    path = Path(path)
    if fps is not None and not 1e-3 <= fps < 1e4:
        raise UserError(f"got {fps:g}, expected frames per second", "--fps")
    if path.is_dir():
        found = list_pictures(path)
        return Source(path, found.files, fps, len(found.files), found.left_out)
    if not path.exists() and (number := camera_number(str(path))) is not None:
        if fps is not None:
            raise UserError("has no meaning for a camera, whose frames come when they come", "--fps", "Leave it out")
        camera = Camera(number)
        return Source(path, (), camera.fps, None, camera=camera)
    if not path.exists():
        raise UserError("no such file or folder", path)
    if not path.is_file():
        raise UserError("is neither a file nor a folder", path, "It is read more than once: save it as a file")
    if _is_picture(path):
        pictures.size_of_file(path)
        return Source(path, (path,), None, 1)
    header = read_header(path)
    expected = header.frames or (round(header.seconds / header.step) if header.seconds else None)
    return Source(path, (), fps or 1 / header.step, expected, header=header, stated=fps is not None)


def _is_picture(path: Path) -> bool:
    """Whether a file is read as one picture, by what is in it; animated GIFs are videos."""
    kind = pictures.kind_of_file(path)
    if kind == "GIF":
        return not pictures.is_animated(path)
    return kind is not None or path.suffix.lower() in pictures.SUFFIXES
