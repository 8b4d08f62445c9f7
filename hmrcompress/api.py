"""`hmrcompress.load, search, merge, evaluate, export_onnx`: one call each, from names and paths to results.

This is the one place where strings become objects. A model is `starter`, `random:FAMILY`, a checkpoint file or a
compressed folder; data are `starter[:split]`, `crops:PATH` or a path; a body is `starter` or a file; masks are `data`,
`files:DIR` or `none`. Whoever has the objects already may hand them in instead.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from hmrcompress.body.files import load_body, starter_body
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, evenly
from hmrcompress.data.masks import MaskSource, mask_source
from hmrcompress.errors import UserError
from hmrcompress.evaluation.evaluate import Evaluation, stages_of
from hmrcompress.evaluation.evaluate import evaluate as evaluate_stages
from hmrcompress.evaluation.similarity import layer_similarity as similarity_of_layers
from hmrcompress.exporting.onnx import OnnxExport
from hmrcompress.exporting.onnx import export_onnx as export_network
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.merge import merge_checkpoint
from hmrcompress.metrics.pose import PROTOCOLS, Protocol
from hmrcompress.models.folder import Folder
from hmrcompress.models.load import Checkpoint, load_checkpoint, random_checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.plan import Plan
from hmrcompress.runtime import Progress, no_progress, pick_device
from hmrcompress.searching.search import SearchResult, SearchSettings
from hmrcompress.searching.search import search as search_plan

STARTER_MODEL = Path(__file__).parent / "assets" / "starter"

Model = str | Path | Checkpoint
Body = str | Path | BodyModel
Data = str | Path | CropSet
Masks = str | MaskSource
Module = TypeVar("Module", bound=nn.Module)


def load(
    model: Model, *, num_heads: int | None = None, head_heads: int | None = None, seed: int = 0, verify: bool = True
) -> Checkpoint:
    """Opens a model: `starter`, `random:FAMILY` (with `seed`), a checkpoint file or a compressed folder, on the CPU.

    `.network` has the layers of the model and does not merge tokens; `compressed_network` gives it as the plan wants
    it. The numbers of heads are asked for only where a file does not tell. Raises UserError.
    """
    if isinstance(model, Checkpoint):
        return model
    text = str(model)
    if text == "starter":
        return load_checkpoint(STARTER_MODEL, verify=verify)
    if text.startswith("random:"):
        return random_checkpoint(text.removeprefix("random:"), seed)
    return load_checkpoint(Path(model), num_heads=num_heads, head_heads=head_heads, verify=verify)


def compressed_network(checkpoint: Checkpoint) -> HMR2:
    """The network of a model with token merging where its plan asks for it; the weights are shared."""
    return with_token_merging(checkpoint.network, checkpoint.tokens).eval()


def open_body(body: Body = "starter") -> BodyModel:
    """`starter`, or a body file. Raises UserError."""
    if isinstance(body, BodyModel):
        return body
    return starter_body() if str(body) == "starter" else load_body(Path(body))


def open_data(
    data: Data,
    *,
    body: BodyModel,
    split: str = "test",
    clips: int | None = None,
    progress: Progress = no_progress,
) -> CropSet:
    """`starter[:split]` (`split` if it names none; rendered when first asked for), `crops:PATH`, or a path.

    `clips` renders only the first clips of a starter split. Raises UserError, also for `clips` of other data.
    """
    if isinstance(data, CropSet):
        return data
    kind, _, rest = str(data).partition(":")
    if _of_starter(data):
        from hmrcompress.starter.dataset import open_split

        return open_split(rest or split, body, clips=clips, progress=progress)
    if clips is not None:
        raise UserError("only starter splits can be cut to their first clips", str(data), "Leave clips out.")
    return CropSet.open(Path(rest) if kind == "crops" and rest else Path(data))


def _of_starter(data: Data) -> bool:
    return not isinstance(data, CropSet) and str(data).partition(":")[0] == "starter"


def on_device(module: Module, device: torch.device) -> Module:
    """The module where it lies on `device` already, else a copy there: what a caller handed in stays where it is."""
    here = next((tensor.device for tensor in module.state_dict().values()), device)
    return module if here == device else deepcopy(module).to(device)


def open_plan(plan: Plan | Path | str) -> Plan:
    """A plan, or the file of one. Raises UserError."""
    return plan if isinstance(plan, Plan) else Plan.read(plan)


def open_masks(masks: Masks) -> MaskSource:
    """`data`, `files:DIR` or `none`. Raises UserError."""
    return mask_source(masks) if isinstance(masks, str) else masks


def open_protocol(protocol: str | Protocol) -> Protocol:
    """A protocol by its name. Raises UserError naming those there are."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise UserError(f"got {protocol!r}, expected one of {', '.join(PROTOCOLS)}", "--protocol")
    return PROTOCOLS[protocol]


def search(
    model: Model,
    data: Data = "starter:calib",
    *,
    journal: Path | str,
    settings: SearchSettings | None = None,
    masks: Masks = "data",
    protocol: str | Protocol = "starter24",
    body: Body = "starter",
    device: str = "auto",
    progress: Progress = no_progress,
) -> SearchResult:
    """Chooses the layers to merge; `result.plan.write(path)` keeps the plan. See `searching.search`.

    `journal` receives every evaluation and lets a search that was stopped go on. Raises UserError.
    """
    surface, where = open_body(body), pick_device(device)
    checkpoint = load(model, seed=settings.seed if settings else 0)
    return search_plan(
        on_device(checkpoint.network, where),
        checkpoint.reference,
        open_data(data, body=surface, split="calib", progress=progress),
        body=on_device(surface, where),
        journal=Path(journal),
        protocol=open_protocol(protocol),
        masks=open_masks(masks),
        settings=settings,
        progress=progress,
    )


def merge(model: Model, plan: Plan | Path | str, out: Path | str, *, force: bool = False, seed: int = 0) -> Folder:
    """Applies a plan: writes the compressed model to the folder `out`. See `merging.merge`. Raises UserError."""
    name = "plan" if isinstance(plan, Plan) else plan
    return merge_checkpoint(load(model, seed=seed), open_plan(plan), out, force=force, plan_name=name)


def evaluate(
    model: Model,
    data: Data = "starter:test",
    *,
    against: Model | None = None,
    masks: Masks = "data",
    protocol: str | Protocol = "starter24",
    body: Body = "starter",
    limit: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Evaluation:
    """Scores a model beside the mean pose, and beside `against` where given. See `evaluation.evaluate`.

    A compressed model is scored with merged layers, and with merged tokens too where its plan merges them. The network
    as it was before is the stage `baseline`. Raises UserError.
    """
    surface, where = open_body(body), pick_device(device)
    checkpoint = load(model, seed=seed)
    reference = None if against is None else on_device(load(against, seed=seed).network, where)
    return evaluate_stages(
        stages_of(on_device(checkpoint.network, where), checkpoint.plan, against=reference, dtype=dtype),
        open_data(data, body=surface, progress=progress),
        body=on_device(surface, where),
        protocol=open_protocol(protocol),
        masks=open_masks(masks),
        limit=limit,
        batch_size=batch_size,
        plan=checkpoint.plan,
        progress=progress,
    )


def layer_similarity(
    model: Model,
    data: Data = "starter:calib",
    *,
    frames: int = 256,
    batch_size: int = 32,
    body: Body = "starter",
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Progress = no_progress,
) -> np.ndarray:
    """CKA between the layers of a model, (L+1,L+1). See `evaluation.similarity`. Raises UserError."""
    checkpoint = load(model, seed=seed)
    network = on_device(checkpoint.network, pick_device(device))
    crops = open_data(data, body=open_body(body), split="calib", progress=progress)
    return similarity_of_layers(network, crops, frames=frames, batch_size=batch_size, dtype=dtype, progress=progress)


def export_onnx(
    model: Model,
    out: Path | str,
    *,
    data: Data = "starter:test",
    masks: Masks = "data",
    body: Body = "starter",
    batch_size: int = 5,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> OnnxExport:
    """Writes ONNX with layers and tokens merged. See `exporting.onnx`.

    The file is compared with torch at batch 1 and `batch_size` on `limit` (by default `batch_size`) crops of `data`.

    Raises UserError, and HMRCompressError where the file would differ from the network.
    """
    surface = open_body(body)
    checkpoint = load(model, seed=seed)
    crops = open_data(data, body=surface, clips=1 if _of_starter(data) else None, progress=progress)
    network = compressed_network(checkpoint)
    needed = open_masks(masks) if checkpoint.tokens else None
    chosen = evenly(crops.stretches(), limit or batch_size)
    batch = next(crops.batches(chosen, len(chosen), needed))
    about = {
        "model": checkpoint.name,
        "checkpoint": checkpoint.reference.model_dump(mode="json"),
        "plan": None if checkpoint.plan is None else checkpoint.plan.to_dict(),
        "parity_data": {"name": crops.name, "split": crops.split, "sha256": crops.sha256},
    }
    return export_network(network, out, batch, surface, batch_sizes=sorted({1, batch_size}), about=about)
