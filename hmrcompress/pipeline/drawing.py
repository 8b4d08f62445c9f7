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
from hmrcompress.errors import MissingExtra, UserError
from hmrcompress.io.atomic import atomic_file
from hmrcompress.pipeline.frames import Frame, Picture
from hmrcompress.pipeline.store import RowStore
from hmrcompress.records import BodyParams
from hmrcompress.render.overlay import COLOURS, draw_meshes

QUALITY = "18"
"""Constant rate factor of x264: 0 is lossless, 18 is hard to tell from the original."""


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
    path: Path, fps: float, *, codec: str = "libx264", pixels: str = "yuv420p", options: dict[str, str] | None = None
) -> Iterator[Callable[[Picture], None]]:
    """Gives a function that appends a picture (H,W,3) RGB to a video at `path`, which is there in full at the end, or
    not at all. The first picture sets the size; a last odd row or column is cut off. Without a picture there is no
    file. Raises UserError for pictures of another size, MissingExtra without PyAV."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video") from error
    with atomic_file(path) as temporary, av.open(str(temporary), "w") as container:
        rate = Fraction(fps).limit_denominator(100_000)
        stream: Any = container.add_stream(codec, rate=rate)
        stream.pix_fmt = pixels
        stream.options = options if options is not None else {"crf": QUALITY, "preset": "veryfast"}
        stream.thread_type = "AUTO"
        begun = False

        def write(picture: Picture) -> None:
            nonlocal begun
            height, width = (side - side % 2 for side in picture.shape[:2])
            if not begun:
                stream.width, stream.height, begun = width, height, True
            if (stream.width, stream.height) != (width, height):
                raise UserError(f"a frame of {width}x{height} after one of {stream.width}x{stream.height}", path)
            image = np.ascontiguousarray(picture[:height, :width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)

        yield write
        for packet in stream.encode(None) if begun else ():
            container.mux(packet)


def write_png(path: Path, picture: Picture) -> None:
    """Writes a picture (H,W,3) RGB, whole or not at all."""
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
