"""Tracks as one animated .glb: a skinned mesh a person, every joint turned by keyframes.

glTF's skinning is SMPL's linear blend skinning, so that is how motion is stored: a template of the track's median
shape, four weights a vertex, rotations by joint. Viewers (three.js, Blender, Windows, macOS) play it. What glTF has no
means for, pose-dependent offsets, is left out: exact for bodies without them, some millimetres off for SMPL.
Specification: glTF 2.0 (Khronos), sections 3.6 to 3.11 and 4.4.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.render.overlay import COLOURS
from hmrcompress.render.raster import vertex_normals

FLOAT, USHORT, UINT = 5126, 5123, 5125
ARRAY, ELEMENTS = 34962, 34963
KINDS = {np.dtype("<f4"): FLOAT, np.dtype("<u2"): USHORT, np.dtype("<u4"): UINT}
TYPES = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
INFLUENCES = 4
HALF_TURN_ABOUT_X = [1.0, 0.0, 0.0, 0.0]
"""From y down, z forward to glTF's y up, z towards the viewer; quaternions are (x, y, z, w)."""


@dataclass(frozen=True)
class Motion:
    """A track: seconds (T,), rotations (T,J,3,3), translation (T,3) of the root joint in metres, camera frame, betas
    (10,)."""

    track: int
    seconds: np.ndarray
    rotations: np.ndarray
    root: np.ndarray
    betas: np.ndarray


@dataclass
class _Writer:
    document: dict[str, Any] = field(default_factory=lambda: {"asset": {"version": "2.0", "generator": "hmrcompress"}})
    data: bytearray = field(default_factory=bytearray)

    def add(self, kind: str, value: dict[str, Any]) -> int:
        """Appends to a list of the document; its place."""
        self.document.setdefault(kind, []).append(value)
        return len(self.document[kind]) - 1

    def accessor(self, values: np.ndarray, target: int | None = None, *, bounds: bool = False) -> int:
        """An array (n,...) in the binary part; its accessor."""
        values = np.ascontiguousarray(values)
        self.data += b"\0" * (-len(self.data) % 4)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": values.nbytes}
        self.data += values.tobytes()
        described: dict[str, Any] = {
            "bufferView": self.add("bufferViews", view | ({"target": target} if target else {})),
            "componentType": KINDS[values.dtype],
            "count": len(values),
            "type": TYPES[values.shape[1:]],
        }
        if bounds:
            low, high = (np.atleast_1d(each) for each in (values.min(0), values.max(0)))
            described |= {"min": low.tolist(), "max": high.tolist()}
        return self.add("accessors", described)

    def packed(self) -> bytes:
        """The file."""
        self.data += b"\0" * (-len(self.data) % 4)
        self.document["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(self.document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        size = 12 + 8 + len(text) + 8 + len(self.data)
        head = struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<I4s", len(text), b"JSON")
        return head + text + struct.pack("<I4s", len(self.data), b"BIN\0") + bytes(self.data)


def write_glb(path: Path, motions: Sequence[Motion], body: BodyModel) -> None:
    """Writes the tracks. A track of one frame stands still; one that is not there all the time is
    shrunk to nothing before its first and after its last frame."""
    writer = _Writer()
    begin = min(each.seconds[0] for each in motions)
    end = max(each.seconds[-1] for each in motions)
    motions = [_distinct(each, begin) for each in motions]
    channels: list[dict[str, Any]] = []
    samplers: list[dict[str, Any]] = []
    people = [
        _person(writer, each, body, (begin, end), channels, samplers, COLOURS[rank % len(COLOURS)])
        for rank, each in enumerate(motions)
    ]
    roots, meshes = ([each[part] for each in people] for part in (0, 1))
    top = writer.add("nodes", {"name": "camera frame", "rotation": HALF_TURN_ABOUT_X, "children": roots})
    if channels:
        writer.document["animations"] = [{"name": "tracks", "channels": channels, "samplers": samplers}]
    writer.document |= {"scenes": [{"nodes": [top, *meshes]}], "scene": 0}
    path.write_bytes(writer.packed())


def _distinct(motion: Motion, begin: float) -> Motion:
    """Without keyframes that would have the same time as the one before in float32, which glTF forbids."""
    kept = np.unique((motion.seconds - begin).astype("<f4"), return_index=True)[1]
    return replace(motion, seconds=motion.seconds[kept], rotations=motion.rotations[kept], root=motion.root[kept])


def _person(
    writer: _Writer,
    motion: Motion,
    body: BodyModel,
    span: tuple[float, float],
    channels: list[dict[str, Any]],
    samplers: list[dict[str, Any]],
    colour: tuple[float, float, float],
) -> tuple[int, int]:
    """Nodes, mesh, skin and keyframes of one track; the numbers of its root joint's node and of its mesh's, which
    stands at the top of the scene, as only joints move a skin."""
    betas = torch.from_numpy(np.asarray(motion.betas, np.float32))[None].to(body.v_template.device)
    with torch.no_grad():
        rest, joints = (part[0].cpu().numpy().astype("<f4") for part in body.rest(betas))
    quaternions = _quaternions(motion.rotations)
    name = f"person {motion.track}"
    nodes = [
        writer.add("nodes", {"name": f"{name} joint {number}", "rotation": quaternions[0, number].tolist()})
        for number in range(body.num_joints)
    ]
    for number, parent in enumerate(body.parents):
        node = writer.document["nodes"][nodes[number]]
        offset = motion.root[0] if parent < 0 else joints[number] - joints[parent]
        node["translation"] = [float(value) for value in offset]
        if children := [nodes[child] for child, above in enumerate(body.parents) if above == number]:
            node["children"] = children
    binding = np.tile(np.eye(4, dtype="<f4"), (body.num_joints, 1, 1))
    binding[:, 3, :3] = -joints  # columns of the matrix stand one after the other
    skin = writer.add("skins", {"joints": nodes, "skeleton": nodes[0], "inverseBindMatrices": writer.accessor(binding)})
    mesh = writer.add(
        "nodes", {"name": f"{name} mesh", "mesh": _mesh(writer, motion, body, rest, colour), "skin": skin}
    )
    if len(motion.seconds) > 1:
        times = writer.accessor((motion.seconds - span[0]).astype("<f4"), bounds=True)

        def animate(node: int, path: str, values: np.ndarray) -> None:
            samplers.append(
                {"input": times, "output": writer.accessor(values.astype("<f4")), "interpolation": "LINEAR"}
            )
            channels.append({"sampler": len(samplers) - 1, "target": {"node": node, "path": path}})

        animate(nodes[0], "translation", motion.root)
        for number, node in enumerate(nodes):
            animate(node, "rotation", quaternions[:, number])
    if motion.seconds[0] > span[0] or motion.seconds[-1] < span[1]:
        _appear(writer, nodes[0], motion, span, channels, samplers)
    return nodes[0], mesh


def _appear(
    writer: _Writer,
    node: int,
    motion: Motion,
    span: tuple[float, float],
    channels: list[dict[str, Any]],
    samplers: list[dict[str, Any]],
) -> None:
    """Scales the root joint, and so the skin, to nothing while the person is not there."""
    first, last = float(motion.seconds[0] - span[0]), float(motion.seconds[-1] - span[0])
    keys = [(0.0, 0.0), (first, 1.0)] if first > 0 else [(0.0, 1.0)]
    if motion.seconds[-1] < span[1]:
        keys.append((np.nextafter(np.float32(last), np.float32(np.inf)), 0.0))
    times = np.array([time for time, _ in keys], "<f4")
    scales = np.repeat(np.array([scale for _, scale in keys], "<f4")[:, None], 3, axis=1)
    samplers.append(
        {
            "input": writer.accessor(times, bounds=True),
            "output": writer.accessor(scales),
            "interpolation": "STEP",
        }
    )
    channels.append({"sampler": len(samplers) - 1, "target": {"node": node, "path": "scale"}})


def _mesh(
    writer: _Writer, motion: Motion, body: BodyModel, rest: np.ndarray, colour: tuple[float, float, float]
) -> int:
    """The template of the track's shape with its four strongest weights a vertex; the number of the mesh."""
    weights = body.weights.cpu().numpy()
    strongest = np.argsort(-weights, axis=1, kind="stable")[:, :INFLUENCES]
    shares = np.take_along_axis(weights, strongest, axis=1)
    shares = shares / shares.sum(1, keepdims=True)
    # Joints that have no weight have to be named 0.
    strongest = np.where(shares > 0, strongest, 0)
    faces = np.ascontiguousarray(body.faces, np.int32)
    attributes = {
        "POSITION": writer.accessor(rest, ARRAY, bounds=True),
        "NORMAL": writer.accessor(vertex_normals(rest.astype(np.float32), faces).astype("<f4"), ARRAY),
        "JOINTS_0": writer.accessor(strongest.astype("<u2"), ARRAY),
        "WEIGHTS_0": writer.accessor(shares.astype("<f4"), ARRAY),
    }
    material = writer.add(
        "materials",
        {"pbrMetallicRoughness": {"baseColorFactor": [*colour, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}},
    )
    indices = writer.accessor(faces.reshape(-1).astype("<u4"), ELEMENTS)
    primitive = {"attributes": attributes, "indices": indices, "material": material}
    return writer.add("meshes", {"name": f"person {motion.track}", "primitives": [primitive]})


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """(T,J,3,3) -> unit quaternions (T,J,4), each next to the one before it, for the shorter way."""
    import roma

    found = roma.rotmat_to_unitquat(torch.from_numpy(np.asarray(rotations, np.float64))).numpy()
    flips = np.where((found[1:] * found[:-1]).sum(-1, keepdims=True) < 0, -1.0, 1.0)
    found[1:] *= np.cumprod(flips, axis=0)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)
