"""Contact sheets: crops of the starter world with their masks, and predicted meshes laid over crops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import mask_source
from hmrcompress.io.outputs import OutputRule
from hmrcompress.metrics.points import mpjpe
from hmrcompress.models.network import HMR2
from hmrcompress.pipeline.camera import CROP_FOCAL
from hmrcompress.records import CROP
from hmrcompress.render.overlay import COLOURS, draw_meshes
from hmrcompress.report.sheets import EXTREME_POSES, KIND, body_sheet

SHEETS = ("body_poses.png", "starter_crops.jpg", "starter_meshes.jpg")
OUTLINE = np.array([255, 64, 32], np.uint8)
Picture = NDArray[np.uint8]


def outlined(image: Picture, mask: NDArray[np.bool_]) -> Picture:
    """A copy of image (H,W,3) with the inner border of mask (H,W) drawn two pixels wide."""
    inner = mask.copy()
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            inner &= np.roll(mask, step, axis)
    drawn = image.copy()
    drawn[mask & ~inner] = OUTLINE
    return drawn


def lay_over(image: Picture, vertices: NDArray[np.float32], faces: NDArray[np.int32], cam: Sequence[float]) -> Picture:
    """Draw a mesh over a crop of any size. vertices (V,3) metres relative to the network's root, cam (s, tx, ty)."""
    height, width = image.shape[:2]
    scale = max(float(cam[0]), 1e-3)
    placed = vertices + np.array([cam[1], cam[2], 2 * CROP_FOCAL / (CROP.height * scale)], np.float32)
    focal = CROP_FOCAL * max(height, width) / CROP.side
    return draw_meshes(image, placed[None], faces, focal, (width / 2, height / 2), COLOURS[:1])


def grid(tiles: Sequence[Picture], columns: int) -> Picture:
    """Tiles of one size, row by row, the last row filled with white."""
    blank = np.full_like(tiles[0], 255)
    padded = [*tiles, *[blank] * (-len(tiles) % columns)]
    return np.concatenate([np.concatenate(padded[i : i + columns], 1) for i in range(0, len(padded), columns)], 0)


def save_picture(picture: Picture, path: Path, overwrite: bool | OutputRule = False) -> Path:
    """Write as JPEG or PNG by the suffix. UserError as `io.outputs`."""
    with OutputRule.of(overwrite).file(path, KIND) as temporary:
        kind = "JPEG" if path.suffix in (".jpg", ".jpeg") else "PNG"
        Image.fromarray(picture).save(temporary, format=kind, quality=88, optimize=True)
    return path


def crop_sheet(
    crops: CropSet, indices: Sequence[int], path: Path, columns: int = 8, overwrite: bool | OutputRule = False
) -> Path:
    """Crops, each beside itself with the outline of its person mask. UserError as `io.outputs`."""
    chosen = np.asarray(indices)
    masks = crops.pixel_masks(chosen)
    tiles = []
    for place, index in enumerate(chosen):
        image = np.asarray(crops.arrays["images"][index])
        tiles += [image, image if masks is None else outlined(image, masks[place])]
    return save_picture(grid(tiles, columns), path, overwrite)


@torch.no_grad()
def mesh_sheet(
    networks: Sequence[HMR2],
    crops: CropSet,
    indices: Sequence[int],
    body: BodyModel,
    path: Path,
    columns: int = 8,
    overwrite: bool | OutputRule = False,
) -> Path:
    """For every crop the image, then the mesh that each network predicts laid over it. Networks are on the CPU.
    UserError as `io.outputs`."""
    chosen = np.asarray(indices)
    batch = next(crops.batches(chosen, len(chosen), mask_source("data")))
    rows: list[list[Picture]] = [[np.asarray(crops.arrays["images"][index])] for index in chosen]
    for network in networks:
        output = network(*batch.inputs())
        posed = body(output.params)
        meshes = (posed.vertices - posed.joints[:, :1]).numpy()
        for row, mesh, cam in zip(rows, meshes, output.cam.tolist(), strict=True):
            row.append(lay_over(row[0], mesh, body.faces, cam))
    return save_picture(grid([tile for row in rows for tile in row], columns), path, overwrite)


def starter_sheets(
    folder: Path,
    networks: Sequence[HMR2],
    crops: CropSet,
    body: BodyModel,
    *,
    overwrite: bool | OutputRule = False,
) -> list[Path]:
    """The pictures of the documentation, into a folder. Returns what was written. UserError as `io.outputs`.

    body_poses.png: the body in extreme poses; starter_crops.jpg: a frame of every clip of `crops` with its mask;
    starter_meshes.jpg: crops with the meshes of the networks, on the CPU, laid over, the last one's worst in the last
    row.
    """
    outputs = OutputRule.of(overwrite)
    columns = 4 * (1 + len(networks))
    chosen = from_best_to_worst(networks[-1], crops, body)
    poses, shown, meshes = (folder / name for name in SHEETS)
    return [
        body_sheet(body, EXTREME_POSES, poses, overwrite=outputs),
        crop_sheet(crops, [int(i) for i in crops.sample(1)], shown, overwrite=outputs),
        mesh_sheet(networks, crops, chosen, body, meshes, columns, outputs),
    ]


def from_best_to_worst(network: HMR2, crops: CropSet, body: BodyModel) -> list[int]:
    """Twelve crops of different clips, of rising error; the last four are the worst."""
    frames = crops.sample(1)
    order = frames[np.argsort(frame_errors(network, crops, frames, body))]
    rest = order[:-4]
    return [int(i) for i in [*rest[:: max(1, len(rest) // 8)][:8], *order[-4:]]]


@torch.no_grad()
def frame_errors(network: HMR2, crops: CropSet, indices: NDArray[np.int64], body: BodyModel) -> NDArray[np.float64]:
    """MPJPE in mm of a network on the CPU for each of the crops."""
    batch = next(crops.batches(indices, len(indices), mask_source("data")))
    predicted = body.joints(network(*batch.inputs()).params)
    return mpjpe(predicted, body.joints(batch.params)).numpy()
