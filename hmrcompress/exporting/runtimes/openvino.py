"""OpenVINO: its own form of the graph (IR), made from the ONNX file, with a dynamic batch.

float32 and bfloat16 are the same files: bfloat16 is what the processor is asked to compute in, and where it has no
units for it OpenVINO computes in float32, which the record says (`computes_in`). float16 halves the weights on the
disk; a CPU computes in float32 with them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

from hmrcompress.errors import HMRCompressError, MissingExtra, UserError, first_line
from hmrcompress.exporting.onnx import require_exporter
from hmrcompress.exporting.runtimes.helper import HelperNetwork
from hmrcompress.exporting.runtimes.runtime import STEM, Compiled, Running, Source
from hmrcompress.exporting.session import has_exact_int8


class OpenVino:
    """See `runtime.Runtime`."""

    name = "openvino"
    extra = "openvino"
    precisions = ("float32", "bfloat16", "float16", "int8")
    writes = (f"{STEM}.xml", f"{STEM}.bin")

    def weight_bits(self) -> int:
        """See `Runtime`. Without VNNI or AMX, OpenVINO's products of 8 by 8 bits overflow in 16."""
        return 8 if has_exact_int8() else 7

    def check(self, precision: str) -> None:
        """See `Runtime`."""
        require_exporter()
        if importlib.util.find_spec("openvino") is None:
            raise MissingExtra("openvino", self.extra)

    def compile(self, source: Source, folder: Path, precision: str) -> Compiled:
        """See `Runtime`."""
        import openvino

        with TemporaryDirectory(prefix="hmrcompress-openvino-") as between:
            path = Path(between) / f"{STEM}.onnx"
            if precision == "int8":
                source.write_int8(path)
            else:
                source.write_onnx(path)
            try:
                # Read as it is, not through `convert_model`, which reports its use where its telemetry is installed.
                model = openvino.Core().read_model(path)
                openvino.save_model(model, folder / f"{STEM}.xml", compress_to_fp16=precision == "float16")
            except RuntimeError as error:
                raise HMRCompressError(f"OpenVINO does not take the graph: {first_line(error)}") from error
        return Compiled(f"{STEM}.xml")

    def run(self, path: Path, precision: str, *, threads: int, cuda: bool = False) -> Running:
        """See `Runtime`."""
        if cuda:
            raise UserError("OpenVINO does not run on NVIDIA's devices", "--device", "Try --device cpu")
        return HelperNetwork(path, engine="openvino", precision=precision, threads=threads)


RUNTIME = OpenVino()
