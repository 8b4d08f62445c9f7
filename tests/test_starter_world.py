"""The clips of the starter world: fixed by their seeds, disjoint, honestly difficult."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hmrcompress.body.files import starter_body
from hmrcompress.data.crops import CropSet
from hmrcompress.errors import UserError
from hmrcompress.metrics.points import mpjpe, pa_mpjpe
from hmrcompress.motion import rotvec
from hmrcompress.records import BodyParams
from hmrcompress.starter.data import dataset
from hmrcompress.starter.data.dataset import definition_sha256, open_split
from hmrcompress.starter.network import validate
from hmrcompress.starter.scene.camera import rotation, smoothed
from hmrcompress.starter.scene.filming import hidden_share, render_clip, surface_of
from hmrcompress.starter.scene.world import BODY, LOOK, MOTION, SPLITS, VERSION, Split, draw_betas, make_clip, stream

GOLDEN = Path(__file__).parent / "data" / "starter_world.json"
EVALUATED = ("calib", "dev", "val")
HELD_BACK = ("confirm", "test")
"""The first clips of these are held too."""


@pytest.fixture(scope="module")
def body():
    return starter_body()


class Clips(dict):
    """All clips of splits by name, made when they are asked for."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def __missing__(self, name):
        self[name] = [make_clip(SPLITS[name], i, self.body) for i in range(SPLITS[name].clips)]
        return self[name]


@pytest.fixture(scope="module")
def clips(body):
    return Clips(body)


def first_clips(name, body):
    return [make_clip(SPLITS[name], i, body) for i in range(3)]


def joints_of(body, clip, frames):
    params = clip.params
    with torch.no_grad():
        joints = body.joints(
            BodyParams(params.global_orient[frames], params.body_pose[frames], params.betas[frames])
        ).numpy()
    return joints - joints[:, :1] + clip.placement.transl[frames][:, None]


@pytest.mark.parametrize("name", ["calib", "dev", pytest.param("val", marks=pytest.mark.slow), *HELD_BACK])
def test_the_splits_are_what_they_were(body, clips, name):
    """Quantised parameters by hash, joints by value. A change of either calls for a new `world.VERSION`.

    The goldens were written by `python tests/test_starter_world.py`.
    """
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == VERSION
    made = clips[name] if name in EVALUATED else first_clips(name, body)
    assert definition_sha256(made, body) == golden[name]["sha256"]
    for index, frames in golden[name]["joints"].items():
        for frame, expected in frames.items():
            joints = joints_of(body, made[int(index)], slice(int(frame), int(frame) + 1))[0]
            assert np.abs(joints - np.array(expected)).max() < 1e-5


def test_splits_share_no_seed_and_no_body():
    seeds, shapes, looks = [], [], []
    for split in SPLITS.values():
        if split.name == "test-whole":  # the first clips of test, with all of their frames
            continue
        for clip in range(min(split.clips, 24)):
            seeds.append(int(stream(split, clip, MOTION).integers(1 << 62)))
            shapes.append(tuple(draw_betas(stream(split, clip, BODY))))
            looks.append(int(stream(split, clip, LOOK).integers(1 << 62)))
    for drawn in (seeds, shapes, looks):
        assert len(set(drawn)) == len(drawn)


@pytest.mark.slow
def test_headings_are_uniform(body):
    """The body's facing direction in the camera frame, over training clips: flat to a chi-squared test."""
    headings = []
    for index in range(48):
        clip = make_clip(SPLITS["train"], index, body, frames=1)
        facing = rotvec.to_matrix(clip.poses[:, 0])[0] @ [0.0, 0.0, 1.0]
        headings.append(np.arctan2(facing[0], facing[2]))
    counts, _ = np.histogram(headings, bins=8, range=(-np.pi, np.pi))
    assert ((counts - 6.0) ** 2 / 6.0).sum() < 24.3  # 0.1 % point of chi-squared with 7 degrees of freedom


@pytest.mark.slow
def test_the_mean_pose_is_far_off(body, clips, monkeypatch):
    monkeypatch.setattr(validate, "MEAN_CLIPS", 16)  # a mean of fewer clips is as good a guess, and not kept
    sixd = validate.mean_state.__wrapped__()["smpl_head.init_body_pose"].view(1, 24, 2, 3)
    rotations = torch.stack([sixd[..., 0, :], sixd[..., 1, :], torch.cross(sixd[..., 0, :], sixd[..., 1, :], -1)], -1)
    guess = body.joints(BodyParams(rotations[:, :1], rotations[:, 1:], torch.zeros(1, 10)))
    frames = slice(0, None, 9)
    truth = torch.from_numpy(np.concatenate([joints_of(body, clip, frames) for clip in clips["val"]])).float()
    guess = guess.expand(len(truth), -1, -1)
    assert mpjpe(guess, truth).mean() > 220 and pa_mpjpe(guess, truth).mean() > 110


@pytest.mark.slow
def test_a_good_part_is_occluded_or_truncated(body, clips):
    surface = surface_of(body)
    hidden = []
    for clip in clips["val"]:
        first = islice(render_clip(clip, body, surface), 0, 10, 9)
        hidden += [share for _, share in first]
    assert (np.array(hidden) > 0.05).mean() >= 0.3


def test_hidden_share_counts_the_edge_and_the_occluder(body, clips):
    clip, surface = clips["dev"][0], surface_of(body)
    crop, share = next(render_clip(clip, body, surface))
    assert 0 <= share < 1
    from hmrcompress.starter.scene.scene import Crop, View

    half = Crop(crop.image, crop.silhouette & (np.arange(192) < -1), crop.silhouette)
    view = View(1.0, (96.0, 128.0), (256, 192))
    points = np.zeros((10, 3), np.float32) + [0, 0, 1]
    assert hidden_share(half, points.astype(np.float32), view) == pytest.approx(1.0)
    points[:4, 0] = 500.0
    whole = Crop(crop.image, crop.silhouette, crop.silhouette)
    assert hidden_share(whole, points.astype(np.float32), view) == pytest.approx(0.4)


def test_the_joints_project_into_the_crop_of_untruncated_clips(body, clips):
    inside = []
    for clip in clips["calib"]:
        joints = joints_of(body, clip, slice(0, None, 27))
        place = clip.placement
        pixels = place.focal[::27, None, None] * joints[..., :2] / joints[..., 2:] + place.centre[::27, None]
        inside.append(((pixels >= 0) & (pixels < [192, 256])).all(-1).mean())
    assert np.median(inside) == 1.0 and min(inside) > 0.3


def test_clips_move_smoothly_in_the_camera(body, clips):
    for clip in clips["calib"]:
        steps = np.linalg.norm(np.diff(clip.placement.transl, axis=0), axis=1)
        assert steps.max() < 0.35  # metres a frame: 10 m/s
        assert np.abs(np.diff(np.log(clip.placement.focal))).max() < 0.25


def test_rotations_about_axes_equal_scipy():
    from scipy.spatial.transform import Rotation

    angles = np.linspace(-4, 4, 9)
    for axis in "xyz":
        assert np.abs(rotation(axis, angles) - Rotation.from_euler(axis, angles[:, None]).as_matrix()).max() < 1e-12


def test_smoothing_is_a_centred_mean():
    values = np.random.default_rng(0).normal(size=(20, 2))
    for t in range(20):
        expected = values[max(0, t - 3) : t + 4].mean(0)
        assert np.abs(smoothed(values, 7)[t] - expected).max() < 1e-12


def test_a_rendered_split_is_cached_whole(body, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "make_clip", lambda split, index, body: make_clip(split, index, body, 4))
    crops = open_split("val", body, home=tmp_path, clips=2)
    assert isinstance(crops, CropSet) and len(crops) == 8 and crops.split == "val"
    assert crops.sha256 == definition_sha256([make_clip(SPLITS["val"], i, body, 4) for i in range(2)], body)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")}
    (leftover := Path(crops.where).with_name(".a-hmrcompress-0123456789ab.part")).mkdir()  # of a run that was killed
    again = open_split("val", body, home=tmp_path, clips=2)
    assert not leftover.exists()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")} == files
    assert (again.arrays["images"][:] == crops.arrays["images"][:]).all()
    batch = next(crops.batches(None, 8, None))
    posed = body.joints(batch.params).numpy()
    expected = np.concatenate([joints_of(body, make_clip(SPLITS["val"], i, body, 4), slice(None)) for i in range(2)])
    assert np.abs(posed - posed[:, :1] - (expected - expected[:, :1])).max() < 1e-5


def test_two_that_ask_for_a_split_render_it_once(body, tmp_path, monkeypatch):
    asked, made = threading.Barrier(2), []

    def clip(split, index, body):
        made.append(index)
        return make_clip(split, index, body, 4)

    def ask(_):
        asked.wait()
        return open_split("val", body, home=tmp_path, clips=2)

    monkeypatch.setattr(dataset, "make_clip", clip)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, range(2))
    assert sorted(made) == [0, 1] and (first.arrays["images"][:] == second.arrays["images"][:]).all()
    (folder,) = (tmp_path / "starter").iterdir()
    assert [each.name for each in folder.iterdir()] == [Path(first.where).name], "no file of a lock is left"


def test_only_the_frames_that_are_scored_are_rendered(body, tmp_path, monkeypatch):
    split = Split("val", 3, 2, frames=9, scored=3)
    monkeypatch.setattr(dataset, "split_named", lambda name: split)
    crops = open_split("val", body, home=tmp_path)
    assert crops.frame.tolist() == [0, 4, 8, 0, 4, 8] and crops.clip.tolist() == [0, 0, 0, 1, 1, 1]
    made = make_clip(split, 1, body)
    every = np.stack([crop.image for crop, _ in render_clip(made, body, surface_of(body))]).astype(int)
    # Meshes posed in other batches differ by float32's rounding: a few pixels of an edge, by a level.
    for i, t in enumerate((0, 4, 8)):
        apart = np.abs(every - crops.arrays["images"][3 + i]).mean(axis=(1, 2, 3))
        assert apart.argmin() == t and apart[t] < 0.05
    assert np.abs(crops.arrays["poses"][3:] - made.poses[[0, 4, 8]]).max() == 0
    assert np.abs(crops.arrays["transl"][3:] - made.placement.transl[[0, 4, 8]]).max() < 1e-6
    whole = definition_sha256([make_clip(split, i, body) for i in range(2)], body)
    assert crops.sha256 == definition_sha256([make_clip(split, i, body) for i in range(2)], body, split.places) != whole


def test_the_last_word_is_not_looked_at_by_accident(body, tmp_path, monkeypatch):
    monkeypatch.delenv("HMRCOMPRESS_OPEN_TEST", raising=False)
    for name in ("test", "test-whole"):
        with pytest.raises(UserError, match="scored once for each released network"):
            open_split(name, body, home=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_splits_and_clips_are_refused(body):
    with pytest.raises(UserError, match="no split 'testing'"):
        open_split("testing", body)
    with pytest.raises(UserError, match="has 2 clips"):
        make_clip(Split("short", 9, 2), 2, body)


def write_golden() -> None:
    """Store hashes and a few joints of every evaluated split."""
    body = starter_body()
    golden: dict = {"version": VERSION}
    for name in (*EVALUATED, *HELD_BACK):
        whole = name in EVALUATED
        made = (
            [make_clip(SPLITS[name], i, body) for i in range(SPLITS[name].clips)] if whole else first_clips(name, body)
        )
        last = 200 if SPLITS[name].frames > 200 else SPLITS[name].frames - 1
        joints = {
            str(i): {str(t): joints_of(body, made[i], slice(t, t + 1))[0].round(7).tolist() for t in (0, last)}
            for i in (0, len(made) - 1)
        }
        golden[name] = {"sha256": definition_sha256(made, body), "joints": joints}
    GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    write_golden()
