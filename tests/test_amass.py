"""AMASS files made here: axes, frame rates, gaps, and everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skeletons import positions

from hmrcompress.body.joints import joint
from hmrcompress.errors import UserError
from hmrcompress.motion.amass import load_amass_segments
from hmrcompress.motion.clip import Motion

RATE = 60.0


def longest(path: Path, fps: float = 30.0) -> Motion:
    return max(load_amass_segments(path, fps), key=len)


def content(frames: int = 121, width: int = 156) -> dict[str, Any]:
    """Somebody standing (z up) who turns left, walks along world y and raises the left thigh."""
    t = np.arange(frames) / RATE
    poses = np.zeros((frames, width))
    stand = Rotation.from_euler("x", 90, degrees=True)  # y-up rest pose to z up; he faces -y then
    poses[:, :3] = (Rotation.from_euler("z", 0.5 * t[:, None]) * stand).as_rotvec()
    poses[:, 3] = -0.8 * np.sin(t)  # left hip
    poses[:, 66:] = 0.3  # fingers, face: not used
    trans = np.stack([0.1 + 0 * t, -0.5 * t, 0.9 + 0.05 * np.sin(3 * t)], axis=-1)
    return {"poses": poses, "trans": trans, "mocap_framerate": np.float64(RATE), "gender": np.array("neutral")}


def write(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def test_z_up_becomes_y_up(tmp_path: Path) -> None:
    arrays = content()
    clip = longest(write(tmp_path / "a.npz", arrays), fps=RATE)
    body = arrays["poses"][:, :72].reshape(-1, 24, 3).copy()
    body[:, 22:] = 0
    source = positions(body, arrays["trans"])
    result = positions(clip.poses, clip.trans)
    np.testing.assert_allclose(result, source[..., [0, 2, 1]] * (1, 1, -1), atol=1e-5)
    head, feet = result[:, joint("head"), 1], result[:, [joint("left_foot"), joint("right_foot")], 1]
    assert (head > 1.2).all() and (feet.min(axis=1) < 0.15).all()  # gravity points along -y
    facing = Rotation.from_rotvec(clip.poses[0, 0]).apply([0, 0, 1])
    np.testing.assert_allclose(facing, [0, 0, 1], atol=1e-6)  # world -y is now +z
    assert clip.trans[-1, 2] > 0.9 and clip.kind == "a"


@pytest.mark.parametrize(
    ("width", "key"), [(72, "mocap_framerate"), (156, "mocap_framerate"), (165, "mocap_frame_rate")]
)
def test_all_layouts_are_resampled_to_30(tmp_path: Path, width: int, key: str) -> None:
    arrays = content(121, width)
    arrays[key] = arrays.pop("mocap_framerate")
    clip = longest(write(tmp_path / "a.npz", arrays))
    assert len(clip) == 61 and clip.fps == 30.0
    np.testing.assert_allclose(clip.poses[:, 1], arrays["poses"][::2, 3:6], atol=1e-6)
    np.testing.assert_allclose(clip.trans[:, 0], arrays["trans"][::2, 0], atol=1e-6)
    np.testing.assert_array_equal(clip.poses[:, 22:], 0)


def test_frames_in_between_lie_on_the_arc(tmp_path: Path) -> None:
    """100 to 30 frames a second needs interpolation: a steady turn stays steady."""
    frames = 101
    arrays = content(frames)
    angle = np.linspace(0, 2.5, frames)
    stand = Rotation.from_euler("x", 90, degrees=True)
    arrays["poses"][:, :3] = (Rotation.from_euler("z", angle[:, None]) * stand).as_rotvec()
    arrays["mocap_framerate"] = 100.0
    clip = longest(write(tmp_path / "a.npz", arrays))
    facing = Rotation.from_rotvec(clip.poses[:, 0]).apply([0, 0, 1])
    np.testing.assert_allclose(np.arctan2(facing[:, 0], facing[:, 2]), 2.5 * np.arange(31) / 30, atol=1e-5)


def test_invalid_frames_are_cut_out_and_short_ends_left_out(tmp_path: Path) -> None:
    arrays = content(200)
    arrays["valid"] = np.ones(200, dtype=bool)
    arrays["valid"][[80, 81, 82, 190]] = False
    arrays["poses"][80:83] = np.nan  # what is invalid may hold anything
    clips = load_amass_segments(write(tmp_path / "a.npz", arrays))
    assert [len(clip) for clip in clips] == [40, 54]  # 0..79 and 83..189; 191..199 are too short
    np.testing.assert_allclose(clips[1].trans[0, 1], arrays["trans"][83, 2], atol=1e-6)
    assert len(longest(tmp_path / "a.npz")) == 54


def test_half_precision_poses_are_read(tmp_path: Path) -> None:
    arrays = content()
    arrays["poses"] = arrays["poses"].astype(np.float16)
    assert longest(write(tmp_path / "a.npz", arrays)).poses.dtype == np.float32


def drop(key: str) -> Any:
    return lambda a: a.pop(key)


FAULTS: dict[str, tuple[Any, str]] = {
    "no poses": (drop("poses"), "no array 'poses'"),
    "no trans": (drop("trans"), "no array 'trans'"),
    "no rate": (drop("mocap_framerate"), "no frame rate"),
    "width": (lambda a: a.update(poses=a["poses"][:, :75]), r"\(121, 75\), expected \(T,72\) for SMPL or \(T,156\)"),
    "rank": (lambda a: a.update(poses=a["poses"][0]), r"\(156,\), expected"),
    "empty": (lambda a: a.update(poses=a["poses"][:0], trans=a["trans"][:0]), r"\(0, 156\)"),
    "trans shape": (lambda a: a.update(trans=a["trans"][:, :2]), r"trans has shape \(121, 2\)"),
    "lengths": (lambda a: a.update(trans=a["trans"][:-1]), "trans has 120 frames, poses 121"),
    "dtype": (lambda a: a.update(poses=a["poses"].astype(int)), "poses is int64"),
    "rate": (lambda a: a.update(mocap_framerate=0.0), "mocap_framerate is 0.0"),
    "rate text": (lambda a: a.update(mocap_framerate=np.array("fast")), "mocap_framerate is fast"),
    "valid": (lambda a: a.update(valid=np.ones(7, dtype=bool)), r"valid is bool \(7,\)"),
    "nothing valid": (lambda a: a.update(valid=np.zeros(121, dtype=bool)), "no stretch of valid frames"),
    "pickle": (
        lambda a: a.update(poses=np.array([{"a": 1}], dtype=object)),
        "pickled objects, which are never executed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_in_one_sentence(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    arrays = content()
    spoil(arrays)
    path = write(tmp_path / "a.npz", arrays)
    with pytest.raises(UserError, match=message) as raised:
        load_amass_segments(path)
    assert raised.value.where.startswith(str(path)) and raised.value.remedy


@pytest.mark.parametrize(("key", "frame"), [("poses", 17), ("trans", 40)])
def test_nan_names_the_frame(tmp_path: Path, key: str, frame: int) -> None:
    arrays = content()
    arrays[key][frame, 1] = np.nan
    with pytest.raises(UserError, match=f"{key}: NaN or infinity in frame {frame}"):
        load_amass_segments(write(tmp_path / "a.npz", arrays))


def test_torn_foreign_and_missing_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.npz", content()).read_bytes()
    for share in (0.0, 0.4, 0.99):
        torn = tmp_path / "torn.npz"
        torn.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="not a readable npz"):
            load_amass_segments(torn)
    scratched = bytearray(whole)
    scratched[len(whole) // 3] ^= 0xFF
    (tmp_path / "torn.npz").write_bytes(bytes(scratched))
    with pytest.raises(UserError, match="not a readable npz"):
        load_amass_segments(tmp_path / "torn.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(UserError, match="one array"):
        load_amass_segments(tmp_path / "b.npy")
    with pytest.raises(UserError, match="no such file"):
        load_amass_segments(tmp_path / "c.npz")
