"""The people in pictures by the detector that the package carries (`--boxes auto`; assets/people/README.md).

It sees 300 x 300 pixels, so it is shown a picture several times: as a whole, stretched and with its shape kept, and in
overlapping squares, in which people of wide and high pictures are larger.
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
SQUARISH = 1.2
"""Longer to shorter side up to which a picture is looked at as a whole only."""
SHARED = 0.25
"""Of a square that the next one shares at least."""
MOST_SQUARES = 12
CUT = 0.02
"""Share of a square next to its edge inside the picture: who reaches there was cut, and is seen whole elsewhere."""


@dataclass(frozen=True)
class View:
    """A part of a picture that is looked at, in its pixels; shaped: put into the square input with its shape kept."""

    left: int
    top: int
    width: int
    height: int
    shaped: bool = False

    def cut_out(self, image: Image.Image, target: tuple[int, int]) -> NDArray[np.float32]:
        """(3,*target) in 0..1."""
        region = (self.left, self.top, self.left + self.width, self.top + self.height)
        if not self.shaped:
            whole = image.resize((target[1], target[0]), Image.Resampling.BILINEAR, region)
            return np.asarray(whole, np.float32).transpose(2, 0, 1) / np.float32(255)
        fitted = Letterbox.fit((self.height, self.width), target)
        rows, columns = fitted.inner
        small = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR, region), np.float32) / 255
        made = np.full((3, *target), GREY, np.float32)
        made[:, fitted.top : fitted.top + rows, fitted.left : fitted.left + columns] = small.transpose(2, 0, 1)
        return made

    def boxes_back(self, corners: Array, target: tuple[int, int]) -> Array:
        """Boxes (n,4) of the input -> of the picture, cut at the edges of this part."""
        size = (self.height, self.width)
        if self.shaped:
            inside = Letterbox.fit(size, target).boxes_back(corners)
        else:
            scale = np.array([self.width / target[1], self.height / target[0]] * 2)
            inside = np.clip(corners * scale, 0, np.array([self.width, self.height] * 2))
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
    found = [View(0, 0, width, height), View(0, 0, width, height, shaped=True)]
    side = min(size)
    if max(size) <= SQUARISH * side:
        return found
    count = min(int(np.ceil((max(size) - side) / (side * (1 - SHARED)))) + 1, MOST_SQUARES)
    begins = np.rint(np.linspace(0, max(size) - side, count)).astype(int).tolist()
    return found + [View(at, 0, side, side) if width > height else View(0, at, side, side) for at in begins]


class PeopleDetector(Followed):
    """Boxes from the detector that the package carries, tracked over frames."""

    def __init__(self, *, scale: float = BOX_SCALE, every: int = 1, cuda: bool = False) -> None:
        """Raises UserError where the asset is damaged, MissingExtra without onnxruntime."""
        super().__init__("auto", scale=scale, every=every)
        self.network = PictureNetwork(DETECTOR_FILE, cuda=cuda)

    def people(self, image: NDArray[np.uint8]) -> tuple[Array, Array]:
        """As `Followed.people`."""
        size, picture, target = (image.shape[1], image.shape[0]), Image.fromarray(image), self.network.size
        views = views_of(size)
        shown = np.stack([view.cut_out(picture, target) for view in views])
        corners, scores = [np.zeros((0, 4))], [np.zeros(0)]
        for view, output in zip(views, self.network.run(shown, ["people"])[0], strict=True):
            inside, score = decode_yolo(output[None])
            back = view.boxes_back(inside, target)
            whole = view.whole(back, size)
            corners.append(back[whole])
            scores.append(score[whole])
        together, how_sure = np.concatenate(corners), np.concatenate(scores)
        kept = suppress(together, how_sure, MOST_OVERLAP)
        kept = kept[~parts_of_others(together[kept])][:MOST_FOUND]
        return together[kept], how_sure[kept]
