"""What `hc.compress` shows of its choice beside figures: the frames that it made worst, and the tokens of examples."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from hmrcompress.api.front import Bench
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.merging.fit import plain
from hmrcompress.merging.owners import patch_owners
from hmrcompress.records import FrameBatch
from hmrcompress.report.contact import Picture
from hmrcompress.report.frontier import TOKENS_PICTURE, WORST_PICTURE
from hmrcompress.report.seen import crop_pictures, side_by_side, tokens_of

WORST = 10
EXAMPLES = 8
JOINT_BATCHES = 6
"""Batches of the frames to confirm on whose joints are compared one by one."""


def seen(bench: Bench, candidate: Candidate) -> dict[str, Any]:
    """{by_joint, worst}: errors in mm of each joint before and after, where there is ground truth; and the frames whose
    error rose most, {clip, frame, before, after} in mm (with the target teacher: the distance from the uncompressed
    network's bodies, 0 before)."""
    before, after = (bench.confirm(each).errors for each in (Candidate(), candidate))
    rows = _worst(before, after)
    crops, indices = bench.confirm.crops, bench.confirm.indices
    found: dict[str, Any] = {
        "worst": [
            {
                "clip": int(crops.clip[indices[row]]),
                "frame": int(crops.frame[indices[row]]),
                "before": float(before[row]),
                "after": float(after[row]),
            }
            for row in rows
        ]
    }
    if bench.confirm.target == "truth":
        joints = [bench.confirm.by_joint(each, JOINT_BATCHES).mean(0) for each in (Candidate(), candidate)]
        names = bench.measure.protocol.names
        found["by_joint"] = {
            name: {"before": float(old), "after": float(new)} for name, old, new in zip(names, *joints, strict=True)
        }
    return found


def drawn(bench: Bench, candidate: Candidate) -> dict[str, bytes]:
    """The pictures that the page shows, as JPEG by name; none of the untouched network."""
    if candidate == Candidate():
        return {}
    errors = bench.confirm
    before, after = (errors(each).errors for each in (Candidate(), candidate))
    batch = _batch(bench, errors.indices[_worst(before, after)])
    networks = plain(bench.network), errors.made(candidate)
    with torch.no_grad():
        outputs = [network(*batch.inputs()) for network in networks]
        sheet = side_by_side(crop_pictures(batch.images.cpu().numpy()), outputs, bench.measure.body)
    found = {WORST_PICTURE: _jpeg(sheet)}
    if candidate.keep is not None:
        batch = _batch(bench, errors.indices[_examples(errors.clip)])
        owners = patch_owners(networks[1], batch).numpy()
        tokens = tokens_of(crop_pictures(batch.images.cpu().numpy()), owners, *bench.network.config.grid)
        found[TOKENS_PICTURE] = _jpeg(tokens)
    return found


def _worst(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The frames whose error rose most, the first of equals first."""
    return np.argsort(before - after, kind="stable")[:WORST]


def _examples(clip: np.ndarray) -> np.ndarray:
    """The first frames of some clips, evenly over all of them."""
    _, first = np.unique(clip, return_index=True)
    return first[np.linspace(0, len(first) - 1, min(EXAMPLES, len(first))).round().astype(int)]


def _batch(bench: Bench, indices: np.ndarray) -> FrameBatch:
    errors = bench.confirm
    (batch,) = errors.crops.batches(indices, len(indices), errors.masks, truth=False)
    return batch.to(errors.device)


def _jpeg(picture: Picture) -> bytes:
    made = BytesIO()
    Image.fromarray(picture).save(made, format="JPEG", quality=85, optimize=True)
    return made.getvalue()
