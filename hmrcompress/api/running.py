"""How a model runs where nobody says otherwise: as the `run` of its plan has it. The one place that finds it out, for
predict, profile, eval and bench."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hmrcompress.data.masks import SHIPPED, MaskSource, NoMasks
from hmrcompress.errors import UserError, tell
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.plan import Plan, RunSettings
from hmrcompress.runtime import dtype_name, fast_dtype, pick_device, pick_dtype
from hmrcompress.timing.int8_kernels import int8_kernels

OF_TORCH = {"torch": "plain", "fast": "on the fast path", "compiled": "on the fast path by torch.compile"}
"""What this package runs itself; the other runtimes run a file that `hmrcompress export` writes."""


@dataclass(frozen=True)
class Running:
    """How a model is run: what it computes in, by which way, with which numbers of tokens to choose from (None: one for
    all), on every how manieth frame of a video."""

    dtype: torch.dtype
    path: RunPath
    buckets: tuple[int, ...] | None
    stride: int


def planned(checkpoint: Checkpoint) -> RunSettings | None:
    """What the plan of a model says of how it is run; None where it says nothing."""
    return None if checkpoint.plan is None else checkpoint.plan.run


def planned_buckets(checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """The numbers of tokens that a model's plan wants to choose from, which is told; None where there are none, and for
    an exported network, which has one."""
    run = planned(checkpoint)
    if run is None or run.buckets is None or checkpoint.exported is not None:
        return None
    tell(f"runs as its plan says: {_choosing(run.buckets)}", checkpoint.name)
    return run.buckets


def running(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    path: RunPath | None = None,
    buckets: Sequence[int] | None = None,
    stride: int | None = None,
    masks: MaskSource | None = None,
    clips: bool = True,
    only_if_faster: bool = False,
) -> Running:
    """What was asked for, and for what was not (None) what the model's plan says, which is told; float32, plain, one
    number of tokens and every frame where that says nothing.

    masks: without any before the network runs there is no choosing of tokens. clips: whether there are frames in
    between that a stride may leave out. only_if_faster: 8 bits that were asked for, and are slower on this
    processor than what they stand in for, are a UserError; else it is told. What the device has no units for is not
    taken from a plan: it is told.
    """
    run, asked = planned(checkpoint), path is not None and bool(path.int8)
    if checkpoint.exported is not None:
        _only_as_exported(checkpoint, dtype, path, buckets)
        return Running(torch.float32, RunPath(), None, stride or (run.stride if run is not None and clips else 1))
    if run is None:
        path, dtype = path or RunPath(), dtype or torch.float32
        path = _fastest(checkpoint, path, dtype, device, asked=asked, only_if_faster=only_if_faster)
        return Running(dtype, path, _tuple(buckets), stride or 1)
    taken: list[str] = []
    if path is None:
        int8 = _int8(checkpoint.plan, run, device) if dtype is None else ()
        path = RunPath(fast=run.runtime != "torch", compiled=run.runtime == "compiled", int8=int8)
        taken.append(OF_TORCH.get(run.runtime, f"on the fast path, as {run.runtime} runs what `export` writes"))
        taken += [f"{len(int8)} layers in int8"] if int8 else []
    if dtype is None:
        dtype, why = _dtype(run, device)
        taken.append(f"in {dtype_name(dtype)}{why}")
    if buckets is None and run.buckets is not None and masks is not None and masks.name not in ("none", "self"):
        buckets = run.buckets
        taken.append(_choosing(run.buckets))
    if stride is None and clips and run.stride > 1:
        stride = run.stride
        taken.append(f"with a stride of {stride}")
    path = _fastest(checkpoint, path, dtype, device, asked=asked, only_if_faster=only_if_faster)
    if taken:
        tell(f"runs as its plan says: {', '.join(taken)}", checkpoint.name)
    return Running(dtype, path, _tuple(buckets), stride or 1)


def _fastest(
    checkpoint: Checkpoint,
    path: RunPath,
    dtype: torch.dtype,
    device: torch.device,
    *,
    asked: bool,
    only_if_faster: bool,
) -> RunPath:
    """The path with the kernel that multiplies fastest in 8 bits here, measured once; 8 bits that a plan wants, and
    that would be slower, give way. Raises UserError as `running`."""
    if not path.int8 or device.type != "cpu":
        return path
    config = checkpoint.config
    found = int8_kernels(config.dim, config.mlp_dim, dtype)
    if found.speedup >= 1:
        return replace(path, kernel=found.best or path.kernel)
    times = f"{1 / found.speedup:.1f} times the time" if found.speedup else "many times the time"
    fault = f"products in 8 bits take {times} of those in {dtype_name(dtype)} on this processor"
    if asked and only_if_faster:
        raise UserError(fault, "--dtype int8", f"Give --dtype {dtype_name(dtype)}; eval and bench run int8 anyway")
    if asked:
        tell(fault, "--dtype int8")
        return replace(path, kernel=found.best or path.kernel)
    tell(f"{fault}, so they are left out", checkpoint.name)
    return replace(path, int8=False, fast=True)


def device_for(checkpoint: Checkpoint, device: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda[:n]` means: for an exported network `auto` is the CPU."""
    return pick_device("cpu" if checkpoint.exported is not None and device == "auto" else device)


def _only_as_exported(
    checkpoint: Checkpoint, dtype: torch.dtype | None, path: RunPath | None, buckets: Sequence[int] | None
) -> None:
    """UserError where an exported network is to run in another way than it was exported for."""
    asked = [
        flag
        for flag, given in (
            ("--dtype", dtype not in (None, torch.float32)),
            ("--fast, compile and graphs", path is not None and (path.lays_out or path.compiled or bool(path.graphs))),
            ("buckets", buckets is not None),
        )
        if given
    ]
    if asked:
        fault = f"is an exported network, which runs in {checkpoint.stored_dtype} and as it was exported"
        raise UserError(fault, checkpoint.name, f"Leave {asked[0]} out, or give the model that it was exported from")


def masks_of_exported(checkpoint: Checkpoint, masks: MaskSource) -> MaskSource:
    """The masks that an exported network is given. UserError where it needs some, and is to find the person itself."""
    wanted = bool(getattr(checkpoint.exported, "takes_mask", False))
    if not wanted:
        if masks.name not in ("none", "self", "data", SHIPPED):
            tell(f"{checkpoint.name} takes no masks, so that they are not used", f"--masks {masks.name}")
        return NoMasks()
    if masks.name == "self":
        raise UserError(
            "merges tokens by a mask from outside, and holds no probe that finds the person",
            checkpoint.name,
            "Give --masks auto, files:DIR or onnx:FILE; none merges without regard to people",
        )
    return masks


def batched(path: RunPath, batch_size: int) -> RunPath:
    """The same for batches of that size."""
    return replace(path, batch_sizes=(batch_size,))


def _choosing(buckets: Sequence[int]) -> str:
    return f"with {', '.join(map(str, buckets))} tokens to choose from"


def _tuple(buckets: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if buckets is None else tuple(buckets)


def _dtype(run: RunSettings, device: torch.device) -> tuple[torch.dtype, str]:
    """What the plan says, or what takes its place where the device would emulate it, and why."""
    wanted, best = pick_dtype(run.dtype), fast_dtype(device)
    emulated = (
        wanted != torch.float32 and best == torch.float32 and not (device.type == "cuda" and wanted == torch.half)
    )
    return (best, f", as {run.dtype} is emulated here") if emulated else (wanted, "")


def _int8(plan: Plan | None, run: RunSettings, device: torch.device) -> tuple[int, ...]:
    """The layers of the compressed network that are to run with 8 bits; none elsewhere than on a CPU."""
    if plan is None or device.type != "cpu":
        return ()
    return tuple(layer for layer, group in enumerate(plan.kept_groups) if group[0] in run.int8)
