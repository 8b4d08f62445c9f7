"""Pickles as other code bases leave them: objects of packages that are not installed here, text as python 2 has it."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Plain:
    """An object with a state and nothing else; classes of this kind are given foreign names."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


class Mapping(dict):
    """yacs' CfgNode: a dictionary with a flag among its attributes."""

    def __init__(self, values: dict | None = None) -> None:
        super().__init__(values or {})
        self.__dict__["__immutable__"] = True


@contextmanager
def foreign(*names: str) -> Iterator[list[type]]:
    """Classes that pickle as `module.Name`; their modules are gone when the block ends.

    Names of mappings end in `CfgNode`.
    """
    before, made = set(sys.modules), []
    for full in names:
        module, _, name = full.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(parts[end - 1]))
        cls = type(name, (Mapping if name == "CfgNode" else Plain,), {"__module__": module, "__qualname__": name})
        setattr(sys.modules[module], name, cls)
        made.append(cls)
    yield made
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {full.split(".")[0] for full in names}:
            del sys.modules[name]


class Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Protocol 2 as python 2 wrote it: text and the bytes of arrays as byte strings without an encoding."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=2, fix_imports=True)

    def save_str(self, text: str) -> None:
        self._string(text.encode("latin1"))

    def save_bytes(self, data: bytes) -> None:
        self._string(data)

    def _string(self, data: bytes) -> None:
        size = len(data)
        self.write((b"U" + bytes([size]) if size < 256 else b"T" + size.to_bytes(4, "little")) + data)

    dispatch[str], dispatch[bytes] = save_str, save_bytes


def python_2(value: Any) -> bytes:
    """The pickle that python 2 would have written."""
    import io

    file = io.BytesIO()
    Python2(file).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def sequence_3dpw(rng: np.random.Generator, frames: int = 4, people: int = 2) -> dict[str, Any]:
    """A sequence of 3DPW: lists by person."""
    return {
        "sequence": "downtown_bar_00",
        "poses": [rng.normal(size=(frames, 72)) for _ in range(people)],
        "betas": [rng.normal(size=300) for _ in range(people)],
        "trans": [rng.normal(size=(frames, 3)) for _ in range(people)],
        "poses2d": [rng.normal(size=(frames, 3, 18)) for _ in range(people)],
        "jointPositions": [rng.normal(size=(frames, 72)) for _ in range(people)],
        "campose_valid": [np.ones(frames, bool) for _ in range(people)],
        "cam_poses": rng.normal(size=(frames, 4, 4)),
        "cam_intrinsics": np.array([[1961.0, 0, 540], [0, 1969, 960], [0, 0, 1]]),
        "genders": ["m", "f"][:people],
        "img_frame_ids": np.arange(frames),
        "texture_maps": [],
    }


def sequence_emdb(rng: np.random.Generator, frames: int = 4) -> dict[str, Any]:
    """A sequence of EMDB."""
    return {
        "gender": "female",
        "name": "P9_80_outdoor_walk_big_circle",
        "emdb1": True,
        "n_frames": frames,
        "good_frames_mask": np.array([True] * (frames - 1) + [False]),
        "camera": {"intrinsics": np.eye(3), "extrinsics": rng.normal(size=(frames, 4, 4)), "width": 1440},
        "smpl": {
            "poses_root": rng.normal(size=(frames, 3)),
            "poses_body": rng.normal(size=(frames, 69)).astype(np.float32),
            "trans": rng.normal(size=(frames, 3)),
            "betas": rng.normal(size=10),
        },
        "bboxes": {"bboxes": rng.normal(size=(frames, 4)), "invalid_idxs": np.zeros(0, np.int64)},
    }
