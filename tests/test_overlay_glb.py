"""Meshes over pictures, and animations: against geometry by hand, and skinning by glTF's definition in float64."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from hmrcompress.body.model import BodyModel
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.pipeline.glb import Motion, write_glb
from hmrcompress.records import BodyParams
from hmrcompress.render.overlay import draw_meshes


def plate(left: float, top: float, side: float, depth: float) -> np.ndarray:
    """A square that faces the camera, (4,3) metres; at focal 100 and depth 1 a metre is 100 pixels."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * side + [left, top]
    return np.concatenate([corners * depth, np.full((4, 1), depth)], 1).astype(np.float32)


FACES = np.array([[0, 2, 1], [0, 3, 2]], np.int32)
GREY = np.full((60, 80, 3), 100, np.uint8)


def test_a_plate_covers_its_pixels_and_nothing_else() -> None:
    """20 x 20 pixels from (40, 30), seen face on: one even colour; half a pixel more is covered by half."""
    drawn = draw_meshes(GREY, plate(0, 0, 0.2, 1.0)[None], FACES, 100.0, (40.0, 30.0), [(1, 0, 0)])
    changed = (drawn != GREY).any(-1)
    expected = np.zeros_like(changed)
    expected[30:50, 40:60] = True
    assert np.array_equal(changed, expected)
    assert len(np.unique(drawn[30:50, 40:60].reshape(-1, 3), axis=0)) == 1
    wider = draw_meshes(GREY, plate(0, 0, 0.205, 1.0)[None], FACES, 100.0, (40.0, 30.0), [(1, 0, 0)])
    inside, edge = wider[40, 50].astype(int), wider[40, 60].astype(int)
    assert np.abs(edge - (inside + 100) / 2).max() <= 1
    assert (GREY == 100).all()


def test_the_nearer_person_is_in_front_whatever_the_order() -> None:
    near, far = plate(0, 0, 0.2, 1.0), plate(0.1, 0, 0.2, 3.0)
    colours = [(1, 0, 0), (0, 0, 1)]
    first = draw_meshes(GREY, np.stack([near, far]), FACES, 100.0, (40.0, 30.0), colours)
    second = draw_meshes(GREY, np.stack([far, near]), FACES, 100.0, (40.0, 30.0), colours[::-1])
    assert np.array_equal(first, second)
    assert first[40, 55, 0] > first[40, 55, 2] and first[40, 65, 2] > first[40, 65, 0]


def test_people_outside_of_the_picture_leave_it_alone() -> None:
    for vertices in (plate(5, 0, 0.2, 1.0), plate(0, 0, 0.2, -1.0)):
        assert np.array_equal(draw_meshes(GREY, vertices[None], FACES, 100.0, (40.0, 30.0), [(1, 0, 0)]), GREY)


def motion(track: int, frames: int, start: float = 0.0) -> Motion:
    generator = torch.Generator().manual_seed(track)
    turns = axis_angle_to_matrix(0.9 * torch.randn(frames, 24, 3, generator=generator, dtype=torch.float64))
    return Motion(
        track,
        start + np.arange(frames) / 30,
        turns.float().numpy(),
        torch.randn(frames, 3, generator=generator).numpy() + np.array([0, 0, 20.0]),
        torch.randn(10, generator=generator).numpy(),
    )


def read_glb(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The document and its accessors, by the specification's sections 4.4 and 3.6."""
    data = path.read_bytes()
    magic, version, size = struct.unpack_from("<4sII", data)
    assert (magic, version, size) == (b"glTF", 2, len(data))
    length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and length % 4 == 0
    document = json.loads(data[20 : 20 + length])
    size, kind = struct.unpack_from("<I4s", data, 20 + length)
    assert kind == b"BIN\0" and size == document["buffers"][0]["byteLength"]
    binary = data[28 + length :]
    shapes = {"SCALAR": (), "VEC3": (3,), "VEC4": (4,), "MAT4": (4, 4)}
    arrays = []
    for each in document["accessors"]:
        view = document["bufferViews"][each["bufferView"]]
        kind = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[each["componentType"]]
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        arrays.append(np.frombuffer(part, kind).reshape(each["count"], *shapes[each["type"]]))
    return document, arrays


def local(node: dict[str, Any]) -> np.ndarray:
    """A node's matrix out of translation, rotation (x, y, z, w) and scale."""
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.asarray(node.get("scale", (1, 1, 1)))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def skinned(document: dict[str, Any], arrays: list[np.ndarray], person: int, key: int) -> np.ndarray:
    """Vertices (V,3) of a person at a keyframe, in the frame of the scene."""
    nodes = [dict(node) for node in document["nodes"]]
    for channel in document["animations"][0]["channels"] if "animations" in document else ():
        sampler = document["animations"][0]["samplers"][channel["sampler"]]
        if sampler["interpolation"] == "LINEAR":
            values = arrays[sampler["output"]]
            if key < len(values):
                nodes[channel["target"]["node"]][channel["target"]["path"]] = values[key]
    world: dict[int, np.ndarray] = {}

    def place(number: int, above: np.ndarray) -> None:
        world[number] = above @ local(nodes[number])
        for child in nodes[number].get("children", ()):
            place(child, world[number])

    for root in document["scenes"][0]["nodes"]:
        place(root, np.eye(4))
    skin, mesh = document["skins"][person], document["meshes"][person]["primitives"][0]["attributes"]
    binding = arrays[skin["inverseBindMatrices"]].transpose(0, 2, 1)  # stored by columns
    moved = np.stack([world[node] @ bind for node, bind in zip(skin["joints"], binding, strict=True)])
    rest, joints, weights = (arrays[mesh[name]] for name in ("POSITION", "JOINTS_0", "WEIGHTS_0"))
    blended = np.einsum("vk,vkij->vij", weights.astype(np.float64), moved[joints])
    return np.einsum("vij,vj->vi", blended, np.concatenate([rest, np.ones((len(rest), 1))], 1))[:, :3]


def test_the_animation_moves_as_the_body_does(tmp_path: Path, tiny_body: BodyModel) -> None:
    motions = [motion(3, 5), motion(7, 5)]
    write_glb(tmp_path / "t.glb", motions, tiny_body)
    document, arrays = read_glb(tmp_path / "t.glb")
    for person, each in enumerate(motions):
        turns = torch.from_numpy(each.rotations)
        betas = torch.from_numpy(each.betas).expand(5, -1)
        posed = tiny_body(BodyParams(turns[:, :1], turns[:, 1:], betas))
        centred = (posed.vertices - posed.joints[:, :1]).numpy() + each.root[:, None]
        for key in range(5):
            found = skinned(document, arrays, person, key)
            assert np.abs(found - centred[key] * [1, -1, -1]).max() < 1e-4
    times = arrays[document["animations"][0]["samplers"][0]["input"]]
    assert np.allclose(times, np.arange(5) / 30)


def test_neighbouring_quaternions_lie_on_the_same_side(tmp_path: Path, tiny_body: BodyModel) -> None:
    """A full turn in 40 steps: interpolation must never take the long way round."""
    angles = torch.linspace(0, 2 * torch.pi, 41)[:, None] * torch.tensor([0.0, 1, 0])
    turns = axis_angle_to_matrix(angles)[:, None].repeat(1, 24, 1, 1).numpy()
    made = Motion(0, np.arange(41) / 30, turns, np.zeros((41, 3)), np.zeros(10))
    write_glb(tmp_path / "t.glb", [made], tiny_body)
    document, arrays = read_glb(tmp_path / "t.glb")
    animation = document["animations"][0]
    for channel in animation["channels"]:
        if channel["target"]["path"] == "rotation":
            values = arrays[animation["samplers"][channel["sampler"]]["output"]]
            assert ((values[1:] * values[:-1]).sum(1) > 0.99).all()


@pytest.mark.parametrize("frames", [1, 4])
def test_other_software_reads_it(tmp_path: Path, tiny_body: BodyModel, frames: int) -> None:
    write_glb(tmp_path / "t.glb", [motion(3, frames)], tiny_body)
    scene = trimesh.load(tmp_path / "t.glb")
    (mesh,) = scene.geometry.values()
    assert mesh.vertices.shape == (tiny_body.num_vertices, 3)
    assert np.array_equal(mesh.faces, tiny_body.faces)
    assert ("animations" in read_glb(tmp_path / "t.glb")[0]) == (frames > 1)


def test_people_are_shown_only_while_they_are_there(tmp_path: Path, tiny_body: BodyModel) -> None:
    write_glb(tmp_path / "t.glb", [motion(0, 30), motion(1, 10, start=0.2)], tiny_body)
    document, arrays = read_glb(tmp_path / "t.glb")
    animation = document["animations"][0]
    (shown,) = (each for each in animation["channels"] if each["target"]["path"] == "scale")
    sampler = animation["samplers"][shown["sampler"]]
    assert sampler["interpolation"] == "STEP" and shown["target"]["node"] == document["skins"][1]["joints"][0]
    assert np.allclose(arrays[sampler["input"]], [0, 0.2, 0.5], atol=1e-6)
    assert arrays[sampler["output"]][:, 0].tolist() == [0, 1, 0]
