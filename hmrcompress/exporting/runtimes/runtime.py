"""What a runtime is to hmrcompress: it makes files of a network, and runs them.

A runtime is added by a file of its own beside this one, with a class of these members, its name in the registry,
and in `--format` of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hmrcompress.exporting.int8 import Int8Choice, quantise_onnx
from hmrcompress.exporting.onnx import PREPARED, in_half_precision, needs_two_files, traced_graph
from hmrcompress.models.network import HMR2
from hmrcompress.records import FrameBatch

STEM = "network"
"""What the files of a network are called, whatever runs them."""


@dataclass(frozen=True)
class Source:
    """What the files of a runtime are made of. network: float32 on the CPU, in evaluation mode, with the token merging
    that is wanted. batch: real crops, at least two. sizes: of batches, for runtimes whose shapes are fixed. int8: the
    layers that have 8 bits, with the crops that their ranges are found on, and the graph in float32 that they are
    put into."""

    network: HMR2
    batch: FrameBatch
    sizes: tuple[int, ...] = (1, 8)
    int8: Int8Choice | None = None
    calibration: FrameBatch | None = None
    graph: Path | None = None

    def write_onnx(self, path: Path, precision: str = "float32") -> None:
        """The network as an ONNX file with a dynamic batch, in float32 or float16."""
        made = in_half_precision(self.network) if precision == "float16" else self.network
        traced_graph(made, self.batch).save(path, external_data=needs_two_files(made))

    def with_graph(self, folder: Path) -> Source:
        """The same with its graph in float32, written to `folder`, for `write_int8`."""
        path, program = folder / "float32.onnx", traced_graph(self.network, self.batch)
        program.model.metadata_props.update(PREPARED)
        program.save(path, external_data=needs_two_files(self.network))
        return replace(self, graph=path)

    def write_int8(self, path: Path, *, unsigned: bool = False) -> None:
        """The same with 8 bits where `int8` has them. See `int8.quantise_onnx`."""
        assert self.int8 is not None and self.calibration is not None and self.graph is not None
        quantise_onnx(self.graph, path, self.network, self.calibration, self.int8, unsigned=unsigned)


@dataclass(frozen=True)
class Compiled:
    """What a runtime made. main: the file that it opens. prepared: why it was not run here, None where it can be.
    stand_in: opens the files by another runtime that reads them, given threads. lines: what to type to use it.
    details: plain values for the record."""

    main: str
    prepared: str | None = None
    stand_in: Callable[[int], Running] | None = None
    lines: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


class Running(Protocol):
    """An opened network. inputs: names of what goes in; about: what the runtime says of itself."""

    inputs: tuple[str, ...]
    about: Mapping[str, Any]

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays (B,…) by name -> `parity.OUTPUTS` by name. Raises UserError."""

    def close(self) -> None:
        """Gives back what it holds; the next call opens it again."""


class Runtime(Protocol):
    """A runtime. name: as `--format` has it (onnx for onnxruntime); extra: of hmrcompress, that brings it; writes:
    patterns of the files that it makes."""

    name: str
    extra: str
    precisions: tuple[str, ...]
    writes: tuple[str, ...]

    def weight_bits(self) -> int:
        """Of 8-bit weights, so many may be used that products on this processor do not overflow."""

    def check(self, precision: str) -> None:
        """MissingExtra where what writes its files is not installed."""

    def compile(self, source: Source, folder: Path, precision: str) -> Compiled:
        """Makes the files of a network in `folder`. Raises HMRCompressError where it does not take the network."""

    def run(self, path: Path, precision: str, *, threads: int, cuda: bool = False) -> Running:
        """Opens the main file of a network, in a helper process with bounds on time and memory. Raises UserError, also
        where it does not run on this machine, and MissingExtra."""
