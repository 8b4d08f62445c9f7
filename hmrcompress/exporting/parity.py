"""How far an exported file is from the network it came from: difference of any output, and of joints in mm.

In float32 the largest difference over all crops is bounded. In 16 bits the median over crops is: which of two nearly
equal pairs of tokens is merged may fall the other way there, and such a crop then moves by what that choice is worth.
In 8 bits the median has the budget that was given for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hmrcompress.body.model import BodyModel
from hmrcompress.data.conditions import check_condition
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting.session import open_session
from hmrcompress.models.network import HMR2
from hmrcompress.records import CROP, BodyParams, FrameBatch
from hmrcompress.runtime import dtype_name

OUTPUTS = ("global_orient", "body_pose", "betas", "cam", "features")
"""The last one is what a temporal decoder reads; it has no scale of its own, so its differences count by its size."""
MAX_ABS = 1e-3
MAX_JOINTS_MM = 0.1
HALF_ABS = 1e-2
HALF_JOINTS_MM = 2.0
HALF = ("float16", "bfloat16")
BATCH_SIZES = (1, 5)


class Difference(NamedTuple):
    """Over crops: of the largest difference of any output of a crop, and of its largest distance of any joint."""

    max_abs_diff: float
    joints_mm: float


@dataclass(frozen=True)
class Parity:
    """The largest absolute difference of any output, the largest distance of any joint; over how many crops; and the
    same as the median over crops, where it was measured."""

    max_abs_diff: float
    joints_mm: float
    crops: int
    batch_sizes: tuple[int, ...]
    median: Difference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        median = None if self.median is None else self.median._asdict()
        return asdict(self) | {"batch_sizes": list(self.batch_sizes), "median": median}

    @property
    def finite(self) -> bool:
        """Whether every output of both was a number."""
        return math.isfinite(self.max_abs_diff) and math.isfinite(self.joints_mm)

    def require(
        self, where: object, dtype: torch.dtype | str = torch.float32, *, budget_mm: float | None = None
    ) -> None:
        """HMRCompressError unless the difference is below its bound (NaN never is): the largest one below `MAX_ABS`
        and `MAX_JOINTS_MM`; in float16 and bfloat16 the median below `HALF_ABS` and `HALF_JOINTS_MM`, and the largest
        finite; with `budget_mm` (of int8) the median of the joints at most that, and all finite."""
        name = dtype if isinstance(dtype, str) else dtype_name(dtype)
        seen, bounds, what = Difference(self.max_abs_diff, self.joints_mm), (MAX_ABS, MAX_JOINTS_MM), ""
        finite = True
        if (name in HALF or budget_mm is not None) and self.median is not None:
            finite = self.finite
            seen, bounds, what = self.median, (HALF_ABS, HALF_JOINTS_MM), " (median over crops)"
        if budget_mm is not None:
            if not (finite and seen.joints_mm <= budget_mm):
                raise HMRCompressError(
                    f"{where}: joints of the exported network are {seen.joints_mm:.2g} mm from torch{what}, the budget "
                    f"is {budget_mm:g} mm; nothing was written."
                )
        elif not (finite and seen.max_abs_diff < bounds[0] and seen.joints_mm < bounds[1]):
            raise HMRCompressError(
                f"{where}: the exported network differs from torch by {seen.max_abs_diff:.2g} "
                f"and {seen.joints_mm:.2g} mm on joints{what}, allowed are {bounds[0]:g} and {bounds[1]:g} mm; "
                "nothing was written."
            )


class GraphNetwork:
    """An exported graph behind the call of a network: crops in, `OUTPUTS` out. run: what runs it, arrays by name in and
    arrays by name out; names: of its inputs; grid: of its tokens."""

    def __init__(
        self,
        run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
        names: Sequence[str],
        grid: tuple[int, int] = CROP.grid,
    ) -> None:
        self.run, self.grid = run, grid
        self.takes_mask, self.takes_condition = "person_mask" in names, "condition" in names

    def __call__(
        self, images: Tensor, person_mask: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """images (B,3,H,W) float32, person_mask (B,*grid) bool (None: nobody), condition (B,3) float32 -> outputs
        by name. UserError where a condition is needed, but not given."""
        given = {name: tensor.numpy() for name, tensor in self.inputs(images, person_mask, condition).items()}
        return {name: torch.from_numpy(array) for name, array in self.run(given).items()}

    def inputs(
        self, images: Tensor, person_mask: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What a network is called with, as inputs of the graph by name; see `__call__`. Raises UserError."""
        given = {"images": images}
        if self.takes_condition:
            given["condition"] = check_condition(condition, len(images))
        if self.takes_mask:
            given["person_mask"] = mask_or_nobody(images, person_mask, self.grid)
        return given


class OnnxNetwork(GraphNetwork):
    """An ONNX file of ours through onnxruntime in this process, on the CPU, or through a `session` of that file."""

    def __init__(self, path: Path, session: Any = None, grid: tuple[int, int] = CROP.grid) -> None:
        self.session = open_session(path) if session is None else session
        super().__init__(self._run, [given.name for given in self.session.get_inputs()], grid)

    def _run(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUTS, self.session.run(list(OUTPUTS), dict(given)), strict=True))


def mask_or_nobody(images: Tensor, person_mask: Tensor | None, grid: tuple[int, int] = CROP.grid) -> Tensor:
    """The mask, or one of zeros (B, *grid): no token belongs to a person."""
    return torch.zeros(len(images), *grid, dtype=torch.bool) if person_mask is None else person_mask


@torch.no_grad()
def measure(
    network: HMR2, exported: GraphNetwork, batch: FrameBatch, body: BodyModel, sizes: Sequence[int] = BATCH_SIZES
) -> Parity:
    """Runs both over the crops of `batch` (CPU, float32), once for every batch size. UserError for too few crops."""
    count = len(batch.images)
    if count < max(sizes):
        raise UserError(f"got {count} crops, the comparison at batch {max(sizes)} needs as many", "export")
    gaps: list[Tensor] = []
    distances: list[Tensor] = []
    for size in sizes:
        for start in range(0, count, size):
            part = slice(start, start + size)
            inputs = [None if given is None else given[part] for given in batch.inputs()]
            reference, other = network(*inputs), exported(*inputs)  # type: ignore[arg-type]
            each = [_gap(name, getattr(reference, name), other[name]) for name in OUTPUTS]
            moved = body.joints(reference.params) - body.joints(BodyParams(*(other[name] for name in OUTPUTS[:3])))
            gaps.append(torch.stack(each).amax(0))
            distances.append(moved.norm(dim=-1).amax(1) * 1000.0)
    gap, distance = torch.cat(gaps).double(), torch.cat(distances).double()
    median = Difference(gap.median().item(), distance.median().item())
    return Parity(gap.max().item(), distance.max().item(), count, tuple(sizes), median)


def _gap(name: str, reference: Tensor, other: Tensor) -> Tensor:
    """The largest difference of an output for each crop (B,); of features in parts of the largest one, if above 1."""
    scale = reference.abs().max().clamp(min=1.0) if name == "features" else 1.0
    return (reference - other).abs().flatten(1).amax(1) / scale
