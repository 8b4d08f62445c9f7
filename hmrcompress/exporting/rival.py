"""An exported network beside its own in torch, for `timing.bench`: a folder, or one made for the purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting.int8 import all_layers
from hmrcompress.exporting.onnx_runtime import ONNXRUNTIME, RuntimeNetwork, check_runtime, runtime_network
from hmrcompress.exporting.opened import ExportedNetwork
from hmrcompress.exporting.parity import GraphNetwork, measure
from hmrcompress.exporting.runtimes.registry import require_precision
from hmrcompress.exporting.runtimes.runtime import Running, Source
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.records import FrameBatch
from hmrcompress.runtime import pick_dtype

INT8 = "int8"


@dataclass(frozen=True)
class ExportedRival:
    """An open exported network. parity: how far it is from torch, plain values; None where that was not measured."""

    name: str
    network: GraphNetwork
    dtype: str
    threads: int
    parity: dict[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def runner(self, batch: FrameBatch) -> Callable[[FrameBatch], object]:
        """What runs it once on this batch, whatever it is called with; converting its inputs is done here, once."""
        images, *more = batch.to("cpu").inputs()
        assert images is not None, "a batch holds images"
        given = {name: tensor.numpy() for name, tensor in self.network.inputs(images.float(), *more).items()}
        return lambda _: self.network.run(given)

    def to_json(self) -> dict[str, Any]:
        """{threads, dtype, parity, version, …}."""
        return {"threads": self.threads, "dtype": self.dtype, "parity": self.parity, **self.about}


@contextmanager
def rival_of(checkpoint: Checkpoint, threads: int, device: torch.device | str = "cpu") -> Iterator[ExportedRival]:
    """The network of a folder (`checkpoint.exported`), open on that device while the block runs. Raises UserError."""
    exported = cast(ExportedNetwork, checkpoint.exported).to(device)
    exported.threads = threads
    running, found = exported.running, exported.folder.config
    try:
        yield ExportedRival(
            found.runtime,
            GraphNetwork(running, running.inputs, checkpoint.config.grid),
            found.precision,
            threads,
            found.parity,
            dict(running.about),
        )
    finally:
        running.close()


def check_rival(runtime: str, precision: str) -> None:
    """UserError for a precision (a dtype, or `int8`) that the runtime does not have, MissingExtra where it is not
    installed."""
    if runtime == ONNXRUNTIME:
        check_runtime(torch.float32 if precision == INT8 else pick_dtype(precision), int8=precision == INT8)
    else:
        require_precision(runtime, precision).check(precision)


@contextmanager
def made_rival(
    runtime: str,
    network: HMR2,
    batch: FrameBatch,
    body: BodyModel,
    *,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    threads: int,
) -> Iterator[ExportedRival | RuntimeNetwork]:
    """A network as that runtime runs it at its fastest, compared with torch on `batch`, and open while the block runs:
    onnxruntime with our fusions (`exporting.onnx_runtime`), others as `export` makes them, in a temporary folder.
    precision: a dtype, or `int8`: 8 bits in all linear layers of the backbone, whatever that costs. Raises as
    `check_rival`, and HMRCompressError where the two differ."""
    check_rival(runtime, precision)
    if runtime == ONNXRUNTIME:
        int8 = precision == INT8
        dtype = torch.float32 if int8 else pick_dtype(precision)
        with runtime_network(network, batch, body, dtype=dtype, int8=int8, device=device, threads=threads) as opened:
            yield opened
        return
    chosen = require_precision(runtime, precision)
    with TemporaryDirectory(prefix=f"hmrcompress-{runtime}-") as folder, TemporaryDirectory() as between:
        source = Source(network, batch)
        if precision == INT8:
            every = all_layers(network, batch, chosen.weight_bits())
            source = replace(source, int8=every, calibration=batch).with_graph(Path(between))
        made = chosen.compile(source, Path(folder), precision)
        if made.prepared is not None:
            raise UserError(f"does not run on this machine: {made.prepared}", f"bench.runtime={runtime}")
        cuda = torch.device(device).type == "cuda"
        running: Running = chosen.run(Path(folder) / made.main, precision, threads=threads, cuda=cuda)
        try:
            ready = GraphNetwork(running, running.inputs, network.config.grid)
            parity = measure(network, ready, batch, body, (1, len(batch.images)))
            if precision != INT8:
                parity.require(runtime, precision)
            elif not parity.finite:
                raise HMRCompressError(f"{runtime}: the graph in int8 gives numbers that are not finite")
            yield ExportedRival(runtime, ready, precision, threads, parity.to_dict(), dict(running.about))
        finally:
            running.close()
