"""The second pass over the pictures: everybody's mesh drawn over each, as a video or as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import MissingExtra, UserError, first_line
from hmrcompress.io.atomic import whole_file
from hmrcompress.pipeline.frames import Frame, Picture
from hmrcompress.pipeline.store import RowStore
from hmrcompress.records import BodyParams
from hmrcompress.render.overlay import COLOURS, draw_meshes

LONGEST_NAME = 180
"""Bytes of a picture's own name in that of its overlay; 255 are allowed, and more is put before and behind."""
QUALITY = "18"
"""Constant rate factor of x264: 0 is lossless, 18 is hard to tell from the original."""
FINE, COARSEST = Fraction(1, 90_000), Fraction(1, 500)
"""Seconds that a video's times are counted in, and the coarsest of the units that are taken over."""


class Shown:
    """Who is on which frame: rows of a finished store, found by the number of the frame."""

    def __init__(self, store: RowStore, body: BodyModel) -> None:
        self.store, self.body = store, body
        self.rows = store.order() if store.count else np.zeros(0, np.int64)
        self.frames = store.column("frame")[self.rows] if store.count else self.rows
        self.tracks = np.unique(store.column("track")) if store.count else self.rows

    def on(self, number: int) -> np.ndarray:
        """Row numbers of a frame's people."""
        first, last = np.searchsorted(self.frames, (number, number + 1))
        return self.rows[first:last]

    def vertices(self, rows: np.ndarray) -> np.ndarray:
        """Meshes (P,V,3) float32 of rows (P,), metres in the picture's camera frame."""
        device = self.body.v_template.device

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.array(self.store.column(name)[rows])).to(device)

        params = BodyParams(tensor("global_orient"), tensor("body_pose"), tensor("betas"))
        with torch.no_grad():
            return (self.body(params).vertices + tensor("transl")[:, None]).cpu().numpy()


def overlay(frame: Frame, shown: Shown, vertices: np.ndarray, rows: np.ndarray) -> Picture:
    """The frame with the meshes (P,V,3) of its rows (P,) drawn over it, a colour for each track."""
    if not len(rows):
        return frame.image
    width, height = frame.size
    focal = float(shown.store.column("focal")[rows[0]])
    ranks = np.searchsorted(shown.tracks, shown.store.column("track")[rows])
    colours = [COLOURS[rank % len(COLOURS)] for rank in ranks]
    faces = np.ascontiguousarray(shown.body.faces, np.int32)
    return draw_meshes(frame.image, vertices, faces, focal, (width / 2, height / 2), colours)


@contextmanager
def video_writer(
    path: Path,
    fps: float,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    tick: Fraction | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[Callable[..., None]]:
    """Gives a function that appends a picture (H,W,3) RGB to a video at `path`, which is there in full at the end, or
    not at all; and, as its second argument, the seconds at which it is shown, which rise. Without them pictures follow
    each other at `fps`.

    tick: the unit of times in seconds, for those that are given. size: (width, height) of the video, into which
    pictures of another size are fitted; None: that of the first picture, and others are a UserError. A last odd row or
    column is cut off. Without a picture there is no file. Raises UserError, MissingExtra without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video") from error
    with whole_file(path) as temporary, av.open(str(temporary), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(100_000))
        stream.pix_fmt = pixels
        stream.options = options if options is not None else {"crf": QUALITY, "preset": "veryfast"}
        stream.thread_type = "AUTO"
        unit = tick if tick is not None and FINE <= tick <= COARSEST else FINE
        begun, newest = False, -1

        def write(picture: Picture, seconds: float | None = None) -> None:
            nonlocal begun, newest
            picture = picture if size is None else fitted(picture, size)
            height, width = (max(2, side - side % 2) for side in picture.shape[:2])
            if not begun:
                stream.width, stream.height, begun = width, height, True
                if seconds is not None:
                    stream.time_base = stream.codec_context.time_base = unit
            if (stream.width, stream.height) != (width, height):
                raise UserError(f"a frame of {width}x{height} after one of {stream.width}x{stream.height}", path)
            if 1 in picture.shape[:2]:  # no coding has odd sides
                picture = np.pad(picture, [(0, max(0, 2 - side)) for side in picture.shape[:2]] + [(0, 0)], "edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            if seconds is not None:
                newest = max(newest + 1, round(seconds / unit))
                frame.pts, frame.time_base = newest, unit
            for packet in stream.encode(frame):
                container.mux(packet)

        try:
            yield write
            for packet in stream.encode(None) if begun else ():
                container.mux(packet)
        except av.FFmpegError as error:
            raise UserError(f"cannot be encoded as {codec} ({first_line(error)})", path) from error


def fitted(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture (H,W,3) made as large as fits `size` = (width, height), in the middle of black. As it is if it fits."""
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    scale = min(size[0] / width, size[1] / height)
    inside = [min(most, max(1, round(side * scale))) for side, most in zip((width, height), size, strict=True)]
    left, top = ((most - side) // 2 for side, most in zip(inside, size, strict=True))
    whole = np.zeros((size[1], size[0], 3), np.uint8)
    resized = Image.fromarray(picture).resize((inside[0], inside[1]), Image.Resampling.BICUBIC)
    whole[top : top + inside[1], left : left + inside[0]] = np.asarray(resized)
    return whole


def write_png(path: Path, picture: Picture) -> None:
    """Writes a picture (H,W,3) RGB; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, format="PNG")


def picture_name(frame: Frame) -> str:
    """What the overlay of a picture is called: its number, and as much of its name as file systems allow."""
    stem = Path(frame.name).stem.encode("utf-8", "surrogateescape")[:LONGEST_NAME].decode("utf-8", "ignore")
    return f"{frame.number:06d}_{stem}.png"
