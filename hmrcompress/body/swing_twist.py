"""Analytic swing–twist inverse kinematics: SMPL's rotations <-> 29 joint locations (five are leaves) and 23 twists.

After HybrIK (Li et al. 2021, section 3.3). A joint's rotation is a twist about its bone in the rest pose, then the
swing, the shortest turn from that bone to the bone as it is seen. Joints are solved from the root outwards. Each is
aimed from the middle between where its location was seen and where the joints before it have put it (`FOLLOW`).

Rules where the bones say too much or too little; gradients are finite in all of them:

- Several children (pelvis, spine3): the rotation that fits all child bones in the least squares, so that noise of one
  child averages out. At spine3 the rotation that neck and twist give takes part as one more measurement; the pelvis
  has no twist. Where the bones are collinear, the swing and twist of the main child (spine1, neck) decide.
- Bone opposite to its rest direction, within `OPPOSITE`: the half turn about a fixed axis perpendicular to the rest
  bone, then the shortest turn from there. The twist is counted from that, so that the round trip stays exact.
- Bone shorter than `SHORTEST`. As seen: no swing. In the rest pose: no swing either, and the twist is about +y; what
  else the rotation held is lost.
- A (cos, sin) shorter than `SHORTEST` is no twist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmrcompress.body.joints import LEAF_PARENTS, SMPL_JOINTS, SMPL_PARENTS, joint
from hmrcompress.geometry.rotations import nearest_rotation

PARENTS = (*SMPL_PARENTS, *LEAF_PARENTS)
"""Parents of the 29 joints: SMPL's 24, then the leaves."""
CHILDREN = tuple(tuple(k for k, parent in enumerate(PARENTS) if parent == j) for j in range(len(SMPL_JOINTS)))
_CHOSEN = {joint("pelvis"): joint("spine1"), joint("spine3"): joint("neck")}
MAIN_CHILD = tuple(_CHOSEN.get(j, children[0]) for j, children in enumerate(CHILDREN))
"""The child whose bone a joint swings and twists about."""


def _levels() -> tuple[tuple[int, ...], ...]:
    """Joints by their depth in the tree: those of one depth are solved together."""
    levels: list[tuple[int, ...]] = [(0,)]
    while below := tuple(k for j in levels[-1] for k in CHILDREN[j] if k < len(CHILDREN)):
        levels.append(below)
    return tuple(levels)


LEVELS = _levels()
NO_TWIST = (1.0, 0.0)
SHORTEST = 1e-4
"""Metres (or length of a cos-sin pair) below which a direction is not trusted."""
OPPOSITE = -0.9999
"""Cosine below which a bone counts as opposite to its rest direction (0.8 degrees)."""
FOLLOW = 0.5
"""How far a joint is aimed from where it was put (1) rather than from where it was seen (0).

They differ where lengths do. 1 is best where the locations carry independent noise (12.9, 14.7 and 18.4 mm MPJPE at
1, 0.5 and 0 for noise of 10 mm a coordinate), 0 where bones are of systematically wrong length: another shape, or the
shortened bones of a regressed mean (132, 114 and 107 mm).
"""
TWIST_LEVER = 0.04
"""Metres: the rotation from neck and twist weighs at spine3 as bones of this length along all three axes would."""
COLLINEAR = 1e-4
"""Ratio of the second to the first singular value of the bones' correlation, below which they count as collinear."""


def swing(rest: Tensor, posed: Tensor) -> Tensor:
    """Shortest rotation that takes the direction of `rest` to that of `posed`; (...,3), (...,3) -> (...,3,3).

    A product of two half turns, about the bone and about the bisector, and so orthonormal to rounding at any angle.
    """
    start = _twist_axis(rest)
    end = torch.where(_short(rest), start, _direction(posed, start))
    opposite = (start * end).sum(-1, keepdim=True) < OPPOSITE
    first = torch.where(opposite, _perpendicular(start), start)
    bisector = torch.where(opposite, end - start, end + start)
    return _half_turn(torch.nn.functional.normalize(bisector, dim=-1)) @ _half_turn(first)


def twist(rest: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotation about the direction of `rest` (...,3) by the angle of `cos_sin` (...,2, any length) -> (...,3,3)."""
    axis = _twist_axis(rest)
    unit = _direction(cos_sin, cos_sin.new_tensor(NO_TWIST))
    cos, sin = unit[..., 0, None, None], unit[..., 1, None, None]
    eye = torch.eye(3, dtype=rest.dtype, device=rest.device)
    return cos * eye + sin * _skew(axis) + (1 - cos) * _outer(axis, axis)


def twists_of(rotations: Tensor, rest: Tensor) -> Tensor:
    """(cos, sin) of the twists of joints 1..23: rotations (...,24,3,3) relative to the parents, rest (...,29,3) metres.

    Returns (...,23,2). The twist is what is left when the swing is taken off; where the bone is too short to have a
    swing, the rotation about +y nearest to the joint's.
    """
    turned = rotations[..., 1:, :, :]
    bones = _bones(rest)[..., MAIN_CHILD[1:], :]
    axis = _twist_axis(bones)
    left = swing(bones, _turn(turned, bones)).mT @ turned
    cos = left.diagonal(dim1=-2, dim2=-1).sum(-1) - (axis * _turn(left, axis)).sum(-1)
    sin = (axis * _vee(left)).sum(-1)
    return _direction(torch.stack([cos, sin], -1), cos.new_tensor(NO_TWIST))


def inverse_kinematics(joints: Tensor, twists: Tensor, rest: Tensor) -> Tensor:
    """Rotations that pose the rest joints as seen, by the rules of this module.

    joints (N,29,3) metres, relative to joint 0 (whose own three numbers are not read); twists (N,23,2) cos and sin of
    any length; rest (N,29,3) metres, joints and leaves of the subject's template. The inputs need not be consistent.
    Returns (N,24,3,3): the root's rotation, then those of the other joints relative to their parents.
    """
    bones, seen = _bones(rest).unbind(1), joints.unbind(1)
    angles = (twists.new_tensor(NO_TWIST).expand_as(twists[:, 0]), *twists.unbind(1))
    identity = torch.eye(3, dtype=joints.dtype, device=joints.device).expand(len(joints), 3, 3)
    origin = {0: torch.zeros_like(seen[0])}
    turned = {-1: identity}
    local: dict[int, Tensor] = {}
    for level in LEVELS:
        above = torch.stack([turned[PARENTS[j]] for j in level], 1)
        bone = torch.stack([bones[MAIN_CHILD[j]] for j in level], 1)
        aim = torch.stack([seen[MAIN_CHILD[j]] - origin[j] for j in level], 1)
        angle = torch.stack([angles[j] for j in level], 1)
        found = swing(bone, _turn(above.mT, aim)) @ twist(bone, angle)
        whole = above @ found
        for index, j in enumerate(level):
            turned[j], local[j] = whole[:, index], found[:, index]
            if len(CHILDREN[j]) > 1:
                says_all = (
                    ~(_short(bone[:, index]) | _short(aim[:, index])) if j else torch.zeros_like(aim[:, index, :1])
                )
                turned[j] = _least_squares(
                    torch.stack([bones[k] for k in CHILDREN[j]], 1),
                    torch.stack([seen[k] - origin[j] for k in CHILDREN[j]], 1),
                    turned[j],
                    TWIST_LEVER**2 * says_all,
                )
                local[j] = above[:, index].mT @ turned[j]
            for k in CHILDREN[j]:
                origin[k] = torch.lerp(seen[k], origin[j] + _turn(turned[j], bones[k]), FOLLOW)
    return torch.stack([local[j] for j in range(len(CHILDREN))], 1)


def _least_squares(rest: Tensor, seen: Tensor, guess: Tensor, weight: Tensor) -> Tensor:
    """Rotation nearest to taking bones `rest` (N,K,3) to `seen`, with `guess` (N,3,3) as a measurement of weight (N,1).

    Wahba's problem, solved by Procrustes; `guess` decides where the sum does not determine a rotation.
    """
    correlation = seen.mT @ rest + weight[..., None] * guess
    rows = correlation.unbind(-2)
    minors = torch.stack([torch.linalg.cross(rows[i], rows[i - 1]) for i in range(3)], -2)
    squared = correlation.square().sum((-2, -1))
    undetermined = minors.square().sum((-2, -1)) <= (COLLINEAR * squared).square()
    return torch.where(undetermined[:, None, None], guess, nearest_rotation(correlation))


def _bones(rest: Tensor) -> Tensor:
    """Rest joints (...,29,3) -> each minus its parent; zeros for the root."""
    return rest - rest[..., [max(parent, 0) for parent in PARENTS], :]


def _twist_axis(rest: Tensor) -> Tensor:
    """Unit vectors along bones (...,3), +y for those that are too short."""
    return _direction(rest, rest.new_tensor([0.0, 1.0, 0.0]))


def _short(vector: Tensor) -> Tensor:
    """Whether vectors (...,3) are shorter than `SHORTEST`: (...,1)."""
    return vector.square().sum(-1, keepdim=True) < SHORTEST**2


def _direction(vector: Tensor, fallback: Tensor) -> Tensor:
    """Unit vectors along the last axis, `fallback` where they are shorter than `SHORTEST`, with no gradient there."""
    squared = vector.square().sum(-1, keepdim=True)
    short = squared < SHORTEST**2
    return torch.where(short, fallback, vector * torch.where(short, torch.ones_like(squared), squared).rsqrt())


def _perpendicular(unit: Tensor) -> Tensor:
    """A unit vector perpendicular to `unit` (...,3), fixed for each: from the axis that it is least along."""
    least = torch.nn.functional.one_hot(unit.abs().argmin(-1), 3).to(unit)
    return torch.nn.functional.normalize(torch.linalg.cross(unit, least), dim=-1)


def _turn(rotation: Tensor, vector: Tensor) -> Tensor:
    """(...,3,3), (...,3) -> (...,3)."""
    return (rotation @ vector[..., None]).squeeze(-1)


def _half_turn(unit: Tensor) -> Tensor:
    return 2 * _outer(unit, unit) - torch.eye(3, dtype=unit.dtype, device=unit.device)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


def _skew(v: Tensor) -> Tensor:
    """(...,3) -> (...,3,3): the matrix of the cross product with v."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def _vee(matrix: Tensor) -> Tensor:
    """(...,3,3) -> (...,3): the vector of its antisymmetric part, twice sin times the axis for a rotation."""
    skewed = matrix - matrix.mT
    return torch.stack([skewed[..., 2, 1], skewed[..., 0, 2], skewed[..., 1, 0]], -1)
