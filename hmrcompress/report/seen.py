"""What a page shows of the pictures themselves: bodies before and after beside the crop, and which patches became one
token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hmrcompress.body.model import BodyModel
from hmrcompress.records import IMAGENET_MEAN, IMAGENET_STD, HMROutput
from hmrcompress.report.contact import Picture, grid, lay_over

LINE = np.array([255, 255, 255], np.uint8)
DARK = 0.25
"""Of their brightness is left to patches that were dropped."""


def crop_pictures(images: NDArray[np.float32]) -> list[Picture]:
    """Crops (B,3,H,W) as networks take them -> pictures (H,W,3)."""
    mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    return [(255 * (each * std + mean)).clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0) for each in images]


def side_by_side(pictures: Sequence[Picture], outputs: Sequence[HMROutput], body: BodyModel) -> Picture:
    """For every crop, numbered from 1: the picture, and the mesh of each output laid over it; two crops a row."""
    rows = [[numbered(picture, number)] for number, picture in enumerate(pictures, 1)]
    for output in outputs:
        posed = body(output.params)
        meshes = (posed.vertices - posed.joints[:, :1]).cpu().numpy()
        for row, picture, mesh, cam in zip(rows, pictures, meshes, output.cam.tolist(), strict=True):
            row.append(lay_over(picture, mesh, body.faces, cam))
    return grid([tile for row in rows for tile in row], 2 * (1 + len(outputs)))


def numbered(picture: Picture, number: int) -> Picture:
    """A copy with a number in its corner."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 30, 24), fill=(255, 255, 255))
    draw.text((6, 3), str(number), fill=(0, 0, 0), font=ImageFont.load_default(16))
    return np.asarray(image)


def with_tokens(picture: Picture, owners: NDArray[np.int64], rows: int, columns: int) -> Picture:
    """A picture (H,W,3) in which patches that became one token share their mean colour, lines part different tokens,
    and dropped patches (owner -1) are dark. owners (rows * columns,)."""
    height, width = picture.shape[:2]
    place = owners.reshape(rows, columns)
    of_pixel = np.kron(place, np.ones((height // rows, width // columns), np.int64))
    drawn = picture.astype(np.float64)
    for owner in np.unique(owners):
        there = of_pixel == owner
        drawn[there] = DARK * drawn[there] if owner < 0 else drawn[there].mean(0)
    result = drawn.round().astype(np.uint8)
    result[1:][of_pixel[1:] != of_pixel[:-1]] = LINE
    result[:, 1:][of_pixel[:, 1:] != of_pixel[:, :-1]] = LINE
    return result


def tokens_of(pictures: Sequence[Picture], owners: NDArray[np.int64], rows: int, columns: int) -> Picture:
    """Each picture beside itself as its tokens; four pictures a row."""
    tiles = []
    for picture, owner in zip(pictures, owners, strict=True):
        tiles += [picture, with_tokens(picture, owner, rows, columns)]
    return grid(tiles, 8)
