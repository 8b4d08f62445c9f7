"""How much memory a network needs, measured in a process of its own that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hmrcompress.errors import HMRCompressError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.families.registry import read_config
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.network import HMR2, NetworkConfig
from hmrcompress.plan import TokenSettings
from hmrcompress.runtime import dtype_name, pick_device, pick_dtype
from hmrcompress.timing.made_up import constant_network, made_up_batch
from hmrcompress.timing.reference import reference

CHILD_SECONDS = 1800
STATUS = Path("/proc/self/status")
FORWARDS = 2
"""The first forward pass allocates what libraries keep for later ones; the second shows that nothing more comes."""


@dataclass(frozen=True)
class Memory:
    """Bytes. `peak` is the greatest resident size of the process (on CUDA: the most that torch had allocated), of which
    `program` were there before the network: Python and its libraries (on CUDA: nothing)."""

    peak: int
    program: int


def peak_memory(
    config: NetworkConfig,
    tokens: TokenSettings | None,
    *,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    path: RunPath | None = None,
    original: bool = False,
) -> Memory:
    """Memory for running a network of these sizes, with token merging where `tokens` says so, in a child process.

    path: how our network runs; `original`: as its authors run it instead. In the child weights are made in `dtype`, and
    the fast path takes them over layer by layer. Raises HMRCompressError where the child fails, such as for want of
    memory.
    """
    wanted = {
        "config": config.to_dict(),
        "tokens": None if tokens is None else tokens.model_dump(mode="json"),
        "batch_size": batch_size,
        "dtype": dtype_name(dtype),
        "device": str(device),
        "threads": threads,
        "path": asdict(path or RunPath(batch_sizes=(batch_size,))),
        "original": original,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(wanted),
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=True,
        )
        return Memory(**json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, ValueError, IndexError, TypeError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise HMRCompressError(f"the memory could not be measured: {told[-1] if told else 'no answer'}") from error


def measure(wanted: dict[str, Any]) -> Memory:
    """What the child process does; `wanted` as `peak_memory` writes it. Linux and macOS."""
    device, dtype = pick_device(wanted["device"]), pick_dtype(wanted["dtype"])
    tokens = None if wanted["tokens"] is None else TokenSettings.model_validate_json(json.dumps(wanted["tokens"]))
    config = read_config(wanted["config"])
    if wanted["threads"]:
        torch.set_num_threads(wanted["threads"])
    program = 0 if device.type == "cuda" else peak_resident()
    network = _prepared(wanted, constant_network(config, device, dtype), tokens, dtype)
    batch = made_up_batch(config, wanted["batch_size"], dtype).to(device)
    with torch.inference_mode():
        for _ in range(FORWARDS):
            network(*batch.inputs())
    return Memory(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident(), program)


def _prepared(wanted: dict[str, Any], network: HMR2, tokens: TokenSettings | None, dtype: torch.dtype) -> nn.Module:
    """The network as it is to be run; no more than one of its weights is there twice at any time."""
    if wanted.get("original"):
        return reference(network)
    path, merging = RunPath(**wanted.get("path", {})), with_token_merging(network, tokens)
    if path.lays_out:
        for part in network.children():
            part.to("meta")
    return path.prepare(merging, dtype, consume=True)


def peak_resident() -> int:
    """Greatest resident size of this process so far, bytes.

    Linux keeps it with the address space in /proc; what getrusage says there starts from the parent's size.
    """
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measure(json.loads(sys.stdin.read())))) + "\n")
