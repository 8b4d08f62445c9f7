"""The runtimes there are. One is added by a file of its own beside this one, with a `RUNTIME`, its name here,
and in `--format` of the command."""

from __future__ import annotations

from hmrcompress.errors import UserError
from hmrcompress.exporting.runtimes import coreml, onnxruntime, openvino, tensorrt
from hmrcompress.exporting.runtimes.runtime import Runtime

RUNTIMES: dict[str, Runtime] = {each.RUNTIME.name: each.RUNTIME for each in (onnxruntime, openvino, tensorrt, coreml)}


def runtime(name: str) -> Runtime:
    """The runtime of that name. Raises UserError naming those there are."""
    if name not in RUNTIMES:
        raise UserError(f"got {name!r}, expected one of {', '.join(RUNTIMES)}", "--format")
    return RUNTIMES[name]


def require_precision(name: str, precision: str) -> Runtime:
    """The same. UserError where it has no such precision."""
    found = runtime(name)
    if precision not in found.precisions:
        fault = f"got {precision}, {name} takes {', '.join(found.precisions)}"
        raise UserError(fault, "--dtype")
    return found
