"""`hmrcompress.export, export_onnx`: from names and paths to files for other run times, of a network and of its
temporal decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.api.opening import (
    Body,
    Data,
    Masks,
    Model,
    body_for,
    compressed_network,
    load,
    of_starter,
    open_data,
    open_masks,
)
from hmrcompress.api.opening_decoder import decoder_for
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.errors import UserError
from hmrcompress.exporting.decoder_onnx import export_decoder as export_temporal_decoder
from hmrcompress.exporting.folder import BUDGET_MM, KIND, ExportedFolder, export_folder
from hmrcompress.exporting.onnx import OnnxExport, check_files
from hmrcompress.exporting.onnx import export_onnx as export_network
from hmrcompress.exporting.runtimes.registry import require_precision
from hmrcompress.io.outputs import OutputRule
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import Progress, no_progress

PARITY_CROPS = 5
CALIBRATION_CROPS = 16
"""On which ranges and damage of 8 bits are found: others than those that are compared."""


def export_onnx(
    model: Model,
    out: Path | str,
    *,
    data: Data = "starter:val",
    masks: Masks = "data",
    body: Body = "starter",
    batch_size: int = PARITY_CROPS,
    limit: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> OnnxExport:
    """Writes ONNX with layers and tokens merged, in float32 or float16. See `exporting.onnx`.

    The file is compared with torch at batch 1 and `batch_size` on `limit` (by default `batch_size`) crops of `data`.

    Raises UserError, also as `io.outputs`, and HMRCompressError where the file would differ from the network.
    """
    outputs = OutputRule.of(overwrite, model, data)
    check_files(Path(out), outputs)
    given = _given(model, data, masks, body, limit or batch_size, seed, progress)
    about = {
        "model": given.checkpoint.name,
        "checkpoint": given.checkpoint.reference.model_dump(mode="json"),
        "plan": None if given.checkpoint.plan is None else given.checkpoint.plan.to_dict(),
        "parity_data": given.parity_data,
    }
    return export_network(
        given.network,
        out,
        given.batch,
        given.body,
        batch_sizes=sorted({1, batch_size}),
        dtype=dtype,
        about=about,
        overwrite=outputs,
    )


def export(
    model: Model,
    out: Path | str,
    *,
    runtime: str = "onnx",
    precision: str = "float32",
    budget_mm: float = BUDGET_MM,
    data: Data = "starter:val",
    masks: Masks = "data",
    body: Body = "starter",
    batch_size: int = PARITY_CROPS,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> ExportedFolder:
    """Writes the folder of a network for a runtime (`onnx`, `openvino`, …), with its temporal decoder, which predict,
    eval, bench and profile take as a model. In int8 joints move by `budget_mm` at most (`exporting.int8`), on crops
    that were not calibrated on. See `exporting.folder`; the rest as of `export_onnx`."""
    outputs = OutputRule.of(overwrite, model, data)
    require_precision(runtime, precision).check(precision)
    outputs.check_folder(out, KIND)
    if not budget_mm > 0:
        raise UserError(f"got {budget_mm:g}, expected millimetres above 0", "--budget-mm")
    calibrated = CALIBRATION_CROPS if precision == "int8" else 0
    given = _given(model, data, masks, body, limit or batch_size, seed, progress, calibrated)
    return export_folder(
        given.network,
        out,
        given.batch,
        given.body,
        given.checkpoint,
        runtime=runtime,
        precision=precision,
        batch_sizes=sorted({1, batch_size}),
        budget_mm=budget_mm,
        calibration=given.calibration,
        parity_data=given.parity_data,
        overwrite=outputs,
        progress=progress,
    )


@dataclass(frozen=True)
class _Given:
    """What a file is made of: the network as it is to run, and the crops on which it is compared."""

    checkpoint: Checkpoint
    network: HMR2
    body: BodyModel
    crops: CropSet
    batch: FrameBatch
    calibration: FrameBatch | None = None

    @property
    def parity_data(self) -> dict[str, Any]:
        """What names the crops."""
        return {"name": self.crops.name, "split": self.crops.split, "sha256": self.crops.sha256}


def _given(
    model: Model, data: Data, masks: Masks, body: Body, count: int, seed: int, progress: Progress, calibrated: int = 0
) -> _Given:
    checkpoint = load(model, seed=seed)
    surface = body_for(checkpoint, body)
    clips = 1 if of_starter(data) else None
    crops = open_data(data, body=surface, clips=clips, size=checkpoint.config.crop, progress=progress)
    source = open_masks(masks)
    needed = source if checkpoint.tokens else None
    network = compressed_network(checkpoint, needed)
    chosen = parity_frames(crops, count)
    batch = next(crops.batches(chosen, len(chosen), needed, truth=False))
    calibration = None
    if calibrated:
        others = np.setdiff1d(evenly(crops.stretches(), count + calibrated), chosen)
        if len(others) < 2:
            raise UserError(f"holds {len(crops.stretches())} crops, 8 bits need others to calibrate on", str(data))
        calibration = next(crops.batches(others, len(others), needed, truth=False))
    return _Given(checkpoint, network, surface, crops, batch, calibration)


def parity_frames(crops: CropSet, count: int = PARITY_CROPS) -> np.ndarray:
    """Indices of the crops on which a file is compared with torch."""
    return evenly(crops.stretches(), count)


def export_decoder(
    model: Model, out: Path | str, *, steps: int = 1, seed: int = 0, overwrite: bool | OutputRule = False
) -> OnnxExport:
    """Writes the temporal decoder of a model as ONNX of its own, float32: a window of features in, pose numbers out.
    See `exporting.decoder_onnx`. Raises UserError, also for a model without one, and as `io.outputs`."""
    outputs = OutputRule.of(overwrite, model)
    check_files(Path(out), outputs)
    checkpoint = load(model, seed=seed)
    about = {"model": checkpoint.name, "checkpoint": checkpoint.reference.model_dump(mode="json")}
    return export_temporal_decoder(decoder_for(checkpoint), out, steps=steps, about=about, overwrite=outputs)
