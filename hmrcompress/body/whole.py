"""SMPL-X's joints, and a whole body that stands for SMPL-X where there is no file of it.

SMPL-X's files may not be shipped. What merging moves is measured in millimetres all the same: on the starter body with
a hand of sticks (`body.hand`) at each wrist. A file of SMPL-X is read like any body.
"""

from __future__ import annotations

import numpy as np
import torch

from hmrcompress.body.files import starter_body
from hmrcompress.body.hand import HAND_JOINTS, HAND_PARENTS, stick_hand
from hmrcompress.body.joints import SMPL_JOINTS, SMPL_PARENTS, joint
from hmrcompress.body.model import BodyModel

BODY_JOINTS = 22
"""SMPL's joints but for its two hands."""
FINGERS = HAND_JOINTS[1:]
WHOLE_JOINTS = (
    *SMPL_JOINTS[:BODY_JOINTS],
    "jaw",
    "left_eye",
    "right_eye",
    *(f"left_{name}" for name in FINGERS),
    *(f"right_{name}" for name in FINGERS),
)
"""SMPL-X's order (Pavlakos et al. 2019)."""
FACE = tuple(WHOLE_JOINTS.index(name) for name in ("jaw", "left_eye", "right_eye"))
WRISTS = (joint("left_wrist"), joint("right_wrist"))
BETAS = 16


def _parents() -> tuple[int, ...]:
    parents = [*SMPL_PARENTS[:BODY_JOINTS], *(joint("head") for _ in FACE)]
    for wrist in WRISTS:
        first = len(parents) - 1
        parents += [wrist if parent == 0 else first + parent for parent in HAND_PARENTS[1:]]
    return tuple(parents)


WHOLE_PARENTS = _parents()


def whole_body() -> BodyModel:
    """The starter body with SMPL-X's 55 joints, metres: its surface, and behind it the 21 points of each hand. Jaw and
    eyes turn nothing and lie in the head's joint; hands go where the wrists go, and the last six of 16 betas change
    nothing."""
    body, hand = starter_body(torch.float64), stick_hand()
    points, joints = hand.v_template.double().numpy(), len(WHOLE_JOINTS)
    template, regressor = body.v_template.numpy(), np.zeros((joints, body.num_vertices + 2 * len(points)))
    shapes, weights = body.shapedirs.numpy(), np.zeros((regressor.shape[1], joints))
    count = body.num_vertices
    regressor[:BODY_JOINTS, :count] = body.joint_regressor.numpy()[:BODY_JOINTS]
    regressor[list(FACE), :count] = body.joint_regressor.numpy()[joint("head")]
    weights[:count, :BODY_JOINTS] = body.weights.numpy()[:, :BODY_JOINTS]
    surfaces, directions = [template], [shapes]
    for side, wrist in enumerate(WRISTS):
        weights[:count, wrist] += body.weights.numpy()[:, BODY_JOINTS + side]
        first, fingers = count + side * len(points), BODY_JOINTS + len(FACE) + side * len(FINGERS)
        outwards = points * ((1.0, 1.0, 1.0) if side == 0 else (-1.0, 1.0, 1.0))
        surfaces.append(body.joint_template.numpy()[wrist] + outwards)
        directions.append(np.broadcast_to(body.joint_shapedirs.numpy()[wrist], (len(points), 3, shapes.shape[2])))
        owners = hand.weights.numpy().argmax(1)  # 0 is the wrist
        columns = np.where(owners == 0, wrist, fingers + owners - 1)
        weights[first + np.arange(len(points)), columns] = 1.0
        regressor[fingers + np.arange(len(FINGERS)), first + 1 + np.arange(len(FINGERS))] = 1.0
    longer = np.zeros((len(weights), 3, BETAS))
    longer[..., : shapes.shape[2]] = np.concatenate(directions)
    faces = [body.faces, *(hand.faces + count + side * len(points) for side in range(2))]
    return BodyModel(
        name="starter body with stick hands",
        faces=np.concatenate(faces),
        v_template=np.concatenate(surfaces),
        shapedirs=longer,
        joint_regressor=regressor,
        weights=weights,
        parents=WHOLE_PARENTS,
    )
