"""onnxruntime: the ONNX file itself, with a dynamic batch."""

from __future__ import annotations

from pathlib import Path

from hmrcompress.exporting.onnx import require_exporter
from hmrcompress.exporting.runtimes.helper import HelperNetwork
from hmrcompress.exporting.runtimes.runtime import STEM, Compiled, Running, Source
from hmrcompress.exporting.session import has_exact_int8


class OnnxRuntime:
    """See `runtime.Runtime`. There is no bfloat16: its CPU kernels have none."""

    name = "onnx"
    extra = "export"
    precisions = ("float32", "float16", "int8")
    writes = (f"{STEM}.onnx", f"{STEM}.onnx.data")

    def weight_bits(self) -> int:
        """See `Runtime`."""
        return 8

    def check(self, precision: str) -> None:
        """See `Runtime`."""
        require_exporter()

    def compile(self, source: Source, folder: Path, precision: str) -> Compiled:
        """See `Runtime`."""
        if precision == "int8":
            # Unsigned by unsigned is exact on every processor, unsigned by signed only where there is VNNI or AMX.
            source.write_int8(folder / f"{STEM}.onnx", unsigned=not has_exact_int8())
        else:
            source.write_onnx(folder / f"{STEM}.onnx", precision)
        return Compiled(f"{STEM}.onnx")

    def run(self, path: Path, precision: str, *, threads: int, cuda: bool = False) -> Running:
        """See `Runtime`."""
        return HelperNetwork(path, engine="onnxruntime", threads=threads, cuda=cuda)


RUNTIME = OnnxRuntime()
