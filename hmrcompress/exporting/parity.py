"""How far an exported file is from the network it came from: largest difference of any output, and of joints in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import HMRCompressError, MissingExtra, UserError
from hmrcompress.models.network import HMR2
from hmrcompress.records import BodyParams, FrameBatch

OUTPUTS = ("global_orient", "body_pose", "betas", "cam")
MAX_ABS = 1e-3
MAX_JOINTS_MM = 0.1
BATCH_SIZES = (1, 5)


@dataclass(frozen=True)
class Parity:
    """The largest absolute difference of any output, the largest distance of any joint; over how many crops."""

    max_abs_diff: float
    joints_mm: float
    crops: int
    batch_sizes: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"batch_sizes": list(self.batch_sizes)}

    def require(self, where: object) -> None:
        """HMRCompressError where the difference is not below `MAX_ABS` and `MAX_JOINTS_MM` (NaN never is)."""
        if not (self.max_abs_diff < MAX_ABS and self.joints_mm < MAX_JOINTS_MM):
            raise HMRCompressError(
                f"{where}: the exported network differs from torch by {self.max_abs_diff:.2g} "
                f"and {self.joints_mm:.2g} mm on joints, allowed are {MAX_ABS:g} and {MAX_JOINTS_MM:g} mm; "
                "nothing was written."
            )


class OnnxNetwork:
    """An exported file behind the call of a network: crops in, `OUTPUTS` out, through onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime", "export") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.takes_mask = any(given.name == "person_mask" for given in self.session.get_inputs())

    def __call__(self, images: Tensor, person_mask: Tensor | None = None) -> dict[str, Tensor]:
        """images (B,3,256,192) float32, person_mask (B,16,12) bool (None: nobody) -> outputs by name."""
        given = {"images": images.numpy()}
        if self.takes_mask:
            given["person_mask"] = mask_or_nobody(images, person_mask).numpy()
        return dict(zip(OUTPUTS, map(torch.from_numpy, self.session.run(list(OUTPUTS), given)), strict=True))


def mask_or_nobody(images: Tensor, person_mask: Tensor | None, grid: tuple[int, int] = (16, 12)) -> Tensor:
    """The mask, or one of zeros (B, *grid): no token belongs to a person."""
    return torch.zeros(len(images), *grid, dtype=torch.bool) if person_mask is None else person_mask


@torch.no_grad()
def measure(
    network: HMR2, exported: OnnxNetwork, batch: FrameBatch, body: BodyModel, sizes: Sequence[int] = BATCH_SIZES
) -> Parity:
    """Runs both over the crops of `batch` (CPU, float32), once for every batch size. UserError for too few crops."""
    count = len(batch.images)
    if count < max(sizes):
        raise UserError(f"got {count} crops, the comparison at batch {max(sizes)} needs as many", "export")
    max_abs, joints_mm = 0.0, 0.0
    for size in sizes:
        for start in range(0, count, size):
            part = slice(start, start + size)
            mask = None if batch.person_mask is None else batch.person_mask[part]
            reference, other = network(batch.images[part], mask), exported(batch.images[part], mask)
            gaps = [(getattr(reference, name) - other[name]).abs().max().item() for name in OUTPUTS]
            moved = body.joints(reference.params) - body.joints(BodyParams(*(other[name] for name in OUTPUTS[:3])))
            max_abs = _largest(max_abs, *gaps)
            joints_mm = _largest(joints_mm, moved.norm(dim=-1).max().item() * 1000.0)
    return Parity(max_abs, joints_mm, count, tuple(sizes))


def _largest(*values: float) -> float:
    """The largest value; NaN if any is."""
    return torch.tensor(values, dtype=torch.float64).max().item()
