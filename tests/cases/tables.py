"""Masks, boxes, crops, annotations and motion capture: what people hand in beside their pictures."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from cases.pictures import APPLE_DOUBLE
from cases.scenes import deflated_zeros, person

FRAMES = 8


def crop_set(path: Path, shift: int = 0, turned: float = 0.0) -> Path:
    """Crops of two clips of four frames (`crops:PATH`): the drawn person, its mask, a pose of its own."""
    clip, frame = np.repeat(np.arange(2, dtype=np.int32), 4), np.tile(np.arange(4, dtype=np.int32), 2)
    images = np.stack([person(shift=2 * n + shift) for n in range(FRAMES)])
    poses = np.zeros((FRAMES, 24, 3), np.float32)
    poses[:, 0, 0] = np.pi
    poses[:, 16, 2] = -1.0 + 0.1 * np.arange(FRAMES) + turned
    meta = {"schema": 1, "name": "drawn", "split": "test", "fps": 30.0}
    arrays = {"images": images, "masks": np.packbits(person_masks(), axis=-1), "poses": poses}
    arrays |= {"betas": np.zeros((FRAMES, 10), np.float32), "clip": clip, "frame": frame}
    np.savez(path, meta=np.array(json.dumps(meta)), **arrays)
    return path


def person_masks(left: int = 40, width: int = 110) -> np.ndarray:
    """(N,256,192) bool: a rectangle, the same in every frame."""
    masks = np.zeros((FRAMES, 256, 192), bool)
    masks[:, 20:240, left : left + width] = True
    return masks


def mask_archive(path: Path, left: int = 40) -> Path:
    """`masks.npz` for `crop_set`."""
    clip, frame = np.repeat(np.arange(2), 4), np.tile(np.arange(4), 2)
    np.savez_compressed(path, clip=clip, frame=frame, masks=np.packbits(person_masks(left, 70), axis=-1))
    return path


def mask_pictures(folder: Path, image: Image.Image) -> Path:
    """A folder with the same PNG for every frame of `crop_set`."""
    folder.mkdir(parents=True, exist_ok=True)
    for clip in range(2):
        for frame in range(4):
            image.save(folder / f"{clip:04d}_{frame:06d}.png")
    return folder


def palette(mask: np.ndarray, index: int, colour: tuple[int, int, int]) -> Image.Image:
    """A picture of indices, 0 (black) and `index` (of this colour)."""
    image = Image.fromarray(np.where(mask, index, 0).astype(np.uint8), "P")
    colours = [0] * 768
    colours[3 * index : 3 * index + 3] = colour
    image.putpalette(colours)
    return image


def make_masks(out: Path) -> None:
    """white/ is right by the present rule; all others show the same person."""
    out.mkdir(parents=True, exist_ok=True)
    crop_set(out / "crops.npz")
    mask = person_masks()[0]
    rng = np.random.default_rng(0)
    alpha, blank = np.where(mask, 255, 0).astype(np.uint8), np.zeros(mask.shape, np.uint8)
    kinds = {
        "white": Image.fromarray(alpha),
        "zero_one": Image.fromarray(mask.astype(np.uint8)),
        "sixteen_bit": Image.fromarray(np.where(mask, 65535, 0).astype(np.uint16)),
        "sixteen_bit_labels": Image.fromarray(np.where(mask, 3, 0).astype(np.uint16)),
        "palette_dark": palette(mask, 1, (128, 0, 0)),
        "red": Image.fromarray(np.where(mask[..., None], [255, 0, 0], 0).astype(np.uint8)),
        "cut_out": Image.fromarray(np.dstack([rng.integers(0, 255, (256, 192, 3)).astype(np.uint8), alpha])),
        "grey_alpha": Image.fromarray(np.dstack([blank, alpha]), "LA"),
    }
    for name, image in kinds.items():
        mask_pictures(out / name, image)
    mask_archive(out / "first.npz")
    mask_archive(out / "second.npz", left=100)


def rows(path: Path, count: int, box: list[float], first: int = 0) -> Path:
    """A file of boxes: the same box on `count` frames."""
    listed = [{"frame": first + number, "track": 0, "box": box} for number in range(count)]
    path.write_text(json.dumps({"boxes": listed}))
    return path


def npy_head(shape: str, kind: str = "<f8") -> bytes:
    """The head of an .npy file of version 1."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (64 - (len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def zip_bomb(path: Path, arrays: Mapping[str, str], zeros: int) -> Path:
    """An .npz whose arrays claim these shapes; of the first, `zeros` bytes are there, packed a thousand times. Written
    by hand, with checksums of nothing: nobody should get so far."""
    data, directory = b"", b""
    for number, (name, shape) in enumerate(arrays.items()):
        count, head, file = 32 if number else zeros, npy_head(shape), f"{name}.npy".encode()
        packed = deflated_zeros(count, head)
        about = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), len(head) + count, len(file), 0)
        directory += b"PK\1\2" + struct.pack("<H", 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, len(data)) + file
        data += b"PK\3\4" + about + file + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(arrays), len(arrays), len(directory), len(data), 0)
    path.write_bytes(data + directory + b"PK\5\6" + end)
    return path


def make_boxes(out: Path) -> None:
    """For videos/plain.mp4: 20 frames of 192 x 256, the person at 40,20,150,245."""
    out.mkdir(parents=True, exist_ok=True)
    good = [40, 20, 150, 245]
    rows(out / "good.json", 20, good)
    rows(out / "one_based.json", 20, good, first=1)
    rows(out / "past_the_end.json", 50, good)
    rows(out / "all_past.json", 20, good, first=100)
    rows(out / "normalised.json", 20, [0.2, 0.08, 0.78, 0.96])
    rows(out / "other_resolution.json", 20, [800, 400, 3000, 4900])
    rows(out / "outside.json", 20, [2000, 2000, 2200, 2300])
    rows(out / "giant.json", 2, [-1e7, -1e7, 1e7, 1e7])
    rows(out / "tiny.json", 2, [100, 100, 100.001, 100.001])
    for name, side, centre in (("side_1e12", 1e12, 5), ("side_1e300", 1e300, 5), ("centre_1e300", 1e-300, 1e300)):
        row = {"frame": 0, "centre": [centre, centre], "side": side}
        (out / f"{name}.json").write_text(json.dumps({"boxes": [row]}))
    (out / "nested.json").write_text("[" * 200_000)
    (out / "nested_box.json").write_text('{"boxes":[{"frame":0,"box":' + "[" * 60_000 + "]" * 60_000 + "}]}")
    zip_bomb(out / "zip_bomb.npz", {"frame": "(100000000,)", "box": "(1, 4)"}, 800_000_000)


def other_body(path: Path) -> Path:
    """A body that is not the starter's for the product (its triangles begin at another one), with SMPL's 24 joints: the
    ground truth of other data sets is refused with the starter body."""
    import hmrcompress

    (shipped,) = Path(hmrcompress.__file__).parent.rglob("starter_body.npz")
    with np.load(shipped) as arrays:
        body = {name: arrays[name] for name in arrays.files if name != "faces_sha256"}
    body["f"] = np.roll(body["f"], 1, axis=0)
    np.savez(path, **(body | {"name": np.array("made up")}))
    return path


def make_bedlam(out: Path) -> None:
    """One standing figure, once stored upright and once lying on its side as BEDLAM's close-ups are: both annotation
    files are for the upright picture of 360 x 640 and have to give the same figures. With `--body body.npz`."""
    out.mkdir(parents=True, exist_ok=True)
    other_body(out / "body.npz")
    for name, lying in (("upright", False), ("closeup", True)):
        folder = out / name / "seq_000000"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(person(360, 640))
        (picture.transpose(Image.Transpose.ROTATE_90) if lying else picture).save(folder / "seq_000000_0000.png")
        camera = np.array([[[600, 0, 180], [0, 600, 320], [0, 0, 1.0]]])
        scene = f"20221011_1_250_batch01hand_{'closeup_' if lying else ''}suburb_a_6fps"
        np.savez(
            out / name / f"{scene}.npz",
            imgname=np.array(["seq_000000/seq_000000_0000.png"]),
            center=np.array([[180.0, 320.0]]),
            scale=np.array([3.2]),
            pose_cam=np.zeros((1, 165)),
            shape=np.zeros((1, 11)),
            cam_int=camera,
            gender=np.array(["neutral"]),
            sub=np.array(["s1"]),
        )


def motion(frames: int = 900, width: int = 156, **more: object) -> dict[str, np.ndarray]:
    """The arrays of an AMASS file: a slow wave of the arms at 120 frames a second."""
    poses = np.zeros((frames, width))
    poses[:, 16 * 3 + 2] = np.sin(np.arange(frames) / 40)
    found = {"poses": poses, "trans": np.zeros((frames, 3)), "betas": np.zeros(16), "gender": np.array("male")}
    return found | {key: np.asarray(value) for key, value in more.items()}


def make_amass(out: Path) -> None:
    """Folders as the archives of AMASS unpack to.

    In each, walk_*.npz is a good motion of 7.5 s, longer than a window of the decoder.
    """

    def folder(name: str) -> Path:
        made = out / name / "ACCAD" / "s001"
        made.mkdir(parents=True, exist_ok=True)
        return made

    shape = {"betas": np.zeros(16), "gender": np.array("male")}
    good = motion(mocap_framerate=120.0)
    np.savez_compressed(folder("smplh") / "walk_poses.npz", **good)
    np.savez_compressed(folder("smplh") / "shape.npz", **shape)
    np.savez_compressed(folder("smplx") / "walk_stageii.npz", **motion(width=165, mocap_frame_rate=120.0))
    np.savez_compressed(folder("smplx") / "male_stagei.npz", **shape, markers_latent=np.zeros((41, 3)))
    np.savez_compressed(folder("short") / "walk_poses.npz", **good)
    np.savez_compressed(folder("short") / "blink_poses.npz", **motion(30, mocap_framerate=120.0))
    np.savez_compressed(folder("apple_double") / "walk_poses.npz", **good)
    (folder("apple_double") / "._walk_poses.npz").write_bytes(APPLE_DOUBLE)
    np.savez_compressed(folder("smpl72") / "walk.npz", **motion(width=72, mocap_framerate=120.0))
