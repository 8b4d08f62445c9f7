"""The points that a protocol compares: of predictions, and of the ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from hmrcompress.body.files import refuse_starter, require_topology
from hmrcompress.body.model import BodyModel
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.io.hashes import sha256_arrays
from hmrcompress.io.npz import is_npy, read_npy, read_npz
from hmrcompress.metrics.points import ROWS, STARTER24, Protocol
from hmrcompress.records import BodyOutput, BodyParams, FrameBatch

GENDERS = ("neutral", "male", "female")
"""By the numbers that batches give genders."""


class ScoringBody(Interface):
    """What a score asks of a body model; `body.model.BodyModel` is one."""

    def joints(self, params: BodyParams) -> Tensor:
        """(B,J,3) metres."""

    def __call__(self, params: BodyParams) -> BodyOutput:
        """Vertices and joints."""


class Measure:
    """How points are had from parameters under a protocol.

    body: the neutral body, whose parameters are predicted. gendered: the bodies `male` and `female`, where the protocol
    wants them. regressor: (17,V) or (19,V) for the protocols that need one, see `read_regressor`. All on one device.
    """

    def __init__(
        self,
        body: ScoringBody,
        protocol: Protocol = STARTER24,
        *,
        gendered: Mapping[str, BodyModel] | None = None,
        regressor: Tensor | None = None,
    ) -> None:
        """UserError where the protocol needs a regressor and there is none, or one with another number of rows."""
        self._body, self.protocol = body, protocol
        self.gendered = dict(gendered or {})
        self._regressor = regressor
        rows = ROWS.get(protocol.source)
        if rows and (regressor is None or len(regressor) != rows):
            had = "" if regressor is None else f", got one of {len(regressor)}"
            raise UserError(
                f"protocol {protocol.name} needs a joint regressor of {rows} rows{had}", "--regressor", REMEDIES[rows]
            )

    @property
    def body(self) -> BodyModel:
        """The neutral body. ShapeError where it was made from something else than a body model."""
        if not isinstance(self._body, BodyModel):
            raise ShapeError(f"got a {type(self._body).__name__}, expected a body model", "measure")
        return self._body

    @property
    def has_true_vertices(self) -> bool:
        """Whether the ground truth has a surface, so that there is a PVE."""
        return self.protocol.truth == "body"

    def identity(self) -> dict[str, Any]:
        """What is measured by: the protocol, and hashes of bodies and regressor. ShapeError as `body`."""
        found: dict[str, Any] = {"protocol": asdict(self.protocol), "body": self.body.sha256}
        found |= {f"body_{name}": body.sha256 for name, body in self.gendered.items()}
        if self._regressor is not None:
            found["regressor"] = sha256_arrays({"": self._regressor})
        return found

    def check_genders(self, found: set[int], where: object) -> None:
        """UserError where the protocol wants gendered ground truth and the bodies for these genders (numbers; empty:
        not known) are not there."""
        if not self.protocol.gendered:
            return
        if not found:
            fault = f"protocol {self.protocol.name} compares gendered ground truth, and the data do not say the gender"
            raise UserError(fault, where, "Choose another --protocol")
        missing = [GENDERS[number] for number in sorted(found) if number and GENDERS[number] not in self.gendered]
        if missing:
            names = ", ".join(f"SMPL_{name.upper()}" for name in missing)
            fault = f"protocol {self.protocol.name} compares gendered ground truth, and there is no {names}"
            raise UserError(fault, "--body", "Name a folder with SMPL_NEUTRAL, SMPL_MALE and SMPL_FEMALE")

    def predicted(self, params: BodyParams, *, vertices: bool = True) -> BodyOutput:
        """The points of predicted bodies: joints (B,J,3), those of the protocol's source, and vertices (B,V,3), without
        `vertices` (B,0,3). Metres, in the camera frame, no translation."""
        return self._points(self._body, params, vertices)

    def truth(self, batch: FrameBatch, *, vertices: bool = True) -> BodyOutput:
        """The points of the ground truth, likewise. UserError where the batch does not hold what the protocol needs."""
        if self.protocol.truth == "keypoints":
            if batch.keypoints is None:
                raise UserError(f"protocol {self.protocol.name} needs keypoints, which the data lack", "ground truth")
            return BodyOutput(batch.keypoints.new_zeros(len(batch.keypoints), 0, 3), batch.keypoints)
        if not self.protocol.gendered or batch.gender is None or not bool(batch.gender.any()):
            return self._points(self._body, batch.params, vertices)
        return self._of_genders(batch.params, batch.gender, vertices)

    def joints(self, params: BodyParams) -> Tensor:
        """Predicted points alone, (B,J,3)."""
        return self.predicted(params, vertices=False).joints

    def __call__(self, params: BodyParams) -> BodyOutput:
        """`predicted` with vertices."""
        return self.predicted(params)

    def true_joints(self, batch: FrameBatch) -> Tensor:
        """True points alone, (B,J,3)."""
        return self.truth(batch, vertices=False).joints

    def _of_genders(self, params: BodyParams, gender: Tensor, vertices: bool) -> BodyOutput:
        found: list[tuple[Tensor, BodyOutput]] = []
        for number in gender.unique().tolist():
            rows = torch.nonzero(gender == number)[:, 0]
            body = self.gendered[GENDERS[number]] if number else self._body
            part = BodyParams(params.global_orient[rows], params.body_pose[rows], params.betas[rows])
            found.append((rows, self._points(body, part, vertices)))
        back = torch.cat([rows for rows, _ in found]).argsort()
        surfaces, joints = ([getattr(made, name) for _, made in found] for name in ("vertices", "joints"))
        return BodyOutput(torch.cat(surfaces)[back], torch.cat(joints)[back])

    def _points(self, body: ScoringBody, params: BodyParams, vertices: bool) -> BodyOutput:
        if self.protocol.source == "kinematic":
            if vertices:
                return body(params)
            joints = body.joints(params)
            return BodyOutput(joints.new_zeros(len(joints), 0, 3), joints)
        surface = body(params).vertices
        weights = self._regressor
        if self.protocol.source == "own regressor":
            weights = body.joint_regressor if isinstance(body, BodyModel) else None
        if weights is None or weights.shape[1] != surface.shape[1]:
            raise ShapeError(f"no regressor for a surface of {surface.shape[1]} vertices", self.protocol.name)
        joints = torch.einsum("jv,bvc->bjc", weights.to(surface), surface)
        return BodyOutput(surface if vertices else surface[:, :0], joints)


REMEDIES = {
    17: "Give J_regressor_h36m.npy, which comes with SPIN's and most later code",
    19: "Give SMPL_to_J19, which comes with 4D-Humans' data",
}


def read_regressor(path: Path | str, body: BodyModel) -> Tensor:
    """A joint regressor from a .npy, an .npz (its array `J_regressor` or its only matrix) or a pickle of one: (J,V).

    An .npz may hold `faces_sha256` of the surface that it was made for; without it, it is taken to be made for SMPL.
    UserError for a file that is missing, damaged, no matrix of finite numbers, for another number of vertices, or made
    for another surface than that of `body`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path)
    arrays = _arrays(path)
    faces = arrays.pop("faces_sha256", None)
    matrices = {key: np.asarray(value) for key, value in arrays.items() if np.ndim(value) == 2}
    matrix = matrices.get("J_regressor", next(iter(matrices.values())) if len(matrices) == 1 else None)
    if matrix is None or matrix.dtype.kind not in "fiu" or not np.isfinite(matrix).all():
        raise UserError("does not hold one matrix of finite numbers, (joints, vertices)", path)
    if faces is not None:
        require_topology(body, str(faces), f"the regressor {path}")
    else:
        refuse_starter(body, f"the regressor {path}")
    if matrix.shape[1] != body.num_vertices:
        raise UserError(f"is for {matrix.shape[1]} vertices, the body {body.name} has {body.num_vertices}", path)
    return torch.tensor(matrix.astype(np.float64), dtype=body.v_template.dtype, device=body.v_template.device)


def _arrays(path: Path) -> dict[str, Any]:
    if path.suffix in (".pkl", ".pickle"):
        from hmrcompress.io.array_pickles import read_values

        found = read_values(path)
        return dict(found) if isinstance(found, dict) else {"J_regressor": found}
    if is_npy(path):
        return {"J_regressor": read_npy(path)}
    return dict(read_npz(path))
