"""The sheet of extreme poses: what it shows, and that the one in the documentation is the current one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hmrcompress.body.files import starter_body
from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.report.sheets import EXTREME_POSES, NamedPose, body_sheet, both, clay_picture

DOCUMENTED = Path(__file__).parents[1] / "docs" / "body_poses.png"
PALE = 225


def painted(picture: np.ndarray) -> np.ndarray:
    return (picture < PALE).any(-1)


def cube() -> tuple[np.ndarray, np.ndarray]:
    """A box of 1 x 2 x 3 m in x, y, z, faces outwards."""
    corners = np.asarray([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 3)], float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners, np.asarray([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))], np.int32)


def test_twelve_poses_named_once() -> None:
    assert len(EXTREME_POSES) == len({pose.label for pose in EXTREME_POSES}) == 12
    for pose in EXTREME_POSES:
        rotations = pose.rotations()
        torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand(24, 3, 3))
    assert torch.equal(EXTREME_POSES[0].rotations(), torch.eye(3).double().expand(24, 3, 3))


def test_turns_are_composed_outermost_first_and_mirrored() -> None:
    pose = NamedPose("", both({"left_hip": [("z", 90), ("x", 90)]}))
    down = torch.tensor([0.0, -1.0, 0.0]).double()
    left, right = (pose.rotations()[SMPL_JOINTS.index(name)] for name in ("left_hip", "right_hip"))
    torch.testing.assert_close(left @ down, torch.tensor([0.0, 0.0, -1.0]).double())
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]).double())
    torch.testing.assert_close(right, mirror @ left @ mirror)


@pytest.mark.parametrize(("view", "width"), [(0.0, 1.0), (90.0, 3.0), (180.0, 1.0), (-90.0, 3.0)])
def test_the_view_turns_about_the_body(view: float, width: float) -> None:
    seen = painted(clay_picture(*cube(), view, (200, 200)))
    rows, columns = np.nonzero(seen)
    assert 0 < rows.min() and rows.max() < 199 and 0 < columns.min() and columns.max() < 199
    across, up = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert up / across == pytest.approx(2 / width, rel=0.45), "tilt and perspective aside"


def test_the_subjects_left_is_on_the_right_of_a_front_view() -> None:
    body = starter_body(torch.float64)
    vertices = body.v_template.numpy().copy()
    arm = vertices[:, 0] > 0.3
    vertices[arm, 0] = 0.3
    columns = np.nonzero(painted(clay_picture(vertices, body.faces, 0.0, (200, 200))))[1]
    head = vertices[:, 1].argmax()
    assert vertices[head, 0] == pytest.approx(0, abs=0.01)
    picture = painted(clay_picture(vertices, body.faces, 0.0, (200, 200)))
    crown = np.nonzero(picture[np.nonzero(picture.any(1))[0][0]])[0].mean()
    assert columns.max() - crown < 0.5 * (crown - columns.min())


def test_the_documented_sheet_is_current(tmp_path: Path) -> None:
    made = body_sheet(starter_body(), EXTREME_POSES, tmp_path / "sheet.png")
    assert made.stat().st_size < 400_000
    new, old = (np.asarray(Image.open(path).convert("RGB"), np.int16) for path in (made, DOCUMENTED))
    assert new.shape == old.shape == (990, 1200, 3)
    assert np.abs(new - old).mean() < 0.5
    for row in range(3):
        for column in range(4):
            tile = painted(new[row * 330 : (row + 1) * 330, column * 300 : (column + 1) * 300])
            assert 0.02 < tile[40:].mean() < 0.5
