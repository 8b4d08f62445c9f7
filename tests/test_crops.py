"""Sets of crops: what is written is read, sampling, batches, and every fault in one sentence."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy.spatial.transform import Rotation

from hmrcompress import runtime
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, evenly, write_crops
from hmrcompress.data.on_demand import OnDemand
from hmrcompress.errors import UserError


def crop_set(**changes: Any) -> CropSet:
    return CropSet(tiny.crop_arrays() | changes, tiny.crop_meta())


def long_set(lengths: dict[int, int]) -> CropSet:
    """Clips of these lengths over one and the same tiny image, in a mixed order, frames starting at 10."""
    clip, frame = np.array([(c, 10 + f) for c, length in lengths.items() for f in range(length)]).T
    mixed = np.random.default_rng(0).permutation(len(clip))
    arrays = {name: np.repeat(values[:1], len(clip), axis=0) for name, values in tiny.crop_arrays(1, 1).items()}
    return CropSet(arrays | {"clip": clip[mixed], "frame": frame[mixed]}, tiny.crop_meta())


@pytest.mark.parametrize("name", ["set", "set.npz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    arrays = tiny.crop_arrays() | {"occluded": np.linspace(0, 1, 12, dtype=np.float32)}
    write_crops(tmp_path / name, arrays, tiny.crop_meta() | {"body": {"name": "tiny"}})
    crops = CropSet.open(tmp_path / name)
    assert (len(crops), crops.name, crops.split, crops.fps, crops.clip_ids) == (12, "tiny", "test", 30.0, [0, 1])
    assert crops.body == {"name": "tiny"} and sorted(crops.arrays) == sorted(arrays)
    for key, values in arrays.items():
        np.testing.assert_array_equal(crops.arrays[key], values)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing temporary is left


def test_pictures_of_a_folder_are_read_by_rows(tmp_path: Path) -> None:
    """In any order, twice, and from the file that was opened, whatever lies there later."""
    arrays = tiny.crop_arrays()
    write_crops(tmp_path / "set", arrays, tiny.crop_meta())
    crops = CropSet.open(tmp_path / "set")
    for name in ("images", "masks"):
        found, wanted = crops.arrays[name], arrays[name]
        assert isinstance(found, OnDemand) and (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        for rows in ([3, 4, 5, 0, 0, 11, 2], [], [7], np.arange(12) % 3 == 0):
            np.testing.assert_array_equal(found[np.asarray(rows, bool if len(rows) == 12 else int)], wanted[rows])
        np.testing.assert_array_equal(found[2:9], wanted[2:9])
        np.testing.assert_array_equal(found[-1], wanted[-1])
    assert isinstance(crops.arrays["poses"], np.memmap)
    file = tmp_path / "set" / "images.npy"
    file.rename(tmp_path / "elsewhere.npy")
    np.save(file, arrays["images"] ^ 255)
    np.testing.assert_array_equal(crops.arrays["images"][[1]], arrays["images"][[1]])
    with open(tmp_path / "elsewhere.npy", "r+b") as whole:
        whole.truncate(file.stat().st_size - 1)
    with pytest.raises(OSError, match="shorter"):
        crops.arrays["images"][[11]]


def test_memory_is_given_back_every_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the allocator is glibc's, which would keep it."""
    told: list[int] = []
    monkeypatch.setattr("hmrcompress.data.crops.give_back_memory", lambda: told.append(1))
    for _ in crop_set().batches(np.zeros(17, int), 1):
        pass
    assert len(told) == 2
    runtime.give_back_memory()
    assert (runtime._trim() is not None) == (platform.libc_ver()[0] == "glibc")


def test_the_hash_is_that_of_the_definition_or_of_the_contents(tmp_path: Path) -> None:
    for name, meta in (("own", tiny.crop_meta()), ("given", tiny.crop_meta() | {"sha256": "abc"})):
        write_crops(tmp_path / name, tiny.crop_arrays(), meta)
        write_crops(tmp_path / f"{name}.npz", tiny.crop_arrays(), meta)
        assert CropSet.open(tmp_path / name).sha256 == CropSet.open(tmp_path / f"{name}.npz").sha256
    assert CropSet.open(tmp_path / "given").sha256 == "abc"
    changed = tiny.crop_arrays()
    changed["images"][3, 5, 5, 1] ^= 1
    assert CropSet(changed, tiny.crop_meta()).sha256 != crop_set().sha256 == CropSet.open(tmp_path / "own").sha256


def test_a_batch_holds_what_its_record_says() -> None:
    crops = crop_set()
    first, second = crops.batches([3, 8, 1], batch_size=2)
    arrays = tiny.crop_arrays()
    assert first.images.shape == (2, 3, 256, 192) and first.images.dtype == torch.float32
    pixel = arrays["images"][8, 100, 50] / 255
    expected = (pixel - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(first.images[1, :, 100, 50], expected, rtol=1e-5)
    matrices = Rotation.from_rotvec(arrays["poses"][1]).as_matrix()
    np.testing.assert_allclose(second.params.rotations[0], matrices, atol=1e-6)
    np.testing.assert_array_equal(second.params.betas[0], arrays["betas"][1])
    assert (first.clip.tolist(), first.frame.tolist(), second.frame.tolist()) == ([0, 1], [3, 2], [1])
    assert first.person_mask is None


def test_float_images_are_the_same_images() -> None:
    images = tiny.crop_arrays()["images"]
    floats = crop_set(images=(images / 255).astype(np.float32))
    for one, other in zip(floats.batches(), crop_set().batches(), strict=True):
        torch.testing.assert_close(one.images, other.images, rtol=1e-5, atol=1e-5)


def test_evenly() -> None:
    assert evenly(np.arange(9), 3).tolist() == [1, 4, 7]
    assert evenly(np.arange(3), 7).tolist() == [0, 1, 2]
    for length in range(1, 40):
        for count in range(1, length + 1):
            assert len(set(evenly(np.arange(length), count))) == count


def test_sample_takes_as_many_of_every_clip() -> None:
    crops = long_set({4: 100, 0: 7, 9: 31})
    chosen = crops.sample(10)
    assert crops.clip[chosen].tolist() == [0] * 7 + [4] * 10 + [9] * 10
    assert crops.frame[chosen][7:17].tolist() == list(range(15, 115, 10))
    with pytest.raises(UserError, match="--frames-per-clip"):
        crops.sample(0)


@pytest.mark.parametrize(("limit", "clips", "each"), [(8, 2, 4), (9, 3, 3), (40, 3, 13), (1, 1, 1), (200, 3, None)])
def test_stretches_are_runs_of_consecutive_frames(limit: int, clips: int, each: int | None) -> None:
    crops = long_set({0: 30, 1: 30, 2: 30})
    chosen = crops.stretches(limit)
    frames = {clip: crops.frame[chosen][crops.clip[chosen] == clip] for clip in set(crops.clip[chosen].tolist())}
    assert len(frames) == clips and len(chosen) <= limit
    for run in frames.values():
        assert len(run) == (each or 30)
        assert (np.diff(run) == 1).all()
        before, after = run[0] - 10, 39 - run[-1]
        assert 0 <= after - before <= 1, "from the middle"
    assert len(crops.stretches()) == 90
    with pytest.raises(UserError, match="--limit"):
        crops.stretches(0)


def broken(name: str, index: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    arrays = tiny.crop_arrays()
    if name == "images":
        arrays["images"] = (arrays["images"] / 255).astype(np.float32)
    arrays[name][index] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        (broken("images", (9, 10, 10, 1), np.nan), "images of tiny, clip 1, frame 3 hold NaN or infinity"),
        (broken("images", (0, 10, 10, 1), np.inf), "images of tiny, clip 0, frame 0 hold NaN"),
        (broken("images", (9, 10, 10, 1), 255.0), "images of tiny, clip 1, frame 3 leave the range 0..1"),
        (broken("poses", (7, 3, 0), np.nan), "poses of tiny, clip 1, frame 1 hold NaN"),
        (broken("betas", (5, 3), -np.inf), "betas of tiny, clip 0, frame 5 hold NaN"),
        (broken("frame", (5,), 4), "clip 0, frame 4 occurs twice"),
        ({k: v for k, v in tiny.crop_arrays().items() if k not in ("poses", "clip")}, "no array poses, clip"),
        (tiny.crop_arrays() | {"poses": np.zeros((12, 22, 3))}, r"array poses: got shape \(12, 22, 3\), expected"),
        (tiny.crop_arrays() | {"betas": np.zeros((11, 10))}, "array betas: got shape"),
        (tiny.crop_arrays() | {"clip": np.zeros(12)}, "array clip: got dtype float64, expected whole numbers"),
        (tiny.crop_arrays() | {"masks": np.zeros((12, 256, 192), bool)}, "array masks: got shape"),
        ({k: v[:0] for k, v in tiny.crop_arrays().items()}, "no frames"),
    ],
)
def test_faults_in_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], fault: str) -> None:
    np.savez(tmp_path / "bad.npz", meta=json.dumps(tiny.crop_meta()), **arrays)
    with pytest.raises(UserError, match=f"bad.npz: .*{fault}"):
        CropSet.open(tmp_path / "bad.npz")
    with pytest.raises(UserError, match=fault):
        write_crops(tmp_path / "never", arrays, tiny.crop_meta())
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": 2}, "schema"),
        ({"name": ""}, "name"),
        ({"fps": 0}, "fps"),
        ({"fps": "30"}, "fps"),
        ({"body": 3}, "body"),
    ],
)
def test_faults_in_meta_data(change: dict[str, object], fault: str) -> None:
    with pytest.raises(UserError, match=f"meta {fault}"):
        CropSet(tiny.crop_arrays(), tiny.crop_meta() | change)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_npz_is_one_sentence(tmp_path: Path, tiny_crops_file: Path, share: float) -> None:
    whole, torn = tiny_crops_file.read_bytes(), tmp_path / "torn.npz"
    torn.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="torn.npz: not a readable npz"):
        CropSet.open(torn)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object), meta="{}")
    np.savez(tmp_path / "text.npz", meta="no json")
    (tmp_path / "empty").mkdir()
    for name, fault in {
        "bare.npz": "no array 'meta'",
        "array.npy": "one array, not an npz archive",
        "pickled.npz": "pickled objects, which are never executed",
        "text.npz": "not JSON",
        "empty": "no meta.json",
        "nowhere": "no such file or folder",
    }.items():
        with pytest.raises(UserError, match=fault):
            CropSet.open(tmp_path / name)


def test_a_torn_folder_names_its_file(tmp_path: Path) -> None:
    write_crops(tmp_path / "set", tiny.crop_arrays(), tiny.crop_meta())
    images = tmp_path / "set" / "images.npy"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(UserError, match="images.npy: torn"):
        CropSet.open(tmp_path / "set")


def test_writing_replaces_sets_of_crops_and_nothing_else(tmp_path: Path) -> None:
    for name in ("set", "set.npz"):
        write_crops(tmp_path / name, tiny.crop_arrays(), tiny.crop_meta())
        write_crops(tmp_path / name, tiny.crop_arrays(clips=1), tiny.crop_meta())
        assert len(CropSet.open(tmp_path / name)) == 6
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError):
        write_crops(tmp_path / "mine", tiny.crop_arrays(), tiny.crop_meta())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["diary.txt"]


def test_another_body_is_refused(tiny_body: BodyModel) -> None:
    crop_set().check_body(tiny_body)  # nothing is known about the body of these
    for sha256 in (tiny_body.faces_sha256, "0" * 64):
        meta = tiny.crop_meta() | {"body": {"name": "x", "faces_sha256": sha256}}
        crops = CropSet(tiny.crop_arrays(), meta)
        if sha256 == tiny_body.faces_sha256:
            crops.check_body(tiny_body)
        else:
            with pytest.raises(UserError, match="ground truth of tiny"):
                crops.check_body(tiny_body)
