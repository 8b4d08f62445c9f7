"""Picture sheets: a body in labelled poses, shaded like clay.

`python -m hmrcompress.report.sheets docs/body_poses.png` makes the sheet in the documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hmrcompress.body.files import starter_body
from hmrcompress.body.joints import SMPL_JOINTS, mirrored_name
from hmrcompress.body.model import BodyModel
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.io.outputs import OutputRule
from hmrcompress.records import BodyParams
from hmrcompress.render.raster import vertex_normals, visibility

Turns = Sequence[tuple[str, float]]
"""Rotations about a joint's x, y or z axis in degrees, the first one outermost."""

KIND = "sheet"
TILE = 300, 330
COLUMNS = 4
OVERSAMPLING = 3
FOCAL_PER_WIDTH = 4.0
DISTANCE = 9.0
MOST_ZOOM = 1.8
ELEVATION_DEGREES = 12.0
MARGIN = 0.08
CLAY = np.asarray([0.79, 0.62, 0.53])
PAPER = np.asarray([0.955, 0.955, 0.95])
INK = (60, 60, 60)
LIGHTS = (
    ((-0.45, 0.75, 0.6), (0.74, 0.72, 0.67)),
    ((0.8, 0.1, 0.45), (0.26, 0.28, 0.32)),
    ((0.1, 0.5, -0.9), (0.34, 0.34, 0.36)),
)
"""Directions towards the lights (viewer's frame: x right, y up, z towards the viewer) and their colours."""
SKY, FLOOR = np.asarray([0.44, 0.45, 0.47]), np.asarray([0.26, 0.23, 0.21])


@dataclass(frozen=True)
class NamedPose:
    """A pose by joint name, and from where to look at it: degrees to the subject's left of its front."""

    label: str
    turns: Mapping[str, Turns]
    view_degrees: float = 25.0

    def rotations(self) -> torch.Tensor:
        """(24,3,3) rotations relative to the parents."""
        result = torch.eye(3, dtype=torch.float64).repeat(len(SMPL_JOINTS), 1, 1)
        for name, turns in self.turns.items():
            for axis, degrees in turns:
                vector = torch.zeros(3, dtype=torch.float64)
                vector["xyz".index(axis)] = np.radians(degrees)
                index = SMPL_JOINTS.index(name)
                result[index] = result[index] @ axis_angle_to_matrix(vector)
        return result


def both(turns: Mapping[str, Turns]) -> dict[str, Turns]:
    """Turns of left joints, and the mirrored ones of the right joints."""
    other = {
        mirrored_name(name): [(axis, angle if axis == "x" else -angle) for axis, angle in steps]
        for name, steps in turns.items()
    }
    return {**turns, **other}


def _spine(axis: str, degrees: float, head: float = 0.0) -> dict[str, Turns]:
    """The same turn for the three joints of the spine, another one for neck and head."""
    back: dict[str, Turns] = {name: [(axis, degrees)] for name in ("spine1", "spine2", "spine3")}
    return {**back, "neck": [(axis, head)], "head": [(axis, head)]}


_ARMS_UP = both({"left_collar": [("z", 22)], "left_shoulder": [("z", 62)]})
EXTREME_POSES = (
    NamedPose("T", {}),
    NamedPose(
        "deep squat",
        {
            **_spine("x", 12, -10),
            **both(
                {
                    "left_hip": [("z", 22), ("x", -122)],
                    "left_knee": [("x", 132)],
                    "left_ankle": [("x", -30)],
                    "left_shoulder": [("y", -78)],
                }
            ),
        },
        40,
    ),
    NamedPose("splits", both({"left_hip": [("z", 80)], "left_foot": [("x", 30)]}), 10),
    NamedPose("arms overhead", _ARMS_UP, 20),
    NamedPose(
        "lotus",
        {
            **both(
                {
                    "left_hip": [("y", 48), ("x", -78), ("y", 78)],
                    "left_knee": [("x", 138)],
                    "left_shoulder": [("z", -52), ("y", -18)],
                    "left_elbow": [("y", -30)],
                }
            ),
        },
        20,
    ),
    NamedPose(
        "backbend",
        {**_spine("x", -24, -18), **_ARMS_UP, "pelvis": [("x", -22)], **both({"left_hip": [("x", 28)]})},
        80,
    ),
    NamedPose(
        "kick",
        {
            "pelvis": [("x", -12)],
            "left_hip": [("x", -112)],
            "left_ankle": [("x", 35)],
            "right_hip": [("x", 12)],
            "spine1": [("x", 10)],
            "left_shoulder": [("z", -35), ("y", 35)],
            "right_shoulder": [("z", 30), ("y", 55)],
            "right_elbow": [("y", 60)],
        },
        55,
    ),
    NamedPose(
        "crawl",
        {
            "pelvis": [("x", 86)],
            "neck": [("x", -25)],
            "head": [("x", -25)],
            "left_shoulder": [("y", -95)],
            "right_shoulder": [("y", 70)],
            "left_wrist": [("z", 75)],
            "right_wrist": [("z", -75)],
            "left_hip": [("x", -70)],
            "right_hip": [("x", -105)],
            "left_knee": [("x", 80)],
            "right_knee": [("x", 95)],
            **both({"left_ankle": [("x", 45)]}),
        },
        65,
    ),
    NamedPose("twist", {**_spine("y", 26, 22), **both({"left_shoulder": [("z", -15)]}), "pelvis": [("y", -30)]}, 20),
    NamedPose(
        "fetal",
        {
            **_spine("x", 24, 24),
            "pelvis": [("x", -38)],
            **both(
                {
                    "left_hip": [("x", -128)],
                    "left_knee": [("x", 138)],
                    "left_shoulder": [("z", -50), ("y", -48)],
                    "left_elbow": [("y", -105)],
                }
            ),
        },
        75,
    ),
    NamedPose(
        "one-arm handstand",
        {
            "pelvis": [("z", 16), ("x", 180)],
            "right_collar": [("z", -24)],
            "right_shoulder": [("z", -74)],
            "right_wrist": [("z", -70)],
            "left_shoulder": [("z", 10)],
            "left_hip": [("z", 48)],
            "right_hip": [("z", -36)],
            "left_knee": [("x", 30)],
        },
        200,
    ),
    NamedPose(
        "sitting",
        both(
            {
                "left_hip": [("z", 6), ("x", -90)],
                "left_knee": [("x", 90)],
                "left_shoulder": [("z", -62), ("y", -12)],
                "left_elbow": [("y", -72)],
            }
        ),
        45,
    ),
)


def body_sheet(
    body: BodyModel,
    poses: Sequence[NamedPose],
    out: Path,
    *,
    betas: Sequence[float] = (),
    overwrite: bool | OutputRule = False,
) -> Path:
    """Draw `poses` of a 24-joint body on one labelled sheet, four a row, and write it as PNG. Returns `out`. UserError
    as `io.outputs`."""
    shape = torch.zeros(1, body.num_betas, dtype=body.v_template.dtype)
    shape[0, : len(betas)] = torch.tensor(list(betas))
    rotations = torch.stack([pose.rotations() for pose in poses]).to(body.v_template)
    with torch.no_grad():
        posed = body(BodyParams(rotations[:, :1], rotations[:, 1:], shape.expand(len(poses), -1))).vertices
    width, height = TILE
    rows = -(-len(poses) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), tuple(int(255 * c) for c in PAPER))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for index, pose in enumerate(poses):
        corner = index % COLUMNS * width, index // COLUMNS * height
        picture = clay_picture(posed[index].numpy().astype(np.float64), body.faces, pose.view_degrees, TILE)
        sheet.paste(Image.fromarray(picture), corner)
        draw.text((corner[0] + 12, corner[1] + 10), pose.label, fill=INK, font=font)
    with OutputRule.of(overwrite).file(out, KIND) as temporary:
        sheet.quantize(256, dither=Image.Dither.NONE).save(temporary, optimize=True)
    return out


def clay_picture(vertices: np.ndarray, faces: np.ndarray, view_degrees: float, size: tuple[int, int]) -> np.ndarray:
    """One body (V,3), y up, in the middle of a picture of `size` (width, height): (height,width,3) uint8."""
    width, height = (OVERSAMPLING * n for n in size)
    viewer = _towards_viewer(vertices, view_degrees)
    spread = np.ptp(viewer[:, :2], axis=0)
    focal = FOCAL_PER_WIDTH * width
    fit = (1 - 2 * MARGIN) * DISTANCE / focal * np.asarray([width, height]) / spread
    focal *= min(fit.min(), MOST_ZOOM)
    viewer -= (viewer.max(0) + viewer.min(0)) / 2
    camera = (viewer * [1, -1, -1] + [0, 0, DISTANCE]).astype(np.float32)
    face_index, _, bary = visibility(camera, faces, focal, (width / 2, height / 2), (height, width))
    normals = vertex_normals(viewer.astype(np.float32), faces)
    seen = face_index >= 0
    picture = np.broadcast_to(PAPER, (height, width, 3)).copy()
    corners = normals[faces[face_index[seen]]]
    first, second = bary[seen, 0, None], bary[seen, 1, None]
    normal = corners[:, 0] * first + corners[:, 1] * second + corners[:, 2] * (1 - first - second)
    picture[seen] = CLAY * _light(normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9))
    small = picture.reshape(size[1], OVERSAMPLING, size[0], OVERSAMPLING, 3).mean((1, 3))
    return (255 * np.clip(small, 0, 1)).round().astype(np.uint8)


def _towards_viewer(points: np.ndarray, view_degrees: float) -> np.ndarray:
    """Points as a viewer sees them who stands `view_degrees` to the subject's left, a little above: x right, y up."""
    yaw, tilt = np.radians(-view_degrees), np.radians(ELEVATION_DEGREES)
    around = np.asarray([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    down = np.asarray([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    return points @ (down @ around).T


def _light(normal: np.ndarray) -> np.ndarray:
    """Colour of the light that a white matt surface with these unit normals (N,3) sends back: (N,3)."""
    upward = (normal[:, 1:2] + 1) / 2
    light = FLOOR + (SKY - FLOOR) * upward
    for direction, colour in LIGHTS:
        towards = np.asarray(direction) / np.linalg.norm(direction)
        light = light + np.maximum(normal @ towards, 0)[:, None] * np.asarray(colour)
    return light


if __name__ == "__main__":
    body_sheet(starter_body(), EXTREME_POSES, Path(sys.argv[1]))
