"""Data sets, motion capture and bodies as they are downloaded, with what lies in their folders beside."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoder
import torch
from cases.tables import motion
from PIL import Image
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress.api import evaluate
from hmrcompress.body.files import kind_of_body
from hmrcompress.data.annotations import lies
from hmrcompress.data.crops import CropSet
from hmrcompress.data.formats import open_format
from hmrcompress.decoder.config import PRESETS
from hmrcompress.errors import UserError, hearing
from hmrcompress.motion.amass import amass_files, load_amass_segments
from hmrcompress.training import background, motions
from hmrcompress.training.background import Background
from hmrcompress_cli.main import app

# Data sets


def bedlam(folder: Path, name: str) -> CropSet:
    (file,) = (folder / name).glob("*.npz")
    return open_format(f"camerahmr:{file}")


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
def test_pictures_that_lie_on_their_side_are_turned(cases: Callable[[str], Path]) -> None:
    """B21: the crop was one of the lying picture."""
    upright, lying = (bedlam(cases("bedlam"), name) for name in ("upright", "closeup"))
    with hearing() as heard:
        one, other = (next(crops.batches(batch_size=1)) for crops in (upright, lying))
    assert torch.equal(one.images, other.images) and torch.equal(one.condition, other.condition)
    assert one.condition is not None and sum("lies on its side and is turned" in line for line in heard) == 1


@pytest.mark.parametrize(
    ("principal", "size", "expected"),
    [
        ((180, 320), (640, 360), True),
        ((180, 320), (360, 640), False),
        ((182.5, 318.0), (640, 360), True),
        ((320, 180), (640, 360), False),
        ((250, 250), (500, 500), False),
        ((300, 200), (640, 360), False),
        ((0, 0), (640, 360), False),
    ],
)
def test_a_principal_point_tells_how_a_picture_lies(
    principal: tuple[float, float], size: tuple[int, int], expected: bool
) -> None:
    assert lies(np.array(principal), size) is expected


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
def test_poses_of_other_bodies_are_told_and_of_no_body_refused(cases: Callable[[str], Path], tmp_path: Path) -> None:
    (file,) = (cases("bedlam") / "upright").glob("*.npz")
    with np.load(file) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    Image.new("RGB", (360, 640)).save(tmp_path / "a.png")
    content["imgname"] = np.array(["a.png"])
    rng = np.random.default_rng(0)
    for width, told in ((66, False), (72, False), (156, True), (165, True)):
        content["pose_cam"] = rng.normal(size=(1, width))
        np.savez(tmp_path / "a.npz", **content)
        with hearing() as heard:
            (batch,) = open_format(f"camerahmr:{tmp_path / 'a.npz'}").batches()
        expected = Rotation.from_rotvec(content["pose_cam"][0, :66].reshape(22, 3)).as_matrix()
        assert np.abs(batch.params.rotations[0, :22].numpy() - expected).max() < 1e-5
        assert any("of which SMPL's joints are read" in line for line in heard) is told
    content["pose_cam"] = rng.normal(size=(1, 75))
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(UserError, match="got 75 numbers a person, expected 66 or 72"):
        open_format(f"camerahmr:{tmp_path / 'a.npz'}")


# Motion capture


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smplh", "left out 1 of 2 files: 1 without a motion (shape.npz)"),
        ("smplx", "left out 1 of 2 files: 1 without a motion (male_stagei.npz)"),
        ("short", "left out 1 of 2 files: 1 shorter than 3 s (blink_poses.npz)"),
        ("apple_double", "left out 1 of 2 files: 1 left behind by macOS (._walk_poses.npz)"),
        ("smpl72", None),
    ],
)
def test_folders_are_read_as_they_unpack(cases: Callable[[str], Path], name: str, told: str | None) -> None:
    """E6, E7: a worker ended with a traceback."""
    found = amass_files(cases("amass") / name, 3.0)
    assert [file.stem.split("_")[0] for file in found.files] == ["walk"]
    with hearing() as heard:
        found.tell()
    assert [line.partition(": ")[2] for line in heard] == ([] if told is None else [told])
    clip = max(load_amass_segments(found.files[0]), key=len)
    # The wave of the arms is that of joint 16 around z, in every layout; 900 frames of 120 a second.
    assert len(clip) == 225 and np.abs(clip.poses[:, 16, 2] - np.sin(4 * np.arange(225) / 40)).max() < 2e-3


BAD: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "torn": (b"PK\x03\x04", "perhaps truncated"),
    "rate": (motion(mocap_framerate=0.0), "expected 1 to 10,000 frames a second"),
    "endless": (motion(mocap_framerate=1e-9), "expected 1 to 10,000 frames a second"),
    "complex": (motion(mocap_framerate=120 + 0j), "expected 1 to 10,000 frames a second"),
    "no rate": (motion(), "no frame rate"),
    "whole numbers": (motion(mocap_framerate=120.0) | {"poses": np.zeros((900, 156), int)}, "floating point"),
    "width": (motion(width=63, mocap_framerate=120.0), r"\(900, 63\), expected"),
    "no trans": ({k: v for k, v in motion(mocap_framerate=120.0).items() if k != "trans"}, "no array 'trans'"),
    "trans": (motion(mocap_framerate=120.0) | {"trans": np.zeros((3, 3))}, "trans has 3 frames, poses 900"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_motions_are_told_before_any_work(cases: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    content, fault = BAD[name]
    good = cases("amass") / "smplh" / "ACCAD" / "s001" / "walk_poses.npz"
    (tmp_path / "walk_poses.npz").write_bytes(good.read_bytes())
    if isinstance(content, bytes):
        (tmp_path / "z.npz").write_bytes(content)
    else:
        np.savez(tmp_path / "z.npz", **content)
    with pytest.raises(UserError, match=fault) as caught:
        amass_files(tmp_path)
    assert "z.npz" in caught.value.where


@pytest.mark.parametrize(
    ("poses", "trans", "fault"),
    [
        (45.0, 0.0, "expected radians. Are they degrees"),
        (1e30, 0.0, "expected radians"),
        (0.1, 900.0, "expected metres, at most 300. Are they millimetres"),
        (0.1, 1e300, "expected metres"),
    ],
)
def test_other_units_are_refused(tmp_path: Path, poses: float, trans: float, fault: str) -> None:
    """Nothing infinite comes of them either."""
    content = motion(mocap_framerate=120.0)
    np.savez(tmp_path / "a.npz", **(content | {"poses": content["poses"] + poses, "trans": content["trans"] + trans}))
    with pytest.raises(UserError, match=fault):
        load_amass_segments(tmp_path / "a.npz")


def test_folders_without_motions_say_what_is_there(tmp_path: Path) -> None:
    for folder, fault in ((tmp_path, "no .npz file"), (tmp_path / "nowhere", "no .npz file")):
        with pytest.raises(UserError, match=fault):
            amass_files(folder)
    (tmp_path / "ACCAD.npz").mkdir()
    (tmp_path / "ACCAD.tar.bz2").touch()
    with pytest.raises(UserError, match=r"Unpack ACCAD\.tar\.bz2 there"):
        amass_files(tmp_path)


@pytest.mark.parametrize("torn", [False, True])
def test_the_command_reads_folders_before_anything_starts(
    torn: bool, cases: Callable[[str], Path], tmp_path: Path, tiny_model: Path, tiny_body_file: Path,
    tiny_crops_file: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """E6 from the command line, with what a worker does done in this process."""
    started: list[Any] = []

    def start(self: Background, function: Callable[..., None], *arguments: Any) -> None:
        started.append(function)
        if len(started) == 1:
            home, seed, settings, files, _, generate = arguments
            function(home, seed, settings, files, [0], generate)

    folder = tmp_path / "amass"
    for name in ("smplh", "short", "apple_double"):
        shutil.copytree(cases("amass") / name, folder / name)
    if torn:
        (folder / "a_poses.npz").write_bytes(b"PK")
    monkeypatch.setattr(Background, "start", start)
    monkeypatch.setattr(motions, "MOTIONS_A_SHARD", 2)
    monkeypatch.setitem(PRESETS, "starter", tiny_decoder.CONFIG)
    monkeypatch.setenv("HMRCOMPRESS_HOME", str(tmp_path / "home"))
    data = f"crops:{tiny_crops_file}"
    command = [
        "finetune",
        tiny_model,
        "--stage",
        "vae",
        "--motions",
        f"amass:{folder}",
        "--set",
        "finetune.steps=1",
        "--device",
        "cpu",
    ]
    command += ["--data", data, "--val", data, "--body", tiny_body_file, "--batch-size", 2, "--device", "cpu", "-o"]
    done = CliRunner().invoke(app, [str(word) for word in [*command, tmp_path / "o"]])
    said = " ".join(done.output.split())
    if torn:
        assert done.exit_code == 2 and "a_poses.npz" in said and not started, said
    else:
        assert done.exit_code == 0 and started, said
        assert "left out 3 of 6 files: 1 left behind by macOS" in said and "1 without a motion (shape.npz)" in said, (
            said
        )


# Processes in the background


class Process:
    """One that is over, as `multiprocessing` shows it."""

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode

    def is_alive(self) -> bool:
        return False


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    monkeypatch.setattr(background, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(background, "become_helper", lambda: None)
    yield Background("shards")


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("is torn", "walk.npz", "Get it again"), "walk.npz: is torn. Get it again"),
        (ValueError("not\nforeseen"), "the process that makes shards: ValueError (not)"),
    ],
)
def test_what_a_process_says_is_told(pool: Background, tmp_path: Path, error: Exception, sentence: str) -> None:
    background._run(pool._said, fail, (error,))
    with pytest.raises(UserError) as caught:
        pool.wait(tmp_path / "never")
    assert str(caught.value).startswith(sentence) and "in fail" in str(getattr(caught.value, "__notes__", ""))


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        ([-9], "was killed by signal 9"),
        ([0, 3], "ended with status 3"),
        ([0], "no process makes shards"),
        ([], "no process makes shards"),
    ],
)
def test_processes_that_say_nothing(pool: Background, tmp_path: Path, codes: list[int], sentence: str) -> None:
    pool._processes = [Process(code) for code in codes]
    with pytest.raises(UserError, match=sentence):
        pool.wait(tmp_path / "never")
    (tmp_path / "there").touch()
    pool.wait(tmp_path / "there")


@pytest.mark.slow
def test_a_real_process(tmp_path: Path) -> None:
    pool = Background("shards")
    pool.start(Path.touch, tmp_path / "there")
    pool.wait(tmp_path / "there")
    pool.start(time.sleep, -1)
    with pytest.raises(UserError, match=r"the process that makes shards: ValueError \(sleep length must be"):
        pool.wait(tmp_path / "never")
    pool.close()


# Bodies


@pytest.mark.parametrize("suffix", ["npz", "pkl"])
def test_other_bodies_are_named(
    suffix: str, cases: Callable[[str], Path], tmp_path: Path, tiny_model: Path, tiny_crops_file: Path
) -> None:
    """F2: shapes of arrays were told after everything was computed, and convert accepted it."""
    body = cases("bodies") / f"SMPLH.{suffix}"
    Image.new("RGB", (192, 256)).save(tmp_path / "a.png")
    data = ["--data", f"crops:{tiny_crops_file}", "--masks", "none"]
    commands = [
        ["convert", body, "-o", tmp_path / "o.npz"],
        ["predict", tiny_model, tmp_path / "a.png", "-o", tmp_path / "o", "--body", body],
        ["eval", tiny_model, *data, "--body", body],
        ["search", tiny_model, *data, "--body", body, "-o", tmp_path / "o.yaml"],
    ]
    for command in commands:
        done = CliRunner().invoke(app, [str(word) for word in command])
        said = " ".join(done.output.split())
        assert done.exit_code == 2 and f"SMPLH.{suffix}" in said, said
        assert "an SMPL-H body (52 joints)" in said and "SMPL_NEUTRAL.npz" in said, said
    assert not list(tmp_path.glob("o*"))


def test_kinds_of_bodies() -> None:
    assert [kind_of_body(joints) for joints in (24, 16, 5, 7)] == [
        "an SMPL body (24 joints)", "a MANO body (16 joints)", "a FLAME body (5 joints)", "a body of 7 joints",
    ]  # fmt: skip


def test_functions_that_need_a_body_look_at_its_kind(
    cases: Callable[[str], Path], tiny_model: Path, tiny_crops_file: Path, tmp_path: Path
) -> None:
    body, data = cases("bodies") / "SMPLH.npz", f"crops:{tiny_crops_file}"
    calls: list[Callable[[], object]] = [
        lambda: evaluate.layer_similarity(tiny_model, data, body=body),
        lambda: hc.extract_features(tiny_model, data, body=body, home=tmp_path),
        lambda: hc.fit_decoder(tiny_model, tmp_path / "o", data, body=body, home=tmp_path),
    ]
    for call in calls:
        with pytest.raises(UserError, match="is an SMPL-H body"):
            call()
