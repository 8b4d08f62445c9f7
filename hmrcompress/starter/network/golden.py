"""What a network gives for a crop that needs no file: kept beside the weights, and compared on other machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.jsons import read_json
from hmrcompress.models.files.folder import WEIGHTS
from hmrcompress.models.network import HMR2

GOLDEN = "golden.json"
OUTPUTS = ("global_orient", "body_pose", "betas", "cam")
DIGITS = 8
"""Significant digits that are kept: float32 has a little more than seven."""


def crop(height: int = 256, width: int = 192) -> Tensor:
    """(1,3,H,W) float32, a pattern of whole numbers between -1 and 1: the same on every machine."""
    row, column = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    channel = torch.arange(3).view(-1, 1, 1)
    return (((7 * row + 13 * column + 31 * channel + row * column // 64) % 256).float() / 128 - 1)[None]


@torch.no_grad()
def outputs_of(network: HMR2) -> dict[str, list[float]]:
    """Rotations, shape and camera of that crop, flattened, as a float32 network in evaluation mode gives them."""
    made = network(crop())
    values = {name: getattr(made, name).flatten().tolist() for name in OUTPUTS}
    return {name: [float(f"{value:.{DIGITS}g}") for value in each] for name, each in values.items()}


def bound_of(network: HMR2, golden: dict[str, list[float]]) -> float:
    """How far two processors may be apart: u sqrt(n) of the largest number, n being the terms of all products as if
    they lay one behind the other (Higham and Mary 2019: roundings do not conspire), for each of the two."""
    terms = sum(each[0].numel() for each in network.state_dict().values() if each.ndim >= 2)
    largest = max(abs(value) for values in golden.values() for value in values)
    return float(torch.finfo(torch.float32).eps * terms**0.5 * largest)


def write_golden(network: HMR2, folder: Path, to: Path) -> None:
    """Writes what the network gives into the folder `to`, with the hash of the weights in `folder`."""
    made = {"weights_sha256": sha256_file(folder / WEIGHTS), "outputs": outputs_of(network)}
    (to / GOLDEN).write_text(json.dumps(made) + "\n")


def compare(network: HMR2, folder: Path) -> dict[str, Any]:
    """{difference, bound, equal}: how far the network in `folder` is from what its file of golden outputs says.

    UserError where there is no such file, or where it belongs to other weights.
    """
    if not (folder / GOLDEN).is_file():
        raise UserError("no such file", folder / GOLDEN, "It is written by `starter train --freeze`")
    kept = read_json(folder / GOLDEN)
    if kept["weights_sha256"] != sha256_file(folder / WEIGHTS):
        raise UserError("is of other weights than those beside it", folder / GOLDEN)
    found, bound = outputs_of(network), bound_of(network, kept["outputs"])
    gaps = [abs(a - b) for name in OUTPUTS for a, b in zip(found[name], kept["outputs"][name], strict=True)]
    difference = max(gaps)
    return {"difference": difference, "bound": bound, "equal": difference <= bound}
