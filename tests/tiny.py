"""A tiny world that takes milliseconds to make: a body of 96 vertices, a random network, a few clips of crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hmrcompress.body.joints import LEAF_NAMES, SMPL_JOINTS, SMPL_PARENTS
from hmrcompress.body.topology import hash_faces
from hmrcompress.models.network import HMR2, NetworkConfig, build

JOINTS = len(SMPL_JOINTS)
CORNERS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
CONFIG = NetworkConfig(
    dim=32, depth=4, num_heads=2, mlp_dim=64,
    head_width=32, head_depth=2, head_heads=2, head_dim=8, head_mlp_dim=32,
)  # fmt: skip
SHALLOW = replace(CONFIG, depth=2, head_depth=1)
"""For what takes its time by layer, as exporting does: seconds, however small they are."""


def body_arrays() -> dict[str, np.ndarray]:
    """A body file's arrays: a small tetrahedron around every joint of a random tree with bones of 0.2 m."""
    rng = np.random.default_rng(0)
    joints = np.zeros((JOINTS, 3))
    for joint, parent in enumerate(SMPL_PARENTS[1:], start=1):
        step = rng.normal(size=3)
        joints[joint] = joints[parent] + 0.2 * step / np.linalg.norm(step)
    owner = np.repeat(np.arange(JOINTS), len(CORNERS))
    vertices = joints[owner] + 0.05 * np.tile(CORNERS, (JOINTS, 1))
    faces = (4 * np.arange(JOINTS)[:, None, None] + np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])).reshape(
        -1, 3
    )
    regressor = (owner == np.arange(JOINTS)[:, None]) / len(CORNERS)
    return {
        "name": np.array("tiny"),
        "v_template": vertices,
        "f": faces.astype(np.int32),
        "faces_sha256": np.array(hash_faces(faces.astype(np.int32))),
        "shapedirs": 0.01 * rng.normal(size=(len(vertices), 3, 10)),
        "J_regressor": regressor,
        "weights": np.eye(JOINTS)[owner],
        "kintree_table": np.array([SMPL_PARENTS, range(JOINTS)]),
        "leaf_vertices": np.arange(len(LEAF_NAMES)),
    }


def crop_arrays(clips: int = 2, frames: int = 6) -> dict[str, np.ndarray]:
    """Arrays of a set of crops: noise with a bright rectangle for a person, masks of the same rectangle."""
    rng = np.random.default_rng(1)
    count = clips * frames
    images = rng.integers(0, 128, (count, 256, 192, 3), dtype=np.uint8)
    masks = np.zeros((count, 256, 192), bool)
    for index in range(count):
        top, left = rng.integers(20, 80), rng.integers(20, 60)
        masks[index, top : top + 140, left : left + 60] = True
        images[index][masks[index]] += 100
    clip = np.repeat(np.arange(clips, dtype=np.int32), frames)
    return {
        "images": images,
        "masks": np.packbits(masks, axis=-1),
        "poses": 0.3 * rng.normal(size=(count, JOINTS, 3)).astype(np.float32),
        "betas": rng.normal(size=(clips, 10)).astype(np.float32)[clip],
        "clip": clip,
        "frame": np.tile(np.arange(frames, dtype=np.int32), clips),
    }


def crop_meta() -> dict[str, object]:
    """The meta data that go with `crop_arrays`."""
    return {"schema": 1, "name": "tiny", "split": "test", "fps": 30.0}


def network(seed: int = 0, config: NetworkConfig = CONFIG) -> HMR2:
    """A random network with these sizes, in evaluation mode; its read-outs are large enough to matter."""
    made = build(config, seed=seed).eval()
    for parameter in made.smpl_head.decpose.parameters():
        parameter.data.mul_(10)
    return made.requires_grad_(False)


def write_body(path: Path) -> Path:
    """The body as a file."""
    np.savez(path, **body_arrays())  # type: ignore[arg-type]
    return path
