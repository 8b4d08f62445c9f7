"""Where pictures come from: one picture, a folder of them, or a video, one at a time in either case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmrcompress.data import pictures
from hmrcompress.data.picture_folders import list_pictures
from hmrcompress.errors import MissingExtra, UserError
from hmrcompress.pipeline.stills import read_pictures

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """number counts from 0; image (H,W,3) uint8 RGB; name of the file, or of the video and the number."""

    number: int
    image: Picture
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True)
class Source:
    """Pictures in order. `fps` is None where they are not a sequence in time; `length` None where it is not known.
    left_out: what else lies in the folder, in words."""

    path: Path
    files: tuple[Path, ...]
    fps: float | None
    length: int | None
    left_out: str = ""

    @property
    def is_video(self) -> bool:
        """Whether the pictures come out of one video file."""
        return not self.files

    def frames(self, limit: int | None = None) -> Iterator[Frame]:
        """The pictures, at most `limit`, decoded one at a time. UserError for a file that is damaged."""
        if self.is_video:
            return islice(_video_frames(self.path), limit)
        found = read_pictures(self.path, self.files, limit)
        return (Frame(number, image, self.files[number].name) for number, image in found)

    def count(self, limit: int | None = None) -> int:
        """How many frames to expect, for progress; 0 where it is not known."""
        known = self.length or limit or 0
        return known if limit is None else min(known, limit)


def open_source(path: Path | str, fps: float | None = None) -> Source:
    """A picture, a folder of pictures (by name, numbers in their order), or a video file.

    `fps` makes a sequence of a folder, or overrides a video's own. Raises UserError, MissingExtra for a video where
    PyAV is missing.
    """
    path = Path(path)
    if fps is not None and not 1e-3 <= fps < 1e4:
        raise UserError(f"got {fps:g}, expected frames per second", "--fps")
    if path.is_dir():
        found = list_pictures(path)
        return Source(path, found.files, fps, len(found.files), found.left_out)
    if not path.exists():
        raise UserError("no such file or folder", path)
    if not path.is_file():
        raise UserError("is neither a file nor a folder", path, "It is read more than once: save it as a file")
    if _is_picture(path):
        pictures.size_of_file(path)
        return Source(path, (path,), None, 1)
    with opened_video(path) as container:
        stream = container.streams.video[0]
        rate = fps or float(stream.average_rate or stream.guessed_rate or 0)
        if not rate:
            raise UserError("does not say how many frames a second it has", path, "Give --fps")
        length = stream.frames or (int(float(container.duration or 0) / 1e6 * rate) or None)
    return Source(path, (), rate, length)


def _is_picture(path: Path) -> bool:
    """Whether a file is read as one picture, by what is in it; animated GIFs are videos."""
    kind = pictures.kind_of_file(path)
    if kind == "GIF":
        return not pictures.is_animated(path)
    return kind is not None or path.suffix.lower() in pictures.SUFFIXES


def opened_video(path: Path) -> Any:
    """PyAV's container of a file with at least one video stream. Raises UserError, MissingExtra."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video") from error
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"not a picture or video that can be read ({error})", path) from error
    if not container.streams.video:
        container.close()
        raise UserError("holds no video stream", path)
    return container


def _video_frames(path: Path) -> Iterator[Frame]:
    import av

    with opened_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        number = 0
        try:
            for number, frame in enumerate(container.decode(stream)):
                # The display matrix of telephones: degrees counter-clockwise.
                turns = round(frame.rotation / 90) % 4
                image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                yield Frame(number, image, f"{path.name} frame {number}")
        except av.FFmpegError as error:
            raise UserError(f"damaged after frame {number} ({error})", path, "--limit stops before it") from error
