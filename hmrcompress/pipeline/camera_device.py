"""Frames of a camera at this machine (`camera:0`), through PyAV and Linux's v4l2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmrcompress.errors import MissingExtra, UserError

DEVICES = Path("/dev")
FORM: str | None = "v4l2"
"""What PyAV is told to read a device as."""
USUAL_RATE = 30.0
"""Frames a second of a camera that does not tell."""


def camera_number(text: str) -> int | None:
    """The number in `camera:0`; None for any other text."""
    found = re.fullmatch(r"camera:(\d{1,3})", text)
    return int(found[1]) if found else None


class Camera:
    """A camera by its number. Opened when frames are asked for, and closed when no more are."""

    def __init__(self, number: int) -> None:
        """UserError where there is no such camera, MissingExtra without PyAV."""
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise MissingExtra("av", "video") from error
        self.name, self.path = f"camera:{number}", DEVICES / f"video{number}"
        if not self.path.exists():
            there = sorted(int(each.name[5:]) for each in DEVICES.glob("video*") if each.name[5:].isdigit())
            known = f"there are {', '.join(f'camera:{each}' for each in there)}" if there else "there is none"
            raise UserError(f"no such camera at this machine: {self.path} is not there", self.name, known.capitalize())
        with self._opened() as container:
            rate = container.streams.video[0].average_rate
        self.fps = float(rate) if rate else USUAL_RATE

    def _opened(self) -> Any:
        import av

        try:
            container = av.open(str(self.path), format=FORM)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(f"the camera cannot be opened ({error})", self.name, "Is it in use elsewhere?") from error
        if not container.streams.video:
            container.close()
            raise UserError("the device gives no pictures", self.name)
        return container

    def frames(self) -> Iterator[tuple[float | None, NDArray[np.uint8]]]:
        """(seconds of the camera's clock, or None, (H,W,3) uint8 RGB), for as long as they come. Raises UserError."""
        import av

        with self._opened() as container:
            try:
                for frame in container.decode(video=0):
                    yield frame.time, frame.to_ndarray(format="rgb24")
            except (av.FFmpegError, OSError) as error:
                raise UserError(f"the camera gives no more pictures ({error})", self.name) from error
