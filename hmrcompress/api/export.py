"""`hmrcompress.export_onnx`: from names and paths to ONNX files of a network and of its temporal decoder."""

from __future__ import annotations

from pathlib import Path

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
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.exporting.decoder_onnx import export_decoder as export_temporal_decoder
from hmrcompress.exporting.onnx import OnnxExport, check_files
from hmrcompress.exporting.onnx import export_onnx as export_network
from hmrcompress.io.outputs import OutputRule
from hmrcompress.runtime import Progress, no_progress

PARITY_CROPS = 5


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
    checkpoint = load(model, seed=seed)
    surface = body_for(checkpoint, body)
    crops = open_data(data, body=surface, clips=1 if of_starter(data) else None, progress=progress)
    source = open_masks(masks)
    network = compressed_network(checkpoint, source if checkpoint.tokens else None)
    needed = source if checkpoint.tokens else None
    chosen = parity_frames(crops, limit or batch_size)
    batch = next(crops.batches(chosen, len(chosen), needed, truth=False))
    about = {
        "model": checkpoint.name,
        "checkpoint": checkpoint.reference.model_dump(mode="json"),
        "plan": None if checkpoint.plan is None else checkpoint.plan.to_dict(),
        "parity_data": {"name": crops.name, "split": crops.split, "sha256": crops.sha256},
    }
    sizes = sorted({1, batch_size})
    return export_network(network, out, batch, surface, batch_sizes=sizes, dtype=dtype, about=about, overwrite=outputs)


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
