"""Networks that run in the helper process of `io.onnx_process`, which promises what docs/safety.md says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.exporting.parity import OUTPUTS
from hmrcompress.exporting.session import CUDA, no_cuda
from hmrcompress.io.onnx_process import Engine, OnnxProcess

INPUTS = ("images", "person_mask", "condition")


class HelperNetwork:
    """A `Running` network in a helper process."""

    def __init__(
        self, path: Path, *, engine: Engine, precision: str = "float32", threads: int, cuda: bool = False
    ) -> None:
        """Raises UserError, also for a graph that is no network of ours by its inputs and outputs; MissingExtra."""
        self.process = OnnxProcess(path, threads=threads, cuda=cuda, engine=engine, precision=precision)
        self.inputs = tuple(each.name for each in self.process.inputs)
        self.about: Mapping[str, Any] = self.process.about
        if cuda and CUDA not in self.about.get("providers", ()):
            self.close()
            raise no_cuda(f"{engine} {self.about.get('version', '')}".strip())
        missing = [name for name in OUTPUTS if name not in {each.name for each in self.process.outputs}]
        odd = [name for name in self.inputs if name not in INPUTS]
        if missing or odd or "images" not in self.inputs:
            self.close()
            fault = f"gives no {missing[0]}" if missing else f"takes {', '.join(self.inputs)}, expected images"
            raise UserError(f"is no network that hmrcompress exported: it {fault}", path)

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Running`."""
        return dict(zip(OUTPUTS, self.process.call(given, OUTPUTS), strict=True))

    def close(self) -> None:
        """Ends the helper."""
        self.process.close()
