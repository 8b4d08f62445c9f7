"""The people in pictures by the detector that the package carries (`--boxes auto`; assets/people/README.md).

It was made for squares of 256 pixels and takes any multiple of 32. A picture is shown as a whole, its longer side that
long, in which people as large as the picture are found, and where it is not nearly square once more with its shorter
side that long, in which people are larger; very wide and very high pictures in parts that overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmrcompress.data.onnx_network import PictureNetwork
from hmrcompress.data.people import DETECTOR_FILE, parts_of_others, suppress
from hmrcompress.data.yolo import GREY, Letterbox
from hmrcompress.pipeline.boxes import BOX_SCALE
from hmrcompress.pipeline.detect import MOST_FOUND, MOST_OVERLAP, decode_yolo
from hmrcompress.pipeline.followed import Followed

Array = NDArray[np.float64]
SIDE, MULTIPLE = 256, 32
"""Pixels of a side that the detector was made for, and what its sides are multiples of."""
SQUARISH = 1.2
"""Longer to shorter side up to which a picture is looked at once."""
LONGEST = 2
"""Longer to shorter side of a part; a picture that is longer is seen in several."""
SHARED = 0.25
"""Of a part that the next one shares at least."""
MOST_PARTS = 12
CUT = 0.02
"""Share of a part next to its edge inside the picture: who reaches there was cut, and is seen whole elsewhere."""


@dataclass(frozen=True)
class View:
    """A part of a picture that is looked at, in its pixels, and the height and width of the input that it is put into
    with its shape kept."""

    left: int
    top: int
    width: int
    height: int
    target: tuple[int, int]

    def cut_out(self, image: Image.Image) -> NDArray[np.float32]:
        """(3,*target) in 0..1."""
        region = (self.left, self.top, self.left + self.width, self.top + self.height)
        fitted = Letterbox.fit((self.height, self.width), self.target)
        rows, columns = fitted.inner
        small = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR, region), np.float32) / 255
        made = np.full((3, *self.target), GREY, np.float32)
        made[:, fitted.top : fitted.top + rows, fitted.left : fitted.left + columns] = small.transpose(2, 0, 1)
        return made

    def boxes_back(self, corners: Array) -> Array:
        """Boxes (n,4) of the input -> of the picture, cut at the edges of this part."""
        inside = Letterbox.fit((self.height, self.width), self.target).boxes_back(corners)
        return inside + np.array([self.left, self.top] * 2)

    def whole(self, corners: Array, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(n,): which boxes (n,4) of a picture (width, height) are not cut by an edge of this part inside of it."""
        slack = CUT * np.array([self.width, self.height])
        low, high = np.array([self.left, self.top]), np.array([self.left + self.width, self.top + self.height])
        cut = ((corners[:, :2] < low + slack) & (low > 0)) | ((corners[:, 2:] > high - slack) & (high < np.array(size)))
        return np.logical_not(cut.any(axis=1))


def views_of(size: tuple[int, int]) -> list[View]:
    """How a picture (width, height) is looked at."""
    width, height = size
    shorter, longer = min(size), max(size)
    found = [View(0, 0, width, height, _input(size, SIDE / longer))]
    if longer <= SQUARISH * shorter:
        return found
    part = min(longer, LONGEST * shorter)
    count = min(int(np.ceil((longer - part) / (part * (1 - SHARED)))) + 1, MOST_PARTS)
    for at in np.rint(np.linspace(0, longer - part, count)).astype(int).tolist():
        left, top, *piece = (at, 0, part, height) if width > height else (0, at, width, part)
        found.append(View(left, top, piece[0], piece[1], _input((piece[0], piece[1]), SIDE / shorter)))
    return found


def _input(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of the input for a part of this (width, height): the multiples that are nearest."""
    columns, rows = (max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in size)
    return rows, columns


class PeopleDetector(Followed):
    """Boxes from the detector that the package carries, tracked over frames."""

    def __init__(self, *, scale: float = BOX_SCALE, every: int = 1, cuda: bool = False) -> None:
        """Raises UserError where the asset is damaged, MissingExtra without onnxruntime."""
        super().__init__("auto", scale=scale, every=every)
        self.network = PictureNetwork(DETECTOR_FILE, cuda=cuda)

    def people(self, image: NDArray[np.uint8]) -> tuple[Array, Array]:
        """As `Followed.people`."""
        size, picture = (image.shape[1], image.shape[0]), Image.fromarray(image)
        corners, scores = [np.zeros((0, 4))], [np.zeros(0)]
        for view in views_of(size):
            inside, score = decode_yolo(self.network.run(view.cut_out(picture)[None], ["people"])[0])
            back = view.boxes_back(inside)
            whole = view.whole(back, size)
            corners.append(back[whole])
            scores.append(score[whole])
        together, how_sure = np.concatenate(corners), np.concatenate(scores)
        kept = suppress(together, how_sure, MOST_OVERLAP)
        kept = kept[~parts_of_others(together[kept])][:MOST_FOUND]
        return together[kept], how_sure[kept]
