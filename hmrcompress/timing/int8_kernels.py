"""Which way of multiplying in 8 bits is fastest on this processor, and whether it gains anything: measured once.

oneDNN's product of signed by signed numbers is quick with AMX, and a reference loop on many processors without it;
that of unsigned by signed ones needs VNNI; `torch._int_mm` is a third. None of them is known to be good beforehand, so
a linear layer of the network's own size is timed in each by turns with the one in 16 or 32 bits. What was found is kept
by processor, version of torch, sizes, dtype and threads.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from hmrcompress.errors import UserError
from hmrcompress.io.home import cache_home
from hmrcompress.io.jsons import read_json
from hmrcompress.io.keys import Key
from hmrcompress.io.outputs import OutputRule
from hmrcompress.models.fast.linear import INT8_KINDS, Kind, exact_int8, kind_for, linear
from hmrcompress.runtime import cpu_name
from hmrcompress.timing.rounds import take_turns

ROWS = 90
"""Tokens of a compressed network at batch 1."""
PROBE = 128
"""Inputs and outputs of the small layer that tells hopeless kernels first: at full size a call of one takes seconds."""
HOPELESS = 4.0
"""Times the plain layer's time on the small layer, above which a kernel is not timed on the large one."""
KIND = "int8 kernels"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Int8Kernels:
    """Milliseconds of a linear layer by kind, of those that are right and worth timing; `plain` is that in 16 or 32
    bits. left_out: why others were not timed."""

    milliseconds: dict[str, float]
    left_out: dict[str, str]

    @property
    def best(self) -> Kind | None:
        """The fastest in 8 bits, None where there is none."""
        found = {name: value for name, value in self.milliseconds.items() if name != "plain"}
        return cast(Kind, min(found, key=found.__getitem__)) if found else None

    @property
    def speedup(self) -> float:
        """Over the plain layer; 0 where there is no kernel worth timing."""
        return self.milliseconds["plain"] / self.milliseconds[self.best] if self.best else 0.0


def int8_kernels(
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    *,
    rows: int = ROWS,
    home: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Int8Kernels:
    """What was measured for layers of this size here, now or before. dtype: of what is not in 8 bits."""
    key = Key.of(
        "int8 kernels",
        ("timing.int8_kernels", "models.fast.linear"),
        cpu=cpu_name(),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        layer=[rows, inputs, outputs],
        dtype=dtype,
    )
    path, about = (home or cache_home()) / "int8" / f"{key.short}.json", dict(key.inputs)
    if (known := _kept(path, about)) is not None:
        return known
    found = _measured(inputs, outputs, dtype, rows, clock)
    OutputRule(overwrite=True).write_json(path, about | asdict(found), KIND)
    return found


def _measured(inputs: int, outputs: int, dtype: torch.dtype, rows: int, clock: Callable[[], float]) -> Int8Kernels:
    left_out: dict[str, str] = {}
    kinds: dict[str, Kind] = {"plain": kind_for(CPU, dtype)}
    for kind in INT8_KINDS:
        if exact_int8(kind):
            kinds[kind] = kind
        else:
            left_out[kind] = "its products overflow on this processor"
    probe = _times(kinds, PROBE, PROBE, dtype, rows, clock)
    for name in [name for name in kinds if probe[name] > HOPELESS * probe["plain"]]:
        left_out[name] = f"takes {probe[name] / probe['plain']:.0f} times the plain layer's time"
        del kinds[name]
    return Int8Kernels(_times(kinds, inputs, outputs, dtype, rows, clock), left_out)


def _times(
    kinds: dict[str, Kind], inputs: int, outputs: int, dtype: torch.dtype, rows: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds of each, the median of turns."""
    seeded = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=seeded).div_(inputs**0.5)
    x = torch.randn(rows, inputs, generator=seeded).to(dtype)
    bias = torch.zeros(outputs)

    def call(layer: nn.Module) -> Callable[[], object]:
        return lambda: layer(x.clone(), gelu=True)

    calls = {
        name: call(linear(kind, weight if kind in INT8_KINDS else weight.to(dtype), bias.to(dtype)))
        for name, kind in kinds.items()
    }
    timing = take_turns(calls, rows, CPU, rounds=9, warmup=2, max_seconds=5.0, clock=clock)
    return {name: 1000.0 * sorted(times)[len(times) // 2] for name, times in timing.seconds.items()}


def _kept(path: Path, about: dict[str, Any]) -> Int8Kernels | None:
    """What was kept for these, None where there is nothing that can be read."""
    try:
        values = read_json(path) if path.is_file() else {}
        if any(values.get(name) != value for name, value in about.items()):
            return None
        known = Int8Kernels(
            {str(name): float(value) for name, value in values["milliseconds"].items()}, dict(values["left_out"])
        )
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None
    fits = "plain" in known.milliseconds and set(known.milliseconds) <= {"plain", *INT8_KINDS}
    return known if fits and all(value > 0 for value in known.milliseconds.values()) else None
