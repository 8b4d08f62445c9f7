"""Mini data sets in other people's formats, written here byte by byte as their tools write them."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import tiny
from PIL import Image
from scipy.spatial.transform import Rotation

WIDTH, HEIGHT, FRAMES = 150, 120, 6
EXTRINSIC = np.eye(4)
EXTRINSIC[:3, :3] = Rotation.from_rotvec([0.3, -0.8, 1.1]).as_matrix()
INTRINSICS = np.array([[210.0, 0, 75], [0, 210, 60], [0, 0, 1]])


def write_picture(path: Path, seed: int = 0) -> None:
    """Noise with some structure, as PNG data whatever the suffix: what is read is what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_bytes(seed))


def picture_bytes(seed: int = 0) -> bytes:
    """The same, encoded."""
    made = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(made).save(file, "png")
        return file.getvalue()


def poses(count: int, seed: int = 0) -> np.ndarray:
    """(count,24,3) axis-angle."""
    return 0.3 * np.random.default_rng(seed).normal(size=(count, 24, 3))


def frames(folder: str, suffix: str = ".jpg") -> list[str]:
    """Names of the frames of a sequence as 3DPW has them."""
    return [f"{folder}/image_{number:05d}{suffix}" for number in range(FRAMES)]


def write_4dhumans(folder: Path) -> Path:
    """An evaluation npz of two sequences, one of them with names in bytes as some files have them."""
    names = frames("imageFiles/downtown_walk_00") + frames("imageFiles/office_call_00")
    count, rng = len(names), np.random.default_rng(1)
    for number, name in enumerate(names):
        write_picture(folder / name, number)
    np.savez(
        folder / "3dpw_test.npz",
        imgname=np.array(names, dtype="S"),
        center=rng.uniform(50, 90, (count, 2)),
        scale=rng.uniform(60, 140, (count, 2)),
        personid=np.zeros(count, np.int32),
        body_keypoints_3d=rng.normal(size=(count, 25, 4)),
        extra_keypoints_3d=np.concatenate([rng.normal(size=(count, 19, 3)), np.ones((count, 19, 1))], 2),
        body_pose=poses(count).reshape(count, 72).astype(np.float32),
        betas=rng.normal(size=(count, 10)).astype(np.float32),
        has_body_pose=np.ones(count),
        has_betas=np.ones(count),
        extra_info=np.array([{}] * count, dtype=object),
    )
    return folder / "3dpw_test.npz"


def write_camerahmr(folder: Path) -> Path:
    """A CameraHMR npz: 22 rotations, 11 betas, names and genders as arrays of objects."""
    names = frames("seq_000000", ".png") + frames("seq_000001", ".png")
    count, rng = len(names), np.random.default_rng(2)
    for number, name in enumerate(names):
        write_picture(folder / "pictures" / name, number)
    np.savez(
        folder / "bedlam.npz",
        imgname=np.array(names, dtype=object),
        center=rng.uniform(50, 90, (count, 2)),
        scale=rng.uniform(60, 140, count) / 200,
        pose_cam=poses(count)[:, :22].reshape(count, 66),
        shape=rng.normal(size=(count, 11)),
        cam_int=np.repeat(INTRINSICS[None], count, axis=0),
        gtkps=rng.normal(size=(count, 44, 3)),
        gender=np.array(["male", "f"] * (count // 2), dtype=object),
    )
    return folder / "bedlam.npz"


def write_emdb(folder: Path) -> Path:
    """Two sequences of EMDB-1 and one that is not; of the first, one frame is bad and one has no box."""
    for number, (name, first) in enumerate([("P0/00_walk", True), ("P1/14_climb", True), ("P2/99_other", False)]):
        rng, home = np.random.default_rng(number), folder / name
        for frame in range(FRAMES):
            write_picture(home / "images" / f"{frame:05d}.jpg", 10 * number + frame)
        good = np.ones(FRAMES, bool)
        good[1] = number > 0
        left_top = rng.uniform(10, 30, (FRAMES, 2))
        values = {
            "gender": ["male", "female", "neutral"][number],
            "name": name.replace("/", "_"),
            "emdb1": first,
            "emdb2": not first,
            "n_frames": FRAMES,
            "good_frames_mask": good,
            "camera": {
                "intrinsics": INTRINSICS,
                "extrinsics": np.repeat(EXTRINSIC[None], FRAMES, axis=0),
                "width": WIDTH,
                "height": HEIGHT,
            },
            "smpl": {
                "poses_root": poses(FRAMES, number)[:, 0],
                "poses_body": poses(FRAMES, number)[:, 1:].reshape(FRAMES, 69),
                "trans": rng.normal(size=(FRAMES, 3)),
                "betas": rng.normal(size=10),
            },
            "kp2d": rng.normal(size=(FRAMES, 24, 2)),
            "bboxes": {
                "bboxes": np.concatenate([left_top, left_top + rng.uniform(40, 80, (FRAMES, 2))], 1),
                "invalid_idxs": np.array([4] if number == 0 else [], dtype=np.int64),
            },
        }
        with open(home / f"{values['name']}_data.pkl", "wb") as file:
            pickle.dump(values, file)
    return folder


def write_3dpw(folder: Path) -> Path:
    """A test sequence of two people as python 2 pickled it; the second is not placed in frame 2, unseen in frame 3."""
    rng, name = np.random.default_rng(4), "downtown_walk_00"
    for frame, path in enumerate(frames(f"imageFiles/{name}")):
        write_picture(folder / path, frame)
    points = rng.uniform(20, 110, (2, FRAMES, 3, 18))
    points[:, :, 2] = 0.9
    points[1, 3] = 0
    valid = np.ones((2, FRAMES), np.int64)
    valid[1, 2] = 0
    values = {
        "sequence": name,
        "poses": [poses(FRAMES, person).reshape(FRAMES, 72) for person in (0, 1)],
        "betas": [rng.normal(size=10) for _ in range(2)],
        "trans": [rng.normal(size=(FRAMES, 3)) for _ in range(2)],
        "cam_poses": np.repeat(EXTRINSIC[None], FRAMES, axis=0),
        "cam_intrinsics": INTRINSICS,
        "poses2d": list(points),
        "campose_valid": list(valid),
        "genders": ["m", "f"],
        "img_frame_ids": np.arange(FRAMES),
        "jointPositions": [rng.normal(size=(FRAMES, 72)) for _ in range(2)],
    }
    file = folder / "sequenceFiles" / "test" / f"{name}.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps(values, protocol=2))
    return folder


def write_wds(folder: Path) -> Path:
    """A tar of four pictures: two people in the first, nobody posed in the last; a member that would lead elsewhere,
    and a link."""
    rng, path = np.random.default_rng(5), folder / "000000.tar"
    with tarfile.open(path, "w") as archive:
        for frame in range(4):
            people = [_person(rng, posed=frame < 3) for _ in range(2 if frame == 0 else 1)]
            for suffix, data in ((".jpg", picture_bytes(frame)), (".data.pyd", pickle.dumps(people))):
                _add(archive, f"walk/{frame:06d}{suffix}", data)
        _add(archive, "../../evil.txt", b"evil")
        link = tarfile.TarInfo("walk/000009.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def _person(rng: np.random.Generator, *, posed: bool) -> dict[str, object]:
    return {
        "center": rng.uniform(50, 90, 2),
        "scale": rng.uniform(60, 140, 2) / 200,
        "keypoints_2d": rng.normal(size=(44, 3)),
        "keypoints_3d": np.concatenate([rng.normal(size=(44, 3)), np.ones((44, 1))], 1),
        "body_pose": 0.3 * rng.normal(size=72),
        "betas": rng.normal(size=10),
        "has_body_pose": np.float32(posed),
        "has_betas": np.float32(posed),
        "extra_info": {"fitting_loss": np.array({})},
    }


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def write_images(folder: Path, *, coco: bool = False) -> Path:
    """A folder of pictures with boxes, ours or COCO's."""
    names = [f"frame_{number:04d}.png" for number in range(FRAMES)]
    for number, name in enumerate(names):
        write_picture(folder / name, number)
    boxes = [[20 + number, 15, 80, 110 - number] for number in range(FRAMES)]
    if coco:
        content: dict[str, object] = {
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "person"}],
            "images": [{"id": 100 + number, "file_name": name} for number, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": 100 + i, "category_id": 3, "bbox": [left, top, right - left, bottom - top]}
                for i, (left, top, right, bottom) in enumerate(boxes)
            ]
            + [{"id": 99, "image_id": 100, "category_id": 7, "bbox": [0, 0, 5, 5]}],
        }
    else:
        content = {
            "boxes": [
                {"image": name, "track": 0, "box": box} if number % 2 else {"frame": number, "box": box}
                for number, (name, box) in enumerate(zip(names, boxes, strict=True))
            ]
        }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


def write_bodies(folder: Path) -> Path:
    """Three tiny bodies that differ in their shape, and regressors of 17 and 19 rows for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("NEUTRAL", "MALE", "FEMALE")):
        arrays = tiny.body_arrays()
        arrays["v_template"] = arrays["v_template"] * (1 + 0.2 * number)
        np.savez(folder / f"SMPL_{name}.npz", **(arrays | {"name": np.array(name.lower())}))  # type: ignore[arg-type]
    vertices = len(tiny.body_arrays()["v_template"])
    for rows in (17, 19):
        weights = np.random.default_rng(rows).random((rows, vertices))
        np.save(folder / f"regressor{rows}.npy", weights / weights.sum(1, keepdims=True))
    return folder
