"""ONNX of the temporal decoder: one window of frames, features in, poses out, with a dynamic batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hmrcompress.decoder.diffusion import sampling_steps
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.errors import UserError
from hmrcompress.exporting.onnx import (
    EXAMPLE_BATCH,
    KIND,
    SCHEMA,
    OnnxExport,
    check_export,
    check_files,
    put_all,
    quietly,
)
from hmrcompress.exporting.parity import BATCH_SIZES, Parity
from hmrcompress.exporting.session import open_session
from hmrcompress.io.atomic import room
from hmrcompress.io.npz import write_npz
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import real
from hmrcompress.io.seals import seal
from hmrcompress.runtime import generator

WINDOWS = 5
"""Windows that the file is compared with torch on, each with other frames missing."""
JOINT_NUMBERS = 87
"""The first numbers of a pose are locations of 29 joints in metres."""


class _Exported(nn.Module):
    """The decoder with all inputs of the graph as arguments; without read-out or noise where it has no use for any."""

    def __init__(self, decoder: TemporalDecoder, steps: int) -> None:
        super().__init__()
        self.decoder, self.steps = decoder, steps
        if decoder.config.diffuses:
            sampling_steps(decoder.config, steps)  # made here, because tracing turns its tensors into symbols

    def forward(self, features: Tensor, known: Tensor, valid: Tensor, *more: Tensor) -> Tensor:
        given = list(more)
        if self.decoder.config.readout:
            features = torch.cat([features, given.pop(0)], -1)
        return self.decoder(features, known, valid, steps=self.steps, noise=given[0] if given else None)


def export_decoder(
    decoder: TemporalDecoder,
    path: Path | str,
    *,
    frames: int | None = None,
    steps: int = 1,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    about: Mapping[str, Any] | None = None,
    overwrite: bool | OutputRule = False,
) -> OnnxExport:
    """Writes FILE.onnx, the contract of its inputs and outputs, FILE.onnx.json, with `about` (provenance) in it, and
    FILE.onnx.golden.npz: inputs, and what torch gives for them.

    decoder: float32 on the CPU. frames: of a window (None: as many as the decoder takes). steps: of sampling, unrolled.
    The file is compared with torch on windows of random features, with frames missing, at every one of `batch_sizes`
    (at most `WINDOWS`) before anything gets its name. `parity.crops` counts windows. Raises UserError, also as
    `io.outputs`, MissingExtra, and HMRCompressError where the two differ by 1e-3 or 0.1 mm on a joint.
    """
    path, outputs = Path(path), OutputRule.of(overwrite)
    check_export(decoder, path)
    check_files(path, outputs)
    frames = decoder.config.frames if frames is None else frames
    if not 1 <= frames <= decoder.config.frames:
        raise UserError(f"got {frames}, expected 1 to {decoder.config.frames}", "frames")
    exported = _Exported(decoder.eval(), steps).eval()
    inputs = _windows(decoder, frames)
    with torch.no_grad():
        expected = exported(*inputs.values())
    with room(real(path)) as folder:
        made = folder / path.name
        _write_graph(exported, made, inputs)
        seal(made, KIND)
        parity = _measure(made, inputs, expected, batch_sizes)
        parity.require(path)
        size = made.stat().st_size
        tensors = {name: tensor.numpy() for name, tensor in (inputs | {"pose": expected}).items()}
        write_npz(folder / f"{path.name}.golden.npz", tensors)
        contract = _contract(decoder, frames, steps, parity) | {"dtype": "float32"} | dict(about or {})
        written = put_all(folder, path, contract, outputs)
    return OnnxExport(path, *written, size, parity)


def _windows(decoder: TemporalDecoder, frames: int) -> dict[str, Tensor]:
    """Inputs of `WINDOWS` windows: features as they are distributed in training; with all frames, every second, every
    fourth, half of them at random, and as many of a clip that ends early."""
    config, random = decoder.config, generator(0)
    features = torch.randn(WINDOWS, frames, config.feature_dim, generator=random)
    numbers = torch.arange(frames)
    some = torch.rand(frames, generator=random) < 0.5
    known = torch.stack([numbers >= 0, numbers % 2 == 0, numbers % 4 == 0, some, some])
    valid = torch.ones(WINDOWS, frames, dtype=torch.bool)
    valid[-1] = numbers < (frames + 1) // 2
    inputs = {"features": features * decoder.feature_std + decoder.feature_mean, "known": known, "valid": valid}
    if config.readout:
        pose = torch.randn(WINDOWS, frames, config.pose_dim, generator=random)
        inputs["readout"] = decoder.denormalise_pose(pose)
    if config.diffuses:
        inputs["noise"] = torch.randn(WINDOWS, config.latents, config.latent_dim, generator=random)
    return inputs


def _write_graph(exported: _Exported, path: Path, inputs: Mapping[str, Tensor]) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    rows = [{0: batch} for _ in inputs]
    more = [tuple(rows[3:])] if rows[3:] else []  # the optional inputs are one argument of `forward`, if there are any
    with quietly():
        torch.onnx.export(
            exported,
            tuple(tensor[:EXAMPLE_BATCH] for tensor in inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["pose"],
            dynamic_shapes=(*rows[:3], *more),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _measure(path: Path, inputs: Mapping[str, Tensor], expected: Tensor, batch_sizes: Sequence[int]) -> Parity:
    """Runs the file over the windows, once for every batch size."""
    session = open_session(path)
    gaps: list[float] = []
    distances: list[float] = []
    for size in batch_sizes:
        for start in range(0, WINDOWS, size):
            part = slice(start, start + size)
            given = {name: tensor[part].numpy() for name, tensor in inputs.items()}
            gap = torch.from_numpy(session.run(["pose"], given)[0]) - expected[part]
            gaps.append(gap.abs().max().item())
            joints = gap[..., :JOINT_NUMBERS].unflatten(-1, (-1, 3))
            distances.append(joints.norm(dim=-1).max().item() * 1000.0)
    # numpy's maximum hands NaN on, Python's may not.
    return Parity(float(np.max(gaps)), float(np.max(distances)), WINDOWS, tuple(batch_sizes))


def _contract(decoder: TemporalDecoder, frames: int, steps: int, parity: Parity) -> dict[str, Any]:
    """What someone needs who has only the file: names, shapes, units, and how it was checked."""
    config = decoder.config
    flags = {"shape": ["B", frames], "dtype": "bool"}
    inputs: dict[str, Any] = {
        "features": {
            "shape": ["B", frames, config.feature_dim],
            "dtype": "float32",
            "meaning": "per-frame features of the network, as its head gives them; anything where a frame has none",
        },
        "known": flags | {"meaning": "true where a frame has features"},
        "valid": flags | {"meaning": "true where the frame exists; a clip shorter than a window fills its beginning"},
    }
    pose = (
        "29 joint locations relative to joint 0 (metres, camera frame: x right, y down, z forward; xyz per joint; "
        "24 SMPL joints, then head top, hands, feet), then (cos, sin) of 23 twists"
    )
    if config.readout:
        inputs["readout"] = {
            "shape": ["B", frames, config.pose_dim],
            "dtype": "float32",
            "meaning": f"the pose that the network's own head reads out, on the shape that it reads out: {pose}; "
            "anything where a frame has none",
        }
    if config.diffuses:
        inputs["noise"] = {
            "shape": ["B", config.latents, config.latent_dim],
            "dtype": "float32",
            "meaning": "normal noise to begin with; the same for all windows of a clip",
        }
    return {
        "schema": SCHEMA,
        "kind": "hmrcompress decoder onnx",
        "inputs": inputs,
        "outputs": {"pose": {"shape": ["B", frames, config.pose_dim], "dtype": "float32", "meaning": pose}},
        "steps": steps,
        "decoder": config.to_dict(),
        "parity": {
            "max_abs_diff": parity.max_abs_diff,
            "joints_mm": parity.joints_mm,
            "windows": parity.crops,
            "batch_sizes": list(parity.batch_sizes),
            "reference": "torch, float32, CPU",
            "through": "onnxruntime, CPU",
        },
    }
