"""The columns of params.npz, and what of them an animation needs."""

from __future__ import annotations

import numpy as np
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import UserError
from hmrcompress.geometry.rotations import matrix_to_axis_angle
from hmrcompress.pipeline.camera import cam_crop_to_full
from hmrcompress.pipeline.glb import Motion
from hmrcompress.pipeline.store import RowStore
from hmrcompress.pipeline.tracks import Rows

MOST_KEYFRAMES = 20_000
"""Of an animation; longer tracks are thinned out."""
MOST_TRACKS = 16
"""The longest ones are animated."""


def columns_of(rows: Rows, body: BodyModel, focal: np.ndarray, *, root_centred: bool) -> dict[str, np.ndarray]:
    """What params.npz says of n bodies, float32, metres, radians, pixels, camera frame (x right, y down, z forward).

    frame, track (n,) int64; run (n,) bool: the network ran on this very frame; centre (n,2), side (n,), image_size
    (n,2) = (W, H), focal (n,) pixels; global_orient (n,1,3,3), body_pose (n,J-1,3,3), the same as axis-angle (n,3) and
    (n,J-1,3); betas (n,10); cam (n,3) of the crop; transl (n,3): vertices are body(params).vertices + transl; joints
    (n,J,3) with it; time (n,) float64 seconds and segment (n,) int64 of the frames. `focal` (n,) is given;
    `root_centred` as of `predict.Reader`. UserError where one is not finite.
    """
    device = body.v_template.device
    with torch.no_grad():
        joints = body.joints(rows.params.to(device)).cpu()
    exact = (each.double().numpy() for each in (rows.cam, rows.centre, rows.side, rows.size))
    cam, centre, side, size = exact
    with np.errstate(all="ignore"):  # what is not finite is refused below
        placed = cam_crop_to_full(cam, centre, side, size, focal)
    if root_centred:
        placed = placed - joints[:, 0].double().numpy()
    turned = matrix_to_axis_angle(rows.rotations)
    figures = {
        "centre": centre,
        "side": side,
        "image_size": size,
        "focal": focal,
        "global_orient": rows.rotations[:, :1].numpy(),
        "body_pose": rows.rotations[:, 1:].numpy(),
        "global_orient_axis_angle": turned[:, 0].numpy(),
        "body_pose_axis_angle": turned[:, 1:].numpy(),
        "betas": rows.betas.numpy(),
        "cam": cam,
        "transl": placed,
        "joints": joints.numpy() + placed[:, None],
    }
    whole = {"frame": rows.frame.numpy().astype(np.int64), "track": np.full(len(side), rows.track, np.int64)}
    whole |= {"segment": rows.segment.numpy().astype(np.int64), "time": rows.seconds.numpy()}
    with np.errstate(over="ignore"):
        short = {name: np.float32(values) for name, values in figures.items()}
    for name, values in short.items():
        finite = np.isfinite(values.reshape(len(side), -1)).all(1)
        if not finite.all():
            where = f"frame {int(rows.frame[int((~finite).argmax())])}, track {rows.track}"
            raise UserError(f"{name} is beyond what numbers hold", where, "Are the boxes and --focal right?")
    return whole | {"run": rows.run.numpy()} | short


def motions_of(store: RowStore, body: BodyModel) -> list[Motion]:
    """The longest tracks of a finished store, by number, at most `MOST_KEYFRAMES` frames of each, at their times (0 in
    a store without)."""
    order = store.order()
    tracks = store.column("track")[order]
    numbers, counts = np.unique(tracks, return_counts=True)
    longest = np.sort(numbers[np.argsort(-counts, kind="stable")[:MOST_TRACKS]])
    motions = []
    for track in longest:
        rows = order[tracks == track]
        rows = rows[:: -(-len(rows) // MOST_KEYFRAMES)]
        rotations = np.concatenate([store.column(name)[rows] for name in ("global_orient", "body_pose")], axis=1)
        betas = np.median(store.column("betas")[rows], axis=0)
        seconds = np.array(store.column("time")[rows]) if "time" in store.kinds else np.zeros(len(rows))
        motions.append(Motion(int(track), seconds, rotations, store.column("joints")[rows, 0], betas))
    return motions
