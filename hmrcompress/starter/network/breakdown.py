"""Where the starter network errs: by joint, by occlusion, by kind of motion; and what each of its layers is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.metrics.pose import Scores, network_predict, score
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.runtime import Progress, no_progress

OCCLUSION_EDGES = (0.0, 0.05, 0.15, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Part:
    """The mean errors in mm of some of the frames."""

    name: str
    frames: int
    mpjpe_mm: float
    pa_mpjpe_mm: float


def by_joint(scores: Scores) -> dict[str, float]:
    """Joint -> mean error in mm, the pelvis (0 by definition) left out."""
    return dict(zip(SMPL_JOINTS[1:], scores.per_joint_mm[1:].tolist(), strict=True))


def by_occlusion(scores: Scores, crops: CropSet) -> list[Part]:
    """The frames by how much of the person is hidden or cut off; empty bins are left out."""
    hidden = _column(scores, crops, "occluded")
    parts = []
    for low, high in zip(OCCLUSION_EDGES[:-1], OCCLUSION_EDGES[1:], strict=True):
        inside = (hidden >= low) & ((hidden < high) | (high == OCCLUSION_EDGES[-1]))
        parts += _part(scores, inside, f"{low:.0%} – {high:.0%}")
    return parts


def by_kind(scores: Scores, crops: CropSet) -> list[Part]:
    """The frames by kind of motion, the worst first."""
    kind = _column(scores, crops, "kind")
    parts = [part for number, name in enumerate(crops.meta["kinds"]) for part in _part(scores, kind == number, name)]
    return sorted(parts, key=lambda part: -part.mpjpe_mm)


def drop_costs(
    network: HMR2, crops: CropSet, indices: NDArray[np.int64], body: BodyModel, progress: Progress = no_progress
) -> list[float]:
    """What leaving out each single layer adds to the MPJPE in mm on these frames. The network is on the CPU."""
    depth = network.config.depth

    def error(left_out: int | None) -> float:
        rest = network if left_out is None else without_layer(network, left_out)
        batches = crops.batches(indices)
        return score(network_predict(rest), batches, body=body, pve=False).mpjpe_mm

    whole = error(None)
    costs = []
    for layer in range(depth):
        progress("leaving out single layers", layer, depth)
        costs.append(error(layer) - whole)
    return costs


def without_layer(network: HMR2, layer: int) -> HMR2:
    """The network without one of its layers; weights are shared."""
    state = {}
    for name, tensor in network.state_dict().items():
        if name.startswith("backbone.blocks."):
            number, _, rest = name.removeprefix("backbone.blocks.").partition(".")
            if int(number) == layer:
                continue
            name = f"backbone.blocks.{int(number) - (int(number) > layer)}.{rest}"
        state[name] = tensor
    return from_state(replace(network.config, depth=network.config.depth - 1), state).eval()


def _column(scores: Scores, crops: CropSet, name: str) -> NDArray:
    """A column of the crops, row by row as the frames were scored."""
    place = {key: row for row, key in enumerate(zip(crops.clip.tolist(), crops.frame.tolist(), strict=True))}
    rows = [place[key] for key in zip(scores.clip.tolist(), scores.frame.tolist(), strict=True)]
    values = crops.column(name)
    assert values is not None
    return np.asarray(values)[rows]


def _part(scores: Scores, inside: NDArray[np.bool_], name: str) -> list[Part]:
    if not inside.any():
        return []
    mean, aligned = scores.per_frame[inside].mean(), scores.per_frame_pa[inside].mean()
    return [Part(name, int(inside.sum()), float(mean), float(aligned))]
