"""From a training state to the network that is shipped: fp16 weights, the log, and a card with measured figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrcompress.body.files import starter_body
from hmrcompress.evaluation.evaluate import evaluate, stages_of
from hmrcompress.io.outputs import OutputRule
from hmrcompress.models.families.registry import read_config
from hmrcompress.models.files.folder import KIND, as_half, write_model_folder
from hmrcompress.models.network import HMR2, NetworkConfig, from_state
from hmrcompress.records import CROP
from hmrcompress.runtime import Progress, environment, no_progress
from hmrcompress.starter.data.captured import MOCAP_SPLIT
from hmrcompress.starter.data.dataset import open_split
from hmrcompress.starter.network.book import averaged_state
from hmrcompress.starter.network.breakdown import by_joint, by_kind, by_occlusion, drop_costs
from hmrcompress.starter.network.card import Figures, network_card
from hmrcompress.starter.network.golden import write_golden
from hmrcompress.starter.network.log import LOG_FILE, SHIPPED_LOG, read_log, training_minutes
from hmrcompress.starter.network.validate import Validator
from hmrcompress.training.book import STATE_FILE

DROP_FRAMES_PER_CLIP = 40


def freeze(
    folder: Path,
    out: Path,
    *,
    command: str,
    note: str = "",
    motions: Path | None = None,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> Path:
    """Write the network trained in `folder` to `out`, scored with the weights as they are stored.

    command is what the card names as having made it, note a remark below it. With motion capture (`motions`) it is
    scored on `test-mocap` too. UserError as `io.outputs`.
    """
    outputs = OutputRule.of(overwrite)
    outputs.check_folder(out, KIND)
    state = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
    config = read_config(state["config"])
    body = starter_body()
    kept, half, network = better_on_val(config, state, Validator(body, torch.device("cpu")))
    records = read_log(folder / LOG_FILE)
    provenance = {
        "command": command,
        "note": note,
        "weights": kept,
        "seed": state["seed"],
        "images": state["before"] + state["seen"],
        "minutes": round(training_minutes(records), 1),
        "environment": environment(),
        "log": SHIPPED_LOG,
    }
    figures = measure(network, motions, progress)
    card = network_card(config, provenance, figures, records, sum(t.numel() for t in half.values()))
    write_model_folder(out, half, config, provenance=provenance, body=body.name, card=card, overwrite=outputs)
    with outputs.additions(out, KIND) as more:
        shutil.copyfile(folder / LOG_FILE, more / SHIPPED_LOG)
        write_golden(network, out, more)
    return out


def better_on_val(
    config: NetworkConfig, state: dict[str, Any], validator: Validator
) -> tuple[str, dict[str, Tensor], HMR2]:
    """("last" or "average", state dict in float16, network): whichever weights have the lower error on `starter:dev`.

    The moving average wins at a high rate; at the end of a rate that fell to zero it lags behind.
    """
    last = from_state(config, state["network"])
    candidates = {"last": as_half(last.state_dict()), "average": as_half(averaged_state(last, state["average"]))}
    networks = {
        name: from_state(config, {key: tensor.float() for key, tensor in half.items()}).eval()
        for name, half in candidates.items()
    }
    errors = {name: validator(network, CROP.pixels)["mpjpe_mm"] for name, network in networks.items()}
    best = min(errors, key=lambda name: errors[name])
    return best, candidates[best], networks[best]


def measure(network: HMR2, motions: Path | None = None, progress: Progress = no_progress) -> Figures:
    """What the card states of a network (on the CPU, in evaluation mode)."""
    body = starter_body()
    splits = {"val": open_split("val", body, progress=progress)}
    if motions is not None:
        splits[MOCAP_SPLIT] = open_split(MOCAP_SPLIT, body, motions=motions, progress=progress)
    results = {
        name: evaluate(stages_of(network, None), crops, body=body, progress=progress).stages
        for name, crops in splits.items()
    }
    scores, val = results["val"]["baseline"], splits["val"]
    sample = val.sample(DROP_FRAMES_PER_CLIP)
    return Figures(
        scores={
            f"starter:{name}": {stage: of.to_json() for stage, of in stages.items()} for name, stages in results.items()
        },
        joints=by_joint(scores),
        occlusion=by_occlusion(scores, val),
        kinds=by_kind(scores, val),
        drops=drop_costs(network, val, sample, body, progress),
        drop_frames=len(sample),
    )
